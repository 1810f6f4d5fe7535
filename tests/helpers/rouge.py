"""ROUGE-L of two texts, to measure how well captions are split."""

import re


def rouge_l(text: str, other: str) -> float:
    """Return twice the longest common subsequence of words by the number of all words (Lin 2004, with beta 1)."""
    words, others = (re.findall(r"[a-z0-9]+", each.lower()) for each in (text, other))
    if not words or not others:
        return float(words == others)
    row = [0] * (len(others) + 1)
    for word in words:
        previous = row
        row = [0]
        for place, each in enumerate(others):
            row.append(previous[place] + 1 if word == each else max(previous[place + 1], row[-1]))
    return 2 * row[-1] / (len(words) + len(others))

"""Plots of the report of retrieval, as PNG images."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt

from biomedclip.retrieval_metrics import RankCounts, expected_ranks, recall_at

from .figures import plain_text, png_of


MOST_K = 1000  # largest k of the recall
_BINS = 24
COLORS = {"image_to_text": "tab:blue", "text_to_image": "tab:orange"}


def recall_curve(counts: RankCounts, candidates: int) -> list[tuple[int, float]]:
    """Return the recall at 1, 2, 5, 10, 20, 50, ... up to the number of candidates, but at most 1,000."""
    numbers = [number * 10**power for power in range(4) for number in (1, 2, 5)]
    last = min(candidates, MOST_K)
    return [
        (k, recall_at(k, counts).mean().item()) for k in dict.fromkeys([*filter(lambda k: k < last, numbers), last])
    ]


@plain_text
def plot_ranks(counts: Mapping[str, RankCounts], candidates: Mapping[str, int]) -> bytes:
    """Plot the recall at k, and the distribution of the rank of the right candidate, in both directions."""
    figure, (recall, ranks) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    most = max(candidates.values())
    # Ranks are whole numbers, so bins narrower than 1 would be empty.
    edges = np.unique(np.geomspace(1, most + 1, _BINS + 1).round()) - 0.5
    for direction, found in counts.items():
        name, color = direction.replace("_", " "), COLORS[direction]
        recall.plot(
            *zip(*recall_curve(found, candidates[direction]), strict=True), "o-", color=color, label=name, markersize=4
        )
        heights, _ = np.histogram(expected_ranks(found).numpy(), edges)
        ranks.stairs(heights / heights.sum(), edges, color=color, label=name, linewidth=1.5)
    chance = np.unique(np.geomspace(1, min(most, MOST_K), 50).round())
    recall.plot(chance, chance / most, color="0.5", linestyle="--", linewidth=1, label="chance")
    recall.set(xscale="log", xlabel="k", ylabel="recall at k", ylim=(-0.02, 1.02), title="Recall at k")
    ranks.set(xscale="log", xlabel="rank of the right candidate", ylabel="fraction of the queries", title="Ranks")
    for axes in (recall, ranks):
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return png_of(figure)

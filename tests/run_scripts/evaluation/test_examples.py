"""Examples of retrieval, as plots and as data."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch.nn.functional import normalize

from biomedclip.run_scripts.cli import plots
from biomedclip.run_scripts.evaluation.examples import TOP, find_examples, write_examples
from biomedclip.run_scripts.evaluation.pairs import EmbeddedPairs
from biomedclip.run_scripts.evaluation.retrieval import count_ranks


CAPTIONS = [
    "$x_1^{2$ and $\\alpha$ \\frac{ _a_ **b** <i>c</i>",
    "word " * 2000,
    "ATGC" * 500,
    "Кровь и ткань, αβγ ≥ 5 × 10⁶ مرحبا",
    "磁気共鳴画像" * 100,
    "a\u202eb\x1b[31m\nsecond line\tand a tab",
    "short",
]


def image_bytes(image: Image.Image, **options) -> dict:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return {"bytes": file.getvalue(), "path": "g.png"}


def pairs_of_all_kinds() -> list[dict]:
    """Rows with a 16-bit, gray, bilevel, transparent, palette, very wide and RGB image."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    images = [Image.fromarray((pixels[..., 0].astype(np.uint16)) * 16), rgb.convert("L"), rgb.convert("1")]
    images += [Image.fromarray(pixels), rgb.quantize(16), rgb.resize((3000, 2)), rgb]
    rows = [
        {"pair_id": f"p{number}", "pmcid": f"PMC{number}", "license": "CC BY-NC", "caption": caption}
        for number, caption in enumerate(CAPTIONS)
    ]
    return [row | {"image": image_bytes(image)} for row, image in zip(rows, images, strict=True)]


def embedded_pairs(pairs: int, image_of_text: list[int] | None = None) -> EmbeddedPairs:
    generator = torch.Generator().manual_seed(0)
    images = pairs if image_of_text is None else max(image_of_text) + 1
    of_images, of_texts = (normalize(torch.randn(rows, 6, generator=generator), dim=1) for rows in (images, pairs))
    numbers = None if image_of_text is None else torch.tensor(image_of_text)
    return EmbeddedPairs(of_images, of_texts, numbers, torch.arange(pairs), [], "")


@pytest.mark.parametrize("image_of_text", [None, [0, 1, 2, 1, 0, 3, 4, 2, 1, 5, 6, 6]])
def test_examples_are_the_best_candidates_and_the_rank_of_the_right_one(image_of_text, tmp_path):
    embedded = embedded_pairs(12, image_of_text)
    embedded = replace(embedded, rows=embedded.rows + 100)  # earlier rows were left out
    image_of = image_of_text or list(range(12))
    found = find_examples(embedded, count_ranks(embedded, tmp_path, {}), 99, seed=0)
    scores = embedded.images.double().numpy() @ embedded.texts.double().numpy().T
    for direction, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        assert len(found[direction]) == len(matrix), "each query once"
        for example in found[direction]:
            text = example.row - 100
            query = image_of[text] if direction == "image_to_text" else text
            right = [
                image_of[place] == query if direction == "image_to_text" else place == image_of[text]
                for place in range(matrix.shape[1])
            ]
            order = np.argsort(-matrix[query]).tolist()
            expected = order[: TOP[direction]]
            first = min(order.index(place) for place in range(len(order)) if right[place])
            missed = [] if first < TOP[direction] else [order[first]]
            for candidate, place in zip(example.candidates, expected + missed, strict=True):
                row = place if direction == "image_to_text" else image_of.index(place)
                assert candidate.row == row + 100 and candidate.right == right[place]
                assert candidate.score == pytest.approx(matrix[query, place], abs=1e-6)
                assert candidate.rank == order.index(place) + 1


def test_plots_show_any_caption_and_any_image_with_its_source(tmp_path, monkeypatch):
    """No text is parsed as mathematics, and matplotlib does not warn of missing fonts."""
    shown = []
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_, **__: pytest.fail("mathematics"))
    save = plots._save
    monkeypatch.setattr(
        plots,
        "_save",
        lambda figure, path: (save(figure, path), shown.extend(text.get_text() for text in figure.findobj(Text))),
    )
    pairs, embedded = pairs_of_all_kinds(), embedded_pairs(len(CAPTIONS))
    found = find_examples(embedded, count_ranks(embedded, tmp_path, {}), len(CAPTIONS), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = write_examples(found, pairs, tmp_path)
    assert {entry["file"] for entry in entries} == {
        f"examples/{direction}_{page}.png" for direction in TOP for page in (1, 2)
    }
    for file in {entry["file"] for entry in entries}:
        plot = np.asarray(Image.open(tmp_path / file).convert("RGB"))
        assert plot.shape[1] > 1000 and (plot != 255).any()
    text = "\n".join(shown)
    for expected in (
        "$x_1^{2$ and $\\alpha$",
        "ATGCATGC",
        "Кровь",
        "磁気",
        "Image of PMC0, CC BY-NC",
        "PMC6, CC BY-NC",
    ):
        assert expected in text
    assert "\u202e" not in text and "\x1b" not in text and "word ..." in text
    assert all(entry["query"]["license"] == "CC BY-NC" for entry in entries)


@pytest.fixture
def run(measure, built):
    """Return a function that evaluates retrieval with options and returns the results."""
    return lambda *options: measure("retrieval", built, *options)


def plots_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


@pytest.mark.slow
def test_the_command_lists_its_plots_and_removes_older_ones(run, tmp_path, capsys):
    results = run("--examples", "7")
    files = {entry["file"] for entry in results["examples"]}
    assert files == plots_in(tmp_path / "out") and len(files) == 4
    output = capsys.readouterr().out
    assert all(file in output for file in files)
    for direction in TOP:
        of_direction = [entry for entry in results["examples"] if entry["direction"] == direction]
        assert len({entry["query"]["pair_id"] for entry in of_direction}) == 7
        assert all(set(entry["query"]) == {"pair_id", "pmcid", "license"} for entry in of_direction)
        assert all(sum(candidate["right"] for candidate in entry["candidates"]) == 1 for entry in of_direction)
    again = run("--examples", "2")["examples"]
    assert plots_in(tmp_path / "out") == {entry["file"] for entry in again}
    assert run("--examples", "2")["examples"] == again
    queries = {entry["query"]["pair_id"] for entry in again}
    assert {entry["query"]["pair_id"] for entry in run("--examples", "2", "--seed", "1")["examples"]} != queries
    assert "examples" not in run("--examples", "0")


def test_there_are_no_more_examples_than_pairs_in_the_pool(run):
    results = run("--examples", "100", "--pool-size", "4", "--pool-draws", "2")
    assert len(results["examples"]) == 8
    assert "--examples 100: there are only 4 pairs, and all are examples." in results["data"]["notes"]
    for entry in results["examples"]:
        assert entry["rank"] <= 4 and len(entry["candidates"]) == min(4, TOP[entry["direction"]] + (entry["rank"] > 3))

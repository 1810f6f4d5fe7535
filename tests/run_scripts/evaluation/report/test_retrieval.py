"""The report of retrieval, as text and in headless Chromium."""

import html
import io
import re

import numpy as np
import pytest
import torch
from helpers.report_pages import HOSTILE, QUOTED, check_in_chromium, check_page, needs_chromium, words_of
from PIL import Image
from torch.nn.functional import normalize

from biomedclip.retrieval_metrics import DIRECTIONS, expected_ranks, rank_counts, recall_at
from biomedclip.run_scripts.evaluation.examples import find_worst
from biomedclip.run_scripts.evaluation.pairs import EmbeddedPairs
from biomedclip.run_scripts.evaluation.report.rank_plots import recall_curve
from biomedclip.run_scripts.evaluation.report.retrieval import write_retrieval_report
from biomedclip.run_scripts.evaluation.retrieval import Pool, retrieval_of_pools


def image_of(number: int) -> dict:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(number: int) -> list[dict]:
    return [
        {
            "pair_id": f"pair {place}",
            "pmcid": f"PMC{place}",
            "license": "CC BY",
            "caption": f"{HOSTILE} {QUOTED} {place} {'word ' * 200}",
            "image": image_of(place),
        }
        for place in range(number)
    ]


def embedded_pairs(images: int, image_of_text: list[int] | None = None) -> EmbeddedPairs:
    generator = torch.Generator().manual_seed(0)
    texts = images if image_of_text is None else len(image_of_text)
    embeds = [normalize(torch.randn(number, 5, generator=generator), dim=1) for number in (images, texts)]
    numbers = None if image_of_text is None else torch.tensor(image_of_text)
    return EmbeddedPairs(*embeds, numbers, torch.arange(texts), [], "")


def results_of(metrics) -> dict:
    return {
        "task": "retrieval",
        "benchmark": None,
        "command": f"biomedclip evaluate {HOSTILE}",
        "date": "2026-01-01",
        "model": {"name": HOSTILE, "type": "biomedclip", "weights": "00"},
        "data": {"path": QUOTED, "split": "test", "fingerprint": "0", "damaged": [], "notes": [], "leaks": None},
        "metrics": metrics,
        "paper": {"image_to_text": {"recall_at_1": 0.5625}},
        "settings": {},
        "versions": {},
    }


def write(embedded: EmbeddedPairs, pairs, path) -> str:
    counts = rank_counts(embedded.images, embedded.texts, embedded.image_of_text)
    pool = Pool(counts, [f"PMC{row}" for row in embedded.rows.tolist()], embedded.image_of_text)
    measured = retrieval_of_pools([pool], seed=0)
    measured["pool"] = {"size": len(embedded.texts), "draws": 1, "pairs": len(embedded.texts), "seed": 0}
    candidates = dict(zip(DIRECTIONS, (len(embedded.texts), len(embedded.images)), strict=True))
    worst = find_worst(embedded, counts, 25)
    write_retrieval_report(path, results_of(measured), counts=counts, candidates=candidates, worst=worst, pairs=pairs)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(embedded_pairs(40), rows(40), path)
    return path


def test_all_texts_are_escaped_and_nothing_is_loaded(page):
    text = page.read_text(encoding="utf-8")
    check_page(text)
    assert html.escape(HOSTILE) in text and html.escape(QUOTED) in text


def test_the_page_has_metrics_with_intervals_chance_and_published_values(page):
    embedded = embedded_pairs(40)
    counts = rank_counts(embedded.images, embedded.texts)
    words = words_of(page.read_text(encoding="utf-8"))
    for direction in DIRECTIONS:
        value = float(f"{recall_at(1, counts[direction]).mean().item():.4g}")
        paper = " 0.5625" if direction == "image_to_text" else ""
        assert re.search(rf"recall at 1 {value} \[0\.\d+, 0\.\d+\] 0.025{paper} recall at 5", words)
    assert "median rank" in words and " 20.5" in words


def test_the_worst_queries_of_both_directions_come_first_with_the_rank_of_the_right_answer(page):
    embedded = embedded_pairs(40)
    counts = rank_counts(embedded.images, embedded.texts)
    for direction, part in zip(
        DIRECTIONS, page.read_text(encoding="utf-8").split(": the worst queries")[1:], strict=True
    ):
        ranks = expected_ranks(counts[direction]).numpy()
        order = np.argsort(-ranks, kind="stable")
        names = re.findall(r'<div class="card">.*?(pair \d+), PMC', part)
        assert names == [f"pair {place}" for place in order[:25]]
        assert [float(rank) for rank in re.findall(r"right, rank (\d+)", part)] == ranks[order[:25]].tolist()


def test_each_query_has_its_best_wrong_candidates_with_similarities(page):
    embedded = embedded_pairs(40)
    scores = (embedded.images @ embedded.texts.T).numpy()
    ranks = expected_ranks(rank_counts(embedded.images, embedded.texts)["image_to_text"]).numpy()
    worst = int(np.argsort(-ranks, kind="stable")[0])
    card = page.read_text(encoding="utf-8").split('<div class="card">')[1]
    shown = re.findall(r'<li value="(\d+)"><span class="muted">(\S+)</span>', card)
    best = np.argsort(-scores[worst])[:3]
    assert shown == [(str(rank), f"{scores[worst, place]:.3f}") for rank, place in enumerate(best, 1)]
    assert f'<span class="muted">{scores[worst, worst]:.3f}</span>' in card


def test_queries_that_are_answered_first_are_no_errors(tmp_path):
    eye = torch.eye(5)
    embedded = EmbeddedPairs(eye, eye, None, torch.arange(5), [], "")
    text = write(embedded, rows(5), tmp_path / "report.html")
    assert text.count("The right candidate is always the first one.") == 2 and '<div class="card">' not in text


def test_images_of_several_captions_and_missing_images_are_shown(tmp_path):
    pairs = rows(6)
    pairs[0]["image"] = {"bytes": b"no image", "path": None}
    pairs[1]["image"] = tmp_path / "gone.png"
    text = write(embedded_pairs(4, [0, 1, 2, 3, 0, 1]), pairs, tmp_path / "report.html")
    check_page(text)
    assert "no image" in text and "Traceback" not in text


def test_only_images_of_shown_candidates_are_read(tmp_path):
    class Rows(list):
        read = set()

        def __getitem__(self, place):
            self.read.add(place)
            return super().__getitem__(place)

    embedded, pairs = embedded_pairs(400), Rows(rows(400))
    write(embedded, pairs, tmp_path / "report.html")
    assert len(pairs.read) <= 2 * 25 * 5 < 400


def test_without_finite_embeddings_the_page_has_no_plots(tmp_path):
    metrics = retrieval_of_pools([Pool(None, ["PMC1", "PMC2"])], seed=0)
    metrics["pool"] = {"size": 2, "draws": 1, "pairs": 2, "seed": 0}
    path = tmp_path / "report.html"
    write_retrieval_report(path, results_of(metrics), counts=None, candidates={}, worst={}, pairs=[])
    text = path.read_text(encoding="utf-8")
    assert "Undefined: image to text, text to image: the embeddings contain NaN or infinity." in words_of(text)
    assert "recall at 1 undefined" in words_of(text) and "<img" not in text


def test_the_curve_of_recall_ends_at_all_candidates_or_at_1000():
    embedded = embedded_pairs(30)
    counts = rank_counts(embedded.images, embedded.texts)["image_to_text"]
    curve = recall_curve(counts, 30)
    assert [k for k, _ in curve] == [1, 2, 5, 10, 20, 30] and curve[-1][1] == 1.0
    ranks = expected_ranks(counts).numpy()
    assert [value for _, value in curve] == pytest.approx([(ranks <= k).mean() for k, _ in curve])
    assert recall_curve(counts, 5000)[-1][0] == 1000


def test_the_command_writes_the_report(measure, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = ["image,caption"]
    for number in range(12):
        (folder / f"{number}.png").write_bytes(image_of(number)["bytes"])
        lines.append(f'{number}.png,"{HOSTILE} {number}"')
    (folder / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    measure("retrieval", folder / "pairs.csv", "--report")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    assert text.count('<div class="card">') > 2 and "no image" not in text


@pytest.mark.slow
@needs_chromium
def test_chromium_shows_the_page_offline_on_a_phone_and_as_pdf(page, tmp_path):
    check_in_chromium(page, tmp_path)

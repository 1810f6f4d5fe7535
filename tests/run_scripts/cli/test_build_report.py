"""Tables and plot of a build."""

import pytest
from helpers.build_reports import full_scale_report, report_with_panels, smallest_report
from PIL import Image

from biomedclip.run_scripts.cli.build_report import duration, largest, show_report
from biomedclip.run_scripts.cli.plots import plot_report


def empty_report():
    """Return a report without pairs, with long reasons and large counts."""
    report = smallest_report() | {"pairs": 0, "licenses": {}, "modes": {}, "formats": {}, "splits": {}}
    report["articles"] = {"seen": 0, "kept": 0, "dropped": {}}
    report["figures"] = {"seen": 0, "skipped": {f"a reason of many words, number {n}, " * 5: 10**n for n in range(13)}}
    for part in ("caption_length", "image_size"):
        report[part]["histogram"] = {"edges": [0, 16], "counts": [0]}
    return report


@pytest.fixture(params=[full_scale_report, smallest_report, empty_report, report_with_panels])
def report(request):
    return request.param()


def shown(report, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    show_report(report)
    return capsys.readouterr().out


def test_the_tables_fit_a_terminal_of_80_columns(report, capsys, monkeypatch):
    assert max(map(len, shown(report, capsys, monkeypatch).splitlines())) <= 80


def test_reasons_are_sorted_by_their_counts(capsys, monkeypatch):
    text = shown(full_scale_report(), capsys, monkeypatch)
    reasons = ["no figure with a caption", "not open access", "license not allowed", "retracted", "XML cannot be"]
    assert sorted(reasons, key=text.index) == reasons
    row = next(line for line in text.splitlines() if "not open access" in line)
    assert "812,345" in row and "10.1 %" in row


def test_every_split_and_license_is_shown(capsys, monkeypatch):
    report = full_scale_report()
    text = shown(report, capsys, monkeypatch)
    for count in [*report["licenses"].values(), *(split["pairs"] for split in report["splits"].values())]:
        assert f"{count:,}" in text


def test_the_counts_of_an_update_are_shown(capsys, monkeypatch):
    assert "20,114 new" in shown(full_scale_report(), capsys, monkeypatch)
    assert "last build" not in shown(smallest_report(), capsys, monkeypatch)


def test_panels_and_types_are_shown(capsys, monkeypatch):
    report = report_with_panels()
    lines = shown(report, capsys, monkeypatch).splitlines()
    for name, cells in (
        ("compound figures", ["1,001", "45.3 %"]),
        ("captions of these that were split", ["777", "77.6 %"]),
        ("rows: panels", ["5,102", "69.8 %"]),
        ("radiology", ["4,111", "65.2 %"]),
        ("Light microscopy", ["1,190", "18.9 %"]),
    ):
        assert any(
            line.split("│")[1:2] and line.split("│")[1].strip() == name and all(cell in line for cell in cells)
            for line in lines
        ), name
    report["composition"] |= {"image_types": {"unknown": 6_305}, "image_groups": {"unknown": 6_305}}
    assert "by type" not in shown(report, capsys, monkeypatch)
    assert "compound" not in shown(full_scale_report(), capsys, monkeypatch)


def test_counts_beyond_the_limit_are_summed():
    counts = {f"reason {n}": n for n in range(20)}
    shortened = largest(counts, 5)
    assert shortened[:2] == [("reason 19", 19), ("reason 18", 18)]
    assert shortened[-1] == ("16 others", sum(range(16)))
    assert sum(count for _, count in shortened) == sum(counts.values())
    assert largest({"a": 1, "b": 2}, 2) == [("b", 2), ("a", 1)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (119, "119.0 s"), (600, "10 min"), (40_215, "11 h 10 min")]
)
def test_durations_have_a_suitable_unit(seconds, text):
    assert duration(seconds) == text


def test_the_plot_of_a_large_a_small_and_an_empty_dataset(report, tmp_path):
    plot_report(report, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 1000
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


def axes_of(report, tmp_path, monkeypatch):
    """Return the panels of the plot by their titles."""
    from biomedclip.run_scripts.cli import plots

    kept = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
    plot_report(report, tmp_path / "report.png")
    return {axes.get_title().split(":")[0]: axes for axes in kept[0].axes if axes.get_title()}


def test_the_bars_have_the_lengths_of_the_counts(tmp_path, monkeypatch):
    report = full_scale_report()
    axes = axes_of(report, tmp_path, monkeypatch)
    assert [bar.get_width() for bar in axes["Pairs by license"].patches] == sorted(
        report["licenses"].values(), reverse=True
    )
    widths = [bar.get_width() for bar in axes["Articles seen"].patches]
    assert widths[0] == report["articles"]["kept"] and report["pairs"] in widths
    assert sum(widths[1:8]) == sum(report["articles"]["dropped"].values())


def test_kinds_of_rows_and_types_are_plotted(tmp_path, monkeypatch):
    report = report_with_panels()
    axes = axes_of(report, tmp_path, monkeypatch)
    for title, part in (("Rows. Compound", "rows"), ("Panels and single figures by type", "image_types")):
        assert [bar.get_width() for bar in axes[title].patches] == [*report["composition"][part].values()]
    assert "Rows. Compound" not in axes_of(full_scale_report(), tmp_path, monkeypatch)


def test_the_limit_of_256_is_only_drawn_for_tokens(tmp_path, monkeypatch):
    def marks(report):
        return [line.get_xdata()[0] for line in axes_of(report, tmp_path, monkeypatch)["Captions"].lines]

    assert marks(full_scale_report()) == [256] and marks(smallest_report()) == []


def test_the_image_sizes_of_the_models_are_marked(tmp_path, monkeypatch):
    lines = axes_of(full_scale_report(), tmp_path, monkeypatch)["Images"].lines
    assert [line.get_xdata()[0] for line in lines] == [224, 336]

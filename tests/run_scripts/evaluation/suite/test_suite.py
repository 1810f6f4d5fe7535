"""`biomedclip evaluate suite`."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_files import write_lc25000, write_medmnist, write_pcam, write_rsna, write_tcga_til, write_vqa_rad
from helpers.commands import biomedclip, kill_when
from helpers.model_results import read_results
from PIL import Image

from biomedclip.processing.benchmarks.facts import PAPER_MODEL, facts_of
from biomedclip.run_scripts.cli import plots
from biomedclip.run_scripts.evaluation import run
from biomedclip.run_scripts.evaluation.comparison import Value
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.suite import suite
from biomedclip.run_scripts.evaluation.suite.comparison import PAPER_FIVE, Line, compare_suite, paper_mean
from biomedclip.run_scripts.evaluation.tasks import TASKS, Task
from biomedclip.run_scripts.hub.card_facts import select_results
from biomedclip.run_scripts.main import main


METRIC = {name: facts_of(name)["metric"] for name in PAPER_FIVE}
FAST = ["--fractions", "1.0", "--find-leaks", "false"]


def write_benchmarks(root: Path, *names: str) -> Path:
    """A folder of small benchmarks in the layout of the suite."""
    writers = {
        "pcam": lambda folder: [
            write_pcam(folder, part, images, distinct=images)
            for part, images in (("train", 16), ("valid", 8), ("test", 12))
        ],
        "lc25000": lambda folder: write_lc25000(folder, 3, 32),
        "tcga_til": lambda folder: write_tcga_til(folder, ["luad", "pancancer"], {"test": (4, 3)}),
        "rsna": lambda folder: write_rsna(folder, {f"p{number}": [int(number % 3 == 0)] for number in range(24)}, 32),
        "medmnist": lambda folder: write_medmnist(folder / "pneumoniamnist.npz", 2, {"train": 2, "val": 2, "test": 8}),
        "vqa_rad": lambda folder: write_vqa_rad(
            folder,
            [
                {"phrase_type": f"{part}freeform", "answer": answer, "image_name": f"{part}{answer}.jpg"}
                for part in ("", "test_")
                for answer in ("yes", "no")
            ],
        ),
    }
    for name in names:
        (root / name).mkdir(parents=True)
        writers[name](root / name)
    return root


def arguments(root: Path, out: Path, *models: str) -> list[str]:
    return ["evaluate", "suite", "--model", *models, "--data-root", str(root), "--output-dir", str(out)]


def comparison(out: Path) -> dict:
    return json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def measured(two_models, built, tmp_path_factory) -> tuple[Path, Path, str, list[int]]:
    """Root, output folder, what is printed, and the numbers of images embedded, of two models on all benchmarks."""
    root = write_benchmarks(tmp_path_factory.mktemp("root"), "pcam", "lc25000", "tcga_til", "rsna", "medmnist")
    (root / "pmc15m").symlink_to(built)
    embedded: list[int] = []
    embed_pixels = DualEncoder.embed_pixels

    def count(self, pixel_values, features="embeds"):
        embedded.append(len(pixel_values))
        return embed_pixels(self, pixel_values, features)

    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as printed:
        patched.setattr(DualEncoder, "embed_pixels", count)
        patched.setenv("COLUMNS", "80")
        assert main([*arguments(root, out, *two_models), *FAST]) == 0
    return root, out, printed.getvalue(), embedded


def test_the_mean_is_over_the_five_benchmarks_of_the_paper(measured):
    _, out, printed, _ = measured
    found = comparison(out)["mean_of_the_paper"]
    assert found["benchmarks"] == ["pcam", "lc25000_lung", "lc25000_colon", "tcga_til", "rsna"]
    for model in ("base", "other"):
        values = [read_results(out / model / "zero-shot" / name)["metrics"][METRIC[name]] for name in PAPER_FIVE]
        assert found["models"][model] == pytest.approx(np.mean(values), abs=1e-12)
        assert f"{np.mean(values):.3f}" in next(line for line in printed.splitlines() if "mean of" in line)
    assert METRIC["tcga_til"] == "auroc"
    assert found["published"]["BiomedCLIP"] == pytest.approx(0.7552, abs=5e-5), "the mean that the paper gives"
    assert found["lacks"] == {}
    assert "BiomedCLIP (independent run)" not in found["published"], "of other images and prompts"


def test_the_plot_marks_published_values_and_those_read_off_a_figure(measured, tmp_path, monkeypatch):
    drawn: list[str] = []
    plot_values = plots._plot_values

    def keep(axes, points, name, *style):
        drawn.append(name)
        plot_values(axes, points, name, *style)

    monkeypatch.setattr(plots, "_plot_values", keep)
    _, out, _, _ = measured
    results = [("zero-shot", name, name, {"base": read_results(out / "base/zero-shot" / name)}) for name in PAPER_FIVE]
    compare_suite(results, ["base"], tmp_path, remarks={})
    assert {"base", "BiomedCLIP (published)", "GPT variant of BiomedCLIP (published, read off a figure)"} <= set(drawn)
    assert "GPT variant of BiomedCLIP (published)" not in drawn


def test_results_equal_those_of_the_single_tasks(measured, two_models, tmp_path):
    root, out, _, _ = measured
    single = ["evaluate", "linear-probe", "--benchmark", "rsna", "--data", str(root / "rsna"), *FAST]
    assert main([*single, "--model", two_models[1], "--output-dir", str(tmp_path)]) == 0
    alone, of_suite = read_results(tmp_path), read_results(out / "other" / "linear-probe" / "rsna")
    for name in ("metrics", "paper", "model", "settings"):
        assert alone[name] == of_suite[name]


def test_the_comparison_has_every_benchmark_with_published_values_beside_ours(measured):
    _, out, printed, _ = measured
    found = {(entry["task"], entry["name"]): entry for entry in comparison(out)["results"]}
    assert [task for task, _ in found] == ["zero-shot"] * 6 + ["linear-probe"] * 2 + ["retrieval"]
    assert all(set(entry["models"]) == {"base", "other"} for entry in found.values())
    models = {entry["model"]: entry["values"] for entry in found["zero-shot", "rsna"]["published"]}
    assert models["BiomedCLIP"] == {"accuracy": 0.7895} and models["BioViL"]["accuracy"] == 0.732
    table = (out / "comparison.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| zero-shot | rsna "))
    assert "| 0.7895 | " in line and "GPT variant of BiomedCLIP about 0.81, BioViL 0.732, GLoRIA 0.7 |" in line
    assert "- BioViL: BioViL paper (arXiv 2204.09817)" in table
    assert r"zero-shot & rsna & accuracy & " in (out / "comparison.tex").read_text()
    assert "pneumoniamnist, accuracy" in printed and "image to text R@1" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert Image.open(out / "comparison.png").height > 500


def test_missing_benchmarks_are_listed_with_their_folders_before_work_begins(measured):
    _, out, printed, _ = measured
    plan = printed[: printed.index("Zero-shot classification")]
    for name in ("vqa_rad", "slake"):
        line = next(line for line in plan.splitlines() if line.startswith(f"│ {name} "))
        assert f"{name}/" in line and "missing" in line
    assert comparison(out)["missing"]["visual-question-answering on slake"] == "expected in slake/"


def test_images_are_embedded_once_for_all_tasks(measured, built):
    """The test splits of PCam and RSNA serve both zero-shot classification and the linear probe."""
    from biomedclip.processing import load_pmc15m

    pairs = len(load_pmc15m(built, "test", streaming=False, columns=["pair_id"]))
    rsna = 24
    assert sum(measured[3]) == 2 * (16 + 8 + 12 + 15 + 7 + rsna + 8 + pairs)


def test_the_card_takes_the_results_of_its_model(measured):
    _, out, _, _ = measured
    weights = read_results(out / "base" / "zero-shot" / "pcam")["model"]["weights"]
    results, left_out = select_results(weights, [str(out)])
    assert len(results) == len(left_out) == 9
    assert {result["model"]["weights"] for result in results} == {weights}


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The evaluations that a test runs, by task and benchmark."""
    seen: list[str] = []

    def counted(name: str, task: Task) -> Task:
        def evaluate(run):
            seen.append(f"{name} {run.output_dir.name}")
            return task.evaluate(run)

        return Task(task.read, evaluate)

    for name, task in list(TASKS.items()):
        monkeypatch.setitem(TASKS, name, counted(name, task))
    return seen


def test_only_results_whose_options_data_or_weights_changed_are_measured_again(
    two_models, tmp_path, calls, monkeypatch
):
    root = write_benchmarks(tmp_path / "root", "rsna", "medmnist")
    model = tmp_path / "model"
    shutil.copytree(two_models[0], model)
    command = [*arguments(root, tmp_path / "out", str(model)), "--find-leaks", "false", "--fractions"]
    everything = ["zero-shot rsna", "zero-shot pneumoniamnist", "linear-probe rsna"]
    for shares, expected in ((["1.0"], everything), (["1.0"], []), (["0.5", "1.0"], everything[2:])):
        assert main([*command, *shares]) == 0
        assert calls == expected
        calls.clear()
    assert main([*command, "0.5", "1.0", "--batch-size", "8", "--workers", "1"]) == 0 and calls == []
    monkeypatch.setattr(suite, "facts_version", lambda: 99)
    assert main([*command, "1.0"]) == 0 and calls == everything, "the published values have changed"
    calls.clear()
    assert main([*command, "1.0", "--rsna-split", "paper-fractions"]) == 0 and calls == everything[::2]
    calls.clear()
    shutil.copy(Path(two_models[1]) / "model.safetensors", model / "model.safetensors")
    monkeypatch.setattr(run, "load_dual_encoder", lambda *args, **options: pytest.fail("loaded again"))
    assert main([*command, "1.0"]) == 0 and calls == everything
    calls.clear()
    (tmp_path / "out" / "model" / "zero-shot" / "rsna" / "results.json").unlink()
    write_medmnist(root / "medmnist" / "pneumoniamnist.npz", 2, {"train": 2, "val": 2, "test": 10})
    assert main([*command, "1.0"]) == 0 and calls == everything[:2]


def test_a_result_written_just_before_a_kill_is_not_used_for_other_options(two_models, tmp_path, calls):
    root = write_benchmarks(tmp_path / "root", "tcga_til")
    command = arguments(root, tmp_path / "out", two_models[0])
    assert main(command) == 0

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite, "write_json", interrupt)
        assert main([*command, "--seed", "1"]) == 130
    assert main(command) == 0 and calls == ["zero-shot tcga_til"] * 3


@pytest.mark.slow
def test_a_killed_run_continues_with_the_next_benchmark(two_models, tmp_path, calls, capsys):
    root, out = write_benchmarks(tmp_path / "root", "lc25000", "tcga_til", "medmnist"), tmp_path / "out"
    command = arguments(root, out, two_models[0])
    first = out / "base" / "zero-shot" / "lc25000_lung" / "measured_with.json"
    kill_when(first.exists, *command)
    before = first.with_name("results.json").stat().st_mtime_ns
    done = len(list(out.rglob("measured_with.json")))
    assert done < 4, "killed too late"

    assert main(command) == 0
    assert len(calls) == 4 - done and "zero-shot lc25000_lung" not in calls
    assert first.with_name("results.json").stat().st_mtime_ns == before
    assert len(comparison(out)["results"]) == 4
    assert "Already measured" in capsys.readouterr().out


def test_a_damaged_benchmark_is_listed_and_the_others_are_measured(two_models, tmp_path, capsys, calls):
    root, out = write_benchmarks(tmp_path / "root", "lc25000", "tcga_til", "rsna", "medmnist"), tmp_path / "out"
    whole = (root / "medmnist" / "pneumoniamnist.npz").read_bytes()
    (root / "medmnist" / "pneumoniamnist.npz").write_bytes(whole[:500])
    table = root / "rsna" / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace(",1\n", ",7\n"))
    command = [*arguments(root, out, two_models[0]), *FAST]
    assert main(command) == 1
    printed, error = capsys.readouterr()
    assert printed.index("not a MedMNIST file, or a truncated one") < printed.index("Zero-shot classification")
    assert "3 of the evaluations failed" in error and "Finished results are kept" in error
    assert "zero-shot on rsna" in error and "linear-probe on rsna" in error and "Target must be 0 or 1" in error
    found = comparison(out)
    assert set(found["failed"]) == {"zero-shot on rsna", "zero-shot on pneumoniamnist", "linear-probe on rsna"}
    assert [entry["name"] for entry in found["results"]] == ["lc25000_lung", "lc25000_colon", "tcga_til"]
    assert found["mean_of_the_paper"]["lacks"] == {"base": ["pcam", "rsna"]}
    assert found["mean_of_the_paper"]["models"] == {}
    assert (
        "No mean of the paper's five zero-shot benchmarks for base: pcam, rsna not measured as in the paper."
        in " ".join(printed.split())
    )
    assert "mean of the paper's five |" not in (out / "comparison.md").read_text()

    calls.clear()
    (root / "medmnist" / "pneumoniamnist.npz").write_bytes(whole)
    shutil.rmtree(root / "rsna")
    assert main(command) == 0 and calls == ["zero-shot pneumoniamnist"]


def test_a_failed_evaluation_or_model_does_not_stop_the_others(two_models, tmp_path, capsys, monkeypatch):
    root, out = write_benchmarks(tmp_path / "root", "lc25000", "medmnist"), tmp_path / "out"
    broken = tmp_path / "broken"
    shutil.copytree(two_models[0], broken)
    (broken / "tokenizer.json").write_text("{")
    task = TASKS["zero-shot"]

    def fail(run):
        if run.output_dir.name == "lc25000_colon":
            raise RuntimeError("out of memory")
        return task.evaluate(run)

    def read(options):
        if options.benchmark == "medmnist":
            raise RuntimeError("the file is damaged")
        return task.read(options)

    monkeypatch.setitem(TASKS, "zero-shot", Task(read, fail))
    assert main(arguments(root, out, str(broken), two_models[1])) == 1
    error = capsys.readouterr().err
    assert f"--model {broken}: " in error and "zero-shot on pneumoniamnist: RuntimeError: the file is damaged" in error
    assert f"zero-shot on lc25000_colon, {two_models[1]}: RuntimeError: out of memory" in error
    assert list(comparison(out)["results"][0]["models"]) == ["other"]


def test_missing_parts_of_a_download_are_not_failures(two_models, tmp_path):
    root = write_benchmarks(tmp_path / "root", "pcam", "lc25000")
    shutil.rmtree(root / "lc25000" / "lung_colon_image_set" / "colon_image_sets")
    for file in (root / "pcam").glob("*_train_*"):
        file.unlink()
    assert main(arguments(root, tmp_path / "out", two_models[0])) == 0
    found = comparison(tmp_path / "out")
    assert [entry["name"] for entry in found["results"]] == ["pcam", "lc25000_lung"]
    assert "no folder colon_aca" in found["missing"]["zero-shot on lc25000_colon"]
    assert "split_train_x.h5" in found["missing"]["linear-probe on pcam"] and found["failed"] == {}


def test_each_model_does_only_the_tasks_that_it_fits(two_models, answerer, tmp_path, capsys):
    root, out = write_benchmarks(tmp_path / "root", "vqa_rad", "medmnist"), tmp_path / "out"
    assert main(arguments(root, out, answerer, two_models[0])) == 0
    found = comparison(out)
    by_name = [(entry["name"], list(entry["models"])) for entry in found["results"]]
    assert by_name == [("pneumoniamnist", ["base"]), ("vqa_rad", ["answers"])]
    assert {path.name for path in (out / "answers").iterdir()} == {"visual-question-answering"}
    assert "has no trained head for questions" in found["not_applicable"][f"visual-question-answering, {two_models[0]}"]
    assert "visual question answering" in found["not_applicable"][f"zero-shot, {answerer}"]
    assert found["mean_of_the_paper"]["lacks"].keys() == {"base"}
    assert "token F1 (words)" in (out / "comparison.md").read_text(), "the paper counts GPT-2 tokens"
    capsys.readouterr()
    (root / "vqa_rad").rename(tmp_path / "away")
    assert main(arguments(root, tmp_path / "other", answerer)) == 1
    assert "visual question answering" in capsys.readouterr().err


def test_a_folder_without_benchmarks_is_an_error(two_models, tmp_path, capsys):
    (tmp_path / "root" / "pcam").mkdir(parents=True)
    (tmp_path / "root" / "images").mkdir()
    assert main(arguments(tmp_path / "root", tmp_path / "out", two_models[0])) == 1
    error = capsys.readouterr().err
    assert "no benchmark found" in error and not (tmp_path / "out").exists()
    assert all(name in error for name in ("pcam", "lc25000", "tcga_til", "rsna", "medmnist", "pmc15m", "slake"))
    assert main(arguments(tmp_path / "none", tmp_path / "out", two_models[0])) == 1
    assert "none: the folder does not exist" in capsys.readouterr().err


def test_unsupported_sets_of_medmnist_are_listed_as_not_applicable(two_models, tmp_path):
    root = write_benchmarks(tmp_path / "root", "medmnist")
    write_medmnist(root / "medmnist" / "chestmnist.npz", 2, {"train": 2, "val": 2, "test": 4}, labels=14)
    shutil.copy(root / "medmnist" / "pneumoniamnist.npz", root / "medmnist" / "pneumoniamnist_64.npz")
    assert main(arguments(root, tmp_path / "out", two_models[0])) == 0
    found = comparison(tmp_path / "out")
    assert [entry["name"] for entry in found["results"]] == ["pneumoniamnist", "pneumoniamnist_64"]
    assert "2D images with one label" in found["not_applicable"]["zero-shot on chestmnist"]


def test_tasks_and_benchmarks_can_be_selected(two_models, tmp_path, calls, capsys):
    root = write_benchmarks(tmp_path / "root", "pcam", "rsna", "medmnist")
    command = [*arguments(root, tmp_path / "out", two_models[0]), *FAST]
    assert main([*command, "--tasks", "linear-probe", "--benchmarks", "rsna", "medmnist"]) == 0
    assert calls == ["linear-probe rsna"]
    assert main([*command, "--benchmarks", "rsna", "slake"]) == 1
    assert "visual-question-answering on slake (expected in slake/)" in capsys.readouterr().err


def test_corrupted_images_are_measured_where_a_task_has_images(two_models, tmp_path, capsys):
    root, model = write_benchmarks(tmp_path / "root", "medmnist"), two_models[0]
    main([*arguments(root, tmp_path / "out", model), "--corruptions", "noise", "mark"])
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    (file,) = (tmp_path / "out").rglob("pneumoniamnist/results.json")
    robustness = json.loads(file.read_text(encoding="utf-8"))["metrics"]["robustness"]
    assert list(robustness["corruptions"]) == ["noise", "mark"]
    line = f"accuracy {robustness['clean']:.3f}, {robustness['mean']:.3f} on average when corrupted"
    assert "Corrupted images" in text and line in text
    assert main([*arguments(root, tmp_path / "other", model), "--tasks", "retrieval", "--corruptions", "noise"]) != 0
    assert "--corruptions has no effect on suite --tasks retrieval" in " ".join(capsys.readouterr().err.split())


def test_models_with_similar_names_have_their_own_folders(two_models, tmp_path):
    root = write_benchmarks(tmp_path / "root", "medmnist")
    models = [tmp_path / "run 1", tmp_path / "run_1"]
    for source, copy in zip(two_models, models, strict=True):
        shutil.copytree(source, copy)
    assert main(arguments(root, tmp_path / "out", *map(str, models))) == 0
    assert list(comparison(tmp_path / "out")["results"][0]["models"]) == ["run_1_1", "run_1_2"]
    weights = [read_results(path.parent)["model"]["weights"] for path in (tmp_path / "out").rglob("results.json")]
    assert len(set(weights)) == 2


def test_results_of_another_task_are_not_replaced(two_models, tmp_path, capsys):
    root, out = write_benchmarks(tmp_path / "root", "medmnist"), tmp_path / "out"
    out.mkdir()
    (out / "comparison.json").write_text('{"task": "zero-shot", "benchmark": "pcam"}')
    assert main(arguments(root, out, two_models[0])) == 1
    assert "contains results of zero-shot on pcam" in capsys.readouterr().err


def test_a_mean_needs_a_defined_metric_of_all_five_benchmarks():
    published = [{PAPER_MODEL: Value(0.5), "GPT": Value(0.1 * place)} for place in range(5)]
    lines = [
        Line("zero-shot", name, "accuracy", {"a": Value(0.1 * place), "b": Value(None)}, published[place])
        for place, name in enumerate(PAPER_FIVE)
    ]
    mean, lacks = paper_mean(lines, ["a", "b"])
    assert mean is not None and mean.values == {"a": Value(pytest.approx(0.2))}
    assert mean.published == {PAPER_MODEL: Value(0.5), "GPT": Value(pytest.approx(0.2))}
    assert lacks == {"b": list(PAPER_FIVE)}
    published[2].pop("GPT")
    mean, _ = paper_mean(lines, ["a"])
    assert mean is not None and mean.published == {PAPER_MODEL: Value(0.5)}
    assert paper_mean(lines[1:], ["a"]) == (None, {"a": ["pcam"]})
    published[3].pop(PAPER_MODEL)
    assert paper_mean(lines, ["a"]) == (None, {"a": ["tcga_til"]})
    assert paper_mean([Line("linear-probe", "rsna", "accuracy", {"a": Value(0.5)}, {})], ["a"]) == (None, {})


def test_long_names_of_models_are_listed_below_the_table(two_models, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    root = write_benchmarks(tmp_path / "root", "tcga_til")
    models = [tmp_path / f"BiomedCLIP-PubMedBERT_256-vit_base_patch16_{size}" for size in (224, 384)]
    for source, copy in zip(two_models, models, strict=True):
        shutil.copytree(source, copy)
    assert main(arguments(root, tmp_path / "out", *map(str, models))) == 0
    printed = capsys.readouterr().out
    table = printed[printed.index("Benchmarks of 2 models") :]
    assert "  tcga_til, AUROC │" in table and "2: BiomedCLIP-PubMedBERT_256-vit_base_patch16_384" in table


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(measured, two_models, tmp_path):
    root, out, _, _ = measured
    command = arguments(root, tmp_path / "out", two_models[1])
    biomedclip(*command, "--tasks", "zero-shot", "--benchmarks", "pcam", "tcga_til", processes=2)
    for name in ("pcam", "tcga_til"):
        one, two = (read_results(folder / "other" / "zero-shot" / name) for folder in (out, tmp_path / "out"))
        assert one["metrics"] == two["metrics"]

"""A killed build continues, and gives the same files as an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from helpers.mirror_writer import MirrorWriter, build_set, dataset_files, figure_xml, interrupt, png_bytes

from biomedclip.processing.pmc import stages, steps
from biomedclip.processing.pmc.journal import count_articles
from biomedclip.processing.pmc.staging import Staging
from biomedclip.processing.pmc15m import load_pmc15m


ROOT = Path(__file__).resolve().parents[3]
ONE_SPLIT = {"split_fractions": (1, 0, 0)}


def finished_articles(output: Path) -> int:
    found = Staging.find(output)
    return count_articles(found[0].journals) if found else 0


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def start(mirror: Path, output: Path, **options) -> subprocess.Popen:
    """Start a build in its own process group. It is slowed down, so that it can be killed in the middle."""
    code = (
        f"import sys, time; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
        "from pathlib import Path\n"
        "from helpers.mirror_writer import build_set\n"
        "from biomedclip.processing.pmc import plan, shards, steps\n"
        "def slow(owner, name, seconds):\n"
        "    method = getattr(owner, name)\n"
        "    setattr(owner, name, lambda *a, **k: (time.sleep(seconds), method(*a, **k))[1])\n"
        "slow(steps.PairFigures, 'process', 0.01)\n"
        "slow(plan, '_shard_edges', 0.1)\n"
        "slow(shards, 'read_record', 0.002)\n"
        "if __name__ == '__main__':\n"
        f"    build_set({str(mirror)!r}, Path({str(output)!r}), **{ ({'tasks': 4} | options)!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ, start_new_session=True)


@pytest.fixture
def large_mirror(mirror, tmp_path):
    """A mirror of 60 articles, which are also built undisturbed."""
    mirror.plain_articles(60)
    build_set(mirror.root, tmp_path / "undisturbed")
    return mirror


@pytest.mark.slow
def test_a_build_killed_at_ten_random_moments_gives_the_same_files(large_mirror, tmp_path):
    output = tmp_path / "out"
    moments = random.Random(0)
    kills, finished = 0, 0
    while kills < 10:
        process = start(large_mirror.root, output)
        wait_for((output / ".build" / "options.json").exists)
        try:
            process.wait(moments.uniform(0.0, 0.45))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            assert not (output / "data").exists(), "nothing looks finished"
            assert finished_articles(output) >= finished, "finished articles stay finished"
            finished = finished_articles(output)
        else:  # it finished before ten kills, so start again
            assert process.returncode == 0 and dataset_files(output) == dataset_files(tmp_path / "undisturbed")
            shutil.rmtree(output)
            finished = 0
    assert start(large_mirror.root, output).wait(120) == 0
    assert dataset_files(output) == dataset_files(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.2, 0.5, 1.5])
def test_workers_end_after_their_parent_was_killed_and_do_no_harm(large_mirror, tmp_path, wait):
    output = tmp_path / "out"
    first = start(large_mirror.root, output, workers=2)
    wait_for((output / ".build" / "options.json").exists)
    time.sleep(wait)
    os.kill(first.pid, signal.SIGKILL)  # not its workers
    first.wait()
    assert start(large_mirror.root, output, workers=2).wait(120) == 0
    assert dataset_files(output) == dataset_files(tmp_path / "undisturbed")
    assert not processes_of(first.pid)


def processes_of(group: int) -> list[str]:
    alive = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(" ".join(process.cmdline()))
    return alive


@pytest.mark.slow
def test_workers_of_a_killed_build_do_not_write_into_another_build(large_mirror, tmp_path):
    for number in range(5):
        media = {"g.png": png_bytes(number)}
        large_mirror.article(number, figures=figure_xml("F1", "Closed.", "g"), media=media, license_code="TDM")
    build_set(large_mirror.root, tmp_path / "commercial", license="commercial")
    first = start(large_mirror.root, tmp_path / "out", workers=2, license="all")
    wait_for(lambda: finished_articles(tmp_path / "out") >= 5)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    report = build_set(large_mirror.root, tmp_path / "out", license="commercial", overwrite=True, workers=2)
    assert set(report["licenses"]) == {"CC BY"}
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "commercial")


@pytest.mark.slow
def test_a_second_build_in_the_same_folder_is_refused(large_mirror, tmp_path):
    first = start(large_mirror.root, tmp_path / "out")
    wait_for(lambda: finished_articles(tmp_path / "out") >= 3)
    with pytest.raises(OSError, match="another build is running"):
        build_set(large_mirror.root, tmp_path / "out")
    assert first.wait(120) == 0


@pytest.mark.slow
def test_a_killed_worker_is_replaced(large_mirror, tmp_path):
    process = start(large_mirror.root, tmp_path / "out", workers=2)
    wait_for(lambda: finished_articles(tmp_path / "out") >= 10 or process.poll() is not None)
    children = psutil.Process(process.pid).children()
    (server,) = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    server.children()[0].kill()
    assert process.wait(120) == 0
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "undisturbed")


def test_finished_articles_are_not_read_again(mirror, tmp_path, watch):
    mirror.plain_articles(20)
    names = watch(steps.PairFigures, lambda article: interrupt() if len(names) == 14 else None)
    with pytest.raises(KeyboardInterrupt):
        build_set(mirror.root, tmp_path / "out", tasks=2)
    build_set(mirror.root, tmp_path / "out", tasks=5)  # the number of tasks does not change
    assert sorted(names[:13] + names[14:]) == [f"PMC{1000 + number}.1" for number in range(20)]


def test_an_interrupted_build_is_not_continued_with_other_options(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "make_plan", interrupt)
        build_set(mirror.root, tmp_path / "out")
    with pytest.raises(ValueError, match="license 'noncommercial', not 'all'.*`overwrite=True`"):
        build_set(mirror.root, tmp_path / "out", license="all")
    assert build_set(mirror.root, tmp_path / "out", license="all", overwrite=True)["license_choice"] == "all"


class Killed(BaseException):
    """Raised in place of a kill."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Let the process die at one of the calls that change the disk. No later call changes it either."""
    calls = 0

    def mortal(call):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return call(*arguments, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        yield


@pytest.fixture(scope="module", params=["first", "overwriting", "updating"])
def complete(request, tmp_path_factory) -> tuple[Path, Path, dict, dict]:
    """A build that was killed before its result was moved, its source and options, and the expected files."""
    change = {"first": {}, "overwriting": {"overwrite": True}, "updating": {"update": True}}[request.param]
    options = ONE_SPLIT | change
    root = tmp_path_factory.mktemp("complete")
    mirror, output = MirrorWriter(root / "mirror"), root / "out"
    mirror.plain_articles(4)
    if change:
        build_set(mirror.root, output, **ONE_SPLIT)
        mirror.plain_articles(4, first=2000)
    finish_move = Staging.finish_move

    def die(self):
        if self._complete.exists():
            raise Killed
        return finish_move(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Staging, "finish_move", die)
        build_set(mirror.root, output, **options)
    for path in output.glob(".build/*/logs"):
        shutil.rmtree(path)  # each of its many files would be a step
    shutil.copytree(output, root / "undisturbed")
    build_set(mirror.root, root / "undisturbed", **options)
    return output, mirror.root, options, dataset_files(root / "undisturbed")


def test_a_build_killed_at_any_step_after_its_last_shard_is_finished_by_the_same_command(complete, tmp_path):
    output, source, options, undisturbed = complete
    step = 0
    while True:
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(output, copy)
        try:
            with killed_at(step):
                build_set(source, copy, **options)
            break
        except Killed:
            assert_readers_see_a_complete_dataset_or_an_instruction(copy)
            if not list(copy.glob(".*")):
                break  # everything was done before the process ended
            report = build_set(source, copy, **options)
            assert dataset_files(copy) == undisturbed and not list(copy.glob(".*"))
            assert report["pairs"] == json.loads((copy / "report.json").read_text())["pairs"]
        step += 1
    assert dataset_files(copy) == undisturbed
    assert step > 10


def assert_readers_see_a_complete_dataset_or_an_instruction(output: Path) -> None:
    reports = [*output.glob("report.json"), *output.glob(".build*/*/re*/report.json")]
    try:
        pairs = len(list(load_pmc15m(output, "train", columns=["pair_id"])))
    except FileNotFoundError as error:
        assert "the same command" in str(error)
    else:
        assert pairs in {json.loads(path.read_text())["pairs"] for path in reports}


@pytest.mark.parametrize("also", ["update", "publish"])
def test_an_update_or_a_push_after_such_a_kill_finds_the_complete_dataset(complete, tmp_path, also):
    output, source, options, undisturbed = complete
    published = []
    command = {"update": {"update": True}, "publish": {"publish": lambda *what: published.append(what)}}[also]
    for step in range(8):
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(output, copy)
        with pytest.raises(Killed), killed_at(step):
            build_set(source, copy, **options)
        report = build_set(source, copy, **ONE_SPLIT | command)
        assert report["pairs"] == sum(split["pairs"] for split in report["splits"].values())
        assert dataset_files(copy) == undisturbed
    assert [folder.name for _, folder in published] == ([f"copy-{n}" for n in range(8)] if also == "publish" else [])


def test_a_dataset_is_kept_if_a_killed_build_had_other_options(complete, tmp_path):
    output, source, options, _ = complete
    shutil.copytree(output, tmp_path / "copy")
    with pytest.raises(Killed), killed_at(5):
        build_set(source, tmp_path / "copy", **options)
    with pytest.raises(FileExistsError, match="`update=True`"):
        build_set(source, tmp_path / "copy", **ONE_SPLIT, seed=3)


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_an_interrupted_move_is_continued(mirror, tmp_path, monkeypatch, moved):
    mirror.plain_articles(4)
    build_set(mirror.root, tmp_path / "undisturbed")
    replace, calls = os.replace, []

    def interrupted(source, target):
        if Path(target).parent == tmp_path / "out":
            calls.append(target)
            if len(calls) > moved:
                raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        build_set(mirror.root, tmp_path / "out")
    build_set(mirror.root, tmp_path / "out")
    assert dataset_files(tmp_path / "out") == dataset_files(tmp_path / "undisturbed")
    assert not (tmp_path / "out" / ".build").exists()


def test_shards_are_not_written_again_after_a_failure_of_the_last_stage(mirror, tmp_path):
    mirror.plain_articles(10)

    def fail(report, folder):
        raise OSError("no card")

    with pytest.raises(OSError, match="no card"):
        build_set(mirror.root, tmp_path / "out", finish=fail)
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(".build/*/result/data/*")}
    build_set(mirror.root, tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/data").iterdir()} == shards

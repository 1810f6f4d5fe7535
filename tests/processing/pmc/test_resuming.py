"""A build that was killed goes on where it was, and ends with the same bytes as one that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from helpers.mirror_writer import MirrorWriter, build_set, figure_xml, png_bytes

from biomedclip.processing.pmc import build, steps
from biomedclip.processing.pmc.journal import count_articles
from biomedclip.processing.pmc.staging import Staging
from biomedclip.processing.pmc15m import load_pmc15m


ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".jsonl")
    }


def journals_in(output: Path) -> Path:
    """Where the build that is under way keeps what it has finished."""
    found = Staging.find(output)
    return found[0].journals if found else output


def start(mirror: Path, output: Path, *, workers: int = 1, tasks: int = 4, **options) -> subprocess.Popen:
    """A build in a process group of its own, slowed down so that there is a middle to be killed in."""
    code = (
        f"import sys, time; sys.path[:0] = [{str(TESTS)!r}]\n"
        "from mirror_writer import build_set\n"
        "from biomedclip.processing.pmc import plan, shards, steps\n"
        "def slow(owner, name, seconds):\n"
        "    method = getattr(owner, name)\n"
        "    setattr(owner, name, lambda *a, **k: (time.sleep(seconds), method(*a, **k))[1])\n"
        "slow(steps.PairFigures, 'process', 0.01)\n"
        "slow(plan, '_places', 0.02)\n"
        "slow(shards._PairReader, 'read', 0.002)\n"
        "if __name__ == '__main__':\n"
        f"    output = __import__('pathlib').Path({str(output)!r})\n"
        f"    build_set({str(mirror)!r}, output, tasks={tasks}, workers={workers}, **{options!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_at_ten_random_moments_a_build_ends_with_the_same_bytes(mirror, tmp_path):
    mirror.plain_articles(60)
    build_set(mirror.root, tmp_path / "undisturbed")
    output = tmp_path / "out"
    moments = random.Random(0)
    kills, done = 0, [0]
    while kills < 10:
        process = start(mirror.root, output)
        while process.poll() is None and not (output / ".build" / "options.json").exists():
            time.sleep(0.01)
        try:
            process.wait(moments.uniform(0.0, 0.45))
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
            assert not (output / "data").exists(), "nothing looks finished"
            done.append(count_articles(journals_in(output)))
            assert done[-1] >= done[-2], "what was finished stays finished"
            continue
        # Ready before the ten kills were through: once more from nothing.
        assert process.returncode == 0 and files(output) == files(tmp_path / "undisturbed")
        for path in output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        done = [0]
    process = start(mirror.root, output)
    assert process.wait(120) == 0
    assert files(output) == files(tmp_path / "undisturbed")


@pytest.mark.parametrize("wait", [0.2, 0.5, 1.5])
def test_workers_that_outlive_their_killed_parent_do_no_harm(mirror, tmp_path, wait):
    mirror.plain_articles(60)
    build_set(mirror.root, tmp_path / "undisturbed")
    first = start(mirror.root, tmp_path / "out", workers=2)
    while not (tmp_path / "out" / ".build" / "options.json").exists():
        time.sleep(0.01)
    time.sleep(wait)
    os.kill(first.pid, signal.SIGKILL)  # alone: its workers go on for a moment
    first.wait()
    second = start(mirror.root, tmp_path / "out", workers=2)
    assert second.wait(120) == 0
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert not processes_of(first.pid), "they end soon after their parent"


def processes_of(group: int) -> list[str]:
    """Processes of a group that are still alive."""
    alive = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(" ".join(process.cmdline()))
    return alive


def test_workers_of_a_killed_build_do_not_write_into_another_build(mirror, tmp_path):
    mirror.plain_articles(60)
    for number in range(5):
        media = {"g.png": png_bytes(number)}
        mirror.article(number, figures=figure_xml("F1", "Closed.", "g"), media=media, license_code="TDM")
    build_set(mirror.root, tmp_path / "undisturbed", license="commercial")
    first = start(mirror.root, tmp_path / "out", workers=2, license="all")
    while count_articles(journals_in(tmp_path / "out")) < 5:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    report = build_set(mirror.root, tmp_path / "out", license="commercial", overwrite=True, workers=2)
    assert set(report["licenses"]) == {"CC BY"}
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_two_builds_at_once_in_one_folder_are_refused(mirror, tmp_path):
    mirror.plain_articles(60)
    first = start(mirror.root, tmp_path / "out")
    while not journals_in(tmp_path / "out").exists() or count_articles(journals_in(tmp_path / "out")) < 3:
        time.sleep(0.01)
    with pytest.raises(OSError, match="another build is at work"):
        build_set(mirror.root, tmp_path / "out")
    assert first.wait(120) == 0


def test_a_worker_that_was_killed_is_noticed_and_replaced(mirror, tmp_path):
    mirror.plain_articles(60)
    build_set(mirror.root, tmp_path / "undisturbed")
    process = start(mirror.root, tmp_path / "out", workers=2)
    while count_articles(journals_in(tmp_path / "out")) < 10:
        time.sleep(0.01)
        assert process.poll() is None
    children = psutil.Process(process.pid).children()
    (server,) = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    server.children()[0].kill()
    assert process.wait(120) == 0
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_no_finished_article_is_read_again(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(20)
    process, names, power_cuts = steps.PairFigures.process, [], [None]

    def interrupted(self, article):
        if len(names) == 13 and power_cuts:
            power_cuts.pop()
            raise KeyboardInterrupt
        names.append(article.name)
        return process(self, article)

    monkeypatch.setattr(steps.PairFigures, "process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_set(mirror.root, tmp_path / "out", tasks=2)
    build_set(mirror.root, tmp_path / "out", tasks=5)  # the tasks stay those that were begun
    assert sorted(names) == sorted(f"PMC{1000 + number}.1" for number in range(20))


def test_other_options_than_those_of_the_interrupted_build_are_refused(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(4)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "make_plan", interrupted)
        build_set(mirror.root, tmp_path / "out")
    with pytest.raises(ValueError, match="license 'noncommercial', not 'all'.*--overwrite"):
        build_set(mirror.root, tmp_path / "out", license="all")
    assert build_set(mirror.root, tmp_path / "out", license="all", overwrite=True)["license_choice"] == "all"


class Killed(BaseException):
    """The end of a process: no call that changes the disk works any more."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """The process dies at one of the calls that change the disk."""
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
    """A build that was killed before it took its place, its source, its options, and the files that it should leave."""
    change = {"first": {}, "overwriting": {"overwrite": True}, "updating": {"update": True}}[request.param]
    options = {"split_fractions": (1, 0, 0)} | change
    root = tmp_path_factory.mktemp("complete")
    mirror, output = MirrorWriter(root / "mirror"), root / "out"
    mirror.plain_articles(4)
    if change:
        build_set(mirror.root, output, split_fractions=(1, 0, 0))
        mirror.plain_articles(4, first=2000)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        finish_move = Staging.finish_move

        def die(self):
            if self._complete.exists():
                raise Killed
            return finish_move(self)

        patch.setattr(Staging, "finish_move", die)
        build_set(mirror.root, output, **options)
    for path in output.glob(".build/*/logs"):
        shutil.rmtree(path)  # many files, each of which would be a step
    shutil.copytree(output, root / "undisturbed")
    build_set(mirror.root, root / "undisturbed", **options)
    return output, mirror.root, options, files(root / "undisturbed")


def test_a_build_that_was_killed_at_any_step_behind_its_last_shard_is_finished_by_the_same_command(complete, tmp_path):
    output, source, options, undisturbed = complete
    steps = 0
    while True:
        copy = tmp_path / f"copy-{steps}"
        shutil.copytree(output, copy)
        try:
            with killed_at(steps):
                build_set(source, copy, **options)
        except Killed:
            assert_readers_see_a_whole_set_or_are_told_what_to_do(copy)
            if not hidden_in(copy):
                break  # all was done before the process ended
            report = build_set(source, copy, **options)
            assert files(copy) == undisturbed
            assert not hidden_in(copy)
            assert report["pairs"] == json.loads((copy / "report.json").read_text())["pairs"]
        else:
            assert files(copy) == undisturbed
            break
        steps += 1
    assert steps > 10


def hidden_in(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def assert_readers_see_a_whole_set_or_are_told_what_to_do(output: Path) -> None:
    reports = [*output.glob("report.json"), *output.glob(".build*/*/re*/report.json")]
    try:
        pairs = len(list(load_pmc15m(output, "train", columns=["pair_id"])))
    except FileNotFoundError as error:
        assert "the same command" in str(error)
    else:
        assert pairs in {json.loads(path.read_text())["pairs"] for path in reports}


@pytest.mark.parametrize("also", ["update", "publish"])
def test_an_update_and_a_push_after_such_a_kill_find_the_complete_dataset(complete, tmp_path, also):
    output, source, options, undisturbed = complete
    published = []
    command = {"update": {"update": True}, "publish": {"publish": lambda *what: published.append(what)}}[also]
    for step in range(8):
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(output, copy)
        with pytest.raises(Killed), killed_at(step):
            build_set(source, copy, **options)
        report = build_set(source, copy, **{"split_fractions": (1, 0, 0)} | command)
        assert report["pairs"] == sum(split["pairs"] for split in report["splits"].values())
        assert files(copy) == undisturbed
    assert [folder.name for _, folder in published] == ([f"copy-{n}" for n in range(8)] if also == "publish" else [])


def test_an_existing_dataset_is_kept_if_the_options_differ(complete, tmp_path):
    output, source, options, _ = complete
    shutil.copytree(output, tmp_path / "copy")
    with pytest.raises(Killed), killed_at(5):
        build_set(source, tmp_path / "copy", **options)
    with pytest.raises(FileExistsError, match="--update"):
        build_set(source, tmp_path / "copy", split_fractions=(1, 0, 0), seed=3)


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_build_that_was_killed_while_it_took_its_place_is_finished_by_the_next_call(
    mirror, tmp_path, monkeypatch, moved
):
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
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert not (tmp_path / "out" / ".build").exists()


def test_a_failure_behind_the_last_shard_costs_no_shard(mirror, tmp_path):
    mirror.plain_articles(10)

    def fail(report, folder):
        raise OSError("the printer is on fire")

    with pytest.raises(OSError, match="printer"):
        build_set(mirror.root, tmp_path / "out", finish=fail)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(".build/*/result/data/*")}
    build_set(mirror.root, tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/data").iterdir()} == {
        path.name: time_ for path, time_ in shards.items()
    }

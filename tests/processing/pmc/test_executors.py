"""Builds on this machine, on Ray and on Slurm give the same files. Failed tasks are retried."""

import errno
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.mirror_writer import MirrorWriter, build_set, dataset_files

from biomedclip.processing.integrity import DamagedFile
from biomedclip.processing.pmc import executors, steps
from biomedclip.processing.pmc.bucket import CredentialsRefused, SourceUnavailable
from biomedclip.processing.pmc.journal import TaskJournal


ROOT = Path(__file__).resolve().parents[3]
ARTICLES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A mirror of 40 articles."""
    root = tmp_path_factory.mktemp("source") / "mirror"
    MirrorWriter(root).plain_articles(ARTICLES)
    return root


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> dict[str, bytes]:
    """The files that one task on this machine builds from it."""
    output = tmp_path_factory.mktemp("undisturbed")
    build_set(source, output, tasks=1)
    return dataset_files(output)


@pytest.mark.parametrize(
    ("tasks", "workers"),
    [(16, 1), pytest.param(16, 2, marks=pytest.mark.slow), pytest.param(40, 2, marks=pytest.mark.slow)],
)
def test_the_files_do_not_depend_on_tasks_and_workers(source, tmp_path, undisturbed, tasks, workers):
    build_set(source, tmp_path / "out", tasks=tasks, workers=workers)
    assert dataset_files(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_ray_gives_the_same_files(source, tmp_path, undisturbed):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    # datatrove first logs to this folder. Here another user seems to have created it.
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "ray_logs").touch()
    # A separate process, so that Ray's workers do not import the tests.
    code = (
        "from biomedclip.processing.pmc.build import build_dataset\n"
        "from biomedclip.processing.pmc.executors import Engine\n"
        "from biomedclip.processing.pmc.options import BuildOptions\n"
        "engine = Engine(executor='ray', workers=2, tasks=3, memory_gb=1)\n"
        f"build_dataset(BuildOptions({str(source)!r}), {str(tmp_path / 'out')!r}, engine=engine)\n"
        "import ray\n"
        "assert ray.is_initialized()\n"
    )
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=900)
    assert dataset_files(tmp_path / "out") == undisturbed


SLURM = {"executor": "slurm", "workers": 3, "tasks": 5, "slurm_partition": "cpu", "slurm_time": "02:00:00"}


@pytest.mark.slow
def test_slurm_gives_the_same_files_with_four_dependent_jobs(source, tmp_path, undisturbed, slurm):
    output = tmp_path / "a folder of the user's"
    assert build_set(source, output, memory_gb=4, slurm_args="account=lab, comment=two words", **SLURM) is None
    assert dataset_files(output) == undisturbed, "\n".join(path.read_text() for path in slurm.glob("*.out"))
    scripts = [(slurm / f"job-{number}.sh").read_text() for number in range(1, 5)]
    names = [re.search(r"--job-name=(\S+)", script)[1] for script in scripts]
    assert names == [f"biomedclip-{stage}" for stage in ("articles", "plan", "shards", "finish")]
    assert "#SBATCH --array=0-4%3" in scripts[0] and "#SBATCH --array=0-0\n" in scripts[1]
    for script in scripts:
        for line in ("--partition=cpu", "--time=02:00:00", "--account=lab", "--comment='two words'", "--requeue"):
            assert f"#SBATCH {line}\n" in script
        assert f" {shlex.quote(sys.executable)} -P -m datatrove" in script
    memory = [re.search(r"--mem-per-cpu=(\d+)G", script)[1] for script in scripts]
    assert memory == ["4", "8", "4", "4"], "the plan holds all pairs in memory"
    arguments = [(slurm / f"job-{number}.args").read_text().split("\n")[1:] for number in range(1, 5)]
    assert arguments == [[], *([f"--dependency=afterok:{number}"] for number in range(1, 4))]
    assert not list(slurm.glob("job-5*"))


@pytest.mark.slow
def test_on_slurm_the_same_command_continues_after_a_failed_job(source, tmp_path, undisturbed, slurm):
    srun = (slurm / "srun").read_text()
    (slurm / "srun").write_text(srun.replace("exec", "[[ $SLURM_ARRAY_TASK_ID == 2 ]] && exit 1\nexec"))
    with pytest.raises(Exception, match="sbatch"):
        build_set(source, tmp_path / "out", **SLURM)
    assert not (tmp_path / "out" / "data").exists()
    (slurm / "srun").write_text(srun)
    assert build_set(source, tmp_path / "out", **SLURM) is None
    assert dataset_files(tmp_path / "out") == undisturbed


def test_a_temporary_folder_with_a_path_too_long_for_sockets_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", f"/{'long/' * 20}")
    with pytest.raises(ValueError, match="/long/.* is too long for sockets. Set TMPDIR to"):
        build_set(source, tmp_path / "out", tasks=2, workers=2)


@pytest.mark.slow
def test_a_temporary_folder_with_a_path_too_long_for_ray_is_refused(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

    def too_long(**options):
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long/ray/...")

    monkeypatch.setattr(ray, "init", too_long)
    with pytest.raises(ValueError, match="Ray cannot be started: .*AF_UNIX.*Set RAY_TMPDIR to"):
        executors._ray_executor([], 2, 1, Path("logs"), 1)


@pytest.fixture
def fail_at(watch) -> Callable[[str, list[Exception]], list[str]]:
    """Return a function that lets the parsing of an article fail, and returns the names of all parsed articles."""

    def install(name: str, errors: list[Exception]) -> list[str]:
        def fail(article):
            if article.name == name and errors:
                raise errors.pop()

        return watch(steps.ParseFigures, fail)

    return install


def test_a_failed_task_is_retried_and_continues_with_the_same_article(source, tmp_path, undisturbed, fail_at):
    names = fail_at("PMC1015.1", [SourceUnavailable("no response"), SourceUnavailable("no response")])
    build_set(source, tmp_path / "out", tasks=3, retries=2)
    assert dataset_files(tmp_path / "out") == undisturbed
    assert len(names) == ARTICLES + 2 and len(set(names)) == ARTICLES


def test_after_the_last_retry_the_error_is_raised_and_no_article_is_dropped(source, tmp_path, undisturbed, fail_at):
    errors = [SourceUnavailable("no response")] * 9
    names = fail_at("PMC1000.1", errors)
    with pytest.raises(SourceUnavailable, match="no response"):
        build_set(source, tmp_path / "out", tasks=3, retries=2)
    assert names == ["PMC1000.1"] * 3 and not (tmp_path / "out" / "data").exists()
    errors.clear()
    build_set(source, tmp_path / "out")
    assert dataset_files(tmp_path / "out") == undisturbed


def test_an_error_of_the_program_is_not_retried(source, tmp_path, monkeypatch):
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        raise TypeError("a bug")

    monkeypatch.setattr("biomedclip.processing.pmc.stages.make_plan", broken)
    with pytest.raises(TypeError, match="a bug"):
        build_set(source, tmp_path / "out", retries=2)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EMFILE", "ENFILE"])
def test_an_error_of_this_machine_stops_the_build_at_once(source, tmp_path, fail_at, name):
    number = getattr(errno, name)
    names = fail_at("PMC1000.1", [OSError(number, os.strerror(number))])
    with pytest.raises(OSError, match=f"{os.strerror(number)}. .*out") as raised:
        build_set(source, tmp_path / "out", retries=5)
    assert len(names) == 1 and raised.value.errno == number


@pytest.mark.parametrize("error", [CredentialsRefused("refused"), DamagedFile("damaged")], ids=str)
def test_an_error_that_the_user_must_fix_stops_the_build_at_once(source, tmp_path, monkeypatch, fail_at, error):
    monkeypatch.setattr(steps.ArticleStep, "_process_or_drop", lambda self, article: self.process(article))
    names = fail_at("PMC1000.1", [error])
    with pytest.raises(type(error)):
        build_set(source, tmp_path / "out", retries=5)
    assert len(names) == 1


def test_a_build_continues_after_the_limit_on_file_sizes_is_raised(source, tmp_path, undisturbed, impatient):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large. .*ulimit -f"):
            build_set(source, tmp_path / "out", tasks=1, retries=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    build_set(source, tmp_path / "out", tasks=1)
    assert dataset_files(tmp_path / "out") == undisturbed


def test_a_task_continues_in_the_same_process_after_a_disk_error(source, tmp_path, undisturbed, monkeypatch, impatient):
    flush, failures = TaskJournal.flush_to_disk, [OSError(errno.EIO, "Input/output error")]

    def fail(self):
        if failures:
            raise failures.pop()
        flush(self)

    monkeypatch.setattr(TaskJournal, "flush_to_disk", fail)
    build_set(source, tmp_path / "out", tasks=3, retries=2)
    assert dataset_files(tmp_path / "out") == undisturbed

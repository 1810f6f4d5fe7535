"""The same shards from this machine, from Ray and from Slurm, and what becomes of tasks that fail."""

import errno
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fake_slurm import install_fake_slurm
from helpers.mirror_writer import build_set

from biomedclip.processing.integrity import DamagedFile
from biomedclip.processing.pmc import executors, steps
from biomedclip.processing.pmc.bucket import CredentialsRefused, SourceUnavailable
from biomedclip.processing.pmc.executors import Engine
from biomedclip.processing.pmc.journal import TaskJournal


ROOT = Path(__file__).resolve().parents[3]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".jsonl")
    }


@pytest.fixture
def undisturbed(mirror, tmp_path) -> dict[str, bytes]:
    """Files of a build of 40 articles by one task on this machine."""
    mirror.plain_articles(40)
    build_set(mirror.root, tmp_path / "undisturbed", tasks=1)
    return files(tmp_path / "undisturbed")


@pytest.mark.parametrize(("tasks", "workers"), [(16, 1), (16, 2), (40, 2)])
def test_the_number_of_tasks_and_workers_changes_no_byte(mirror, tmp_path, undisturbed, tasks, workers):
    build_set(mirror.root, tmp_path / "out", tasks=tasks, workers=workers)
    assert files(tmp_path / "out") == undisturbed


def test_ray_gives_the_same_bytes(mirror, tmp_path, undisturbed):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    # The folder that datatrove logs to first: its place is taken, as by another user.
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "ray_logs").touch()
    # In a process of its own: Ray's workers should not inherit what tests have imported.
    code = (
        "from pathlib import Path\n"
        "from biomedclip.processing.pmc.build import BuildOptions, build_dataset\n"
        "from biomedclip.processing.pmc.executors import Engine\n"
        f"build_dataset(BuildOptions({str(mirror.root)!r}), {str(tmp_path / 'out')!r}, tasks=3,\n"
        "    engine=Engine(executor='ray', workers=2, memory_gb=1))\n"
        "import ray\n"
        "assert ray.is_initialized()\n"
    )
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=900)
    assert files(tmp_path / "out") == undisturbed


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Folder of a Slurm that runs what is submitted at once."""
    for name, value in install_fake_slurm(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm"


SLURM = {"partition": "cpu", "time": "02:00:00", "qos": None, "sbatch_args": {"account": "lab", "comment": "two words"}}


def test_slurm_gives_the_same_bytes_out_of_four_jobs_that_wait_for_each_other(mirror, tmp_path, undisturbed, slurm):
    engine = Engine(executor="slurm", workers=3, memory_gb=4, slurm=SLURM)
    output = tmp_path / "a folder of the user's"
    assert build_set(mirror.root, output, tasks=5, engine=engine) is None
    assert files(output) == undisturbed, "\n".join(path.read_text() for path in slurm.glob("*.out"))
    scripts = [(slurm / f"job-{number}.sh").read_text() for number in range(1, 5)]
    names = [re.search(r"--job-name=(\S+)", script)[1] for script in scripts]
    assert names == [f"biomedclip-{stage}" for stage in ("articles", "plan", "shards", "finish")]
    assert "#SBATCH --array=0-4%3" in scripts[0] and "#SBATCH --array=0-0\n" in scripts[1]
    for script in scripts:
        for line in ("--partition=cpu", "--time=02:00:00", "--account=lab", "--comment='two words'", "--requeue"):
            assert f"#SBATCH {line}\n" in script
        assert f" {shlex.quote(sys.executable)} -P -m datatrove" in script
    memory = [re.search(r"--mem-per-cpu=(\d+)G", script)[1] for script in scripts]
    assert memory == ["4", "8", "4", "4"], "the plan has all pairs in memory"
    assert [(slurm / f"job-{number}.args").read_text().split("\n")[1:] for number in range(1, 5)] == [
        [],
        ["--dependency=afterok:1"],
        ["--dependency=afterok:2"],
        ["--dependency=afterok:3"],
    ]
    assert not list(slurm.glob("job-5*"))


def test_under_slurm_the_same_command_goes_on_behind_a_job_that_failed(mirror, tmp_path, undisturbed, slurm):
    engine = Engine(executor="slurm", workers=3, retries=0, slurm=SLURM)
    srun = (slurm / "srun").read_text()
    (slurm / "srun").write_text(srun.replace("exec", "[[ $SLURM_ARRAY_TASK_ID == 2 ]] && exit 1\nexec"))
    with pytest.raises(Exception, match="sbatch"):
        build_set(mirror.root, tmp_path / "out", tasks=5, engine=engine)
    assert not (tmp_path / "out" / "data").exists()
    (slurm / "srun").write_text(srun)
    assert build_set(mirror.root, tmp_path / "out", tasks=5, engine=engine) is None
    assert files(tmp_path / "out") == undisturbed
    last = max(slurm.glob("job-*.sh"), key=lambda path: path.stat().st_mtime_ns)
    assert "biomedclip-finish" in last.read_text()


def test_a_temporary_folder_too_long_for_sockets_is_told_before_a_worker_starts(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(3)
    monkeypatch.setattr("tempfile.tempdir", f"/{'long/' * 20}")
    with pytest.raises(ValueError, match="/long/.* is too long for sockets. Set TMPDIR to"):
        build_set(mirror.root, tmp_path / "out", tasks=2, workers=2)


def test_a_temporary_folder_too_long_for_the_sockets_of_ray_is_told(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

    def too_long(**options):
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long/ray/...")

    monkeypatch.setattr(ray, "init", too_long)
    with pytest.raises(ValueError, match="--executor ray: .*AF_UNIX.*Set RAY_TMPDIR to"):
        executors._ray_executor([], 2, 1, Path("logs"), 1)


def test_a_task_that_failed_is_run_again_and_goes_on_where_it_was(mirror, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(executors, "PAUSE", 0.01)
    parse, names, outages = steps.ParseFigures.process, [], [1, 2]

    def outage(self, article):
        if article.name == "PMC1015.1" and outages:
            outages.pop()
            raise SourceUnavailable("the source does not answer")
        names.append(article.name)
        return parse(self, article)

    monkeypatch.setattr(steps.ParseFigures, "process", outage)
    build_set(mirror.root, tmp_path / "out", tasks=3, engine=Engine(retries=2))
    assert files(tmp_path / "out") == undisturbed
    assert len(names) == len(set(names)) == 40


def test_when_retries_are_used_up_the_cause_is_told_and_other_tasks_have_finished(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "PAUSE", 0.01)
    mirror.plain_articles(9)
    parse, attempts = steps.ParseFigures.process, []

    def outage(self, article):
        if article.name == "PMC1000.1":
            attempts.append(article.name)
            raise SourceUnavailable("the source does not answer")
        return parse(self, article)

    monkeypatch.setattr(steps.ParseFigures, "process", outage)
    with pytest.raises(SourceUnavailable, match="does not answer"):
        build_set(mirror.root, tmp_path / "out", tasks=3, engine=Engine(retries=2))
    assert len(attempts) == 3


def test_a_fault_of_the_program_is_not_tried_again(mirror, tmp_path, monkeypatch):
    mirror.plain_articles(3)
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        raise TypeError("a slip")

    monkeypatch.setattr("biomedclip.processing.pmc.build.make_plan", broken)
    with pytest.raises(TypeError, match="a slip"):
        build_set(mirror.root, tmp_path / "out", engine=Engine(retries=2))
    assert len(calls) == 1


def count_attempts(monkeypatch, error: Exception) -> list[str]:
    """Names of articles that were parsed, each of which fails with an error."""
    attempts: list[str] = []

    def fail(self, article):
        attempts.append(article.name)
        raise error

    monkeypatch.setattr(steps.ParseFigures, "process", fail)
    return attempts


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EMFILE", "ENFILE"])
def test_an_error_of_this_machine_stops_the_build_at_once_and_says_what_to_do(mirror, tmp_path, monkeypatch, name):
    mirror.plain_articles(4)
    number = getattr(errno, name)
    attempts = count_attempts(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(OSError, match=f"{os.strerror(number)}. .*out") as raised:
        build_set(mirror.root, tmp_path / "out", engine=Engine(retries=5))
    assert len(attempts) == 1 and raised.value.errno == number


@pytest.mark.parametrize("error", [CredentialsRefused("refused"), DamagedFile("damaged")], ids=str)
def test_an_error_that_the_user_must_fix_stops_the_build_at_once(mirror, tmp_path, monkeypatch, error):
    mirror.plain_articles(4)
    monkeypatch.setattr(steps.ArticleStep, "_process_or_drop", lambda self, article: self.process(article))
    attempts = count_attempts(monkeypatch, error)
    with pytest.raises(type(error)):
        build_set(mirror.root, tmp_path / "out", engine=Engine(retries=5))
    assert len(attempts) == 1


def test_files_beyond_the_limit_on_their_size_stop_the_build_and_a_higher_limit_finishes_it(
    mirror, tmp_path, undisturbed, impatient
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large. .*ulimit -f"):
            build_set(mirror.root, tmp_path / "out", tasks=1, engine=Engine(retries=5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    build_set(mirror.root, tmp_path / "out", tasks=1)
    assert files(tmp_path / "out") == undisturbed


def test_a_task_whose_disk_failed_for_a_moment_goes_on_in_the_same_process(
    mirror, tmp_path, undisturbed, monkeypatch, impatient
):
    monkeypatch.setattr(executors, "PAUSE", 0.01)
    flush, failures = TaskJournal.flush_to_disk, [1]

    def fail(self):
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error")
        flush(self)

    monkeypatch.setattr(TaskJournal, "flush_to_disk", fail)
    build_set(mirror.root, tmp_path / "out", tasks=3, engine=Engine(retries=2))
    assert files(tmp_path / "out") == undisturbed

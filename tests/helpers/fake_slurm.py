"""A fake Slurm for tests: `sbatch` runs the tasks of a job at once, one after the other."""

import os
import shlex
import stat
import sys
from pathlib import Path


_SBATCH = """import os, re, shlex, subprocess, sys
from pathlib import Path

folder = Path(__file__).parent
script = Path(sys.argv[-1]).read_text()
arguments = sys.argv[1:-1]
number = len(list(folder.glob("job-*.sh"))) + 1
path = folder / f"job-{number}.sh"
path.write_text(script)
(folder / f"job-{number}.args").write_text("\\n".join(arguments))
for argument in arguments:
    if argument.startswith("--dependency="):
        for job in re.findall(r"\\d+", argument):
            assert (folder / f"job-{job}.ok").exists(), f"job {job} has not succeeded"
# Slurm splits directives like a shell, and an option is one word.
directives = [shlex.split(line.removeprefix("#SBATCH ")) for line in script.splitlines() if line.startswith("#SBATCH ")]
assert all(len(words) == 1 for words in directives), f"an option of several words: {directives}"
options = dict(words[0].removeprefix("--").partition("=")[::2] for words in directives)
first, last = map(int, re.match(r"(\\d+)-(\\d+)", options["array"]).groups())
exports = dict(pair.split("=") for a in arguments if a.startswith("--export=ALL,") for pair in a[13:].split(","))
for task in range(first, last + 1):
    environment = os.environ | exports | {
        "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(number), "SLURM_NODELIST": "localhost"}
    result = subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True)
    (folder / f"job-{number}-{task}.out").write_text(result.stdout + result.stderr)
    Path(options["output"].replace("%A", str(number)).replace("%a", str(task))).write_text(result.stdout)
    if result.returncode:
        break
else:
    (folder / f"job-{number}.ok").touch()
print(f"Submitted batch job {number}")
"""
# The path of an interpreter may contain spaces or be too long for the first line of a script.
_START = '#!/bin/bash\nexec {python} {program} "$@"\n'
_SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'
_SCONTROL = "#!/bin/bash\necho localhost\n"


def install_fake_slurm(folder: Path) -> dict[str, str]:
    """Write `sbatch`, `srun` and `scontrol`, and return the environment variables to find them.

    The folder will also contain `job-N.sh` and `job-N-TASK.out` of each job.
    """
    folder.mkdir(parents=True)
    program = folder / "sbatch.py"
    program.write_text(_SBATCH)
    start = _START.format(python=shlex.quote(sys.executable), program=shlex.quote(str(program)))
    for name, content in (("sbatch", start), ("srun", _SRUN), ("scontrol", _SCONTROL)):
        path = folder / name
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

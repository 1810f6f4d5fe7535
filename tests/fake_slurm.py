"""A Slurm of one machine for tests: `sbatch` takes scripts and runs them at once, task by task, as a cluster would."""

import os
import stat
import sys
from pathlib import Path


_SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path

folder = Path({folder!r})
script = Path(sys.argv[-1]).read_text()
arguments = sys.argv[1:-1]
number = len(list(folder.glob("job-*.sh"))) + 1
path = folder / f"job-{{number}}.sh"
path.write_text(script)
(folder / f"job-{{number}}.args").write_text("\\n".join(arguments))
for argument in arguments:
    if argument.startswith("--dependency="):
        for job in re.findall(r"\\d+", argument):
            assert (folder / f"job-{{job}}.ok").exists(), f"job {{job}} has not succeeded"
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", script).groups())
exports = dict(pair.split("=") for a in arguments if a.startswith("--export=ALL,") for pair in a[13:].split(","))
for task in range(first, last + 1):
    environment = os.environ | exports | {{
        "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(number), "SLURM_NODELIST": "localhost"}}
    result = subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True)
    (folder / f"job-{{number}}-{{task}}.out").write_text(result.stdout + result.stderr)
    if result.returncode:
        break
else:
    (folder / f"job-{{number}}.ok").touch()
print(f"Submitted batch job {{number}}")
"""
_SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'
_SCONTROL = "#!/bin/bash\necho localhost\n"


def install_fake_slurm(folder: Path) -> dict[str, str]:
    """
    Writes `sbatch`, `srun` and `scontrol`.

    Args:
        folder: Where they go, with `job-N.sh` and `job-N-TASK.out` of each job.

    Returns:
        The environment in which they are found.
    """
    folder.mkdir(parents=True)
    for name, content in (
        ("sbatch", _SBATCH.format(python=sys.executable, folder=str(folder))),
        ("srun", _SRUN),
        ("scontrol", _SCONTROL),
    ):
        path = folder / name
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

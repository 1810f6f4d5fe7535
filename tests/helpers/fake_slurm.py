"""A fake Slurm for tests: `sbatch` runs the tasks of a job at once, one after the other."""

import json
import os
import shlex
import socket
import stat
import sys
import threading
from pathlib import Path

from helpers import forked_processes


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
_SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec {python} -IS {program} "$@"\n'
# A new interpreter would import libraries for several seconds, so the test's fork server runs the task.
_TASK = """import json, os, socket, sys

with socket.create_connection(("127.0.0.1", {port})) as connection, connection.makefile("rw") as stream:
    stream.write(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]) + "\\n")
    stream.flush()
    status, output, errors = json.loads(stream.readline())
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(status)
"""
_SCONTROL = "#!/bin/bash\necho localhost\n"


def install_fake_slurm(folder: Path) -> dict[str, str]:
    """Write `sbatch`, `srun` and `scontrol`, and return the environment variables to find them.

    The folder will also contain `job-N.sh` and `job-N-TASK.out` of each job.
    """
    folder.mkdir(parents=True)
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_run_tasks, args=(server,), daemon=True).start()
    (folder / "sbatch.py").write_text(_SBATCH)
    (folder / "task.py").write_text(_TASK.format(port=server.getsockname()[1]))
    python = shlex.quote(sys.executable)
    start = _START.format(python=python, program=shlex.quote(str(folder / "sbatch.py")))
    run = _SRUN.format(python=python, program=shlex.quote(str(folder / "task.py")))
    for name, content in (("sbatch", start), ("srun", run), ("scontrol", _SCONTROL)):
        path = folder / name
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def _run_tasks(server: socket.socket) -> None:
    while True:
        with server.accept()[0] as connection, connection.makefile("rw") as stream:
            (python, *words), environment, folder = json.loads(stream.readline())
            assert (python, words[0]) == (sys.executable, "-P"), "a folder of the user may hide a library"
            result = forked_processes.run(words[1:], forked_processes.ENVIRONMENT | environment, folder)
            stream.write(json.dumps([abs(result.returncode), result.stdout, result.stderr]) + "\n")

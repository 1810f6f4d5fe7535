"""The commands of docs/demo.md work while the server runs."""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from helpers import forked_processes
from helpers.commands import COMMAND, ENVIRONMENT, ROOT
from helpers.pages import blocks_of

from biomedclip.run_scripts.main import main


pytest.importorskip("fastapi")


@pytest.mark.slow
def test_the_commands_of_the_page_get_answers(quickstart, tmp_path, monkeypatch):
    commands = [c for block in blocks_of(ROOT / "docs" / "demo.md") if block.language == "bash" for c in block.commands]
    requests = [command for command in commands if command.startswith("curl ")]
    serve = next(command for command in commands if command.startswith("biomedclip demo "))
    monkeypatch.chdir(quickstart)
    assert main(["embed", "out", "--model", "out/model", "--output", str(tmp_path / "vectors")]) == 0
    port = "47860"
    arguments = [str(tmp_path / "vectors") if word == "vectors" else word for word in shlex.split(serve)[1:]]
    log = tmp_path / "log"
    log.touch()
    command = [*COMMAND[1:], *arguments, "--port", port]
    server = forked_processes.start(command, ENVIRONMENT, quickstart, [Path(os.devnull), Path(os.devnull), log])
    deadline = time.monotonic() + 300
    try:
        while subprocess.run(["curl", "-sf", f"http://127.0.0.1:{port}/health"], capture_output=True).returncode:
            assert server.exitcode is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        assert len(requests) >= 6
        for request in requests:
            command = request.replace("curl ", "curl -sS ").replace("7860", port)
            answer = subprocess.run(command, shell=True, cwd=quickstart, capture_output=True, text=True)
            content = json.loads(answer.stdout)
            assert "error" not in content and content["model"] == "model", (request, answer.stdout[:500])
    finally:
        server.terminate()
        server.join()

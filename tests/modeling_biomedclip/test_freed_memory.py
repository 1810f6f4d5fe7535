"""Memory that is freed and used again."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest


BLOCK = 2**26  # bytes, above the 32 MB that glibc keeps

PROGRAM = f"""
import json, multiprocessing, resource
from pathlib import Path
from biomedclip.freed_memory import keep_freed_memory

def pages_of_ten_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray({BLOCK})[::4096] = bytes({BLOCK} // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def send(pipe):
    pipe.send(pages_of_ten_blocks())

found = {{"before": pages_of_ten_blocks()}}
with keep_freed_memory():
    with keep_freed_memory():
        pages_of_ten_blocks()
    found["kept"] = pages_of_ten_blocks()
    found["resident"] = resident()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=send, args=[theirs])
    child.start()
    found["child"] = ours.recv()
    child.join()
found["after"] = pages_of_ten_blocks()
found["resident after"] = resident()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured():
    @cache
    def run(**environment):
        if not hasattr(os, "confstr") or not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            pytest.skip("only glibc returns large blocks at once")
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return json.loads(result.stdout)

    return run


def test_large_blocks_are_reused_until_the_end_and_then_returned(measured):
    found = measured()
    pages = 10 * BLOCK // os.sysconf("SC_PAGE_SIZE")
    for when in ("before", "after"):
        assert found[when] > pages / 2, "each block has new pages"
    assert found["kept"] < pages / 100
    assert found["resident after"] < found["resident"] - BLOCK / 2


def test_a_data_worker_returns_its_memory_as_usual(measured):
    found = measured()
    assert found["child"] > 10 * BLOCK / os.sysconf("SC_PAGE_SIZE") / 2


def test_options_of_malloc_in_the_environment_are_left_alone(measured):
    found = measured(MALLOC_MMAP_THRESHOLD_="1000000")
    assert found["kept"] > 10 * BLOCK / os.sysconf("SC_PAGE_SIZE") / 2

"""Freed tensors' memory is used again instead of being mapped anew."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from rdedge_train.allocator import keep_freed_memory
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return [torch.ones(10_000_000) for _ in range(3)]
for _ in range(5):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def faults_of(call: str) -> int:
    program = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is set on Linux")
def test_a_second_step_takes_no_new_pages() -> None:
    assert faults_of("keep_freed_memory()") * 20 < faults_of("")

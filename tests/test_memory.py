import platform
import subprocess
import sys

import pytest

MEASURE = """
import os
from pathlib import Path

import torch

from mattecompress.memory import freed_memory_kept


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


before = resident()
with freed_memory_kept():
    values = torch.ones(1 << 24)
    del values
    print(resident() - before)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_what_is_freed_stays_and_then_goes() -> None:
    """In a process of its own: one that has freed memory before may be given that again."""
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True
    ).stdout
    within, after = map(int, printed.split())
    assert within > 48 << 20
    assert after < 16 << 20

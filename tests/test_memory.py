import os
import platform
from pathlib import Path

import pytest
import torch

from mattecompress.memory import freed_memory_kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_what_is_freed_stays_and_then_goes() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with freed_memory_kept():
        before = resident()
        values = torch.ones(1 << 24)
        del values
        assert resident() - before > 48 << 20
    assert resident() - before < 16 << 20

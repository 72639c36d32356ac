"""Keeping freed memory for what comes next.

Tensors of one step are freed and those of the next one allocated, in sizes beyond what the C library keeps: it hands
the pages back, and the system clears each of them anew. That takes longer than what is computed in them.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, TOP_PAD, MAPPED_MOST = -1, -2, -4
KEPT, PAD = (1 << 31) - 1, 1 << 26
USUAL = {TRIM_THRESHOLD: 1 << 26, TOP_PAD: 1 << 17, MAPPED_MOST: 1 << 16}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it the process holds on to what it frees; behind it that is given back. Only glibc has the setting."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for parameter, value in {TRIM_THRESHOLD: KEPT, TOP_PAD: PAD, MAPPED_MOST: 0}.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)

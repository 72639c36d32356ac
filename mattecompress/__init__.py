"""mattecompress: a compiler for matting networks.

The verbs of the command line, in Python: `capture`, `opt`, `inspect`, `compile`, `load`, `save`.
"""

import importlib
from typing import Any

_VERBS = {
    "capture": "mattecompress.api",
    "compile": "mattecompress.api",
    "inspect": "mattecompress.api",
    "load": "mattecompress.api",
    "opt": "mattecompress.api",
    "save": "mattecompress.api",
}


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used, so that `import mattecompress` is instant."""
    if name not in _VERBS:
        raise AttributeError(f"module 'mattecompress' has no attribute '{name}'")
    return getattr(importlib.import_module(_VERBS[name]), name)


def __dir__() -> list[str]:
    return sorted(_VERBS)

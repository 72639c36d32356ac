"""mattecompress: a compiler for matting networks.

The verbs of the command line, in Python: `capture`, `opt`, `inspect`, `diff`, `compile`, `load`, `save`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mattecompress.api import capture, compile, diff, inspect, load, opt, save

__all__ = ["capture", "compile", "diff", "inspect", "load", "opt", "save"]


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used, so that `import mattecompress` is instant."""
    if name not in __all__:
        raise AttributeError(f"module 'mattecompress' has no attribute '{name}'")
    return getattr(importlib.import_module("mattecompress.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

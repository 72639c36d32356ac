import importlib

import pytest

from mattecompress.errors import MissingExtraError
from mattecompress.extras import import_part


def absent(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{library}'", name=library)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tvm.relax")
    with pytest.raises(
        MissingExtraError, match=r"tvm is not installed: run `pip install 'mattecompress\[tvm\]'`"
    ):
        import_part("mattecompress.backends.tvm.backend")


def test_a_library_of_no_extra_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "numpy")
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        import_part("mattecompress.models.rvm")

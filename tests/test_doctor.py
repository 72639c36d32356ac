import importlib.metadata
import importlib.util
import shutil

import pytest

from mattecompress.backends.tvm.targets import TARGETS
from mattecompress.doctor import EXTRAS, Finding, examine


def findings() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine()}


def test_looks_at_every_package_and_target() -> None:
    assert list(findings()) == ["python", *EXTRAS, *TARGETS]
    assert findings()["torch"].detail == importlib.metadata.version("torch")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = findings()
    assert found["torch"] == Finding("torch", False, "not installed", "pip install mattecompress")
    assert found["onnx"].mend == "pip install 'mattecompress[onnx]'"
    assert found["opencv-python-headless"].mend == "pip install 'mattecompress[flow]'"
    assert found["matplotlib"].mend == "pip install 'mattecompress[plot]'"
    assert found["host"] == Finding(
        "host", False, "cannot be compiled for", "pip install 'mattecompress[tvm]'"
    )


def test_nothing_links(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else found(name))
    target = findings()["cortex-a76"]
    assert not target.good and "pip install ziglang" in target.mend


def test_emulators(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"cc", "aarch64-linux-gnu-gcc", "qemu-aarch64", "arm-linux-gnueabihf-gcc"}
    monkeypatch.setattr(shutil, "which", lambda name: name if name in tools else None)
    found = findings()
    assert found["host"].detail == "links with cc, runs on this machine"
    assert found["cortex-a76"].detail == "links with aarch64-linux-gnu-gcc, runs on qemu-aarch64"
    assert not found["armv7-a"].good and found["armv7-a"].mend == "apt-get install qemu-user"
    assert found["apple-m1"].good and "nothing emulates apple-m1" in found["apple-m1"].detail

"""What is installed here, which targets can be linked and run, and how to mend what is missing."""

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

EXTRAS = {
    "torch": "core",
    "safetensors": "core",
    "av": "media",
    "pillow": "media",
    "opencv-python-headless": "media",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxsim": "onnx",
    "apache-tvm": "tvm",
    "ziglang": "tvm",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is good, what was found, and how to mend it."""

    subject: str
    good: bool
    detail: str
    mend: str = ""


def examine() -> list[Finding]:
    """Everything, in the order a person would mend it."""
    return [_python(), *_packages(), *_targets()]


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.machine()}")


def _packages() -> Iterator[Finding]:
    for package, extra in EXTRAS.items():
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            wanted = "mattecompress" if extra == "core" else f"'mattecompress[{extra}]'"
            yield Finding(package, False, "not installed", f"pip install {wanted}")


def _targets() -> Iterator[Finding]:
    from mattecompress.backends.tvm.link import LinkError, find_linker
    from mattecompress.backends.tvm.targets import TARGETS

    for name, target in TARGETS.items():
        try:
            linked = f"links with {find_linker(target).name}"
        except LinkError as error:
            yield Finding(name, False, "cannot be linked", str(error))
            continue
        emulator = target.emulator
        if target.is_host:
            yield Finding(name, True, f"{linked}, runs here")
        elif emulator is None:
            yield Finding(name, True, f"{linked}; no emulator runs it, use a device")
        elif shutil.which(emulator):
            yield Finding(name, True, f"{linked}, runs under {emulator}")
        else:
            yield Finding(name, False, f"{linked}, {emulator} is absent", "apt-get install qemu-user")

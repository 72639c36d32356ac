"""What is installed here, which targets can be linked and run, and how to mend what is missing."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

EXTRAS = {
    "torch": "core",
    "safetensors": "core",
    "av": "media",
    "pillow": "media",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxsim": "onnx",
    "opencv-python-headless": "flow",
    "matplotlib": "plot",
    "transformers": "vit",
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
    return Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    for package, extra in EXTRAS.items():
        version = _version(package)
        if version is not None:
            yield Finding(package, True, version)
        else:
            wanted = "mattecompress" if extra == "core" else f"'mattecompress[{extra}]'"
            yield Finding(package, False, "not installed", f"pip install {wanted}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _targets() -> Iterator[Finding]:
    """What each target lacks to be built for and to be run; code for all of them is made by tvm."""
    from mattecompress.backends.tvm.freestanding.link import available
    from mattecompress.backends.tvm.targets import TARGETS

    compiles = _version("apache-tvm") is not None
    for name, target in TARGETS.items():
        found = available(target)
        if not compiles:
            yield Finding(name, False, "cannot be compiled for", "pip install 'mattecompress[tvm]'")
        elif not found.links:
            yield Finding(name, False, "cannot be linked", found.links_with)
        elif found.runs:
            yield Finding(name, True, f"links with {found.links_with}, runs on {found.runs_with}")
        elif target.emulator is None:
            yield Finding(name, True, f"links with {found.links_with}; {found.runs_with}")
        else:
            detail = f"links with {found.links_with}; cannot run here, {target.emulator} is absent"
            yield Finding(name, False, detail, "apt-get install qemu-user")

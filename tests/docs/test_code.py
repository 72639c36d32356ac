"""The code of the pages runs, page by page and in their order: commands, Python and C, unless a block says why not."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mattecompress import api
from mattecompress.data.clips import procedural_clip
from mattecompress.data.video import write_frames
from mattecompress.models import shipped_checkpoint
from tests.conftest import ROOT
from tests.docs.pages import DOCS, EXAMPLES, PAGES, README, Block, blocks, title

TUTORIALS = [DOCS / f"writing-a-{what}.md" for what in ("pass", "kernel")]
"""Their Python is a pass, a kernel and the tests of these, which `test_claims` runs."""
RUN = [
    README,
    *(DOCS / f"{name}.md" for name in ("quick-start", "inspecting", "deploying-on-arm", "training-bivm")),
]
SMALLER = {"288x512": "64x96", "(1, 3, 288, 512), (1, 16, 144, 256), (1, 20, 72, 128), (1, 40, 36, 64), (1, 64, 18, 32)":
           "(1, 3, 64, 96), (1, 16, 32, 48), (1, 20, 16, 24), (1, 40, 8, 12), (1, 64, 4, 6)"}  # fmt: skip
"""Sizes, so that it takes minutes."""
ALLOWED = {"mattecompress bisect": 1, "mattecompress opt rvm.mcg -p 'mse{weigths=4}'": 2}
"""Exit codes of commands that find or refuse something."""


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_block_is_run_or_excused(page: Path) -> None:
    for block in blocks(page):
        assert block.kind, f"line {block.line}: a block without a language"
        if block.is_code and not block.excuse:
            assert page in RUN or (page in TUTORIALS and block.kind == "python") or _is_story(block), (
                block.line
            )


def _is_story(block: Block) -> bool:
    """The command that `tests/test_examples.py` runs."""
    command = f"python {block.page.parent.relative_to(ROOT)}/run.py --folder "
    return block.page in EXAMPLES and block.kind == "sh" and block.code.startswith(command)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What readers have: programs, clips, a network of their own, trained weights, the tools on PATH."""
    network = api.capture("rvm-mobilenetv3", size=(64, 96))
    clip = procedural_clip(1, 0, 4, 64, 96).frames
    api.save(network, tmp_path / "rvm.mcg")
    api.save(api.opt(network, "mse{weights=8 activations=8}", [clip]), tmp_path / "w8a8.mcg")
    for name in ("clip.mp4", "clip.y4m"):
        write_frames(tmp_path / name, clip)
    (tmp_path / "clip.f32").write_bytes(procedural_clip(1, 0, 2, 96, 160).frames.numpy().tobytes())
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Conv2d(3, 1, 1)\n"
    )
    (tmp_path / "student").mkdir()
    shutil.copy(shipped_checkpoint("bivm"), tmp_path / "student" / "weights.safetensors")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "zig").write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang "$@"\n')
    (tmp_path / "tools" / "zig").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.needs("qemu-aarch64")
@pytest.mark.parametrize("page", RUN, ids=title)
def test_code_runs(page: Path, folder: Path) -> None:
    for package in ("av", "onnxruntime", "tvm", "ziglang", "matplotlib"):
        pytest.importorskip(package)
    names: dict[str, Any] = {"folder": folder}
    for block in blocks(page):
        if not block.is_code or block.excuse:
            continue
        if block.kind == "python":
            (folder / "block.py").write_text(_smaller(block.code))
            names |= runpy.run_path(str(folder / "block.py"), names)
        elif block.kind == "c":
            (folder / "main.c").write_text(block.code)
        else:
            for command, answer in block.steps:
                _run(command, answer)


def _run(command: str, answer: list[str]) -> None:
    """A command, and each line that the page shows of its answer, numbers aside."""
    done = subprocess.run(["bash", "-c", _smaller(command)], capture_output=True, text=True, check=False)
    expected = next((code for start, code in ALLOWED.items() if command.startswith(start)), 0)
    said = done.stdout + done.stderr
    assert done.returncode == expected, f"{command}\n{said}"
    plain = [_without_numbers(line) for line in said.splitlines()]
    assert [line for line in answer if _without_numbers(line) not in plain] == [], f"{command}\n{said}"


def _smaller(code: str) -> str:
    for size, other in SMALLER.items():
        code = code.replace(size, other)
    return code


def _without_numbers(line: str) -> str:
    return re.sub(r"\s*\b\d+(\.\d+)?", " #", line).strip()

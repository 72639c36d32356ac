"""Every example runs from the command line into an empty folder, and says what it found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


def run_example(name: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_own_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = run_example("own_model", tmp_path / "mine")
    assert files(tmp_path / "mine") == {"mine.mcg", "smallmatting.onnx"}
    assert "block.1" in said
    assert "in ONNX Runtime move alpha by" in said


@pytest.mark.slow
def test_binarize_rvm(tmp_path: Path) -> None:
    said = run_example("binarize_rvm", tmp_path / "react").splitlines()
    assert files(tmp_path / "react") == {"float.mcg", "react.mcg", "lowered.mcg"}
    assert [line.split()[-1] for line in said[:3]] == ["float", "trainable", "lowered"]
    sizes = [float(line.split()[1]) for line in said[:3]]
    assert sizes[1] < sizes[0] / 20
    assert float(said[3].split()[4]) < 1e-3


@pytest.mark.slow
def test_build_for_arm(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    said = run_example("build_for_arm", tmp_path / "arm")
    programs = {"host/rvm-mobilenetv3-host", "cortex-a76/rvm-mobilenetv3-cortex-a76"}
    assert programs | {"float.mcg", "w8a8.mcg", "frames.f32", "host.f32"} <= files(tmp_path / "arm")
    emulated = shutil.which("qemu-aarch64")
    assert ("the same bits" if emulated else "no emulator here") in said
    assert "not the same bits" not in said


def test_every_example_is_run() -> None:
    named = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= named

"""Every story runs from the command line into an empty folder, and says what it found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


def run_example(name: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name / "run.py"), "--folder", str(folder)]
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


@pytest.mark.slow
def test_worst_layers(tmp_path: Path) -> None:
    said = run_example("worst_layers", tmp_path / "w4a4").splitlines()
    assert files(tmp_path / "w4a4") == {"float.mcg", "w4a4.mcg", "mended.mcg"}
    noise = [float(line.split()[-2]) for line in said[:4]]
    assert noise == sorted(noise)
    worst = said[0].split()[0]
    assert said[4].startswith(f"%{worst}: ") and "precision float -> w4a4" in said[4]
    sizes, moved = ([float(line.split()[place]) for line in said[5:8]] for place in (1, 6))
    assert moved[0] == 0 < moved[2] < moved[1] / 2
    assert sizes[2] == sizes[1] < sizes[0] / 7
    assert "pass 4, quantize{" in said[8]


def test_route_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    said = run_example("route_tokens", tmp_path / "routed").splitlines()
    maps = {f"backbone_encoder_layer_{block}_router.png" for block in (2, 5)}
    assert files(tmp_path / "routed") == maps | {
        "photo.png",
        "trimap.png",
        "alpha.png",
        "vitmatte.mcg",
        "mematte.mcg",
    }
    before, after = (float(line.split()[1]) for line in said[:2])
    assert after < 0.7 * before
    assert all(line.endswith("96 of 384 tokens attend") for line in said[2:4])


def test_every_example_is_run() -> None:
    named = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    stories = {path.parent.name for path in EXAMPLES.glob("*/run.py")}
    assert stories <= named and len(stories) == 5
    assert {path.parent.name for path in EXAMPLES.glob("*/README.md")} == stories

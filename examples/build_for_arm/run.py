"""A float RVM becomes an 8-bit program for a Cortex-A76, whose matte equals this machine's to the bit.

    python examples/build_for_arm/run.py --folder arm/

Leaves in the folder: float.mcg, w8a8.mcg, one static program for each target, frames.f32, and their mattes.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

import torch

import mattecompress as mc
from mattecompress.backends.tvm.targets import find_target
from mattecompress.data.clips import procedural_clip
from mattecompress.program import Program

SIZE = (32, 48)
FRAMES = 4
ARM = "cortex-a76"


def build(program: Program, target: str, folder: Path) -> Path:
    path: Path
    (path,) = mc.compile(program, "tvm", target=target, emit="exe").save(folder / target)
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
    return path


def matte(executable: Path, target: str, frames: Path, alpha: Path) -> bytes | None:
    """The matte of a clip as raw float32; None where nothing here runs the target's programs."""
    processor = find_target(target)
    command = [str(executable), str(frames), str(alpha)]
    if not processor.is_host:
        if processor.emulator is None or shutil.which(processor.emulator) is None:
            return None
        command = [processor.emulator, "-cpu", processor.emulated_cpu or "max", *command]
    subprocess.run(command, check=True)
    return alpha.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("arm"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    network = mc.capture("rvm-mobilenetv3", size=SIZE)
    calibration = procedural_clip(1000, 0, FRAMES, *SIZE).frames
    quantized = mc.opt(network, "mse{weights=8 activations=8}", [calibration])
    mc.save(network, folder / "float.mcg")
    mc.save(quantized, folder / "w8a8.mcg")
    print(f"weights: {mc.inspect(network).totals.size_mib:.2f} MiB, then", end=" ")
    print(f"{mc.inspect(quantized).totals.size_mib:.2f} MiB")

    frames = folder / "frames.f32"
    frames.write_bytes(procedural_clip(7, 0, FRAMES, *SIZE).frames.numpy().tobytes())
    lowered = mc.opt(quantized, "lower")
    mattes = {}
    for target in ("host", ARM):
        executable = build(lowered, target, folder)
        mattes[target] = matte(executable, target, frames, folder / f"{target}.f32")

    if mattes[ARM] is None:
        print(f"no emulator here: copy {folder / ARM} to a device and run it")
    else:
        verdict = "the same bits" if mattes[ARM] == mattes["host"] else "not the same bits"
        print(f"{FRAMES} frames on {ARM} and here: {verdict}")


if __name__ == "__main__":
    main()

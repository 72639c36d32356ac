"""RVM with one-bit convolutions: what it costs before and after, and what lowering keeps.

    python examples/binarize_rvm/run.py --folder react/

Leaves in the folder: float.mcg, react.mcg (trainable) and lowered.mcg (packed bits). The one-bit form has to be
trained before its mattes are worth looking at; its size and its operations are what they will be.
"""

import argparse
from pathlib import Path

import torch

import mattecompress as mc
from mattecompress.data.clips import procedural_clip
from mattecompress.program import Program
from mattecompress.running.stream import Stream

SIZE = (32, 48)


def show(name: str, program: Program) -> None:
    totals = mc.inspect(program).totals
    print(
        f"{name:8} {totals.size_mib:7.2f} MiB  {totals.macs / 1e6:7.1f} M MACs  "
        f"{totals.binary_macs / 1e6:7.1f} M binary MACs  level {program.level.value}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("react"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    programs = {"float": mc.capture("rvm-mobilenetv3", size=SIZE)}
    programs["react"] = mc.opt(programs["float"], "rvm-react")
    programs["lowered"] = mc.opt(programs["react"], "lower{strict=true}")
    for name, program in programs.items():
        show(name, program)
        mc.save(program, folder / f"{name}.mcg")

    frame = procedural_clip(7, 0, 1, *SIZE).frames
    trainable, lowered = (Stream(programs[name])(frame)["pha"] for name in ("react", "lowered"))
    print(f"lowering moves alpha by {float((trainable - lowered).abs().max()):.1e} at most")


if __name__ == "__main__":
    main()

"""Which layers of a 4-bit RVM hurt most, what did quantization do to them, and what cures it?

    python examples/worst_layers/run.py --folder w4a4/

Leaves in the folder: float.mcg, w4a4.mcg and mended.mcg, with activations of 8 bits around the worst layers.
"""

import argparse
from pathlib import Path

import torch

import mattecompress as mc
from mattecompress.data.clips import procedural_clip
from mattecompress.inspection.bisection import bisect
from mattecompress.inspection.error import measure_errors
from mattecompress.inspection.rows import node_rows, select
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.running.stream import Stream

SIZE = (144, 256)
FRAMES = 2
WORST = 16
SHOWN = 4
PREPARE = "canonicalize,fold-batch-norm,partition-blocks"
ALLOWED = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("w4a4"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    seen, unseen = (procedural_clip(seed, 0, FRAMES, *SIZE).frames for seed in (1000, 7))
    network = mc.capture("rvm-mobilenetv3", size=SIZE)
    pipeline = f"{PREPARE},quantize{{weights=4 activations=4}}"
    programs = {"float": network, "w4a4": mc.opt(network, pipeline, [seen])}

    errors = measure_errors(programs["w4a4"], network, [unseen])
    layers = select(node_rows(programs["w4a4"], errors), "op=conv2d", "own_sqnr")[:WORST]
    for layer in layers[:SHOWN]:
        print(f"{layer['name']:20} {layer['region']:22} {layer['own_sqnr']:5.1f} dB")

    worst = layers[0]["name"]
    for node in mc.diff(network, programs["w4a4"]).nodes:
        if worst in node.after:
            changes = ", ".join(f"{change.what} {change.before} -> {change.after}" for change in node.changes)
            print(f"%{worst}: {node.status}, {changes}; it was {', '.join(node.kinds_before)}")

    rules = ",".join(f"{region}:w4a8" for region in dict.fromkeys(layer["region"] for layer in layers))
    cure = f"{PREPARE},quantize{{weights=4 activations=4 rules=[{rules}]}}"
    programs["mended"] = mc.opt(network, cure, [seen])

    expected = alpha(network, unseen)
    for name, program in programs.items():
        mc.save(program, folder / f"{name}.mcg")
        error = float((alpha(program, unseen) - expected).abs().mean())
        print(
            f"{name:7} {mc.inspect(program).totals.size_mib:6.2f} MiB  moves alpha by {error:.4f} on average"
        )

    found = bisect(network, parse_pipeline(pipeline), unseen, ALLOWED, Context(clips=[seen]))
    if found.number is not None and found.culprit is not None:
        step = found.steps[-1]
        print(f"outputs move by more than {ALLOWED} in pass {found.number}, {step.text},")
        print(f"first at %{found.culprit.before} in {found.culprit.region}")


def alpha(program: Program, frames: torch.Tensor) -> torch.Tensor:
    return torch.cat([outputs["pha"] for outputs in Stream(program).over(frames)])


if __name__ == "__main__":
    main()

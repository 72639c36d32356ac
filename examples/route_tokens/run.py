"""A picture and its trimap through a ViTMatte whose tokens are routed: which of them attend, and what that saves.

    python examples/route_tokens/run.py --folder routed/

Leaves in the folder: photo.png and trimap.png, made from a seed; vitmatte.mcg and mematte.mcg, a small ViTMatte before
and after; alpha.png; and for each router a picture, white where tokens attend. The weights are random, and so is the
matte.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, fx

import mattecompress as mc
from mattecompress.data.clips import procedural_clip
from mattecompress.data.trimaps import make_trimap
from mattecompress.data.video import write_frames
from mattecompress.inspection.rows import node_rows
from mattecompress.matting import matte_clip
from mattecompress.models.signatures import trimap_signature
from mattecompress.models.vitmatte import ViTMatte, configuration
from mattecompress.modules.token_router import TokenRouter
from mattecompress.program import Program
from mattecompress.running.watching import Watched

SIZE = (256, 384)
BLOCKS = (2, 5)
"""Those of six with attention over the whole image."""
SHARE = 0.25


def margins(program: Program, inputs: dict[str, Tensor]) -> dict[fx.Node, Tensor]:
    """For each router, in order, how far each token is from the threshold, (1,H/16,W/16)."""
    found: dict[fx.Node, Tensor] = {}

    def look(node: fx.Node, value: Tensor) -> Tensor:
        if node in routers:
            found[node] = value[..., 0] - value[..., 1]
        return value

    routers = program.called_modules(TokenRouter)
    with torch.no_grad():
        Watched(program, look).outputs(inputs)
    return found


def settle(program: Program, inputs: dict[str, Tensor]) -> None:
    """A router without training sends all tokens one way: put each threshold where a share of them attends."""
    for router in program.called_modules(TokenRouter):
        margin = margins(program, inputs)[router]
        program.module(router).out_conv[-2].bias.data[0] -= margin.quantile(1 - SHARE)


def attention_macs(program: Program) -> int:
    inside = tuple(f"backbone.encoder.layer.{block}." for block in BLOCKS)
    return sum(row["macs"] for row in node_rows(program) if row["scope"].startswith(inside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("routed"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)

    clip = procedural_clip(9, 0, 1, *SIZE)
    inputs = {"image": clip.frames, "trimap": make_trimap(clip.alpha)}
    photo, trimap, alpha = (folder / f"{name}.png" for name in ("photo", "trimap", "alpha"))
    write_frames(photo, inputs["image"])
    write_frames(trimap, inputs["trimap"])

    network = ViTMatte(configuration(width=48, heads=2, blocks=6), keep_known=True).eval()
    programs = {"vitmatte": mc.capture(network, trimap_signature(SIZE))}
    tokens = SIZE[0] * SIZE[1] // 256
    programs["mematte"] = mc.opt(programs["vitmatte"], f"mematte{{limit={int(SHARE * tokens)}}}")
    settle(programs["mematte"], inputs)
    for name, program in programs.items():
        mc.save(program, folder / f"{name}.mcg")
        print(f"{name}: {attention_macs(program) / 1e6:.1f} M MACs in blocks with attention over the image")

    for router, margin in margins(programs["mematte"], inputs).items():
        chosen = (margin > 0).float()
        path = folder / f"{router.name}.png"
        write_frames(path, chosen[None])
        print(f"{path}: {int(chosen.sum())} of {chosen.numel()} tokens attend")

    run = programs["mematte"].run
    matte_clip(programs["mematte"], run, str(photo), alpha, trimap=str(trimap))
    print(alpha)


if __name__ == "__main__":
    main()

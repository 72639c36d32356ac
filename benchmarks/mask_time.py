"""What a frame of one-bit BiVM takes at several densities of its mask, beside float RVM in ONNX Runtime.

    python benchmarks/mask_time.py --clip dancers.mp4

One thread, the shipped weights of `bivm`, which the threshold of the mask is set for: so that the wanted share p of the
operations under the mask falls where it is not 0, on one frame of the clip, states settled. All run in turn, round
after round. Beside the medians stands what BiVM's count of operations would have a frame take, 0.1907 + 0.3863 p, which
says nothing of memory. Speed at the second size is that of high-definition video: networks see a smaller picture, and a
fast guided filter brings the matte back. The page is docs/mask-time.md.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

import mattecompress as mc
from mattecompress.analysis.cost import cost
from mattecompress.binarization.masking import masked_nodes
from mattecompress.cli.options import parse_size
from mattecompress.data.sources import load_clips
from mattecompress.errors import UserError
from mattecompress.modules.spatial_mask import SpatialMask, compared
from mattecompress.program import Program
from mattecompress.running.feed import Feed
from mattecompress.running.stream import Runner, Stream
from mattecompress.running.watching import watch
from mattecompress.timing import Work, time_in_turn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers
from frame_time import run_ours
from results import render_page, say

SHARES = (0.0, 0.1, 0.3, 1.0)
ALWAYS, FREE = 0.1907, 0.3863
"""G operations outside and under the mask, of the whole network without its mask's own."""
HALVINGS = 7
"""Of the interval of shares that the coarse mask may mark, in search of a density."""
WARM = 3
PEER = "float RVM, ONNX Runtime"
USUAL = 0.3


@dataclass(frozen=True)
class Density:
    """operations: the share of those under the mask that falls where it is not 0, as BiVM counts them.

    coarse: the share of positions that the mask marks before it is resized.
    """

    operations: float
    coarse: float


@dataclass(frozen=True)
class Timed:
    """A runner's median milliseconds a frame, and the density of its mask."""

    name: str
    milliseconds: float
    density: Density | None


def main() -> None:
    """Measure both sizes and write the page."""
    try:
        options = _parse_options()
        torch.set_num_threads(1)
        small = list(measure(options, SHARES, options.size))
        refined = {"ratio": options.ratio, "refiner": "fast_guided_filter"}
        high = list(measure(options, (USUAL,), options.high, **refined))
        tables = {options.size: table(small), options.high: table(high)}
        render_page(
            options.output, "mask_time.md.jinja", tables=tables, ratio=options.ratio, runs=options.runs
        )
    except (UserError, FileNotFoundError) as error:
        say(f"mask_time: {error}")
        sys.exit(2)


def measure(
    options: argparse.Namespace, shares: tuple[float, ...], size: tuple[int, int], **form: Any
) -> Iterator[Timed]:
    """The peer, our float program, and one for each share, at one size."""
    (clip,) = load_clips(str(options.clip), size, 1, WARM + 1)
    frame = clip.frames[-1:]
    floating, binary = (mc.capture(model, size=size, **form) for model in ("rvm-mobilenetv3", "bivm"))
    works: dict[str, Work] = {PEER: _work(floating, peers.onnxruntime(floating, 1), frame)}
    works["float RVM"] = _work(floating, run_ours(floating, 1), frame)
    densities: dict[str, Density] = {}
    for share in shares:
        masked = with_share(binary, frame, share)
        name = f"BiVM at {share:g}"
        densities[name] = found = density(masked, frame)
        works[name] = _work(masked, run_ours(masked, 1), frame)
        say(f"{name}: {found.operations:.1%} of the operations; the coarse mask marks {found.coarse:.1%}")
    for name, times in time_in_turn(works, options.runs).items():
        yield Timed(name, statistics.median(times), densities.get(name))


def with_share(program: Program, frame: Tensor, share: float) -> Program:
    """A copy whose mask lets about that share of the operations under it through."""
    seen = seen_by_mask(program, frame)
    if share in (0, 1):
        return marking(program, seen, share)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        coarse = (low + high) / 2
        found = marking(program, seen, coarse)
        if density(found, frame).operations > share:
            high = coarse
        else:
            low = coarse
    return found


def marking(program: Program, seen: Tensor, share: float) -> Program:
    """A copy whose mask, before it is resized, marks about that share of what `seen_by_mask` gives."""
    copy = program.clone()
    call, mask = _mask(copy)
    threshold = 2.0 if share == 0 else float(seen.quantile(1 - share, interpolation="higher"))
    copy.add_module(str(call.target), SpatialMask(replace(mask.config, threshold=threshold)).eval())
    copy.graph_module.recompile()
    return copy


def seen_by_mask(program: Program, frame: Tensor) -> Tensor:
    """What the mask holds its threshold against, states settled."""
    call, mask = _mask(program)
    return compared(_settled(program, frame)[call.all_input_nodes[0].name], mask.config.rule)


def _mask(program: Program) -> tuple[fx.Node, SpatialMask]:
    (call,) = program.called_modules(SpatialMask)
    mask = program.module(call)
    assert isinstance(mask, SpatialMask)
    return call, mask


def density(program: Program, frame: Tensor) -> Density:
    """Of a program with one mask, once its states have settled."""
    values = _settled(program, frame)
    call, _ = _mask(program)
    masks = {node.name: mask.name for node, mask in masked_nodes(program).items()}
    flops = {each.name: each.paper_flops for each in cost(program).nodes if each.masked}
    let_through = sum(flops[name] * _set(values[masks[name]]) for name in flops)
    return Density(let_through / sum(flops.values()), _set(values[call.name]))


def _set(mask: Tensor) -> float:
    return float((mask != 0).double().mean())


def _settled(program: Program, frame: Tensor) -> dict[str, Tensor]:
    """Each node's value, once the frame has been seen some times."""
    values: dict[str, Tensor] = {}
    watch(Feed(program, [settling(frame)]), lambda node, value: values.update({node.name: value}))
    return values


def settling(frame: Tensor) -> Tensor:
    """A frame (1,3,H,W) as often as states take to settle, and once more."""
    return frame.expand(WARM + 1, -1, -1, -1)


def _work(program: Program, run: Runner, frame: Tensor) -> Work:
    stream = Stream(program, run)
    for _ in range(WARM):
        stream(frame)
    return lambda: stream(frame)


def table(rows: list[Timed]) -> list[tuple[str, ...]]:
    """Name, p, coarse density, milliseconds, times the peer's speed; time and operations as shares of the last row's."""
    peer = next(row.milliseconds for row in rows if row.name == PEER)
    return [_cells(row, peer, rows[-1]) for row in rows]


def _cells(row: Timed, peer: float, densest: Timed) -> tuple[str, ...]:
    cells = (f"{row.milliseconds:.1f}", f"{peer / row.milliseconds:.2f}")
    if row.density is None or densest.density is None:
        return row.name, "", "", *cells, "", ""
    p, all_of_it = row.density.operations, densest.density.operations
    counted = (ALWAYS + FREE * p) / (ALWAYS + FREE * all_of_it)
    share = f"{row.milliseconds / densest.milliseconds:.2f}"
    return row.name, f"{p:.2f}", f"{row.density.coarse:.2f}", *cells, share, f"{counted:.2f}"


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, required=True, help="a video; its fourth frame is taken")
    parser.add_argument("--size", type=parse_size, default=(288, 512), metavar="HxW", help="default: 288x512")
    parser.add_argument(
        "--high", type=parse_size, default=(1080, 1920), metavar="HxW", help="default: 1080x1920"
    )
    parser.add_argument("--ratio", type=float, default=0.25, help="of the high size; default: 0.25")
    parser.add_argument("--runs", type=int, default=30, help="of each, in turn; default: 30")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "mask-time.md", help="the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()

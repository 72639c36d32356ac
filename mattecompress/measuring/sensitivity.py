"""What each region's precision costs at the output, and mixed precision from it.

    error(region, precision) = mean (a - a*)^2,  only the region's convolutions quantized, a* the float program's alpha

over all frames, states carried. A choice of precisions is expected to have the sum of its regions' errors, which holds
while they are small and independent; what a choice really has is measured on the whole program.

The choices are a path from every region's best precision down to its smallest: each step takes the region and the
precision that save most bytes of weights for the error they add. Bytes are those that lowering stores: half a byte for
a weight of up to 4 bits, else one, and whole bytes for an output channel; a weight that two regions share counts
in both.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mattecompress.errors import UserError
from mattecompress.facts import Precision
from mattecompress.interface import Clip, alpha_name
from mattecompress.passes.quantize import INPUT, WEIGHT, Quantize, conv2d, layer_path, quantizer_of
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Level, Program
from mattecompress.running.stream import Stream
from mattecompress.running.watching import Progress

PREPARE = "canonicalize,fold-batch-norm,partition-blocks"
MIB = 2**20
PACKED_BITS = 4


class ScanError(UserError):
    """A program that cannot be scanned, or precisions that leave nothing to choose."""


@dataclass(frozen=True)
class Cell:
    """One region alone in one precision: the error of alpha, and the bytes that its weights take."""

    region: str
    precision: str
    error: float
    weight_bytes: int


@dataclass(frozen=True)
class Choice:
    """A precision for each region; `error` is expected, the sum over the regions."""

    precisions: Mapping[str, str]
    weight_bytes: int
    error: float

    @property
    def pipeline(self) -> str:
        """What makes such a program: passes to paste behind `opt -p`."""
        ((usual, _),) = Counter(self.precisions.values()).most_common(1)
        bits = Precision.parse(usual)
        rules = [
            f"{region}:{precision}" for region, precision in self.precisions.items() if precision != usual
        ]
        text = f" rules=[{','.join(rules)}]" if rules else ""
        quantize = f"weights={bits.weight_bits} activations={bits.activation_bits} first=none{text}"
        return f"{PREPARE},quantize{{{quantize}}}"


@dataclass(frozen=True)
class Scan:
    """Every region in every precision, and the choices from the largest to the smallest."""

    cells: tuple[Cell, ...]
    choices: tuple[Choice, ...]

    def within(self, mib: float | None) -> Choice:
        """The choice of least error within so many MiB of weights; None for half of the way down.

        Raises:
            ScanError: none is so small.
        """
        first, last = self.choices[0].weight_bytes, self.choices[-1].weight_bytes
        limit = (first + last) / 2 if mib is None else mib * MIB
        _require_room(limit, last)
        return next(choice for choice in self.choices if choice.weight_bytes <= limit)

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, each choice with its pipeline."""
        choices = [{**asdict(choice), "pipeline": choice.pipeline} for choice in self.choices]
        return {"cells": [asdict(cell) for cell in self.cells], "choices": choices}


class Scanner:
    """Measures a float program in parts and as a whole.

    program: of fixed size. clips: (T,3,H,W) float32 in 0..1 each, or as `mattecompress.running.feed.Feed` takes them,
        for ranges and for errors.

    Raises:
        ScanError: the program is not float.
        CalibrationError, PreconditionError: clips do not fit, or the program cannot be prepared.
    """

    def __init__(self, program: Program, clips: Sequence[Clip], seed: int = 0) -> None:
        if program.level is not Level.FLOAT:
            raise ScanError(
                f"{program.name} is {program.level.value}: scan the float program that it came from"
            )
        self.context = Context(clips=clips, seed=seed)
        self.program = parse_pipeline(PREPARE).run(program, self.context)
        self.alpha = alpha_name(self.program)
        self.expected = self._alphas(self.program)

    def scan(
        self,
        precisions: Sequence[str],
        progress: Progress = lambda done, total, what: None,
        mib: float | None = None,
    ) -> Scan:
        """Each region alone in each of the precisions, such as `w4a8`.

        mib: the budget that `Scan.within` will be asked for; one that is too small is refused before any error is
            measured.

        Raises:
            OptionError: a precision has bits that quantizers do not have.
            ScanError: a precision cannot be read, there are fewer than two, nothing can be quantized, or no choice is
                within the budget.
        """
        bits = [parse_precision(text) for text in dict.fromkeys(precisions)]
        if len(bits) < 2:
            raise ScanError(f"precisions {','.join(precisions)}: give two or more, such as w4a8,w8a8")
        wholes = {str(precision): self._quantized(precision) for precision in bits}
        if not regions_of(next(iter(wholes.values()))):
            raise ScanError(
                f"{self.program.name}: there is no convolution to quantize; linear layers become such by "
                "linear-to-convolution"
            )
        if mib is not None:
            _require_room(mib * MIB, _smallest(list(wholes.values())))
        cells: list[Cell] = []
        for number, (precision, whole) in enumerate(wholes.items()):
            regions = regions_of(whole)
            for done, (region, layers) in enumerate(regions.items(), start=1):
                error = self.error(_only(whole, layers))
                cells.append(Cell(region, precision, error, _weight_bytes(whole, layers)))
                progress(number * len(regions) + done, len(bits) * len(regions), f"{region} {precision}")
        return Scan(tuple(cells), tuple(choose(cells)))

    @torch.no_grad()
    def error(self, program: Program) -> float:
        """Mean squared difference of alpha from the float program's."""
        pairs = zip(self._alphas(program), self.expected, strict=True)
        differences = [(found - expected).square().flatten() for found, expected in pairs]
        return float(torch.cat(differences).mean())

    def measure(self, choice: Choice) -> float:
        """The error of the whole program with a choice's precisions."""
        return self.error(parse_pipeline(choice.pipeline).run(self.program, self.context))

    def _quantized(self, precision: Precision) -> Program:
        step = Quantize(precision.weight_bits, precision.activation_bits, first=None)
        return step(self.program, self.context).program

    def _alphas(self, program: Program) -> list[Tensor]:
        return [
            torch.cat([outputs[self.alpha] for outputs in Stream(program).over_clip(clip)])
            for clip in self.context.clips
        ]


def parse_precision(text: str) -> Precision:
    """From `w4a8`.

    Raises:
        ScanError: it is not of that form.
    """
    try:
        return Precision.parse(text)
    except ValueError as error:
        raise ScanError(f"precision '{text}': expected such as w4a8") from error


def regions_of(program: Program) -> dict[str, list[fx.Node]]:
    """The quantized convolutions of each region, those outside of all by their own path."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.find(conv2d):
        if quantizer_of(program, node.args[WEIGHT]):
            found.setdefault(program.facts(node).region or layer_path(node), []).append(node)
    return found


def choose(cells: Sequence[Cell]) -> list[Choice]:
    """The path that the top of this module describes."""
    by_region: dict[str, list[Cell]] = {}
    for cell in cells:
        by_region.setdefault(cell.region, []).append(cell)
    now = {
        region: min(own, key=lambda cell: (cell.error, cell.weight_bytes))
        for region, own in by_region.items()
    }
    choices = [_choice(now)]
    while smaller := [cell for cell in cells if cell.weight_bytes < now[cell.region].weight_bytes]:
        best = min(smaller, key=lambda cell: _price(now[cell.region], cell))
        now = {**now, best.region: best}
        choices.append(_choice(now))
    return choices


def _price(now: Cell, then: Cell) -> float:
    """Error added for each byte saved."""
    return (then.error - now.error) / (now.weight_bytes - then.weight_bytes)


def _choice(cells: Mapping[str, Cell]) -> Choice:
    return Choice(
        {region: cell.precision for region, cell in cells.items()},
        sum(cell.weight_bytes for cell in cells.values()),
        sum(cell.error for cell in cells.values()),
    )


def _only(program: Program, layers: Sequence[fx.Node]) -> Program:
    """A copy in which all other convolutions read what they would without quantizers."""
    kept, copy = {node.name for node in layers}, program.clone()
    for node in copy.find(conv2d):
        for place in (INPUT, WEIGHT):
            call = node.args[place]
            if node.name not in kept and isinstance(call, fx.Node) and quantizer_of(copy, call):
                node.replace_input_with(call, call.all_input_nodes[0])
    copy.graph_module.recompile()
    return copy


def _require_room(limit: float, smallest: int) -> None:
    """Raise `ScanError` where the smallest choice has more bytes of weights than the limit."""
    if smallest > limit:
        raise ScanError(
            f"budget {limit / MIB:g} MiB: the smallest choice has {smallest / MIB:.3g} MiB of weights"
        )


def _smallest(wholes: Sequence[Program]) -> int:
    """Bytes of weights where each region has the precision that takes fewest, of one program for each precision."""
    sizes = [
        {region: _weight_bytes(whole, layers) for region, layers in regions_of(whole).items()}
        for whole in wholes
    ]
    return sum(min(each[region] for each in sizes) for region in sizes[0])


def _weight_bytes(program: Program, layers: Sequence[fx.Node]) -> int:
    calls = {call: None for node in layers if isinstance(call := node.args[WEIGHT], fx.Node)}
    total = 0
    for call in calls:
        quantizer = quantizer_of(program, call)
        assert quantizer
        rows = program.tensor(call.all_input_nodes[0]).flatten(1)
        packed = quantizer.config.bits <= PACKED_BITS
        total += len(rows) * (-(-rows.shape[1] // 2) if packed else rows.shape[1])
    return total

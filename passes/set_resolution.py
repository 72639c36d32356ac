"""A program captured with open sizes (batch `n`, frame `16*h` by `16*w`) becomes one of fixed sizes."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mattecompress.analysis.propagation import program_symbols
from mattecompress.facts import evaluate_size, nearest_multiple, size_step, solve_symbols
from mattecompress.options import OptionError
from mattecompress.passes.canonicalize import simplify
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program


@dataclass(frozen=True)
class SetResolution(Pass):
    """Fix batch and frame size; afterwards every size of the program is a number.

    batch: none means 1, or what it is fixed at already.
    """

    height: int
    width: int
    batch: int | None = None
    name: ClassVar[str] = "set-resolution"

    def __post_init__(self) -> None:
        for what, value in (("height", self.height), ("width", self.width), ("batch", self.batch)):
            if value is not None and value < 1:
                raise OptionError(f"{what}={value}: expected at least 1")

    def requires(self, program: Program) -> None:
        """Sizes are open, and those wanted are multiples of what the network needs, or what is fixed already."""
        expect(
            program_symbols(program), "the program's size is already fixed: capture it again without --size"
        )
        for what, (size, wanted) in self._wanted(program).items():
            if isinstance(size, int):
                expect(
                    wanted == size,
                    f"{what} is fixed at {size}, not {wanted}: capture it open, or take {size}",
                )
                continue
            step = size_step(size)
            expect(
                wanted % step == 0,
                f"{what} {wanted} is not a multiple of {step}: take {nearest_multiple(wanted, step)}",
            )

    def ensures(self, program: Program) -> None:
        """No symbol is left."""
        expect(not program_symbols(program), "a size is still open")

    def apply(self, program: Program, context: Context) -> str | None:
        """Solve for the symbols, write the sizes into the inputs and let constants follow."""
        wanted = self._wanted(program)
        sizes, values = zip(*wanted.values(), strict=True)
        symbols = solve_symbols(sizes, values)
        for node in program.inputs:
            facts = program.facts(node)
            shape = tuple(evaluate_size(size, symbols) for size in facts.shape)
            node.meta["facts"] = facts.but(shape=shape)
        simplify(program)
        return f"batch {wanted['batch'][1]}, {self.height}x{self.width}"

    def _wanted(self, program: Program) -> dict[str, tuple[int | str, int]]:
        """Each axis's size in the program, and what it shall be."""
        batch, _, height, width = program.facts(_frame(program)).shape
        usual = batch if isinstance(batch, int) else 1
        return {
            "batch": (batch, usual if self.batch is None else self.batch),
            "height": (height, self.height),
            "width": (width, self.width),
        }


def _frame(program: Program) -> fx.Node:
    """The first input that is no state and has four axes."""
    states = {state.input for state in program.states}
    frames = [
        node for node in program.inputs if node.target not in states and len(program.facts(node).shape) == 4
    ]
    expect(frames, "no input has the shape of a frame, (N,C,H,W)")
    return frames[0]

"""A program captured with open sizes (batch `n`, frame `16*h` by `16*w`) becomes one of fixed sizes."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mattecompress.analysis.propagation import program_symbols
from mattecompress.facts import evaluate_size, nearest_multiple, size_step, solve_symbols
from mattecompress.passes.canonicalize import simplify
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program


@dataclass(frozen=True)
class SetResolution(Pass):
    """Fix batch and frame size; afterwards every size of the program is a number."""

    height: int
    width: int
    batch: int = 1
    name: ClassVar[str] = "set-resolution"

    def requires(self, program: Program) -> None:
        """Sizes are open, and the wanted ones are multiples of what the network needs."""
        expect(
            program_symbols(program), "the program's size is already fixed: capture it again without --size"
        )
        for size, wanted, what in self._wanted(program):
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
        symbols = solve_symbols([size for size, _, _ in wanted], [value for _, value, _ in wanted])
        for node in program.inputs:
            facts = program.facts(node)
            shape = tuple(evaluate_size(size, symbols) for size in facts.shape)
            node.meta["facts"] = facts.but(shape=shape)
        simplify(program)
        return f"batch {self.batch}, {self.height}x{self.width}"

    def _wanted(self, program: Program) -> list[tuple[int | str, int, str]]:
        shape = program.facts(_frame(program)).shape
        wanted = (
            (shape[0], self.batch, "batch"),
            (shape[2], self.height, "height"),
            (shape[3], self.width, "width"),
        )
        return [(size, value, what) for size, value, what in wanted if isinstance(size, str)]


def _frame(program: Program) -> fx.Node:
    """The first input that is no state and has four axes."""
    states = {state.input for state in program.states}
    frames = [
        node for node in program.inputs if node.target not in states and len(program.facts(node).shape) == 4
    ]
    expect(frames, "no input has the shape of a frame, (N,C,H,W)")
    return frames[0]

"""Programs that run while someone looks at what their nodes yield."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mattecompress.program import Program
from mattecompress.running.feed import CalibrationError, Feed

Progress = Callable[[int, int, str], None]


class Watched(fx.Interpreter):
    """Runs a program, shows every tensor that a node yields, and lets a visitor exchange it.

    visit: called with each node and its value; what it returns is what other nodes read.
    """

    def __init__(self, program: Program, visit: Callable[[fx.Node, Tensor], Tensor]) -> None:
        super().__init__(program.graph_module)
        self.program = program
        self.visit = visit
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        """The node's value as the visitor gives it back."""
        value = super().run_node(n)
        return self.visit(n, value) if isinstance(value, Tensor) else value

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name, from every input."""
        values = self.run(*(inputs[name] for name in self.program.input_names))
        return dict(zip(self.program.output_names, values, strict=True))


@torch.no_grad()
def watch(
    feed: Feed,
    look: Callable[[fx.Node, Tensor], None],
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Run every clip through its program, states carried from zero within a clip, and show `look` what nodes yield.

    Raises:
        CalibrationError: `look` raised FloatingPointError.
    """

    def visit(node: fx.Node, value: Tensor) -> Tensor:
        look(node, value)
        return value

    watched = Watched(feed.program, visit)
    states: dict[str, Tensor] = {}
    for done, (clip, index) in enumerate(feed.places, start=1):
        states = feed.zeros(clip) if index == 0 else states
        try:
            outputs = watched.outputs({**feed.frame(clip, index), **states})
        except FloatingPointError as error:
            place = f"frame {index + 1} of clip {clip + 1}"
            raise CalibrationError(f"{error} on {place}: check the clips and the weights") from error
        states = {pair.input: outputs[pair.output] for pair in feed.program.states}
        progress(done, len(feed.places), "calibrate")

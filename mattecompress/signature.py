"""What goes into a network and what comes out: names, shapes and recurrent states."""

from dataclasses import dataclass

from mattecompress.program import StatePair

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a network's inputs (float32), names of its outputs, and which of them are states.

    A size is an int, or an expression over symbols such as `16*h`: that axis then stays open.
    """

    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[str, ...]
    states: tuple[StatePair, ...] = ()

"""What goes into a network and what comes out: names, shapes and recurrent states."""

from dataclasses import dataclass

from mattecompress.errors import UserError
from mattecompress.options import nearest
from mattecompress.program import StatePair

Shape = tuple[int | str, ...]


class SignatureError(UserError):
    """Names of inputs, outputs and states do not go together."""


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a network's inputs (float32), names of its outputs, and which of them are states.

    A size is an int, or an expression over symbols such as `16*h`: that axis then stays open.

    Raises:
        SignatureError: a name is given twice, or a state names no input or no output.
    """

    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[str, ...]
    states: tuple[StatePair, ...] = ()

    def __post_init__(self) -> None:
        inputs = tuple(name for name, _ in self.inputs)
        for kind, names in (("input", inputs), ("output", self.outputs)):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise SignatureError(f"two {kind}s are called '{twice[0]}': give each a name of its own")
        for state in self.states:
            for kind, name, known in (("input", state.input, inputs), ("output", state.output, self.outputs)):
                if name not in known:
                    raise SignatureError(
                        f"state {state.input}={state.output}: no {kind} is called '{name}'{nearest(name, known)}"
                    )

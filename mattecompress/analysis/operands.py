"""What the calls of operators are given."""

from typing import Any

import torch
from torch import fx

from mattecompress.facts import Facts
from mattecompress.program import Program

aten = torch.ops.aten


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Every argument of an operator call by name, defaults filled in."""
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    values = {parameter.name: parameter.default_value for parameter in parameters}
    given = {parameter.name: value for parameter, value in zip(parameters, node.args, strict=False)}
    return {**values, **given, **node.kwargs}


def is_flat(program: Program, constant: fx.Node) -> bool:
    """Whether a constant is one number, or one for each channel of its reader."""
    shape = program.facts(constant).sizes
    slopes = all(reader.target is aten.prelu.default for reader in constant.users)
    if len(shape) < 2:
        return slopes or shape in ((), (1,))
    return shape[-2:] == (1, 1) and (len(shape) == 3 or shape[0] == 1)


def promoted_type(left: Any, right: Any) -> torch.dtype:
    """The element type that torch computes in where it is given two nodes, or a node and a number."""
    return torch.result_type(_stand_in(left), _stand_in(right))


def _stand_in(operand: Any) -> Any:
    """What takes an operand's part in torch's promotion rules."""
    if not isinstance(operand, fx.Node):
        return operand
    facts: Facts = operand.meta["facts"]
    return 0 if facts.dtype is None else torch.empty([1] * len(facts.shape), dtype=facts.dtype, device="meta")

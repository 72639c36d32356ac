"""What the calls of operators are given."""

from typing import Any

import torch
from torch import fx

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

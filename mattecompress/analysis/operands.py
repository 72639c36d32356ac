"""What the calls of operators are given."""

from typing import Any

from torch import fx


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Every argument of an operator call by name, defaults filled in."""
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    values = {parameter.name: parameter.default_value for parameter in parameters}
    given = {parameter.name: value for parameter, value in zip(parameters, node.args, strict=False)}
    return {**values, **given, **node.kwargs}

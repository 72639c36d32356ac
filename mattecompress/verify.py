"""The rules that every program obeys, before and after each pass."""

from collections.abc import Callable, Iterator

import torch
from torch import fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.analysis.propagation import program_symbols
from mattecompress.errors import InternalError
from mattecompress.facts import Facts, size_symbols
from mattecompress.program import Program, fetch_tensor, namespace
from mattecompress.text import print_node
from mattecompress.text_parser import INTEGER_OPERATIONS

Violation = tuple[fx.Node | None, str]
Rule = Callable[[Program], Iterator[Violation]]

_FACTORIES = ("arange", "full", "zeros", "ones", "scalar_tensor")
_NUMBERS = tuple((f"aten::{name}", "other") for name in ("add", "sub", "mul", "div"))
"""Operators of two tensors whose second may be a number."""


class VerifyError(InternalError):
    """A program breaks a rule; the message gives the node, the rule and the lines around it."""


def verify(program: Program) -> None:
    """Check every rule.

    Raises:
        VerifyError: at the first rule that is broken.
    """
    for rule in RULES:
        for node, message in rule(program):
            raise VerifyError(_explain(program, node, message))


def names_are_unique(program: Program) -> Iterator[Violation]:
    """Each output has one name and each state pairs an input with an output."""
    if len(set(program.output_names)) != len(program.output_names):
        yield None, f"an output name is given twice: {', '.join(program.output_names)}"
    for state in program.states:
        if state.input not in program.input_names:
            yield None, f"state {state.input} is no input"
        if state.output not in program.output_names:
            yield None, f"state {state.output} is no output"


def nodes_have_facts(program: Program) -> Iterator[Violation]:
    """Every node but the output has facts."""
    for node in program.graph.nodes:
        if node.op != "output" and not isinstance(node.meta.get("facts"), Facts):
            yield node, "has no facts"


def sizes_follow_from_inputs(program: Program) -> Iterator[Violation]:
    """Every size is a number, or an expression over symbols in the sizes of the inputs."""
    known = set(program_symbols(program))
    for node in program.graph.nodes:
        sizes = program.facts(node).shape if node.op != "output" else ()
        strangers = {symbol for size in sizes for symbol in size_symbols(size)} - known
        if strangers:
            yield node, f"no input has a size {min(strangers)}"


def operators_are_pure(program: Program) -> Iterator[Violation]:
    """Every call is a pure `aten` or `matte` operator on tensors, integer arithmetic, or a registered module."""
    for node in program.operations():
        if node.op == "call_module" or getattr(node.target, "__name__", "") in INTEGER_OPERATIONS:
            continue
        if namespace(node) not in ("aten", "matte"):
            yield node, f"{node.target} is neither aten nor matte"
            continue
        schema = node.target._schema  # type: ignore[union-attr]
        if schema.is_mutable:
            yield node, f"{node.target} changes its input in place"
        takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
        if not takes_tensor and schema.name.partition("::")[2] not in _FACTORIES:
            yield node, f"{node.target} takes no tensor"


def operators_get_their_arguments(program: Program) -> Iterator[Violation]:
    """Every operator gets each argument that it needs, a tensor where it takes one, and no argument that it lacks."""
    for node in program.operations():
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        known = {argument.name: argument for argument in schema.arguments}
        if len(node.args) > len(known) or not node.kwargs.keys() <= known.keys():
            yield node, f"{node.target} takes {', '.join(known)}"
            continue
        given = dict(zip(known, node.args, strict=False)) | node.kwargs
        for name, argument in known.items():
            if name not in given and not argument.has_default_value():
                yield node, f"{node.target} needs {name}"
            kinds = fx.Node | int | float if (schema.name, name) in _NUMBERS else fx.Node
            if str(argument.type) == "Tensor" and name in given and not isinstance(given[name], kinds):
                yield node, f"{node.target} takes a tensor as {name}"


def tensors_exist(program: Program) -> Iterator[Violation]:
    """Every `get_attr` finds its tensor."""
    for node in program.graph.nodes:
        if node.op == "get_attr":
            try:
                fetch_tensor(program.graph_module, str(node.target))
            except (AttributeError, AssertionError):
                yield node, f"tensor @{node.target} is absent"


def modules_are_registered(program: Program) -> Iterator[Violation]:
    """Every called module is one of ours, with a configuration."""
    for node in program.called_modules():
        if not hasattr(program.module(node), "config"):
            yield node, f"module {type(program.module(node)).__name__} is not in the registry"


def states_keep_their_shape(program: Program) -> Iterator[Violation]:
    """A state goes out with the shape and type that it came in with."""
    inputs = dict(zip(program.input_names, program.inputs, strict=True))
    for state in program.states:
        given, returned = program.facts(inputs[state.input]), program.facts(program.outputs[state.output])
        if (given.shape, given.dtype) != (returned.shape, returned.dtype):
            yield (
                program.outputs[state.output],
                f"state {state.output} is {returned.type_text}, its input {given.type_text}",
            )


def binary_convolutions_are_packed_alike(program: Program) -> Iterator[Violation]:
    """Bits and weights of a lowered binary convolution are packed to the same number of bytes."""
    for node in program.find(torch.ops.matte.binary_conv2d.default):
        bits, weight, groups = node.args[0], node.args[1], node.args[6]
        assert isinstance(bits, fx.Node) and isinstance(weight, fx.Node) and isinstance(groups, int)
        if program.facts(bits).shape[3] != int(program.facts(weight).shape[3]) * groups:
            yield (
                node,
                f"bits hold {program.facts(bits).shape[3]} bytes, weights {program.facts(weight).shape[3]}",
            )


RULES: tuple[Rule, ...] = (
    names_are_unique,
    nodes_have_facts,
    sizes_follow_from_inputs,
    operators_are_pure,
    operators_get_their_arguments,
    tensors_exist,
    modules_are_registered,
    states_keep_their_shape,
    binary_convolutions_are_packed_alike,
)


def _explain(program: Program, node: fx.Node | None, message: str) -> str:
    if node is None:
        return message
    around = [other for other in (node.prev, node, node.next) if isinstance(other.meta.get("facts"), Facts)]
    lines = [f"  {print_node(program, other)}" for other in around if other.op != "get_attr"]
    return "\n".join([f"%{node.name}: {message}", *lines])

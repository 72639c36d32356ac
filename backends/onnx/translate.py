"""From a program's nodes to ONNX operations, one rule a node."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from mattecompress.backends.onnx import attention, elementwise, lowered, shaping, spatial, tokens, trainable
from mattecompress.backends.onnx.call import Call
from mattecompress.backends.onnx.graph import RefusalError, Writer
from mattecompress.program import Level, Program

OPERATORS = {**elementwise.RULES, **shaping.RULES, **spatial.RULES, **attention.RULES, **lowered.RULES}
MODULES = {**trainable.RULES, **tokens.RULES}


@dataclass(frozen=True)
class Translation:
    """A program as ONNX operations: the writer that holds them, and the value behind each output name."""

    writer: Writer
    outputs: dict[str, str]


def refusal(program: Program, node: fx.Node) -> str | None:
    """Why a node has no exact ONNX form; None when it has one. Writes a trial and throws it away."""
    writer = Writer()
    writer.values = {argument: argument.name for argument in node.all_input_nodes}
    try:
        _rule(program, node)(Call(node, writer))
    except RefusalError as error:
        return str(error)
    return None


def translate(program: Program, exact: bool = True) -> Translation:
    """The whole program.

    exact: where the program rounds to codes or signs, and so turns a difference in the last place into a step, write
        functions as torch computes them.

    Raises:
        RefusalError: a node has no exact ONNX form.
    """
    writer = Writer([*program.input_names, *program.output_names], exact and program.level is not Level.FLOAT)
    names = _computed_outputs(program)
    for node in program.graph.nodes:
        match node.op:
            case "placeholder":
                writer.values[node] = str(node.target)
            case "get_attr" if node.users:
                writer.values[node] = writer.tensor(str(node.target), program.tensor(node))
            case "call_function" | "call_module":
                writer.values[node] = _write(program, node, writer, names.get(node))
    outputs = {name: _output(writer, name, writer.values[node]) for name, node in program.outputs.items()}
    _drop_unread(writer, set(outputs.values()))
    return Translation(writer, outputs)


def _computed_outputs(program: Program) -> dict[fx.Node, str]:
    """The name that a node takes from the first output it stands for."""
    names: dict[fx.Node, str] = {}
    for name, node in program.outputs.items():
        if node.op in ("call_function", "call_module"):
            names.setdefault(node, name)
    return names


def _write(program: Program, node: fx.Node, writer: Writer, output: str | None) -> str:
    start = len(writer.operations)
    value = _rule(program, node)(Call(node, writer))
    written = writer.operations[start:]
    for operation in written:
        operation.notes = _notes(program, node)
    if not any(operation.output == value for operation in written):
        return value
    name = output or writer.name(node.name)
    writer.rename(value, name, since=start)
    return name


def _output(writer: Writer, name: str, value: str) -> str:
    if value == name:
        return value
    copy = writer.emit(name, "Identity", [value])
    writer.rename(copy, name, since=len(writer.operations) - 1)
    return name


def _drop_unread(writer: Writer, outputs: set[str]) -> None:
    """Remove initializers that no operation reads, such as weights that a rule stored in another form."""
    read = {name for operation in writer.operations for name in operation.inputs} | outputs
    writer.initializers = {name: value for name, value in writer.initializers.items() if name in read}


def _notes(program: Program, node: fx.Node) -> dict[str, str]:
    facts = program.facts(node)
    known = {
        "node": node.name,
        "region": facts.region,
        "scope": facts.scope,
        "precision": facts.precision,
        "mask": facts.mask,
        "made": facts.made,
    }
    return {key: str(value) for key, value in known.items() if value}


def _rule(program: Program, node: fx.Node) -> Callable[[Call], str]:
    if node.op == "call_module":
        kind = type(program.module(node)).__name__
        if kind not in MODULES:
            raise RefusalError(f"module {kind} has no ONNX form")
        return MODULES[kind]
    if node.target not in OPERATORS:
        raise RefusalError(f"operator {node.target} has no ONNX form")
    return OPERATORS[node.target]

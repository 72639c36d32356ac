"""The text form of a program: one line a node, typed, deterministic; it prints and parses back.

    matte 1
    program rvm level=float
    model rvm-mobilenetv3
    state r1i <- r1o
    scope backbone.features.1 InvertedResidual
    module @bn BatchNorm2d{features=16}
    parameter @conv.weight f32[16,3,3,3] 5f1c02a9d3e4
    %src : f32[1,3,16*h,16*w] = input
    %conv2d : f32[1,16,8*h,8*w] = aten.conv2d.default(%src, @conv.weight, none, [2, 2]) scope=conv
    return fgr=%clamp pha=%clamp_1

`%` names a node, `@` a tensor or module. Tensors are named with a digest of their bytes; the bytes
themselves stand in the file beside the text.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from mattecompress.facts import DTYPE_NAMES, Facts, Precision, Provenance, parse_size
from mattecompress.options import format_options
from mattecompress.program import PassRecord, Program

FORMAT = "matte 1"


def print_program(program: Program) -> str:
    """The text form; equal programs give equal bytes."""
    lines = [
        FORMAT,
        f"program {program.name} level={program.level.value}",
        *_header(program),
        *_contents(program),
    ]
    lines += [
        print_node(program, node) for node in program.graph.nodes if node.op not in ("get_attr", "output")
    ]
    returned = " ".join(f"{name}=%{node.name}" for name, node in program.outputs.items())
    return "\n".join([*lines, f"return {returned}", ""])


def print_node(program: Program, node: fx.Node) -> str:
    """One node's line."""
    facts = program.facts(node)
    return f"%{node.name} : {facts.type_text} = {_operation(node)}{_notes(facts)}"


def digest(tensor: Tensor) -> str:
    """Twelve hexadecimal digits that change when any byte of the tensor does."""
    raw = (
        tensor.detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
    )
    return hashlib.sha256(raw.tobytes()).hexdigest()[:12]


def print_record(record: PassRecord) -> str:
    """A pass's line in the header."""
    return f"pass {record.text} seed={record.seed}"


def _header(program: Program) -> Iterator[str]:
    if program.source.model:
        yield f"model {program.source.model}"
    for absent in program.source.absent:
        yield f"absent @{absent.name} [{','.join(map(str, absent.shape))}] {absent.bits}"
    yield from map(print_record, program.history)
    for state in program.states:
        yield f"state {state.input} <- {state.output}"
    for path, kind in program.scopes.items():
        yield f"scope {path} {kind}"


def _contents(program: Program) -> Iterator[str]:
    for node in program.called_modules():
        module: Any = program.module(node)
        yield f"module @{node.target} {format_options(type(module).__name__, module.config)}"
    trained = dict(program.graph_module.named_parameters())
    for name, tensor in program.state_dict().items():
        shape = ",".join(map(str, tensor.shape))
        kind = "parameter" if name in trained else "buffer"
        yield f"{kind} @{name} {DTYPE_NAMES[tensor.dtype]}[{shape}] {digest(tensor)}"


def _operation(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    arguments = [format_argument(value) for value in node.args]
    arguments += [f"{key}={format_argument(value)}" for key, value in node.kwargs.items()]
    return f"{target_text(node)}({', '.join(arguments)})"


def target_text(node: fx.Node) -> str:
    """`aten.conv2d.default`, `operator.mul`, or `@path` of a module."""
    if node.op == "call_module":
        return f"@{node.target}"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return f"operator.{getattr(node.target, '__name__', node.target)}"


def _notes(facts: Facts) -> str:
    notes = {
        "scope": facts.scope,
        "region": facts.region,
        "precision": facts.precision,
        "mask": facts.mask,
        "made": facts.made,
    }
    return "".join(f" {key}={value}" for key, value in notes.items() if value)


def format_argument(value: Any) -> str:
    """One argument: `%node`, `@tensor`, a number, `true`, `none`, `"text"`, `f32`, or a list of these."""
    match value:
        case fx.Node(op="get_attr"):
            return f"@{value.target}"
        case fx.Node():
            return f"%{value.name}"
        case list() | tuple():
            return f"[{', '.join(map(format_argument, value))}]"
        case str():
            return f'"{value}"'
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case torch.dtype():
            return DTYPE_NAMES[value]
        case int() | float():
            return repr(value)
    raise TypeError(f"an argument of type {type(value).__name__} has no text form")


def parse_type(text: str) -> tuple[str, tuple[int | str, ...]]:
    """`f32[1,3,16*h]` -> ("f32", (1, 3, "16*h")); `int` -> ("int", ()).

    Raises:
        ValueError: it is no type, or a size in it is no expression of symbols and integers.
    """
    match = re.fullmatch(r"(\w+)(?:\[(.*)\])?", text)
    if match is None:
        raise ValueError(f"'{text}' is no type")
    sizes = [size for size in (match[2] or "").split(",") if size]
    return match[1], tuple(map(parse_size, sizes))


def parse_notes(text: str) -> dict[str, Any]:
    """The facts that stand after an operation.

    Raises:
        ValueError: one has no value, or is not of its form.
    """
    notes: dict[str, Any] = dict(item.split("=", 1) for item in text.split())
    for name, value in notes.items():
        if not value:
            raise ValueError(f"'{name}=' says nothing")
    if "precision" in notes:
        notes["precision"] = Precision.parse(notes["precision"])
    if "made" in notes:
        notes["made"] = Provenance.parse(notes["made"])
    return notes

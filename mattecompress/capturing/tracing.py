"""From an `nn.Module` to a float program: `torch.export`, then one value a node, no mutation, batch norms as modules."""

import copy
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from mattecompress.analysis.propagation import propagate
from mattecompress.capturing.leaves import call_registered, keep_registered
from mattecompress.capturing.normalization import normalize_graph
from mattecompress.errors import UserError
from mattecompress.facts import Facts, evaluate_size, size_symbols
from mattecompress.program import (
    AbsentParameter,
    Program,
    Source,
    describe_parameters,
    fetch_tensor,
    numbered,
    owner_of,
)
from mattecompress.signature import Signature
from mattecompress.verify import VerifyError, verify

_EXAMPLE_SIZES = (3, 5, 2, 7)


class CaptureError(UserError):
    """`torch.export` could not capture the network; the message names the line that blocked it."""


def capture(
    model: nn.Module, signature: Signature, name: str, options: Mapping[str, Any] | None = None
) -> Program:
    """The program of a network in evaluation mode.

    model: any module that `torch.export` takes; its parameters are copied. Trainable modules of
        `mattecompress.modules` within it are called by the program.
    signature: names and shapes of inputs and outputs; symbolic sizes stay open.
    options: further arguments of `forward` that are fixed in the program, such as a downsample ratio.

    Raises:
        CaptureError: the network cannot be exported, is no program, or does not fit its signature.
    """
    model = copy.deepcopy(model).eval()
    keep_registered(model)
    exported = _export(model, signature, dict(options or {}))
    module = exported.module(check_guards=False)
    call_registered(module, model)
    normalize_graph(module)
    _name_inputs(module.graph, signature)
    _check_outputs(module.graph, signature)
    scopes = _read_scopes(module.graph, model)
    rebuilt = _rebuild(module)
    source = Source(name, _absent_parameters(model, rebuilt))
    program = Program(name, rebuilt, signature.outputs, signature.states, scopes, source)
    for node, (_, shape) in zip(program.inputs, signature.inputs, strict=True):
        node.meta["facts"] = Facts(shape, torch.float32)
    for node in program.called_modules():
        node.meta["facts"] = program.facts(node).but(
            precision=getattr(program.module(node), "precision", None)
        )
    propagate(program)
    try:
        verify(program)
    except VerifyError as error:
        raise CaptureError(f"cannot capture {name}: {str(error).splitlines()[0]}") from error
    return program


def _export(model: nn.Module, signature: Signature, options: dict[str, Any]) -> torch.export.ExportedProgram:
    shapes = [shape for _, shape in signature.inputs]
    symbols = list(dict.fromkeys(s for shape in shapes for size in shape for s in size_symbols(size)))
    examples = dict(zip(symbols, _EXAMPLE_SIZES, strict=False))
    arguments = tuple(_example([evaluate_size(size, examples) for size in shape]) for shape in shapes)
    dims: dict[str, Any] = {symbol: torch.export.Dim(symbol, min=1, max=4096) for symbol in symbols}
    dynamic = tuple(
        {axis: evaluate_size(size, dims) for axis, size in enumerate(shape) if isinstance(size, str)}
        for shape in shapes
    )
    dynamic_by_name = _by_parameter(model, dynamic) | dict.fromkeys(options)
    try:
        return torch.export.export(
            model, arguments, kwargs=options, dynamic_shapes=dynamic_by_name if symbols else None
        )
    except Exception as error:
        raise CaptureError(_blame(error)) from error


def _example(sizes: Sequence[int]) -> Tensor:
    try:
        return torch.rand(*sizes)
    except RuntimeError as error:
        shape = "x".join(map(str, sizes))
        raise CaptureError(f"an input of {shape} does not fit into memory: give a smaller size") from error


def _by_parameter(model: nn.Module, values: Sequence[Any]) -> dict[str, Any]:
    """One value for each input, by the names of `forward`; those of a `*parameter` as a tuple."""
    try:
        return dict(inspect.signature(model.forward).bind_partial(*values).arguments)
    except TypeError as error:
        raise CaptureError(f"{len(values)} shapes were given, the network takes fewer inputs") from error


def _blame(error: Exception) -> str:
    """One line: the reason, and the innermost line of the user's own code."""
    text = str(error)
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    places = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    frame = error.__traceback__
    while frame is not None:
        places.append(
            (frame.tb_frame.f_code.co_filename, str(frame.tb_lineno), frame.tb_frame.f_code.co_name)
        )
        frame = frame.tb_next
    own = [place for place in places if _is_own_code(Path(place[0]))]
    where = f" at {own[-1][0]}:{own[-1][1]} in {own[-1][2]}" if own else ""
    return f"cannot capture{where}: {reason[:300]}"


def _is_own_code(path: Path) -> bool:
    """Neither a library's nor this package's nor Python's own file."""
    libraries = ("site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}")
    return path.is_file() and path != Path(__file__) and not any(part in libraries for part in path.parts)


def _name_inputs(graph: fx.Graph, signature: Signature) -> None:
    names = [name for name, _ in signature.inputs]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders[len(names) :]:
        graph.erase_node(node)
    taken = {node.name for node in graph.nodes} | set(names)
    for node in graph.nodes:
        if node.name in names and node not in placeholders:
            node.name = next(name for name in numbered(node.name) if name not in taken)
            taken.add(node.name)
    for node, name in zip(placeholders, names, strict=False):
        node.target = name
        node.name = name


def _check_outputs(graph: fx.Graph, signature: Signature) -> None:
    (values,) = graph.output_node().args
    found = len(values)  # type: ignore[arg-type]
    if found != len(signature.outputs):
        raise CaptureError(
            f"the network yields {found} outputs, {len(signature.outputs)} names were given: "
            f"{', '.join(signature.outputs)}"
        )


def _read_scopes(graph: fx.Graph, model: nn.Module) -> dict[str, str]:
    """Write each node's module path into its facts; return the classes of the network's own modules."""
    kinds = {path: type(module) for path, module in model.named_modules() if path}
    scopes: dict[str, str] = {}
    for node in graph.nodes:
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path in kinds]
        node.meta = {"facts": Facts((), None, scope=stack[-1] if stack else "")}
        own = (path for path in stack if not kinds[path].__module__.startswith("torch.nn."))
        scopes.update({path: kinds[path].__name__ for path in own})
    return dict(sorted(scopes.items()))


def _rebuild(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module that holds just what the graph reads, each tensor read by one node at the top."""
    graph, root = module.graph, nn.Module()
    readers: dict[str, fx.Node] = {}
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op == "call_module":
            owner, leaf = owner_of(root, str(node.target), create=True)
            owner.add_module(leaf, module.get_submodule(str(node.target)))
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name in readers:
            node.replace_all_uses_with(readers[name])
            graph.erase_node(node)
            continue
        readers[name] = node
        first.prepend(node)
        _place(root, name, fetch_tensor(module, name))
    graph.set_codegen(fx.graph.CodeGen())
    graph.lint()
    rebuilt = fx.GraphModule(root, graph)
    rebuilt.eval()
    return rebuilt


def _place(root: nn.Module, name: str, value: Tensor) -> None:
    owner, leaf = owner_of(root, name, create=True)
    kept = value if isinstance(value, nn.Parameter) else nn.Buffer(value.detach().clone())
    setattr(owner, leaf, kept)


def _absent_parameters(model: nn.Module, rebuilt: nn.Module) -> tuple[AbsentParameter, ...]:
    read = {name for name, _ in rebuilt.named_parameters()}
    parts = [*describe_parameters(model)]
    for path, part in model.named_modules():
        unloaded: tuple[AbsentParameter, ...] = getattr(part, "absent_parameters", ())
        parts += [replace(parameter, name=f"{path}.{parameter.name}") for parameter in unloaded]
    return tuple(part for part in parts if part.name not in read)

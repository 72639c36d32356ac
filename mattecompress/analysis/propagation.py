"""Deriving every node's shape and dtype by running the graph on tensors without data."""

from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from mattecompress.errors import UserError
from mattecompress.facts import Facts, evaluate_size, size_symbols
from mattecompress.program import Program

SYMBOL_HINT = 13


class ShapeError(UserError):
    """A node cannot compute on the shapes it is given."""


class _Propagator(fx.Interpreter):
    """Runs on fake tensors and writes what it sees into the nodes' facts."""

    def __init__(
        self, program: Program, mode: FakeTensorMode, names: dict[sympy.Symbol, sympy.Symbol]
    ) -> None:
        super().__init__(program.graph_module)
        self.mode = mode
        self.names = names

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value.detach(), static_shapes=True)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        shaped = getattr(self.fetch_attr(target), "shaped", None)
        return shaped(*args) if shaped else super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ShapeError(f"%{n.name} ({n.target}) does not fit its inputs: {reason}") from error
        if n.op != "output":
            shape, dtype = self.describe(value)
            known = n.meta.get("facts", Facts((), None))
            n.meta["facts"] = known.but(shape=shape, dtype=dtype)
            n.meta["value"] = value if isinstance(value, int) else None
        return value

    def describe(self, value: Any) -> tuple[tuple[int | str, ...], torch.dtype | None]:
        if isinstance(value, Tensor):
            return tuple(self.size(size) for size in value.shape), value.dtype
        return (self.size(value),), None

    def size(self, size: Any) -> int | str:
        if isinstance(size, torch.SymInt):
            expression = size.node.expr.xreplace(self.names)
            return int(expression) if expression.is_Integer else str(expression).replace(" ", "")
        return int(size)


def propagate(program: Program) -> Program:
    """Bring shape and dtype of every node up to date, from those of the inputs; other facts stay.

    Returns the same program, changed in place. Every node also gets `meta["value"]`: the integer that it
    always yields, or None.

    Raises:
        ShapeError: a node cannot compute on the shapes that reach it.
    """
    environment = ShapeEnv()
    symbols: dict[str, Any] = {}
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    for name in program_symbols(program):
        hint = SYMBOL_HINT + 2 * len(symbols)
        inner = environment.create_symbol(hint, ConstantSource(name), DimDynamic.DYNAMIC, constraint_dim=None)
        symbols[name] = environment.create_symintnode(inner, hint=hint)
        names[inner] = sympy.Symbol(name, integer=True)
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    with mode, enable_python_dispatcher(), torch.no_grad():
        inputs = [_fake_input(program.facts(node), symbols) for node in program.inputs]
        _Propagator(program, mode, names).run(*inputs)
    return program


def program_symbols(program: Program) -> list[str]:
    """Symbols in the shapes of the inputs, in order of appearance."""
    sizes = [size for node in program.inputs for size in program.facts(node).shape]
    return list(dict.fromkeys(symbol for size in sizes for symbol in size_symbols(size)))


def _fake_input(facts: Facts, symbols: dict[str, Any]) -> Tensor:
    return torch.empty([evaluate_size(size, symbols) for size in facts.shape], dtype=facts.dtype)

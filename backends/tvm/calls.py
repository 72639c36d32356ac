"""The calls of kernels in `main`, and the nodes of the program that each computes.

The importer knows for which nodes it calls a kernel. Fusion makes one call of several and names nothing, so its groups
are followed by value: a call in a group computes what the call of the same kernel with the same operands did before.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tvm import IRModule, ir, relax

NODES = "matte.nodes"
"""The attribute of `main` that has for each call, in order, the names of the nodes it was made for."""


def kernel_calls(function: relax.Function) -> list[relax.Call]:
    """What a function calls with `call_tir`, in order."""
    return [value for _, value in _bindings(function) if is_kernel_call(value)]


def is_kernel_call(value: Any) -> bool:
    """Whether a value is that of one kernel."""
    return isinstance(value, relax.Call) and bool(value.op.same_as(ir.Op.get("relax.call_tir")))


def nodes_of(module: IRModule) -> list[tuple[str, ...]]:
    """For each call of `main`, in order, the names of its nodes."""
    return [tuple(map(str, names)) for names in module["main"].attrs[NODES]]


def with_nodes(module: IRModule, nodes: Sequence[Sequence[str]]) -> IRModule:
    """The module, its `main` with these names."""
    main = module["main"].with_attr(NODES, [list(names) for names in nodes])
    module.update_func(module.get_global_var("main"), main)
    return module


def follow(before: IRModule, after: IRModule) -> list[tuple[str, ...]]:
    """The names for each call of `after`, whose groups `FuseOps` has made of the calls of `before`."""
    known = _Values()
    made: dict[Any, list[tuple[str, ...]]] = {}
    names = iter(nodes_of(before))
    for variable, value in _bindings(before["main"]):
        known.add(variable, value)
        if is_kernel_call(value):
            made.setdefault(known.numbers[variable], []).append(next(names))
    found = []
    for variable, value in _bindings(after["main"]):
        members: list[tuple[str, ...]] = []
        for inner in known.enter(variable, value, after):
            alike = made.get(inner, [()])
            members.append(alike.pop(0) if len(alike) > 1 else alike[0])
        if members:
            found.append(tuple(dict.fromkeys(name for each in members for name in each)))
    return found


class _Values:
    """Numbers variables by value: two have the same where they are computed alike from operands of the same numbers."""

    def __init__(self) -> None:
        self.numbers: dict[Any, Any] = {}
        self.keys: dict[Any, int] = {}

    def number(self, value: Any) -> Any:
        """Of a variable what it was numbered, of a tuple those in it, of all else itself."""
        if isinstance(value, relax.Tuple):
            return tuple(map(self.number, value.fields))
        return self.numbers.get(value, value)

    def add(self, variable: relax.Var, value: Any) -> None:
        """Number a variable by what is bound to it."""
        if is_kernel_call(value):
            key: Any = (value.args[0].name_hint, *map(self.number, value.args[1:]))
        elif isinstance(value, relax.TupleGetItem):
            key = (self.number(value.tuple_value), value.index)
        else:
            self.numbers[variable] = self.number(value)
            return
        self.numbers[variable] = self.keys.setdefault(key, len(self.keys))

    def enter(self, variable: relax.Var, value: Any, module: IRModule) -> Iterator[Any]:
        """Number a variable, and yield the numbers of the kernels that it is computed by: one, or those of a group."""
        if isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar):
            group = module[value.op]
            for parameter, operand in zip(group.params, value.args, strict=True):
                self.numbers[parameter] = self.number(operand)
            for inner, computed in _bindings(group):
                yield from self.enter(inner, computed, module)
            self.numbers[variable] = self.number(group.body.body)
            return
        self.add(variable, value)
        if is_kernel_call(value):
            yield self.numbers[variable]


def _bindings(function: relax.Function) -> Iterator[tuple[relax.Var, Any]]:
    for block in function.body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value

"""Reads a Relax `main` as a straight sequence of kernel calls."""

from typing import Any

import tvm
from tvm import relax

from mattecompress.backends.tvm.freestanding.plan import Call, CallSequence, PlanError, TensorSpec

ALIASES = (
    "relax.reshape",
    "relax.flatten",
    "relax.squeeze",
    "relax.expand_dims",
    "relax.memory.view",
    "relax.memory.ensure_zero_offset",
)


def read_sequence(
    module: tvm.IRModule, input_names: tuple[str, ...], output_names: tuple[str, ...]
) -> CallSequence:
    """The calls of `main`, whose parameters and results are named in order.

    `main` may hold `call_tir` over static shapes, tuples, constants, and reshapes that move no data.

    Raises:
        PlanError: anything else, with the binding that is not understood.
    """
    return _Reader(module["main"]).read(input_names, output_names)


class _Reader:
    """Numbers storages while it walks the bindings; a variable stands for one storage or a tuple of them."""

    def __init__(self, function: relax.Function) -> None:
        self.function = function
        self.sizes: list[int] = []
        self.constants: dict[int, bytes] = {}
        self.calls: list[Call] = []
        self.values: dict[Any, Any] = {}

    def read(self, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> CallSequence:
        parameters = list(self.function.params)
        if len(parameters) != len(input_names):
            raise PlanError(f"main takes {len(parameters)} tensors, but {len(input_names)} inputs are named")
        inputs = []
        for name, parameter in zip(input_names, parameters, strict=True):
            self.values[parameter] = self._storage(parameter.ty)
            inputs.append((_spec(name, parameter.ty), self.values[parameter]))
        for block in self.function.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = self._bind(binding)
        results = _flat(self._value(self.function.body.body))
        types = _flat_types(self.function.body.body.ty)
        if len(results) != len(output_names):
            raise PlanError(f"main returns {len(results)} tensors, but {len(output_names)} outputs are named")
        outputs = [
            (_spec(name, kind), storage)
            for name, kind, storage in zip(output_names, types, results, strict=True)
        ]
        return CallSequence(
            tuple(self.sizes), tuple(self.calls), tuple(inputs), tuple(outputs), self.constants
        )

    def _bind(self, binding: Any) -> Any:
        value = binding.value
        operation = getattr(getattr(value, "op", None), "name", None)
        if operation == "relax.call_tir":
            return self._call(binding)
        if operation in ALIASES:
            return self._value(value.args[0])
        return self._value(value)

    def _call(self, binding: Any) -> Any:
        function, arguments, *symbolic = binding.value.args
        if symbolic:
            raise PlanError(
                f"%{binding.var.name}: a kernel with shapes unknown until it runs; run set-resolution first"
            )
        reads = tuple(_flat(self._value(arguments)))
        results = [self._storage(kind) for kind in _flat_types(binding.value.ty)]
        self.calls.append(Call(str(function.name_hint), reads, tuple(results)))
        return results if isinstance(binding.value.ty, relax.TupleType) else results[0]

    def _value(self, value: Any) -> Any:
        if value in self.values:
            return self.values[value]
        if isinstance(value, relax.Tuple):
            return [self._value(field) for field in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._value(value.tuple_value)[int(value.index)]
        if isinstance(value, tvm.ir.GenericConst):
            return self._constant(value)
        raise PlanError(f"main is no sequence of kernel calls: it holds {str(value).splitlines()[0][:80]}")

    def _constant(self, value: Any) -> int:
        storage = self._storage(value.ty)
        self.constants[storage] = value.value.numpy().tobytes()
        self.values[value] = storage
        return storage

    def _storage(self, kind: Any) -> int:
        self.sizes.append(_spec("", kind).bytes)
        return len(self.sizes) - 1


def _flat(value: Any) -> list[int]:
    return list(value) if isinstance(value, list) else [value]


def _flat_types(kind: Any) -> list[Any]:
    return list(kind.fields) if isinstance(kind, relax.TupleType) else [kind]


def _spec(name: str, kind: Any) -> TensorSpec:
    try:
        return TensorSpec(name, tuple(int(extent) for extent in kind.shape), str(kind.dtype))
    except (AttributeError, TypeError) as error:
        raise PlanError(
            f"{name or 'a tensor'}: {kind} has no fixed shape; run set-resolution first"
        ) from error

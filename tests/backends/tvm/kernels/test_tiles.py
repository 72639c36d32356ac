import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

pytest.importorskip("tvm")

from tvm import relax, te, tirx

from mattecompress.backends.tvm.compute.operands import ELEMENTWISE
from mattecompress.backends.tvm.kernels.tiles import STACK_BYTES, Registers, choose_tile
from mattecompress.backends.tvm.schedules.pieces import cut_loops
from mattecompress.backends.tvm.targets import find_target
from tests.backends.tvm import calls
from tests.backends.tvm.harness import KERNELS, STORED_AS_IS, nhwc
from tests.ops.cases import Convolution

HOST = find_target("host").tvm()
CASE = Convolution(1, 7, 6, 40, 24, 1, (3, 3), (1, 1), (1, 1), (1, 1), 3)
CALLS = [
    calls.binary_conv2d(CASE, 8, "signs", 0),
    calls.binary_depthwise_conv2d(CASE, 8, "signs", 0),
    calls.quantized_conv2d(CASE, 8, 3),
    calls.quantized_conv2d(CASE, 8, 3, depthwise=True),
]


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([2, 4]),
    st.sampled_from([(16, 32), (16, 16), (64, 32)]),
)
def test_tile_divides_its_layer_and_fits_the_registers(
    outputs: int, pixels: int, unit: int, size: tuple[int, int]
) -> None:
    registers = Registers(*size)
    tile = choose_tile(outputs, pixels, unit, registers)
    assert outputs % tile.outputs == 0
    assert pixels % tile.pixels == 0
    assert tile.pixels * tile.vectors + tile.pixels + tile.vectors <= registers.count
    assert tile.pixels * tile.outputs * unit < STACK_BYTES


def emit_with_epilogue(call: calls.Call, scale: np.ndarray) -> tvm.IRModule:
    """The operation, times a scale per channel, plus a residual, rectified; joined by TVM."""
    op, arguments = call
    graph = fx.Graph()
    nodes = [graph.placeholder(f"t{i}") if isinstance(a, Tensor) else a for i, a in enumerate(arguments)]
    node = graph.call_function(op, tuple(nodes))
    source, shape = stored(call), nhwc(op(*arguments)).shape
    variables = [
        relax.Var("x", relax.TensorType(list(source.shape), str(source.dtype))),
        relax.Var("residual", relax.TensorType(list(shape), "float32")),
    ]

    def times(x: te.Tensor, factor: te.Tensor) -> te.Tensor:
        return te.compute(
            x.shape, lambda n, h, w, c: x(n, h, w, c).astype("float32") * factor(c), name="times"
        )

    def plus(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        zero = tirx.const(0.0, "float32")
        return te.compute(x.shape, lambda *index: tirx.max(x(*index) + y(*index), zero), name="plus")

    builder, pattern = relax.BlockBuilder(), {"op_pattern": ELEMENTWISE}
    with builder.function("main", variables):
        with builder.dataflow():
            value = KERNELS[op][0](builder, node, [variables[0], *arguments[1:]])
            value = builder.emit_te(times, value, relax.const(scale), primfunc_attrs=pattern)
            value = builder.emit_output(builder.emit_te(plus, value, variables[1], primfunc_attrs=pattern))
        builder.emit_func_output(value)
    passes = (relax.transform.FuseOps(), relax.transform.FuseTIR(), relax.transform.DeadCodeElimination())
    return tvm.transform.Sequential(passes)(builder.finalize())


def stored(call: calls.Call) -> np.ndarray:
    return call[1][0].numpy() if call[0] in STORED_AS_IS else nhwc(call[1][0])


@pytest.mark.parametrize("call", CALLS, ids=["binary", "binary depthwise", "integer", "integer depthwise"])
def test_epilogue_is_computed_in_the_tile(call: calls.Call) -> None:
    """Powers of two as scales keep the float arithmetic exact, whatever the code generator contracts."""
    op, arguments = call
    answer = nhwc(op(*arguments))
    generator = np.random.default_rng(0)
    scale = np.float32(2.0) ** generator.integers(-3, 3, answer.shape[-1]).astype(np.float32)
    residual = generator.integers(-50, 50, answer.shape).astype(np.float32)
    with HOST:
        module = emit_with_epilogue(call, scale)
        ((variable, function),) = [
            item for item in module.functions.items() if isinstance(item[1], tirx.PrimFunc)
        ]
        schedule = tvm.s_tir.Schedule(function)
        assert KERNELS[op][1](schedule) is None
        assert 'T.sblock("times")' not in schedule.mod["main"].script()
        scheduled = cut_loops(schedule.mod["main"]).with_attrs(
            {"global_symbol": variable.name_hint, "tirx.is_scheduled": True}
        )
        module.update_func(variable, scheduled)
        machine = relax.VirtualMachine(tvm.compile(module, target=HOST), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(array) for array in (stored(call), residual))).numpy()
    assert np.array_equal(result, np.maximum(answer.astype(np.float32) * scale + residual, 0))

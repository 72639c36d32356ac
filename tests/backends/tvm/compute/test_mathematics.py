"""The polynomials: within two units in the last place of the exact value, in vectors."""

import numpy as np
import pytest
import torch
import tvm
from tvm import te
from tvm.s_tir import Schedule

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.backends.tvm.compute import mathematics
from tests.backends.tvm.nets import HOST

COUNT = 1 << 16


def evaluate(function, x: np.ndarray) -> np.ndarray:
    source = te.placeholder((COUNT,), name="x")
    result = te.compute((COUNT,), lambda i: function(source[i]), name="y")
    schedule = Schedule(te.create_prim_func([source, result]))
    (loop,) = schedule.get_loops(schedule.get_sblock("y"))
    schedule.vectorize(schedule.split(loop, [None, HOST.lanes()])[1])
    kernel = tvm.tirx.build(schedule.mod, target=HOST.tvm())["main"]
    x_tensor, y_tensor = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros_like(x))
    kernel(x_tensor, y_tensor)
    return y_tensor.numpy()


@pytest.mark.parametrize(
    ("function", "exact", "bound", "ulp"),
    [
        (mathematics.exp, np.exp, 80, 2),
        (mathematics.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 80, 3),
        (mathematics.tanh, np.tanh, 20, 2),
    ],
)
def test_units_in_the_last_place(function, exact, bound, ulp):
    x = np.linspace(-bound, bound, COUNT, dtype=np.float32)
    x[: COUNT // 2] /= 40
    expected = exact(x.astype(np.float64))
    errors = np.abs(evaluate(function, x) - expected) / np.spacing(np.abs(expected).astype(np.float32))
    assert errors.max() <= ulp


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_the_references_bits(name):
    """Every float16 as a float32, spread over both ends, and noise between."""
    x = np.arange(COUNT, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = np.where(np.isfinite(x), x, np.float32(0)) * np.float32(1.37)
    noise = np.random.default_rng(0).normal(0, 3, COUNT).astype(np.float32)
    for values in (x, noise):
        expected = getattr(torch.ops.matte, name)(torch.from_numpy(values)).numpy()
        assert (evaluate(getattr(mathematics, name), values) == expected).all()


@pytest.mark.parametrize(
    ("function", "at_low", "at_high"),
    [(mathematics.sigmoid, 0.0, 1.0), (mathematics.tanh, -1.0, 1.0)],
)
def test_far_out_they_saturate(function, at_low, at_high):
    x = np.full(COUNT, 3e38, dtype=np.float32)
    x[::2] = -3e38
    result = evaluate(function, x)
    assert result[0] == pytest.approx(at_low, abs=1e-37)
    assert result[1] == at_high


def test_tanh_is_odd_and_zero_at_zero():
    x = np.linspace(-3, 3, COUNT, dtype=np.float32)
    result = evaluate(mathematics.tanh, x)
    assert (evaluate(mathematics.tanh, -x) == -result).all()
    assert evaluate(mathematics.tanh, np.zeros(COUNT, np.float32)).max() == 0


def test_log_to_two_units_and_gelu_to_a_millionth():
    x = np.geomspace(1e-37, 3e38, COUNT, dtype=np.float32)
    expected = np.log(x.astype(np.float64))
    errors = np.abs(evaluate(mathematics.log, x) - expected) / np.spacing(np.abs(expected).astype(np.float32))
    assert errors.max() <= 2
    x = np.linspace(-12, 12, COUNT, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert (np.abs(evaluate(mathematics.gelu, x) - exact) <= 1e-6 * np.maximum(1, np.abs(x))).all()

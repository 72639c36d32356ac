import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mattecompress.modules import build_module
from mattecompress.modules.elastic_shortcut import ElasticShortcut, ElasticShortcutConfig, map_shortcut
from mattecompress.options import format_options


def mapped_by_the_formula(x: Tensor, outputs: int) -> Tensor:
    """repeat of (g / Cin) * the sum of chunks, as a matrix over channels."""
    inputs = x.shape[1]
    width = math.gcd(inputs, outputs)
    matrix = torch.zeros(outputs, inputs)
    for out in range(outputs):
        for source in range(inputs):
            if source % width == out % width:
                matrix[out, source] = width / inputs
    return torch.einsum("oi,nihw->nohw", matrix, x)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 48), st.integers(1, 48), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2]))
def test_maps_any_channels(inputs: int, outputs: int, height: int, width: int, stride: int) -> None:
    x = torch.randn(2, inputs, height, width, generator=torch.Generator().manual_seed(inputs))
    small = F.avg_pool2d(x, 2, ceil_mode=True) if stride == 2 else x
    expected = mapped_by_the_formula(small, outputs)
    torch.testing.assert_close(map_shortcut(x, outputs, stride), expected, rtol=1e-5, atol=1e-5)


def test_expands_retains_and_reduces() -> None:
    x = torch.arange(4.0).reshape(1, 4, 1, 1)
    assert map_shortcut(x, 8).flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert map_shortcut(x, 4) is x
    assert map_shortcut(x, 2).flatten().tolist() == [1, 2]
    assert map_shortcut(x, 6).flatten().tolist() == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("stride", [1, 2])
def test_adds_the_scaled_shortcut(stride: int) -> None:
    config = ElasticShortcutConfig(24, 40, stride, initial=0.5)  # type: ignore[arg-type]
    layer, x = ElasticShortcut(config), torch.randn(2, 24, 5, 7)
    y = torch.randn(2, 40, -(-5 // stride), -(-7 // stride))
    assert torch.equal(layer(y, x), y + 0.5 * map_shortcut(x, 40, stride))
    layer(y, x).sum().backward()
    torch.testing.assert_close(layer.factor.grad, map_shortcut(x, 40, stride).sum())


def test_text_form() -> None:
    config = ElasticShortcutConfig(8, 16, 2, initial=0.25)
    text = format_options("ElasticShortcut", config)
    assert text == "ElasticShortcut{inputs=8 outputs=16 stride=2 initial=0.25}"
    built = build_module(text)
    assert isinstance(built, ElasticShortcut) and built.config == config and built.factor.item() == 0.25

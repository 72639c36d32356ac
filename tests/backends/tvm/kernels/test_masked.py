"""Masked kernels: the reference's answer in the active tiles, nothing written beyond them, the active share of the time."""

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mattecompress.backends.tvm.backend import Freestanding
from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.kernels import bitserial
from mattecompress.backends.tvm.kernels.masked_float import plan_float_convolution
from mattecompress.backends.tvm.schedule import rules_used
from mattecompress.backends.tvm.targets import find_target
from mattecompress.capturing.tracing import capture
from mattecompress.ops import masked
from mattecompress.ops.binary import WORDS, pack_weight_signs
from mattecompress.program import StatePair
from mattecompress.signature import Signature
from mattecompress.timing import time_in_turn
from tests.backends.tvm import calls
from tests.backends.tvm.arm import check_emulated
from tests.backends.tvm.harness import Kernel, build, make_kernel, run_here
from tests.ops.cases import Convolution, convolutions, draw_mask

matte = torch.ops.matte
HOST = find_target("host").tvm()
UNTOUCHED = 0xA5
densities = st.sampled_from([0.0, 0.1, 0.5, 1.0])
PLAIN = Convolution(1, 6, 8, 16, 16, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1)
RAGGED = Convolution(2, 7, 6, 35, 20, 1, (3, 3), (2, 1), (1, 1), (1, 1), 2)
GROUPED = Convolution(2, 5, 6, 20, 8, 3, (3, 2), (1, 1), (2, 1), (1, 2), 3)
POINTWISE = Convolution(1, 4, 16, 64, 40, 1, (1, 1), (1, 1), (0, 0), (1, 1), 4)
CASES = [PLAIN, RAGGED, GROUPED, POINTWISE]


def masked_call(call: calls.Call, density: float, seed: int) -> calls.Call:
    """The masked form of a dense call."""
    op, (x, weight, *rest) = call
    batch, _, rows, columns = op(x, weight, *rest).shape
    width = masked.choose_width(columns)
    tiles = matte.mask_tiles(draw_mask((batch, 1, rows, columns), density, seed), width)
    name = str(op).removeprefix("matte.").removeprefix("aten.").removesuffix(".default")
    before = (x, weight, rest.pop(0)) if name == "conv2d" else (x, weight)
    return getattr(matte, f"masked_{name}").default, (*before, tiles, width, *rest)


def conv2d(case: Convolution) -> calls.Call:
    """A float convolution of multiples of 3/2, whose sums are exact in any order, those of a filter too."""
    x = calls.image(case, case.channels * case.groups)
    shape = (case.outputs * case.groups, case.channels, *case.kernel)
    weight, bias = (
        torch.randint(-9, 10, size, generator=calls.generator(case, 2)) * 1.5 for size in (shape, shape[:1])
    )
    return torch.ops.aten.conv2d.default, (x, weight, bias, *calls.tail(case), case.groups)


def is_filtered(x: object, weight: torch.Tensor, bias: object, tiles: object, *rest: object) -> bool:
    """Whether a masked float convolution of these arguments is filtered along rows."""
    names = ("width", "stride", "padding", "dilation", "groups")
    return plan_float_convolution(weight.numpy(), dict(zip(names, rest, strict=True))).filtered


def check(kernel: Kernel, tiles: torch.Tensor) -> None:
    """Active rows equal the reference, the others are as they were."""
    count = int(tiles[0])
    result = run_here(kernel, HOST)
    assert np.array_equal(result[:, :count], kernel.expected[:, :count])
    assert not result[:, count:].any()


def dense_calls(case: Convolution, bits: int = 8, word: int = 32) -> list[calls.Call]:
    return [
        calls.binary_conv2d(case, word, "signs", 0),
        calls.quantized_conv2d(case, bits, 100),
        calls.quantized_conv2d(replace(case, groups=1), bits, 7, depthwise=True),
        conv2d(case),
    ]


@settings(max_examples=4, deadline=None)
@given(convolutions(channels=40, outputs=16), densities, st.sampled_from(WORDS), st.sampled_from([4, 8]))
def test_equals_reference(case: Convolution, density: float, word: int, bits: int) -> None:
    for call in dense_calls(case, bits, word):
        op, arguments = masked_call(call, density, case.seed)
        tiles = next(a for a in arguments if isinstance(a, torch.Tensor) and a.dtype is torch.int32)
        check(make_kernel(op, arguments, HOST), tiles)


@settings(max_examples=6, deadline=None)
@given(
    st.builds(
        Convolution,
        batch=st.integers(1, 2),
        height=st.integers(4, 7),
        width=st.sampled_from([4, 8, 12]),
        channels=st.integers(16, 40),
        outputs=st.integers(16, 24),
        groups=st.integers(1, 2),
        kernel=st.tuples(st.integers(2, 3), st.just(3)),
        stride=st.tuples(st.integers(1, 2), st.just(1)),
        padding=st.tuples(st.integers(0, 2), st.just(1)),
        dilation=st.just((1, 1)),
        seed=st.integers(0, 2**16),
    ),
    densities,
)
def test_windows_three_pixels_wide_are_filtered(case: Convolution, density: float) -> None:
    op, arguments = masked_call(conv2d(case), density, case.seed)
    assert is_filtered(*arguments)
    check(make_kernel(op, arguments, HOST), arguments[3])


@pytest.mark.parametrize(
    "case",
    [
        replace(PLAIN, stride=(1, 2)),
        replace(PLAIN, dilation=(1, 2), padding=(1, 2)),
        replace(PLAIN, kernel=(3, 1), padding=(1, 0)),
        replace(PLAIN, width=6),
        replace(PLAIN, channels=3),
    ],
    ids=["strided", "dilated", "narrow", "two pixels a tile", "few channels"],
)
def test_others_are_not_filtered(case: Convolution) -> None:
    _, arguments = masked_call(conv2d(case), 0.5, case.seed)
    assert not is_filtered(*arguments)


def test_a_filter_rounds_as_little_as_a_convolution() -> None:
    op, (x, weight, *rest) = masked_call(conv2d(PLAIN), 1.0, 0)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(value.shape, generator=generator) for value in (x, weight))
    kernel = make_kernel(op, (x, weight, *rest), HOST)
    exact = op(x.double(), weight.double(), rest[0].double(), *rest[1:]).permute(0, 2, 3, 1).numpy()
    assert np.abs(run_here(kernel, HOST) - exact).max() < 1e-6 * np.abs(exact).max()


@settings(max_examples=8, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), st.integers(1, 4), densities)
def test_list(size: tuple[int, int, int], width: int, density: float) -> None:
    batch, height, across = size
    mask = draw_mask((batch, 1, height, across * width), density, height)
    kernel = make_kernel(matte.mask_tiles.default, (mask, width), HOST)
    assert np.array_equal(run_here(kernel, HOST), kernel.expected)


class Block(nn.Module):
    """y = M * f(C3(x)) + C1, twice over one list of tiles: in bits, then in codes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(16, 3, 3, 3, generator=generator)
        self.register_buffer("signs", pack_weight_signs(weight, 8))
        self.register_buffer("codes", (weight * 30).to(torch.int8))

    def forward(self, src: torch.Tensor, state: torch.Tensor) -> list[torch.Tensor]:
        mask = (src[:, :1] - 0.7).clamp(0, 1)
        tiles = matte.mask_tiles(mask, 4)
        geometry = ([1, 1], [1, 1], [1, 1], 1)
        bits, codes = matte.pack_signs(src - 0.5, None, 1, 8), matte.quantize(src, 1 / 255, 0, 8)
        first = matte.masked_binary_conv2d(bits, self.signs, tiles, 4, 3, *geometry, "signs", 0)
        second = matte.masked_quantized_conv2d(codes, self.codes, tiles, 4, 0, 8, [3, 3], *geometry)
        gated = matte.tanh(first * 0.1 + 0.2) * matte.gather_tiles(mask, tiles, 4)
        total = matte.scatter_tiles(gated, tiles, state)
        total = matte.scatter_tiles(matte.sigmoid(second * 0.0001), tiles, total)
        return [src.clamp(0, 1), total[:, :1].clamp(0, 1), total * 0.5]


@pytest.mark.parametrize(
    "target", ["host", pytest.param("cortex-a76", marks=pytest.mark.needs("qemu-aarch64"))]
)
def test_programs_with_masks_give_the_references_bits(target: str) -> None:
    shapes = {"src": (1, 3, 24, 32), "r1i": (1, 16, 24, 32)}
    signature = Signature(tuple(shapes.items()), ("fgr", "pha", "r1o"), (StatePair("r1i", "r1o"),))
    program = capture(Block(), signature, "block")
    generator = torch.Generator().manual_seed(3)
    inputs = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    expected = program.run(**inputs)
    used = rules_used(lower(program, find_target(target))).values()
    assert list(used).count("masked convolution") == 2 and "serial" not in used
    for name, value in Freestanding.of(program, target).run(**inputs).items():
        assert torch.equal(value, expected[name]), name


class Chain(nn.Module):
    """A float convolution under a mask behind one in bits, which is computed as far as the windows reach."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("signs", pack_weight_signs(torch.randn(6, 3, 3, 3, generator=generator), 8))
        self.register_buffer("weight", torch.randint(-9, 10, (16, 6, 3, 3), generator=generator) * 1.5)

    def forward(self, src: torch.Tensor) -> list[torch.Tensor]:
        mask = (src[:, :1] - 0.7).clamp(0, 1)
        tiles = matte.mask_tiles(mask, 4)
        around = matte.mask_tiles(torch.max_pool2d(mask, 3, 1, 1), 4)
        geometry = ([1, 1], [1, 1], [1, 1], 1)
        bits = matte.pack_signs(src - 0.5, None, 1, 8)
        first = matte.masked_binary_conv2d(bits, self.signs, around, 4, 3, *geometry, "signs", 0)
        image = matte.spread_tiles((first * 0.25).relu(), around, list(src.shape[2:]))
        second = matte.masked_conv2d(image, self.weight, None, tiles, 4, *geometry)
        return [src.clamp(0, 1), matte.spread_tiles(second.relu(), tiles, list(src.shape[2:]))[:, :1]]


@pytest.mark.parametrize(
    "target", ["host", pytest.param("cortex-a76", marks=pytest.mark.needs("qemu-aarch64"))]
)
def test_a_convolution_reads_tiles_that_another_computed(target: str) -> None:
    signature = Signature((("src", (2, 3, 10, 12)),), ("fgr", "pha"))
    program = capture(Chain(), signature, "chain")
    src = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(3))
    used = rules_used(lower(program, find_target(target))).values()
    assert list(used).count("masked convolution") == 2 and "serial" not in used
    (expected, found) = program.run(src=src)["pha"], Freestanding.of(program, target).run(src=src)["pha"]
    assert expected.any() and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "emulator"),
    [
        pytest.param(name, emulator, marks=pytest.mark.needs(emulator))
        for name, emulator in (("cortex-a76", "qemu-aarch64"), ("armv7-a", "qemu-arm"))
    ],
)
def test_equals_reference_on_arm(name: str, emulator: str, tmp_path: Path) -> None:
    target = find_target(name)
    kernels = [make_kernel(matte.mask_tiles.default, (draw_mask((2, 1, 5, 8), 0.3, 1), 4), target.tvm())]
    for case in CASES:
        for call in dense_calls(case):
            op, arguments = masked_call(call, 0.4, case.seed)
            kernel = make_kernel(op, arguments, target.tvm())
            count = next(
                int(a[0]) for a in arguments if isinstance(a, torch.Tensor) and a.dtype is torch.int32
            )
            kernel.expected.view(np.uint8).reshape(*kernel.expected.shape[:2], -1)[:, count:] = UNTOUCHED
            kernels.append(kernel)
    assert check_emulated(kernels, target, tmp_path).count("right") == len(kernels)


def band(height: int, width: int, density: float) -> torch.Tensor:
    """A mask of exactly that density around a head's outline, as a matte's boundary has it."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    radius = ((y / height - 0.55) ** 2 + ((x - width / 2) / height) ** 2).sqrt()
    distance = (radius - 0.33).abs()
    return (distance <= distance.flatten().kthvalue(int(density * height * width)).values).float()[None, None]


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "height", "width"), [(128, 36, 64), (64, 72, 128)])
def test_time_follows_density(
    channels: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Convolution(1, height, width, channels, channels, 1, (3, 3), (1, 1), (1, 1), (1, 1), 0)
    op, (bits, weight, *rest) = calls.binary_conv2d(case, 64, "signs", 0)
    monkeypatch.setattr(bitserial, "plan_lookup", lambda *_: None)  # the dense loops that the masked ones are
    kernels = {1.0: make_kernel(op, (bits, weight, *rest), HOST)}
    for density in (0.1, 0.28, 0.5):
        tiles = matte.mask_tiles(band(height, width, density), 4)
        arguments = (bits, weight, tiles, 4, *rest)
        kernels[density] = make_kernel(matte.masked_binary_conv2d.default, arguments, HOST)
    library = build(list(kernels.values()), HOST)
    works = {}
    for index, (density, kernel) in enumerate(kernels.items()):
        arrays = [tvm.runtime.tensor(a) for a in (*kernel.arguments, np.zeros_like(kernel.expected))]
        works[str(density)] = lambda f=library[f"kernel_{index}"], arrays=arrays: f(*arrays)
    times = {name: statistics.median(taken) for name, taken in time_in_turn(works, 200).items()}
    for density in (0.1, 0.28, 0.5):
        assert times[str(density)] <= (density + 0.12) * times["1.0"], times

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.modules.quantizer import FakeQuantize, QuantizerConfig
from mattecompress.program import Program, StatePair
from mattecompress.quantization import calibration
from mattecompress.quantization.calibration import (
    fit_activations,
    fit_weights,
    observe,
    search_range,
)
from mattecompress.running.feed import CalibrationError
from mattecompress.signature import Signature

configs = st.builds(QuantizerConfig, st.integers(2, 8), st.booleans())


class Sum(nn.Module):
    """Adds every frame to its state, and scales the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, src: Tensor, state: Tensor) -> list[Tensor]:
        state = state + src
        return [state * self.factor, state]


def summing(height: int | str = 4, width: int | str = 6, factor: float = 2.0, batch: int = 1) -> Program:
    net = Sum()
    nn.init.constant_(net.factor, factor)
    shape = (batch, 3, height, width)
    signature = Signature((("src", shape), ("r1i", shape)), ("y", "r1o"), (StatePair("r1i", "r1o"),))
    return capture(net, signature, "sum")


def clip(frames: int, height: int = 4, width: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_carries_the_state_within_a_clip_and_not_beyond() -> None:
    clips = [torch.ones(5, 3, 4, 6), torch.ones(2, 3, 4, 6)]
    seen = observe(summing(), ["add", "mul"], clips)
    assert (seen["add"].low, seen["add"].high) == (1, 5)
    assert (seen["mul"].low, seen["mul"].high) == (2, 10)
    counts = torch.bincount(seen["add"].samples.int())
    assert counts.tolist() == [0, *[4 * 6 * 3 * repeats for repeats in (2, 2, 1, 1, 1)]]


def test_keeps_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES", 100)
    (seen,) = observe(summing(), ["add"], [clip(10), clip(10, seed=1)]).values()
    assert len(seen.samples) == 100
    assert seen.low <= float(seen.samples.min()) and float(seen.samples.max()) <= seen.high


def test_the_seed_decides_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES", 100)
    program, clips = summing(), [clip(3)]
    one, same, other = (observe(program, ["add"], clips, seed)["add"].samples for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_open_sizes_take_those_of_the_clips() -> None:
    clips = [torch.full((1, 3, 4, 6), 0.25), torch.full((1, 3, 8, 10), 0.5)]
    (seen,) = observe(summing("2*h", "2*w"), ["add"], clips).values()
    assert (seen.low, seen.high) == (0.25, 0.5)
    assert len(seen.samples) == 3 * (24 + 80)


def test_reports_progress() -> None:
    told: list[tuple[int, int, str]] = []
    observe(summing(), ["add"], [clip(2), clip(1)], progress=lambda *step: told.append(step))
    assert told == [(done, 3, "calibrate") for done in (1, 2, 3)]


def test_leaves_the_program_alone() -> None:
    program = summing("2*h", "2*w")
    twin = program.clone()
    observe(program, ["add"], [clip(2)])
    assert program == twin


@pytest.mark.parametrize("clips", [[], [torch.zeros(0, 3, 4, 6)]])
def test_says_how_to_give_clips(clips: list[Tensor]) -> None:
    with pytest.raises(CalibrationError, match="none were given: add --calibration"):
        observe(summing(), ["add"], clips)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 1, 4, 6), (3, 4, 6)])
def test_refuses_clips_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"clip 2 is .*the program takes \[1,3,4,6\]"):
        observe(summing(), ["add"], [clip(1), torch.zeros(shape)])


def test_refuses_clips_that_do_not_fit_open_sizes() -> None:
    with pytest.raises(
        CalibrationError, match=r"clip 1 is \[1, 3, 4, 5\], the program takes \[1,3,2\*h,2\*w\]"
    ):
        observe(summing("2*h", "2*w"), ["add"], [clip(1, 4, 5)])


def test_refuses_a_program_that_takes_several_frames_at_once() -> None:
    message = r"clip 1 is \[2, 3, 4, 6\], the program takes \[2,3,4,6\]: capture it with a batch of 1"
    with pytest.raises(CalibrationError, match=message):
        observe(summing(batch=2), ["add"], [clip(2)])


def test_refuses_a_program_that_takes_more_than_a_frame() -> None:
    net = nn.Bilinear(3, 3, 2)
    program = capture(net, Signature((("a", (1, 3)), ("b", (1, 3))), ("y",)), "pair")
    with pytest.raises(CalibrationError, match="this program also takes a, b"):
        observe(program, [], [clip(1)])


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_names_the_node_and_frame_where_a_value_is_not_finite(factor: float) -> None:
    with pytest.raises(CalibrationError, match="^%mul holds .* not finite on frame 1 of clip 1"):
        observe(summing(factor=factor), ["add", "mul"], [clip(2)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_frames_that_are_not_finite(value: float) -> None:
    frames = clip(3)
    frames[1, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match="^values are not finite on frame 2 of clip 2: leave it out"):
        observe(summing(), ["add"], [clip(2), frames])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (clip(2).unbind(), r"^clip 2 is no tensor: stack the frames of this tuple into one \(T,3,H,W\)$"),
        (
            [clip(1)[0], clip(1, 8, 6)[0]],
            r"^clip 2 is no tensor: frame 2 is \[3, 8, 6\], the first \[3, 4, 6\]; give each size a clip of its own$",
        ),
        (clip(2).mul(255).to(torch.uint8), "^clip 2 is torch.uint8: give torch.float32, pictures in 0..1$"),
        (clip(0), "^clip 2 holds no frames: leave it out$"),
    ],
)
def test_refuses_what_is_no_clip(given: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        observe(summing("2*h", "2*w"), ["add"], [clip(1), given])


def cost(values: Tensor, low: Tensor, high: Tensor, config: QuantizerConfig) -> Tensor:
    scale, zero_point = (part.unsqueeze(1) for part in config.affine(low, high))
    codes = ((values / scale).round() + zero_point).clamp(config.low, config.high)
    return ((codes - zero_point) * scale - values).abs().pow(2.4).mean(1)


def rows(seed: int, count: int = 3) -> Tensor:
    """Rows of heavy-tailed values; some have one sign."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 400, generator=generator) ** 3
    x[1] = x[1].clamp(min=-0.375)
    x[2] = x[2].abs()
    return x


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**16), configs)
def test_search_is_no_worse_than_the_extremes(seed: int, config: QuantizerConfig) -> None:
    x = rows(seed)
    low, high = x.aminmax(dim=1)
    found = search_range(x, low, high, config)
    assert (cost(x, *found, config) <= cost(x, low, high, config) * (1 + 1e-4)).all()
    assert (low.clamp(max=0) <= found[0]).all() and (found[1] <= high.clamp(min=0)).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.integers(2, 8))
def test_search_is_near_the_best_of_a_full_grid(seed: int, bits: int) -> None:
    """Within a tenth of the best of every pair of fiftieths, which search by sweeps does not try."""
    config = QuantizerConfig(bits)
    x = rows(seed)[1:2]
    low, high = x.aminmax(dim=1)
    found = float(cost(x, *search_range(x, low, high, config), config))
    below, above = torch.cartesian_prod(*[torch.arange(2, 101, 2) / 100] * 2).T
    best = cost(x.expand(len(below), -1), low * below, high * above, config).min()
    assert found <= float(best) * 1.1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**16), configs)
@example(112, QuantizerConfig(2, False))
@example(7115, QuantizerConfig(6, False))
def test_rows_and_units_do_not_matter_to_search(seed: int, config: QuantizerConfig) -> None:
    """Where two ranges are equally good, either may be found."""
    x = rows(seed)
    low, high = x.aminmax(dim=1)
    together = cost(x, *search_range(x, low, high, config), config)
    for index in range(len(x)):
        row = slice(index, index + 1)
        alone = search_range(x[row] * 1024, low[row] * 1024, high[row] * 1024, config)
        found = cost(x[row], *(end / 1024 for end in alone), config)
        torch.testing.assert_close(found, together[row], rtol=1e-6, atol=0)


def test_search_cuts_off_an_outlier_where_steps_are_few() -> None:
    x = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([10.0])]).unsqueeze(0)
    low, high = x.aminmax(dim=1)
    assert float(search_range(x, low, high, QuantizerConfig(3))[1]) < 7
    assert float(search_range(x, low, high, QuantizerConfig(8))[1]) > 7


def test_constants_are_kept() -> None:
    for value in (0.0, 0.7, -0.7):
        x = torch.full((1, 8), value)
        quantizer = FakeQuantize(QuantizerConfig(8, symmetric=True, channels=1))
        fit_weights(quantizer, x, "mse")
        torch.testing.assert_close(quantizer(x), x, rtol=1e-6, atol=1e-7)


def test_min_max_takes_the_extremes_of_all_frames() -> None:
    clips = [torch.full((1, 3, 4, 6), -0.5), torch.full((1, 3, 4, 6), 2.05)]
    seen = observe(summing(), ["add"], clips)["add"]
    quantizer = FakeQuantize(QuantizerConfig(8))
    fit_activations(quantizer, seen, "min-max")
    assert quantizer.scale.item() == pytest.approx(0.01) and quantizer.zero_point.item() == 50


def test_feeds_several_inputs_by_name() -> None:
    program = capture(nn.Bilinear(3, 3, 2), Signature((("a", (1, 3)), ("b", (1, 3))), ("y",)), "pair")
    clip = {"b": torch.ones(4, 3), "a": torch.zeros(4, 3)}
    (seen,) = observe(program, ["a"], [clip]).values()
    assert (seen.low, seen.high) == (0, 0) and len(seen.samples) == 12
    with pytest.raises(CalibrationError, match="a clip has a, the program takes a, b"):
        observe(program, [], [{"a": torch.zeros(4, 3)}])
    with pytest.raises(CalibrationError, match="clip 1 has inputs of .* frames"):
        observe(program, [], [{"a": torch.zeros(4, 3), "b": torch.zeros(3, 3)}])

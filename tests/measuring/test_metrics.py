import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mattecompress.measuring import metrics


def wave(phase: float, amplitude: float) -> torch.Tensor:
    """The 48 x 64 pattern of the golden file, uint8."""
    y, x = np.mgrid[0:48, 0:64]
    value = 0.5 + amplitude * np.sin(0.15 * x + phase) * np.cos(0.2 * y - phase)
    return torch.from_numpy(np.rint(255 * np.clip(value, 0, 1)).astype(np.uint8))


def as_clip(*frames: torch.Tensor) -> torch.Tensor:
    return torch.stack(frames).float()[:, None] / 255


@pytest.fixture
def clip():
    true = as_clip(wave(0, 0.8), wave(0.3, 0.8))
    predicted = as_clip(wave(0.05, 0.7), wave(0.4, 0.75))
    return predicted, true


@pytest.fixture
def foregrounds():
    true = torch.cat([as_clip(wave(k, 0.4)) for k in (0.1, 0.2, 0.3)], dim=1)
    predicted = torch.cat([as_clip(wave(k + 0.07, 0.42)) for k in (0.1, 0.2, 0.3)], dim=1)
    return predicted, true


@pytest.fixture
def golden_metrics(spec_data):
    return json.loads((spec_data / "golden_metrics.json").read_text())


def test_video_metrics_match_the_published_script(clip, foregrounds, golden_metrics):
    predicted, true = clip
    scores = metrics.frame_metrics(predicted, true)
    golden = golden_metrics["rvm_lr"]
    for name in ("mad", "mse", "grad", "conn", "dtssd"):
        assert scores[name][1].item() == pytest.approx(golden[f"{name}_t1"], rel=2e-6), name
    colours = metrics.foreground_mse(*foregrounds, true[1:])
    assert colours.item() == pytest.approx(golden["fgr_mse_t1"], rel=2e-6)
    assert metrics.foreground_mad(*foregrounds, true[1:]).item() == pytest.approx(
        golden["fgr_mad_t1"], rel=2e-6
    )


@pytest.mark.parametrize("rule", ["matlab", "python"])
def test_image_metrics_match_the_published_scripts(golden_metrics, rule):
    true, predicted = wave(0.3, 0.8), wave(0.4, 0.75)
    trimap = torch.full_like(true, 128)
    trimap[true >= 250] = 255
    trimap[true <= 5] = 0
    python, matlab = golden_metrics["composition1k_python"], golden_metrics["composition1k_matlab_rule"]
    scores = metrics.evaluate_image(predicted, true, trimap, rule)
    assert int((trimap == 128).sum()) == python["n_unknown"]
    assert scores["sad"] == pytest.approx(python["sad"], rel=1e-12)
    assert scores["mse"] == pytest.approx(python["mse"], rel=1e-12)
    assert scores["grad"] == pytest.approx((matlab if rule == "matlab" else python)["grad"], rel=1e-9)
    assert scores["conn"] == pytest.approx(
        matlab["conn"] if rule == "matlab" else python["conn_python"], rel=1e-12
    )


def test_gradient_filter_is_the_nine_by_nine_of_the_definition():
    smooth, slope = metrics._gradient_filter()
    middle = (smooth[:, None] * slope[None, :])[4]
    expected = [0.027487, 0.122946, 0.293474, 0.315434, 0, -0.315434, -0.293474, -0.122946, -0.027487]
    assert middle.tolist() == pytest.approx(expected, abs=1e-6)


def test_thresholds_are_eleven():
    assert len(np.arange(0, 1 + metrics.STEP, metrics.STEP)) == 11


def test_perfect_matte_scores_zero(clip, foregrounds):
    true, colours = clip[1], foregrounds[1].expand(2, -1, -1, -1)
    assert set(metrics.evaluate_clip(true, true, colours, colours).values()) == {0.0}


def test_keys_follow_what_is_given(clip):
    predicted, true = clip
    colours = predicted.expand(-1, 3, -1, -1)
    assert list(metrics.evaluate_clip(predicted, true)) == ["mad", "mse", "grad", "conn", "dtssd"]
    assert "fgr_mse" in metrics.evaluate_clip(predicted, true, colours, colours)
    assert "conn" not in metrics.evaluate_clip(predicted, true, high_resolution=True)


def test_high_resolution_gradient_is_not_stretched(clip):
    dim = clip[1] / 2
    assert metrics.gradient(dim, clip[1]).max() < 1e-12
    assert metrics.gradient(dim, clip[1], normalize=False).min() > 1e-3


def test_constant_frames_have_no_gradient():
    flat = torch.full((1, 1, 20, 20), 0.5)
    assert metrics.gradient(flat, flat + 0.25).item() == 0


def test_first_flicker_is_zero_and_counts():
    true = torch.zeros(2, 1, 8, 8)
    predicted = torch.stack((torch.zeros(1, 8, 8), torch.ones(1, 8, 8)))
    assert metrics.dtssd(predicted, true).tolist() == [0, 100]
    assert metrics.evaluate_clip(predicted, true)["dtssd"] == 50


def test_frames_without_foreground_cost_nothing():
    colours = torch.rand(1, 3, 8, 8)
    assert metrics.foreground_mse(colours, 1 - colours, torch.zeros(1, 1, 8, 8)).item() == 0


def test_average_goes_over_clips_then_frames():
    short, long = {"mad": torch.tensor([1.0])}, {"mad": torch.tensor([3.0, 8.0])}
    assert metrics.average([short, long]) == {"mad": 5.0}


@pytest.mark.parametrize("clips", [[], [{"mad": torch.ones(1)}, {"mse": torch.ones(1)}]])
def test_average_refuses_what_it_cannot_compare(clips):
    with pytest.raises(ValueError, match="clips with the same metrics"):
        metrics.average(clips)


def test_wrong_shapes_are_named(clip):
    predicted, true = clip
    with pytest.raises(ValueError, match=r"\(T, 1, H, W\).*\(1, 1, 48, 64\) and \(2, 1, 48, 64\)"):
        metrics.evaluate_clip(predicted[:1], true)
    with pytest.raises(ValueError, match="both the predicted and the true"):
        metrics.evaluate_clip(predicted, true, pred_fgr=predicted.expand(-1, 3, -1, -1))


def test_image_needs_bytes_and_unknown_pixels():
    image = torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="three uint8 images"):
        metrics.evaluate_image(image.float(), image, image)
    with pytest.raises(ValueError, match="no pixel of the trimap is 128"):
        metrics.evaluate_image(image, image, image)


def flood_largest(mask):
    """Largest 4-connected component by flood fill, the first found in reading order among equals."""
    best, seen = set(), set()
    for start in zip(*np.nonzero(mask), strict=True):
        if start in seen:
            continue
        stack, component = [start], {start}
        while stack:
            y, x = stack.pop()
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]
                if inside and mask[place] and place not in component:
                    component.add(place)
                    stack.append(place)
        seen |= component
        best = component if len(component) > len(best) else best
    found = np.zeros_like(mask)
    for place in best:
        found[place] = True
    return found


@settings(deadline=None, max_examples=150)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_largest_component_agrees_with_flood_fill(mask):
    assert np.array_equal(metrics.largest_component(mask), flood_largest(mask))


def test_background_rivals_the_largest_component():
    mask = np.eye(4, dtype=bool)
    assert np.array_equal(metrics.largest_component(mask, rival_background=True), ~mask)
    assert metrics.largest_component(np.zeros((3, 3), bool), rival_background=True).all()
    assert metrics.largest_component(~mask, rival_background=True).sum() == 6


def test_largest_component_follows_a_spiral():
    spiral = np.array(
        [list(row) for row in ("#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######")]
    )
    assert np.array_equal(metrics.largest_component(spiral == "#"), spiral == "#")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_errors_are_symmetric_and_not_negative(seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.rand(2, 1, 12, 14, generator=generator) for _ in range(2))
    for metric in (metrics.mad, metrics.mse, metrics.gradient, metrics.connectivity, metrics.dtssd):
        assert (metric(one, other) >= 0).all()
        assert torch.equal(metric(one, other), metric(other, one))
        assert (metric(one, one) == 0).all()

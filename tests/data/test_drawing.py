import numpy as np
import pytest

from mattecompress.data import drawing
from mattecompress.data.drawing import Layer, Texture


def whole(layer):
    return layer.window([(0, 0), layer.alpha.shape[::-1]], 0)


def test_window_is_clipped_and_none_outside():
    layer = Layer(10, 20)
    window = layer.window([(5, 5), (8, 6)], 2)
    assert (window.rows, window.columns) == (slice(3, 8), slice(3, 10))
    assert layer.window([(-9, 5)], 3) is None
    assert layer.window([(5, 50)], 3) is None


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (lambda w: drawing.ellipse(w, (30, 25), (14, 9), 0.4)[0], np.pi * 14 * 9),
        (lambda w: drawing.box(w, (30, 25), (12, 8), 0.7, 0.0), 4 * 12 * 8),
        (lambda w: drawing.capsule(w, (20, 25), (40, 25), (7, 7))[0], np.pi * 49 + 20 * 14),
    ],
)
def test_coverage_adds_up_to_the_area(shape, area):
    filled = drawing.coverage(shape(whole(Layer(50, 60))), 1.0)
    assert filled.sum() == pytest.approx(area, rel=0.01)


def test_over_replaces_what_it_covers():
    layer = Layer(4, 4)
    window = whole(layer)
    red, blue = (np.array(c, np.float32).reshape(3, 1, 1) for c in ((1, 0, 0), (0, 0, 1)))
    layer.over(window, np.full((4, 4), 0.5, np.float32), red)
    layer.over(window, np.full((4, 4), 0.5, np.float32), blue)
    assert layer.alpha[0, 0] == 0.75
    assert layer.colour[:, 0, 0].tolist() == [0.25, 0, 0.5]


def test_strands_deposit_their_area():
    layer = Layer(40, 40)
    x = np.linspace(5, 35, 200, dtype=np.float32)[None]
    y = np.linspace(8, 30, 200, dtype=np.float32)[None]
    weight = np.full_like(x, 0.001)
    drawing.splat_strands(layer, x, y, weight, np.ones_like(x), np.array([0.2, 0.4, 0.6], np.float32))
    assert layer.alpha.sum() == pytest.approx(0.2, rel=0.02)
    assert layer.alpha.max() < 0.05
    seen = layer.alpha > 0
    assert np.allclose(layer.colour[:, seen] / layer.alpha[seen], [[0.2], [0.4], [0.6]], atol=1e-4)


def test_strands_outside_change_nothing():
    layer = Layer(8, 8)
    far = np.full((1, 3), -20, np.float32)
    drawing.splat_strands(layer, far, far, np.ones_like(far), np.ones_like(far), np.ones(3, np.float32))
    assert not layer.alpha.any()


def test_fill_outside_keeps_known_colours_and_spreads_them():
    layer = Layer(33, 47)
    colour = np.array([0.2, 0.5, 0.8], np.float32)
    layer.over(layer.window([(10, 10), (14, 14)], 0), np.ones((4, 4), np.float32), colour.reshape(3, 1, 1))
    filled = drawing.fill_outside(layer, np.zeros(3, np.float32))
    assert np.allclose(filled, colour.reshape(3, 1, 1), atol=2e-3)


def test_fill_outside_of_an_empty_layer_is_the_fallback():
    fallback = np.array([0.1, 0.2, 0.3], np.float32)
    assert np.allclose(drawing.fill_outside(Layer(9, 5), fallback), fallback.reshape(3, 1, 1), atol=1e-6)


@pytest.mark.parametrize("radius", [1, 4])
def test_box_blur_keeps_constants_and_smooths(radius):
    flat = np.full((3, 12, 10), 0.3, np.float32)
    assert np.allclose(drawing.box_blur(flat, radius), 0.3, atol=1e-6)
    rough = np.random.default_rng(0).random((3, 30, 30), np.float32)
    assert drawing.box_blur(rough, radius).std() < rough.std() / 2


def test_sampling_at_the_samples_returns_them():
    grid = np.random.default_rng(1).random((2, 5, 7), np.float32)
    rows, columns = np.arange(5, dtype=np.float32), np.arange(7, dtype=np.float32)
    assert np.array_equal(drawing.sample_grid(grid, rows, columns), grid)


def test_textures_repeat():
    texture = Texture(np.random.default_rng(2).random((3, 8, 8), np.float32)).fit(100)
    place = np.array([[0.3, -0.4]], np.float32)
    assert np.array_equal(texture.at(place, place), texture.at(place + 1, place - 2))


def test_sampled_textures_are_colours():
    rng = np.random.default_rng(3)
    for _ in range(20):
        tile = drawing.sample_texture(rng, rng.random(3, np.float32), rng.random(3, np.float32)).tile
        assert tile.shape == (3, 64, 64) and tile.min() >= 0 and tile.max() <= 1

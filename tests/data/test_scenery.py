from dataclasses import replace

import numpy as np
import pytest

from mattecompress.data.people import Wave
from mattecompress.data.scenery import Mover, Scenery, sample_scenery

LOOKALIKES = np.full((2, 3), 0.5, np.float32)


def test_views_are_pictures():
    for seed in range(20):
        scenery = sample_scenery(np.random.default_rng(seed), 40, 60, LOOKALIKES)
        view = scenery.frame(3.0, 40, 60)
        assert view.shape == (3, 40, 60) and view.dtype == np.float32
        assert view.min() >= 0 and view.max() <= 1 + 1e-6


@pytest.fixture
def still():
    canvas = np.random.default_rng(0).random((3, 60, 80), np.float32)
    rest = Wave(0.0, ())
    return Scenery(canvas, rest, rest, Wave(1.0, ()), (), 1.0)


def test_a_still_view_is_the_middle_of_the_canvas(still):
    assert np.array_equal(still.frame(9.0, 40, 60), still.canvas[:, 10:50, 10:70])


def test_panning_shifts_the_view(still):
    panned = replace(still, pan_x=Wave(4.0, ()), pan_y=Wave(-3.0, ()))
    assert np.array_equal(panned.frame(0, 40, 60), still.canvas[:, 7:47, 14:74])


@pytest.mark.parametrize("kind", ["ellipse", "box", "capsule"])
def test_movers_cross_the_view(still, kind):
    colour = np.array([1, 0, 0], np.float32)
    mover = Mover(Wave(30.0, ()), Wave(20.0, ()), (8.0, 8.0), Wave(0.0, ()), colour, kind)
    view = replace(still, movers=(mover,)).frame(0, 40, 60)
    assert np.allclose(view[1:, 20, 30], 0, atol=1e-6) and view[0, 20, 30] > 0.7
    assert np.array_equal(view[:, :5], still.frame(0, 40, 60)[:, :5])

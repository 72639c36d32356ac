from dataclasses import replace

import numpy as np

from mattecompress.data.drawing import Layer
from mattecompress.data.figures import draw_person
from mattecompress.data.people import Wave, sample_person


def drawn(person, time=0.0, height=72, width=128):
    layer = Layer(height, width)
    draw_person(layer, person, time)
    return layer


def person(seed=1):
    return sample_person(np.random.default_rng(seed), 72, 128)


def test_colour_is_premultiplied_and_bounded():
    for seed in range(12):
        inside = replace(person(seed), x=Wave(140.0, ()), y=Wave(120.0, ()))
        layer = drawn(inside, height=240, width=280)
        assert layer.alpha.min() >= 0 and 0.99 < layer.alpha.max() <= 1 + 1e-6
        assert (layer.colour <= layer.alpha + 1e-5).all()


def test_a_person_outside_of_the_frame_draws_nothing():
    assert not drawn(replace(person(), x=Wave(5000.0, ()))).alpha.any()


def test_moving_a_person_by_whole_pixels_moves_the_matte():
    still = replace(person(), x=Wave(64.0, ()), y=Wave(40.0, ()))
    moved = replace(still, x=Wave(69.0, ()))
    assert np.allclose(drawn(still).alpha[:, :-5], drawn(moved).alpha[:, 5:], atol=1e-3)


def test_strands_make_partial_coverage():
    hairy = next(p for p in map(person, range(50)) if p.hair.mass[0] == 0.18)
    bald = replace(hairy, hair=replace(hairy.hair, width=0.0))
    partial = [((a > 0.05) & (a < 0.95)).sum() for a in (drawn(hairy).alpha, drawn(bald).alpha)]
    assert partial[0] > partial[1]


def test_accessories_are_drawn():
    plain = replace(person(), glasses=False, cap=None, headphones=False)
    for change in ({"glasses": True}, {"cap": np.zeros(3, np.float32)}, {"headphones": True}):
        assert not np.array_equal(drawn(plain).colour, drawn(replace(plain, **change)).colour)

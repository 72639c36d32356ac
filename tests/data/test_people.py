import numpy as np

from mattecompress.data.people import Wave, sample_person, sample_wave


def test_wave_is_the_sum_of_its_sines():
    wave = Wave(3.0, ((2.0, 8.0, 0.0), (1.0, 4.0, np.pi / 2)))
    assert wave.at(0) == 4.0
    assert np.isclose(wave.at(2), 3 + 2 - 1)


def test_sampled_waves_stay_near_their_base():
    wave = sample_wave(np.random.default_rng(0), 5.0, 2.0)
    assert all(abs(wave.at(t) - 5) <= 2 * 1.35 for t in range(200))


def test_people_scale_with_the_frame():
    small, large = (sample_person(np.random.default_rng(4), 72 * k, 128 * k) for k in (1, 4))
    assert np.isclose(large.head.at(7), 4 * small.head.at(7))
    assert np.isclose(large.x.at(7), 4 * small.x.at(7))
    assert large.shoulders == small.shoulders

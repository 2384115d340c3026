"""Rotary positions and ALiBi against closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config
from lm.errors import InputError
from lm.layers.position import (
    SCALINGS,
    alibi_bias,
    alibi_slopes,
    rotary_angles,
    rotary_frequencies,
    rotate,
    shifted,
)

BASE = config.parse(base.get_config()).model


def scaled(kind, factor=4.0, length=256, **changes):
    changes = {'rotary_scaling': kind, 'rotary_factor': factor, **changes}
    return dataclasses.replace(BASE, rotary_original_length=length, **changes)


@pytest.mark.parametrize('kind', SCALINGS)
def test_products_depend_on_distance_only(kind):
    c = scaled(kind)
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def product(q_position, k_position):
        q = rotate(query, rotary_angles(jnp.array([[q_position]]), c, 16))
        k = rotate(key, rotary_angles(jnp.array([[k_position]]), c, 16))
        return float(jnp.vdot(q, k))

    for distance in (0, 1, 7):
        first, *others = [product(start + distance, start) for start in (0, 5, 100)]
        np.testing.assert_allclose(others, first, atol=2e-4)
    assert abs(product(7, 0) - product(0, 0)) > 1e-2


def test_rotation_is_complex_multiplication():
    c = scaled('none', rotary_base=100.0)
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    positions = np.array([[0, 1, 9]])
    turns = np.exp(1j * positions[0][:, None] * 100.0 ** (-np.array([0.0, 2.0]) / 4))  # [T, K / 2]
    want = (np.asarray(x[..., :2]) + 1j * np.asarray(x[..., 2:])) * turns[None, :, None]
    got = rotate(x, rotary_angles(jnp.asarray(positions), c, 4))
    np.testing.assert_allclose(got, np.concatenate([want.real, want.imag], axis=-1), atol=1e-5)


@pytest.mark.parametrize('kind', SCALINGS)
def test_factor_one_changes_nothing(kind):
    positions = jnp.arange(5)[None]
    got = rotary_angles(positions, scaled(kind, factor=1.0), 32)
    want = rotary_angles(positions, scaled('none'), 32)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_linear_stretches_every_wave():
    plain = rotary_frequencies(scaled('none'), 16)
    np.testing.assert_allclose(rotary_frequencies(scaled('linear'), 16), plain / 4)


def test_ntk_keeps_the_shortest_wave_and_stretches_the_longest():
    plain = rotary_frequencies(scaled('none'), 16)
    got = rotary_frequencies(scaled('ntk'), 16)
    np.testing.assert_allclose(got[[0, -1]], plain[[0, -1]] / [1, 4])
    larger_base = (10_000.0 * 4 ** (16 / 14)) ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(got, larger_base)


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    plain = rotary_frequencies(scaled('none'), 64)
    got = rotary_frequencies(scaled('llama3', length=256), 64)
    wavelengths = 2 * np.pi / plain
    short, long = wavelengths < 256 / 4, wavelengths > 256
    assert short.any()
    assert long.any()
    np.testing.assert_allclose(got[short], plain[short])
    np.testing.assert_allclose(got[long], plain[long] / 4)
    middle = ~short & ~long
    smooth = (256 / wavelengths[middle] - 1) / (4 - 1)
    np.testing.assert_allclose(
        got[middle], (1 - smooth) * plain[middle] / 4 + smooth * plain[middle]
    )


def test_yarn_keeps_fast_turns_and_stretches_slow_ones():
    c = scaled('yarn', length=2048)
    plain, got = rotary_frequencies(scaled('none'), 64), rotary_frequencies(c, 64)
    turns = 2048 * plain / (2 * np.pi)
    # One dimension of slack: the ramp begins and ends at whole dimensions.
    fast, slow = np.flatnonzero(turns > 32)[:-1], np.flatnonzero(turns < 1)[1:]
    np.testing.assert_allclose(got[fast], plain[fast])
    np.testing.assert_allclose(got[slow], plain[slow] / 4)
    assert (np.diff(got / plain) <= 1e-12).all()
    sin, cos = rotary_angles(jnp.array([[0, 3]]), c, 64)
    np.testing.assert_allclose(sin**2 + cos**2, (0.1 * math.log(4) + 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize('kind', ['llama3', 'yarn'])
def test_needs_the_original_length(kind):
    with pytest.raises(InputError, match='rotary_original_length'):
        rotary_frequencies(scaled(kind, length=0), 16)


def test_wrong_scaling_and_odd_width():
    with pytest.raises(InputError, match=r"'yarm'.*'yarn'"):
        rotary_frequencies(scaled('yarm'), 16)
    with pytest.raises(InputError, match='head_dim = 15 is odd'):
        rotary_frequencies(scaled('none'), 15)


@pytest.mark.parametrize('width', [5, 6, 8])
def test_shifted_rows_by_definition(width):
    scores = np.random.default_rng(0).normal(size=(2, 4, width))
    found = shifted(jnp.asarray(scores))
    for i in range(4):
        for j in range(min(4, i + width - 4 + 1)):  # Up to W - T places after.
            np.testing.assert_allclose(found[:, i, j], scores[:, i, j - i + 3], rtol=1e-6)
    np.testing.assert_array_equal(shifted(jnp.array([[9, 1, 2], [3, 4, 9]])), [[1, 2], [3, 4]])


def test_alibi_slopes_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(2), [2**-4, 2**-8])
    # 6 heads: the 4 slopes of 4 heads, then the first and third of 8.
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert alibi_slopes(1).shape == (1,)


def test_alibi_bias_literal():
    bias = alibi_bias(2, jnp.array([[2]]), jnp.array([[0, 1, 2, 3]]))
    np.testing.assert_allclose(bias[0, 0, 0] * 16, [-2, -1, 0, -1])
    assert bias.shape == (1, 2, 1, 4)

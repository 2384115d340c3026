"""Rates and shares of the peak, against figures by hand."""

import types

import jax
import jax.numpy as jnp
import pytest

import lm
from configs import base
from lm import config
from lm.models.decoder import Decoder
from lm.throughput import Meter, active, flops_per_token

H100 = types.SimpleNamespace(device_kind='NVIDIA H100 80GB HBM3')
CPU = types.SimpleNamespace(device_kind='cpu')


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 0.0

    def __call__(self):
        return self.now


def metered(seconds, tokens):
    clock = Clock()
    meter = Meter(clock)
    for _ in range(2):
        with meter.pause():
            clock.now += 100  # An evaluation.
        clock.now += seconds
        meter.add(tokens)
        meter.read()
    return meter


def test_flops_of_gpt2():
    c = base.get_config()
    c.model.num_layers, c.model.embed_dim, c.model.num_heads = 12, 768, 12
    c.model.position, c.model.tie_embeddings = 'learned', True
    model = config.parse(c).model
    matrices = 124_439_808 - 1024 * 768
    full = flops_per_token(124_439_808, model, 1024, 50257)
    assert full == 6 * matrices + 12 * 12 * 768 * 1024
    causal = flops_per_token(124_439_808, model, 1024, 50257, causal=True)
    assert full - causal == 6 * 12 * 768 * 1024


def test_of_eight_experts_two_are_active():
    """Mixtral 8x7B: 46.7 billion parameters, 12.9 of them for a token, as published."""
    sizes = {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'num_kv_heads': 8}
    sizes |= {'mlp_dim': 14_336, 'activation': 'swiglu', 'tie_embeddings': False, 'experts': 8}
    model = config.parse(lm.get_config('base', model=sizes)).model
    decoder = Decoder(model, 32_000, 8)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert active(shapes, model) == 12_879_925_248


def test_shares_of_the_peak():
    flops = {'mfu': 990e9, 'mfu_causal': 495e9}
    summary = metered(seconds=2.0, tokens=1000).summary(flops, [H100, H100])
    assert summary == {
        'tokens_per_second': 500.0,
        'step_seconds_median': 2.0,
        'mfu': pytest.approx(0.25),
        'mfu_causal': pytest.approx(0.125),
    }


def test_no_share_without_a_peak_and_nothing_without_a_step():
    flops = {'mfu': 1.0, 'mfu_causal': 1.0}
    summary = metered(seconds=1.0, tokens=10).summary(flops, [CPU])
    assert summary['tokens_per_second'] == 10
    assert summary['mfu'] is summary['mfu_causal'] is None
    assert set(Meter().summary(flops, [CPU]).values()) == {None}

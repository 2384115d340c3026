"""Rates and shares of the peak, against figures by hand."""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

import lm
from configs import base
from lm import config, mesh, terms
from lm.models.decoder import Decoder
from lm.step import Steps
from lm.throughput import Meter, active, flops_per_token
from lm.training import flops_per_token as flops_per_token_of

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

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


@pytest.mark.parametrize(
    ('name', 'model'),
    [
        ('causal', {}),
        ('causal', {'position': 'learned', 'embedding_dim': 128}),
        ('causal', {'tie_embeddings': False, 'embedding_dim': 128}),
        ('masked', {'architecture': 'encoder', 'attention': ('full',)}),
        ('masked', {'architecture': 'encoder', 'attention': ('full',), 'embedding_dim': 128}),
        ('classification', {'architecture': 'encoder', 'attention': ('full',)}),
    ],
)
def test_flops_are_those_that_xla_counts(name, model):
    """XLA also counts what is no product, and heads have a few places more than are asked about."""
    rows, length = 4, 128
    c = config.parse(
        lm.get_config(
            'base',
            objective={'name': name},
            data={'length': length, 'batch_size': rows, 'packing': False},
            model={'num_layers': 2, 'scan_layers': False, 'attention_implementation': 'xla'}
            | model,
        )
    )
    one = mesh.one_device()
    with jax.set_mesh(one):
        steps = Steps(c, 1024, one, optax.sgd(0.1))
        _, loss, _ = terms.build(c, 1024, one)
        ints = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        weights = jax.ShapeDtypeStruct((rows, length), jnp.float32)
        batch = dict.fromkeys(('inputs', 'targets', 'positions', 'segment_ids', 'labels'), ints)
        batch |= dict.fromkeys(('loss_weights', 'label_weights'), weights)

        def total(params, batch):
            return sum(found['loss'] for found in loss.sums(params, batch, None).values())

        lowered = jax.jit(jax.grad(total)).lower(steps.shapes.params, batch)
    run = types.SimpleNamespace(config=c, steps=steps, others=None)
    counted = flops_per_token_of(run)['mfu'] * rows * length
    assert counted == pytest.approx(lowered.cost_analysis()['flops'], rel=0.02)


@pytest.mark.parametrize(
    ('name', 'model', 'others'),
    [
        ('seq2seq', {'architecture': 'encoder_decoder'}, None),
        ('permutation', {'architecture': 'encoder'}, None),
        ('replaced', {'architecture': 'encoder', 'attention': ('full',)}, None),
        ('masked', {'architecture': 'encoder', 'attention': ('full',)}, {'a': None, 'b': None}),
    ],
)
def test_flops_that_are_not_known(name, model, others):
    changed = {'num_layers': 1, 'embed_dim': 8} | model
    c = config.parse(lm.get_config('base', objective={'name': name}, model=changed))
    steps = Steps(c, 32, mesh.one_device(), optax.sgd(0.1))
    run = types.SimpleNamespace(config=c, steps=steps, others=others)
    assert flops_per_token_of(run) == {'mfu': None, 'mfu_causal': None}


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

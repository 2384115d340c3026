"""FLOPs of what configs build, against those that XLA counts."""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

import lm
from lm import config, mesh, terms
from lm.model_flops import flops_per_token
from lm.step import Steps


@pytest.mark.first_quick
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
    counted = flops_per_token(run)['mfu'] * rows * length
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
    assert flops_per_token(run) == {'mfu': None, 'mfu_causal': None}

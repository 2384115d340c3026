"""Layers over stages give what one device gives, in the turns that the schedule names."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import config as configs
from lm import mesh, models, tree
from lm.config import RESUMABLE
from lm.errors import InputError
from lm.models import pipeline
from lm.models.pipeline import Schedule

VOCAB, LENGTH, ROWS = 32, 8, 8


def make_config(**model):
    model = {'num_layers': 4, 'embed_dim': 8, 'num_heads': 2, 'mlp_dim': 16} | model
    data = {'length': LENGTH, 'source_length': 4, 'batch_size': ROWS}
    return configs.parse(lm.get_config('base', data=data, model=model))


def make_batch(config, streams):
    """Two segments in each row, and whatever else a model reads."""
    rng = np.random.default_rng(0)

    def ids(high, length=LENGTH, low=0):
        return jnp.asarray(rng.integers(low, high, (ROWS, length)), jnp.int32)

    segments = jnp.sort(ids(3, low=1), axis=1)
    batch = {'inputs': ids(VOCAB), 'segment_ids': segments, 'positions': ids(LENGTH)}
    if config.model.architecture == 'encoder_decoder':
        sources = jnp.sort(ids(3, 4, low=1), axis=1)
        return batch | {'encoder_inputs': ids(VOCAB, 4), 'encoder_segment_ids': sources}
    if config.model.token_types:
        batch['token_types'] = ids(config.model.token_types)
    if any('prefix' in kind for kind in config.model.attention):
        batch['in_prefix'] = ids(2) > 0
    return batch | ({'order': jnp.argsort(ids(99), axis=1)} if streams else {})


def compiled(model, sizes=(), streams=False):
    """The loss and its gradient over a mesh, compiled; its arguments; and the layout of parameters."""
    config = make_config(**dict(model))
    made = models.build(config, VOCAB, streams=streams)
    batch, sizes = make_batch(config, streams), mesh.sizes(**dict(sizes))
    count = int(np.prod([getattr(sizes, axis) for axis in mesh.AXES]))
    device_mesh = mesh.make(sizes, jax.devices()[:count])
    pipeline.check(config.model, device_mesh)

    def loss(params, batch):
        batch = dict(batch)
        out = made.apply({'params': params}, batch.pop('inputs'), method='hidden', **batch)
        return jnp.mean(jnp.sin(3 * out.astype(jnp.float32) + jnp.arange(out.shape[-1])))

    key = jax.random.key(0)
    shapes = jax.eval_shape(made.init, key, **models.example(made))['params']
    layout = mesh.parameter_shardings(shapes, device_mesh), mesh.batch_sharding(device_mesh)
    with jax.set_mesh(device_mesh):
        step = jax.jit(
            jax.value_and_grad(loss), in_shardings=layout, out_shardings=(None, layout[0])
        )
        arrays = jax.ShapeDtypeStruct
        like = jax.tree.map(lambda x: arrays(x.shape, x.dtype), (shapes, batch))
        return step.lower(*like).compile(), batch, layout, shapes


def random_like(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)


@functools.cache
def computed(model, sizes=(), streams=False):
    step, batch, layout, shapes = compiled(model, sizes, streams)
    return jax.device_get(step(*jax.device_put((random_like(shapes), batch), layout)))


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)


def same_as_one_device(sizes, micro_batches, repeats, model=(), streams=False):
    own = (('pipeline_microbatches', micro_batches), ('pipeline_repeats', repeats))
    found = computed((*model, *own), tuple(sizes.items()), streams)
    assert_same(found, computed(tuple(model), (), streams))


@pytest.mark.parametrize(
    ('sizes', 'micro_batches', 'repeats'),
    [
        ({'stage': 2}, 4, 1),
    ],
    ids=str,
)
def test_stages_give_the_loss_and_gradient_of_one_device(sizes, micro_batches, repeats):
    same_as_one_device(sizes, micro_batches, repeats)

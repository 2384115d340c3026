import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import lm
from lm import config as configs
from lm import mesh, tree
from lm.config import MeshConfig
from lm.errors import InputError
from lm.models.decoder import Decoder


def shapes(**model):
    config = configs.parse(lm.get_config('base', model={'num_layers': 2, **model})).model
    decoder = Decoder(config, 64, 32)
    return jax.eval_shape(
        lambda: decoder.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    )


@pytest.mark.parametrize(
    'model',
    [
        {},
        {'bias': True, 'norm': 'layernorm', 'position': 'learned', 'tie_embeddings': False},
        {'activation': 'swiglu', 'qk_norm': True, 'num_kv_heads': 2, 'norm_placement': 'post'},
        {'attention': ('causal', 'causal')},
    ],
    ids=str,
)
def test_rules_cover_every_parameter_and_split_the_large_ones(model):
    params = shapes(**model)
    device_mesh = mesh.make(MeshConfig(1, 4, 2, 1))
    shardings = mesh.parameter_shardings(params, device_mesh)
    for path, leaf, sharding in zip(
        tree.paths(params), jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        parts = leaf.size // math.prod(sharding.shard_shape(leaf.shape))
        if path.endswith(('kernel', 'embed/embedding')):
            assert parts == 8, path


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="covers the parameter 'adapter/kernel'"):
        mesh.parameter_shardings(
            {'adapter': {'kernel': jnp.zeros((4, 4))}}, mesh.make(MeshConfig(8, 1, 1, 1))
        )


def test_optimizer_state_lies_as_its_parameter_does():
    params = shapes()
    state = {
        'mu': params,
        'count': jax.ShapeDtypeStruct((), jnp.int32),
        'factored': {'embed': {'embedding': jax.ShapeDtypeStruct((64,), jnp.float32)}},
    }
    shardings = mesh.state_shardings(state, params, mesh.make(MeshConfig(1, 4, 2, 1)))
    assert shardings['mu']['embed']['embedding'].spec == P('tensor', 'fsdp')
    assert shardings['count'].spec == P()
    assert shardings['factored']['embed']['embedding'].spec == P()


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ((3, 1, 1, 1), 'needs 3 devices; there are 8'),
        ((-1, 3, 1, 1), 'needs a multiple of 3 devices; there are 8'),
        ((-1, -1, 1, 1), 'only one may be -1'),
        ((0, 8, 1, 1), 'sizes are at least 1'),
    ],
)
def test_bad_meshes(sizes, message):
    with pytest.raises(InputError, match=message):
        mesh.make(MeshConfig(*sizes))


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(mesh.make(MeshConfig(-1, 2, 2, 1)).shape) == {
        'data': 2, 'fsdp': 2, 'tensor': 2, 'sequence': 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('sizes', 'batch', 'message'),
    [
        ((8, 1, 1, 1), (12, 64, 1), 'batch_size = 12 rows cannot be divided by 8 .*can: 16'),
        ((8, 1, 1, 1), (16, 64, 4), 'divided by 32 .* x optimizer.accumulation 4.*can: 32'),
        ((4, 1, 1, 2), (32, 63, 4), 'length = 63 tokens cannot be divided by mesh.sequence = 2'),
    ],
)
def test_batches_that_the_mesh_cannot_divide(sizes, batch, message):
    with pytest.raises(InputError, match=message):
        mesh.check_batch(*batch, mesh.make(MeshConfig(*sizes)), 'config.data.batch_size')


def test_an_axis_that_does_not_divide_a_parameter_names_it():
    with pytest.raises(
        InputError, match=r"mesh.tensor = 8 cannot divide the 4 in parameter '.*kernel'"
    ):
        mesh.parameter_shardings(shapes(), mesh.make(MeshConfig(1, 1, 8, 1)))


def test_prefetch_keeps_order_and_runs_ahead():
    made = []
    items = mesh.prefetch(range(5), 2, lambda i: made.append(i) or i)
    assert next(items) == 0
    assert made == [0, 1, 2]
    assert list(items) == [1, 2, 3, 4]


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((2, 2))
    assert mesh.constrain(x, ('data', None)) is x

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import lm
from lm import config as configs
from lm import mesh, tree
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
    device_mesh = mesh.make(mesh.sizes(1, 4, 2, 1))
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
            {'adapter': {'kernel': jnp.zeros((4, 4))}}, mesh.make(mesh.sizes(8, 1, 1, 1))
        )


def test_optimizer_state_lies_as_its_parameter_does():
    params = shapes()
    state = {
        'mu': params,
        'count': jax.ShapeDtypeStruct((), jnp.int32),
        'factored': {'embed': {'embedding': jax.ShapeDtypeStruct((64,), jnp.float32)}},
    }
    shardings = mesh.state_shardings(state, params, mesh.make(mesh.sizes(1, 4, 2, 1)))
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
        mesh.make(mesh.sizes(*sizes))


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(mesh.make(mesh.sizes(-1, 2, 2, 1)).shape) == {
        'stage': 1, 'data': 2, 'fsdp': 2, 'expert': 1, 'sequence': 1, 'tensor': 2,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device says of itself."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = 'gpu'
    device_kind: str = 'chip'


def slices_along(config, devices):
    """Returns by axis whether there is more than one slice along it."""
    where = np.vectorize(lambda device: device.slice_index)(mesh.make(config, devices).devices)
    return [a for i, a in enumerate(mesh.AXES) if (where != where.take([0], axis=i)).any()]


@pytest.mark.parametrize(
    ('config', 'axes'),
    [
        (mesh.sizes(-1, 1, 2, 2), ['data']),
        (mesh.sizes(4, 2, 1, 1), ['data']),
        (mesh.sizes(1, 4, 2, 1), ['fsdp']),
        (mesh.sizes(2, 2, 1, 1, stage=2), ['data']),
        (mesh.sizes(2, 2, 1, 1, stage=2, across='stage'), ['stage']),
        (mesh.sizes(1, 1, 4, 1, stage=2), ['stage']),
        (mesh.sizes(1, 1, 8, 1), ['tensor']),  # Nothing else is left.
    ],
)
def test_slices_are_joined_by_an_outer_axis(config, axes):
    # They come in any order.
    assert slices_along(config, [Chip(i, i % 2) for i in range(8)]) == axes


def test_slices_of_devices_that_say_nothing():
    config = mesh.sizes(2, 1, 4, 1, stage=1, slices=2)
    ids = np.vectorize(lambda device: device.id)(mesh.make(config).devices).squeeze()
    assert ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ('config', 'rows'),
    [
        (mesh.sizes(4, 2), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (mesh.sizes(2, 1, 1, 2, expert=2), [(0,), (1,), (2,), (3,)]),
        (mesh.sizes(2, 1, 4), [(0,), (0,), (1,), (1,)]),  # Heads are split over two hosts.
        (mesh.sizes(4, 1, 1, stage=2), [(0, 1), (2, 3), (0, 1), (2, 3)]),
        (mesh.sizes(2, 1, 1, stage=4), [(0, 1)] * 4),
    ],
)
def test_hosts_make_the_rows_that_their_devices_hold(config, rows, monkeypatch):
    device_mesh = mesh.make(config, [Chip(i, 0, i // 2) for i in range(8)])
    for host, own in enumerate(rows):
        monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
        assert mesh.rows_here(device_mesh) == (mesh.row_shards(device_mesh), own)


def test_rows_of_hosts_that_do_not_lie_side_by_side(monkeypatch):
    grid = np.array([Chip(i, 0, host) for i, host in enumerate((0, 1, 0, 1))])
    device_mesh = jax.sharding.Mesh(grid.reshape(1, 4, 1, 1, 1, 1), mesh.AXES)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    assert mesh.rows_here(device_mesh) == (4, (1, 3))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'slices': 2, 'across': 'fsdp'}, "across = 'fsdp': 2 slices cannot divide .*mean 'data'"),
        ({'across': 'tensor'}, "across.*'tensor'"),
        ({'slices': 3}, 'slices = 3, and there are 8 devices'),
    ],
)
def test_bad_slices(config, message):
    with pytest.raises(InputError, match=message):
        mesh.make(mesh.sizes(8, 1, 1, 1, **config))


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
        mesh.check_batch(*batch, mesh.make(mesh.sizes(*sizes)), 'config.data.batch_size')


def test_an_axis_that_does_not_divide_a_parameter_names_it():
    with pytest.raises(
        InputError, match=r"mesh.tensor = 8 cannot divide the 4 in parameter '.*kernel'"
    ):
        mesh.parameter_shardings(shapes(), mesh.make(mesh.sizes(1, 1, 8, 1)))


def test_prefetch_keeps_order_and_runs_ahead():
    made = []
    items = mesh.prefetch(range(5), 2, lambda i: made.append(i) or i)
    assert next(items) == 0
    assert made == [0, 1, 2]
    assert list(items) == [1, 2, 3, 4]


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((2, 2))
    assert mesh.constrain(x, ('data', None)) is x

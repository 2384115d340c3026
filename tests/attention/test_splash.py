"""The TPU kernel, interpreted on CPU, against the plain form, in value and gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from lm import attention, backend
from lm import mesh as meshes
from lm.attention import choose, dense, splash, splash_parts, table
from lm.attention.block import PLAIN, Extras
from lm.attention.choose import Case
from lm.attention.expression import parse
from lm.errors import InputError

T = 200  # Not whole blocks of 128.
SEGMENTS = np.repeat([[1, 1, 2, 0], [1, 2, 3, 3]], T // 4, axis=1)
# The last queries of the first row see nothing at all.
BLIND = np.concatenate([SEGMENTS[:, :150], [[7] * 50, [3] * 50]], axis=1)


def arrays(batch=2, length=T, heads=2, groups=2, width=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (heads, groups, groups, heads)
    return [
        jax.random.normal(k, (batch, length, n, width)).astype(dtype)
        for k, n in zip(keys, sizes, strict=True)
    ]


def run(form, inputs, mask, **options):
    """Returns the result, and gradients of its product with weights."""
    *inputs, weights = inputs

    def loss(*inputs):
        out = form(*inputs, parse(mask, 'mask'), **options)
        return jnp.sum(weights.astype(jnp.float32) * out), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    return out, *gradients


def check(inputs, mask, **options):
    ours = run(splash.attend, inputs, mask, interpret=True, **options)
    theirs = run(dense.attend, inputs, mask, **options)
    for a, b, atol in zip(ours, theirs, (2e-6, 2e-5, 2e-5, 2e-5), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
    return ours


@pytest.mark.parametrize(
    'mask',
    [
        'causal',
        'full',
        'causal & window(40)',
        pytest.param('local(40)', marks=pytest.mark.slow),
        'longformer(30, 3)',
        'bigbird(64, 20, 2)',
        pytest.param('sparse_transformer_strided(16)', marks=pytest.mark.slow),
        'sparse_transformer_strided(30)',  # Classes of 7 and 6 tokens.
        'sparse_transformer_fixed(48, 5)',
        'causal & (strided(9) | random_blocks(1, 0, 32))',
        pytest.param('~(causal & chunks(60)) & segments', marks=pytest.mark.slow),
        'causal & ~window(20)',  # The first rows see nothing.
    ],
)
def test_every_mask_is_the_plain_form(mask):
    check(arrays(batch=1), mask)


@pytest.mark.parametrize(
    'mask', ['longformer(30, 130)', pytest.param('bigbird(40, 20, 1)', marks=pytest.mark.slow)]
)
def test_global_tokens_as_parts_of_their_own(mask, monkeypatch):
    monkeypatch.setattr(splash_parts, '_BLOCKS', (128,))
    monkeypatch.setattr(splash_parts, '_PART', -9)
    length = 500
    assert len(splash_parts.parts_of(parse(mask, ''), length, length, 1)) == 3
    check(arrays(batch=1, heads=1, groups=1, length=length), mask)


@pytest.mark.first_quick
@pytest.mark.parametrize(
    ('mask', 'heads', 'groups', 'segments', 'softcap'),
    [
        ('causal', 4, 2, (SEGMENTS, SEGMENTS), None),
        ('full', 2, 1, (BLIND, SEGMENTS), 1.5),
        ('sparse_transformer_strided(16)', 2, 1, (BLIND, SEGMENTS), None),
    ],
)
def test_heads_that_share_keys_segments_and_softcap(mask, heads, groups, segments, softcap):
    out, *gradients = check(
        arrays(heads=heads, groups=groups), mask, segments=segments, extras=Extras(softcap)
    )
    assert all(np.isfinite(g).all() for g in gradients)
    if segments[0] is BLIND:
        assert (np.asarray(out[0, 150:]) == 0).all()
        assert (np.asarray(gradients[0][0, 150:]) == 0).all()


def test_sixteen_bits_are_near_float32():
    ours = run(splash.attend, arrays(dtype=jnp.bfloat16), 'causal', interpret=True)
    plain = run(dense.attend, arrays(dtype=jnp.bfloat16), 'causal')
    exact = run(dense.attend, arrays(), 'causal')
    for a, b, want in zip(ours, plain, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        distance = jnp.linalg.norm(a.astype(jnp.float32) - want)
        assert distance < 1.3 * jnp.linalg.norm(b.astype(jnp.float32) - want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mask', 'heads', 'groups', 'segments'),
    [
        ('causal', 4, 1, None),
        ('longformer(30, 3)', 4, 4, (SEGMENTS, SEGMENTS)),
        ('bigbird(32, 8, 1)', 4, 4, (SEGMENTS, SEGMENTS)),
        ('sparse_transformer_strided(24)', 4, 2, (SEGMENTS, SEGMENTS)),
        ('sparse_transformer_fixed(32, 4)', 6, 3, None),  # Two devices cannot divide three heads.
    ],
)
def test_a_mesh_changes_nothing(mask, heads, groups, segments):
    inputs = arrays(heads=heads, groups=groups)
    mesh = meshes.make(meshes.sizes(2, 1, 2, 2))
    with jax.set_mesh(mesh):
        check(inputs, mask, segments=segments)


def test_rows_that_a_mesh_cannot_divide_are_not_divided():
    mesh = meshes.make(meshes.sizes(4, 1, 2, 1))
    with jax.set_mesh(mesh):
        check(arrays(batch=1, length=77), 'causal')


def test_a_split_row_is_gathered_once_and_its_gradient_scattered():
    mesh = meshes.make(meshes.sizes(1, 1, 1, 2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        inputs = arrays(batch=1, heads=1, groups=1)[:3]
        loss = lambda *x: splash.attend(*x, parse('causal', ''), interpret=True).sum()  # noqa: E731
        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*inputs))
    assert text.count('all_gather[') == 4  # Keys and values, forward and backward.
    assert text.count('reduce_scatter[') == 2
    assert 'psum[' not in text


ORDERS = [
    table.InPlace(100, 64),
    table.ByResidue(100, 8, 12),
    table.ByResidue(96, 4, 16),
    table.OnlySummaries(100, 16, 12, 5),
    table.OnlySummaries(100, 16, 16, 4),
]


@pytest.mark.parametrize('order', ORDERS, ids=str)
@pytest.mark.parametrize('library', [np, jnp])
def test_places_are_computed_as_they_are_in_the_table(order, library):
    places = np.append(table.places(order), [-1] * 40)  # filled up to whole blocks
    computed, there = splash_parts.places_of(order, library.arange(len(places)))
    np.testing.assert_array_equal(np.where(there, computed, -1), places)


def test_the_kernel_goes_through_no_block_that_is_empty():
    orders = splash_parts.orders_of(parse('local(100)', ''), 2**14, 2**14, 1)
    (layout,) = (splash_parts.layout_of(*each, 1) for each in orders)
    assert layout.pairs < 0.07 * 2**28
    assert layout.steps <= 1.1 * (layout.kinds != 0).sum()
    assert layout.pairs == splash.pairs(parse('local(100)', ''), 2**14, 2**14)
    forward, backward, _ = splash_parts.parts_of(parse('local(100)', ''), 2**14, 2**14, 1)[0].tables
    assert (forward.kind != 0).sum() == (backward.kind != 0).sum() == (layout.kinds != 0).sum()
    assert forward.index.dtype == np.int8


def test_global_tokens_do_not_make_every_row_as_long_as_theirs():
    mask = parse('longformer(256, 4)', '')
    layouts = [
        splash_parts.layout_of(*each, 1) for each in splash_parts.orders_of(mask, 2**16, 2**16, 1)
    ]
    assert sum(layout.pairs for layout in layouts) < 0.03 * 2**32
    assert sum(layout.steps for layout in layouts) < 1200


CASE = Case(parse('causal', ''), 1024, 1024, 64, jnp.bfloat16, 'tpu')


def test_a_kernel_that_never_ran_on_its_hardware_runs_only_where_it_is_forced(monkeypatch):
    assert choose.choose(CASE) == 'blocked'
    assert choose.choose(CASE, 'splash') == 'splash'
    text = attention.explain('causal', (1, 1024, 4, 64), 'tpu')
    assert 'never run on a TPU: not chosen by default; force it with config.model.att' in text
    checked = dataclasses.replace(choose.IMPLEMENTATIONS['splash'], checked='TPU v5e')
    monkeypatch.setitem(choose.IMPLEMENTATIONS, 'splash', checked)
    assert choose.choose(CASE) == 'splash'
    assert choose.choose(dataclasses.replace(CASE, sequence=4)) == 'splash'
    assert choose.choose(dataclasses.replace(CASE, platform='cpu')) == 'blocked'
    assert 'never run' not in attention.explain('causal', (1, 1024, 4, 64), 'tpu')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'platform': 'cpu'}, "= 'splash' needs a TPU, and this is a CPU: use 'auto'"),
        ({'extras': PLAIN._replace(slopes=(0.5,))}, 'knows no ALiBi'),
        ({'mask': parse('causal | prefix', ''), 'segments': True}, 'which tokens are a prefix'),
        ({'dtype': jnp.float16}, 'not float16'),
    ],
)
def test_what_the_kernel_cannot_do_is_said(change, message):
    with pytest.raises(InputError, match=message):
        choose.choose(dataclasses.replace(CASE, **change), 'splash')


def test_forced_on_a_cpu_it_says_what_it_needs():
    with pytest.raises(InputError, match='needs a TPU'):
        attention.attend(*arrays()[:3], parse('causal', ''), implementation='splash')


def test_the_platform_is_that_of_the_mesh_whose_devices_need_not_be_here():
    assert backend.platform() == 'cpu'
    device = AbstractDevice('TPU v5 lite', 1, platform='tpu')
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ('data',), abstract_device=device)):
        assert backend.platform() == 'tpu'

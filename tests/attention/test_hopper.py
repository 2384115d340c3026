"""The Hopper kernels, run by JAX's interpreter of GPU kernels on the CPU, against the dense form.

Interpreted are the walk over blocks, copies, barriers between warpgroups, the mask, the softmax and its
gradient: all but the products of matrices, which that of JAX 0.10 knows only for operands in shared memory
(ours take weights from registers), and layouts of registers, which mean nothing there. `interpreted` puts
plain ones in their place. Numbers are float32 then, so that agreement is to float32's precision.

That the kernels compile for the chip is held by `test_hopper_compiled.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import IMPLEMENTATIONS, dense, explain, hopper, hopper_kernels, parse, walk
from lm.attention.block import Extras
from lm.attention.choose import Case, choose
from lm.errors import InputError


@pytest.fixture
def interpreted(monkeypatch):
    """Runs kernels of Mosaic GPU in its interpreter."""
    params = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')

    def value(x):
        return x if isinstance(x, jax.Array) else x[...]

    def product(a, b, transposed=False):
        b = value(b).T if transposed else value(b)
        return jnp.dot(value(a), b, preferred_element_type=jnp.float32)

    monkeypatch.setattr(hopper_kernels, '_product', product)
    monkeypatch.setattr(
        hopper_kernels, '_add_product', lambda acc, *ab, **t: acc + product(*ab, **t)
    )
    monkeypatch.setattr(hopper_kernels, '_spread', lambda x, layout: x)
    with params.force_gpu_interpret_mode(params.InterpretGPUParams()):
        yield


def arrays(length, source, heads, groups, width=64):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (length, heads), (source, groups), (source, groups), (length, heads)
    return [jax.random.normal(k, (1, *s, width)) for k, s in zip(keys, shapes, strict=True)]


def gradients(attend, arguments, mask, options):
    *arguments, weights = arguments

    def loss(*arguments):
        out = attend(*arguments, mask, **options)
        return jnp.sum(weights * out), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arguments)
    return [out, *grads]


def segments(length):
    """Three documents, then tokens that see nothing: no key is of segment 9."""
    ends = np.arange(length)[None]
    keys = 1 + (ends >= 50) + (ends >= 150)
    return jnp.asarray(np.where(ends < 240, keys, 9)), jnp.asarray(np.where(ends < 240, keys, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mask', 'length', 'source', 'heads', 'groups', 'options'),
    [
        ('causal & window(40)', 300, 300, 2, 1, {}),  # Not a whole tile; two heads share keys.
        # More blocks than stages that hold one.
        ('full', 128, 300, 1, 1, {'extras': Extras(softcap=2.0)}),
        ('causal', 256, 256, 1, 1, {'segments': segments(256)}),
        ('causal | prefix', 256, 256, 1, 1, {'in_prefix': jnp.arange(256)[None] < 70}),
        ('bigbird(40, 8, 1)', 256, 256, 1, 1, {}),
        ('~causal & chunks(128)', 256, 256, 1, 1, {}),  # Each chunk's last query sees nothing.
    ],
)
def test_interpreted_is_dense_in_value_and_gradient(
    interpreted, mask, length, source, heads, groups, options
):
    arguments = arrays(length, source, heads, groups)
    ours = gradients(hopper.attend, arguments, parse(mask), options)
    theirs = gradients(dense.attend, arguments, parse(mask), options)
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('columns', [False, True])
@pytest.mark.parametrize('mask', ['causal', 'full', 'window(100)', 'bigbird()', '~full'])
def test_a_walk_goes_once_through_each_block_that_holds_anything(mask, columns):
    length, source, sizes = 600, 700, (128, 64)
    q, k = np.arange(length), np.arange(source)
    allowed = np.zeros((640, 704), bool)
    allowed[:length, :source] = parse(mask).allows(q[:, None], k)
    holds = allowed.reshape(5, 128, 11, 64).any((1, 3))
    allowed[length:] = True  # What queries that fill a tile up see is thrown away.
    is_full = allowed.reshape(5, 128, 11, 64).all((1, 3))
    order = walk.walk(parse(mask), length, source, sizes, columns)
    assert sorted(order.tiles[:, 0]) == list(range(holds.shape[int(columns)]))
    lengths = order.tiles[:, 3] - order.tiles[:, 1]
    assert (np.diff(lengths) <= 0).all()
    blocks = order.blocks % (1 << walk.NUMBER_BITS)
    for tile, first, partial, end in order.tiles:
        row = (slice(None), tile) if columns else tile
        full, whole = blocks[first:partial], blocks[first:end]
        assert len(set(whole)) == len(whole)
        assert set(np.flatnonzero(holds[row])) <= set(whole)
        assert is_full[row][full].all()


def test_a_walk_is_as_long_as_the_mask_is_dense():
    lengths = {
        mask: len(walk.walk(parse(mask), 8192, 8192, (128, 128), columns=False).blocks)
        for mask in ('causal', 'causal & window(256)')
    }
    assert lengths == {'causal': 64 * 65 // 2, 'causal & window(256)': 64 * 3 - 3}


CASE = Case(parse('causal'), 4096, 4096, 64, jnp.dtype('bfloat16'), 'gpu', capability=9.0)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'capability': 8.0}, 'Hopper'),
        ({'capability': 10.0}, 'Hopper'),
        ({'dtype': jnp.dtype('float32')}, "dtype = 'bfloat16', not float32"),
        ({'width': 96}, 'head_dim of 64 or 128, not 96'),
        ({'extras': Extras(slopes=(0.5,))}, 'no ALiBi'),
        ({'devices': 8}, 'one device'),
        ({'whole': False}, ''),
    ],
)
def test_what_it_cannot_do_is_said(change, message):
    case = CASE.__class__(**(vars(CASE) | change))
    if not message:
        assert choose(case, 'hopper') == 'xla'  # A step of decoding.
        return
    with pytest.raises(InputError, match=message):
        choose(case, 'hopper')


def test_it_is_never_chosen_before_it_was_checked_on_its_own_hardware():
    assert choose(CASE, 'hopper') == 'hopper'
    assert not IMPLEMENTATIONS['hopper'].checked
    for mask in ('causal', 'causal & window(256)', 'bigbird()'):
        assert choose(Case(parse(mask), *list(vars(CASE).values())[1:])) != 'hopper'
        assert 'never run on a GPU' in explain(mask, (1, 4096, 8, 64), 'gpu')


@pytest.mark.parametrize(('sizes', 'columns'), [((128, 128), False), ((64, 128), True)])
def test_entries_tell_what_was_drawn_of_random_blocks(sizes, columns):
    length = 1024
    atoms = parse('random_blocks(2, 1)'), parse('random_blocks(1, 5, 128)')
    order = walk.walk(atoms[0] | ~atoms[1], length, length, sizes, columns)
    places = np.arange(length)
    high, low = (size // walk.CELL for size in (sizes[::-1] if columns else sizes))
    for tile, _, partial, end in order.tiles:
        for entry in order.blocks[partial:end]:
            block, bits = entry % (1 << walk.NUMBER_BITS), entry >> walk.NUMBER_BITS
            for i, h, s in np.ndindex(2, high, low):
                q, k = tile * high + h, block * low + s
                q, k = (places.reshape(-1, walk.CELL)[n] for n in ((k, q) if columns else (q, k)))
                drawn = bits >> (i * high * low + h * low + s) & 1
                assert (atoms[i].allows(q[:, None], k) == drawn).all()

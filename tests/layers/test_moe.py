"""Layers of experts against a loop over tokens; over the tables of routers and dispatches, and meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, mesh, tree
from lm.errors import InputError
from lm.layers import router
from lm.layers.mlp import MLP
from lm.layers.moe import MoE, capacity
from lm.layers.tokens import Tokens

BASE = dataclasses.replace(
    config.parse(base.get_config()).model,
    **{'num_layers': 2, 'embed_dim': 8, 'mlp_dim': 12, 'bias': True, 'activation': 'swiglu'},
    **{'experts': 4, 'architecture': 'encoder', 'capacity_factor': 0.75},
)
ROWS, LENGTH = 8, 6
# Rows with two documents, with padding, and of nothing else.
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0], [0] * 6, [1] * 6] * 2, jnp.int32)
KINDS = [(name, way) for name in router.ROUTERS for way in router.DISPATCHES]
kinds = pytest.mark.parametrize(('name', 'way'), KINDS)


def make(**changes):
    """Returns a layer, parameters, and `[B, T, D]`."""
    layer = MoE(dataclasses.replace(BASE, **changes))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, 8)), jnp.float32)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)['params']
    params = jax.tree.map(lambda s: jnp.asarray(0.25 * rng.normal(size=s.shape), s.dtype), shapes)
    return layer, params, x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expert(params, x, number):
    """What an expert makes of a vector, in numpy."""

    def product(name, x):
        weights = params['experts'][name]
        return x @ np.asarray(weights['kernel'][number]) + np.asarray(weights['bias'][number])

    gate = product('gate', x)
    return product('down', product('up', x) * gate * sigmoid(gate))


def choices(name, way, logits, valid, config):
    """The (token, expert, weight) of a row, one after the other, and how many were dropped."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tokens, count, found, dropped = np.nonzero(valid)[0], config.experts_per_token, [], 0
    if name == 'expert_choice':
        room = -(-count * len(tokens) // config.experts)
        for number in range(config.experts):
            best = sorted(tokens, key=lambda t: -probabilities[t, number])[:room]
            found += [(t, number, probabilities[t, number]) for t in best]
        return found, count * (len(tokens) - len({t for t, *_ in found}))
    room = capacity(config, len(logits)) if way == 'capacity' else len(logits)
    taken = [0] * config.experts
    for t in tokens:
        best = np.argsort(-probabilities[t], kind='stable')[:count]
        total = 1.0 if name == 'softmax' else probabilities[t, best].sum()
        for number in best:
            if taken[number] < room:
                found.append((t, number, probabilities[t, number] / total))
            else:
                dropped += 1
            taken[number] += 1
    return found, dropped


@pytest.mark.first_quick
@kinds
def test_equals_a_loop_over_tokens(name, way):
    layer, params, x = make(router=name, expert_dispatch=way)
    tokens = Tokens(segments=SEGMENTS)
    out, sown = layer.apply({'params': params}, x, tokens, False, mutable=['experts'])
    want, dropped = np.zeros(x.shape), 0
    for row in range(ROWS):
        logits = np.asarray(x[row] @ params['router']['kernel'])
        found, lost = choices(name, way, logits, np.asarray(SEGMENTS[row]) > 0, layer.config)
        dropped += lost
        for t, number, weight in found:
            want[row, t] += weight * expert(params, np.asarray(x[row, t]), number)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert dropped > 0 or way == 'dropless' or name == 'expert_choice'
    np.testing.assert_allclose(sown['experts']['dropped'] * 2, dropped, rtol=1e-6)


@pytest.mark.parametrize('way', router.DISPATCHES)
@pytest.mark.parametrize('activation', ['gelu', 'swiglu'])
def test_one_expert_is_the_mlp(activation, way):
    layer, params, x = make(
        **{'experts': 1, 'experts_per_token': 1, 'activation': activation},
        **{'expert_dispatch': way, 'capacity_factor': 1.0},
    )
    dense = jax.tree.map(lambda leaf: leaf[0], params['experts'])
    got = layer.apply({'params': params}, x, deterministic=False)
    want = MLP(layer.config).apply({'params': dense}, x)
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=1e-6)


def pulled(layer, params, x, segments=SEGMENTS):
    """Returns the output, and the gradient of it and of what is sown."""

    def loss(params, x):
        tokens = Tokens(segments=segments)
        out, sown = layer.apply({'params': params}, x, tokens, False, mutable=['experts'])
        return jnp.sum(jnp.sin(out)) + sown['experts']['loss'], out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)


def everything(params, x, experts, weights):
    """`[B, T, D]` by all experts for all tokens, most with weight 0; in jax, to be differentiated."""
    one_hot = jax.nn.one_hot(experts, params['experts']['up']['kernel'].shape[0])
    weights = jnp.einsum('btk,btke->bte', weights, one_hot)

    def product(name, x):
        leaf = params['experts'][name]
        return jnp.einsum('ebtd,edf->ebtf', x, leaf['kernel']) + leaf['bias'][:, None, None]

    x = jnp.broadcast_to(x, (4, *x.shape))
    y = product('down', product('up', x) * jax.nn.silu(product('gate', x)))
    return jnp.einsum('bte,ebtd->btd', weights, y)


@pytest.mark.parametrize('name', [k for k, v in router.ROUTERS.items() if v.by_token])
@pytest.mark.parametrize('way', router.DISPATCHES)
def test_gradients_where_there_is_room_for_all(name, way):
    layer, params, x = make(router=name, expert_dispatch=way, capacity_factor=4.0)
    layer = MoE(dataclasses.replace(layer.config, balance_loss=0.0, router_z_loss=0.0))
    valid = (SEGMENTS > 0)[..., None]

    def loss(params, x):
        chosen = router.ROUTERS[name].choose(x @ params['router']['kernel'], 2)
        out = everything(params, x, chosen.experts, jnp.where(valid, chosen.weights, 0))
        return jnp.sum(jnp.sin(out)), out

    want = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    got = pulled(layer, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), got, want)


@pytest.mark.first_quick
@kinds
def test_padding_is_nothing(name, way):
    """Whatever stands there, and however much there is; its output is 0, and it is in no loss."""
    layer, params, x = make(router=name, expert_dispatch=way)
    want = pulled(layer, params, x)
    np.testing.assert_array_equal(want[0][1] * (SEGMENTS == 0)[..., None], 0)
    other = jnp.where((SEGMENTS > 0)[..., None], x, 7.0)
    jax.tree.map(np.testing.assert_array_equal, pulled(layer, params, other), want)
    if way == 'capacity' and name != 'expert_choice':
        return  # Room is for the whole row: what stands in it must not say how long the text is.
    longer = jnp.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)
    segments = jnp.pad(SEGMENTS, ((0, 0), (0, 4)))
    (loss, out), (gradients, _) = pulled(layer, params, longer, segments)
    np.testing.assert_allclose(loss, want[0][0], rtol=1e-6)
    np.testing.assert_allclose(out[:, :LENGTH], want[0][1], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, want[1][0])


@pytest.mark.first_quick
@pytest.mark.parametrize('way', router.DISPATCHES)
@pytest.mark.parametrize('name', [k for k, v in router.ROUTERS.items() if v.causal])
def test_no_token_depends_on_a_later_one(name, way):
    """In values, since what is dropped has no gradient."""
    layer, params, x = make(router=name, expert_dispatch=way)
    want = layer.apply({'params': params}, x, deterministic=False)
    for t in range(1, LENGTH):
        later = x.at[:, t:].set(-3 * x[:, t:] + 1)
        got = layer.apply({'params': params}, later, deterministic=False)
        np.testing.assert_allclose(got[:, :t], want[:, :t], atol=1e-6)


def test_a_capacity_is_for_training():
    layer, params, x = make(expert_dispatch='capacity')
    want = make(expert_dispatch='dropless')[0].apply({'params': params}, x)
    np.testing.assert_array_equal(layer.apply({'params': params}, x), want)
    assert not np.allclose(layer.apply({'params': params}, x, deterministic=False), want)


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'sizes', [(1, 2, 1, 1, 4), (2, 1, 2, 1, 2), (1, 1, 2, 2, 2), (8, 1, 1, 1, 1)]
)
@pytest.mark.parametrize(('name', 'way'), KINDS[-1:] + KINDS[:-1])
def test_sharded_equals_unsharded(name, way, sizes):
    """In values, gradients and losses; the axes are data, fsdp, tensor, sequence, expert."""
    layer, params, x = make(router=name, expert_dispatch=way)
    want = pulled(layer, params, x)
    devices = mesh.make(mesh.sizes(*sizes))
    wrapped = {'layers': {'mlp': params}}
    shardings = mesh.parameter_shardings(wrapped, devices)['layers']['mlp']
    rows = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(mesh.ROWS, 'sequence'))
    segments = jax.device_put(SEGMENTS, rows)
    with jax.set_mesh(devices):
        got = pulled(layer, jax.device_put(params, shardings), jax.device_put(x, rows), segments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


@pytest.mark.slow
@kinds
def test_sums_add_up_over_rows(name, way):
    """So that accumulation is exact; but the load of the busiest expert is of a batch."""
    layer, params, x = make(router=name, expert_dispatch=way)

    def sums(rows):
        tokens = Tokens(segments=SEGMENTS[rows])
        return layer.apply({'params': params}, x[rows], tokens, False, mutable=['experts'])[1]

    whole, parts = (
        sums(slice(None))['experts'],
        [sums(slice(i, i + 2))['experts'] for i in (0, 2, 4, 6)],
    )
    for key in ('loss', 'balance', 'z', 'dropped'):
        np.testing.assert_allclose(sum(part[key] for part in parts), whole[key], rtol=1e-5)


def test_bfloat16_is_near():
    layer, params, x = make()
    half = MoE(dataclasses.replace(layer.config, dtype='bfloat16'))
    out = half.apply({'params': params}, x)
    assert out.dtype == jnp.bfloat16
    want = layer.apply({'params': params}, x.astype('bfloat16').astype(jnp.float32))
    np.testing.assert_allclose(out.astype(jnp.float32), want, rtol=0.02, atol=0.05)


# --- literal examples -----------------------------------------------------------------------------


def test_slots_of_experts_that_are_full():
    chosen = router.Chosen(
        jnp.array([[[0], [0], [1], [0], [1]]]), jnp.arange(1.0, 6)[None, :, None]
    )
    valid = jnp.array([[True, True, True, True, False]])
    slots = router.slots(chosen, valid, experts=2, capacity=2)
    np.testing.assert_array_equal(
        slots.places, [[[0, 1], [2, 5]]]
    )  # Token 3 is dropped; 4 is padding.
    np.testing.assert_array_equal(slots.weights, [[[1, 2], [3, 0]]])


def test_experts_choose():
    logits = jnp.log(jnp.array([[[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.01, 0.99]]]))
    valid = jnp.array([[True, True, True, False]])
    slots = router.expert_choice(logits, valid, 1)  # Of 3 tokens 2 each.
    np.testing.assert_array_equal(slots.places, [[[0, 2], [1, 2]]])
    np.testing.assert_allclose(slots.weights, [[[0.9, 0.8], [0.4, 0.2]]], rtol=1e-6)


def test_balance_is_one_if_even_and_as_many_as_experts_if_not():
    valid = jnp.ones((1, 3), bool)
    even = router.balance(jnp.zeros((1, 3, 4)), jnp.full((1, 4), 3.0), valid)
    np.testing.assert_allclose(even, 3.0)
    one = jnp.zeros((1, 3, 4)).at[..., 2].set(50.0)
    worst = router.balance(one, jnp.array([[0.0, 0, 3, 0]]), valid)
    np.testing.assert_allclose(worst, 12.0, rtol=1e-6)


def test_z_is_the_square_of_log_z():
    logits = jnp.log(jnp.array([[[1.0, 3.0], [5.0, 5.0]]]))
    found = router.z(logits, jnp.array([[True, False]]))
    np.testing.assert_allclose(found, np.log(4) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'router': 'softmx'}, "Did you mean 'softmax'"),
        ({'expert_dispatch': 'droples'}, "Did you mean 'dropless'"),
        ({'experts_per_token': 5}, 'experts_per_token = 5 is more than config.model.experts = 4'),
        ({'experts_per_token': 1}, "learns nothing from it. Did you mean 'softmax'"),
        ({'router': 'expert_choice', 'architecture': 'decoder'}, 'sees later tokens'),
    ],
)
def test_wrong_configs(changes, message):
    with pytest.raises(InputError, match=message):
        router.check(dataclasses.replace(BASE, **changes))


@pytest.mark.parametrize('changes', [{'router': 'expert_choice'}, {'expert_dispatch': 'capacity'}])
def test_a_permutation_has_another_order(changes):
    with pytest.raises(InputError, match="Did you mean '(softmax_top_k|dropless)'"):
        router.check(dataclasses.replace(BASE, **changes), streams=True)


def test_experts_are_split_over_their_axis():
    _, params, _ = make()
    devices = mesh.make(mesh.sizes(fsdp=2, tensor=2, expert=2))
    shardings = tree.by_path(mesh.parameter_shardings({'layers': {'mlp': params}}, devices))
    split = functools.partial(jax.sharding.PartitionSpec)
    assert shardings['layers/mlp/experts/up/kernel'].spec == split('expert', 'fsdp', 'tensor')
    assert shardings['layers/mlp/experts/down/kernel'].spec == split('expert', 'tensor', 'fsdp')
    odd = {'layers': {'mlp': make(experts=3)[1]}}
    with pytest.raises(
        InputError, match="mesh.expert = 2 cannot divide the 3 in parameter 'layers/mlp/"
    ):
        mesh.parameter_shardings(odd, devices)

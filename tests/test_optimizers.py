import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, optimizers
from lm.errors import InputError

BASE = config.parse(config.load('base'))
SCHEDULE = dataclasses.replace(BASE.schedule, warmup_steps=4, final_scale=0.1)


def params():
    key = jax.random.key(0)
    return {
        'embed': {'embedding': jax.random.normal(key, (6, 4))},
        'layers': {
            'attention': {
                'query': {'kernel': jax.random.normal(key, (2, 4, 2, 2))},
                'out': {'kernel': jax.random.normal(key, (2, 2, 2, 4))},
            },
            'mlp': {'up': {'kernel': jax.random.normal(key, (2, 4, 8)), 'bias': jnp.ones((2, 8))}},
        },
        'final_norm': {'scale': jnp.ones(4)},
    }


@pytest.mark.parametrize('kind', optimizers.SCHEDULES)
def test_schedule_warms_up_to_the_peak_and_never_exceeds_it(kind):
    rate = optimizers.schedule(dataclasses.replace(SCHEDULE, kind=kind), 2.0, 20)
    values = np.array([rate(step) for step in range(20)])
    np.testing.assert_allclose(values[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert values[4] == pytest.approx(2.0)
    assert np.all(np.diff(values[4:]) <= 0)
    assert np.all(values > 0)


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('cosine', 0.1 + 0.9 * 0.5),
        ('linear', 0.55),
        ('exponential', 0.1**0.5),
        ('polynomial', 0.1 + 0.9 * 0.25),
        ('wsd', 1.0),
        ('constant', 1.0),
        ('inverse_sqrt', (4 / 12) ** 0.5),
    ],
)
def test_schedule_half_way(kind, expected):
    rate = optimizers.schedule(dataclasses.replace(SCHEDULE, kind=kind), 1.0, 20)
    assert float(rate(12)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('kind', ['cosine', 'linear', 'exponential', 'polynomial', 'wsd'])
def test_schedule_ends_at_the_final_scale(kind):
    rate = optimizers.schedule(dataclasses.replace(SCHEDULE, kind=kind), 1.0, 20)
    assert float(rate(20)) == pytest.approx(0.1, rel=1e-5)


def test_adamw_is_optax_adamw():
    c = dataclasses.replace(BASE.optimizer, clip_norm=0.0, weight_decay=0.1, decay_paths='kernel$')
    tree, grads = params(), jax.tree.map(lambda p: jnp.sin(7 * p), params())

    def mask(p):
        return jax.tree_util.tree_map_with_path(lambda path, _: 'kernel' in str(path[-1]), p)

    ours = optimizers.build(c, lambda step: 0.01 / (1 + step))
    theirs = optax.adamw(
        lambda step: 0.01 / (1 + step), c.b1, c.b2, c.eps, weight_decay=0.1, mask=mask
    )
    a, b = ours.init(tree), theirs.init(tree)
    x = y = tree
    our_update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(3):
        update, a = our_update(grads, a, x)
        x = optax.apply_updates(x, update)
        update, b = their_update(grads, b, y)
        y = optax.apply_updates(y, update)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-6, atol=1e-7), x, y)


@pytest.mark.first_quick
@pytest.mark.parametrize('name', [*optimizers.OPTIMIZERS, 'rmsprop', 'lamb', 'ademamix'])
def test_every_optimizer_lowers_a_quadratic_and_decays_by_path(name):
    c = dataclasses.replace(BASE.optimizer, name=name, weight_decay=0.0)
    optimizer = optimizers.build(c, lambda step: 0.02)

    def loss(p):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(p))

    @jax.jit
    def step(tree, state):
        updates, state = optimizer.update(jax.grad(loss)(tree), state, tree)
        return optax.apply_updates(tree, updates), state

    tree = params()
    state = optimizer.init(tree)
    for _ in range(10):
        tree, state = step(tree, state)
    assert loss(tree) < loss(params())

    # With no gradient, what is left is the decay: learning rate times weight decay, where it applies.
    c = dataclasses.replace(c, weight_decay=0.5, decay_paths=r'mlp/.*kernel$')
    with_decay = optimizers.build(c, lambda step: 0.02)
    without = optimizers.build(dataclasses.replace(c, weight_decay=0.0), lambda step: 0.02)
    zeros = jax.tree.map(jnp.zeros_like, params())
    a, _ = with_decay.update(zeros, with_decay.init(params()), params())
    b, _ = without.update(zeros, without.init(params()), params())
    difference = jax.tree.map(jnp.subtract, a, b)
    kernel = params()['layers']['mlp']['up']['kernel']
    np.testing.assert_allclose(
        difference['layers']['mlp']['up']['kernel'], -0.02 * 0.5 * kernel, rtol=1e-5
    )
    assert not np.any(difference['embed']['embedding'])


def test_muon_orthogonalises_each_expert_by_itself():
    c = dataclasses.replace(BASE.optimizer, name='muon', weight_decay=0.0, clip_norm=0.0)
    rng = np.random.default_rng(0)
    shapes = {'router': (2, 4, 3), 'up': (2, 3, 4, 4)}
    drawn = {name: {'kernel': jnp.asarray(rng.normal(size=s))} for name, s in shapes.items()}
    tree = {'layers': {'mlp': {'router': drawn['router'], 'experts': {'up': drawn['up']}}}}
    optimizer = optimizers.build(c, lambda step: 1.0)
    update, _ = optimizer.update(tree, optimizer.init(tree), tree)
    update = update['layers']['mlp']
    for matrix in update['experts']['up']['kernel'].reshape(6, 4, 4):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular.min() > 0.4 * singular.max()
    size = np.abs(update['router']['kernel'])  # Adam's.
    np.testing.assert_allclose(size, size[0, 0, 0], rtol=1e-4)


def test_muon_orthogonalises_each_layer_by_itself():
    c = dataclasses.replace(BASE.optimizer, name='muon', weight_decay=0.0, clip_norm=0.0)
    optimizer = optimizers.build(c, lambda step: 1.0)
    tree = params()
    update, _ = optimizer.update(tree, optimizer.init(tree), tree)
    for name, shape in (('query', (4, 4)), ('out', (4, 4))):
        for layer in update['layers']['attention'][name]['kernel']:
            singular = np.linalg.svd(np.reshape(layer, shape), compute_uv=False)
            assert singular.min() > 0.4 * singular.max()
    # All else is Adam's, whose first step has one size for all.
    size = np.abs(update['embed']['embedding'])
    np.testing.assert_allclose(size, size[0, 0], rtol=1e-4)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'name': 'adafator'}, "Did you mean 'adafactor'"),
        (
            {'options': {'b11': 1.0}},
            "options.b11 is not an argument of optax's adamw. Did you mean 'b1'",
        ),
        ({'decay_paths': '('}, 'is not a regular expression'),
    ],
)
def test_bad_optimizer(changes, message):
    with pytest.raises(InputError, match=message):
        optimizers.build(dataclasses.replace(BASE.optimizer, **changes), lambda step: 1.0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'kind': 'cosin'}, "config.schedule.kind = 'cosin' is not known. Did you mean 'cosine'"),
        ({'warmup_steps': 30}, 'warmup_steps = 30 is more than config.train.steps = 20'),
        ({'kind': 'exponential', 'final_scale': 0.0}, 'must be above 0'),
    ],
)
def test_bad_schedule(changes, message):
    with pytest.raises(InputError, match=message):
        optimizers.schedule(dataclasses.replace(SCHEDULE, **changes), 1.0, 20)

"""The same numbers on every mesh, in every form, with any accumulation, packed or not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import config as configs
from lm import mesh, optimizers, tree
from lm.data import pack
from lm.objectives import OBJECTIVES
from lm.step import Steps, evaluated_params

ROWS, LENGTH, VOCAB, STEPS = 8, 16, 32, 20
ONE_DEVICE = {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}


def make_config(**sections):
    sections = {k: dict(v) for k, v in sections.items()}
    model = {'num_layers': 2, 'embed_dim': 16, 'num_heads': 4, 'num_kv_heads': 2}
    return configs.parse(
        lm.get_config(
            'base',
            data={'length': LENGTH, 'batch_size': ROWS} | sections.pop('data', {}),
            model=model | sections.pop('model', {}),
            optimizer={'learning_rate': 1e-2} | sections.pop('optimizer', {}),
            schedule={'warmup_steps': 2},
            mesh=sections.pop('mesh', ONE_DEVICE),
            train={'steps': STEPS},
            **sections,
        )
    )


def make_steps(config):
    rate = optimizers.schedule(config.schedule, config.optimizer.learning_rate, config.train.steps)
    sizes = [getattr(config.mesh, axis) for axis in mesh.AXES]
    device_mesh = mesh.make(config.mesh, jax.devices()[: int(np.prod(sizes))])
    with jax.set_mesh(device_mesh):
        return Steps(
            config, VOCAB, device_mesh, optimizers.build(config.optimizer, rate)
        ), device_mesh


def documents(step, sizes):
    """Sequences with something to learn: each token is the last one, plus one or two."""
    rng = np.random.default_rng(step)
    return [(rng.integers(VOCAB) + np.cumsum(rng.integers(1, 3, n + 1))) % VOCAB for n in sizes]


def assemble(rows):
    """Rows of documents as a batch [B, T]."""
    rows = [[OBJECTIVES['causal'].function(tokens, None, None) for tokens in row] for row in rows]
    fields = [pack.assemble(row, LENGTH) for row in rows]
    return {name: np.stack([row[name] for row in fields]) for name in fields[0]}


def packed_batch(step):
    """Two documents in each row, of 10 and 5 targets; one position is padding."""
    docs = documents(step, [10, 5] * ROWS)
    return assemble([docs[i : i + 2] for i in range(0, len(docs), 2)])


def unpacked_batch(step):
    """The same documents, each in a row of its own."""
    return assemble([[doc] for doc in documents(step, [10, 5] * ROWS)])


def run(config, make_batch=packed_batch, count=STEPS):
    steps, device_mesh = make_steps(config)
    losses = []
    with jax.set_mesh(device_mesh):
        state = steps.init()
        for step in range(count):
            state, metrics = steps.train(state, mesh.put(make_batch(step), device_mesh))
            losses.append(float(metrics['nats']))
    return losses, jax.device_get(state)


@functools.cache
def reference():
    losses, state = run(make_config())
    assert (
        losses[-1] < 0.75 * losses[0]
    )  # it learns: equal numbers of a dead model would prove nothing
    return losses, state


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 1, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)])
def test_every_mesh_gives_the_losses_of_one_device(sizes):
    losses, _ = run(make_config(mesh=dict(zip(ONE_DEVICE, sizes, strict=True))))
    np.testing.assert_allclose(losses, reference()[0], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('section', 'values'),
    [
        ('optimizer', {'accumulation': 2}),
        ('optimizer', {'accumulation': 4}),
        ('model', {'scan_layers': False}),
        ('model', {'remat': 'dots'}),
        ('model', {'remat': 'full'}),
        ('model', {'remat': 'full', 'scan_layers': False}),
        ('loss', {'max_logits_mb': 1}),
    ],
    ids=str,
)
def test_every_form_of_the_step_gives_the_same_losses(section, values, monkeypatch):
    if section == 'loss':  # so small a limit that the loss is computed in pieces
        from lm import losses

        monkeypatch.setattr(losses, 'chunks_for', lambda *_: 4)
    found, _ = run(make_config(**{section: values}))
    np.testing.assert_allclose(found, reference()[0], rtol=0, atol=1e-5)


@functools.cache
def run_of_experts(*items):
    """Losses of a few steps with experts in every other layer; items are a config's sections."""
    sections = {section: dict(values) for section, values in items}
    experts = {'experts': 4, 'expert_every': 2}
    model = {'model': experts | sections.pop('model', {})}
    return run(make_config(**model, **sections), count=6)[0]


@pytest.mark.slow
@pytest.mark.parametrize('way', ['dropless', 'capacity'])
@pytest.mark.parametrize(
    ('section', 'values'),
    [
        ('optimizer', {'accumulation': 2}),
        ('mesh', {'fsdp': 2, 'expert': 4, 'data': 1}),
        ('mesh', {'tensor': 2, 'expert': 2, 'data': 2}),
    ],
    ids=str,
)
def test_experts_give_the_same_losses_in_parts_and_on_meshes(section, values, way):
    """Those of the routers too: without them the gradients would not be the same."""
    model = ('model', (('expert_dispatch', way),))
    found = run_of_experts(model, (section, tuple(values.items())))
    np.testing.assert_allclose(found, run_of_experts(model), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_accumulation_on_a_mesh():
    config = make_config(
        mesh={'data': 2, 'fsdp': 1, 'tensor': 2, 'sequence': 2}, optimizer={'accumulation': 4}
    )
    np.testing.assert_allclose(run(config)[0], reference()[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_packed_and_unpacked_documents_give_the_same_losses():
    config = make_config(data={'batch_size': 2 * ROWS, 'packing': False})
    losses, _ = run(config, unpacked_batch)
    np.testing.assert_allclose(losses, reference()[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_run_repeats_to_the_bit():
    _, state = run(make_config(), count=STEPS)
    jax.tree.map(np.testing.assert_array_equal, state.params, reference()[1].params)


def bad_batch(step):
    return packed_batch(step) | {'loss_weights': np.full((ROWS, LENGTH), np.inf, np.float32)}


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_but_counters():
    config = make_config(optimizer={'ema_decay': 0.9})
    steps, device_mesh = make_steps(config)
    with jax.set_mesh(device_mesh):
        state = steps.init()
        state, _ = steps.train(state, mesh.put(packed_batch(0), device_mesh))
        before = jax.device_get(state)
        for expected in (1, 2):
            state, metrics = steps.train(state, mesh.put(bad_batch(1), device_mesh))
            assert metrics['skipped_in_a_row'] == expected
        after = jax.device_get(state)
        same = (
            (after.params, after.opt_state, after.ema),
            (before.params, before.opt_state, before.ema),
        )
        jax.tree.map(np.testing.assert_array_equal, *same)
        assert after.step == 3
        assert after.skipped == 2
        state, metrics = steps.train(state, mesh.put(packed_batch(1), device_mesh))
        assert metrics['skipped_in_a_row'] == 0
        assert metrics['skipped'] == 2
        assert np.isfinite(metrics['nats'])


@pytest.mark.slow
def test_ema_is_the_average_of_the_parameters():
    config = make_config(optimizer={'ema_decay': 0.75})
    steps, device_mesh = make_steps(config)
    with jax.set_mesh(device_mesh):
        state = steps.init()
        average = jax.device_get(state.params)
        for step in range(3):
            state, _ = steps.train(state, mesh.put(packed_batch(step), device_mesh))
            params = jax.device_get(state.params)
            average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
            average,
            evaluated_params(state),
        )


@pytest.mark.slow
def test_dropout_acts_in_training_only_and_differs_by_step():
    config = make_config(model={'dropout': 0.5}, optimizer={'learning_rate': 0.0})
    steps, device_mesh = make_steps(config)
    with jax.set_mesh(device_mesh):
        state, batch = steps.init(), mesh.put(packed_batch(0), device_mesh)
        state, first = steps.train(state, batch)
        state, second = steps.train(state, batch)
        sums = [steps.evaluate(state.params, batch) for _ in range(2)]
    assert first['nats'] != second['nats']
    assert sums[0]['nats'] == sums[1]['nats']


@pytest.mark.slow
def test_smoothing_and_z_loss_are_in_the_objective_and_not_in_the_nats():
    plain, _ = run(make_config(), count=1)
    config = make_config(loss={'label_smoothing': 0.1, 'z_loss': 1e-2})
    steps, device_mesh = make_steps(config)
    with jax.set_mesh(device_mesh):
        state, batch = steps.init(), mesh.put(packed_batch(0), device_mesh)
        sums = steps.evaluate(state.params, batch)
        _, metrics = steps.train(state, batch)
    assert float(metrics['nats']) == pytest.approx(plain[0], abs=1e-6)
    assert metrics['loss'] > metrics['nats']
    assert sums['loss'] == sums['nats']


def test_gradient_is_clipped_to_the_global_norm():
    config = make_config(
        optimizer={'name': 'sgd', 'b1': 0.0, 'clip_norm': 1e-3, 'weight_decay': 0.0}
    )
    config = dataclasses.replace(
        config, schedule=dataclasses.replace(config.schedule, kind='constant', warmup_steps=0)
    )
    steps, device_mesh = make_steps(config)
    with jax.set_mesh(device_mesh):
        state = steps.init()
        before = jax.device_get(state.params)
        state, metrics = steps.train(state, mesh.put(packed_batch(0), device_mesh))
        change = jax.tree.map(lambda a, b: b - a, before, jax.device_get(state.params))
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(change)))
    assert metrics['grad_norm'] > 1e-3
    assert norm == pytest.approx(1e-3 * config.optimizer.learning_rate, rel=1e-2)


@pytest.mark.slow
def test_fingerprint_sees_one_bit_and_not_the_mesh():
    _, state = run(make_config(), count=1)
    fingerprint = jax.jit(tree.fingerprint)
    value = int(fingerprint(state))
    changed = jax.tree.map(np.array, state)
    kernel = changed.params['layers']['mlp']['up']['kernel']
    kernel.view(np.uint32)[1, 2, 3] ^= 1
    assert int(fingerprint(changed)) != value
    swapped = jax.tree.map(np.array, state)
    kernel = swapped.params['layers']['mlp']['up']['kernel']
    kernel[[0, 1]] = kernel[[1, 0]]
    assert int(fingerprint(swapped)) != value
    config = make_config(mesh={'data': 1, 'fsdp': 2, 'tensor': 2, 'sequence': 2})
    steps, _ = make_steps(config)
    sharded = jax.device_put(state, jax.tree.map(lambda s: s.sharding, steps.shapes))
    assert int(fingerprint(sharded)) == value
    assert fingerprint(state).dtype == jnp.uint32


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_fingerprint_of_narrow_floats_is_that_of_their_values(dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid='ignore'):  # Of those that are no numbers.
        values = values[np.isfinite(values)]
    fingerprint = jax.jit(tree.fingerprint)
    whole = int(fingerprint(values))
    assert int(fingerprint(values.astype(np.float32))) == whole
    for place in (0, 1, 40_000):
        changed = values.copy()
        changed.view(np.uint16)[place] ^= 1
        assert int(fingerprint(changed)) != whole

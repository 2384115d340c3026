"""Layers over stages give what one device gives, in the turns that the schedule names."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import config as configs
from lm import mesh, models, terms, tree
from lm.config import RESUMABLE
from lm.errors import InputError
from lm.models import pipeline
from lm.models.pipeline import Schedule

VOCAB, LENGTH, SOURCE, ROWS = 32, 8, 4, 8


def make_config(**model):
    model = {'num_layers': 4, 'embed_dim': 8, 'num_heads': 2, 'mlp_dim': 16} | model
    data = {'length': LENGTH, 'source_length': SOURCE, 'batch_size': ROWS}
    return configs.parse(lm.get_config('base', data=data, model=model))


def make_model(streams=False, **model):
    return models.build(make_config(**model), VOCAB, streams=streams)


def make_batch(model):
    """Two segments in each row, and whatever else a model reads."""
    rng = np.random.default_rng(0)

    def ids(low, high, length=LENGTH):
        return jnp.asarray(rng.integers(low, high, (ROWS, length)), jnp.int32)

    batch = {'segment_ids': jnp.sort(ids(1, 3), axis=1), 'positions': ids(0, LENGTH)}
    if isinstance(model, models.EncoderDecoder):
        segments = jnp.sort(ids(1, 3, SOURCE), axis=1)
        batch |= {'encoder_inputs': ids(0, VOCAB, SOURCE), 'encoder_segment_ids': segments}
    elif model.config.token_types:
        batch['token_types'] = ids(0, model.config.token_types)
    if any('prefix' in kind for kind in model.config.attention):
        batch['in_prefix'] = ids(0, 2) > 0
    if getattr(model, 'streams', False):
        batch['order'] = jnp.argsort(ids(0, 99), axis=1).astype(jnp.int32)
    return batch | {'inputs': ids(0, VOCAB)}


def make_params(model):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), **models.example(model))['params']
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)


def make_mesh(**sizes):
    sizes = mesh.sizes(**sizes)
    count = int(np.prod([getattr(sizes, axis) for axis in mesh.AXES]))
    return mesh.make(sizes, jax.devices()[:count])


def compiled(model, sizes):
    """Returns the loss and its gradient over a mesh, compiled, and its arguments."""
    device_mesh = make_mesh(**sizes)
    pipeline.check(model.config, device_mesh)

    def loss(params, batch):
        out = model.apply({'params': params}, **batch, method='hidden').astype(jnp.float32)
        return jnp.mean(jnp.sin(3 * out + jnp.arange(out.shape[-1])))

    params = make_params(model)
    layout = mesh.parameter_shardings(params, device_mesh), mesh.batch_sharding(device_mesh)
    arguments = jax.device_put((params, make_batch(model)), layout)
    with jax.set_mesh(device_mesh):
        step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout[0]))
        return step.lower(*arguments).compile(), arguments


@functools.cache
def on_one_device(text):
    step, arguments = compiled(make_model(**json.loads(text)), {})
    return jax.device_get(step(*arguments))


def check_that_one_device_agrees(sizes, micro_batches, repeats, **options):
    own = {'pipeline_microbatches': micro_batches, 'pipeline_repeats': repeats}
    step, arguments = compiled(make_model(**options, **own), sizes)
    found, expected = jax.device_get(step(*arguments)), on_one_device(json.dumps(options))
    assert np.std([np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])]) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)


@pytest.mark.first_quick
@pytest.mark.parametrize(
    ('sizes', 'micro_batches', 'repeats'),
    [
        ({'stage': 2, 'data': 2}, 2, 2),
        ({'stage': 2}, 1, 1),
        ({'stage': 4}, 8, 1),
        ({'stage': 2, 'fsdp': 2, 'tensor': 2}, 2, 1),
        ({'stage': 2, 'fsdp': 2, 'tensor': 2}, 4, 2),
        ({'stage': 2, 'sequence': 2, 'expert': 2}, 4, 1),
        ({'stage': 2, 'data': 2, 'sequence': 2}, 2, 2),
    ],
    ids=str,
)
def test_every_mesh_gives_the_loss_and_gradient_of_one_device(sizes, micro_batches, repeats):
    check_that_one_device_agrees(sizes, micro_batches, repeats)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'repeats'),
    [
        ({'architecture': 'encoder_decoder', 'position': 'relative', 'encoder_layers': 2}, 1),
        ({'architecture': 'encoder_decoder', 'position': 'learned', 'remat': 'full'}, 2),
        ({'attention': ['causal & window(4)', 'prefix | causal'], 'norm_placement': 'post'}, 1),
        ({'architecture': 'encoder', 'token_types': 2, 'attention': ['full'], 'remat': 'dots'}, 2),
        ({'architecture': 'encoder', 'position': 'transformer_xl', 'streams': True}, 1),
        ({'attention': ['gated_linear', 'topk(2, 4)'], 'scan_layers': False}, 1),
        ({'num_layers': 12}, 3),
    ],
    ids=str,
)
def test_every_model_gives_the_loss_and_gradient_of_one_device(options, repeats):
    check_that_one_device_agrees({'stage': 2, 'data': 2}, 4, repeats, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('sizes', 'repeats', 'options'),
    [
        ({'stage': 2, 'expert': 2, 'tensor': 2}, 1, {'expert_every': 2}),
        ({'stage': 2, 'fsdp': 2}, 2, {'remat': 'full'}),
        ({'stage': 2}, 1, {'expert_dispatch': 'capacity', 'capacity_factor': 0.5}),
    ],
    ids=str,
)
def test_experts_in_stages_give_and_sow_what_one_device_does(sizes, repeats, options):
    def of(sizes, **own):
        model = make_model(experts=4, balance_loss=0.1, **options, **own)
        device_mesh = make_mesh(**sizes)
        pipeline.check(model.config, device_mesh)

        def loss(params, batch):
            out, sown = model.apply(
                {'params': params}, **batch, method='hidden', deterministic=False, mutable='experts'
            )
            sums = terms.loss.experts_sums(sown['experts'])
            error = jnp.mean(jnp.sin(3 * out + jnp.arange(out.shape[-1])))
            return error + sums['loss'] / (ROWS * LENGTH), sums

        params = make_params(model)
        layout = mesh.parameter_shardings(params, device_mesh), mesh.batch_sharding(device_mesh)
        arguments = jax.device_put((params, make_batch(model)), layout)
        with jax.set_mesh(device_mesh):
            step = jax.jit(jax.value_and_grad(loss, has_aux=True))
            return jax.device_get(step(*arguments))

    ((found, sums), gradient) = of(sizes, pipeline_microbatches=4, pipeline_repeats=repeats)
    ((expected, whole), expected_gradient) = of({})
    for name in ('load', 'worst_load'):  # The busiest expert of each micro-batch may be another.
        assert sums.pop(name) >= whole.pop(name) - 1e-3
    assert set(whole) == {'loss', 'balance', 'z', 'dropped'}
    assert (whole['dropped'] > 0) == ('capacity_factor' in options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (found, sums, gradient),
        (expected, whole, expected_gradient),
    )


# --- the schedule -----------------------------------------------------------------------------------


def drawn(plan):
    """What stages do in each turn: a piece (a letter) and a micro-batch; . is idle."""
    turns = np.arange(plan.iterations)
    rows = []
    for stage in range(plan.stages):
        cells = [plan.work(turn, np.int64(stage)) for turn in turns]
        rows.append([f'{"abc"[piece]}{number}' if busy else '.' for piece, number, busy in cells])
    return [' '.join(row) for row in rows]


@pytest.mark.parametrize(
    ('plan', 'rows'),
    [
        (Schedule(2, 1, 3), ['a0 a1 a2 .', '. a0 a1 a2']),
        (Schedule(2, 2, 2), ['a0 a1 b0 b1 .', '. a0 a1 b0 b1']),
        (Schedule(2, 2, 4), ['a0 a1 b0 b1 a2 a3 b2 b3 .', '. a0 a1 b0 b1 a2 a3 b2 b3']),
        (Schedule(3, 1, 2), ['a0 a1 . .', '. a0 a1 .', '. . a0 a1']),
    ],
)
def test_the_schedule(plan, rows):
    assert drawn(plan) == rows


PLANS = [Schedule(s, r, m) for s in (1, 2, 3, 4) for r in (1, 2, 3) for m in (s, 2 * s)]
PLANS += [Schedule(4, 1, 1), Schedule(3, 1, 5)]


@pytest.mark.parametrize('plan', PLANS, ids=str)
def test_all_is_done_once_in_order_and_idle_is_what_the_formula_says(plan):
    turns, stages = np.arange(plan.iterations)[:, None], np.arange(plan.stages)
    piece, number, busy = plan.work(turns, stages)
    assert np.mean(~busy) == pytest.approx(plan.bubble)
    total = plan.repeats * plan.micro_batches
    assert plan.bubble == (plan.stages - 1) / (total + plan.stages - 1)
    turn, stage = np.nonzero(busy)
    found = plan.iteration(piece[busy], number[busy], stage)
    np.testing.assert_array_equal(found, turn)
    done = set(zip(piece[busy], number[busy], stage, strict=True))
    assert len(done) == total * plan.stages
    for r, m, s in done:  # What it needs was made in the turn before, by the stage before.
        if s or r:
            before = (r, m, s - 1) if s else (r - 1, m, plan.stages - 1)
            assert plan.iteration(*before) == plan.iteration(r, m, s) - 1


@pytest.mark.parametrize('plan', PLANS, ids=str)
def test_pieces_are_sent_to_their_stages_by_permutations(plan):
    rounds = pipeline.moves(plan)
    assert sorted(rounds.flat) == list(range(plan.stages * plan.repeats))
    for pieces in rounds:
        np.testing.assert_array_equal(pieces // plan.repeats, np.arange(plan.stages))
        assert sorted(pieces % plan.stages) == list(range(plan.stages))


# --- what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options',
    [{}, {'architecture': 'encoder_decoder'}, {'attention': ['causal', 'window(4)']}],
    ids=str,
)
def test_a_device_holds_its_stages_layers_alone(options):
    params = make_params(make_model(**options))
    shardings = mesh.parameter_shardings(params, make_mesh(stage=2))
    for path, leaf, sharding in zip(
        tree.paths(params), jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        parts = leaf.size // np.prod(sharding.shard_shape(leaf.shape))
        assert parts == (2 if 'layers/' in path else 1), path


@pytest.mark.slow
@pytest.mark.parametrize('repeats', [1, 2])
def test_layers_are_never_gathered_and_rows_are_passed_on(repeats):
    step, _ = compiled(make_model(pipeline_repeats=repeats), {'stage': 2})
    text = step.as_text()
    assert re.search(r'collective-permute(-start)?\(', text)
    assert not re.search(r'(all-gather|all-to-all)(-start)?\(', text)


@pytest.mark.parametrize('repeats', [1, 2])
@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_the_backward_pass_keeps_no_copies_of_parameters(repeats, remat):
    model = make_model(
        pipeline_repeats=repeats, pipeline_microbatches=4, remat=remat, dtype='bfloat16', mlp_dim=48
    )
    params, batch = make_params(model), make_batch(model)

    def backward(params):
        out, pull = jax.vjp(lambda p: model.apply({'params': p}, **batch, method='hidden'), params)
        return jax.tree.leaves(pull)

    with jax.set_mesh(make_mesh(stage=2)):
        kept = jax.eval_shape(backward, params)
    turns = 4 * repeats + 1
    of_turns = [leaf.shape for leaf in kept if leaf.shape and leaf.shape[0] == turns]
    assert of_turns
    kernel = {8, 48}  # [D, F]: no rows and no positions
    assert not [shape for shape in of_turns if set(shape[3:]) == kernel]
    # The products [turns, stages, layers, B / M, T, F] are what `dots` has and `full` has not.
    products = [shape for shape in of_turns if shape[-1] == 48 and len(shape) > 4]
    assert bool(products) == (remat != 'full')


# --- what else models do ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('repeats', [1, 2])
def test_what_layers_sow_is_that_of_one_device(repeats):
    def sown(sizes, **own):
        model = make_model(attention=['causal', 'window(4)'], num_layers=8, **own)
        params, batch = make_params(model), make_batch(model)
        with jax.set_mesh(make_mesh(**sizes)):
            run = jax.jit(
                lambda p: model.apply({'params': p}, **batch, method='hidden', mutable=True)
            )
            return jax.device_get(run(params))[1]['intermediates']

    found = sown({'stage': 2}, pipeline_repeats=repeats)
    expected = sown({})
    assert expected['layers']['block_1']['output'][0].shape == (4, ROWS, LENGTH, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_numbers_that_layers_sow_are_added_up_without_the_idle():
    plan = Schedule(2, 2, 4)

    def layer(params, x, facts, rng):
        return x + params, {'rows': x[:, 0, 0], 'count': jnp.float32(x.shape[0])}

    x = jnp.arange(ROWS, dtype=jnp.float32)[:, None, None] * jnp.ones((1, 1, 2))
    with jax.set_mesh(make_mesh(stage=2)):
        run = jax.jit(lambda x: pipeline.run(layer, 10 * jnp.ones((8,)), x, None, None, plan))
        out, sown = run(x)
    np.testing.assert_array_equal(out, x + 80)
    np.testing.assert_array_equal(sown['count'], [ROWS] * 8)
    np.testing.assert_array_equal(sown['rows'], x[:, 0, 0] + 10 * np.arange(8)[:, None])


def test_dropout_is_anothers_in_each_layer_and_micro_batch():
    plan = Schedule(2, 2, 4)

    def layer(params, x, facts, rng):
        return x, jax.random.bits(rng, (x.shape[0],))

    with jax.set_mesh(make_mesh(stage=2)):
        run = jax.jit(lambda x, key: pipeline.run(layer, jnp.ones((8,)), x, None, None, plan, key))
        bits = run(jnp.zeros((ROWS, 1, 1)), jax.random.key(0))[1]
    assert bits.shape == (8, ROWS)
    assert len(np.unique(bits)) == 8 * ROWS


@pytest.mark.slow
def test_rows_that_are_no_micro_batches_go_through_layers_in_turn():
    model = make_model()
    params, inputs = make_params(model), make_batch(model)['inputs'][:3]
    expected = model.apply({'params': params}, inputs)
    device_mesh = make_mesh(stage=2)
    params = jax.device_put(params, mesh.parameter_shardings(params, device_mesh))
    with jax.set_mesh(device_mesh):
        found = jax.jit(lambda p, x: model.apply({'params': p}, x))(params, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- what a person gets wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ({'num_layers': 5}, r'num_layers = 5 cannot be divided by 2 \(.* can: 4'),
        ({'pipeline_repeats': 4}, r'num_layers = 4 cannot be divided by 8 .* can: 8'),
        ({'attention': ['causal', 'full', 'causal', 'full']}, 'x 4 layers, after which .* can: 8'),
        (
            {'architecture': 'encoder_decoder', 'encoder_layers': 3},
            'encoder_layers = 3 cannot be divided by 2',
        ),
        (
            {'pipeline_repeats': 2, 'pipeline_microbatches': 3},
            'microbatches = 3 cannot be divided by mesh.stage = 2, .* can: 4',
        ),
        ({'share_layers': True}, 'share_layers = True has but one: let mesh.fsdp'),
    ],
    ids=str,
)
def test_models_that_stages_cannot_divide(model, message):
    config = make_config(**model).model
    pipeline.check(config, make_mesh())
    with pytest.raises(InputError, match=message):
        pipeline.check(config, make_mesh(stage=2))


def test_rows_that_micro_batches_cannot_divide():
    place = 'config.data.batch_size'
    mesh.check_batch(12, LENGTH, 1, make_mesh(stage=2, data=2), place, 6)
    with pytest.raises(InputError, match='by 16 .* x model.pipeline_microbatches 8.* can: 16'):
        mesh.check_batch(12, LENGTH, 1, make_mesh(stage=2, data=2), place, 8)


def test_a_run_may_go_on_with_another_pipeline():
    for key in ('mesh.stage', 'model.pipeline_microbatches', 'model.pipeline_repeats'):
        assert RESUMABLE.match(key)

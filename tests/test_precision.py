"""Training in each precision: near float32, the same in every form, and back from an overflow."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import arguments, assert_refused, call, metrics, write_text
from flax.training.dynamic_scale import DynamicScale

from lm import load, mesh, precision, tree
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.errors import InputError
from lm.layers.products import PRODUCTS
from lm.optimizers import schedule
from lm.precision import DTYPES, LossScale, Precision
from tests.test_step import make_config, make_steps, packed_batch, run

PRECISIONS = [
    {'dtype': dtype, 'matmul': matmul}
    for dtype, matmul in itertools.product(DTYPES, ('same', *PRODUCTS))
    if (dtype, matmul) not in (('float32', 'same'), ('float16', 'fp8'))
]
# One of each kind, in the dtype that lets errors of another kind be seen.
KINDS = [{'dtype': 'float16'}, {'matmul': 'int8'}, {'matmul': 'fp8'}]
STEPS = 6
# Where it learns quickly, and a gradient that is off by little changes a step by little: the first steps of
# Adam are of one length, whatever the gradient, so that one near zero turns back with its sign.
SGD = {'name': 'sgd', 'learning_rate': 0.5}


@functools.cache
def trained(optimizer=(), **model):
    """The losses and the state of a run on one device."""
    return run(make_config(model=model, optimizer=dict(optimizer)), count=STEPS)


# --------------------------------------------------------------------------------- every precision


@pytest.mark.slow
@pytest.mark.parametrize('model', PRECISIONS, ids=str)
def test_every_precision_learns_as_float32_does(model):
    found, exact = trained(**model)[0], trained()[0]
    assert found != exact
    assert exact[-1] < exact[0] - 0.2
    np.testing.assert_allclose(found, exact, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('model', KINDS, ids=str)
@pytest.mark.parametrize(
    ('section', 'values'),
    [
        ('model', {'scan_layers': False}),
        ('model', {'remat': 'full'}),
        ('optimizer', {'accumulation': 2}),
        ('mesh', {'data': 2, 'fsdp': 2, 'tensor': 2, 'sequence': 1}),
        ('mesh', {'data': 1, 'fsdp': 2, 'tensor': 1, 'sequence': 4}),
    ],
    ids=str,
)
def test_every_form_of_the_step_is_the_same_in_every_precision(model, section, values):
    sections = {'model': model, 'optimizer': SGD}
    sections[section] = sections.get(section, {}) | values
    found, _ = run(make_config(**sections), count=STEPS)
    expected, _ = trained(tuple(SGD.items()), **model)
    assert expected[-1] < expected[0] - 1.0
    # Sums of other order: a number that is half-way between two of 8 bits may go to the other.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-4)


@pytest.mark.slow
def test_histories_of_a_mesh_and_of_micro_batches_are_those_of_one_device():
    """Magnitudes are those of whole arrays."""
    one = tree.by_path(trained(matmul='fp8')[1].precision.histories)
    sizes = {'data': 2, 'fsdp': 2, 'tensor': 2, 'sequence': 1}
    config = make_config(model={'matmul': 'fp8'}, mesh=sizes, optimizer={'accumulation': 2})
    several = tree.by_path(run(config, count=2)[1].precision.histories)
    assert len(one) == 3 * 6  # input, kernel and gradient of query, key, value, out, up and down
    for path, history in several.items():
        assert history.shape == (2, 16)  # layers, steps
        assert (history[:, [0, 15]] > 0).all(), path  # the second step, and the first
        assert (history[:, 1:15] == 0).all(), path
        first, second = one[path][:, -STEPS + 1], one[path][:, -STEPS + 2]
        np.testing.assert_allclose(history[:, 15], first, rtol=1e-5)
        np.testing.assert_allclose(history[:, 0], second, rtol=1e-2)


@pytest.mark.slow
def test_layers_that_share_parameters_share_the_largest_magnitude():
    config = make_config(model={'matmul': 'fp8', 'share_layers': True})
    found, state = run(config, count=STEPS)
    shared = state.precision.histories['layers']['mlp']['up']
    assert shared['input'].shape == (16,)
    # A sum would be above 1 for a kernel of 0.02, that each of two layers shows.
    assert 0.03 < shared['kernel'].max() < 0.2
    plain, _ = run(make_config(model={'share_layers': True}), count=STEPS)
    np.testing.assert_allclose(found, plain, rtol=0.01)


def test_histories_of_modules_that_a_step_did_not_call_stay():
    old = {'a': jnp.array([[0.0, 2.0], [1.0, 0.0]]), 'b': jnp.array([0.0, 3.0])}
    new = {'a': jnp.array([[5.0, 0.0], [0.0, 0.0]]), 'b': jnp.array([0.0, 0.0])}
    found = precision.used(new, old)
    np.testing.assert_array_equal(found['a'], [[5.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(found['b'], old['b'])


def test_evaluation_is_of_the_parameters_as_they_are():
    steps, device_mesh = make_steps(make_config(model={'matmul': 'fp8'}))
    plain, _ = make_steps(make_config())
    with jax.set_mesh(device_mesh):
        state, batch = steps.init(), mesh.put(packed_batch(0), device_mesh)
        found, expected = (s.evaluate(state.params, batch) for s in (steps, plain))
    assert float(found['nats']) == float(expected['nats'])
    assert steps.model.config.matmul == 'same'


# ------------------------------------------------------------------------------------ float16


def test_the_loss_scale_is_that_of_flax():
    """Which counts from the step after the last change."""
    every = 3
    kept = Precision(LossScale(jnp.float32(2.0**15), jnp.int32(0)), {})
    theirs = DynamicScale(growth_interval=every - 1, scale=2.0**15, minimum_scale=1.0)
    update = jax.jit(precision.after, static_argnums=3)
    rng = np.random.default_rng(0)
    seen = set()
    for good in rng.random(200) < 0.7:
        infinite = 0.0 if good else jnp.inf
        theirs, *_ = theirs.value_and_grad(lambda x, infinite=infinite: x * (1 + infinite))(1.0)
        kept = update(kept, {}, jnp.bool_(good), every)
        assert float(kept.loss_scale.scale) == float(theirs.scale)
        seen.add(float(kept.loss_scale.scale))
    assert min(seen) < 2.0**15 < max(seen) or len(seen) > 3


@pytest.mark.slow
def test_float16_comes_back_from_an_overflow():
    """At 2^40 each gradient overflows; steps are skipped until it does not, and none counts as bad."""
    options = {'loss_scale': 2.0**40, 'loss_scale_steps': 3}
    steps, device_mesh = make_steps(make_config(model={'dtype': 'float16'}, optimizer=options))
    scales, skipped, nats = [], [], []
    with jax.set_mesh(device_mesh):
        state = steps.init()
        before = jax.device_get(state.params)
        for step in range(40):
            state, found = steps.train(state, mesh.put(packed_batch(0), device_mesh))
            assert found['skipped_in_a_row'] == 0
            scales.append(float(found['loss_scale']))
            skipped.append(int(found['skipped']))
            nats.append(float(found['nats']))
            if skipped[-1] == step + 1:
                jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))
    bad = next(i for i, n in enumerate(skipped) if n < i + 1)  # the first good step
    assert bad > 10  # config.train.max_bad_steps
    assert scales[: bad + 1] == [2.0 ** (40 - i) for i in range(bad + 1)]
    assert scales[bad + 3] == 2 * scales[bad], scales
    assert nats[-1] < nats[0] - 0.2
    assert np.isfinite(nats).all()


def test_at_the_smallest_loss_scale_bad_steps_count():
    config = make_config(model={'dtype': 'float16'}, optimizer={'loss_scale': 2.0})
    steps, device_mesh = make_steps(config)
    batch = packed_batch(0)
    batch |= {'loss_weights': np.full_like(batch['loss_weights'], np.inf)}
    with jax.set_mesh(device_mesh):
        state, counted = steps.init(), []
        for _ in range(3):
            state, found = steps.train(state, mesh.put(batch, device_mesh))
            counted.append(int(found['skipped_in_a_row']))
    assert counted == [0, 1, 2]
    assert int(state.skipped) == 3
    assert float(state.precision.loss_scale.scale) == 1


# ------------------------------------------------------------------------------------ going on


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'model', [{'matmul': 'fp8'}, {'dtype': 'float16', 'matmul': 'int8'}], ids=str
)
def test_what_is_kept_is_in_the_checkpoint(model, tmp_path):
    config = make_config(model=model, optimizer={'loss_scale_steps': 2})
    steps, device_mesh = make_steps(config)
    options = CheckpointConfig(every=1, keep=1, keep_best=0)
    with jax.set_mesh(device_mesh), Checkpoints(tmp_path, options) as checkpoints:
        state = steps.init()
        for step in range(6):
            if step == 3:
                checkpoints.save(3, state, {'next_index': 3}, None)
                checkpoints.wait()
            state, _ = steps.train(state, mesh.put(packed_batch(step), device_mesh))
        _, again, _ = checkpoints.restore(steps.shapes)
        assert jax.tree.leaves(again.precision)
        for step in range(3, 6):
            again, _ = steps.train(again, mesh.put(packed_batch(step), device_mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))


@pytest.mark.slow
@pytest.mark.usefixtures('two_devices', 'no_charts')
def test_a_run_of_the_command_logs_the_scale_and_says_what_is_emulated(tmp_path):
    text = write_text(tmp_path / 'text.txt')
    options = {'train__steps': 12, 'model__matmul': 'int8', 'model__dtype': 'float16'}
    options |= {'optimizer__loss_scale_steps': 3, 'optimizer__loss_scale': 2.0**24}
    result = call(arguments(text, tmp_path / 'run', **options))
    assert result.code == 0, result.err
    assert result.err.count("config.model.matmul = 'int8' is emulated on cpu") == 1
    lines = [line for line in metrics(tmp_path / 'run') if 'train/loss_scale' in line]
    assert [line['step'] for line in lines] == [*range(1, 13)]
    scales = [line['train/loss_scale'] for line in lines]
    skipped = [line['train/skipped'] for line in lines]
    assert skipped[0] == 1  # float16 ends at 65504.
    good, expected, before = 0, 2.0**24, 0
    for scale, count in zip(scales, skipped, strict=True):
        assert scale == expected
        good = good + 1 if count == before else 0
        expected *= 0.5 if count > before else 2 if good == 3 else 1
        good, before = good % 3, count
    assert any(np.diff(scales) > 0)
    # A step that is skipped does not move the schedule.
    config = load(tmp_path / 'run').run.config
    rate = schedule(config.schedule, config.optimizer.learning_rate, 12)
    taken = np.cumsum([0, *(np.diff([0, *skipped]) == 0)])[:-1]
    rates = [line['train/learning_rate'] for line in lines]
    assert rates == pytest.approx([float(rate(n)) for n in taken], rel=1e-6)
    assert len(set(rates)) > 3


# ------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            {'dtype': 'float61'},
            "config.model.dtype = 'float61' is not known. Did you mean 'float16'?",
        ),
        ({'dtype': 'float64'}, "config.model.dtype = 'float64' is not known."),
        ({'dtype': 'int8'}, "Did you mean config.model.matmul = 'int8'?"),
        ({'matmul': 'int4'}, "config.model.matmul = 'int4' is not known. Did you mean 'int8'?"),
        ({'matmul': 'bfloat16'}, "config.model.matmul = 'bfloat16' is not known."),
        ({'matmul': 'fp8', 'dtype': 'float16'}, "set config.model.dtype = 'bfloat16'"),
    ],
)
def test_precisions_that_there_are_not(model, message):
    with pytest.raises(InputError) as caught:
        precision.check(make_config(model=model).model)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_precision_that_is_not_there_is_exit_code_2(tmp_path):
    text = write_text(tmp_path / 'text.txt')
    result = call(arguments(text, tmp_path / 'run', model__matmul='int9'))
    assert_refused(result, "config.model.matmul = 'int9' is not known", "'int8'")


class Device:
    """What is asked of a device."""

    def __init__(self, platform, kind, capability=None):
        self.platform, self.device_kind, self.compute_capability = platform, kind, capability


@pytest.mark.parametrize(
    ('device', 'native'),
    [
        (Device('cpu', 'cpu'), set()),
        (Device('gpu', 'Tesla V100-SXM2-16GB', '7.0'), set()),
        (Device('gpu', 'NVIDIA A100-SXM4-80GB', '8.0'), {'int8'}),
        (Device('gpu', 'NVIDIA L4', '8.9'), {'int8', 'fp8'}),
        (Device('gpu', 'NVIDIA H200', '9.0'), {'int8', 'fp8'}),
        (Device('gpu', 'NVIDIA B200', '10.0'), {'int8', 'fp8'}),
        (Device('tpu', 'TPU v3'), set()),
        (Device('tpu', 'TPU v5 lite'), {'int8'}),
        (Device('tpu', 'TPU v6 lite'), {'int8'}),
        (Device('tpu', 'TPU7x'), {'int8', 'fp8'}),
    ],
    ids=lambda x: getattr(x, 'device_kind', None),
)
def test_which_devices_have_units_for_it(device, native):
    for name in ('int8', 'fp8'):
        line = precision.emulated(make_config(model={'matmul': name}).model, device)
        assert bool(line) == (name not in native)
        assert '\n' not in line
    assert precision.emulated(make_config().model, device) == ''

"""Plans of small models on CPU devices, held to what is known of them otherwise."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_line import arguments, assert_refused, call, run, write_text
from test_objective_runs import make_config

import lm
from experiments.attention.compile_gpu import missing
from experiments.plan import memory
from lm import config as configs
from lm import flops, mesh, plan, plan_inputs, plan_report, plan_sweep
from lm import run as runs
from lm.errors import InputError
from lm.model_flops import flops_per_token
from lm.objectives import OBJECTIVES

AXES = dict.fromkeys(mesh.AXES, 1)
DEVICES = jax.devices()


def config_of(devices=1, **sections):
    sizes = {'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'vocab_multiple': 32}
    data = {'length': 16, 'batch_size': 8}
    given = {
        'model': sizes | sections.pop('model', {}),
        'data': data | sections.pop('data', {}),
        'tokenizer': {'vocab_size': 64} | sections.pop('tokenizer', {}),
        'mesh': AXES | sections.pop('mesh', {'data': devices}),
    }
    return configs.parse(lm.get_config('base', **given, **sections))


def target(devices=1):
    return plan.Target(f'cpu:{devices}', DEVICES[:devices])


@pytest.fixture(scope='module')
def sharded():
    return plan.plan(config_of(mesh={'fsdp': 4}), target(4))


def test_bytes_of_what_is_held(sharded):
    bytes_of_parameters = 4 * sharded['parameters']
    held = sharded['memory']
    # Matrices are split over four devices; what is left of them is norms.
    assert bytes_of_parameters / 4 < held['parameters'] < 1.05 * bytes_of_parameters / 4
    assert (
        held['optimizer'] == 2 * held['parameters'] + 2 * 4
    )  # Two moments; adamw's and the schedule's steps.
    assert held['batch'] == 5 * 4 * 16 * 8 / 4
    assert held['average'] == 0
    assert held['total'] == sum(size for kind, size in held.items() if kind != 'total')
    assert sharded['fits'] is True


def test_the_collectives_of_fsdp(sharded):
    assert sharded['mesh']['fsdp'] == 4
    assert {axis for one in sharded['collectives'] for axis in one['axes']} == {'fsdp'}
    gathered = sum(one['bytes'] for one in sharded['collectives'] if one['kind'] == 'all-gather')
    matrices = 4 * sharded['parameters']
    assert gathered > 0.9 * matrices  # Each is put together at least once.
    summed = [one for one in sharded['collectives'] if one['kind'] != 'all-gather']
    assert sum(one['bytes'] for one in summed) > 0.9 * matrices
    assert any(one['source'].startswith('lm/layers/dense.py:') for one in sharded['collectives'])


def test_the_largest_arrays_have_a_line(sharded):
    assert any(one['source'].startswith('lm/models/') for one in sharded['buffers'])
    # Not of the machine that the plan was made on.
    assert not any(one['source'].startswith('/') for one in sharded['buffers'])
    assert {one['kind'] for one in sharded['buffers']} >= {'activations', 'gradients'}
    sizes = [one['bytes'] for one in sharded['buffers']]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ('path', 'short'),
    [
        ('/home/me/lm/lm/step.py:105', 'lm/step.py:105'),
        (
            '/opt/lm/.venv/lib/python3.12/site-packages/flax/linen/linear.py:7',
            'flax/linen/linear.py:7',
        ),
        ('/usr/lib/python3.12/site-packages/lm/step.py:105', 'lm/step.py:105'),
        ('/home/me/run.py:3', '/home/me/run.py:3'),
        ('', ''),
    ],
)
def test_a_line_is_named_as_of_its_package(path, short):
    assert plan._short(path) == short


DECODERS = {
    'gpt': {'position': 'learned', 'bias': True, 'norm': 'layernorm'},
    'llama': {'activation': 'swiglu', 'tie_embeddings': False, 'num_kv_heads': 2},
    'unrolled': {'scan_layers': False},
}


def traced(config, on=None):
    on = on or target()
    made = plan.build(config, on)
    with jax.set_mesh(made.mesh):
        fields = plan_inputs.batch(made)
        return made, made.steps.step.trace(made.steps.shapes, fields, plan_inputs.rates(made))


@pytest.mark.parametrize('name', DECODERS)
def test_flops_are_those_of_six_n_and_attention(name):
    model = {'num_layers': 3, 'embed_dim': 128, 'num_heads': 4} | DECODERS[name]
    model |= {'attention_implementation': 'xla'}
    made, step = traced(config_of(model=model, tokenizer={'vocab_size': 512}, data={'length': 64}))
    expected = flops_per_token(made)['mfu'] * 8 * 64
    assert flops.count(step.jaxpr) == pytest.approx(expected, rel=0.02)


def test_what_is_computed_again_counts():
    model = {'num_layers': 4, 'embed_dim': 128, 'num_heads': 4, 'attention_implementation': 'xla'}
    counts = {
        remat: flops.count(traced(config_of(model=model | {'remat': remat}))[1].jaxpr)
        for remat in plan_sweep.REMATS
    }
    assert counts['none'] < counts['dots'] < counts['full']
    # Of a layer all products but its last, which nothing depends on: 3 and 1 of D x D, one of D x 4 D, and
    # those of attention.
    again = 2 * (4 * 128**2 + 4 * 128**2 + 2 * 16 * 128)
    assert counts['full'] - counts['none'] == 4 * 8 * 16 * again


@pytest.mark.first_quick
@pytest.mark.parametrize('axis', ['tensor', 'fsdp', 'data'])
def test_each_device_does_its_part(axis):
    model = {'embed_dim': 64, 'attention_implementation': 'xla'}
    found = plan.plan(config_of(model=model, mesh={axis: 2}), target(2))['flops']
    assert found['device'] == pytest.approx(found['program'] / 2, rel=0.02)


def test_parts_of_a_batch_are_counted_each():
    whole = flops.count(traced(config_of())[1].jaxpr)
    parts = plan.plan(config_of(optimizer={'accumulation': 4}), target())
    assert parts['flops']['program'] == whole
    assert parts['flops']['device'] == pytest.approx(whole, rel=0.02)


@pytest.mark.first_quick
@pytest.mark.parametrize('name', OBJECTIVES)
def test_the_batch_is_that_of_training(name, tmp_path):
    config = configs.parse(make_config(tmp_path, name, mesh=AXES | {'data': 2}))
    text = runs.train_tokenizer(config)
    made = runs.build(config, text, mesh.make(config.mesh, DEVICES[:2]))
    trained = runs.blends(made, {'': runs.tokenized_splits(config, text, ('train',))})
    real = next(runs.mixture(made, trained).items({'next_index': 0})).batch
    planned = plan_inputs.batch(made)
    of = lambda batch: {k: (v.shape, np.dtype(v.dtype)) for k, v in batch.items()}  # noqa: E731
    assert of(planned) == of(real)


def test_no_text_is_read():
    unseen = plan_inputs.vocabulary(config_of(data={'train': 'text:nowhere.txt'}))
    assert unseen.vocab_size == 64
    with pytest.raises(InputError, match='set config.model.vocab_size'):
        plan_inputs.vocabulary(config_of(tokenizer={'kind': 'chars'}))
    chars = config_of(tokenizer={'kind': 'chars'}, model={'vocab_size': 70})
    assert plan_inputs.vocabulary(chars).vocab_size == 70
    assert plan_inputs.vocabulary(config_of(tokenizer={'kind': 'bytes'})).vocab_size == 260


def test_a_mesh_that_does_not_fit_is_said_with_one_that_does():
    with pytest.raises(InputError, match='needs 3 devices; there are 4') as error:
        plan.plan(config_of(mesh={'fsdp': 3}), target(4))
    flags = dict(
        part.split('=') for part in str(error.value).partition('One that fits: ')[2].split()
    )
    sizes = {flag.rpartition('.')[2]: int(size) for flag, size in flags.items()}
    assert mesh.fits(mesh.sizes(**sizes), 4)
    with pytest.raises(InputError, match='cannot be divided by 8'):
        plan.plan(config_of(8, data={'batch_size': 4}), target(8))
    with pytest.raises(InputError, match='mesh.tensor = 4 cannot divide the 2'):
        plan.plan(config_of(mesh={'tensor': 4}), target(4))


def test_meshes_of_a_sweep_fit_and_begin_with_the_configs():
    for axes in ({'data': 4, 'tensor': 2}, {'fsdp': 8}, {'data': 2, 'fsdp': 2, 'sequence': 2}):
        config = config_of(mesh=axes)
        found = [
            {axis: getattr(one, axis) for axis in mesh.AXES}
            for one in plan.meshes(config, target(8))
        ]
        assert found[0] == AXES | axes
        assert all(np.prod([*one.values()]) == 8 for one in found)
        assert len({tuple(one.items()) for one in found}) == len(found)


@pytest.mark.slow
def test_a_sweep_ranks_what_fits_and_says_why_others_do_not(monkeypatch):
    chip = plan.chips.Chip('cpu', 1e12, 1e12, 1e9, 1e11, 1e10, 'https://a.b')
    monkeypatch.setattr(plan.chips, 'of', lambda device: chip)
    monkeypatch.setattr(plan_sweep, 'REMATS', ('none',))
    config = config_of(2, model={'num_layers': 1, 'num_heads': 1, 'embed_dim': 16})
    split = [dataclasses.replace(config.mesh, data=1, tensor=2), config.mesh]
    monkeypatch.setattr(plan, 'meshes', lambda config, on: split)
    tried = plan_sweep.sweep(config, target(2), shown=False)
    fit = [one for one in tried if one['fits']]
    assert [one['fits'] for one in tried] == [True] * len(fit) + [False] * (len(tried) - len(fit))
    speeds = [one['roofline']['tokens_per_day'] for one in fit]
    assert speeds == sorted(speeds, reverse=True)
    assert {one['rows'] for one in fit} == {4, 8, 16}
    assert all(
        'mesh.tensor = 2 cannot divide the 1' in one['why'] for one in tried if not one['fits']
    )
    head, rows = plan_report.sweep_table(tried)
    assert len(rows) == len(tried) == 6
    assert {len(row) for row in rows} == {len(head)}


def test_a_roofline_by_hand(monkeypatch):
    chip = plan.chips.Chip('cpu', 2e12, 1e12, 1e9, 1e11, 1e10, 'https://a.b', devices=2)
    monkeypatch.setattr(plan.chips, 'of', lambda device: chip)
    on = dataclasses.replace(target(2), price=3.0)
    made = plan.build(config_of(2, train={'steps': 7200}), on)
    found = {
        'tokens': 1000,
        'flops': {'program': 4e12, 'device': 2e12},
        'moved': 3e11,
        'collectives': [{'sent': 1e10}, {'sent': 1e10}],
    }
    roofline = plan.estimate(made, on, found)['roofline']
    assert roofline['seconds'] == {'products': 2.0, 'memory': 3.0, 'links': 2.0}
    assert (roofline['step'], roofline['bound']) == (3.0, 'memory')
    assert roofline['mfu'] == pytest.approx(flops_per_token(made)['mfu'] * 1000 / (3.0 * 1e12 * 2))
    assert roofline['tokens_per_day'] == 1000 / 3 * 86_400
    assert roofline['chip_hours'] == 6.0  # 7,200 steps of 3 s on two halves of a chip.
    assert roofline['cost'] == 18.0


def test_the_cache_of_generation():
    found = plan.cache(plan.build(config_of(model={'num_kv_heads': 1}), target()))
    assert found['token'] == 2 * 2 * 16 * 4  # Keys and values of two layers, K = 16, float32.


@pytest.mark.slow
def test_the_command_writes_a_plan_that_stands_alone(tmp_path, monkeypatch):
    workdir = tmp_path / 'plan'
    monkeypatch.setattr(plan_sweep, 'variants', lambda config, on: [config])
    options = arguments(tmp_path / 'nowhere.txt', workdir, mesh__fsdp=2, data__batch_size=8)
    done = call([*options, '--mode=plan', '--topology=cpu:2', '--sweep'])
    assert done.code == 0, done
    for words in ('does it fit', 'yes: ', 'all-gather', 'FLOPs of a step', str(workdir)):
        assert words in done.out
    found = json.loads((workdir / 'plan.json').read_text())
    assert found['devices'] == 2
    assert {path.name for path in workdir.iterdir()} == {'plan.json', 'plan.md', 'plan.html'}
    page = (workdir / 'plan.html').read_text()
    assert '<script' not in page
    assert 'src=' not in page
    text = (workdir / 'plan.md').read_text()
    assert '| parameters |' in text
    assert '## What was tried' in text
    assert len(found['sweep']) == 1


def test_what_fits_a_gpu():
    gpu = SimpleNamespace(platform='gpu', device_kind='NVIDIA H200')
    on = plan.Target('h200', [gpu])
    assert plan._why(100e9, on.memory, on) == ''
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' in plan._why(110e9, on.memory, on)
    assert plan._why(150e9, on.memory, on) == '150 GB of 141 GB'


def test_what_the_compiler_says_does_not_fit(sharded, tmp_path):
    words = (
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
        'Used 20.01G of 15.75G hbm. Exceeded hbm capacity by 4.26G.\n\nTotal hbm usage >= 20.27G:\n'
    )
    why = plan._shortened(words)
    assert why == 'Used 20.01G of 15.75G hbm.'
    held = {kind: sharded['memory'][kind] for kind in ('parameters', 'optimizer', 'batch')}
    known = {key: sharded[key] for key in sharded if key not in ('buffers', 'collectives', 'moved')}
    flops_of = {'program': sharded['flops']['program']}
    found = known | {'fits': False, 'why': why, 'memory': held, 'flops': flops_of}
    plan_report.write(tmp_path, found)
    assert f'no: {why}' in plan_report.lines(found)
    assert f'no: {why}' in (tmp_path / 'plan.html').read_text()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--topology=v5x:4x4'], "Did you mean 'v5p'"),
        (['--topology=cpu:2', '--config.mesh.fsdp=3'], '--config.mesh.fsdp=1'),
        (['--topology=cpu:2', '--price=-1'], 'price'),
    ],
)
def test_the_command_refuses(options, words, tmp_path):
    text = write_text(tmp_path / 'text.txt')
    assert_refused(call([*arguments(text, tmp_path / 'a'), '--mode=plan', *options]), words)
    assert not (tmp_path / 'a').exists()


@pytest.mark.slow
def test_memory_is_what_a_step_takes_on_cpu_devices():
    """Within a tenth; of the process's own memory, which `experiments/plan/memory.py` measures."""
    found = memory.measured('configs/quickstart.py', 8, {'mesh.data': 1, 'mesh.fsdp': 8})
    assert found['planned'] == pytest.approx(found['taken'], rel=0.1)


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v4:2x2x1', 'h200:2'])
def test_chips_that_are_not_here(topology, tmp_path):
    gpu = topology.startswith('h')
    if missing() if gpu else not importlib.util.find_spec('libtpu'):
        pytest.skip("needs the compilers of '.[plan]'")
    more = {'model__embed_dim': 128, 'mesh__data': 1, 'mesh__fsdp': -1, 'data__length': 128}
    options = arguments(tmp_path / 'nowhere.txt', tmp_path / 'plan', **more)
    done = run([*options, '--mode=plan', f'--topology={topology}'])
    assert done.code == 0, done.err
    assert 'Traceback' not in done.err
    found = json.loads((tmp_path / 'plan' / 'plan.json').read_text())
    assert found['fits'] is True
    assert found['memory']['parameters'] < found['memory']['total'] < 1e9
    assert found['flops']['device'] == pytest.approx(
        found['flops']['program'] / found['devices'], rel=0.05
    )
    assert {axis for one in found['collectives'] for axis in one['axes']} == {'fsdp'}
    assert 0 < found['roofline']['mfu'] < 1

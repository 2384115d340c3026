"""Memory that is not enough: a line that says what to change, and nothing lost."""

import json

import jax
import jax.numpy as jnp
import pytest
from command_line import arguments, assert_refused, call, metrics, write_text

from lm import loop, out_of_memory, step
from lm.out_of_memory import is_out_of_memory

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

# What XLA says on other machines.
MESSAGES = {
    'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes.': True,
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used '
    '31.2G of 15.75G hbm.': True,
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack': False,
    'RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 300000': False,
    'RESOURCE_EXHAUSTED: Received message larger than max': False,
    'INTERNAL: ptxas failed': False,
}


@pytest.mark.parametrize('text', MESSAGES)
def test_messages(text):
    assert is_out_of_memory(jax.errors.JaxRuntimeError(text)) == MESSAGES[text]
    assert not is_out_of_memory(RuntimeError(text))


def test_what_this_machine_raises():
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED') as found:
        jnp.zeros(10**15, jnp.int8).block_until_ready()
    assert is_out_of_memory(found.value)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp('text') / 'text.txt')


def known(workdir):
    return json.loads((workdir / out_of_memory.FILE).read_text())


@pytest.mark.slow
def test_parameters_that_no_machine_holds(text, tmp_path):
    """XLA refuses them itself."""
    workdir = tmp_path / 'run'
    result = call(arguments(text, workdir, model__mlp_dim=10**13, data__valid=''))
    assert_refused(
        result,
        'Out of memory allocating 640000000000000 bytes',
        'a device is to hold parameters 1.28 PB, optimizer 2.56 PB, ',
        '--config.mesh.fsdp=2 takes parameters, optimizer, gradients from ',
        'times as many devices',
    )
    found = known(workdir)
    assert found['bytes_by_kind']['optimizer'] == pytest.approx(
        2 * found['bytes_by_kind']['parameters'], rel=1e-6
    )
    assert found['bytes_by_kind']['parameters'] > 10**14
    assert found['limit'] > 10**9
    assert (workdir / out_of_memory.PROFILE).stat().st_size > 0


def assert_told(result, *parts):
    """After the lines of the steps before it there is one more."""
    assert_refused(result._replace(err=result.err[result.err.index('error: ') :]), *parts)


def failing(function, at):
    """Raises what a full device raises at the call of that number."""
    calls = iter(range(1, 1000))

    def call(*args, **kwargs):
        if next(calls) == at:
            raise jax.errors.JaxRuntimeError(
                'RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.'
            )
        return function(*args, **kwargs)

    return call


@pytest.mark.slow
def test_a_step_loses_nothing(text, tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    options = arguments(text, workdir, train__steps=7, data__valid='')
    with monkeypatch.context() as patch:
        patch.setattr(step.Steps, 'train', failing(step.Steps.train, 6))
        result = call(options)
    assert_told(
        result,
        'out of memory in a step (RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.)',
        '--config.mesh.fsdp=2 takes parameters, optimizer, gradients from ',
        '--config.optimizer.accumulation=2 takes activations from ',
        'in another --workdir',
        'checkpoints are kept',
    )
    found = known(workdir)
    kinds = found['bytes_by_kind']
    # Four rows a device: six fields of 16 tokens, two batches ahead and one under way.
    assert kinds['gradients'] == kinds['parameters']
    assert kinds['activations'] > 0
    assert kinds['batch'] == 3 * 4 * 16 * 4 * 5
    live = found['live_bytes_by_kind']
    assert live['parameters'] >= kinds['parameters']
    assert live['optimizer'] >= kinds['optimizer']
    assert found['largest_arrays'][0]['bytes'] >= found['largest_arrays'][-1]['bytes']
    result = call(options)
    assert result.code == 0, result.err
    assert [line['step'] for line in metrics(workdir) if 'train/loss' in line] == [*range(1, 8)]
    history = json.loads((workdir / 'history.json').read_text())
    assert [(event['event'], event['step']) for event in history] == [
        *(('start', 0), ('resume', 3), ('finish', 7)),
    ]


@pytest.mark.parametrize('index', [0, 3])
def test_a_process_names_what_it_wrote(index, text, tmp_path, monkeypatch):
    """As any of several: process 0 prints the line of the one that failed."""
    tell = out_of_memory.Guard.tell

    def tell_as_process(guard, error):
        with monkeypatch.context() as patch:
            patch.setattr(jax, 'process_index', lambda: index)
            return tell(guard, error)

    monkeypatch.setattr(out_of_memory.Guard, 'tell', tell_as_process)
    monkeypatch.setattr(step.Steps, 'train', failing(step.Steps.train, 1))
    workdir = tmp_path / 'run'
    result = call(arguments(text, workdir, data__valid=''))
    names = {0: 'out_of_memory', 3: 'out_of_memory.process3'}
    assert_told(result, f'What lay in memory is in {workdir / names[index]}.json;')
    written = sorted(path.name for path in workdir.glob('out_of_memory*'))
    assert written == [f'{names[index]}.json', f'{names[index]}.prof']
    assert json.loads((workdir / written[0]).read_text())['bytes_by_kind']['optimizer'] > 0


def test_an_evaluation(text, tmp_path, monkeypatch):
    options = arguments(text, tmp_path / 'run', train__steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(loop, 'perplexity', failing(loop.perplexity, 1))
        result = call(options)
    assert_told(
        result,
        'out of memory in an evaluation',
        '--config.eval.batch_size=4 takes evaluation from ',
    )
    assert known(tmp_path / 'run')['bytes_by_kind']['evaluation'] > 0


def test_a_bug_keeps_its_traceback(text, tmp_path, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError('INTERNAL: no such kernel')

    monkeypatch.setattr(step.Steps, 'train', broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match='no such kernel'):
        call(arguments(text, tmp_path / 'run'))
    assert not (tmp_path / 'run' / out_of_memory.FILE).exists()

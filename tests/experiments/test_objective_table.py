"""The experiment of the objectives: its configs, its guesses, its table and its figure."""

import copy
import math

import jax
import numpy as np
import pytest

import lm
from experiments.objectives import figure, readme
from experiments.objectives.cases import CASES, overrides
from experiments.objectives.measure import guess, measure, never
from lm import config, models
from lm import run as runs
from lm.models.electra import Electra
from lm.objectives import OBJECTIVES

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')


def made_up(case):
    """Returns a record of a run that never was."""
    numbers = {
        'before': {'nats': 8.25, 'accuracy': 0.001},
        'after': {'nats': 4.5, 'accuracy': 0.25},
        'guess': {'nats': 6.125, 'accuracy': 0.0625},
    }
    return {
        'case': case.name,
        'steps': 600,
        'parameters': 1_400_000,
        'seconds': 90.0,
        'predictions': dict.fromkeys(case.predicts, numbers),
        'curves': dict.fromkeys(case.predicts, [[10, 8.0], [600, 4.4]]),
        'environment': {'backend': 'cpu', 'cpu': 'An Abacus', 'cores': 2, 'jax': '0'}
        | {'commit': 'abcdefghi'},
        'config': {'model.architecture': overrides(case).get('model.architecture', 'decoder')},
    }


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_every_case_can_be_run(case, tmp_path):
    """With the vocabulary of bytes, which needs no text."""
    changed = lm.get_config('brown', tokenizer={'kind': 'bytes'})
    for key, value in overrides(case).items():
        section, name = key.split('.')
        assert name == 'name' or changed[section][name] != value, f'{key} is so already'
        changed[section][name] = value
    parsed = config.parse(changed)
    run = runs.build(parsed, runs.build_tokenizer(parsed, tmp_path), runs.check_mesh(parsed))
    assert run.objective.window >= 100
    assert case.name.partition(' ')[0] in OBJECTIVES


# One of each kind of model and of predictions; that all of them train is held by test_objective_runs.py.
KINDS = {
    (overrides(case).get('model.architecture', 'decoder'), *case.predicts): case for case in CASES
}


@pytest.mark.slow
@pytest.mark.parametrize('case', KINDS.values(), ids=lambda case: case.name)
def test_what_a_case_predicts_is_measured(case, tmp_path):
    """A small run of made-up text: the first model knows nothing, the guess knows something."""
    words = ['the', 'a', 'cat', 'dog', 'sat', 'ran', 'on', 'in', 'mat', 'park', 'and']
    texts = [' '.join(words[i * j % 11] for j in range(1, 60)) for i in range(1, 40)]
    (tmp_path / 'text.txt').write_text('\n'.join(texts))
    (tmp_path / 'pairs.tsv').write_text('\n'.join(f'{t[:40]}\t{t[:40].upper()}' for t in texts))
    changed = lm.get_config('brown', tokenizer={'kind': 'bytes'})
    for key, value in overrides(case).items():
        section, name = key.split('.')
        changed[section][name] = value
    source = 'tsv:{}/pairs.tsv' if case.name == 'seq2seq' else 'text:{}/text.txt'
    changed.data.train = changed.data.valid = source.format(tmp_path)
    changed.data.batch_size = 8
    changed.model.embed_dim, changed.model.num_heads = 16, 2
    changed.model.num_layers = changed.model.encoder_layers = 1
    changed.train.steps, changed.schedule.warmup_steps, changed.generate.max_tokens = 3, 0, 2
    lm.train(changed, tmp_path / 'run')
    found = measure(tmp_path / 'run')
    assert set(found) == set(case.predicts)
    for term, numbers in found.items():
        answers = 2 if term in ('pair', 'discriminator') else 260
        assert numbers['before']['nats'] == pytest.approx(math.log(answers), rel=0.2)
        assert numbers['after'] != numbers['before']
        assert 0 < numbers['guess']['nats'] < numbers['before']['nats'] + 0.1
        assert 1 / answers < numbers['guess']['accuracy'] < 1


def test_a_guess_is_of_how_often_each_answer_is_right():
    assert guess(np.array([2.0, 0, 1, 1])) == {
        'nats': pytest.approx(1.5 * math.log(2)),
        'accuracy': 0.5,
    }
    assert guess(np.array([7.0])) == {'nats': 0, 'accuracy': 1}


@pytest.mark.slow
def test_a_discriminator_that_takes_all_for_real():
    sizes = {'num_layers': 1, 'embed_dim': 16, 'num_heads': 2, 'attention': ('full',)}
    parsed = config.parse(lm.get_config('base', model=sizes))
    model = Electra(parsed.model, 20, 8)
    params = jax.jit(lambda: model.init(jax.random.key(0), **models.example(model)))()['params']
    kept = copy.deepcopy(jax.device_get(params))
    tokens = np.arange(16).reshape(2, 8)
    fills, odds = jax.jit(model.apply)({'params': params}, tokens)
    same, never_odds = jax.jit(model.apply)({'params': never(params)}, tokens)
    np.testing.assert_array_equal(same, fills)
    assert (never_odds == -1).all()
    assert np.ptp(odds) > 0
    jax.tree.map(np.testing.assert_array_equal, params, kept)


def test_the_table_stands_between_its_marks(tmp_path):
    path = tmp_path / 'README.md'
    path.write_text('before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n')
    for count in (1, len(CASES)):
        readme.write([made_up(case) for case in CASES[:count]], path)
        first, *lines, last = path.read_text().splitlines()
        assert (first, last) == ('before', 'after')
        rows = [line for line in lines if line.startswith('| `')]
        assert len(rows) == count
        assert rows[0] == (
            '| `causal` | the next token | 8.250 | 4.500 | 6.125 | 0.1% | 25.0% | 6.2% |'
        )
        assert 'old' not in lines
        told = '\n'.join(lines)
        assert '2 cores, An Abacus, jax 0, commit abcdefg.' in told
        # Those of labels are in experiments/multitask.
        assert ('`masked`' in told.partition('Not measured here')[2]) == (count == 1)


@pytest.mark.slow
def test_the_figure_has_a_panel_for_each(tmp_path):
    records = [made_up(case) for case in CASES]
    figure.draw(records, tmp_path / 'all.png')
    figure.draw(records[:4], tmp_path / 'some.png')
    assert (tmp_path / 'all.png').stat().st_size > (tmp_path / 'some.png').stat().st_size > 0

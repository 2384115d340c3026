"""Several tasks for one model, from a config to a report."""

import json
import re

import jax
import numpy as np
import pytest

import lm
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.errors import InputError
from lm.loop import Loop
from tests.test_objective_runs import WORDS

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

TASKS = {
    'text': {'objective': {'name': 'masked', 'pairs': 'order'}},
    'cats': {
        'weight': 2.0,
        'data': {'train': '#0=2', 'valid': '#0=2', 'batch_size': 16},
        'objective': {'name': 'classification', 'classes': ('no', 'yes')},
    },
    'alike': {
        'data': {'train': '#0,1=3', 'valid': '#0,1=3'},
        'objective': {'name': 'similarity'},
    },
    'partners': {
        'data': {'train': '#0,1', 'valid': '#0,1'},
        'objective': {'name': 'contrastive'},
    },
}


def make_config(folder, tasks=TASKS, steps=16, **more):
    texts = [' '.join(WORDS[i * j % len(WORDS)] for j in range(1, 12)) + '.' for i in range(1, 60)]
    (folder / 'text.txt').write_text('\n'.join(texts))
    rows = [
        (t[:18], t[:18].upper(), 'yes' if 'cat' in t[:18] else 'no', i % 5)
        for i, t in enumerate(texts)
    ]
    (folder / 'rows.tsv').write_text('\n'.join('\t'.join(map(str, row)) for row in rows))
    tasks = json.loads(json.dumps(tasks))
    for task in tasks.values():
        for split in task.get('data', {}):
            if split in ('train', 'valid'):
                task['data'][split] = f'tsv:{folder}/rows.tsv{task["data"][split]}'
    text = f'text:{folder}/text.txt'
    sections = {
        'data': {'train': text, 'valid': text, 'test': '', 'document': 'line', 'length': 64}
        | {'batch_size': 8, 'packing': False},
        'tokenizer': {'kind': 'bytes', 'mask': True},
        'model': {'architecture': 'encoder', 'attention': ('full',), 'token_types': 2}
        | {'num_layers': 1, 'embed_dim': 32, 'num_heads': 2},
        'schedule': {'warmup_steps': 2},
        'train': {'steps': steps, 'eval_every': 8, 'log_every': 4},
        'checkpoint': {'every': 0},
        'log': {'tensorboard': False},
        'multitask': {'every': 6},
    }
    for key, value in more.items():
        sections[key] = sections.get(key, {}) | value
    config = lm.get_config('base', **sections)
    with config.unlocked():
        config.tasks = tasks
    return config


def state(workdir):
    with Checkpoints(workdir, CheckpointConfig(1, 1, 0), read_only=True) as found:
        model = lm.load(workdir)
        return found.restore(model.run.steps.shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mode', 'rates', 'stop'),
    [('alternating', 'progress', 13), ('joint', 'gradient_norm', 5)],
)
def test_a_run_that_was_stopped_ends_as_another(mode, rates, stop, tmp_path, monkeypatch):
    config = make_config(tmp_path, multitask={'mode': mode, 'rates': rates})
    whole = lm.train(config, tmp_path / 'whole')
    assert set(whole['splits']) == {'text valid'}
    assert set(whole['tasks']) == {'cats valid', 'alike valid', 'partners valid'}
    for task in TASKS:
        assert len(whole['curves'][f'train/{task}/rate']) == 5
        assert len(whole['curves'][f'valid/{task}/loss']) == 2
    assert 0 <= whole['tasks']['cats valid']['accuracy'] <= 1
    assert -1 <= whole['tasks']['alike valid']['pearson'] <= 1

    with monkeypatch.context() as patch:
        patch.setattr(Loop, 'stops', lambda loop, step: step == stop)
        assert not lm.train(config, tmp_path / 'stopped')['finished']
    resumed = lm.train(config, tmp_path / 'stopped')
    speed = 'train/tokens_per_second'
    for report in (whole, resumed):
        report['curves'].pop(speed, None)
    assert resumed['curves'] == whole['curves']
    assert (resumed['splits'], resumed['tasks']) == (whole['splits'], whole['tasks'])
    (_, a, data), (_, b, other) = map(state, (tmp_path / 'whole', tmp_path / 'stopped'))
    assert data == other
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_text_to_text(tmp_path):
    """One encoder-decoder learns two things that only prefixes tell apart."""
    tasks = {
        'upper': {'data': {'train': '#0,1', 'valid': '#0,1', 'prefix': 'upper: '}},
        'cats': {'data': {'train': '#0,2', 'valid': '#0,2', 'prefix': 'cats: '}},
    }
    config = make_config(
        tmp_path,
        tasks,
        steps=4,
        objective={'name': 'seq2seq'},
        model={'architecture': 'encoder_decoder', 'attention': ('causal',), 'token_types': 0},
        data={'packing': True},
        eval={'beams': 0},
        generate={'max_tokens': 8},
    )
    report = lm.train(config, tmp_path / 'run')
    assert set(report['splits']) == {'upper valid', 'cats valid'}
    assert {'upper valid, greedy', 'cats valid, greedy'} <= set(report['tasks'])
    lines = (tmp_path / 'run/predictions/cats/valid.greedy.jsonl').read_text().splitlines()
    assert json.loads(lines[0])['source'].startswith('cats: ')


@pytest.mark.slow
def test_every_task_that_writes_has_samples(tmp_path):
    """One translates, one goes on with prompts of its own, and one only fills in."""
    tasks = {
        'upper': {'data': {'train': '#0,1', 'valid': '#0,1'}, 'objective': {'name': 'seq2seq'}},
        'more': {'objective': {'name': 'ul2'}, 'generate': {'prompts': ('the cat', 'a dog')}},
        'noised': {'objective': {'name': 'denoising'}, 'weight': 3.0, 'final_weight': 9.0},
    }
    config = make_config(
        tmp_path,
        tasks,
        steps=2,
        tokenizer={'sentinels': 30},
        model={'architecture': 'encoder_decoder', 'attention': ('causal',), 'token_types': 0},
        eval={'beams': 0},
        generate={'samples': 2, 'max_tokens': 4},
    )
    report = lm.train(config, tmp_path / 'run')
    of = {task: [s for s in report['samples'] if s['task'] == task] for task in tasks}
    assert [sample['prompt'] for sample in of['more']] == ['the cat'] * 2 + ['a dog'] * 2
    assert len(of['upper']) > 10
    assert not of['noised']
    page = (tmp_path / 'run/report.html').read_text()
    assert re.findall('<h3>(.*?)</h3>', page) == ['more', 'upper']
    markdown = (tmp_path / 'run/report.md').read_text()
    assert re.findall('^### (.*)$', markdown, re.MULTILINE) == ['more', 'upper']
    # Rates that are fixed have no last weights, and the validation loss is of the first.
    (((_, whole),), *parts) = (
        report['curves'][f'valid/{name}loss'] for name in ('', 'more/', 'noised/', 'upper/')
    )
    more, noised, upper = (loss for ((_, loss),) in parts)
    assert whole == pytest.approx((more + 3 * noised + upper) / 5)


@pytest.mark.slow
def test_all_tasks_are_learnt(tmp_path):
    config = make_config(
        tmp_path, steps=60, multitask={'mode': 'joint'}, optimizer={'learning_rate': 1e-2}
    )
    report = lm.train(config, tmp_path / 'run')
    for task in TASKS:
        curve = [loss for _, loss in report['curves'][f'train/{task}/loss']]
        assert curve[-1] < 0.9 * curve[0], task
    model = lm.load(tmp_path / 'run')
    assert model.of('text').perplexity('the cat sat on')['loss'] > 0
    with pytest.raises(InputError, match="Did you mean 'text'"):
        model.of('txt')
    with pytest.raises(InputError, match=r'has a perplexity of each'):
        model.perplexity('the cat')
    page = (tmp_path / 'run/report.html').read_text()
    for title in ('Sampling rates', 'text: loss', 'cats: accuracy', 'alike: pearson'):
        assert title in page


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'text': {'wieght': 2}},
            "config.tasks.text.wieght is not a key of a task. Did you mean 'weight'?",
        ),
        ({'text': {'weight': -1}}, 'must be a number, at least 0'),
        ({'text': {'weight': 0}}, 'all weights are 0'),
        ({'text': {'data': 'x'}}, 'must be a dict of the keys that differ'),
        ({'a b': {}}, 'must have a name of letters'),
        (
            {'text': {'data': {'lenght': 4}}},
            'config.tasks.text.data.lenght is not a config key. Did you',
        ),
        ({'text': {'data': {'length': 400}}}, 'is more than config.data.length = 64'),
        ({'text': {'data': {'prefetch': 4}}}, 'tasks share it; set config.data.prefetch'),
        (
            {'text': {'objective': {'name': 'causal'}}},
            "config.tasks.text: config.objective.name = 'causal' needs",
        ),
        (
            {'a': {'objective': {'name': 'masked'}}, 'b': {'objective': {'name': 'permutation'}}},
            'are of models of different kinds',
        ),
        (
            {'a': {'objective': {'name': 'masked'}}, 'b': {'objective': {'name': 'replaced'}}},
            'are of models of different kinds',
        ),
        ({'cats': TASKS['cats'] | {'data': {'train': '#0'}}}, 'has no labels'),
        (
            {'cats': TASKS['cats'] | {'objective': {'name': 'classification'}}},
            " is not one of config.objective.classes = ('0', '1')",
        ),
        (
            {'a': TASKS['alike'] | {'data': {'train': '#0,1=2'}}},
            "is not a number, which config.objective.name = 'similarity'",
        ),
        ({'a': TASKS['alike'] | {'data': {'train': '#0=3'}}}, 'is of single texts'),
        (
            {'text': {'data': {'train': '#0,1'}, 'objective': {'name': 'masked'}}},
            'is of pairs of texts',
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_once(changes, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        lm.train(make_config(tmp_path, changes, model={'attention': ('full',)}), tmp_path / 'run')

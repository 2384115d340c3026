"""Scores equal those of the `sacrebleu` command line on the same files, to the last digit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lm import metrics
from lm.errors import InputError

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

TARGETS = [
    'A man in an orange hat is starring at something.',
    'A Boston Terrier is running on lush green grass in front of a white fence.',
    'A girl in karate uniform breaking a stick with a front kick.',
    'Five people wearing winter jackets and helmets stand in the snow.',
    'People are fixing the roof of a house, e.g. its tiles.',
]
A = [
    'A man in an orange hat is staring at something.',
    'A boston terrier runs on green grass in front of a white fence.',
    'a girl in a karate uniform breaks a stick with a kick',
    'Five people in winter jackets and helmets stand in the snow.',
    'People fix the roof of a house.',
]
B = ['A man is looking.', 'A dog.', *A[2:]]
ZH_TARGETS = ['我们试试看！', '我该去睡觉了。', '你在干什么啊？', '这是什么GPS？']
ZH = ['我们来试试看！', '我该睡觉了。', '你在干什么？', '这个是什么GPS？']

# Metric, options, the same on the command line.
CASES = [
    ('bleu', {}, ['-m', 'bleu']),
    ('bleu', {'lowercase': True}, ['-m', 'bleu', '-lc']),
    ('bleu', {'tokenizer': 'zh'}, ['-m', 'bleu', '-tok', 'zh']),
    ('bleu', {'tokenizer': 'intl'}, ['-m', 'bleu', '-tok', 'intl']),
    ('chrf', {}, ['-m', 'chrf']),
    ('chrf', {'lowercase': True}, ['-m', 'chrf', '--chrf-lowercase']),
    ('chrf++', {}, ['-m', 'chrf', '--chrf-word-order', '2']),
]


def command_line(*arguments):
    process = subprocess.run(
        [sys.executable, '-m', 'sacrebleu', *map(str, arguments), '-w', '17', '-f', 'json'],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'NO_COLOR': '1'},
    )
    return json.loads(process.stdout)


@pytest.fixture
def write(tmp_path):
    def write(name, texts):
        path = tmp_path / name
        path.write_text(''.join(text + '\n' for text in texts), encoding='utf-8')
        return path

    return write


def test_all_metrics_are_compared():
    assert {name for name, _, _ in CASES} == set(metrics.METRICS) == set(metrics._SCORERS)


@pytest.mark.parametrize(('name', 'options', 'arguments'), CASES)
@pytest.mark.parametrize(('targets', 'predictions'), [(TARGETS, A), (TARGETS, B), (ZH_TARGETS, ZH)])
def test_as_the_command_line(name, options, arguments, targets, predictions, write):
    found = metrics.METRICS[name](targets, predictions, **options)
    expected = command_line(
        write('targets', targets), '-i', write('predictions', predictions), *arguments
    )
    assert found == {name: expected['score'], 'signature': expected['signature']}
    assert isinstance(found[name], float)


@pytest.mark.parametrize(('name', 'options', 'arguments'), CASES)
def test_several_targets(name, options, arguments, write):
    files = [write('first', TARGETS), write('second', A)]
    found = metrics.METRICS[name](list(map(list, zip(TARGETS, A, strict=True))), B, **options)
    expected = command_line(*files, '-i', write('predictions', B), *arguments)
    assert found == {name: expected['score'], 'signature': expected['signature']}
    assert 'nrefs:2' in found['signature']


def test_more_targets_for_some():
    one = metrics.bleu(TARGETS, A)
    assert metrics.bleu([[target] for target in TARGETS], A) == one
    more = metrics.bleu([[TARGETS[0], '', A[0]], *TARGETS[1:]], A)
    assert more['bleu'] > one['bleu']
    assert 'nrefs:var' in more['signature']


def test_bounds():
    for name, metric in metrics.METRICS.items():
        assert metric(TARGETS, TARGETS)[name] == pytest.approx(100)
        assert metric(TARGETS, [''] * 5)[name] == 0


def test_paired_bootstrap_is_that_of_the_command_line(write):
    found = metrics.paired_bootstrap(TARGETS, A, B, samples=200)
    files = [write('targets', TARGETS), '-i', write('a', A), write('b', B)]
    first, second = command_line(*files, '-m', 'bleu', '--paired-bs', '--paired-bs-n', 200)
    for key, result in (('a', first['BLEU']), ('b', second['BLEU'])):
        assert found[key] == result['score']
        assert found[f'{key}_mean'] == result['mean']
        assert found[f'{key}_interval'] == result['ci']
    assert found['p'] == second['BLEU']['p_value']


@pytest.mark.parametrize('name', metrics.METRICS)
def test_paired_bootstrap_of_every_metric(name):
    found = metrics.paired_bootstrap(TARGETS, A, B, name, samples=50)
    assert found['a'] == metrics.METRICS[name](TARGETS, A)[name]
    assert found['b'] == metrics.METRICS[name](TARGETS, B)[name]
    assert found['a'] > found['b']
    assert (
        found['signature'].replace('|bs:50|seed:12345', '')
        == metrics.METRICS[name](TARGETS, A)['signature']
    )


def test_paired_bootstrap_follows_its_seed():
    def test(seed, b=B):
        return metrics.paired_bootstrap(TARGETS * 4, A * 4, b * 4, samples=100, seed=seed)

    assert test(1) == test(1)
    assert test(1)['b_mean'] != test(2)['b_mean']
    assert 'seed:2' in test(2)['signature']
    assert test(1)['p'] < 0.05 < test(1, A)['p']
    assert 'SACREBLEU_SEED' not in os.environ


@pytest.mark.parametrize('name', metrics.METRICS)
def test_the_interval_is_of_the_samples_of_the_test(name):
    targets, a, b = TARGETS * 4, A * 4, B * 4
    found = metrics.paired_bootstrap(targets, a, b, name, samples=100)
    scorer, references = metrics._SCORERS[name](), [targets]
    scores = {
        key: metrics._resampled(scorer, references, texts, 100, 12345)
        for key, texts in (('a', a), ('b', b))
    }
    for key, sampled in scores.items():
        assert np.sort(sampled).mean() == found[f'{key}_mean']
    low, high = found['interval']
    assert low < found['difference'] == found['b'] - found['a'] < high < 0
    assert ((scores['b'] - scores['a'] < low).sum(), (scores['b'] - scores['a'] > high).sum()) == (
        2,
        2,
    )
    turned = metrics.paired_bootstrap(targets, b, a, name, samples=100)
    assert turned['interval'] == [-high, -low]
    assert metrics.paired_bootstrap(targets, a, a, name, samples=100)['interval'] == [0, 0]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: metrics.bleu(TARGETS, A[:3]), '3 predictions cannot be scored against 5 targets'),
        (lambda: metrics.chrf([], []), '0 predictions'),
        (lambda: metrics.bleu(['a', ''], ['a', 'b']), 'target 1 is empty'),
        (lambda: metrics.bleu([['a'], []], ['a', 'b']), 'target 1 is empty'),
        (lambda: metrics.bleu(['a'], ['a'], tokenizer='13b'), "Did you mean '13a'"),
        (lambda: metrics.paired_bootstrap(['a'], ['a'], ['b'], 'blue'), "Did you mean 'bleu'"),
        (lambda: metrics.paired_bootstrap(['a'], ['a'], ['b'], seed=0), 'must be above 0'),
        (lambda: metrics.paired_bootstrap(['a'], ['a', 'b'], ['b']), '2 predictions'),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(InputError, match=message) as raised:
        call()
    assert '\n' not in str(raised.value)

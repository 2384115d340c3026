"""Corpora as the config names them, and runs that learn from several."""

import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import lm
from lm import config as configs
from lm import corpora
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.corpora import Corpus
from lm.errors import InputError
from lm.loop import Loop

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

TEXTS = {
    'sky': 'the sun is up and the moon is down',
    'sea': 'water is wide, I cannot get over',
    'land': 'hills and valleys, woods',
}
STEPS = 14


def make_config(folder, named, **sections):
    """A tiny run of files of `TEXTS`; `named` says what differs from `{'source': ...}`."""
    for number, (name, text) in enumerate(TEXTS.items(), 1):
        lines = (' '.join([text[i % 9 :], text[: i % 7]]) for i in range(20 * number))
        (folder / f'{name}.txt').write_text('\n'.join(lines))
    given = {
        name: {'source': f'text:{folder}/{name}.txt'} | more if isinstance(more, dict) else more
        for name, more in named.items()
    }
    made = {
        'data': {'train': '', 'valid': '', 'test': '', 'document': 'line'}
        | {'length': 16, 'batch_size': 8},
        'tokenizer': {'kind': 'chars'},
        'model': {'num_layers': 1, 'embed_dim': 16, 'num_heads': 2},
        'schedule': {'warmup_steps': 2},
        'train': {'steps': STEPS, 'log_every': 2, 'eval_every': 0},
        'generate': {'prompts': ()},
        'checkpoint': {'every': 0},
        'log': {'tensorboard': False},
    }
    for key, value in sections.items():
        made[key] = made.get(key, {}) | value
    config = lm.get_config('base', **made)
    with config.unlocked():
        config.data.corpora = given
    return config


def stopped_at(step, monkeypatch, config, workdir):
    with monkeypatch.context() as patch:
        patch.setattr(Loop, 'stops', lambda loop, now: now == step)
        return lm.train(config, workdir)


def state(workdir):
    with Checkpoints(workdir, CheckpointConfig(1, 1, 0), read_only=True) as found:
        return found.restore(lm.load(workdir).run.steps.shapes)


def seen(report):
    return {each['name']: each['rows_seen'] for each in report['corpora']}


CURRICULUM = {
    'sky': {'weight': 3, 'final_weight': 0.0},
    'sea': {'epochs': 0.25},
    'land': {'weight': 0, 'final_weight': 2.0},
}


def test_a_run_that_was_stopped_ends_as_another(tmp_path, monkeypatch):
    """The tokenizer knows the letters of all, and the report says how often each was seen."""
    config = make_config(tmp_path, CURRICULUM, data={'rates': 'scheduled'})
    whole = lm.train(config, tmp_path / 'whole')
    stopped = stopped_at(5, monkeypatch, config, tmp_path / 'stopped')
    resumed = lm.train(config, tmp_path / 'stopped')

    assert sum(seen(stopped).values()) == 5 * 8
    assert sum(seen(whole).values()) == STEPS * 8
    assert resumed['corpora'] == whole['corpora']
    again = lm.train(config, tmp_path / 'stopped')  # Nothing was left to train.
    assert again['corpora'] == whole['corpora']
    assert {each['name']: each['source'].split('/')[-1] for each in whole['corpora']} == {
        name: f'{name}.txt' for name in TEXTS
    }
    for each in whole['corpora']:
        assert each['epochs'] == each['rows_seen'] / each['rows']
        assert each['share'] == each['rows_seen'] / (STEPS * 8)
        if each['name'] == 'sea':
            assert each['rows_seen'] == round(0.25 * each['rows'])
    for report in (whole, resumed):
        report['curves'].pop('train/tokens_per_second', None)
    assert resumed['curves'] == whole['curves']
    rates = [dict(map(tuple, whole['curves'][f'corpora/{name}'])) for name in sorted(TEXTS)]
    assert [rate[1] for rate in rates] == [0, 0.25, 0.75]
    assert [rate[STEPS] for rate in rates] == [1, 0, 0]
    (_, one, data), (_, other, their_data) = map(state, (tmp_path / 'whole', tmp_path / 'stopped'))
    assert data == their_data == {'next_index': STEPS}
    jax.tree.map(np.testing.assert_array_equal, one, other)

    text = lm.load(tmp_path / 'whole').run.tokenizer
    for sentence in TEXTS.values():
        assert text.decode(text.encode(sentence)) == sentence
    page = (tmp_path / 'whole/report.html').read_text()
    markdown = (tmp_path / 'whole/report.md').read_text()
    assert 'Rates of corpora' in page
    for name in TEXTS:
        assert f'<td>{name}</td>' in page
        assert f'| {name} | text:' in markdown


@pytest.mark.slow
def test_one_corpus_trains_as_the_source_alone(tmp_path):
    config = make_config(tmp_path, {'sea': {}}, train={'steps': 3})
    alone = make_config(tmp_path, {}, train={'steps': 3})
    alone.data.train = config.data.corpora.sea.source
    reports = [lm.train(c, tmp_path / str(i)) for i, c in enumerate((config, alone))]
    one, other = (report['curves']['train/loss'] for report in reports)
    assert one == other
    assert not any(name.startswith('corpora/') for name in reports[0]['curves'])  # They are fixed.
    assert [each.pop('name') for report in reports for each in report['corpora']] == ['sea', '']
    assert reports[0]['corpora'] == reports[1]['corpora']
    with pytest.raises(InputError, match=re.escape('corpora.sea.weight (None there, 2.0 now)')):
        lm.train(
            make_config(tmp_path, {'sea': {'weight': 2.0}}, train={'steps': 3}), tmp_path / '0'
        )


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['joint', 'alternating'])
def test_tasks_have_corpora_of_their_own(mode, tmp_path, monkeypatch):
    named = {'sky': {'epochs': 1.0}, 'land': {'weight': 0.5}}
    if mode == 'alternating':
        del named['sky']['epochs']
    config = make_config(tmp_path, named, multitask={'mode': mode})
    source = f'text:{tmp_path}/sea.txt'
    with config.unlocked():
        config.tasks = {
            'two': {},
            'one': {'data': {'train': source, 'corpora': {}}},
        }
    whole = lm.train(config, tmp_path / 'whole')
    stopped = stopped_at(5, monkeypatch, config, tmp_path / 'stopped')
    resumed = lm.train(config, tmp_path / 'stopped')
    assert resumed['corpora'] == whole['corpora']
    for report, steps in ((stopped, 5), (whole, STEPS)):
        rows = sum(each['rows_seen'] for each in report['corpora'])
        assert rows == 8 * steps * (2 if mode == 'joint' else 1)
        names = [(each['task'], each['name']) for each in report['corpora']]
        assert names == [('one', ''), ('two', 'land'), ('two', 'sky')]
    assert ('corpora/two/sky' in whole['curves']) == (mode == 'joint')


@pytest.mark.slow
def test_labels_of_several_corpora(tmp_path):
    """Labels are learnt from all corpora, whatever numbers they have in each."""
    for name, labels in (('a', ('no', 'yes')), ('b', ('yes', 'no'))):
        lines = (f'{TEXTS["sky"][i:]}\t{labels[i % 2]}' for i in range(12))
        (tmp_path / f'{name}.tsv').write_text('\n'.join(lines))
    named = {name: {'source': f'tsv:{tmp_path}/{name}.tsv#0=1'} for name in 'ab'}
    config = make_config(
        tmp_path,
        named,
        data={'packing': False, 'length': 48},
        objective={'name': 'classification', 'classes': ('no', 'yes')},
        model={'architecture': 'encoder', 'attention': ('full',)},
        train={'steps': 2},
    )
    assert seen(lm.train(config, tmp_path / 'run')) == {'a': 8, 'b': 8}


# ------------------------------------------------------------------------------- what is named


def test_corpora_are_in_the_order_of_their_names():
    found = corpora.parse(
        {'b': {'source': 'text:b'}, 'a': {'source': 'text:a', 'weight': 2, 'epochs': 3}}, 'x'
    )
    assert found == {'a': Corpus('text:a', 2, 2, 3), 'b': Corpus('text:b', 1, 1, 0)}
    assert [*found] == ['a', 'b']


A = {'source': 'text:a'}


@pytest.mark.parametrize(
    ('named', 'message'),
    [
        ({'a': A | {'wieght': 2}}, "c.a.wieght is not a key of a corpus. Did you mean 'weight'?"),
        ({'a': A | {'weight': -1}}, 'c.a.weight = -1 must be a number, at least 0.'),
        ({'a': A | {'epochs': 'two'}}, "c.a.epochs = 'two' must be a number"),
        ({'a': A | {'epochs': float('inf')}}, 'c.a.epochs = inf must be a number'),
        ({'a': A | {'weight': True}}, 'c.a.weight = True must be a number'),
        ({'a': A | {'source': ''}}, "c.a.source = '' must be a source"),
        ({'a': {'weight': 1}}, 'c.a.source is missing'),
        ({'a': 'text:a'}, 'c.a must have a name of letters, digits and _, and hold some of'),
        ({'a b': A}, 'c.a b must have a name of letters'),
        ({'a': A | {'weight': 0}}, 'c: all are of weight = 0; at least one must be learnt.'),
        ({'a': A | {'final_weight': 0}}, 'c: all are of final_weight = 0'),
    ],
)
def test_what_cannot_be_named(named, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        corpora.parse(named, 'c')
    assert '\n' not in str(error.value)


def with_tasks(config, **multitask):
    config.multitask.update(multitask)
    with config.unlocked():
        config.tasks = {'only': {}}
    return config


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c.data.update(train='text:x'),
            "'text:x' and config.data.corpora both say what is trained on: set config.data.train = ''.",
        ),
        (lambda c: c.data.corpora.sea.update(weight=-1), 'config.data.corpora.sea.weight = -1'),
        (
            lambda c: c.data.corpora.sea.update(weight=2.0, final_weight=1.0),
            "config.data.corpora.sea.final_weight is of config.data.rates = 'scheduled', and that",
        ),
        (
            lambda c: (
                setattr(c.data, 'corpora', ConfigDict()),
                c.data.update(rates='proportional'),
            ),
            "config.data.rates = 'proportional' is of config.data.corpora, and none is named.",
        ),
        (
            lambda c: with_tasks(c).data.update(train='text:x'),
            'config.tasks.only.data.corpora both say what is trained on',
        ),
        (
            lambda c: with_tasks(c).data.update(rates='scheduled'),
            'config.tasks.only.data.corpora: a schedule and epochs are counted over the steps, of which',
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_once(change, message, tmp_path):
    config = make_config(tmp_path, {'sea': {'weight': 1.0}, 'sky': {}})
    change(config)
    with pytest.raises(InputError, match=re.escape(message)):
        configs.parse(config)


@pytest.mark.parametrize(
    ('named', 'data', 'message'),
    [
        ({'sea': {}}, {'rates': 'progress'}, "config.data.rates = 'progress' is not known."),
        ({'sea': {}}, {'rates': 'propotional'}, "Did you mean 'proportional'?"),
        ({'sea': {}}, {'rates_temperature': 0.5}, 'rates_temperature = 0.5 is too small'),
        (
            {'sea': {'epochs': 0.3}, 'sky': {'epochs': 0.5}},
            {},
            "all rows are used up in step 6 of 14: let a corpus be seen more often ('epochs'; 0 = no ",
        ),
        ({'sea': {}}, {'batch_size': 4096}, 'less than config.data.batch_size = 4096'),
        ({'pairs': {}, 'sea': {}}, {}, 'is of pairs of texts, and config.objective.name'),
        ({}, {}, 'config.data.train is empty'),
    ],
)
def test_what_cannot_be_trained_on(named, data, message, tmp_path):
    if 'pairs' in named:
        (tmp_path / 'pairs.tsv').write_text('a\tb\n')
        named = named | {'pairs': {'source': f'tsv:{tmp_path}/pairs.tsv#0,1'}}
    config = make_config(tmp_path, named, data=data)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        lm.train(config, tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run/config.json').exists()


def test_corpora_of_a_config_are_changed_by_the_command_line(tmp_path):
    from command_line import assert_refused, call, config_of

    path = tmp_path / 'mine.py'
    path.write_text(
        'from configs import base\nfrom ml_collections import ConfigDict\n'
        'def get_config():\n'
        '    config = base.get_config()\n'
        "    config.data.train = ''\n"
        "    config.data.corpora = ConfigDict({'web': {'source': 'text:web', 'weight': 1.0}})\n"
        '    return config\n'
    )
    options = [f'--config={path}', '--config.data.corpora.web.weight=2.5']
    assert configs.parse(config_of(options)).data.corpora['web']['weight'] == 2.5
    result = call([*options, '--config.data.corpora.wbe.weight=2'])
    assert_refused(result, "Did you mean 'data.corpora.web.weight'?")
    assert json.loads(json.dumps(configs.to_dict(configs.parse(config_of(options)))))

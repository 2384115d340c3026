"""A run from Python: trained, loaded, measured and sampled, as in a notebook."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

import lm
from lm import lr_find
from lm.errors import InputError
from lm.evaluate import evaluate
from lm.tokenizer import BOS, EOS

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

TEXT = ['the cat sat on the mat.\n' * 3, 'a dog ran in the park.\n' * 2, 'the end.\n'] * 12


def make_config(folder, **sections):
    (folder / 'text.jsonl').write_text(''.join(json.dumps({'text': t}) + '\n' for t in TEXT))
    source = f'jsonl:{folder}/text.jsonl#text'
    return lm.get_config(
        'base',
        data={'train': source, 'valid': f'{source}[:7]', 'test': '', 'length': 16, 'batch_size': 8}
        | sections.pop('data', {}),
        tokenizer={'kind': 'bytes'},
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2} | sections.pop('model', {}),
        optimizer={'learning_rate': 1e-2, 'ema_decay': 0.5},
        schedule={'warmup_steps': 2},
        train={'steps': 30, 'eval_every': 15, 'log_every': 5} | sections.pop('train', {}),
        checkpoint={'every': 15},
        generate={'max_tokens': 8, 'prompts': ('the',)},
        **sections,
    )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    lm.train(make_config(folder), folder / 'run')
    return folder / 'run'


@pytest.fixture(scope='module')
def model(workdir):
    return lm.load(workdir)


def nats_of(model, text):
    """The definition: -log p of each token of a document, its end included, from the logits."""
    tokens = [BOS, *model.run.tokenizer.encode(text), EOS]
    log_p = jax.nn.log_softmax(model.logits([tokens[:-1]])[0])
    return -np.sum(np.asarray(log_p)[np.arange(len(tokens) - 1), tokens[1:]])


def test_the_report_has_the_keys_that_programs_read(workdir):
    report = json.loads((workdir / 'report.json').read_text())
    assert list(report) == [
        *('name', 'steps', 'parameters', 'active_parameters', 'seconds', 'finished', 'splits'),
        *(
            'tasks',
            'corpora',
            'throughput',
            'goodput',
            'profile',
            'curves',
            'samples',
            'environment',
            'config',
            'history',
        ),
    ]
    assert report['finished']
    assert report['steps'] == 30
    assert [event['event'] for event in report['history']] == ['start', 'finish']
    assert {'train/loss', 'train/learning_rate', 'valid/loss'} <= set(report['curves'])
    assert report['splits']['valid'].keys() >= {
        *('loss', 'perplexity', 'bits_per_byte', 'word_perplexity', 'tokens', 'words', 'bytes')
    }
    assert (workdir / 'report.html').exists()
    assert (workdir / 'report.md').exists()


def test_perplexity_is_its_definition(model):
    texts = ['the cat.', 'a dog ran', 'x']
    nats = sum(nats_of(model, text) for text in texts)
    result = model.perplexity(texts)
    tokens, size = sum(len(t) + 1 for t in texts), sum(len(t) for t in texts)
    assert result['tokens'] == tokens
    assert result['loss'] == pytest.approx(nats / tokens, rel=1e-5)
    assert result['perplexity'] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert result['bits_per_byte'] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert result['word_perplexity'] == pytest.approx(math.exp(nats / 6), rel=1e-5)


def test_evaluation_of_the_checkpoint_is_that_of_the_report(workdir):
    report = json.loads((workdir / 'report.json').read_text())
    result = evaluate(workdir)['splits']
    for key, value in report['splits']['valid'].items():
        assert result['valid'][key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize('data', [{'packing': False}, {'batch_size': 16}], ids=str)
def test_perplexity_does_not_depend_on_how_rows_are_made(workdir, model, data, tmp_path):
    expected = evaluate(workdir)['splits']['valid']
    config = make_config(tmp_path, data=data)
    from lm import config as configs
    from lm import run as runs
    from lm.perplexity import perplexity

    config = configs.parse(config)
    run = runs.build(config, model.run.tokenizer, runs.check_mesh(config))
    split = runs.tokenized_splits(run.config, run.tokenizer, ('valid',))['valid']
    assert perplexity(run, model.params, split)['loss'] == pytest.approx(expected['loss'], abs=1e-6)


def test_a_stride_scores_the_same_tokens_with_more_context(workdir, tmp_path):
    side_by_side = evaluate(workdir)['splits']['valid']
    sliding = evaluate(workdir, config=make_config(tmp_path, eval={'stride': 4}))
    sliding = sliding['splits']['valid']
    assert sliding['tokens'] == side_by_side['tokens']
    assert sliding['loss'] != side_by_side['loss']
    with pytest.raises(InputError, match='stride'):
        evaluate(workdir, config=make_config(tmp_path, eval={'stride': 17}))
    with pytest.raises(InputError, match='config.eval.batch_size = 3 rows cannot be divided by 2'):
        evaluate(workdir, config=make_config(tmp_path, eval={'batch_size': 3}))


def test_streamed_text_is_the_text(model):
    pieces = []
    text = model.generate('the ', max_tokens=12, stream=pieces.append)
    assert ''.join(pieces) == text
    assert len(pieces) > 1
    assert model.generate('the ', max_tokens=12) == text


@pytest.mark.slow
def test_greedy_text_follows_the_logits(model):
    tokens = [BOS, *model.run.tokenizer.encode('the')]
    for _ in range(6):
        tokens.append(int(np.argmax(model.logits([tokens])[0, -1])))
    text = model.run.tokenizer.decode(tokens[4:])
    assert model.generate('the', max_tokens=6, temperature=0) == text


def test_several_texts_are_continued_as_one_is(model):
    texts = model.generate(['the', 'a dog'], max_tokens=5, temperature=0)
    assert texts == [model.generate(t, max_tokens=5, temperature=0) for t in ('the', 'a dog')]


def test_best_and_named_checkpoints(workdir):
    assert lm.load(workdir, 'best').step in (15, 30)
    assert lm.load(workdir, 15).step == 15
    with pytest.raises(InputError, match="checkpoint '7' is not in"):
        lm.load(workdir, 7)


def test_an_average_is_the_mean_of_the_latest_checkpoints(workdir, model):
    one_by_one = [lm.load(workdir, step).params for step in (15, 30)]
    found = lm.load(workdir, 'average:2')
    assert found.step == 30
    for mean, first, second in zip(*map(jax.tree.leaves, (found.params, *one_by_one)), strict=True):
        first, second = np.asarray(first), np.asarray(second)
        assert np.any(first != second)
        np.testing.assert_array_equal(np.asarray(mean), (first + second) / np.float32(2))
    alone = lm.load(workdir, 'average:1').params
    for mean, last in zip(*map(jax.tree.leaves, (alone, model.params)), strict=True):
        np.testing.assert_array_equal(
            np.asarray(mean).view(np.int32), np.asarray(last).view(np.int32)
        )
    with pytest.raises(InputError, match=r'holds 2 \(15, 30\). config.checkpoint.keep = 2 says'):
        lm.load(workdir, 'average:3')
    with pytest.raises(InputError, match="checkpoint 'average:0' is not in"):
        lm.load(workdir, 'average:0')


def test_an_average_is_not_of_the_best_that_is_far_back(workdir, tmp_path):
    """Of steps 15 and 30 kept as the best and the latest one."""
    shutil.copytree(workdir, tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    config['checkpoint']['keep'] = 1
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    with pytest.raises(InputError, match=r'holds 1 \(30\). config.checkpoint.keep = 1 says'):
        lm.load(tmp_path / 'run', 'average:2')


@pytest.mark.slow
def test_the_config_says_what_is_evaluated_and_loaded(workdir, tmp_path):
    expected = evaluate(workdir, 'average:2')
    assert expected['checkpoint'] == 'average:2'
    assert expected['splits'] != evaluate(workdir)['splits']
    config = lm.get_config('base', **json.loads((workdir / 'config.json').read_text()))
    config.eval.checkpoint = 'average:2'
    again = tmp_path / 'run'
    assert lm.train(config, again)['splits'] == expected['splits']
    assert 'Of the checkpoint `average:2`.' in (again / 'report.md').read_text()
    assert evaluate(again)['splits'] == expected['splits']
    assert evaluate(again, 'latest')['splits'] != expected['splits']


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('bst', "Did you mean 'best'"),
        ('average:0', "Did you mean 'average:5'"),
        ('average:3', 'needs config.checkpoint.keep = 3, not 2'),
        ('average:2', 'needs 2 checkpoints, and config.checkpoint.every = 15 makes 1 in 15 steps'),
        ('best', 'needs config.data.valid'),
    ],
)
def test_a_checkpoint_that_will_not_be_there_is_said_at_once(name, message, tmp_path):
    config = make_config(tmp_path, train={'steps': 15}, eval={'checkpoint': name})
    config.data.valid = ''
    with pytest.raises(InputError, match=message):
        lm.train(config, tmp_path / 'run')


def test_a_model_loads_where_its_mesh_does_not_fit(workdir, model, tmp_path):
    shutil.copytree(workdir, tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    config['mesh']['data'] = 3  # there are 2 devices
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    moved = lm.load(tmp_path / 'run')
    assert moved.run.mesh.size == 1
    texts = ['the cat sat.', 'a dog']
    assert moved.perplexity(texts)['loss'] == pytest.approx(
        model.perplexity(texts)['loss'], abs=1e-6
    )


def test_evaluations_are_kept_with_their_settings_and_leave_the_report(workdir, tmp_path):
    report = (workdir / 'report.json').read_bytes()
    evaluate(workdir, 15, make_config(tmp_path, eval={'stride': 8}))
    last = json.loads((workdir / 'evaluations.jsonl').read_text().splitlines()[-1])
    assert last['step'] == 15
    assert last['eval']['stride'] == 8
    assert last['splits'].keys() == {'valid'}
    assert (workdir / 'report.json').read_bytes() == report


@pytest.mark.slow
def test_the_range_test_suggests_a_learning_rate(tmp_path):
    suggestion = lr_find.find(make_config(tmp_path, train={'steps': 60}), tmp_path / 'range')
    assert 1e-6 < suggestion < 3
    assert (tmp_path / 'range' / 'lr_find.png').read_bytes().startswith(b'\x89PNG')
    assert not (tmp_path / 'range' / 'checkpoints').exists()

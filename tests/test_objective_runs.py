"""Every objective from a config to a report, and what does not go together."""

import json
import re

import numpy as np
import pytest

import lm
from lm import config, decode
from lm import run as runs
from lm.errors import InputError
from lm.evaluate import evaluate
from lm.inference import LanguageModel
from lm.objectives import OBJECTIVES
from lm.terms import TERMS

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

WORDS = [
    'the',
    'a',
    'cat',
    'dog',
    'sat',
    'ran',
    'on',
    'in',
    'mat',
    'park',
    'and',
    'then',
    'saw',
    'it',
    'was',
    'good',
]
ENCODER = {'architecture': 'encoder', 'attention': ('full',)}
BOTH = {'architecture': 'encoder_decoder'}
# What each objective needs besides its name.
SECTIONS = {
    'causal': {},
    'prefix': {'model': {'attention': ('causal | prefix',)}},
    'masked': {'model': ENCODER, 'tokenizer': {'mask': True}},
    'replaced': {'model': ENCODER, 'tokenizer': {'mask': True}},
    'permutation': {'model': ENCODER | {'attention': ('causal',)}},
    'span_corruption': {'model': BOTH, 'tokenizer': {'sentinels': 30}},
    'ul2': {'model': BOTH, 'tokenizer': {'sentinels': 30}},
    'denoising': {'model': BOTH, 'tokenizer': {'mask': True}},
    'seq2seq': {'model': BOTH},
    'classification': {'model': ENCODER, 'data': {'packing': False}},
    'similarity': {'model': ENCODER, 'data': {'packing': False}},
    'contrastive': {'model': ENCODER, 'data': {'packing': False}},
}


def make_config(folder, name, **more):
    texts = [' '.join(WORDS[i * j % len(WORDS)] for j in range(1, 12)) + '.' for i in range(1, 60)]
    (folder / 'text.txt').write_text('\n'.join(texts))
    rows = [f'{t[:18]}\t{t[:18].upper()}\t{int("cat" in t[:18])}' for t in texts]
    (folder / 'pairs.tsv').write_text('\n'.join(rows))
    source = {
        'seq2seq': f'tsv:{folder}/pairs.tsv',
        'contrastive': f'tsv:{folder}/pairs.tsv',
        'classification': f'tsv:{folder}/pairs.tsv#0,1=2',
        'similarity': f'tsv:{folder}/pairs.tsv#0,1=2',
    }.get(name, f'text:{folder}/text.txt')
    sections = {key: dict(value) for key, value in SECTIONS[name].items()}
    for key, value in more.items():
        sections[key] = sections.get(key, {}) | value
    return lm.get_config(
        'base',
        objective={'name': name} | sections.pop('objective', {}),
        data={'train': source, 'valid': source, 'test': '', 'document': 'line', 'length': 48}
        | {'batch_size': 8}
        | sections.pop('data', {}),
        tokenizer={'kind': 'bytes'} | sections.pop('tokenizer', {}),
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2} | sections.pop('model', {}),
        optimizer={'learning_rate': 1e-2},
        schedule={'warmup_steps': 2},
        train={'steps': 24, 'eval_every': 24, 'log_every': 1},
        checkpoint={'every': 0},
        eval={'beams': 2} | sections.pop('eval', {}),
        generate={'max_tokens': 4},
        log={'tensorboard': False},
        **sections,
    )


@pytest.mark.slow
def test_loads_of_experts_are_in_metrics_and_reports(tmp_path):
    model = ENCODER | {'experts': 4, 'router': 'expert_choice'}
    config = make_config(tmp_path, 'masked', model=model)
    report = lm.train(config, tmp_path / 'run')
    found = report['splits']['valid']
    assert found['experts/balance'] == 1
    assert found['loss'] == pytest.approx(np.log(found['perplexity']))
    assert {'train/experts/load', 'valid/experts/worst_load'} <= set(report['curves'])
    assert report['active_parameters'] < report['parameters']
    assert '## Experts' in (tmp_path / 'run' / 'report.md').read_text()


def test_every_objective_has_a_loss_and_is_run():
    assert set(OBJECTIVES) == set(TERMS) == set(SECTIONS)


@pytest.fixture(scope='module')
def translator(tmp_path_factory):
    """The report of a trained translator, and the folder of its run."""
    folder = tmp_path_factory.mktemp('translator')
    return lm.train(make_config(folder, 'seq2seq'), folder / 'run'), folder


@pytest.mark.slow
@pytest.mark.parametrize('name', SECTIONS)
def test_learns(name, tmp_path, request):
    if name == 'seq2seq':
        report, _ = request.getfixturevalue('translator')
    else:
        report = lm.train(make_config(tmp_path, name), tmp_path / 'run')
    assert report['finished']
    curve = [value for _, value in report['curves']['train/loss']]
    if OBJECTIVES[name].of_texts:  # Labels of 59 texts are noisy.
        assert sum(curve[-3:]) < sum(curve[:3])
        assert report['tasks']['valid']['texts'] == 59
        return
    assert sum(curve[-3:]) < 0.9 * sum(curve[:3])
    assert (report['splits']['valid']['bits_per_byte'] is None) == (
        name not in ('causal', 'seq2seq')
    )


@pytest.mark.slow
def test_a_discriminator_learns_without_a_generator(tmp_path):
    config = make_config(tmp_path, 'replaced', objective={'generator_size': 0.0, 'rate': 0.3})
    report = lm.train(config, tmp_path / 'run')
    assert set(report['splits']['valid']) >= {'loss', 'accuracy'}
    assert not any('generator' in name for name in report['curves'])
    curve = [value for _, value in report['curves']['train/loss']]
    assert sum(curve[-3:]) < 0.9 * sum(curve[:3])


@pytest.mark.slow
def test_masked_tokens_and_pairs_together(tmp_path):
    config = make_config(
        tmp_path,
        'masked',
        objective={'pairs': 'order', 'unit': 'word'},
        data={'packing': False, 'document': 'file'},
        model={'token_types': 2, 'embed_norm': True},
    )
    report = lm.train(config, tmp_path / 'run')
    assert 0 <= report['splits']['valid']['pair/accuracy'] <= 1


@pytest.mark.slow
def test_translations_are_measured_and_kept(translator):
    report, folder = translator
    assert set(report['tasks']) == {'valid, greedy', 'valid, beam 2'}
    for name in ('greedy', 'beam2'):
        lines = (folder / f'run/predictions/valid.{name}.jsonl').read_text().splitlines()
        assert len(lines) == 59
        assert set(json.loads(lines[0])) == {'source', 'target', 'prediction'}
    # Evaluated again it is the same, in a folder of its own, and by other means it is kept beside it.
    again = evaluate(folder / 'run')
    assert again['tasks'] == report['tasks']
    assert again['predictions'] == 'predictions/evaluation1'
    for name in ('valid.greedy.jsonl', 'valid.beam2.jsonl'):
        first, second = (
            (folder / 'run' / place / name).read_text()
            for place in ('predictions', again['predictions'])
        )
        assert first == second
    other = evaluate(folder / 'run', config=make_config(folder, 'seq2seq', eval={'beams': 0}))
    assert set(other['tasks']) == {'valid, greedy'}
    assert other['predictions'] == 'predictions/evaluation2'
    kept = (folder / 'run' / 'evaluations.jsonl').read_text().splitlines()
    assert [json.loads(line)['tasks'] for line in kept] == [again['tasks'], other['tasks']]
    model = lm.load(folder / 'run')
    one = model.generate('the cat', beams=2, max_tokens=5)
    assert model.generate(['the cat', 'a dog sat on'], beams=2, max_tokens=5)[0] == one


def test_what_an_encoder_is_given_is_what_its_objective_trains_on(tmp_path, monkeypatch):
    """The text of a prompt stands in the source of `generate` as it would in that of the objective."""
    given = {}

    def keep(model, params, prompts, lengths, *args, sources, **kwargs):
        row, (read, counts) = prompts[0, : lengths[0]].tolist(), sources
        given[name] = row, read[0, : counts[0]].tolist()
        return np.zeros((1, 1), np.int32), np.zeros(1, np.int32)

    monkeypatch.setattr(decode, 'generate', keep)
    for name in ('seq2seq', 'denoising', 'ul2'):
        parsed = config.parse(make_config(tmp_path, name))
        text = runs.build_tokenizer(parsed, tmp_path)
        run = runs.build(parsed, text, runs.check_mesh(parsed))
        assert LanguageModel(run, None).generate('a') == ''
    (a,) = text.encode('a')
    first, sequential = text.vocab_size, text.vocab_size + 30 - 2
    assert given == {
        'seq2seq': ([1], [a, 2]),
        'denoising': ([1], [1, a, 2]),
        'ul2': ([1, first], [sequential, 1, a, first, 2]),
    }


@pytest.mark.parametrize(
    ('name', 'more', 'message'),
    [
        (
            'masked',
            {'model': {'architecture': 'decoder'}},
            "needs config.model.architecture = 'encoder'",
        ),
        ('masked', {'model': {'architecture': 'encodr'}}, "Did you mean 'encoder'"),
        ('masked', {'model': {'attention': ('causal',)}}, "Did you mean ('full',)"),
        ('masked', {'model': {'tie_embeddings': False}}, 'an encoder has'),
        ('masked', {'objective': {'unit': 'tokn'}}, "Did you mean 'token'"),
        (
            'seq2seq',
            {'model': {'embedding_dim': 8}},
            'embedding_dim = 8 is for encoders and decoders',
        ),
        ('causal', {'model': {'position': 'relative', 'attention': ('linear',)}}, "take 'rotary'"),
        ('permutation', {'model': {'position': 'relative'}}, "Did you mean 'rotary'"),
        (
            'permutation',
            {'model': {'position': 'transformer_xl', 'attention_softcap': 3.0}},
            'config.model.attention_softcap = 3 would not cap',
        ),
        (
            'masked',
            {'model': {'position': 'transformer_xl', 'attention_implementation': 'blocked'}},
            "position = 'transformer_xl' is a bias on all pairs",
        ),
        ('span_corruption', {'eval': {'stride': 8}}, 'config.eval.stride = 8 is for objectives'),
        ('masked', {'tokenizer': {'mask': False}}, 'set config.tokenizer.mask = True'),
        ('span_corruption', {'tokenizer': {'sentinels': 0}}, 'set config.tokenizer.sentinels'),
        ('prefix', {'model': {'attention': ('full',)}}, "Did you mean 'causal'"),
        ('permutation', {'model': {'attention': ('window(4)',)}}, "Did you mean 'full'"),
        ('seq2seq', {'model': {'attention': ('full',)}}, "Did you mean 'causal'"),
        ('seq2seq', {'eval': {'bleu_tokenizer': '13b'}}, 'config.eval.bleu_tokenizer'),
        ('masked', {'objective': {'pairs': 'next'}}, 'config.data.packing = False'),
        ('causal', {'objective': {'name': 'seq2seq'}, 'model': BOTH}, 'pairs'),
        (
            'seq2seq',
            {'objective': {'name': 'causal'}, 'model': {'architecture': 'decoder'}},
            'pairs',
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_once(name, more, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        lm.train(make_config(tmp_path, name, **more), tmp_path / 'run')

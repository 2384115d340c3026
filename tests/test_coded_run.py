"""A run whose documents have codes: trained, sampled, guided and measured."""

import json

import pytest

import lm
from lm.errors import InputError

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

CODES = ('first', 'second', 'title=', 'words<3')


def make_config(folder, **sections):
    records = [
        {'text': letter * 3, 'kind': kind, 'title': letter}
        for letter, kind in (('a', 'first'), ('b', 'second'))
    ] * 30
    (folder / 'text.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    source = f'jsonl:{folder}/text.jsonl#text{{kind}}'
    return lm.get_config(
        'base',
        data={'train': source, 'valid': source, 'test': '', 'length': 16, 'batch_size': 8}
        | {'code_dropout': 0.3}
        | sections.pop('data', {}),
        tokenizer={'kind': 'bytes', 'codes': CODES} | sections.pop('tokenizer', {}),
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2} | sections.pop('model', {}),
        optimizer={'learning_rate': 1e-2},
        schedule={'warmup_steps': 2},
        train={'steps': 100, 'eval_every': 0, 'log_every': 20},
        checkpoint={'every': 0},
        generate={'max_tokens': 9, 'prompts': ('',), 'samples': 4, 'codes': ('second', 'words<3')}
        | sections.pop('generate', {}),
        log={'tensorboard': False},
        **sections,
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coded')
    lm.train(make_config(folder), folder / 'run')
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return lm.load(folder / 'run')


@pytest.mark.slow
def test_codes_decide_what_is_written(model, folder):
    for codes, text in ((('first', 'words<3'), 'a' * 3), (('second', 'words<3'), 'b' * 3)):
        assert model.generate('', temperature=0.0, codes=codes) == text
        assert model.generate('', codes=codes, beams=2) == text
        assert model.generate(['', text[:2]], temperature=0.0, codes=codes, guidance=2.0) == [
            text,
            text[2:],
        ]
    samples = json.loads((folder / 'run' / 'report.json').read_text())['samples']
    assert sum(sample['text'].startswith('b') for sample in samples) == 4


@pytest.mark.slow
def test_without_codes_both_are_written(model):
    drawn = model.generate([''] * 40, temperature=1.0)
    assert {text[:1] for text in drawn} >= {'a', 'b'}
    codes = ('first', 'words<3')
    drawn_0 = model.generate([''] * 40, temperature=1.0, codes=codes, guidance=0.0)
    assert drawn_0 == drawn
    assert model.generate('', beams=2, codes=codes, guidance=0.0) == model.generate('', beams=2)


@pytest.mark.slow
def test_a_text_is_likeliest_under_its_own_code(model):
    losses = [model.perplexity('aaa', codes=(k, 'words<3'))['loss'] for k in CODES[:2]]
    free = model.perplexity('aaa')['loss']
    assert losses[0] < free < losses[1]
    assert model.perplexity(['aa', 'aaa'], codes=('first',))['tokens'] == 7


@pytest.mark.slow
def test_what_cannot_be_asked_for_is_named(model):
    with pytest.raises(
        InputError, match="codes: the code 'frist' is not known. Did you mean 'first'"
    ):
        model.generate('', codes=('frist',))
    with pytest.raises(InputError, match=r'guidance = 2.0 is towards codes, and none are given'):
        model.generate('', guidance=2.0)
    with pytest.raises(InputError, match=r'guidance = 2.0 takes no beams'):
        model.generate('', codes=('first',), guidance=2.0, beams=2)


@pytest.mark.parametrize(
    ('sections', 'message'),
    [
        (
            {'generate': {'codes': ('secnod',)}},
            "config.generate.codes: the code 'secnod' is not known",
        ),
        ({'tokenizer': {'codes': ('a b',)}}, "config.tokenizer.codes: 'a b' is not a code"),
        ({'tokenizer': {'codes': ('first', 'title=')}}, "the code 'second' is not known"),
        ({'tokenizer': {'codes': ()}}, 'code_dropout = 0.3 leaves out codes'),
        (
            {'objective': {'name': 'masked'}, 'tokenizer': {'mask': True}}
            | {'model': {'architecture': 'encoder', 'attention': ('full',)}},
            "config.tokenizer.codes are for config.objective.name = 'causal' or 'prefix', not 'masked'",
        ),
    ],
)
def test_configs_that_do_not_go_together(sections, message, tmp_path):
    if 'tokenizer' in sections:
        sections['generate'] = {'codes': ()}
    with pytest.raises(InputError, match=message):
        lm.train(make_config(tmp_path, **sections), tmp_path / 'run')


@pytest.mark.slow
def test_prefix_language_models_take_codes(tmp_path):
    sections = {'objective': {'name': 'prefix'}, 'model': {'attention': ('causal | prefix',)}}
    lm.train(make_config(tmp_path, **sections), tmp_path / 'run')
    model = lm.load(tmp_path / 'run')
    assert model.generate('', temperature=0.0, codes=('second', 'words<3')) == 'b' * 3

"""A run translates a corpus, and what it makes is trained on."""

import json
import re

import numpy as np
import pytest
from command_line import assert_refused, call
from ml_collections import ConfigDict

import lm
from lm import back_translation, config, tokenizer, translation
from lm import run as runs
from lm.back_translation import BLANK, noised, write
from lm.data import numerals
from lm.errors import InputError

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

TAG = '<BT>'


def make_config(train, **sections):
    """A model that writes numbers, badly, after seconds."""
    return lm.get_config(
        'quickstart_translation',
        data={'train': train, 'valid': '', 'test': '', 'length': 48, 'batch_size': 8},
        tokenizer={'kind': 'bpe', 'vocab_size': 96} | sections.pop('tokenizer', {}),
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2},
        train={'steps': 40, 'eval_every': 0},
        checkpoint={'every': 0},
        generate={'prompts': ()},
        log={'tensorboard': False},
        eval={'beams': 2},
        **sections,
    )


@pytest.fixture(scope='module')
def reverse(tmp_path_factory):
    """A run from English to German, and English text for it."""
    folder = tmp_path_factory.mktemp('reverse')
    lm.train(make_config('builtin:numerals#en,de[train]'), folder / 'run')
    english = list(numerals.documents('valid', ('en', 'de')))[::2][:40]
    (folder / 'mono.txt').write_text('\n\n'.join(english) + '\n')
    return folder, english


def rows(path):
    return [line.split('\t') for line in path.read_text().split('\n')[:-1]]


def words(count):
    return [f'w{i}' for i in range(count)]


def test_noise_drops_blanks_and_moves_a_little():
    count = 20_000
    found = noised(' '.join(words(count)), np.random.default_rng(0)).split(' ')
    # Binomial, within five deviations.
    spread = 5 * (0.1 * 0.9 / count) ** 0.5
    assert abs(1 - len(found) / count - 0.1) < spread
    assert abs(found.count(BLANK) / len(found) - 0.1) < 1.1 * spread
    numbers = np.array([int(word[1:]) for word in found if word != BLANK])
    # What stands before a word in spite of a larger number is at most 3 beyond it.
    assert (np.maximum.accumulate(numbers) - numbers).max() == 3
    assert len(set(numbers)) == len(numbers)


def test_noise_follows_its_seed_and_leaves_something():
    text = ' '.join(words(9))
    made = [noised(text, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert {noised('one', np.random.default_rng(seed)) for seed in range(99)} == {'one', BLANK}
    assert noised('  ', np.random.default_rng(0)) == '  '
    example = re.search(r"default_rng\(0\)\)\n +'(.*)'", noised.__doc__)[1]
    assert noised('eine Frau sitzt auf einer Bank im Park', np.random.default_rng(0)) == example


def test_noise_moves_chinese_characters_and_keeps_white_space():
    text = '我们现在试试看这个东西很好'
    made = noised(text, np.random.default_rng(0))
    assert set(made.replace(BLANK, '')) < set(text)
    assert ' ' not in made
    for seed in range(40):
        made = noised('a\u3000b', np.random.default_rng(seed)).replace(BLANK, 'x')
        assert re.fullmatch('[abx](\u3000[abx])?', made)


@pytest.mark.slow
def test_pairs_for_the_other_direction(reverse, tmp_path):
    """The columns, the tag, the record, and each method."""
    folder, english = reverse
    source = f'text:{folder}/mono.txt'
    model = lm.load(folder / 'run')
    plain = tmp_path / 'plain.tsv'
    assert write(folder / 'run', source, plain) == (40, 0)
    assert [row[0] for row in rows(plain)] == english
    how = {'beams': 2, 'length_penalty': 0.6}
    assert [row[1] for row in rows(plain)] == translation.translate(model, english, how, '')
    command = [f'--workdir={folder}/run', '--mode=translate', f'--source={source}', '--swap']
    swapped = tmp_path / 'swapped.tsv'
    result = call([*command, f'--output={swapped}', f'--tag={TAG}'])
    assert result.code == 0, result
    assert f'40 pairs of 40 texts: {swapped}' in result.out
    assert rows(swapped) == [[TAG + made, text] for text, made in rows(plain)]
    record = json.loads((tmp_path / 'swapped.tsv.json').read_text())
    assert (record['step'], record['method'], record['beams']) == (40, 'beam', 2)
    made = {'beam': plain.read_text()}
    for method in set(back_translation.METHODS) - {'beam'}:
        write(folder / 'run', source, tmp_path / f'{method}.tsv', method)
        made[method] = (tmp_path / f'{method}.tsv').read_text()
    assert len(set(made.values())) == len(back_translation.METHODS)
    assert BLANK in made['noised']
    # Of pairs the first sides, in the order of the source.
    write(folder / 'run', f'tsv:{plain}#1,0[:3]', tmp_path / 'sides.tsv')
    assert [row[0] for row in rows(tmp_path / 'sides.tsv')] == [row[1] for row in rows(plain)][:3]


@pytest.mark.slow
def test_a_round_trip_is_two_translations(reverse, tmp_path):
    """By one command, and by two of which the second reads what the first made."""
    folder, english = reverse
    run, source = folder / 'run', f'text:{folder}/mono.txt'
    there, back, both = (tmp_path / f'{name}.tsv' for name in ('there', 'back', 'both'))
    write(run, source, there)
    write(run, f'tsv:{there}#1', back)
    command = [f'--workdir={run}', '--mode=translate', f'--source={source}', f'--output={both}']
    result = call([*command, f'--through={run}'])
    assert result.code == 0, result
    made = [row[1] for row in rows(back)]
    assert made != [row[1] for row in rows(there)]
    assert rows(both) == [list(pair) for pair in zip(english, made, strict=True)]
    record = json.loads((tmp_path / 'both.tsv.json').read_text())
    assert (record['through'], record['through_step']) == (str(run), 40)
    # Either side is text to train on, and both are pairs.
    data = config.parse(make_config(f'tsv:{both}#1')).data
    texts = back_translation.source.parse(f'tsv:{both}#0 + tsv:{both}#1', data)
    assert list(texts.documents()) == [*english, *made]


@pytest.mark.slow
@pytest.mark.parametrize('method', ['sample', 'noised'])
def test_what_was_interrupted_goes_on_to_the_same_end(method, reverse, tmp_path, monkeypatch):
    folder, _ = reverse
    monkeypatch.setattr(back_translation, '_CHUNK', 16)
    said = []
    arguments = folder / 'run', f'text:{folder}/mono.txt', tmp_path / 'cut.tsv', method
    translate = translation.translate

    def interrupted(model, texts, how, label, seed):
        if label.startswith('32'):
            raise KeyboardInterrupt
        return translate(model, texts, how, label, seed)

    with monkeypatch.context() as patch:
        patch.setattr(translation, 'translate', interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(*arguments)
    partial = tmp_path / 'cut.tsv.partial'
    assert len(rows(partial)) == 32
    with partial.open('a') as file:  # A line of the next texts, and half of one.
        file.write('a\tb\nc')
    with pytest.raises(InputError, match=r"begun otherwise: tag \('' there, '<BT>' now\)"):
        write(*arguments, tag=TAG)
    write(*arguments, say=said.append)
    assert said == ['Going on from text 32 of 40.']
    assert not partial.exists()
    whole = tmp_path / 'whole.tsv'
    write(*arguments[:2], whole, method)
    assert (tmp_path / 'cut.tsv').read_text() == whole.read_text()
    with pytest.raises(InputError, match='exists already'):
        write(*arguments)
    other = make_config('builtin:numerals', seed=1)
    write(*arguments[:2], tmp_path / 'other.tsv', method, config=other)
    assert (tmp_path / 'other.tsv').read_text() != whole.read_text()


@pytest.mark.slow
def test_texts_without_a_translation_are_not_trained_on(reverse, tmp_path, monkeypatch):
    folder, _ = reverse
    monkeypatch.setattr(
        translation,
        'translate',
        lambda model, texts, *_: [' ' if i == 1 else 'ein\n\tTeil' for i in range(len(texts))],
    )
    (tmp_path / 'mono.txt').write_text('one\ta\ntwo\nthree\n')
    made = tmp_path / 'made.tsv'
    assert write(folder / 'run', f'text:{tmp_path}/mono.txt', made) == (3, 1)
    assert made.read_text() == 'one a\tein Teil\n\nthree\tein Teil\n'
    data = config.parse(make_config(f'tsv:{made}')).data
    assert len(list(back_translation.source.parse(f'tsv:{made}', data).documents())) == 4


@pytest.mark.slow
def test_a_task_of_several_reads_its_prefix(tmp_path):
    tasks = {
        to: {'data': {'train': f'builtin:numerals#en,{to}[train]', 'prefix': f'{to}: '}}
        for to in ('de', 'fr')
    }
    several = make_config('')
    several.tasks = ConfigDict(tasks)
    lm.train(several, tmp_path / 'run')
    english = list(numerals.documents('valid', ('en', 'de')))[::2][:8]
    (tmp_path / 'mono.txt').write_text('\n'.join(english))
    model = lm.load(tmp_path / 'run')
    for to in tasks:
        made = tmp_path / f'{to}.tsv'
        write(tmp_path / 'run', f'text:{tmp_path}/mono.txt', made, task=to)
        given = [f'{to}: {text}' for text in english]
        expected = translation.translate(model, given, {'beams': 2, 'length_penalty': 0.6}, '')
        assert rows(made) == [list(pair) for pair in zip(english, expected, strict=True)]
    with pytest.raises(InputError, match='Choose one of: de, fr'):
        write(tmp_path / 'run', f'text:{tmp_path}/mono.txt', tmp_path / 'a.tsv')


@pytest.mark.slow
def test_synthetic_pairs_are_mixed_into_training(reverse, tmp_path):
    """The whole way, as README.md has it: reverse run, synthetic pairs, forward run with a tag."""
    folder, _ = reverse
    made = tmp_path / 'synthetic.tsv'
    write(folder / 'run', f'text:{folder}/mono.txt', made, 'sample', swap=True, tag=TAG)
    real = 'builtin:numerals#de,en[train]'
    forward = make_config(f'{real} + tsv:{made}', tokenizer={'symbols': (TAG,)})
    report = lm.train(forward, tmp_path / 'forward')
    assert report['finished']
    parsed = config.parse(forward)
    text = tokenizer.load(tmp_path / 'forward')
    split = runs.tokenized_splits(parsed, text, ('train',))['train']
    assert split.num_documents == 2 * (40_000 + 40)
    (tag,) = text.encode(TAG)
    synthetic, target = split.document(2 * 40_000), split.document(2 * 40_000 + 1)
    assert synthetic[1] == tag
    assert [f'{text.decode(synthetic)}\t{text.decode(target)}'] == made.read_text().split('\n')[:1]
    assert not (split.document(0) == tag).any()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--source=', '--output=a.tsv'], 'needs --source'),
        (['--source=text:a'], 'needs --output'),
        (['--source=text:a', '--output=a.txt'], 'name it .tsv'),
        (['--source=text:a', '--output=a.tsv', '--method=beams'], "Did you mean 'beam'"),
        (['--source=text:a', '--output=/nowhere/a.tsv', '--tag=a\tb'], 'holds a tab'),
        (['--source=text:a', '--output=/nowhere/a.tsv'], 'is not the workdir of a run'),
    ],
)
def test_bad_input_gets_one_line(options, message, tmp_path):
    assert_refused(call(['--mode=translate', f'--workdir={tmp_path}/run', *options]), message)

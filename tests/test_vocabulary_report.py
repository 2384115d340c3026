"""The report of a vocabulary, as the command line writes it, read back."""

import dataclasses
import json
import re

import pytest
from command_line import assert_refused, call

from lm import config as configs
from lm import fertility, tokenizer, vocabulary_page, vocabulary_report
from tests.test_tokenizer import SPEC, TEXT, train_as_others_do, trained_elsewhere

ZH = '一日一善，花好月圆。\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """An English and a Chinese text, pairs, and two tokenizers of others."""
    folder = tmp_path_factory.mktemp('texts')
    (folder / 'en.txt').write_text(TEXT)
    (folder / 'zh.txt').write_text(ZH * 20)
    (folder / 'pairs.tsv').write_text('the cat\t一日\nthe dog\t一善\n' * 5)
    (folder / 'theirs.json').write_text(json.dumps(trained_elsewhere()))
    (folder / 'theirs.model').write_bytes(train_as_others_do())
    return folder


@pytest.fixture(scope='module')
def written(folder):
    """The folder of a report by the command line, with figures."""
    options = [
        '--mode=vocabulary',
        f'--source=en=text:{folder}/en.txt',
        f'--source=zh=text:{folder}/zh.txt',
        '--config.tokenizer.kind=bpe',
        '--config.tokenizer.vocab_size=600',
        f'--compare={folder}/theirs.json,{folder}/theirs.model',
        '--sizes=300,400,800,100000',
        f'--output={folder}/report',
    ]
    result = call(options)
    assert result.code == 0, result.err
    assert f'Report: {folder}/report/report.html' in result.out
    return folder / 'report'


def test_report_holds_what_was_measured(folder, written):
    found = json.loads((written / 'report.json').read_text())
    made = tokenizer.load(written)
    assert (made.kind, made.vocab_size) == ('bpe', 600)
    assert found['tokenizer']['fingerprint'] == made.fingerprint
    assert found['tokenizer']['specials']['eos'] == 2
    texts = {'en': [TEXT], 'zh': [ZH * 20]}
    expected = json.loads(json.dumps(fertility.measure(made, texts)))
    assert found['all']['tokens'] == sum(len(made.encode(text)) for (text,) in texts.values())
    for name, facts in expected['languages'].items():
        facts['texts'] = found['groups'][name]['texts']  # Parts.
        assert found['groups'][name] == facts
    assert [*found['sources']] == [f'text:{folder}/en.txt', f'text:{folder}/zh.txt']
    pieces = found['pieces']
    assert sum(pieces['lengths'].values()) == 596
    assert pieces['lengths']['0'] == 256
    assert pieces['ranks'][0] == [1, pieces['most_frequent'][0]['count']]
    assert pieces['ranks'][-1] == [596 - pieces['unused'], pieces['least_frequent'][0]['count']]


def test_other_tokenizers_are_measured_on_the_same_text(folder, written):
    found = json.loads((written / 'report.json').read_text())['compared']
    assert [*found] == ['theirs.json', 'theirs.model']
    gpt2 = tokenizer.from_pretrained(folder / 'theirs.json')
    assert found['theirs.json']['kind'] == 'huggingface'
    for name, text in (('en', TEXT), ('zh', ZH * 20)):
        facts = found['theirs.json']['groups'][name]
        assert facts['bytes'] == len(text.encode())
        assert facts['tokens'] == pytest.approx(len(gpt2.encode(text)), abs=2)  # Cut into parts.
    assert found['theirs.model']['kind'] == 'bpe'
    assert found['theirs.model']['groups']['zh']['unknown_rate'] > 0


def test_fertility_falls_with_size_and_known_sizes_are_marked(written):
    found = json.loads((written / 'report.json').read_text())['curve']
    sizes = [point['vocab_size'] for point in found['points']]
    assert sizes[:2] == [400, 800]
    assert 800 < sizes[2] < 100_000
    assert found['known'] == {'GPT-2': 50257}
    assert re.fullmatch(r'The smallest that this text allows has 3\d\d ids.', found['notes'][0])
    assert found['notes'][1] == f'The largest that this text allows has {sizes[2]:,} ids.'
    for name in ('en', 'zh'):
        for key in ('tokens_per_word', 'tokens_per_byte'):
            values = [point['groups'][name][key] for point in found['points']]
            assert values == sorted(values, reverse=True)


def test_page_shows_it_all(written):
    page, text = (written / 'report.html').read_text(), (written / 'report.md').read_text()
    assert page.count('<figure>') == 5
    for shown in (page, text):
        assert 'GPT-2' in shown
        assert '50,257' in shown
        assert 'theirs.json' in shown
        assert '␣the' in shown
    for heading in ('Fertility', 'Coverage', 'Sources', 'Beside others', 'Size', 'Pieces'):
        assert f'<h2>{heading}</h2>' in page
        assert f'## {heading}\n' in text
    assert '<script' not in page
    assert 'NaN' not in (written / 'report.json').read_text()


@pytest.fixture
def no_charts(monkeypatch):
    monkeypatch.setattr(vocabulary_page, 'chart', lambda *_, **__: '')


def report(output, config=None, **options):
    config = config or configs.parse(configs.load('base'))
    return vocabulary_report.report(
        config, output, vocabulary_report.Options(**options), say=lambda _: None
    )


def with_tokenizer(**changes):
    config = configs.load('base')
    config.tokenizer.update(changes)
    return configs.parse(config)


def test_of_corpora(folder, tmp_path, no_charts):
    config = configs.load('base')
    config.tokenizer.update({'kind': 'words', 'vocab_size': 500})
    config.data.update({'train': '', 'valid': '', 'test': ''})
    with config.data.unlocked():
        config.data.corpora = {
            'one': {'source': f'text:{folder}/en.txt'},
            'two': {'source': f'text:{folder}/zh.txt'},
        }
    found = report(tmp_path, configs.parse(config), sizes=[])
    assert [*found['sources']] == ['train one', 'train two']


def test_of_a_config(folder, tmp_path, no_charts):
    config = configs.load('base')
    config.tokenizer.update({'kind': 'words', 'vocab_size': 500, 'symbols': ('<BT>',)})
    config.tokenizer.update({'mask': True, 'sentinels': 2, 'codes': ('news',)})
    config.data.update(
        {'train': f'text:{folder}/en.txt', 'valid': f'text:{folder}/zh.txt', 'test': ''}
    )
    found = report(tmp_path, configs.parse(config), sizes=[400])
    assert [*found['groups']] == [*found['sources']] == ['train', 'valid']
    # Trained on the first only.
    assert found['groups']['train']['word_coverage'] > found['groups']['valid']['word_coverage']
    assert tokenizer.load(tmp_path).kind == 'words'
    assert found['tokenizer']['total'] == 504
    assert found['tokenizer']['specials'] == {'pad': 0, 'bos': 1, 'eos': 2, 'unk': 3, 'mask': 500}
    text = (tmp_path / 'report.md').read_text()
    assert '| PAD | BOS | EOS | UNK | MASK | 2 sentinels | code news | symbol &lt;BT&gt; |' in text
    assert '| 0 | 1 | 2 | 3 | 500 | 501 to 502 | 503 | 262 |' in text


@pytest.mark.parametrize('name', ['theirs.json', 'theirs.model'])
def test_of_an_imported_tokenizer(folder, tmp_path, no_charts, name):
    source = f'en=text:{folder}/en.txt'
    found = report(tmp_path, with_tokenizer(path=str(folder / name)), sources=[source])
    assert found['tokenizer']['from'] == str(folder / name)
    assert found['curve']['points'] == []
    made = tokenizer.from_pretrained(folder / name)
    assert tokenizer.from_pretrained(tmp_path).fingerprint == made.fingerprint
    assert found['all']['tokens'] == pytest.approx(len(made.encode(TEXT)), abs=5)


def test_of_a_workdir_and_beside_one(folder, tmp_path, no_charts):
    first = report(tmp_path / 'a', with_tokenizer(kind='bytes'), sources=[f'text:{folder}/zh.txt'])
    config = configs.load('base')
    config.data.update({'train': f'text:{folder}/zh.txt', 'valid': '', 'test': ''})
    options = vocabulary_report.Options(compare=[str(tmp_path / 'a')], sizes=())
    found = vocabulary_report.report(
        configs.parse(config), tmp_path / 'b', options, tmp_path / 'a', lambda _: None
    )
    assert found['tokenizer']['fingerprint'] == first['tokenizer']['fingerprint']
    assert found['compared']['a']['groups'] == found['groups'] | {
        name: facts | {'texts': found['groups'][name]['texts']}
        for name, facts in found['groups'].items()
    }


def test_sides_of_pairs_are_languages(folder, tmp_path, no_charts):
    source = f'en,zh=tsv:{folder}/pairs.tsv'
    found = report(tmp_path, with_tokenizer(kind='chars'), sources=[source])
    assert [*found['groups']] == ['en', 'zh']
    assert found['groups']['en']['words'] == found['groups']['zh']['words'] == 20
    assert [*found['sources']] == [f'tsv:{folder}/pairs.tsv']


def test_no_more_than_the_bytes_asked_for(folder, tmp_path, no_charts):
    lines = tmp_path / 'lines.txt'
    lines.write_text(''.join(f'{i} ' * 2000 + '\n' for i in range(50)))
    config = with_tokenizer(kind='bytes')
    first, second = (
        report(tmp_path / 'out', config, sources=[f'x=text:{lines}'], most=100_000)
        for _ in range(2)
    )
    assert 50_000 <= first['all']['bytes'] <= 100_000
    assert first == second


def test_languages_are_identified(tmp_path, no_charts):
    pytest.importorskip('py3langid')
    english = 'A cat sat on the mat and looked at the old house for a long time.\n'
    chinese = '他们昨天去了北京的图书馆，今天又回到学校上课。\n'
    (tmp_path / 'mixed.txt').write_text(english * 200 + '\n' + chinese * 300)
    (tmp_path / 'fr.txt').write_text('Le chat dort.\n')
    config = with_tokenizer(kind='bytes')
    sources = [f'text:{tmp_path}/mixed.txt', f'fr=text:{tmp_path}/fr.txt']
    found = report(tmp_path, config, sources=sources, identify=True)['groups']
    assert [*found] == ['fr', 'en', 'zh']
    assert found['fr']['bytes'] == 14  # Named, and so no 'other', though it is little.
    assert found['en']['bytes'] + found['zh']['bytes'] == len(
        (english * 200 + '\n' + chinese * 300).encode()
    )


def test_curve_of_a_text_that_supports_none_of_the_sizes():
    groups = {'en': ['the cat\n']}
    facts = {'en': {'words': 2, 'bytes': 8}}
    for kind in ('words', 'bpe', 'unigram'):
        spec = dataclasses.replace(SPEC, kind=kind)
        found = vocabulary_report.curve(spec, (20, 5000, 6000), groups, facts, lambda _: None)
        assert len(found['points']) == 1
        assert len(found['notes']) == 2


def test_rates_of_the_curve_are_those_of_its_tokenizers():
    groups = {'en': [TEXT[:2000], TEXT[2000:5000]], 'zh': [ZH, '一二三']}
    facts = {'en': {'words': 100, 'bytes': 1000}, 'zh': {'words': 10, 'bytes': 50}}
    spec = dataclasses.replace(SPEC, kind='words')
    texts = [text for some in groups.values() for text in some]
    with pytest.raises(tokenizer.WrongSize) as raised:
        tokenizer.build(dataclasses.replace(spec, vocab_size=10**6), lambda: texts)
    most = raised.value.right
    found = vocabulary_report.curve(spec, (300, most, 2 * most), groups, facts, lambda _: None)
    assert [point['vocab_size'] for point in found['points']] == [300, most]
    for point in found['points']:
        sized = dataclasses.replace(spec, vocab_size=point['vocab_size'])
        made = tokenizer.build(sized, lambda: texts)
        for name, parts in groups.items():
            tokens = sum(len(made.encode(part)) for part in parts)
            expected = {
                'tokens_per_word': tokens / facts[name]['words'],
                'tokens_per_byte': tokens / facts[name]['bytes'],
            }
            assert point['groups'][name] == expected


def test_visible_pieces():
    pieces = [b' the', b'\n', b'\xe4', b'a\xb8\xad', '\u200d'.encode(), '一'.encode()]
    expected = ['␣the', '⏎', '<E4>', '<61><B8><AD>', '<U+200D>', '一']
    assert [*map(vocabulary_page.visible, pieces)] == expected


def test_percent():
    shown = [vocabulary_page.percent(rate) for rate in (None, 0, 0.00012, 0.0005, 0.1234, 1)]
    assert shown == ['–', '0.0 %', '0.012 %', '0.1 %', '12.3 %', '100.0 %']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ([], 'needs --config=FILE, the --workdir of a run, or --source=en=text:a.txt'),
        (['--source=en=txt:a.txt'], "Did you mean 'text'?"),
        (['--source=en=text:nowhere.txt'], 'matches no file'),
        (['--source=en,zh=text:{folder}/en.txt'], 'names 2 languages, and the source is of single'),
        (['--source=text:{folder}/en.txt', '--compare=nowhere.json'], "'nowhere.json' cannot be read"),
        (['--source=text:{folder}/en.txt', '--sizes=many'], '--sizes = many are no sizes'),
        (['--source=text:{folder}/en.txt', '--bytes=0'], 'bytes'),
        (
            ['--source=text:{folder}/en.txt', '--config.tokenizer.vocab_size=100000'],
            'config.tokenizer.vocab_size = 100000 is more than the training text allows; the largest',
        ),
        (['--workdir=nowhere'], "'nowhere' is not the workdir of a run"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder, options, message):
    result = call(['--mode=vocabulary', *(option.format(folder=folder) for option in options)])
    assert_refused(result, message)

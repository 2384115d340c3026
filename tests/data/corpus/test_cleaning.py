from pathlib import Path

import pytest
from corpus_texts import prose
from datatrove.data import Document

from lm import config as configs
from lm.data.corpus import steps
from lm.data.corpus.options import Options
from lm.errors import InputError

FOLDER = Path(__file__).parents[3] / 'configs' / 'corpus'
CONFIGS = [path for path in sorted(FOLDER.glob('*.py')) if path.stem != '__init__']
CHINESE = (
    '布洛涅森林是法国巴黎城西边的一片森林，面积八平方公里，南北最长处三公里，由巴黎市政府管辖。'
    '林内道路纵横交错，树木郁郁葱葱，西边是向北流的塞纳河，东边是巴黎的富人区，每逢节日游人如织。'
    '森林中有两座著名的赛马场，还有一个植物园，园中的玫瑰每年六月盛开，吸引各地的园艺家前来参观。'
    '十九世纪以前，这里曾是国王打猎的地方。后来拿破仑三世把它送给了市民，并下令修建湖泊和小路。'
)


def through(text, options, **clean):
    """Returns (why it is dropped, '' for not; the text) after all steps."""
    document = Document(text, '')
    for step in steps.build(options(clean=clean)):
        if reason := step.rule(document):
            return f'{step.name}: {reason}', document.text
    return '', document.text


def test_good_text_of_any_script_stays_as_it_is(options):
    for text in (
        prose(1),
        CHINESE,
        'Κάθε άνθρωπος έχει δικαίωμα στην εκπαίδευση, και είναι δωρεάν.',
    ):
        filters = () if text[0] == 'Κ' else tuple(steps.FILTERS)
        assert through(text, options, filters=filters) == ('', text)


CHANGED = {
    'The naÃ¯ve cafÃ© was â€œopenâ€\x9d for us all': 'The naïve café was “open” for us all',
    'e\u0301tude one two three four five': '\u00e9tude one two three four five',
    'zero\u200bwidth and\x00 control soft\u00adhyphen one': 'zerowidth and control softhyphen one',
    'one two  \r\nthree four\t\r\n\r\n\r\n\r\nfive six': 'one two\nthree four\n\nfive six',
    'Write to a.b@example.org or to 8.8.8.8 now please': 'Write to <EMAIL> or to <IP> now please',
    'Call +44 20 7946 0958 or (555) 123-4567 now please': 'Call <PHONE> or <PHONE> now please',
    '请拨打13912345678联系我们的客服人员': '请拨打<PHONE>联系我们的客服人员',
    '请发邮件到abc@example.org联系我们': '请发邮件到<EMAIL>联系我们',
    'It rose +12.50% at 10:00 +0100, 100-200-3000': 'It rose +12.50% at 10:00 +0100, 100-200-3000',
    'On 2024-01-02, 1,234,567 people of version 1.2.3.4': 'On 2024-01-02, 1,234,567 people of version <IP>',
    '&lt;b&gt; is bold, and &amp; is and, they say': '<b> is bold, and & is and, they say',
}


@pytest.mark.parametrize('text', CHANGED)
def test_what_is_repaired(text, options):
    reason, found = through(text, options, filters=())
    assert (reason, found) == ('', CHANGED[text])
    assert through(found, options, filters=()) == ('', found)  # Once is enough.


DROPPED = {
    'length: empty': ' \n ',
    'length: more than 2,000 characters': 'word ' * 500,
    'invalid bytes: not UTF-8': 'one \ufffd\ufffd two three four five six',
    'characters: empty': '\u200b\x00',
    'words: short': 'only four words here',
    'language: de': 'Eine Person geht einen verschneiten Hügel hinauf und sieht sich die Umgebung an.',
    'gopher_repetition: duplicated_5_n_grams': prose(3, 2) + ' ' + prose(3, 2),
    'gopher_quality: gopher_short_doc': prose(4, 2),
}


@pytest.mark.parametrize('reason', DROPPED)
def test_what_is_dropped(reason, options):
    clean = {'max_characters': 2000, 'languages': ('en', 'zh')}
    assert through(DROPPED[reason], options, **clean)[0] == reason
    assert through(prose(5), options, **clean)[0] == ''


def test_languages_are_told_apart_without_spaces(options):
    assert through(CHINESE, options, languages=('zh',), filters=())[0] == ''
    assert through(CHINESE, options, languages=('en',), filters=())[0] == 'language: zh'


def test_the_text_of_a_web_page(options):
    body = [prose(6, 4), prose(7, 4)]
    page = (
        '<!DOCTYPE html><html><head><title>T</title><script>var a;</script></head><body>'
        '<nav><ul><li><a href="/">Home</a></li></ul></nav><article>'
        + ''.join(f'<p>{part}</p>' for part in body)
        + '</article><footer>Terms of use</footer></body></html>'
    )
    assert through(page, options) == ('', '\n'.join(body))
    assert through(page, options, extract='never', filters=())[1] == page
    told = 'In HTML, <p> begins a paragraph and </p> ends it, </p> and </p> ' + prose(1, 3)
    assert through(told, options, filters=())[1] == told


GERMAN = (
    'Die Wissenschaftler untersuchten über viele Jahre hinweg die Wanderung der Vögel an der Küste. Im '
    'Herbst fliegen große Schwärme nach Süden, und im Frühling kehren sie wieder zurück. Wie sie ihren Weg '
    'finden, ist bis heute nicht ganz geklärt. Manche Arten richten sich nach der Sonne, andere nach den '
    'Sternen oder nach dem Magnetfeld der Erde. Auch Gerüche scheinen eine gewisse Rolle zu spielen.'
)


def test_stop_words_are_asked_of_english_only(options):
    assert through(GERMAN, options) == ('', GERMAN)
    without = prose(1).replace('of the', 'near our').replace('The', 'My').replace('and', 'or')
    without = without.replace('that', 'which').replace('with the', 'beside a')
    assert through(without, options)[0] == 'gopher_quality: gopher_enough_stop_words'


def test_long_runs_of_spaces_are_no_trouble(options):
    text = f'one two{" " * 300_000}three four five   \nsix'
    assert through(text, options, filters=())[1] == text.replace('   \n', '\n')


def test_traditional_characters_stay_unless_asked(options):
    pytest.importorskip('opencc')
    assert through('漢語學習很有意思', options, filters=())[1] == '漢語學習很有意思'
    found = through('漢語學習很有意思', options, filters=(), chinese='simplified')
    assert found == ('', '汉语学习很有意思')


def test_nfkc_only_where_asked(options):
    assert through('全角，逗号和ＡＢＣ', options, filters=())[1] == '全角，逗号和ＡＢＣ'
    assert through('全角，逗号和ＡＢＣ', options, filters=(), unicode='NFKC')[1] == '全角,逗号和ABC'


def test_what_is_not_known_is_named(options):
    for clean, message in (
        ({'filters': ('gopher_qualty',)}, "Did you mean 'gopher_quality'"),
        ({'filters': ('c4@b',)}, "a source of 'c4@b' = 'b' is not known"),
        ({'mask': ('mail',)}, "Did you mean 'email'"),
        ({'languages': ('eng',)}, "Did you mean 'en'"),
    ):
        with pytest.raises(InputError, match=message):
            steps.build(options(clean=clean))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_all_keys_and_steps_that_there_are(path):
    found = configs.typed(Options, configs.load(path).to_dict())
    assert steps.build(found)


def test_a_filter_of_one_source(options):
    chosen = options(sources=('a=text:x', 'b=text:y'), clean={'filters': ('c4@b', 'fineweb')})
    found = {step.name: step.sources for step in steps.build(chosen)}
    assert found['c4'] == {'b'}
    assert not found['fineweb']

"""What is done to a document by itself, in turn: each step changes its text, or says why it is dropped.

The rules are those of libraries: ftfy, trafilatura, py3langid, OpenCC, and datatrove's filters, which get
words that do not assume spaces, and thresholds of their own for text without any.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.formatters.ftfy import FTFYFormatter
from datatrove.pipeline.formatters.pii import PIIFormatter, PIIReplacer

from lm.data.corpus import words
from lm.data.corpus.options import Options
from lm.errors import InputError, lookup

# A document -> why it is dropped, '' if it is not. It may change the text.
Rule = Callable[[Document], str]


# The steps that change what is compared with an evaluation set.
CHANGING = ('encoding', 'characters', 'chinese', 'private')


class Step(NamedTuple):
    """A step, for the documents of these sources; of all where there are none."""

    name: str
    rule: Rule
    sources: frozenset[str] = frozenset()


def build(options: Options) -> list[Step]:
    """Returns the steps that a config asks for, in their order.

    Raises:
        InputError: a filter, mask or source of one is not known.
    """
    clean = options.clean
    found = [
        Step('length', functools.partial(_length, most=clean.max_characters)),
        Step('invalid bytes', functools.partial(_valid, most=clean.max_invalid)),
    ]
    if clean.extract != 'never':
        found.append(Step('markup', functools.partial(_extract, always=clean.extract == 'always')))
    if clean.repair:
        found.append(Step('encoding', _repairer()))
    found.append(Step('characters', functools.partial(_tidy, form=clean.unicode)))
    if clean.chinese != 'keep':
        found.append(Step('chinese', _converter(clean.chinese)))
    if clean.min_words:
        found.append(Step('words', functools.partial(_long_enough, least=clean.min_words)))
    if clean.languages:
        found.append(Step('language', _identifier(clean.languages, clean.language_score)))
    found += [_filter(text, options) for text in clean.filters]
    if clean.mask:
        found.append(Step('private', _masker(clean.mask)))
    return found


# --- steps -----------------------------------------------------------------------------------------


def _length(document: Document, most: int) -> str:
    if not document.text.strip():
        return 'empty'
    return f'more than {most:,} characters' if len(document.text) > most else ''


def _valid(document: Document, most: float) -> str:
    bad = document.text.count('\ufffd')
    if bad > most * len(document.text):
        return 'not UTF-8'
    if bad:
        document.text = document.text.replace('\ufffd', '')
    return ''


_TAG = re.compile(
    r'\s*<(?:!doctype|\?xml|html|head|body|div|article|section|p|table|ul|h[1-6])\b', re.I
)
_CLOSING = re.compile(r'</(?:p|div|span|a|li|td|h[1-6]|body|html|article|section|ul|table)>', re.I)


def _is_html(text: str) -> bool:
    return bool(_TAG.match(text)) and sum(1 for _ in _CLOSING.finditer(text[:100_000])) >= 3


def _extract(document: Document, always: bool) -> str:
    """Takes the main text of a web page."""
    if not always and not _is_html(document.text):
        return ''
    import trafilatura

    # Its `deduplicate` would remember earlier documents, which are others with each number of tasks.
    found = trafilatura.extract(
        document.text, favor_precision=True, include_comments=False, deduplicate=False
    )
    document.text = found or ''
    return '' if found else 'no main text'


_SUSPECT = re.compile(r'&(?:#|\w{2,20};)|\x1b')  # What may be wrong with ASCII: entities, escapes.


def _repairer() -> Rule:
    formatter = FTFYFormatter()

    def repair(document: Document) -> str:
        text = document.text
        if not text.isascii() or _SUSPECT.search(text):
            document.text = formatter.format(text)
        return ''

    return repair


# Controls, zero-width spaces, soft hyphens, marks of direction. Joiners have a meaning and stay.
_INVISIBLE = re.compile(
    '[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb]'
)
_LINE_ENDS = re.compile(r'\r\n?|[\x0c\u2028\u2029]')
_TRAILING = re.compile(r'(?<![^\S\n])[^\S\n]+$', re.MULTILINE)  # Not quadratic in long runs.
_BLANK_LINES = re.compile(r'\n{3,}')


def _tidy(document: Document, form: str) -> str:
    """Removes what cannot be seen: controls, odd line ends, spaces at ends, more than one blank line."""
    text = _INVISIBLE.sub('', _LINE_ENDS.sub('\n', document.text))
    if form != 'none':
        text = unicodedata.normalize(form, text)
    document.text = _BLANK_LINES.sub('\n\n', _TRAILING.sub('', text)).strip('\n')
    return '' if document.text.strip() else 'empty'


def _converter(to: str) -> Rule:
    try:
        import opencc
    except ImportError:
        raise InputError(
            f"config.clean.chinese = '{to}' needs OpenCC: pip install opencc-python-reimplemented."
        ) from None
    convert = opencc.OpenCC({'simplified': 't2s', 'traditional': 's2t'}[to]).convert

    def chinese(document: Document) -> str:
        if not document.text.isascii():
            document.text = convert(document.text)
        return ''

    return chinese


def _long_enough(document: Document, least: int) -> str:
    text = document.text
    return '' if words.count(text[: 40 * least]) >= least or words.count(text) >= least else 'short'


# Languages of which ISO 639 knows a common one.
_MEMBERS = {'wuu': 'zh', 'yue': 'zh', 'nb': 'no', 'nn': 'no'}
_PART = 200  # Characters of the begin, the middle and the end that tell the language.


@functools.cache
def _model() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _language(text: str) -> tuple[str, float]:
    """Returns the language of a text, and how sure that is."""
    middle = len(text) // 2
    if len(text) > 3 * _PART:
        text = f'{text[:_PART]} {text[middle : middle + _PART]} {text[-_PART:]}'
    language, score = _model().classify(text)
    return _MEMBERS.get(language, str(language)), score


def _identifier(languages: tuple[str, ...], least: float) -> Rule:
    known = dict.fromkeys(_MEMBERS.get(label, str(label)) for label in _model().labels)
    for language in languages:
        lookup(known, language, 'config.clean.languages')

    def identify(document: Document) -> str:
        language, score = _language(document.text)
        document.metadata['language'] = language
        if score < least:
            return 'no language'
        return '' if language in languages else language

    return identify


# By name: the filter for text with spaces, and what differs for text without, where each character is a
# word: an n-gram of characters is about as long as one of half as many words, words have no mean length,
# a line is shorter, and C4's marks at the ends of lines are those of Latin script.
FILTERS: dict[str, tuple[type[BaseFilter], dict[str, object]]] = {
    'gopher_repetition': (
        GopherRepetitionFilter,
        {
            'top_n_grams': ((4, 0.2), (6, 0.18), (8, 0.16)),
            'dup_n_grams': tuple((2 * n, 0.2 - n / 100) for n in range(5, 11)),
        },
    ),
    'gopher_quality': (
        GopherQualityFilter,
        {'min_avg_word_length': None, 'max_avg_word_length': None, 'min_stop_words': None},
    ),
    'c4': (
        C4QualityFilter,
        {'filter_no_terminal_punct': False, 'min_words_per_line': -1, 'max_word_length': -1},
    ),
    'fineweb': (FineWebQualityFilter, {'short_line_length': 15, 'new_line_ratio': 0.15}),
}


_STOP_WORDS = (
    'gopher_enough_stop_words'  # Gopher's last rule: two of the, be, to, of ..., so English only.
)


def _filter(text: str, options: Options) -> Step:
    name, _, asked = text.partition('@')
    kind, without_spaces = lookup(FILTERS, name, 'config.clean.filters')
    known = dict.fromkeys(spec.partition('=')[0] for spec in options.sources)
    for source in filter(None, asked.split(',')):
        lookup(known, source, f"config.clean.filters: a source of '{text}'")
    spaced = kind(language=words.Tokenizer())
    unspaced = kind(language=words.Tokenizer(), **without_spaces)

    def judge(document: Document) -> str:
        chosen = spaced if words.has_spaces(document.text) else unspaced
        kept, reason = get_filter_result(chosen.filter(document))
        if reason == _STOP_WORDS and _language(document.text)[0] != 'en':
            return ''
        return '' if kept else reason or 'dropped'

    return Step(name, judge, frozenset(filter(None, asked.split(','))))


# +44 20 7946 0958, (555) 123-4567, 555-123-4567, 13912345678; letters without spaces may stand beside them.
_PHONE = (
    r'(?<![A-Za-z0-9_.+/-])(?:\+\d{1,3}(?:[ -]?\(\d{1,4}\))?(?:[ .-]?\d{2,4}){2,5}'
    r'|\([2-9]\d{2}\) ?\d{3}[ -]\d{4}|[2-9]\d{2}[ -]\d{3}[ -]\d{4}|1[3-9]\d{9})(?![A-Za-z0-9_%-])'
)


def _is_phone(text: str) -> bool:
    return 7 < sum(map(str.isdigit, text)) < 16


def _masker(names: tuple[str, ...]) -> Rule:
    # One replacement each: datatrove's would take turns, and so depend on the documents before.
    known = PIIFormatter(ip_replacement='<IP>')
    masks: dict[str, tuple[str, Callable[[str], str]]] = {
        'email': (
            '@',
            PIIReplacer(f'(?a){known.emails_replacer.regex.pattern}', '<EMAIL>').replace,
        ),
        'ip': ('.', known.ip_replacer.replace),
        'phone': ('', PIIReplacer(_PHONE, '<PHONE>', _is_phone).replace),
    }
    chosen = [lookup(masks, name, 'config.clean.mask') for name in names]

    def mask(document: Document) -> str:
        for needed, replace in chosen:
            if needed in document.text:
                document.text = replace(document.text)
        return ''

    return mask

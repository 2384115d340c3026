import dataclasses
import functools
import hashlib
import io
import json
import random
import sys
from pydoc_data import topics

import numpy as np
import pytest
import sentencepiece
import tokenizers

from configs import base
from lm import config, tokenizer, tokenizer_base
from lm.errors import InputError
from lm.pretrained_tokenizer import HuggingFace

TEXT = (
    topics.topics['compound'][:30_000]
    + '\tTabs\tand   spaces.\n\n    Ein Fuß über dem Boden; 一日一善，花好月圆。\n'
)
SPEC = dataclasses.replace(config.parse(base.get_config()).tokenizer, vocab_size=400)


@functools.cache
def trained_elsewhere():
    """The fields of a byte-level BPE whose special ids are 0 to 3."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SPEC.vocab_size,
        special_tokens=['<pad>', '<s>', '</s>', '<unk>'],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    return json.loads(made.to_str())


def make(kind, text=TEXT, **changes):
    if kind == 'huggingface':
        return HuggingFace(trained_elsewhere())
    return tokenizer.build(dataclasses.replace(SPEC, kind=kind, **changes), lambda: [text])


def random_texts(count):
    """Texts of the characters that tokenizers trip over: spaces, marks of their own, any plane."""
    rng = random.Random(0)
    alphabets = [
        'ab \n\t',
        '  \n',
        '\u2581\u2585\u2047\ufffd\ufeff\x00\r\x85\xa0\u3000\u200d😀🏽日本e\u0301',
        ['<s>', '</s>', '<unk>', '<0x41>', '\u2581the', ' '],
        [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000],
    ]
    for _ in range(count):
        yield ''.join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(40)))


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_decode_inverts_encode(kind):
    made = make(kind)
    for text in ['', TEXT, *(random_texts(300) if kind != 'chars' else [TEXT[5:77]])]:
        ids = made.encode(text)
        assert ids.dtype == np.int32
        assert ((ids >= 4) & (ids < made.vocab_size)).all()
        assert made.decode(ids) == text


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_a_batch_is_its_texts_one_after_the_other(kind):
    made = make(kind)
    texts = ['', TEXT, '\u2581', *random_texts(100), TEXT[:5], '']
    ids, lengths = made.encode_batch(texts)
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
    assert len(lengths) == len(texts)
    for text, part in zip(texts, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        np.testing.assert_array_equal(part, made.encode(text))


def test_batch_by_hand():
    ids, lengths = make('bytes').encode_batch(['Aé', '', 'B'])
    assert ids.tolist() == [65 + 4, 0xC3 + 4, 0xA9 + 4, 66 + 4]
    assert lengths.tolist() == [3, 0, 1]


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_parts_are_what_sentencepiece_makes_of_them(kind):
    """A part is 2,000 characters and the rest of the line, and goes to sentencepiece by itself."""
    made = make(kind)
    parts, rest = [], TEXT
    while rest:
        end = rest.find('\n', 2000) + 1 or len(rest)
        parts, rest = [*parts, rest[:end]], rest[end:]
    assert len(parts) > 10
    expected = sum((made._processor.encode(part) for part in parts), [])
    assert made.encode(TEXT).tolist() == expected


@pytest.mark.parametrize('kind', [kind for kind in tokenizer.KINDS if kind != 'huggingface'])
def test_text_may_be_cut_after_newlines(kind):
    made = make(kind)
    assert made.splits_at_newlines
    joined, _ = made.encode_batch(TEXT.splitlines(keepends=True))
    whole = made.encode(TEXT)
    assert made.decode(joined) == TEXT
    assert len(joined) == len(whole)
    assert np.mean(joined != whole) < 1e-3  # Ties: two spaces and one, or one and two.


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_a_symbol_is_one_token_wherever_it_stands(kind):
    tags = ('<BT>', '<BLANK>')
    made = make(kind, symbols=tags)
    first, second = (int(made.encode(tag)[0]) for tag in tags)
    for text in ('<BT>the execution', 'the<BLANK>execution <BT>', 'a <BLANK> <BT>\n<BT>'):
        ids = made.encode(text).tolist()
        assert (ids.count(first), ids.count(second)) == (text.count('<BT>'), text.count('<BLANK>'))
        assert made.decode(ids) == text
    # What follows a tag has the tokens that it has at the start of a text.
    assert made.encode('<BT>the execution').tolist() == [first, *made.encode('the execution')]
    assert made.vocab_size == make(kind).vocab_size


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_saved_is_loaded_the_same(kind, tmp_path):
    made = make(kind)
    path = made.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    given = tokenizer.build(dataclasses.replace(SPEC, path=str(path)), list)
    for other in (loaded, given):
        assert (
            (other.kind, other.vocab_size)
            == (made.kind, made.vocab_size)
            == (kind, other.vocab_size)
        )
        assert other.fingerprint == made.fingerprint
        np.testing.assert_array_equal(other.encode(TEXT), made.encode(TEXT))


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_training_is_deterministic(kind):
    assert make(kind).fingerprint == make(kind).fingerprint
    assert len({make(k).fingerprint for k in tokenizer.KINDS}) == len(tokenizer.KINDS)


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_decode_drops_special_and_unknown_ids(kind):
    made = make(kind)
    ids = [tokenizer.BOS, *made.encode('The'), tokenizer.PAD, tokenizer.UNK, tokenizer.EOS, 10**6]
    assert made.decode(ids) == 'The'


def test_bytes_by_hand():
    made = make('bytes')
    assert made.vocab_size == 260
    assert made.encode('Aé').tolist() == [65 + 4, 0xC3 + 4, 0xA9 + 4]
    assert made.decode([65 + 4, 0xC3 + 4]) == 'A\ufffd'


def test_chars_by_hand():
    made = make('chars', 'cab\n')
    assert made.vocab_size == 8
    assert made.encode('abc\nd\x00😀').tolist() == [5, 6, 7, 4, 3, 3, 3]


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_half_a_character_is_replaced(kind):
    made = make(kind)
    ids = made.encode('\U0001f600')
    assert made.decode(ids[:-1]).strip('\ufffd') == ''


def test_without_byte_fallback_others_are_unknown():
    made = make('unigram', byte_fallback=False, vocab_size=300)
    assert made.encode('a\U0001f600').tolist()[-1] == tokenizer.UNK
    assert made.decode(made.encode(TEXT)) == TEXT


def test_vocabulary_that_does_not_fit_names_one_that_does():
    for kind in ('unigram', 'bpe'):
        for wrong, word in ((100_000, 'largest'), (20, 'smallest')):
            with pytest.raises(InputError, match=rf'vocab_size = {wrong} .*{word}') as raised:
                make(kind, vocab_size=wrong)
            right = int(str(raised.value).rstrip('.').split()[-1])
            assert make(kind, vocab_size=right).vocab_size == right


def test_sample_is_spread_over_all_the_text():
    lines = [f'{i:09d}' for i in range(1000)]
    assert tokenizer_base.sample(['\n'.join(lines)], 10**6) == lines
    kept = tokenizer_base.sample(['\n'.join(lines[:400]), '\n'.join(lines[400:])], 999)
    assert 450 <= sum(map(len, kept)) <= 999
    steps = np.diff([int(line) for line in kept])
    assert (steps == steps[0]).all()
    assert int(kept[-1]) > 980


def test_long_lines_are_not_dropped_from_training():
    assert ''.join(tokenizer_base.lines_of('abc' * 2000)) == 'abc' * 2000
    made = make('bpe', 'abcdefgh ' * 5000, vocab_size=280)
    assert len(made.encode('abcdefgh ' * 10)) < 45


def train_as_others_do(vocab_size=300, **options):
    """A sentencepiece model with the options that its trainer has by itself."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=vocab_size,
        model_type='bpe',
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ('ids', 'specials', 'size'),
    [
        ({}, (2, 1, 2, 0), 300),  # Llama
        ({'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}, (0, 300, 1, 2), 301),  # T5
        ({'bos_id': -1, 'eos_id': -1}, (301, 300, 301, 0), 302),
        ({'unk_id': 299, 'bos_id': 7}, (2, 7, 2, 299), 300),
    ],
)
def test_model_of_others_keeps_its_ids(tmp_path, ids, specials, size):
    model = train_as_others_do(**ids)
    path = tmp_path / 'theirs.model'
    path.write_bytes(model)
    made = tokenizer.build(dataclasses.replace(SPEC, path=str(path)), list)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    specials = tokenizer.Specials(*specials)  # pad, bos, eos, unk
    assert (made.specials, made.vocab_size, len(made.is_text)) == (specials, size, size)
    assert np.flatnonzero(~made.is_text).tolist() == specials.ids
    text = 'the execution of other statements'
    assert made.encode(text).tolist() == theirs.encode(text)
    assert made.encode(TEXT[:9000]).tolist() == theirs.encode(TEXT[:9000])
    tokens = [specials.bos, *made.encode(text), specials.eos, specials.pad, specials.unk]
    assert made.decode(tokens) == text
    pieces = dict(zip(np.flatnonzero(made.is_text), made.pieces(), strict=True))
    assert b''.join(pieces[i] for i in made.encode(text)) == f' {text}'.encode()
    assert (
        made.fingerprint != hashlib.sha256(model).hexdigest()
    )  # That of the ids that it had before.


def test_special_ids_that_a_caller_knows_are_kept_with_the_model(tmp_path):
    model = train_as_others_do(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    specials = tokenizer.Specials(0, 0, 1, 2, mask=300, sentinels=(304, 303, 302))
    made = tokenizer.SentencePiece(model, specials)
    assert made.vocab_size == 305
    assert not made.is_text[300:].any()
    assert made.decode([304, *made.encode('the'), 301, 1]) == 'the'
    path = made.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert path.read_bytes() == loaded.save(tmp_path).read_bytes()
    assert (loaded.specials, loaded.fingerprint) == (specials, made.fingerprint)
    np.testing.assert_array_equal(loaded.encode(TEXT), made.encode(TEXT))
    assert made.fingerprint != tokenizer.SentencePiece(model).fingerprint
    fields = json.loads(path.read_text()) | {'model': 'AAAA'}
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match='the file is damaged'):
        tokenizer.load(tmp_path)


def test_a_model_whose_pieces_go_over_newlines_is_not_cut_there():
    options = {'normalization_rule_name': 'identity', 'add_dummy_prefix': False}
    options |= {'remove_extra_whitespaces': False}
    for symbols, may in ((['\n'], True), (['\n', '\n\n'], False)):
        made = tokenizer.SentencePiece(
            train_as_others_do(600, user_defined_symbols=symbols, byte_fallback=True, **options)
        )
        assert made.splits_at_newlines is may
        parts = [*made.encode('a\n'), *made.encode('\nb')]
        assert (parts == made.encode('a\n\nb').tolist()) is may


def test_special_ids_of_what_is_trained_here_stay(tmp_path):
    for kind in tokenizer.KINDS:
        made = make(kind)
        assert made.specials == tokenizer.Specials(pad=0, bos=1, eos=2, unk=3)
        assert made.is_text.tolist() == [False] * 4 + [True] * (made.vocab_size - 4)
        assert made.fingerprint == hashlib.sha256(made.save(tmp_path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'kind': 'unigran'}, "Did you mean 'unigram'"),
        ({'path': 'nowhere.model'}, 'nowhere.model.*cannot be read'),
        ({'path': __file__}, 'is not a tokenizer'),
        ({'kind': 'huggingface'}, 'is not trained here: set config.tokenizer.path'),
        ({'kind': 'chars', 'symbols': ('<BT>',)}, 'is for a tokenizer that is trained'),
        ({'path': __file__, 'symbols': ('<BT>',)}, 'is for a tokenizer that is trained'),
        ({'symbols': ('<BT>', 'a b')}, "'a b' is not a text without white space"),
        ({'symbols': ('',)}, "'' is not a text without white space"),
    ],
)
def test_bad_config_gets_one_line(changes, message):
    with pytest.raises(InputError, match=message):
        tokenizer.build(dataclasses.replace(SPEC, **changes), lambda: [TEXT])


@pytest.mark.parametrize('kind', ['unigram', 'bpe', 'chars'])
def test_no_text_gets_one_line(kind):
    with pytest.raises(InputError, match='no text to train on'):
        tokenizer.build(dataclasses.replace(SPEC, kind=kind), lambda: [''])


def test_load_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match='holds no tokenizer'):
        tokenizer.load(tmp_path)


def test_tables_of_ids():
    assert (tokenizer.PAD, tokenizer.BOS, tokenizer.EOS, tokenizer.UNK) == (0, 1, 2, 3)
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_pieces_are_the_text(kind):
    made = make(kind)
    pieces = made.pieces()
    assert len(pieces) == made.vocab_size - 4
    for text in [TEXT, *(random_texts(100) if kind != 'chars' else [])]:
        joined = b''.join(pieces[i - 4] for i in made.encode(text))
        assert joined.decode() == text

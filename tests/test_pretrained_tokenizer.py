"""Tokenizers in the layouts in which Hugging Face's are published, against its own libraries."""

import contextlib
import dataclasses
import functools
import json
import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import lm
from lm import pretrained_tokenizer, tokenizer, vocabulary
from lm.data import features
from lm.errors import InputError
from lm.objectives import OBJECTIVES, Spec, check
from tests.objectives.specs import OPTIONS
from tests.test_tokenizer import SPEC, TEXT, random_texts, train_as_others_do

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

TEXTS = [
    *(
        '',
        ' ',
        'the execution',
        ' the  other\tstatement ',
        'one\ntwo\n\n three\n',
        '\n',
        'Über CAFÉ déjà',
    ),
    *(
        'e\u0301cole',
        '一日一善，花好月圆。',
        'hi 😀🏽!',
        'x' * 150,
        "it's 12,345.67 (no-one)",
        TEXT[:3000],
    ),
]
EXTRA = [f'<extra_id_{n}>' for n in range(5)]


def trained(kind):
    """The library's tokenizer of a kind, small, with special ids where that kind has them."""
    return tokenizers.Tokenizer.from_str(_trained(kind))


@functools.cache
def _trained(kind):
    made, special, options = tokenizers.Tokenizer(MODELS[kind]()), [], {}
    if kind == 'gpt2':
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        options = {'initial_alphabet': pre_tokenizers.ByteLevel.alphabet()}
        trainer = trainers.BpeTrainer
    elif kind == 'bert':
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        special = ['[PAD]', '[unused0]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
        trainer = trainers.WordPieceTrainer
    elif kind == 't5':
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        made.decoder = decoders.Metaspace()
        special, options = ['<pad>', '</s>', '<unk>'], {'unk_token': '<unk>'}
        trainer = trainers.UnigramTrainer
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
        parts = decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()
        made.decoder = decoders.Sequence([*parts, decoders.Strip(' ', 1, 0)])
        special = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
        trainer = trainers.BpeTrainer
    lines = [TEXT] if kind == 'gpt2' else TEXT.splitlines()
    if kind == 'llama':
        lines += ['the other'] * 3
    options = {'vocab_size': 600, 'special_tokens': special, 'show_progress': False, **options}
    made.train_from_iterator(lines, trainer(**options))
    if kind == 'gpt2':
        made.add_special_tokens(['<|endoftext|>'])
    if kind == 't5':
        made.add_special_tokens(EXTRA[::-1])
    if kind == 'bert':
        made.post_processor = processors.BertProcessing(('[SEP]', 4), ('[CLS]', 3))
        made.enable_padding()
        made.enable_truncation(8)
    fields = json.loads(made.to_str())
    if kind == 'llama':  # Bytes are pieces of the model, and no special tokens.
        names = ('<unk>', '<s>', '</s>')
        fields['added_tokens'] = [t for t in fields['added_tokens'] if t['content'] in names]
    if kind == 'bert':
        fields['added_tokens'] = [t for t in fields['added_tokens'] if t['id'] != 1]
    if kind in ('gpt2', 'llama'):
        fields['model']['dropout'] = 0.5
    return json.dumps(fields)


MODELS = {
    'gpt2': models.BPE,
    'bert': lambda: models.WordPiece(unk_token='[UNK]'),
    't5': models.Unigram,
    'llama': lambda: models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True),
}
END = 600  # GPT-2's '<|endoftext|>' comes last.
CONFIGS = {
    'gpt2': {'model_type': 'gpt2', 'bos_token_id': END, 'eos_token_id': END},
    'bert': {'model_type': 'bert', 'pad_token_id': 0},
    't5': {'model_type': 't5', 'decoder_start_token_id': 0, 'eos_token_id': 1, 'pad_token_id': 0},
    'llama': {'model_type': 'llama', 'bos_token_id': 1, 'eos_token_id': [2, 7], 'pad_token_id': -1},
}


def size(kind):
    return trained(kind).get_vocab_size()


def specials(kind):
    end, last = size('gpt2') - 1, size('t5') - 1
    return {
        'gpt2': tokenizer.Specials(end, end, end, -1),
        'bert': tokenizer.Specials(pad=0, bos=3, eos=4, unk=2, mask=5),
        't5': tokenizer.Specials(0, 0, 1, 2, sentinels=tuple(last - n for n in range(5))),
        'llama': tokenizer.Specials(pad=2, bos=1, eos=2, unk=0),
    }[kind]


def write(folder, **files):
    """Files by their names, with _ for the last dot; dicts become JSON."""
    for name, content in files.items():
        text = json.dumps(content) if isinstance(content, dict | list) else content
        stem, _, suffix = name.rpartition('_')
        (folder / f'{stem}.{suffix}').write_text(text, encoding='utf-8')
    return folder


def published(folder, kind):
    config = {k: size(kind) - 1 if v == END else v for k, v in CONFIGS[kind].items()}
    return write(folder, tokenizer_json=_trained(kind), config_json=config)


def expected(theirs, text):
    """Ids by the library without the chance that is in BPE's dropout."""
    return theirs.encode(text, add_special_tokens=False).ids


def reference(kind):
    fields = json.loads(_trained(kind))
    fields['model'].pop('dropout', None)
    made = tokenizers.Tokenizer.from_str(json.dumps(fields))
    made.no_padding()
    made.no_truncation()
    return made


NO_UNK = (
    '{"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", '
    '"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}}'
)
every_kind = pytest.mark.parametrize('kind', MODELS)


@every_kind
def test_ids_are_those_of_the_library(kind, tmp_path):
    made, theirs = tokenizer.from_pretrained(published(tmp_path, kind)), reference(kind)
    assert (made.kind, made.vocab_size) == ('huggingface', theirs.get_vocab_size())
    assert made.specials == specials(kind)
    for text in TEXTS:
        ids = made.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == expected(theirs, text)
        assert (made.is_text[ids] | (ids == made.specials.unk)).all()
        around = [made.specials.bos, *ids, made.specials.eos, *made.specials.sentinels, 10**6]
        known = ids[ids != made.specials.unk].tolist()
        assert made.decode(around) == theirs.decode(known, skip_special_tokens=False)
    ids, lengths = made.encode_batch(TEXTS)
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
    for text, part in zip(TEXTS, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        assert part.tolist() == made.encode(text).tolist()


@every_kind
def test_transformers_reads_the_same(kind, tmp_path):
    transformers = pytest.importorskip('transformers', reason='the peer that ids are compared with')
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=reference(kind), bos_token='<s>' if kind == 'llama' else None
    )
    published(tmp_path, kind)
    theirs.save_pretrained(tmp_path)  # Over it, as that library writes it.
    made = tokenizer.from_pretrained(tmp_path)
    assert made.specials == specials(kind)
    for text in TEXTS:
        assert made.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
def test_what_keeps_all_is_read_back(kind, tmp_path):
    made = tokenizer.from_pretrained(published(tmp_path, kind))
    pieces = dict(zip(np.flatnonzero(made.is_text), made.pieces(), strict=True))
    texts = random_texts(200) if kind == 'gpt2' else []  # Llama's own '▁' is a space.
    for text in [*TEXTS, *texts]:
        ids = made.encode(text)
        joined = b''.join(pieces[i] for i in ids).decode()
        if kind == 'llama':  # Begins with a space, if not in the text then for itself.
            text = text.removeprefix(' ')
            joined = joined.removeprefix(' ')
        assert made.decode(ids) == joined == text


@every_kind
def test_saved_is_loaded_the_same(kind, tmp_path):
    (tmp_path / 'there').mkdir()
    made = tokenizer.from_pretrained(published(tmp_path / 'there', kind))
    path = made.save(tmp_path)
    given = tokenizer.build(dataclasses.replace(SPEC, path=str(path)), list)
    for loaded in (tokenizer.load(tmp_path), given, tokenizer.from_pretrained(path)):
        assert loaded.save(tmp_path).read_bytes() == path.read_bytes()
        assert (loaded.fingerprint, loaded.specials) == (made.fingerprint, made.specials)
        np.testing.assert_array_equal(loaded.is_text, made.is_text)
        assert loaded.pieces() == made.pieces()
        np.testing.assert_array_equal(loaded.encode(TEXT), made.encode(TEXT))
    folder = str(tmp_path / 'there')
    for there in (folder, f'{folder}/tokenizer.json'):
        given = tokenizer.build(dataclasses.replace(SPEC, path=there), list)
        assert given.fingerprint == made.fingerprint
    other = tokenizer.from_pretrained(folder, bos=7)
    assert other.specials == dataclasses.replace(made.specials, bos=7)
    assert other.fingerprint != made.fingerprint


def test_a_word_begins_where_its_piece_says_so(tmp_path):
    words = {
        'gpt2': [b'the', b' other'],
        'bert': [b' the', b' other'],
        't5': [b' the', b' other'],
        'llama': [b' the', b' other'],
    }
    for kind, expected_pieces in words.items():
        made = tokenizer.from_pretrained(published(tmp_path, kind))
        found = vocabulary.build(made, SPEC)
        pieces = dict(zip(found.text, made.pieces(), strict=True))
        ids = made.encode('the other')
        assert b''.join(pieces[i] for i in ids) == b''.join(expected_pieces)
        if kind == 'llama':  # Its pieces go over spaces.
            continue
        ids = made.encode('executable, the statements')
        starts = found.word_starts(ids)
        parts = np.split(ids, np.flatnonzero(starts)[1:])
        text = [b''.join(pieces[i] for i in part).decode().strip() for part in parts]
        assert [word for word in text if word] == ['executable', ',', 'the', 'statements']


@every_kind
def test_cutting_at_newlines_is_claimed_where_it_is_so(kind, tmp_path):
    made = tokenizer.from_pretrained(published(tmp_path, kind))
    assert made.splits_at_newlines is (kind in ('bert', 't5'))
    cut = 0
    for text in [*TEXTS, *random_texts(300)]:
        lines = [line + '\n' for line in text.split('\n')]
        lines[-1] = lines[-1][:-1]
        same = made.encode_batch(lines)[0].tolist() == made.encode(text).tolist()
        cut += not same
        assert same or not made.splits_at_newlines
    assert (cut > 0) is not made.splits_at_newlines


def test_what_a_word_piece_vocabulary_says(tmp_path):
    transformers = pytest.importorskip('transformers', reason='the peer that ids are compared with')
    vocab = trained('bert').get_vocab()
    lines = '\n'.join(sorted(vocab, key=vocab.get)) + '\n'
    found = set()
    for number, options in enumerate(
        (
            {'do_lower_case': True},
            {'do_lower_case': False},
            {'do_lower_case': False, 'strip_accents': True},
            {'do_lower_case': True, 'strip_accents': False, 'tokenize_chinese_chars': False},
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, vocab_txt=lines, tokenizer_config_json=options)
        made = tokenizer.from_pretrained(folder)
        assert made.specials == specials('bert')
        assert made.splits_at_newlines
        theirs = transformers.BertTokenizer.from_pretrained(folder)
        for text in TEXTS:
            assert made.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)
        found.add(str(made.encode(TEXTS[6] + TEXTS[8]).tolist()))
    assert len(found) == 4


def test_what_a_vocabulary_and_merges_say(tmp_path):
    transformers = pytest.importorskip('transformers', reason='the peer that ids are compared with')
    model = json.loads(_trained('gpt2'))['model']
    vocab = {**model['vocab'], '<|endoftext|>': size('gpt2') - 1}
    merges = '#version: 0.2\n' + '\n'.join(' '.join(pair) for pair in model['merges']) + '\n'
    for spaced in (False, True):
        options = {'add_prefix_space': spaced}
        write(tmp_path, vocab_json=vocab, merges_txt=merges, tokenizer_config_json=options)
        made = tokenizer.from_pretrained(tmp_path)
        assert made.specials == specials('gpt2')
        theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert made.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)
    added = {str(len(vocab)): {'content': '<m>', 'special': True, 'lstrip': True}}
    names = {'mask_token': {'content': '<m>', '__type': 'AddedToken'}}
    write(tmp_path, tokenizer_config_json={'added_tokens_decoder': added, **names})
    made = tokenizer.from_pretrained(tmp_path)
    assert (made.specials.mask, made.vocab_size) == (len(vocab), len(vocab) + 1)


def test_barts_and_robertas_vocabularies_have_tokens_around_texts(tmp_path):
    model = json.loads(_trained('gpt2'))['model']
    first = len(model['vocab'])
    vocab = {**model['vocab'], '<s>': first, '</s>': first + 1}
    merges = '#version: 0.2\n' + '\n'.join(' '.join(pair) for pair in model['merges']) + '\n'
    for kind, before in (('roberta', (first,)), ('bart', (first,)), ('gpt2', ())):
        config = {'model_type': kind}
        write(tmp_path, vocab_json=vocab, merges_txt=merges, config_json=config)
        made = tokenizer.from_pretrained(tmp_path)
        assert made.before == before
    fields = json.loads(made.serialized())['tokenizer']
    assert fields['post_processor'] is None
    write(tmp_path, config_json={'model_type': 'roberta'})
    fields = json.loads(tokenizer.from_pretrained(tmp_path).serialized())['tokenizer']
    theirs = tokenizers.Tokenizer.from_str(json.dumps(fields))
    a, b = (theirs.encode(text, add_special_tokens=False).ids for text in ('a', 'b'))
    s, end = first, first + 1
    assert theirs.encode('a', 'b').ids == [s, *a, end, end, *b, end]


def test_a_sentencepiece_model_in_a_folder(tmp_path):
    model = train_as_others_do(
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True, vocab_size=600
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    (tmp_path / 'spiece.model').write_bytes(model)
    made = tokenizer.from_pretrained(tmp_path)
    assert made.specials == tokenizer.Specials(0, 1, 1, 2)  # What ends a text begins the next.
    sentinels = tuple(range(699, 599, -1))
    write(tmp_path, config_json=CONFIGS['t5'])
    made = tokenizer.from_pretrained(tmp_path)
    assert (made.kind, made.vocab_size) == ('bpe', 700)
    assert made.specials == tokenizer.Specials(0, 0, 1, 2, sentinels=sentinels)
    for text in TEXTS:
        assert made.encode(text).tolist() == theirs.encode(text)
    (tmp_path / 'saved').mkdir()
    made.save(tmp_path / 'saved')
    assert tokenizer.load(tmp_path / 'saved').fingerprint == made.fingerprint
    write(tmp_path, tokenizer_config_json={'extra_ids': 3})
    assert tokenizer.from_pretrained(tmp_path).specials.sentinels == (602, 601, 600)
    added = {'600': {'content': '<mask>', 'special': True}}
    write(tmp_path, tokenizer_config_json={'added_tokens_decoder': added, 'mask_token': '<mask>'})
    write(tmp_path, config_json=CONFIGS['llama'])
    made = tokenizer.from_pretrained(tmp_path)
    assert (made.specials, made.vocab_size) == (tokenizer.Specials(0, 1, 2, 2, mask=600), 601)
    added['600']['special'] = False
    write(tmp_path, tokenizer_config_json={'added_tokens_decoder': added})
    with pytest.raises(InputError, match=r"spiece.model.*can add the text '<mask>'"):
        tokenizer.from_pretrained(tmp_path)


def test_where_special_ids_are_told(tmp_path):
    """Names come before the ids of config.json, and those before the usual names."""
    published(tmp_path, 'bert')

    def found(**files):
        return tokenizer.from_pretrained(write(tmp_path, **files)).specials

    assert found(config_json={}) == specials('bert')
    assert found(config_json={'eos_token_id': 9, 'bos_token_id': [8, 9]}).bos == 8
    assert found(special_tokens_map_json={'sep_token': {'content': '[PAD]'}}).eos == 0
    assert found(tokenizer_config_json={'sep_token': '[UNK]', 'mask_token': None}).eos == 2
    assert found(tokenizer_config_json={'eos_token': '[CLS]', 'sep_token': '[UNK]'}).eos == 3
    assert found(config_json={'decoder_start_token_id': 5, 'bos_token_id': 8}).bos == 5
    with pytest.raises(InputError, match=r'bos_token_id = 10000 of config.json is not one of its'):
        found(config_json={'bos_token_id': 10000})
    with pytest.raises(InputError, match=r"config.json' is not a tokenizer"):
        found(config_json='{')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('tokenizer.json', '{"version": "1.0"', 'tokenizer.json'),
        ('tokenizer.json', '[1]', 'it holds no {...}'),
        ('tokenizer.json', '{}', 'Model missing'),
        (
            'tokenizer.json',
            '{"model": {"type": "BPE", "vocab": {"a": 0, "b": -1}, "merges": []}}',
            'json',
        ),
        (
            'tokenizer.json',
            '{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}',
            'ids',
        ),
        (
            'tokenizer.json',
            '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}',
            'tokenizer.json',  # A merge that is no piece: the library panics.
        ),
        ('tokenizer.json', '[' * 100_000, 'recursion'),
        ('tokenizer.json', b'\x80{', "codec can't decode"),
        (
            'tokenizer.json',
            NO_UNK,
            'Missing \\[UNK\\] token',
        ),
        ('spiece.model', b'\x00\x01', 'spiece.model'),
        ('tokenizer.model', pickle.dumps([1]), 'tokenizer.model'),
        ('vocab.txt', 'a\nb\n', 'no WordPiece vocabulary'),
        ('vocab.json', '{"a</w>": 0}', 'not those of byte-level BPE'),
        ('vocab.json', '{"a": 0}', r'vocab.json. cannot be read|merges'),
        ('vocab.json', '{"a": "b"}', 'vocab.json'),
        ('vocab.json', '{"a": -1}', 'vocab.json'),
        ('tokenizer.pkl', pickle.dumps([1]), 'holds no tokenizer that can be read'),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        tokenizer.from_pretrained(tmp_path)
    assert '\n' not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_any_broken_part_is_one_line_or_nothing(tmp_path):
    """Cut anywhere, or with parts of another kind, a folder is read or refused."""
    for kind in MODELS:
        data = _trained(kind)
        for cut in range(0, len(data), len(data) // 12):
            (tmp_path / 'tokenizer.json').write_text(data[:cut])
            with pytest.raises(InputError):
                tokenizer.from_pretrained(tmp_path)
    published(tmp_path, 'bert')
    for name in (
        'tokenizer_config.json',
        'special_tokens_map.json',
        'config.json',
        'added_tokens.json',
    ):
        for value in (
            5,
            [1],
            {'a': 1},
            'x',
            {'content': 3},
            {'7': 5},
            None,
            True,
            ['x', {'content': 'y'}],
        ):
            keys = (
                'bos_token',
                'added_tokens_decoder',
                'additional_special_tokens',
                'eos_token_id',
            )
            for key in (*keys, 'extra_ids', 'tokenizer_class', 'model_type'):
                (tmp_path / name).write_text(json.dumps({key: value}))
                with contextlib.suppress(InputError):
                    tokenizer.from_pretrained(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize('merges', ['a b c', 'a', 'a z', 'ab'])
def test_broken_merges_are_one_line(tmp_path, merges):
    write(tmp_path, vocab_json={'a': 0, 'b': 1, 'ab': 2, 'kind': 3}, merges_txt='a b')
    assert tokenizer.from_pretrained(tmp_path).encode('ab').tolist() == [2]
    write(tmp_path, merges_txt=merges)
    with pytest.raises(InputError, match='is not a tokenizer'):
        tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    'tokens',
    [{'x': 10**12}, {'x': -5}, {'x': float('inf')}, {'x': 'y'}, {'x': 9}],
)
def test_added_tokens_that_cannot_be_are_one_line(tmp_path, tokens):
    for name, content in (('spiece.model', train_as_others_do()), ('vocab.txt', b'[UNK]\n##a\n')):
        (tmp_path / name).write_bytes(content)
        if name == 'vocab.txt' or tokens != {'x': 9}:  # Where it stands for a piece.
            write(tmp_path, added_tokens_json=tokens)
            with pytest.raises(InputError, match='is not a tokenizer'):
                tokenizer.from_pretrained(tmp_path)
        (tmp_path / name).unlink()


def test_kinds_that_do_more_to_a_text_are_refused(tmp_path):
    (tmp_path / 'spiece.model').write_bytes(train_as_others_do())
    write(tmp_path, config_json={'model_type': 'xlm-roberta'})
    with pytest.raises(
        InputError, match=r"is of 'xlmroberta', of which spiece.model does not say all"
    ):
        tokenizer.from_pretrained(tmp_path)


def test_no_path_in_a_file_is_followed(tmp_path):
    for name in ('there', 'here'):
        (tmp_path / name).mkdir()
    published(tmp_path / 'there', 'bert')
    options = {'tokenizer_file': '../there/tokenizer.json', 'vocab_file': '../there/tokenizer.json'}
    write(
        tmp_path / 'here',
        tokenizer_config_json=options | {'auto_map': {'AutoTokenizer': ['x.py', None]}},
    )
    with pytest.raises(InputError, match='holds no tokenizer that can be read'):
        tokenizer.from_pretrained(tmp_path / 'here')


def spec_of(made, **options):
    ids = vocabulary.build(made, dataclasses.replace(SPEC, **options.pop('tokenizer', {})))
    return Spec(dataclasses.replace(OPTIONS, **options), ids, 64, 64)


def test_a_masked_example(tmp_path):
    made = tokenizer.from_pretrained(published(tmp_path, 'bert'))
    spec = spec_of(made, name='masked', unit='word', random_rate=0.5)
    check('masked', 'encoder', spec)  # Without config.tokenizer.mask: the tokenizer has one.
    split = features.from_texts(['the execution of other statements'] * 2, made)
    document = split.document(1)
    assert [document[0], document[-1]] == [3, 4]  # [CLS], [SEP]
    drawn = set()
    for seed in range(300):
        fields = OBJECTIVES['masked'].function(document, np.random.default_rng(seed), spec)
        assert fields['targets'].tolist() == document.tolist()
        chosen = fields['loss_weights'] > 0
        assert not chosen[[0, -1]].any()
        starts = spec.vocabulary.word_starts(document)
        assert starts[chosen].any()
        drawn |= set(fields['inputs'][chosen].tolist())
        np.testing.assert_array_equal(fields['inputs'][~chosen], document[~chosen])
    special = {0, 2, 3, 4}
    assert 5 in drawn
    assert len(drawn) > 100
    assert not drawn & special


def test_a_span_corruption_example(tmp_path):
    made = tokenizer.from_pretrained(published(tmp_path, 't5'))
    spec = spec_of(made, name='span_corruption')
    check(
        'span_corruption', 'encoder_decoder', dataclasses.replace(spec, length=16, source_length=16)
    )
    text = 'the execution of other'
    document = features.from_texts([text], made).document(0)
    fields = OBJECTIVES['span_corruption'].function(document, np.random.default_rng(1), spec)
    pad, end, first = 0, 1, made.specials.sentinels[0]
    assert document[0] == fields['inputs'][0] == pad
    assert document[-1] == fields['targets'][-1] == fields['encoder_inputs'][-1] == end
    assert fields['targets'][0] == first == made.vocab_size - 1
    source = fields['encoder_inputs'].tolist()
    place = source.index(first)
    stop = [*fields['targets']].index(first - 1) if first - 1 in fields['targets'] else -1
    span = fields['targets'][1:stop].tolist()
    whole = [*source[:place], *span, *source[place + 1 :]]
    assert (made.decode(whole) == text) == (stop == -1)
    with pytest.raises(InputError, match='is more than the 5 that the tokenizer has of its own'):
        spec_of(made, tokenizer={'sentinels': 6})


@pytest.mark.slow
def test_a_mask_that_a_model_has_no_vector_for_is_left_out():
    words = {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3, 'a': 4, 'b': 5, '<mask>': 6}
    added = [{'id': 6, 'content': '<mask>', 'special': True, 'normalized': False}]
    for token in added:
        token |= dict.fromkeys(('single_word', 'lstrip', 'rstrip'), False)
    fields = {
        **{'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added},
        **dict.fromkeys(('normalizer', 'post_processor', 'decoder')),
        'pre_tokenizer': {'type': 'WhitespaceSplit'},
        'model': {'type': 'WordLevel', 'vocab': words, 'unk_token': '<unk>'},
    }
    whole = pretrained_tokenizer.HuggingFace(fields, tokenizer.Specials(1, 0, 2, 3, mask=6))
    assert whole.within(7) is whole
    assert whole.within(5) is whole  # 'b' is text.
    made = whole.within(6)
    assert (made.vocab_size, made.specials) == (6, tokenizer.Specials(1, 0, 2, 3))
    assert made.encode('a b').tolist() == [4, 5]


@pytest.mark.slow
def test_a_run_keeps_the_tokenizer(tmp_path):
    (tmp_path / 'gpt2').mkdir()
    published(tmp_path / 'gpt2', 'gpt2')
    (tmp_path / 'text.txt').write_text(TEXT)
    source = f'text:{tmp_path}/text.txt'
    config = lm.get_config(
        'base',
        data={'train': source, 'valid': source, 'test': '', 'length': 32, 'batch_size': 8},
        tokenizer={'path': str(tmp_path / 'gpt2')},
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2},
        schedule={'warmup_steps': 1},
        train={'steps': 2, 'eval_every': 0},
        generate={'max_tokens': 4, 'prompts': ('the',), 'samples': 1},
        log={'tensorboard': False},
    )
    lm.train(config, tmp_path / 'run')
    (tmp_path / 'gpt2').rename(tmp_path / 'elsewhere')
    model = lm.load(tmp_path / 'run')
    theirs = reference('gpt2')
    assert (tmp_path / 'run' / 'tokenizer.json').exists()
    assert model.run.tokenizer.specials == specials('gpt2')
    assert model.run.steps.model.vocab_size == theirs.get_vocab_size()
    assert model.perplexity('the other')['tokens'] == len(expected(theirs, 'the other')) + 1
    assert isinstance(model.generate('the', max_tokens=4), str)

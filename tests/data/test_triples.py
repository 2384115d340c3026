"""Triples as sentences and as questions, from files to documents."""

import pytest

from lm import tokenizer
from lm.data import features, source, triples
from lm.data.triples import Triple
from lm.errors import InputError

LINES = 'a_b\tisa\tc\nc\t_has_part\td\nd\tinteracts_with\ta_b\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'g').mkdir()
    (tmp_path / 'g' / 'train.txt').write_text(LINES)
    return tmp_path


def texts(spec, data):
    return list(source.parse(spec, data).documents())


def test_a_triple_asks_for_both_ends():
    triple = Triple('steroid', 'interacts with', 'eicosanoid')
    assert triples.questions(triple) == (
        ('steroid interacts with', 'eicosanoid'),
        ('what interacts with eicosanoid?', 'steroid'),
    )
    assert triples.sentences(triple) == (
        'steroid interacts with eicosanoid',
        'what interacts with eicosanoid? steroid',
    )


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('_has_part', 'has part'),
        ('interacts_with', 'interacts with'),
        ('/film/director', 'film director'),
        ('breathe.v.01|able.a.01', 'breathe.v.01 or able.a.01'),
        ('co-occurs_with', 'co-occurs with'),
    ],
)
def test_names_become_words(name, expected):
    assert triples.words(name) == expected


def test_a_source_of_sentences_and_of_pairs(folder, config_data):
    sentences = [
        *('a b is a c', 'what is a c? a b'),
        *('c has part d', 'what has part d? c'),
        *('d interacts with a b', 'what interacts with a b? d'),
    ]
    assert texts(f'triples:{folder}/g/train.txt', config_data) == sentences
    pairs = texts(f'triples:{folder}/g/train.txt#question,answer', config_data)
    assert [' '.join(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)] == sentences
    assert source.parse(f'triples:{folder}/g/train.txt#question,answer', config_data).paired
    assert not source.parse(f'triples:{folder}/g/train.txt', config_data).paired


@pytest.mark.parametrize('field', ['', '#question,answer'])
@pytest.mark.parametrize(
    ('part', 'kept'), [('', [0, 1, 2]), ('[1:]', [1, 2]), ('[:2]', [0, 1]), ('[50%:]', [1, 2])]
)
def test_parts_are_in_triples(field, part, kept, folder, config_data):
    whole = source.parse(f'triples:{folder}/g/train.txt', config_data).triples()
    made = source.parse(f'triples:{folder}/g/train.txt{field}{part}', config_data)
    expected = [whole[i] for i in kept]
    assert made.triples() == expected
    assert list(made.records()) == list(triples.documents(expected, bool(field)))


def test_ids_have_names_where_a_file_says_so(folder, config_data):
    plain = source.parse(f'triples:{folder}/g/*.txt', config_data)
    first = plain.fingerprint()
    (folder / 'g' / 'id2name.tsv').write_text('a_b\tbig_cat.n.01|cat.n.01\nc\tanimal\nd\tanimal\n')
    named = source.parse(f'triples:{folder}/g/*.txt', config_data)
    assert named.triples() == [
        Triple('big cat.n.01 or cat.n.01', 'is a', 'animal'),
        Triple('animal', 'has part', 'animal (d)'),  # The second of a name has its id too.
        Triple('animal (d)', 'interacts with', 'big cat.n.01 or cat.n.01'),
    ]
    assert named.fingerprint() != first


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a\tb', r'train.txt:2 is not a triple: HEAD, RELATION and TAIL'),
        ('a\tb\tc\td', 'train.txt:2 is not a triple'),
        ('a\t_\tc', 'train.txt:2 is not a triple'),
    ],
)
def test_lines_that_are_no_triple(line, message, folder, config_data):
    (folder / 'g' / 'train.txt').write_text(f'a\tb\tc\n{line}\n')
    with pytest.raises(InputError, match=message):
        texts(f'triples:{folder}/g/train.txt', config_data)


def test_graphs_are_found_among_joined_sources(folder, config_data):
    (folder / 'text.txt').write_text('some text')
    graph = f'triples:{folder}/g/train.txt#{{=graph}}[1:]'
    joined = source.parse(f'{graph} + text:{folder}/text.txt', config_data)
    (found,) = joined.graphs
    assert len(found.triples()) == 2
    assert len(list(found.facts())) == 3
    assert found.constants == ('graph',)
    assert [document.codes for document in joined.records()] == [('graph',)] * 4 + [()]
    assert source.parse(f'text:{folder}/text.txt', config_data).graphs == ()


def test_what_is_wrong_is_named(folder, config_data):
    with pytest.raises(InputError, match="'#question,answer' makes pairs of its triples"):
        source.parse(f'triples:{folder}/g/train.txt#head', config_data)
    with pytest.raises(InputError, match='matches no file'):
        source.parse(f'triples:{folder}/g/none.txt', config_data)
    (folder / 'g' / 'id2name.tsv').write_text('a_b\n')
    with pytest.raises(InputError, match=r'id2name.tsv:1 is not an id and its name'):
        texts(f'triples:{folder}/g/train.txt', config_data)


def test_all_triples_have_the_code_of_their_source(folder, config_data):
    made = source.parse(f'triples:{folder}/g/train.txt#{{=graph}}', config_data)
    assert {document.codes for document in made.records()} == {('graph',)}
    assert len(made.triples()) == 3


@pytest.mark.parametrize(
    ('name', 'counts'), [('umls', (5216, 135, 46)), ('wn18rr', (86_835, 40_559, 11))]
)
def test_real_graphs(name, counts, shared_data, config_data):
    found = source.parse(f'data:{name}/train.txt#triples', config_data).triples()
    entities = {end for triple in found for end in (triple.head, triple.tail)}
    assert (len(found), len(entities), len({triple.relation for triple in found})) == counts


def test_num_words_are_of_answers_only_in_pairs(folder, config_data):
    split = features.tokenize(
        source.parse(f'triples:{folder}/g/train.txt#question,answer', config_data),
        tokenizer.Bytes(),
        config_data,
        'train',
    )
    assert split.num_words == 8

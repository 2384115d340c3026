"""What holds for every objective of the table."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

import lm
from lm.errors import InputError
from lm.objectives import OBJECTIVES, check, loss_of_tokens, window
from tests.objectives.specs import OPTIONS, make_spec, make_window

DTYPES = {
    'loss_weights': np.float32,
    'label_weights': np.float32,
    'label_values': np.float32,
    'in_prefix': np.bool_,
}
# Changes of the options, besides the defaults, that the fields' lengths or kinds depend on.
VARIANTS = {
    'masked': [
        *(
            {'pairs': pairs, 'unit': unit}
            for pairs in ('', 'next', 'order')
            for unit in ('word', 'span')
        ),
        {'rate': 1.0, 'max_predictions': 3},
    ],
    'permutation': [{'bidirectional': True, 'partial': 1}, {'partial': 3, 'max_span': 1}],
    'replaced': [{'unit': 'word'}, {'unit': 'span'}, {'generator_size': 0.0}],
    'span_corruption': [{'rate': 0.5, 'span': 1.0}, {'rate': 1.0}, {'rate': 0.0}],
    'ul2': [{'denoisers': ('S 0.5', 'X 1.5 0.6')}],
    'denoising': [
        {'noise': ('mask', 'delete', 'infill', 'permute', 'rotate'), 'rate': 0.4},
        {'noise': (), 'rate': 0.0},
        {'noise': ('infill',), 'rate': 1.0, 'span': 1.0},
    ],
}
CASES = [(name, changes) for name in OBJECTIVES for changes in ({}, *VARIANTS.get(name, ()))]
EXACT = {'causal', 'prefix', 'permutation', 'replaced', 'span_corruption'}


def draw(rng, n):
    return make_window(int(rng.integers(0, n + 1)), rng, eos=False)[:n]


def tokens_for(name, n, rng, bos, eos):
    tokens = make_window(n, rng, bos=bos, eos=eos)
    objective = OBJECTIVES[name]
    if 'window' in objective.takes:
        return tokens
    pair = (tokens, tokens[: n // 2])
    return pair if objective.label is None else (pair, objective.label('1', OPTIONS))


@pytest.mark.parametrize(('name', 'changes'), CASES)
def test_fields_keep_the_contract(name, changes):
    objective = OBJECTIVES[name]
    spec = make_spec(sentinels=40, **changes)
    longest = window(objective, spec)
    for n, bos, eos in itertools.product(
        range(objective.least, longest + 1), (False, True), (False, True)
    ):
        tokens = tokens_for(name, n, np.random.default_rng(n), bos, eos)
        before = str(tokens)
        results = [
            objective.function(tokens, np.random.default_rng([n, seed]), spec, draw)
            for seed in (0, 0, 1)
        ]
        assert str(tokens) == before
        t, s = objective.sizes(n, spec)
        assert t <= spec.length
        assert s <= spec.source_length
        for fields in results:
            sources = len(fields.get('encoder_inputs', ()))
            lengths = {len(v) for key, v in fields.items() if key != 'encoder_inputs'}
            assert len(lengths) == 1
            assert max(lengths) <= t
            assert sources <= s
            if name in EXACT:
                assert (lengths, sources) == ({t}, s)
            assert ('encoder_inputs' in fields) == ('encoder_decoder' in objective.architectures)
            counted = 'label_weights' if objective.of_texts else 'loss_weights'
            assert fields[counted].sum() > 0
            for key, value in fields.items():
                assert value.dtype == DTYPES.get(key, np.int32)
                if key in ('inputs', 'targets', 'encoder_inputs'):
                    assert (value > 0).all()
                    assert (value < spec.vocabulary.total).all()
        for key in results[0]:  # The same for the same seed.
            np.testing.assert_array_equal(results[0][key], results[1][key])


@pytest.mark.parametrize(
    'name', [name for name, o in OBJECTIVES.items() if name != 'causal' and 'window' in o.takes]
)
def test_another_seed_gives_other_fields(name):
    spec = make_spec(sentinels=40)
    tokens = make_window(40, np.random.default_rng(0))
    seen = {
        str(OBJECTIVES[name].function(tokens, np.random.default_rng(seed), spec))
        for seed in range(10)
    }
    assert len(seen) > 5


@pytest.mark.parametrize(('name', 'changes'), CASES)
@pytest.mark.parametrize(
    ('length', 'source_length'), [(5, 9), (16, 16), (512, 512), (114, 512), (99, 7)]
)
def test_the_window_is_the_longest_that_fits(name, changes, length, source_length):
    objective = OBJECTIVES[name]
    spec = make_spec(length=length, source_length=source_length, **changes)

    def fits(n):
        t, s = objective.sizes(n, spec)
        return t <= length and s <= source_length

    fitting = [n for n in range(objective.least, 6 * length + 20) if fits(n)]
    if not fitting:
        with pytest.raises(InputError, match=r'config\.data\.length = .* is too short for'):
            window(objective, spec)
    else:
        assert fitting == list(range(objective.least, fitting[-1] + 1))
        assert window(objective, spec) == fitting[-1]


def test_t5_window():
    """T5 makes 512 tokens of source, with an EOS, and 114 of targets from 568."""
    spec = make_spec(length=114, source_length=512, rate=0.15, span=3.0)
    assert OBJECTIVES['span_corruption'].sizes(568, spec) == (114, 511)
    # Here the source has an EOS only where the window has: one token more.
    assert window(OBJECTIVES['span_corruption'], spec) == 569


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('architecture', ['decoder', 'encoder', 'encoder_decoder'])
def test_pairings_are_right_or_name_the_key(name, architecture):
    spec = make_spec(sentinels=64)
    if architecture in OBJECTIVES[name].architectures:
        check(name, architecture, spec)
    else:
        right = ''.join(OBJECTIVES[name].architectures)
        message = (
            f"config.objective.name = '{name}' needs config.model.architecture = '{right}', not "
        )
        with pytest.raises(InputError, match=re.escape(message)) as error:
            check(name, architecture, spec)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_what_the_vocabulary_needs(name):
    needs = OBJECTIVES[name].needs
    assert needs <= {'mask', 'sentinels'}
    (architecture,) = OBJECTIVES[name].architectures
    for spec, missing, message in (
        (make_spec(mask=False, sentinels=64), 'mask', r'set config\.tokenizer\.mask = True\.'),
        (make_spec(sentinels=0), 'sentinels', r'set config\.tokenizer\.sentinels = \d+, not 0\.'),
    ):
        if missing in needs:
            with pytest.raises(InputError, match=message):
                check(name, architecture, spec)
        else:
            check(name, architecture, spec)


@pytest.mark.parametrize('name', ['span_corruption', 'ul2'])
def test_the_number_of_sentinels_asked_for_is_enough_and_no_more(name):
    spec = make_spec(length=100, source_length=200)
    objective = OBJECTIVES[name]
    size = window(objective, spec)
    needed = objective.sentinels(size, spec)
    with pytest.raises(InputError, match=rf'config\.tokenizer\.sentinels = {needed}, not 0\.'):
        check(name, 'encoder_decoder', spec)
    seen = set()
    spec = make_spec(length=100, source_length=200, sentinels=needed)
    check(name, 'encoder_decoder', spec)
    for seed in range(100):
        tokens = make_window(size, np.random.default_rng(seed))
        fields = objective.function(tokens, np.random.default_rng(seed), spec)
        seen |= set(fields['encoder_inputs'].tolist())
    assert set(spec.vocabulary.sentinels) <= seen


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'unit': 'words'}, "config.objective.unit = 'words' is not known. Did you mean 'word'?"),
        ({'pairs': 'nsp'}, "config.objective.pairs = 'nsp' is not known."),
        (
            {'noise': ('infill', 'mast')},
            "config.objective.noise = 'mast' is not known. Did you mean 'mask'?",
        ),
        ({'denoisers': ('R 3',)}, "config.objective.denoisers: 'R 3' is none. Write 'R 3 0.15'"),
        ({'denoisers': ()}, "config.objective.denoisers: '' is none. Write"),
        ({'denoisers': ('X 3 1.5',)}, "config.objective.denoisers: 'X 3 1.5' is none."),
        (
            {'random_rate': 0.6, 'keep_rate': 0.5},
            'config.objective.random_rate and keep_rate are 1.1',
        ),
    ],
)
def test_wrong_options_are_one_line(changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        check('masked', 'encoder', make_spec(**changes))
    assert '\n' not in str(error.value)


def test_a_name_that_is_none():
    with pytest.raises(InputError, match="config.objective.name = 'mask' .* Did you mean 'masked'"):
        check('mask', 'encoder', make_spec())


def relabelled(tokens, to):
    """Tokens in other ids, also in tuples; labels as they are."""
    if isinstance(tokens, tuple):
        return tuple(relabelled(part, to) for part in tokens)
    return to[tokens] if isinstance(tokens, np.ndarray) else tokens


@pytest.mark.parametrize(('name', 'changes'), CASES)
def test_special_ids_may_stand_anywhere(name, changes):
    """With other ids all is the same in other ids; those of text keep their order."""
    function, spec = OBJECTIVES[name].function, make_spec(sentinels=40, **changes)
    ids, total = spec.vocabulary, spec.vocabulary.total
    special = np.setdiff1d(np.arange(total), ids.text)
    to = np.zeros(total, np.int32)
    to[special] = np.random.default_rng(0).choice(total, len(special), replace=False)
    to[ids.text] = np.setdiff1d(np.arange(total), to[special])
    arrays = ('starts_word', 'ends_word', 'ends_sentence')
    moved = dataclasses.replace(
        ids,
        bos=int(to[ids.bos]),
        eos=int(to[ids.eos]),
        text=to[ids.text],
        mask=int(to[ids.mask]),
        sentinels=tuple(to[list(ids.sentinels)].tolist()),
        **{array: getattr(ids, array)[np.argsort(to)] for array in arrays},
    )
    for seed in range(20):
        tokens = tokens_for(name, 20, np.random.default_rng(seed), True, seed % 2 == 0)
        expected = function(tokens, np.random.default_rng(seed), spec, draw)
        fields = function(
            relabelled(tokens, to),
            np.random.default_rng(seed),
            dataclasses.replace(spec, vocabulary=moved),
            lambda rng, n: to[draw(rng, n)],
        )
        for key, value in expected.items():
            is_ids = key in ('inputs', 'targets', 'encoder_inputs')
            np.testing.assert_array_equal(fields[key], to[value] if is_ids else value)
    prompt = OBJECTIVES[name].prompt
    expected = tuple(tuple(to[list(part)]) for part in prompt(spec))
    assert prompt(dataclasses.replace(spec, vocabulary=moved)) == expected


TOKENS = {'a': {}, 'b': {'objective': {'name': 'permutation'}}}


@pytest.mark.parametrize(
    ('objective', 'tasks', 'loss', 'expected'),
    [
        *(({'name': name}, {}, {}, True) for name in ('causal', 'masked', 'seq2seq', 'ul2')),
        *(({'name': name}, {}, {}, False) for name in ('classification', 'similarity')),
        *(({'name': name}, {}, {}, False) for name in ('contrastive', 'replaced')),
        # One task's loss is its first term, in nats; that of several is all that is minimised.
        ({'name': 'masked', 'pairs': 'next'}, {}, {'z_loss': 1e-4}, True),
        ({'name': 'masked'}, TOKENS, {}, True),
        ({'name': 'masked', 'pairs': 'next'}, TOKENS, {}, False),
        ({'name': 'masked'}, TOKENS, {'label_smoothing': 0.1}, False),
        ({'name': 'masked'}, {'a': {}, 'b': {'objective': {'name': 'similarity'}}}, {}, False),
    ],
)
def test_which_losses_are_nats_of_tokens(objective, tasks, loss, expected):
    base = lm.get_config('base', objective=objective, loss={'z_loss': 0.0} | loss)
    with base.unlocked():
        base.tasks = tasks
    assert loss_of_tokens(base.to_dict()) == expected

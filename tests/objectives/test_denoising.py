import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.objectives.denoising import NOISES, denoising
from lm.tokenizer import BOS, EOS
from tests.objectives.specs import example, make_spec, make_window, plain, seeded, text_of


def test_denoising_by_hand():
    spec = make_spec(noise=('infill',), rate=0.5)
    tokens = [1, 10, 11, 12, 13, 14, 15, 2]
    assert plain(denoising(tokens, seeded(2), spec)) == example(denoising)


def is_part(part, whole):
    """Is a sequence the other one with some tokens left out?"""
    rest = iter(whole)
    return all(token in rest for token in part)


@given(
    n=st.integers(1, 80),
    seed=st.integers(0, 2**32),
    noise=st.lists(st.sampled_from(sorted(NOISES)), max_size=5),
    rate=st.floats(0, 1),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_the_target_is_the_whole_text(n, seed, noise, rate, bos, eos):
    spec = make_spec(noise=tuple(noise), rate=rate)
    tokens = make_window(n, np.random.default_rng(seed), bos=bos, eos=eos and n > 1)
    fields = denoising(tokens, np.random.default_rng(seed), spec)
    text = text_of(tokens).tolist()
    assert fields['targets'].tolist() == [*text, EOS]
    assert fields['inputs'].tolist() == [BOS, *text]
    source = fields['encoder_inputs']
    assert len(source) <= n
    left = text_of(source)
    left = left[left != spec.vocabulary.mask].tolist()
    if set(noise) <= {'mask', 'delete', 'infill'}:
        assert is_part(left, text)
    else:
        assert is_part(sorted(left), sorted(text))
    if set(noise) <= {'permute', 'rotate'}:
        assert len(left) == len(text)
    for special, place in ((BOS, 0), (EOS, -1)):
        assert (source[place : place + 1 or None] == special).any() == (special in tokens)


@pytest.mark.parametrize('kind', ['mask', 'delete', 'infill'])
def test_as_many_tokens_go_as_the_rate_says(kind):
    rng, spec = seeded(), make_spec(size=1000, noise=(kind,), rate=0.3)
    masks = 0
    for _ in range(1000):
        tokens = make_window(500, rng, 1000, bos=False, eos=False)
        source = denoising(tokens, rng, spec)['encoder_inputs']
        assert (source != spec.vocabulary.mask).sum() == 350
        masks += (source == spec.vocabulary.mask).sum()
    if kind == 'infill':
        # Spans of mean 3, of which the last is cut: a little more than 150 / 3.
        assert masks / 1000 == pytest.approx(50, abs=1)
    else:
        assert masks == {'mask': 150_000, 'delete': 0}[kind]


def test_spans_of_no_token_are_masks_where_nothing_is_missing():
    rng, spec = seeded(), make_spec(noise=('infill',), rate=0.5, span=1.0)
    sources = [denoising([10, 11, 12, 13], rng, spec)['encoder_inputs'] for _ in range(300)]
    between = [[10, 20, 11], [11, 20, 12], [12, 20, 13]]
    assert any(source[i : i + 3].tolist() in between for source in sources for i in range(3))


def test_sentences_change_places_whole():
    rng, spec = seeded(), make_spec(noise=('permute',))
    text = [10, 19, 11, 12, 9, 13]
    seen = {tuple(denoising(text, rng, spec)['encoder_inputs'].tolist()) for _ in range(200)}
    a, b, c = (10, 19), (11, 12, 9), (13,)
    assert seen == {a + b + c, a + c + b, b + a + c, b + c + a, c + a + b, c + b + a}


def test_a_rotation_begins_anywhere():
    rng, spec = seeded(), make_spec(noise=('rotate',))
    seen = {
        tuple(denoising([1, 10, 11, 12, 2], rng, spec)['encoder_inputs'].tolist())
        for _ in range(99)
    }
    assert seen == {(1, 10, 11, 12, 2), (1, 11, 12, 10, 2), (1, 12, 10, 11, 2)}


def test_short_spans_infill_as_much():
    """At mean 1 more than a third of the spans are of no token."""
    rng, spec = seeded(), make_spec(noise=('infill',), rate=0.3, span=1.0)
    for _ in range(200):
        source = denoising(make_window(20, rng, bos=False, eos=False), rng, spec)['encoder_inputs']
        assert (source != spec.vocabulary.mask).sum() == 14

"""What the tests of objectives share: specs, windows, and the examples of docstrings."""

import ast
import dataclasses
import re

import numpy as np

from configs import base
from lm import config
from lm.objectives import Spec
from lm.tokenizer import BOS, EOS
from lm.vocabulary import Vocabulary

OPTIONS = config.parse(base.get_config()).objective


def make_spec(size=20, mask=True, sentinels=0, length=64, source_length=64, **options):
    """A spec of `size` ids, then a mask, then sentinels.

    Ids that 3 divides start a word, and ids that end in 9 end a sentence.
    """
    first = size + mask
    ids = np.arange(first + sentinels)
    special = (ids < 4) | (ids >= size)
    vocabulary = Vocabulary(
        size=size,
        bos=BOS,
        eos=EOS,
        text=ids[4:size],
        mask=size if mask else -1,
        sentinels=tuple(ids[first:].tolist()),
        starts_word=special | (ids % 3 == 0),
        ends_word=special,
        ends_sentence=~special & (ids % 10 == 9),
        total=len(ids),
    )
    return Spec(dataclasses.replace(OPTIONS, **options), vocabulary, length, source_length)


def make_window(n, rng, size=20, bos=True, eos=True):
    """Random tokens [n] of a document."""
    tokens = rng.integers(4, size, n).astype(np.int32)
    tokens[: int(bos)] = BOS
    tokens[n - int(eos) :] = EOS
    return tokens


def text_of(tokens):
    """The tokens without BOS and EOS."""
    return tokens[(tokens != BOS) & (tokens != EOS)]


def seeded(seed=0):
    return np.random.default_rng(seed)


def plain(fields):
    """Arrays as lists, which print and compare."""
    return {name: value.tolist() for name, value in fields.items()}


def example(function, number=0):
    """The fields that the docstring shows."""
    return ast.literal_eval(re.findall(r'\{.*?\}', function.__doc__, re.DOTALL)[number])


def share_is(count, total, rate):
    """Is a count of `total` independent draws within five standard deviations of its mean?"""
    return abs(count - total * rate) <= 5 * (total * rate * (1 - rate)) ** 0.5

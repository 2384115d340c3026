"""Texts for the tests of corpora."""

import random

NOUNS = (
    'river',
    'house',
    'engine',
    'letter',
    'window',
    'garden',
    'captain',
    'number',
    'music',
    'stone',
)
VERBS = (
    'carries',
    'follows',
    'measures',
    'remembers',
    'opens',
    'paints',
    'hears',
    'moves',
    'keeps',
    'finds',
)


def prose(seed, sentences=12):
    """A document that has no shingle in common with others."""
    rng = random.Random(seed)
    pick = rng.choice
    return ' '.join(
        f'The {pick(NOUNS)} of the {pick(NOUNS)} {pick(VERBS)} and {pick(VERBS)} '
        f'{pick(NOUNS)}{rng.randrange(1000)} with the {pick(NOUNS)} that {pick(VERBS)} {pick(NOUNS)}s.'
        for _ in range(sentences)
    )

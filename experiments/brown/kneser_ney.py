"""A Kneser-Ney 5-gram on the Brown corpus, as a sanity check of the neural model's word perplexity.

    python -m experiments.brown.kneser_ney

The model is nltk's `KneserNeyInterpolated` on the words of the training split, in sentences; words seen
less than twice, and those of the other splits that the vocabulary lacks, are `<UNK>`. nltk scans all
n-grams for each query; here its continuation counts are looked up in a table, and the result is held to
nltk's own on some sentences.
"""

import argparse
import collections
import json
import math
import random

from nltk.lm import KneserNeyInterpolated, Vocabulary
from nltk.lm.smoothing import KneserNey
from nltk.util import ngrams
from tqdm import tqdm

from lm import config as configs
from lm.data import source

ORDER, DISCOUNT = 5, 0.75


class TabledKneserNey(KneserNey):
    """nltk's Kneser-Ney with its continuation counts in tables, filled once."""

    def fill(self) -> None:
        """Counts, for each context, the n-grams one longer that end with it and a word."""
        self._words = collections.defaultdict(collections.Counter)
        self._totals = collections.Counter()
        for order in range(2, self._order + 1):
            for prefix, counts in self.counts[order].items():
                for word, count in counts.items():
                    if count > 0:
                        self._words[prefix[1:]][word] += 1
                        self._totals[prefix[1:]] += 1

    def _continuation_counts(self, word, context=()):
        return self._words[tuple(context)][word], self._totals[tuple(context)]


def sentences(spec: str) -> list[list[str]]:
    """The sentences of a split, as words."""
    data = configs.parse(configs.load('brown')).data
    return [
        line.split() for text in source.parse(spec, data).documents() for line in text.splitlines()
    ]


def padded(sentence: list[str]) -> list[str]:
    """A sentence between its beginnings and its end, which is a token too."""
    return ['<s>'] * (ORDER - 1) + sentence + ['</s>']


def n_grams(sentence: list[str], vocabulary: Vocabulary) -> list[tuple[str, ...]]:
    """The 5-grams that end with each word of a sentence, and with its end."""
    return list(ngrams(vocabulary.lookup(padded(sentence)), ORDER))


def score(model: KneserNeyInterpolated, words: list[list[str]], label: str) -> dict[str, float]:
    """Nats over a split. As for the neural model, ends of sentences cost nats but are not words."""
    nats = unknown = 0.0
    for sentence in tqdm(words, desc=label):
        for *context, word in n_grams(sentence, model.vocab):
            nats -= math.log(model.score(word, context))
            unknown += word == model.vocab.unk_label
    count = sum(map(len, words))
    return {
        'words': count,
        'unknown': unknown / count,
        'word_perplexity': math.exp(nats / count),
        'perplexity_with_ends': math.exp(nats / (count + len(words))),
    }


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cutoff', type=int, default=2, help='words seen less often are <UNK>')
    parser.add_argument('--check', type=int, default=3, help='sentences held to nltk itself')
    arguments = parser.parse_args()
    data = configs.parse(configs.load('brown')).data
    train, valid, test = (sentences(spec) for spec in (data.train, data.valid, data.test))
    vocabulary = Vocabulary((w for s in train for w in padded(s)), unk_cutoff=arguments.cutoff)
    model = KneserNeyInterpolated(ORDER, discount=DISCOUNT, vocabulary=vocabulary)
    for sentence in tqdm(train, desc='count'):
        words = vocabulary.lookup(padded(sentence))
        model.counts.update(list(ngrams(words, n)) for n in range(1, ORDER + 1))
    plain = model.estimator
    tabled = TabledKneserNey(model.vocab, model.counts, ORDER, DISCOUNT)
    tabled.fill()
    for sentence in random.Random(0).sample(valid, arguments.check):
        for *context, word in n_grams(sentence[:8], vocabulary):
            model.estimator = plain
            expected = model.score(word, context)
            model.estimator = tabled
            assert math.isclose(model.score(word, context), expected), (context, word)
    model.estimator = tabled
    result = {name: score(model, words, name) for name, words in (('valid', valid), ('test', test))}
    print(json.dumps({'order': ORDER, 'discount': DISCOUNT, 'cutoff': arguments.cutoff,
                      'vocabulary': len(vocabulary), **result}))  # fmt: skip


if __name__ == '__main__':
    main()

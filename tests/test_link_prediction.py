"""Ranks by hand and by brute force, and a graph learnt from its sentences."""

import json

import numpy as np
import pytest

import lm
from lm import link_prediction
from lm.data import features
from lm.evaluate import evaluate
from lm.link_prediction import measures, ranks
from lm.scores import log_probabilities

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')


def by_hand(scores, answers, known):
    """The mean of the first and the last place that the answer could have in a sorted list."""
    found = []
    for row, answer, true in zip(scores, answers, known, strict=True):
        kept = [s for i, s in enumerate(row) if i == answer or not true[i]]
        kept.sort(reverse=True)
        first = kept.index(row[answer]) + 1
        last = len(kept) - kept[::-1].index(row[answer])
        found.append((first + last) / 2)
    return found


@pytest.mark.parametrize(
    ('scores', 'answer', 'known', 'rank'),
    [
        ([3.0, 2.0, 1.0], 0, [1, 0, 0], 1.0),
        ([3.0, 2.0, 1.0], 2, [0, 0, 1], 3.0),
        ([3.0, 2.0, 1.0], 2, [1, 0, 1], 2.0),  # A better one is true as well.
        ([5.0, 9.0, 5.0, 1.0, 7.0], 2, [0, 1, 1, 0, 0], 2.5),
        ([0.0, 0.0, 0.0, 0.0], 1, [0, 0, 0, 0], 2.5),  # All the same: the middle, not the first.
        ([0.0, 0.0, -np.inf, 0.0], 2, [0, 0, 0, 0], 4.0),
    ],
)
def test_ranks_literal(scores, answer, known, rank):
    assert ranks([scores], [answer], np.array([known], bool)).tolist() == [rank]


def test_ranks_are_those_of_a_sorted_list():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (200, 12)).astype(float)  # Many ties.
    known, answers = rng.random((200, 12)) < 0.3, rng.integers(0, 12, 200)
    np.testing.assert_array_equal(ranks(scores, answers, known), by_hand(scores, answers, known))


def test_measures_literal():
    found = measures([1, 2, 4, 20])
    assert found == {'mrr': 0.45, 'hits@1': 0.25, 'hits@3': 0.5, 'hits@10': 0.75}
    assert measures([1.5])['hits@1'] == 0.0


NAMES = 'ABCDEFGHIJKL'


def edges():
    """Each entity comes before the next two."""
    found = [(i, (i + step) % 12) for i in range(12) for step in (1, 2)]
    return [f'{NAMES[i]}\tto\t{NAMES[j]}\n' for i, j in found]


def make_config(folder, architecture='decoder', **sections):
    lines = edges()
    (folder / 'train.txt').write_text(''.join(lines))
    (folder / 'test.txt').write_text(''.join(lines[::4]))  # Known ones: to be remembered.
    pairs = architecture == 'encoder_decoder'
    field = '#question,answer' if pairs else '#{=graph}'
    return lm.get_config(
        'base',
        data={'train': f'triples:{folder}/train.txt{field}', 'valid': '', 'batch_size': 8}
        | {'test': f'triples:{folder}/test.txt{field}', 'length': 32},
        tokenizer={'kind': 'chars', 'codes': () if pairs else ('graph', 'words<4')},
        objective={'name': 'seq2seq' if pairs else 'causal'},
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2, 'architecture': architecture}
        | {'tie_embeddings': False},
        optimizer={'name': 'muon', 'learning_rate': 2e-2},
        schedule={'warmup_steps': 2},
        train={'steps': 250, 'eval_every': 0, 'log_every': 50},
        checkpoint={'every': 0},
        eval={'beams': 0} | sections.pop('eval', {}),
        generate={'max_tokens': 4},
        log={'tensorboard': False},
        **sections,
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('graph')
    lm.train(make_config(folder), folder / 'run')
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return lm.load(folder / 'run')


NAME = 'test, all 12 candidates'


@pytest.mark.slow
def test_a_graph_that_was_learnt_ranks_first(folder):
    report = json.loads((folder / 'run' / 'report.json').read_text())
    found = report['tasks'][NAME]
    assert found['questions'] == 12
    assert found['mrr'] > 0.9  # By chance 0.26.
    assert found['mrr'] == pytest.approx((found['mrr of tails'] + found['mrr of heads']) / 2)
    assert 'mean rank' in found['signature']
    assert 'hits@10' in (folder / 'run' / 'report.md').read_text()


@pytest.mark.slow
def test_an_evaluation_finds_the_same(folder):
    report = json.loads((folder / 'run' / 'report.json').read_text())
    assert evaluate(folder / 'run')['tasks'][NAME] == pytest.approx(
        report['tasks'][NAME], nan_ok=False
    )
    line = json.loads((folder / 'run' / 'evaluations.jsonl').read_text().splitlines()[-1])
    assert line['tasks'][NAME]['mrr'] == pytest.approx(report['tasks'][NAME]['mrr'])


@pytest.mark.slow
def test_samples_of_candidates_say_so(folder):
    config = make_config(folder, eval={'candidates': 5})
    found = evaluate(folder / 'run', config=config)['tasks']
    assert NAME not in found
    sampled = found['test, 5 random of 12 candidates']
    assert 'SAMPLED' in sampled['signature']
    assert (
        evaluate(folder / 'run', config=config)['tasks']['test, 5 random of 12 candidates']
        == sampled
    )


@pytest.mark.slow
def test_scores_are_what_perplexity_adds_up(model):
    texts = ['A to B', 'what to B? A', 'C', 'A to B ' * 7]  # Two windows.
    split = features.from_texts(texts, model.run.tokenizer)
    alone = [model.perplexity(text) for text in texts]
    nats = [result['loss'] * result['tokens'] for result in alone]
    found = log_probabilities(model.run, model.params, split)
    np.testing.assert_allclose(found, np.negative(nats), rtol=1e-4)
    assert len(found) == 4


@pytest.mark.slow
def test_ranks_are_those_of_texts_scored_one_by_one(model):
    graph = [line.split() for line in edges()]
    question, answer = 'A to', 'B'
    known = {tail for head, _, tail in graph if head == 'A'}
    entities = sorted(NAMES)
    codes = ('graph', 'words<4')
    losses = [model.perplexity(f'{question} {name}', codes) for name in entities]
    scores = [-result['loss'] * result['tokens'] for result in losses]
    of = entities.index(answer)
    (expected,) = by_hand([scores], [of], [[name in known for name in entities]])
    triple = lm.data.triples.Triple('A', 'to', 'B')
    asked = lm.data.triples.questions(triple)[:1]
    all_triples = [lm.data.triples.Triple(h, r, t) for h, r, t in graph]
    candidates = link_prediction._candidates(asked, all_triples, entities, 0)
    found = link_prediction._ranked(model.run, model.params, asked, candidates, ('graph',), 'test')
    assert found == {(question, answer): expected}
    pairs = [(question, name) for name in entities]
    found = link_prediction._scores(model.run, model.params, pairs, ('graph',), 'test')
    np.testing.assert_allclose(found, scores, rtol=1e-4)
    without = link_prediction._scores(model.run, model.params, pairs, (), 'test')
    assert np.abs(without - found).max() > 1e-3


@pytest.mark.slow
def test_an_encoder_decoder_answers_questions(tmp_path):
    written = lm.train(make_config(tmp_path, 'encoder_decoder'), tmp_path / 'run')
    assert written['tasks'][NAME]['mrr'] > 0.9
    assert written['tasks'][NAME]['questions'] == 12

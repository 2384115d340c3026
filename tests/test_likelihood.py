"""How likely continuations are: the sum of log p of their tokens, whatever else is in the batch."""

import functools

import jax
import numpy as np
import pytest

import lm
from lm import config as configs
from lm import likelihood
from lm import run as runs
from lm.tokenizer import Bytes

pytestmark = pytest.mark.usefixtures('two_devices', 'no_charts')

DECODERS = {
    'full': {},
    'learned positions': {'position': 'learned', 'norm': 'layernorm'},
    'windows': {'attention': ('causal & window(4)',)},
    'top-k': {'attention': ('topk(4)',)},
    'linear': {'attention': ('linear',), 'position': 'none'},
}


@functools.cache
def built(name):
    """Returns a run and parameters that were not trained."""
    model = {'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'dtype': 'float32'}
    sections = {'model': model | DECODERS.get(name, {})}
    if name == 'encoder-decoder':
        sections['model'] |= {'architecture': 'encoder_decoder', 'encoder_layers': 1}
        sections['objective'] = {'name': 'span_corruption'}
    config = lm.get_config(
        'base',
        data={'train': 'builtin:pydocs', 'length': 32, 'source_length': 32, 'batch_size': 8},
        tokenizer={'kind': 'bytes', 'sentinels': 20},
        **sections,
    )
    parsed = configs.parse(config)
    run = runs.build(parsed, Bytes(), runs.check_mesh(parsed))
    # Parameters far from the initial ones, which know nothing.
    params = jax.tree.map(lambda x: x * 3, run.steps.initial().params)
    return run, params


@functools.cache
def forward(name):
    """Returns the forward pass, compiled once."""
    run, params = built(name)
    return functools.partial(jax.jit(run.steps.model.apply), {'params': jax.device_get(params)})


def plain(name, tokens, **sources):
    """Returns the logits [n, V] after n tokens in a row of their own, whose end nothing sees."""
    row = np.zeros((1, 32), np.int32)
    row[0, : len(tokens)] = tokens
    return forward(name)(row, **sources)[0, : len(tokens)]


def pairs(most, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most, (9, 2))
    return [tuple(rng.integers(4, 260, n).tolist() for n in size) for size in sizes]


def one_by_one(name, context, continuation):
    if name == 'encoder-decoder':
        source, segments = np.zeros((2, 1, 32), np.int32)
        source[0, : len(context)], segments[0, : len(context)] = context, 1
        sources = {'encoder_inputs': source, 'encoder_segment_ids': segments}
        logits = plain(name, [1, *continuation[:-1]], **sources)
    else:
        logits = plain(name, [*context, *continuation][-33:-1])
    logits = np.asarray(logits, np.float64)[-len(continuation) :]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = log_p[np.arange(len(continuation)), continuation]
    return chosen.sum(), bool((chosen >= log_p.max(axis=1)).all())


@pytest.mark.slow
@pytest.mark.parametrize('name', [*DECODERS, 'encoder-decoder'])
def test_it_is_that_of_the_logits(name):
    asked = pairs(15)
    found = likelihood.continuations(*built(name), asked, rows=8)
    for (context, continuation), answer in zip(asked, found, strict=True):
        log_p, greedy = one_by_one(name, context, continuation)
        assert answer.log_p == pytest.approx(log_p, abs=1e-3)
        assert answer.greedy == greedy


def test_what_is_too_long_loses_its_beginning():
    context, continuation = [*range(4, 60)], [7, 8, 9]
    found = likelihood.continuations(*built('full'), [(context, continuation)])[0]
    assert found.log_p == pytest.approx(one_by_one('full', context, continuation)[0], abs=1e-3)
    shorter = likelihood.continuations(*built('full'), [(context[-30:], continuation)])[0]
    assert shorter == found


def test_what_is_likeliest_is_greedy():
    run, params = built('full')
    tokens = [1, 70, 80]
    for _ in range(5):
        logits = plain('full', tokens)[-1]
        tokens.append(int(logits.argmax()))
    right, wrong = tokens[3:], [*tokens[3:7], (tokens[7] + 1) % 256]
    found = likelihood.continuations(run, params, [(tokens[:3], right), (tokens[:3], wrong)])
    assert [answer.greedy for answer in found] == [True, False]


@pytest.mark.parametrize('rows', [0, 8, 16])
def test_the_rows_of_a_batch_do_not_matter(rows):
    asked = pairs(30, seed=1)
    found = likelihood.continuations(*built('full'), asked, rows)
    alone = [likelihood.continuations(*built('full'), [pair])[0] for pair in asked]
    np.testing.assert_allclose([x.log_p for x in found], [x.log_p for x in alone], rtol=1e-5)


def test_an_encoder_writes_nothing():
    config = configs.parse(
        lm.get_config(
            'base',
            data={'train': 'builtin:pydocs', 'length': 16, 'batch_size': 8},
            model={'architecture': 'encoder', 'embed_dim': 32, 'num_heads': 2, 'num_layers': 1}
            | {'attention': ('full',)},
            objective={'name': 'masked'},
            tokenizer={'kind': 'bytes', 'mask': True},
        )
    )
    run = runs.build(config, Bytes(), runs.check_mesh(config))
    with pytest.raises(TypeError, match='decoders'):
        likelihood.continuations(run, {}, [([1], [2])])

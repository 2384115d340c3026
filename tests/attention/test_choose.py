"""Which form runs where, and what is said about it."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import IMPLEMENTATIONS, attend, explain, masks, parse
from lm.attention.choose import Case, choose
from lm.attention.masks import causal, full, window
from lm.errors import InputError

CASE = Case(causal, 4096, 4096, 64, jnp.dtype('bfloat16'), 'cpu')


@pytest.mark.parametrize(
    ('changes', 'chosen'),
    [
        ({}, 'blocked'),
        ({'mask': full}, 'blocked'),
        ({'mask': causal & window(64)}, 'sparse'),
        ({'mask': masks.sparse_transformer_strided(64)}, 'sparse'),
        ({'mask': causal & window(64), 'length': 256, 'source': 256}, 'blocked'),
        ({'length': 16384, 'source': 16384}, 'sparse'),
        ({'length': 16384, 'source': 16384, 'platform': 'gpu', 'capability': 9.0}, 'cudnn'),
        ({'whole': False}, 'xla'),
        ({'sequence': 2}, 'blocked'),
        ({'sequence': 2, 'divided': False}, 'xla'),
        ({'sequence': 2, 'platform': 'gpu', 'capability': 9.0}, 'blocked'),
        ({'platform': 'gpu', 'capability': 9.0}, 'cudnn'),
        ({'platform': 'gpu', 'capability': 9.0, 'width': 512}, 'blocked'),
        ({'platform': 'gpu', 'capability': 7.0}, 'blocked'),
        ({'platform': 'tpu'}, 'blocked'),
    ],
)
def test_choice(changes, chosen):
    assert choose(dataclasses.replace(CASE, **changes)) == chosen


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_what_is_forced_runs_or_says_why_not(name):
    if obstacle := IMPLEMENTATIONS[name].obstacle(CASE):
        place = f"config.model.attention_implementation = '{name}'"
        with pytest.raises(InputError, match=re.escape(f'{place} {obstacle}')):
            choose(CASE, name)
    else:
        assert choose(CASE, name) == name


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_decoding_has_no_use_for_blocks(name):
    assert choose(dataclasses.replace(CASE, whole=False), name) == 'xla'


def test_wrong_name():
    with pytest.raises(InputError, match="Did you mean 'cudnn'"):
        choose(CASE, 'cudn')


def test_cudnn_needs_a_gpu():
    arrays = [jnp.zeros((1, 8, 1, 8), jnp.bfloat16)] * 3
    with pytest.raises(InputError, match='needs an NVIDIA GPU'):
        attend(*arrays, causal, implementation='cudnn')
    with pytest.raises(InputError, match='attention_softcap = 0'):
        attend(*arrays, causal, implementation='cudnn', softcap=1.0)
    arrays = [np.zeros((1, 8, 1, 8), np.float32)] * 3
    with pytest.raises(InputError, match="needs config.model.dtype = 'bfloat16'"):
        attend(*arrays, causal, implementation='cudnn')


def test_explains_each_of_several():
    lines = explain('gpt3(64)', (1, 4096, 8, 64), 'cpu').split('\n')
    assert [line for line in lines if line[0] != ' '] == [
        'causal over 4,096 tokens on cpu: blocked',
        'causal & window(64) over 4,096 tokens on cpu: sparse',
    ]
    assert explain('heads(causal, full)', (1, 64, 8, 64), 'cpu').count(': blocked') == 2
    with pytest.raises(InputError, match="mask = 'topk' has no mask"):
        explain('topk', (1, 64, 8, 64))
    with pytest.raises(InputError, match='has no mask'):
        explain(('causal', parse('gated_delta')), (1, 64, 8, 64))


def test_explains():
    text = explain('causal & window(64)', (1, 4096, 8, 64), 'cpu')
    first, *rest = text.split('\n')
    assert first == 'causal & window(64) over 4,096 tokens on cpu: sparse'
    assert [line.split()[0] for line in rest if '*' not in line] == [
        name for name in IMPLEMENTATIONS if name != 'sparse'
    ]
    assert 'computes 100.0% of the pairs' in text
    assert 'needs an NVIDIA GPU' in text
    assert explain('causal', (1, 4096, 8, 64), 'gpu').split('\n')[0].endswith('cudnn')

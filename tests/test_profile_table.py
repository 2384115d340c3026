"""What traced time is said to be, of literal programs and moments, and of what XLA compiles here."""

import doctest

import jax
import jax.numpy as jnp
import pytest

from lm import profile_table
from lm.profile_table import CATEGORIES, Event, by_name, categories, shares

HLO = """
HloModule jit_step, entry_computation_layout={(f32[8,8]{1,0})->f32[8,8]{1,0}}

%fused_product (p.0: f32[8,8], p.1: f32[8,8]) -> f32[8,8] {
  %p.0 = f32[8,8]{1,0} parameter(0)
  %p.1 = f32[8,8]{1,0} parameter(1)
  %dot.1 = f32[8,8]{1,0} dot(%p.0, %p.1), metadata={op_name="jit(step)/layers/attention/query/dot_general"}
  ROOT %add.1 = f32[8,8]{1,0} add(%dot.1, %p.0)
}

%fused_scores (p.2: f32[8,8]) -> f32[8,8] {
  %p.2 = f32[8,8]{1,0} parameter(0)
  ROOT %dot.2 = f32[8,8]{1,0} dot(%p.2, %p.2), metadata={op_name="jit(step)/jvp(D)/attention/dot_general"}
}

%fused_nested (p.4: f32[8,8]) -> f32[8,8] {
  %p.4 = f32[8,8]{1,0} parameter(0)
  ROOT %inner = f32[8,8]{1,0} fusion(%p.4, %p.4), kind=kOutput, calls=%fused_product
}

%fused_layout (p.3: f32[8,8]) -> f32[8,8] {
  %p.3 = f32[8,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,8]{0,1} transpose(%p.3), dimensions={1,0}
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %product = f32[8,8]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused_product
  %scores = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%fused_scores
  %softmax = f32[8,8]{1,0} exponential(%x), metadata={op_name="jit(step)/layers/cross_attention/exp"}
  %layout = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_layout
  %nested = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%fused_nested
  %norm = f32[8,8]{1,0} multiply(%x, %x), metadata={op_name="jit(step)/layers/attention_norm/mul"}
  %query_norm = f32[8,8]{1,0} multiply(%x, %x), metadata={op_name="layers/attention/query_norm/mul"}
  %all-reduce-start.1 = (f32[8,8]{1,0}, f32[8,8]{1,0}) all-reduce-start(%x), to_apply=%add
  %gemm = f32[8,8]{1,0} custom-call(%x), custom_call_target="__cublas$gemm"
  %fmha = f32[8,8]{1,0} custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"
  %loop = (f32[8,8]{1,0}) while(%x), condition=%c, body=%b
  ROOT %copy.7 = f32[8,8]{1,0} copy(%x)
}
"""
EXPECTED = {
    'product': 'matmul',
    'scores': 'attention',
    'softmax': 'attention',
    'layout': 'copy',
    'nested': 'matmul',
    'norm': 'other',
    'query_norm': 'other',
    'all-reduce-start.1': 'collective',
    'gemm': 'matmul',
    'fmha': 'attention',
    'loop': 'control',
    'copy.7': 'copy',
}


def test_categories():
    module, found = categories(HLO)
    assert module == 'jit_step'
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert set(found.values()) <= set(CATEGORIES)


def test_what_xla_compiles():
    """Whatever it fuses, one operation holds the product, and another or the same the rest."""

    def step(x, w):
        return jnp.sin(x @ w).sum(0)

    text = jax.jit(step).lower(jnp.ones((256, 256)), jnp.ones((256, 256))).compile().as_text()
    module, found = categories(text)
    assert module == 'jit_step'
    assert 'matmul' in found.values()


@pytest.mark.parametrize(
    ('name', 'category'),
    [
        *(('dot.3', 'matmul'), ('convolution', 'matmul'), ('all-gather-done.2', 'collective')),
        *(('%while.1', 'control'), ('copy.12', 'copy'), ('MemcpyD2D', 'copy')),
        *(('loop_add_fusion.4', 'other'), ('sort.0', 'other')),
    ],
)
def test_where_only_names_are_known(name, category):
    assert by_name(name) == category


def test_shares():
    events = [
        Event(0, 100, 'control'),
        Event(10, 30, 'matmul'),
        Event(20, 40, 'attention'),  # beside the other for 10: half of it each
        Event(25, 60, 'collective'),  # hidden until 40
        Event(50, 55, 'copy'),
        Event(-50, 5, 'copy'),
        Event(110, 300, 'other'),
    ]
    found = shares(events, 0, 120)
    assert found == {
        'matmul': 15,
        'attention': 15,
        'other': 10,
        'copy': 10,
        'collective': 15,
        'control': 45,
        'idle': 10,
    }
    assert sum(found.values()) == 120
    assert shares([], 5, 9) == {'idle': 4}


def test_the_docstring():
    assert doctest.testmod(profile_table) == (0, 1)

"""Attention: pure functions `(query, key, value, mask, ...) -> out`.

    from lm import attention

    mask = attention.parse('causal & (window(256) | global_tokens(4))')
    attention.attend(query, key, value, mask)
    print(attention.explain(mask, (1, 4096, 8, 64)))
    attention.show(mask)

The tests of the table hold every entry to the plain form, to causality and to packing invariance.
"""

from lm.attention.choose import IMPLEMENTATIONS, attend, explain
from lm.attention.expression import causal_form, parse, parse_pattern, without_prefix
from lm.attention.show import show

__all__ = [
    'IMPLEMENTATIONS',
    'attend',
    'causal_form',
    'explain',
    'parse',
    'parse_pattern',
    'show',
    'without_prefix',
]

"""Attention: pure functions `(query, key, value, mask, ...) -> out`, one a file, in one table.

The table's tests hold every entry to the dense oracle, to causality and to packing invariance.
"""

from lm.attention.dense import attend

ATTENTIONS = {'dense': attend}

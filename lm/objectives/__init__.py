"""Objectives: pure host functions from tokens to the fields of a batch.

`fields = objective(tokens, rng, spec)`: `tokens` is int32 [t + 1], one window of a document with the
token before or after it that makes t targets; `rng` is a numpy Generator, its own for each window, so
that the result depends on (seed, index) only; `spec` is the objective's config, None for those without
one. The fields are arrays [t], which `lm.data.pack.assemble` puts into rows.
"""

from lm.objectives.causal import causal

OBJECTIVES = {
    'causal': causal,
}

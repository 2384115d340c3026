"""What experts cost beside the dense MLP with as many active parameters, on this machine.

    nice -n 10 python -m experiments.moe.speed >> experiments/moe/speed.jsonl

Forward and backward, the contestants in turn, so that what else the machine does slows all of them; of
each the median of its time divided by the dense one's of the same round.
"""

import dataclasses
import json
import statistics
import time

import jax
import jax.numpy as jnp

from lm import config as configs
from lm import grouped
from lm.layers.dense import affine
from lm.layers.mlp import MLP
from lm.layers.moe import MoE
from lm.report import environment

ROWS, LENGTH, WIDTH, HIDDEN, ROUNDS = 16, 128, 128, 512, 9


def products() -> dict[str, tuple]:
    """Returns by name a function and its arguments: a matrix product, and forms of it in groups."""
    tokens = ROWS * LENGTH
    x = jax.random.normal(jax.random.key(0), (tokens, WIDTH))
    found = {'dense': (affine, x, jnp.ones((WIDTH, HIDDEN)))}
    for count in (1, 2, 8, 32):
        sizes = jnp.full(count, tokens // count, jnp.int32)
        kernel = jnp.ones((count, WIDTH, HIDDEN))
        found[f'blocks, {count} groups'] = (_of(grouped.dot, sizes), x, kernel)
        found[f'ragged_dot, {count} groups'] = (_of(jax.lax.ragged_dot, sizes), x, kernel)
    return found


def layers() -> dict[str, tuple]:
    """Returns by name a function and its arguments: an MLP, and mixtures."""
    values = configs.defaults()['model'] | {'embed_dim': WIDTH, 'mlp_dim': HIDDEN}
    dense = configs.typed(configs.ModelConfig, values)
    x = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, WIDTH))
    one = {'router': 'softmax', 'experts_per_token': 1}
    two = {'experts_per_token': 2, 'mlp_dim': HIDDEN // 2}
    cases = {
        'top 1 of 8': one | {'experts': 8},
        'top 1 of 32': one | {'experts': 32},
        'top 2 of 8': two | {'experts': 8},
        'top 2 of 8, capacity 1.25': two | {'experts': 8, 'expert_dispatch': 'capacity'},
    }
    found = {'dense': (MLP(dense).apply, x, MLP(dense).init(jax.random.key(0), x))}
    for name, changes in cases.items():
        module = MoE(dataclasses.replace(dense, **changes))

        def function(x: jax.Array, params: dict, module: MoE = module) -> jax.Array:
            return module.apply(params, x, deterministic=False)

        found[name] = (function, x, module.init(jax.random.key(0), x))
    found['dense'] = (lambda x, params: MLP(dense).apply(params, x), *found['dense'][1:])
    return found


def _of(function, sizes):
    return lambda x, kernel: function(x, kernel, sizes)


def ratios(cases: dict[str, tuple]) -> dict[str, dict[str, float]]:
    """Returns of each case the median seconds, and the median ratio to the first."""
    compiled = {
        name: (jax.jit(jax.grad(lambda *a, f=function: jnp.sum(f(*a) ** 2), (0, 1))), arguments)
        for name, (function, *arguments) in cases.items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(ROUNDS + 1):
        for name, (function, arguments) in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if turn:  # The first compiles.
                times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    return {
        name: {
            'seconds': round(statistics.median(found), 5),
            'ratio': round(statistics.median(a / b for a, b in zip(found, first, strict=True)), 3),
        }
        for name, found in times.items()
    }


if __name__ == '__main__':
    for part in (products, layers):
        print(json.dumps({'part': part.__name__} | ratios(part()) | {'environment': environment()}))

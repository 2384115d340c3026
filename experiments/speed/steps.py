"""A whole training step: clip, AdamW, tied head; the same GPT by everyone."""

import dataclasses
from typing import Any

from experiments.speed import mkl
from experiments.speed.gpt import Shape
from experiments.speed.race import Case, Contestant

_PEERS = 'experiments.speed.peers'
ROWS = 8
# As `python -m lm.main` has it from its first line on; a worker imports JAX before it is told.
_ONE_ARENA = {'MALLOC_ARENA_MAX': '1'}
# Losses over the first steps agree within this, relative.
_TOLERANCE = {'float32': 1e-4, 'bfloat16': 1e-2}


def _case(dtype: str, vocab: int) -> Case:
    options: dict[str, Any] = {
        'sizes': {'vocab': vocab},
        'rows': ROWS,
        'dtype': dtype,
        'steps': 1 if vocab > 1000 else 2,
    }

    def contestant(name: str, build: str, **more: Any) -> Contestant:
        flops = Shape(vocab=vocab).flops_per_token
        environment = _ONE_ARENA if build == 'lm_gpt' else {}
        return Contestant(name, f'{_PEERS}.{build}:step', options | more, environment, flops)

    others = [
        contestant('PyTorch eager', 'torch_gpt'),
        contestant('PyTorch compiled', 'torch_gpt', compiled=True),
        contestant('Hugging Face', 'huggingface_gpt'),
        contestant('plain Flax', 'flax_gpt'),
        contestant('lm scanned', 'lm_gpt', scan=True),
    ]
    if dtype == 'float32':
        others += [
            dataclasses.replace(peer, name=f'{peer.name}, MKL bypassed', environment=mkl.BYPASS)
            for peer in others[:2]
        ]
    return Case(
        f'step/{dtype} V={vocab}',
        'tokens/s',
        True,
        (contestant('lm', 'lm_gpt', scan=False), *others),
        agree='losses',
        tolerance=_TOLERANCE[dtype],
        limit=f'limit/matmul {dtype}',
    )


def _depth() -> Case:
    """24 layers beside 6: the ratio of the first two is how many times slower a step is."""
    contestants = (
        Contestant(
            f'lm {layers} layers{"" if scan else " unrolled"}',
            f'{_PEERS}.lm_gpt:step',
            {
                'sizes': {'vocab': 8192, 'layers': layers},
                'rows': ROWS,
                'dtype': 'float32',
                'scan': scan,
            },
            _ONE_ARENA,
            Shape(vocab=8192, layers=layers).flops_per_token,
        )
        for scan in (True, False)
        for layers in (24, 6)
    )
    return Case(
        'step/24 layers', 'tokens/s', True, tuple(contestants), limit='limit/matmul float32'
    )


CASES = [
    *(_case(dtype, vocab) for dtype in _TOLERANCE for vocab in (8192, 256)),
    _depth(),
]

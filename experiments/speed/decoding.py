"""Greedy decoding of 256 tokens after a prompt of 32, the prompt's pass included.

Both make the same tokens. With random weights these soon repeat, which spares neither side work: no row
stops. In 16 bits the two round differently, so agreement is asked for in float32 only.
"""

from typing import Any

from experiments.speed.race import Case, Contestant

_PEERS = 'experiments.speed.peers'


def _case(dtype: str, rows: int) -> Case:
    options: dict[str, Any] = {
        'sizes': {'length': 512},
        'rows': rows,
        'dtype': dtype,
        'prompt': 32,
        'tokens': 256,
    }
    return Case(
        f'decode/{dtype} batch {rows}',
        'tokens/s',
        True,
        (
            Contestant('lm', f'{_PEERS}.lm_gpt:decode', options),
            Contestant('Hugging Face', f'{_PEERS}.huggingface_gpt:decode', options),
        ),
        agree='tokens' if dtype == 'float32' else '',
    )


CASES = [_case(dtype, rows) for dtype in ('float32', 'bfloat16') for rows in (1, 8)]

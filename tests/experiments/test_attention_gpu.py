"""What is measured on a GPU, as far as it can be held without one."""

import math

import jax
import numpy as np

from experiments.attention import compile_gpu, gpu
from lm import attention


def test_all_masks_are_of_the_language():
    names = [name for name, _, _ in gpu.number_cases()]
    assert len(names) == len(set(names)) + 1  # gpt3 begins with causal.
    for text in (*gpu.MASKS, *compile_gpu.MASKS):
        attention.parse(text)


def test_numbers_pass_for_the_plain_form_and_fail_for_another(monkeypatch):
    first = next(gpu.check('xla', 'bfloat16', 64, length=40))
    assert first['ok']
    assert first['errors'] == first['errors_of_plain']
    wrong = lambda query, *_, **__: query * math.nan  # noqa: E731
    monkeypatch.setattr(attention, 'attend', wrong)
    assert not next(gpu.check('xla', 'bfloat16', 64, length=40))['ok']


def test_cudnn_windows_are_those_of_the_mask(monkeypatch):
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, 'dot_product_attention', lambda *a, implementation, **k: plain(*a, **k)
    )
    x = jax.random.normal(jax.random.key(0), (1, 300, 1, 8))
    found = {name: (run, pairs) for name, run, pairs in gpu.contestants('xla', 300)}
    theirs, ours = (found[f'{name} causal & window(256)'] for name in ('cudnn', 'xla'))
    assert theirs[1] == ours[1]
    np.testing.assert_allclose(theirs[0](x, x, x), ours[0](x, x, x), atol=1e-5)

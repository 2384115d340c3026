import numpy as np
import pytest

from lm.objectives import OBJECTIVES
from lm.objectives.causal import causal

TOKENS = np.array([1, 10, 11, 2], np.uint16)


def test_causal_by_hand():
    fields = causal(TOKENS, np.random.default_rng(0), None)
    assert {name: value.tolist() for name, value in fields.items()} == {
        'inputs': [1, 10, 11],
        'targets': [10, 11, 2],
        'loss_weights': [1.0, 1.0, 1.0],
    }


@pytest.mark.parametrize('name', OBJECTIVES)
def test_fields_keep_the_batch_contract(name):
    fields = OBJECTIVES[name](TOKENS, np.random.default_rng(0), None)
    again = OBJECTIVES[name](TOKENS, np.random.default_rng(0), None)
    assert len({len(value) for value in fields.values()}) == 1
    for key, value in fields.items():
        assert value.dtype == (np.float32 if key == 'loss_weights' else np.int32)
        np.testing.assert_array_equal(value, again[key])

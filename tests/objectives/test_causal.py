import numpy as np

from lm.objectives.causal import causal
from tests.objectives.specs import example, plain


def test_causal_by_hand():
    fields = causal(np.array([1, 10, 11, 2], np.uint16), None)
    assert plain(fields) == example(causal)
    assert plain(fields) == {
        'inputs': [1, 10, 11],
        'targets': [10, 11, 2],
        'loss_weights': [1.0, 1.0, 1.0],
    }

import numpy as np

from lm.objectives.replaced import replaced
from tests.objectives.specs import example, make_spec, make_window, plain, seeded


def test_replaced_by_hand():
    spec = make_spec(rate=0.5)
    assert plain(replaced([1, 10, 11, 12, 13, 2], seeded(2), spec)) == example(replaced)


def test_without_a_generator_what_is_chosen_becomes_other_text():
    rng, spec = seeded(), make_spec(rate=0.5, generator_size=0.0)
    changed = 0
    for n in range(4, 60):
        tokens = make_window(n, rng)
        fields = replaced(tokens, rng, spec)
        chosen = fields['loss_weights'] > 0
        np.testing.assert_array_equal(fields['inputs'][~chosen], tokens[~chosen])
        np.testing.assert_array_equal(fields['targets'], tokens)
        assert set(fields['inputs'][chosen]) <= set(spec.vocabulary.text)
        changed += np.count_nonzero(fields['inputs'] != tokens)
    assert changed > 600


def test_all_that_is_chosen_is_hidden():
    rng, spec = seeded(), make_spec(pairs='next', random_rate=0.5, keep_rate=0.5)
    for n in range(4, 60):
        tokens = make_window(n, rng)
        fields = replaced(tokens, rng, spec)
        hidden = np.where(fields['loss_weights'] > 0, spec.vocabulary.mask, tokens)
        np.testing.assert_array_equal(fields['inputs'], hidden)
        np.testing.assert_array_equal(fields['targets'], tokens)

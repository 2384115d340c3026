"""The experiment of augmentations: its configs, its intervals, its table and its figure."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.augmentation import figure, readme
from experiments.augmentation.cases import CASES, SEEDS, make_config
from lm import config, vocabulary
from lm.data import augment, augmenter
from tests.test_tokenizer import make


def made_up(case, seed, bits, steps=300):
    return {
        'case': case.name,
        'seed': seed,
        'train_loss': 3.5,
        'valid_losses': [[60, 3.6], [120, 4.0]],
        'steps': steps,
        'parameters': 170_000,
        'seconds': 30.0,
        'splits': {'valid': {'bits_per_byte': bits, 'loss': 4.0}},
        'environment': {'backend': 'cpu', 'cpu': 'An Abacus', 'cores': 2, 'jax': '0'}
        | {'commit': 'abcdefghi'},
    }


def test_every_augmentation_is_measured():
    assert {step.name for case in CASES for step in augment.parse(case.augment)} == set(
        augment.AUGMENTATIONS
    )
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.reference in CASES for case in CASES)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_every_case_can_be_run(case):
    parsed = config.parse(make_config(case, 1, 300, 'near.npy'))
    text = make(case.kind)
    augmenter.check(parsed.data, text, vocabulary.build(text, parsed.tokenizer))
    assert (parsed.seed, parsed.schedule.warmup_steps) == (1, 30)


def test_intervals_are_students():
    values = np.random.default_rng(0).normal(size=5)
    for count in (2, 3, 4, 5):
        low, high = scipy.stats.t.interval(
            0.95, count - 1, values[:count].mean(), scipy.stats.sem(values[:count])
        )
        assert figure.interval(values[:count]) == pytest.approx((high - low) / 2, rel=1e-3)
    assert figure.interval(values[:1]) == 0
    assert round(figure.interval(np.array([1.0, 2, 3])), 3) == 2.484


def test_changes_are_against_the_same_seed_and_tokenizer(tmp_path):
    none, bpe, helps, harms = CASES[0], CASES[1], CASES[2], CASES[3]
    bits = {none: (3.0, 3.1, 3.2), bpe: (2.0, 2.0, 2.0)}
    bits |= {helps: (2.9, 3.0, 3.1), harms: (2.1, 2.1, 2.11)}
    records = [
        made_up(case, seed, value)
        for case, values in bits.items()
        for seed, value in zip(SEEDS, values, strict=True)
    ]
    rows = {row.name: row for row in figure.rows(records)}
    assert list(rows) == [helps.name, none.name, bpe.name, harms.name]
    np.testing.assert_allclose(rows[helps.name].end.changes, -0.1)
    np.testing.assert_allclose(rows[harms.name].end.changes, [0.1, 0.1, 0.11])
    np.testing.assert_allclose(rows[helps.name].lowest.values, np.array(bits[helps]) * 0.9)
    np.testing.assert_allclose(rows[helps.name].lowest.changes, -0.09)
    assert [row.end.verdict for row in rows.values()] == ['helps', 'neither', 'neither', 'harms']
    assert not math.isnan(rows[none.name].end.interval)
    figure.draw(records, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 10_000
    page = tmp_path / 'README.md'
    page.write_text('before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n')
    readme.write(records, page)
    text = page.read_text()
    assert text.startswith('before\n<!-- results -->\n![')
    assert text.endswith('<!-- end of results -->\nafter\n')
    line = '3.000 | **-0.100 ± 0.000** | 2.700 | **-0.090 ± 0.000** | 54.6 | 3.50 |'
    assert f'| `{helps.name}` | {line}' in text
    assert f'| `{none.name}` | 3.100 |  | 2.790 |  | 54.6 | 3.50 |' in text
    assert 'old' not in text
    assert '12 runs of 300 steps and 170,000 parameters, 6 minutes in all.' in text

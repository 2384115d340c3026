import numpy as np
import pytest

from lm.data import pack
from lm.errors import InputError


def random_lengths(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 60, size=rng.integers(1, 50))


def test_windows_by_hand():
    cut = pack.windows(np.array([3, 6]), length=4)
    assert [f.tolist() for f in cut] == [[0, 1, 1], [0, 0, 4], [2, 4, 1], [0, 0, 0]]
    cut = pack.windows(np.array([3, 6]), length=4, stride=1)
    assert [f.tolist() for f in cut] == [[0, 1, 1], [0, 0, 1], [2, 4, 4], [0, 0, 3]]


@pytest.mark.parametrize('stride', [0, 1, 3, 7, 8])
@pytest.mark.parametrize('seed', range(5))
def test_every_target_is_scored_exactly_once(stride, seed):
    lengths, length = random_lengths(seed), 8
    cut = pack.windows(lengths, length, stride)
    counts = [np.zeros(max(m - 1, 0), int) for m in lengths]
    for document, start, size, score_from in zip(*cut, strict=True):
        assert 0 <= score_from < size <= length
        assert start + size <= lengths[document] - 1
        counts[document][start + score_from : start + size] += 1
        # All before a scored target is seen, up to T - stride tokens.
        assert score_from >= (length - stride if stride and start else 0)
    assert all((count == 1).all() for count in counts)


def test_stride_that_leaves_targets_out():
    with pytest.raises(InputError, match=r'config.eval.stride = 9 is more than .*length = 8'):
        pack.windows(np.array([100]), length=8, stride=9)


def test_rows_by_hand():
    made = pack.rows(np.array([4, 3, 2, 1, 2]), length=4, packing=True)
    assert [made[i].tolist() for i in range(len(made))] == [[0], [1, 3], [2, 4]]
    made = pack.rows(np.array([4, 3, 2, 1, 2]), length=4, packing=False)
    assert [made[i].tolist() for i in range(len(made))] == [[0], [1], [2], [3], [4]]


def reference_best_fit(sizes, length):
    """Best-fit decreasing as the textbook has it: look at every row, the last filled first."""
    rows = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fits = [row for row in rows if sum(sizes[j] for j in row) + sizes[i] <= length]
        best = max(reversed(fits), key=lambda row: sum(sizes[j] for j in row), default=[])
        rows = [row for row in rows if row is not best] + [[*best, i]]
    return rows


@pytest.mark.parametrize('seed', range(10))
def test_rows_are_a_best_fit(seed):
    length = 16
    sizes = np.random.default_rng(seed).integers(1, length + 1, size=80)
    made = pack.rows(sizes, length, packing=True)
    rows = [made[i].tolist() for i in range(len(made))]
    assert sorted(sum(rows, [])) == list(range(len(sizes)))
    assert all(sizes[row].sum() <= length for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    reference = reference_best_fit(sizes.tolist(), length)
    assert rows == sorted(sorted(row) for row in reference)


def test_packing_leaves_little_empty():
    sizes = np.minimum(np.random.default_rng(0).geometric(1 / 80, size=20_000), 256)
    made = pack.rows(sizes, 256, packing=True)
    assert len(made) < 1.005 * sizes.sum() / 256 + 1


def test_no_windows_make_no_rows():
    assert len(pack.rows(np.array([], np.int32), 8, packing=True)) == 0


def test_assemble_by_hand():
    parts = [
        {
            'inputs': np.int32([1, 7]),
            'targets': np.int32([7, 2]),
            'loss_weights': np.float32([1, 1]),
        },
        {'inputs': np.int32([1]), 'targets': np.int32([2]), 'loss_weights': np.float32([1])},
    ]
    row = pack.assemble(parts, length=4)
    assert {name: value.tolist() for name, value in row.items()} == {
        'inputs': [1, 7, 1, 0],
        'targets': [7, 2, 2, 0],
        'loss_weights': [1.0, 1.0, 1.0, 0.0],
        'positions': [0, 1, 0, 0],
        'segment_ids': [1, 1, 2, 0],
    }
    assert {v.dtype for k, v in row.items() if k != 'loss_weights'} == {np.dtype(np.int32)}
    assert row['loss_weights'].dtype == np.float32

"""The benchmark's own machinery; what it measures is not tested here."""

import json

import pytest

from experiments.speed import against, race
from experiments.speed.gpt import Shape
from experiments.speed.profile import kind
from experiments.speed.race import Case, Contestant


def counter(start, step=1.0, fact=0.0):
    """A contestant whose samples are start, start + step, ..."""
    values = iter(start + step * i for i in range(100))
    return {'fact': [fact]}, lambda: next(values)


def broken():
    raise RuntimeError('out of paint')


def contestant(name, function='counter', **options):
    return Contestant(name, f'tests.experiments.test_speed:{function}', options)


def silent(text):
    pass


@pytest.mark.slow
def test_a_race_pairs_samples_by_round():
    case = Case('a/b', 'm', True, (contestant('ours', start=2), contestant('theirs', start=1)))
    ours, theirs = race.run(case, 3, 0, silent)
    if not ours['dropped'] + theirs['dropped']:  # of a busy machine
        assert ours['samples'] == [2, 3, 4]
        assert theirs['ratio'] == pytest.approx(3 / 2)  # of 2/1, 3/2, 4/3
        assert theirs['ratio_spread'] == pytest.approx([(4 / 3 + 3 / 2) / 2, (2 + 3 / 2) / 2])
    assert ours['ratio'] == 1
    assert theirs['facts'] == {'fact': [0.0]}
    assert theirs['peak_mb'] > 1
    json.dumps([ours, theirs])


@pytest.mark.slow
def test_a_contestant_that_does_other_work_is_refused():
    racing = contestant('ours', start=1, fact=1.0), contestant('theirs', start=1, fact=1.1)
    with pytest.raises(ValueError, match='theirs does other work'):
        race.run(Case('a/b', 'm', True, racing, agree='fact', tolerance=0.05), 1, 0, silent)
    assert race.run(Case('a/b', 'm', True, racing, agree='fact', tolerance=0.2), 1, 0, silent)


def test_a_contestant_that_fails_says_why():
    with pytest.raises(RuntimeError, match='out of paint'):
        race.run(Case('a/b', 'm', True, (contestant('ours', 'broken'),)), 1, 0, silent)


def test_a_disturbed_sample_is_taken_anew_and_the_quietest_kept():
    class Worker:
        answers = [(1.0, 0.9), (2.0, 0.2), (3.0, 0.04), (4.0, 0.0)]

        def sample(self):
            value, foreign = self.answers.pop(0)
            return {'value': value, 'foreign': foreign}

    assert race.quiet_sample(Worker()) == {'value': 3.0, 'foreign': 0.04, 'dropped': 2}
    Worker.answers = [(float(i), 0.5 - 0.01 * i) for i in range(race.ATTEMPTS)]
    assert race.quiet_sample(Worker())['value'] == race.ATTEMPTS - 1
    Worker.answers = [(1.0, 0.6), (2.0, 0.4), (3.0, 0.0)]
    assert race.quiet_sample(Worker(), 0.5) == {'value': 2.0, 'foreign': 0.4, 'dropped': 1}


@pytest.mark.slow
def test_a_case_has_its_own_limit_for_others(monkeypatch):
    limits = []

    def sample(worker, foreign_limit):
        limits.append(foreign_limit)
        return {'value': 1.0, 'foreign': 0.4, 'peak_mb': 1.0, 'dropped': 0}

    monkeypatch.setattr(race, 'quiet_sample', sample)
    for limit, noisy in ((0.5, 0), (0.05, 2)):
        case = Case('a/b', 'm', True, (contestant('ours', start=2),), foreign_limit=limit)
        assert race.run(case, 2, 0, silent)[0]['noisy'] == noisy
    assert limits == [0.5, 0.5, 0.05, 0.05]


def test_ratios_say_how_many_times_better_ours_is():
    assert race.ratio([2.0, 4.0, 6.0], [1.0, 1.0, 2.0], True)['ratio'] == 3
    assert race.ratio([2.0, 4.0, 6.0], [1.0, 1.0, 2.0], False)['ratio'] == 1 / 3


def record(ratio, low, high, name='theirs'):
    return {'case': 'a/b', 'contestant': name, 'ratio': ratio, 'ratio_spread': [low, high]}


def test_a_ratio_has_fallen_where_the_quartiles_do_not_touch(tmp_path):
    old = [record(1.5, 1.4, 1.6), record(1.0, 1.0, 1.0, 'ours')]
    for high, fallen in ((1.3, True), (1.45, False)):
        rows = against.compare(old, [record(1.2, 1.1, high)])
        assert rows == [('a/b', 'theirs', 1.5, 1.2, fallen)]
    assert against.compare(old, [record(1.0, 1.0, 1.0, 'ours')]) == []
    machine = {'cpu': 'abacus', 'cores': 2, 'commit': None}
    path = tmp_path / 'run.jsonl'
    path.write_text('\n'.join(map(json.dumps, [machine, *old])))
    assert against.read(path) == (machine, old)
    against.figure(old, machine, tmp_path / 'run.png')
    assert (tmp_path / 'run.png').stat().st_size > 5000


def test_a_share_is_of_the_limit_measured_in_the_same_run():
    step = {'case': 'step/a', 'median': 200.0, 'flops': 1e9, 'limit': 'limit/matmul'}
    limits = [
        {'case': 'limit/matmul', 'contestant': 'ours', 'median': 400.0},
        {'case': 'limit/matmul', 'contestant': 'theirs', 'median': 800.0},
    ]
    assert against.share(step, limits) == 0.5
    assert against.share(step, []) is None
    assert against.share(step | {'limit': ''}, limits) is None


def test_the_floating_point_operations_of_a_known_model():
    """GPT-2: 124M parameters, of which 0.8M are positions, and attention over 1024 tokens."""
    shape = Shape(layers=12, width=768, heads=12, length=1024, vocab=50257)
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert shape.flops_per_token == 6 * matrices + 6 * 12 * 768 * 1024


@pytest.mark.parametrize(
    ('operation', 'source', 'name'),
    [
        ('ynn_fusion.3', 'transpose(jvp(Decoder.hidden))/layers/mlp/up/dot_general', 'dense'),
        ('ynn_fusion.4', 'jvp(Decoder.logits)/embed.attend/dot_general', 'output matrix'),
        ('copy_bitcast_fusion', 'jvp(Decoder.hidden)/layers/mlp/down/transpose', 'transposes'),
        ('add_select_fusion.1', 'jit(step)/jit(_where)/select_n', 'AdamW'),
        ('tanh_fusion', 'jvp(Decoder.hidden)/layers/mlp/tanh', 'activations'),
    ],
)
def test_kinds_of_operations(operation, source, name):
    assert name in kind(operation, source)

"""Translations are compared where they are of the same texts, and measured alike."""

import pytest

from lm import predictions
from lm.errors import InputError

EVAL = {'bleu_tokenizer': '13a', 'lowercase': False}
TASK = 'valid, greedy'
LINES = [
    {
        'source': str(i),
        'target': f'das ist Satz {i} von 40',
        'prediction': f'das ist Satz {i} von 4',
    }
    for i in range(40)
]
BETTER = [line | {'prediction': line['target']} for line in LINES]


def compare(folder, runs):
    """Of `{name: (lines or None, config.eval)}`."""
    for name, (lines, _) in runs.items():
        if lines:
            predictions.write(folder / name / 'predictions', TASK, lines)
    reports = [{'tasks': {TASK: {}}, 'config': {'eval': options}} for _, options in runs.values()]
    return predictions.compare([folder / name for name in runs], list(runs), reports)


def test_what_is_written_is_read(tmp_path):
    lines = [{'source': 'a\u2028b"\\n', 'target': '你好', 'prediction': ''}]
    predictions.write(tmp_path, 'test, beam 4', lines)
    assert [path.name for path in tmp_path.iterdir()] == ['test.beam4.jsonl']
    assert predictions.read(tmp_path, 'test, beam 4') == lines
    assert predictions.read(tmp_path, 'test, beam 5') is None
    with (tmp_path / 'test.beam4.jsonl').open('a') as file:
        file.write('{"source": "a"}\n')
    with pytest.raises(InputError, match='is damaged'):
        predictions.read(tmp_path, 'test, beam 4')


def test_translations_of_several_tasks_have_folders(tmp_path):
    predictions.write(tmp_path, 'numbers test, beam 4', LINES)
    assert predictions.read(tmp_path / 'numbers', 'test, beam 4') == LINES
    assert predictions.read(tmp_path, 'numbers test, beam 4') == LINES
    for other in ('names test, beam 4', 'numbers valid', 'test, beam 4'):
        assert predictions.read(tmp_path, other) is None


def test_each_run_is_compared_with_the_first_that_has_translations(tmp_path):
    found = compare(
        tmp_path, {'none': (None, EVAL), 'first': (LINES, EVAL), 'second': (BETTER, EVAL)}
    )
    ((task, head, rows),) = found.tables
    assert task == TASK
    assert all(len(row) == len(head) for row in rows)
    assert [row[0] for row in rows] == ['first', 'second']
    result = found.content[TASK]['second']['bleu']
    assert result['baseline'] == 'first'
    assert result['difference'] > 0
    assert result['p'] < 0.01
    assert 'nrefs:1' in found.notes[-1]


def test_one_run_alone_is_not_compared(tmp_path):
    found = compare(tmp_path, {'a': (LINES, EVAL), 'b': (None, EVAL)})
    assert found == ([], [], {})


@pytest.mark.parametrize(
    ('lines', 'options', 'note'),
    [
        (LINES[1:], EVAL, "'a' and 'c' translated other texts (valid, greedy)"),
        ([LINES[0] | {'source': 'x'}, *LINES[1:]], EVAL, "'a' and 'c' translated other texts"),
        ([LINES[0] | {'target': 'x'}, *LINES[1:]], EVAL, "'a' and 'c' translated other texts"),
        (LINES, EVAL | {'lowercase': True}, "'a' and 'c' differ in config.eval.lowercase"),
    ],
)
def test_runs_that_do_not_compare_are_named_and_others_are_compared(lines, options, note, tmp_path):
    found = compare(tmp_path, {'a': (LINES, EVAL), 'b': (BETTER, EVAL), 'c': (lines, options)})
    assert note in found.notes[0]
    assert set(found.content[TASK]) == {'b'}


def test_scores_are_as_the_config_says(tmp_path):
    shouted = [line | {'prediction': line['target'].upper()} for line in LINES]
    low = {
        lowercase: compare(
            tmp_path / str(lowercase),
            {
                name: (lines, EVAL | {'lowercase': lowercase})
                for name, lines in (('a', BETTER), ('b', shouted))
            },
        ).content[TASK]['b']['bleu']['difference']
        for lowercase in (False, True)
    }
    assert low[False] < 0 == low[True]

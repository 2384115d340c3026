"""Curves of runs, in a notebook."""

import json

import pytest

import lm
from lm.errors import InputError


def run(folder, steps=20, **report):
    folder.mkdir()
    lines = [
        {'step': step, 'train/loss': 4 - step / 10, 'train/learning_rate': 1e-3}
        for step in range(1, steps + 1)
    ]
    lines.append({'step': steps, 'valid/loss': 2.5})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    if report:
        (folder / 'report.json').write_text(json.dumps(report))
    return folder


def test_curves_of_two_runs_and_what_they_reached(tmp_path):
    ended = run(tmp_path / 'ended', splits={'valid': {'perplexity': 12.3456}})
    under_way = run(tmp_path / 'begun', steps=5)
    picture = lm.show(ended, under_way, path=tmp_path / 'a.png')
    loss, rate = picture.figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        'ended, valid perplexity 12.35',
        'begun',
    ]
    assert [len(line.get_xdata()) for line in loss.lines] == [20, 20, 1, 5, 5, 1]
    assert [len(line.get_xdata()) for line in rate.lines] == [20, 5]
    assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize('workdirs', [(), ('nowhere',)])
def test_where_there_is_no_run_it_says_so(workdirs, tmp_path):
    with pytest.raises(InputError, match='workdir of a run|no run in'):
        lm.show(*(tmp_path / name for name in workdirs))

"""The command `python -m lm.corpus`, and its report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_texts import prose

from lm import corpus, corpus_report

ROOT = Path(__file__).parent.parent


def command(*arguments, cwd):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    environment.pop('XLA_FLAGS', None)
    line = [sys.executable, '-m', 'lm.corpus', *arguments]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A corpus with a planted fault of each kind, made by the command."""
    folder = tmp_path_factory.mktemp('made')
    documents = [prose(number) for number in range(20)]
    records = [{'text': text, 'fault': '', 'truth': ''} for text in documents]
    near = documents[3].split()
    near[10] = 'elephants'
    records += [
        {'text': documents[1], 'fault': 'copy', 'truth': ''},
        {'text': ' '.join(near), 'fault': 'near', 'truth': ''},
        {'text': '', 'fault': 'empty', 'truth': ''},
        {'text': '<script>alert(1)</script> ', 'fault': 'short', 'truth': ''},
        {
            'text': 'The naÃ¯ve mayor sang. ' + prose(100),
            'fault': 'mojibake',
            'truth': 'The naïve mayor sang. ' + prose(100),
        },
    ]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / 'raw.jsonl').write_text(lines)
    result = command(
        f'--config={ROOT}/configs/corpus/base.py',
        "--config.sources=('a=jsonl:raw.jsonl#text{fault,truth}',)",
        '--config.clean.filters=()',
        '--config.clean.min_words=8',
        '--config.report.planted=fault',
        '--config.split.valid=0.2',
        '--output=out',
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_what_the_command_says(made):
    folder, result = made
    assert re.search(r'reading +25 +0', result.stdout)
    assert re.search(r'exact duplicates +\d+ +1 ', result.stdout)
    assert result.stdout.endswith('Report: out/report.html\n')


def test_the_report_accounts_for_every_document(made):
    folder, _ = made
    found = json.loads((folder / 'out' / 'report.json').read_text())
    steps = found['steps']
    assert steps[0]['documents'] == 25
    for one, after in zip(steps, steps[1:], strict=False):
        assert after['documents'] == one['kept']
        assert one['documents'] - one['kept'] == sum(one['reasons'].values())
    assert sum(split['documents'] for split in found['splits'].values()) == steps[-1]['kept']
    planted = {entry['fault']: entry for entry in found['planted']}
    assert planted['']['dropped'] == 0
    for fault, step in {
        'copy': 'exact duplicates',
        'near': 'near duplicates',
        'empty': 'length',
        'short': 'words',
    }.items():
        assert planted[fault]['steps'] == {step: 1}
    assert planted['mojibake']['restored'] == 1


def test_the_page_shows_it_and_runs_nothing(made):
    folder, _ = made
    page = (folder / 'out' / 'report.html').read_text()
    for words in ('Funnel', 'Planted faults', 'elephants', 'seen before: 1', 'naÃ¯ve'):
        assert words in page
    assert '<script' not in page
    assert '<mark>elephants</mark>' in page
    text = (folder / 'out' / 'report.md').read_text()
    assert '| nothing wrong | 20 | 0 |' in text


def test_in_python(made, tmp_path):
    folder, _ = made
    config = corpus.get_config(
        'pydocs', sources=(f'a=jsonl:{folder}/raw.jsonl',), clean={'min_words': 8}
    )
    said = []
    found = corpus.build(config, tmp_path / 'out', said.append)
    assert found['sources']['a']['documents'] == 25
    assert 'Documents: train' in said[-1]
    assert corpus.build(config, tmp_path / 'out', said.append) == found


def test_wrong_options_are_one_line(tmp_path):
    for arguments, message in (
        ((), '--config=FILE is missing'),
        (('--confg=x',), "Did you mean '--config'?"),
        ((f'--config={ROOT}/configs/corpus/pydocs.py', '--config.clean.min_word=2'), 'min_words'),
        (
            (f'--config={ROOT}/configs/corpus/pydocs.py', "--config.sources=('a=text:none/*',)"),
            "source 'text:none/*' matches no file.",
        ),
    ):
        result = command(*arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count('\n') == 1
        assert not (tmp_path / 'corpora').exists()


def test_megabytes_and_the_curve():
    assert corpus_report.megabytes(1_234_567_890) == '1,234.57'

"""The road as a whole: it does not depend on how it is gone."""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from corpus_texts import prose

from lm import config as configs
from lm.data import corpus, corpus_shards, source
from lm.data.corpus import folder, stages
from lm.errors import InputError, RunStopped

ROOT = Path(__file__).parents[3]
STAGES = ('index', 'clean', 'exact', 'near', 'groups', 'write', 'manifest')


@pytest.fixture
def raw(tmp_path):
    """Five files in two sources: good documents, copies, near copies, and some that are dropped."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    number = 0
    for name in ('a', 'b', 'c', 'd'):
        documents = []
        for _ in range(12):
            documents += [prose(number), prose(number // 2).replace('stone', 'rock', 1)]
            number += 1
        lines = [json.dumps({'text': text, 'url': f'{name}.org'}) for text in [*documents, 'x', '']]
        (folder / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
    (folder / 'book.txt').write_text(f'{prose(1000)}\n\n{prose(1001)}\n\n{prose(3)}\n')
    (folder / 'questions.txt').write_text(f'{prose(7)[100:300]}\nshort\n')
    return folder


def config(raw, **changes):
    chosen = {
        'sources': (f'web=jsonl:{raw}/?.jsonl#text{{url}}', f'book=paragraphs:{raw}/book.txt'),
        'contamination': {'evaluation': (f'questions=lines:{raw}/questions.txt',)},
        'split': {'valid': 0.2, 'test': 0.2},
        **changes,
        'run': {'tasks': 1, 'shard_mb': 0.001, **changes.get('run', {})},
    }
    return corpus.get_config('base', **chosen)


def result(folder):
    """Returns the digest of each file that counts."""
    files = [*folder.glob('*/*.jsonl.zst'), *folder.glob('*/*.array_record')]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, folder / corpus_shards.MANIFEST]
        if path.relative_to(folder).parts[0] != '.work'
    }


def records(folder):
    made = corpus_shards.open_split(folder, '', 'here')
    return list(made.records())


def test_what_is_kept(raw, tmp_path, config_data):
    out = tmp_path / 'out'
    work = corpus.build(config(raw), out, print)
    found = records(out)
    texts = [record['text'] for record in found]
    assert len(texts) == len(set(texts))
    kept = {text.replace('rock', 'stone') for text in texts}
    assert kept == {prose(i) for i in (*range(48), 1000, 1001)} - {prose(7)}
    assert all(record['url'] == 'a.org' for record in found if record['text'] == prose(0))
    assert {record['source'] for record in found} == {'web', 'book'}
    assert not work.path().exists()
    assert all(record['id'] == configs.digest(record['text'])[:16] for record in found)
    read = {
        split: [d.text for d in source.parse(f'corpus:{out}[{split}]', config_data).records()]
        for split in corpus_shards.SPLITS
    }
    assert sorted(sum(read.values(), [])) == sorted(texts)
    assert all(read.values())
    coded = source.parse(f'corpus:{out}#{{source}}[train]', config_data).records()
    assert {document.codes for document in coded} == {('source=web',), ('source=book',)}


def test_repeated_parts_leave_the_text(tmp_path):
    own = [prose(i, 3) for i in range(6)]
    head, foot = 'This line stands above each of the texts here.', prose(77, 2)
    lines = [json.dumps({'text': f'{head}\n{text}\n\n{foot}'}) for text in own[:5]]
    lines.append(json.dumps({'text': f'{head}\n\n{foot}'}))
    (tmp_path / 'a.jsonl').write_text('\n'.join([*lines, json.dumps({'text': own[5]})]) + '\n')

    def made(name, **duplicates):
        chosen = corpus.get_config(
            'base',
            sources=(f'a=jsonl:{tmp_path}/a.jsonl',),
            clean={'filters': ()},
            duplicates={'near': 0.0, **duplicates},
            run={'tasks': 1},
        )
        corpus.build(chosen, tmp_path / name, print)
        return sorted(record['text'] for record in records(tmp_path / name))

    # The first paragraph of each has the head and is another; the last is the same.
    paragraphs = made('paragraphs', exact=('paragraph',))
    assert f'{head}\n{own[0]}\n\n{foot}' in paragraphs
    assert {f'{head}\n{text}' for text in own[1:5]} < set(paragraphs)
    whole = made('lines', exact=('line',))
    assert {f'{head}\n{own[0]}\n\n{foot}', *own[1:]} == set(whole)  # Of the sixth little is left.
    boilerplate = made('boilerplate', exact=('document',), boilerplate=5)
    assert set(boilerplate) == set(own)


def test_a_near_copy_is_found_beside_an_exact_one(tmp_path):
    text = prose(1, 40)
    near = text.replace('river', 'brook', 3)
    lines = [json.dumps({'text': one}) for one in (text, f'{text}\n', near, f'{near} ', near)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n')
    chosen = corpus.get_config('base', sources=(f'a=jsonl:{tmp_path}/a.jsonl',), run={'tasks': 1})
    corpus.build(chosen, tmp_path / 'out', print)
    assert [record['text'] for record in records(tmp_path / 'out')] == [text]


def test_splits_stay_when_the_corpus_grows(raw, tmp_path):
    def splits(name):
        corpus.build(config(raw), tmp_path / name, print)
        return {
            record['text']: split
            for split in corpus_shards.SPLITS
            for record in corpus_shards.open_split(tmp_path / name, split, '').records()
        }

    before = splits('one')
    (raw / 'e.jsonl').write_text(json.dumps({'text': prose(5000), 'url': ''}) + '\n')
    (raw / 'book.txt').write_text(prose(6000) + '\n\n' + (raw / 'book.txt').read_text())
    after = splits('two')
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()


@pytest.mark.parametrize('form', corpus_shards.FORMATS)
def test_a_shard_that_was_changed_is_found(raw, tmp_path, form, config_data):
    out = tmp_path / 'out'
    chosen = config(raw, output={'format': form})
    corpus.build(chosen, out, print)
    whole = result(out)
    path = max(out.glob('train/*'), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    for damage in ('cut', 'altered'):
        if damage == 'cut':
            path.write_bytes(data[:-1])
        else:
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        with pytest.raises(InputError, match=f'{path.name}.* is not as it was written'):
            list(source.parse(f'corpus:{out}[train]', config_data).records())
    said = []
    corpus.build(chosen, out, said.append)
    assert 'is made again' in said[0]
    assert result(out) == whole
    said.clear()
    corpus.build(chosen, out, said.append)
    assert not said


# Kills itself in a task of a stage, before the task is marked as done: in its midst, or at its end.
KILL = """
import json, os, signal, sys
from lm.data import corpus, corpus_shards
from lm.data.corpus import stages

stage, midst, config, folder = sys.argv[1], sys.argv[2] == 'midst', *sys.argv[3:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
for kind in [getattr(stages, name.title()) for name in %r]:
    def task(self, rank, tasks, do=kind.task):
        mine = self.name == stage and rank == (1 if stage in ('clean', 'exact', 'near', 'write') else 0)
        if mine and midst:
            corpus_shards.JsonlWriter._close = die
        do(self, rank, tasks)
        if mine:
            die()
    kind.task = task
made = corpus.get_config('base')
with made.unlocked(), made.ignore_type():
    made.update(json.loads(config))
corpus.build(made, folder)
"""


def kill(raw, folder, stage, moment):
    made = json.dumps(config(raw).to_dict(), default=list)
    command = [sys.executable, '-c', KILL % (STAGES,), stage, moment, made, str(folder)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def done_tasks(folder):
    """Returns when each task was done that was done."""
    marks = (folder / '.work' / 'logs').glob('*/completions/*')
    return {(path.parts[-3], path.name): path.stat().st_mtime_ns for path in marks}


MOMENTS = [*((stage, 'end') for stage in STAGES), ('clean', 'midst'), ('write', 'midst')]


@pytest.mark.first_quick
@pytest.mark.parametrize(('stage', 'moment'), MOMENTS[::-1])
def test_a_killed_run_goes_on_where_it_was(raw, tmp_path, stage, moment):
    chosen = config(raw, run={'keep_work': True})
    corpus.build(chosen, tmp_path / 'whole', print)
    out = tmp_path / 'out'
    kill(raw, out, stage, moment)
    before = done_tasks(out)
    assert (stage, '00001') not in before
    assert not (out / corpus_shards.MANIFEST).exists() or stage == 'manifest'
    corpus.build(chosen, out, print)
    assert before.items() <= done_tasks(out).items()
    assert result(out) == result(tmp_path / 'whole')
    assert not list(out.rglob('*.partial'))


@pytest.mark.slow
def test_the_number_of_tasks_does_not_matter(raw, tmp_path):
    corpus.build(config(raw), tmp_path / 'one', print)
    corpus.build(config(raw, run={'tasks': 8}), tmp_path / 'many', print)
    assert result(tmp_path / 'one') == result(tmp_path / 'many')


class Dying(stages.Clean):
    """Is killed in its second task."""

    def task(self, rank, tasks):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().task(rank, tasks)


@pytest.mark.slow
def test_a_task_that_is_killed_stops_the_others(raw, tmp_path, monkeypatch):
    out, chosen = tmp_path / 'out', config(raw, run={'tasks': 2})
    with monkeypatch.context() as patch:
        patch.setattr(stages, 'Clean', Dying)
        with pytest.raises(RunStopped, match=r'fewer tasks at once .* --config.run.tasks=1'):
            corpus.build(chosen, out, print)
    assert not multiprocessing.active_children()
    corpus.build(config(raw), out, print)
    assert records(out)


@pytest.mark.slow
def test_ray_gives_the_same(raw, tmp_path):
    ray = pytest.importorskip('ray')
    run = {'shard_mb': 1, 'tasks': 2}  # Two shards: a process of Ray takes seconds to begin.
    corpus.build(config(raw, run=run), tmp_path / 'one', print)
    corpus.build(config(raw, run={**run, 'executor': 'ray'}), tmp_path / 'many', print)
    ray.shutdown()
    assert result(tmp_path / 'one') == result(tmp_path / 'many')


# Runs the tasks of a job one after the other, here and now.
SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last = re.search(r'#SBATCH --array=0-(\\d+)', script)
for task in range(int(last[1]) + 1 if last else 1):
    environment = {{**os.environ, 'SLURM_ARRAY_TASK_ID': str(task), 'SLURM_NODELIST': 'here'}}
    subprocess.run(['bash', sys.argv[-1]], env=environment, check=True, stdout=2)
print('Submitted batch job 1')
"""


@pytest.mark.slow
def test_jobs_of_slurm_give_the_same(raw, tmp_path, monkeypatch):
    programs = tmp_path / 'bin'
    programs.mkdir()
    (programs / 'sbatch').write_text(SBATCH.format(python=sys.executable))
    (programs / 'srun').write_text(
        '#!/bin/sh\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n'
    )
    (programs / 'scontrol').write_text('#!/bin/sh\necho here\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}:{Path(sys.executable).parent}:{os.environ["PATH"]}')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    few = {
        'sources': (f'book=paragraphs:{raw}/book.txt',),
        'contamination': {'evaluation': ()},
        'duplicates': {'near': 0.0},
    }
    corpus.build(config(raw, **few), tmp_path / 'one', print)
    chosen = config(raw, **few, run={'executor': 'slurm'})
    with chosen.unlocked():
        chosen.run.options.update({'time': '1:00:00', 'partition': 'cpu'})
    said = []
    assert corpus.build(chosen, tmp_path / 'many', said.append) is None
    assert said[0].startswith('queued')
    assert result(tmp_path / 'one') == result(tmp_path / 'many')


WRONG = {
    'sources': (
        {'sources': ()},
        'config.sources is empty',
    ),
    'no name': ({'sources': ('text:x',)}, "'text:x' has no name; write NAME=text:x"),
    'same name': (
        {'sources': ('a=builtin:pydocs', 'a=builtin:pydocs')},
        "two of them have the name 'a'",
    ),
    'no file': ({'sources': ('a=text:nowhere/*.txt',)}, "'text:nowhere/.*' matches no file"),
    'pairs': ({'sources': ('a=builtin:numerals#en,de',)}, 'is of pairs'),
    'choice': ({'output': {'format': 'json'}}, "config.output.format = 'json' .* 'jsonl'"),
    'range': (
        {'split': {'valid': 1.5}},
        'config.split.valid = 1.5 must be at least 0 and at most 1',
    ),
    'split': ({'split': {'valid': 0.5, 'test': 0.5}}, 'leave nothing to train on'),
    'evaluation': (
        {'contamination': {'evaluation': ('q=text:nowhere',)}},
        "'text:nowhere' matches no file",
    ),
    'slurm': ({'run': {'executor': 'slurm'}}, 'needs config.run.options.time'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_one_line(case, tmp_path):
    changes, message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        corpus.build(corpus.get_config('pydocs', **changes), tmp_path / 'out', print)
    assert '\n' not in str(caught.value)


def test_two_do_not_make_the_same_at_once(raw, tmp_path):
    corpus.build(config(raw), tmp_path / 'out', print)
    with (
        filelock.FileLock(tmp_path / 'out' / '.lock'),
        pytest.raises(InputError, match='is being made by another process'),
    ):
        corpus.build(config(raw), tmp_path / 'out', print)


def test_other_files_are_not_touched(raw, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'thesis.txt').write_text('all my work')
    with pytest.raises(InputError, match='holds other files; choose another folder'):
        corpus.build(config(raw), tmp_path / 'out', print)
    (tmp_path / 'out' / 'config.json').write_text('{"seed": 0}')
    with pytest.raises(InputError, match='holds no corpus'):
        corpus.build(config(raw), tmp_path / 'out', print)
    assert (tmp_path / 'out' / 'thesis.txt').read_text() == 'all my work'


def test_a_folder_is_free_where_nothing_came_of_it(raw, tmp_path):
    with pytest.raises(InputError) as caught:
        corpus.build(config(raw, clean={'min_words': 100_000}), tmp_path / 'out', print)
    assert re.search(
        r"nothing is left: the step 'words' dropped (\d+) of the \1\b", f'{caught.value}'
    )
    assert '\n' not in f'{caught.value}'
    corpus.build(config(raw), tmp_path / 'out', print)


def test_a_source_without_documents_is_named(raw, tmp_path):
    (raw / 'empty.txt').write_text('')
    with pytest.raises(InputError, match=r"the source 'e=text:.*empty.txt.*' holds no documents"):
        corpus.build(
            config(raw, sources=(f'e=text:{raw}/empty.txt[1:]', f'p=text:{raw}/book.txt')),
            tmp_path / 'e',
        )


@pytest.mark.slow
def test_a_file_that_was_not_read_may_be_mended(raw, tmp_path):
    text = (raw / 'c.jsonl').read_text()
    (raw / 'c.jsonl').write_text('{not JSON\n' + text)
    with pytest.raises(InputError, match='c.jsonl:1 is not JSON'):
        corpus.build(config(raw), tmp_path / 'out', print)
    (raw / 'c.jsonl').write_text(text)
    corpus.build(config(raw), tmp_path / 'out', print)
    corpus.build(config(raw), tmp_path / 'whole', print)
    assert result(tmp_path / 'out') == result(tmp_path / 'whole')
    (raw / 'c.jsonl').write_text(text.replace('rock', 'ruin'))
    with pytest.raises(InputError, match=r"c.jsonl' is another than it was when it was read"):
        corpus.build(config(raw), tmp_path / 'out', print)


def test_an_evaluation_set_that_changed_is_told(raw, tmp_path):
    corpus.build(config(raw), tmp_path / 'out', print)
    (raw / 'questions.txt').write_text(prose(9))
    with pytest.raises(InputError, match='an evaluation set has changed'):
        corpus.build(config(raw), tmp_path / 'out', print)


def test_evaluation_texts_go_through_the_steps(tmp_path):
    secret = 'Please write to the committee at a.b@example.org before the second of May next year'
    (tmp_path / 'e.txt').write_text(secret)
    (tmp_path / 'a.txt').write_text(f'{prose(1)} {secret} {prose(2)}')
    (tmp_path / 'b.txt').write_text(prose(3))
    chosen = corpus.get_config(
        'base',
        sources=(f'a=text:{tmp_path}/[ab].txt',),
        contamination={'evaluation': (f'e=text:{tmp_path}/e.txt',)},
        run={'tasks': 1},
    )
    corpus.build(chosen, tmp_path / 'out', print)
    assert [record['text'] for record in records(tmp_path / 'out')] == [prose(3)]


def test_a_kill_while_the_work_is_removed(raw, tmp_path, monkeypatch):
    out, chosen = tmp_path / 'out', config(raw)
    with monkeypatch.context() as patch:
        patch.setattr(folder.shutil, 'rmtree', lambda path, **_: path.exists() and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            corpus.build(chosen, out, print)
    before = result(out)
    corpus.build(chosen, out, print)
    assert result(out) == before
    assert not (out / folder.REMOVED).exists()


def test_damage_is_found_where_the_work_is_kept(raw, tmp_path):
    out, chosen = tmp_path / 'out', config(raw, run={'keep_work': True})
    corpus.build(chosen, out, print)
    whole, cleaned = result(out), (out / '.work' / 'clean' / '00000.jsonl.zst').stat().st_mtime_ns
    with next(out.glob('train/*')).open('ab') as file:
        file.write(b'x')
    corpus.build(chosen, out, print)
    assert result(out) == whole
    assert (out / '.work' / 'clean' / '00000.jsonl.zst').stat().st_mtime_ns == cleaned


def test_fields_that_are_kept(tmp_path):
    record = {'text': prose(1), 'tags': ['a', 'b'], 'n': 3, 'none': None, 'id': 'mine'}
    (tmp_path / 'a.jsonl').write_text(json.dumps(record) + '\n')

    def made(fields):
        chosen = corpus.get_config(
            'base', sources=(f'a=jsonl:{tmp_path}/a.jsonl#text{{{fields}}}',)
        )
        corpus.build(chosen, tmp_path / fields, print)
        return records(tmp_path / fields)[0]

    found = made('tags,n,none')
    assert (found['tags'], found['n'], found.get('none')) == (['a', 'b'], '3', None)
    for field, message in (('id', "keeps a field 'id'"), ('=web', 'which is for training')):
        with pytest.raises(InputError, match=message):
            made(field)


ORPHAN = """
import os, signal, sys, threading, time
from lm.data import corpus
from lm.data.corpus import stages

class Waiting(stages.Clean):
    def task(self, rank, tasks):
        print(os.getpid(), flush=True)
        while True:
            signal.pause()

if __name__ == '__main__':
    stages.Clean = Waiting
    run = {'tasks': 2, 'shard_mb': 0.001}
    corpus.build(corpus.get_config('base', sources=(sys.argv[1],), run=run), sys.argv[2])
"""


@pytest.mark.slow
def test_tasks_end_with_the_command(raw, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(ORPHAN)
    command = [sys.executable, str(script), f'a=jsonl:{raw}/*.jsonl', str(tmp_path / 'out')]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert all(process.stdout.readline().strip().isdigit() for _ in range(2))
        process.kill()
        process.communicate(timeout=100)  # Until all have ended that could write.


def test_a_folder_belongs_to_one_corpus(raw, tmp_path):
    out = tmp_path / 'out'
    corpus.build(config(raw), out, print)
    corpus.build(config(raw, run={'tasks': 2}), out, print)  # Moves the work only.
    with pytest.raises(InputError, match='config.clean.min_words \\(5 there, 6 now\\)'):
        corpus.build(config(raw, clean={'min_words': 6}), out, print)
    (raw / 'e.jsonl').write_text((raw / 'a.jsonl').read_text())
    with pytest.raises(InputError, match='e.jsonl. came or went'):
        corpus.build(config(raw), out, print)

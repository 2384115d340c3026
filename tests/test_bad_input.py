"""What a person gets wrong is one line and exit code 2, and nothing is lost by it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from command_line import (
    ROOT,
    arguments,
    assert_refused,
    call,
    config_of,
    metrics,
    needs_root,
    run,
    small_disk,
    snapshot,
    write_text,
)

from lm import config as configs
from lm import run as runs
from lm import workdir as workdirs
from lm.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures('no_charts')


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / 'text.txt')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A text, and the workdir of a run with two checkpoints (made, to be quick, without training)."""
    folder = tmp_path_factory.mktemp('finished')
    text, workdir = write_text(folder / 'text.txt'), folder / 'run'
    config = configs.parse(config_of(arguments(text, workdir, train__steps=4)))
    workdirs.open_workdir(workdir, config)
    tokenizer = runs.build_tokenizer(config, workdir)
    state = runs.build(config, tokenizer, runs.check_mesh(config)).steps.init()
    workdirs.begin(workdir, config, tokenizer)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoints.save(3, state, {'next_index': 3}, None)
        checkpoints.save(4, state, {'next_index': 4}, 5.5)
    for name in ('metrics.jsonl', 'report.md'):
        (workdir / name).write_text('{"step": 3}\n')
    (workdir / 'report.json').write_text('{"finished": true}\n')
    return text, workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(finished[1], tmp_path / 'run')


# ----------------------------------------------------------------------------- the command line

# Options -> what the line says.
OPTIONS = {
    '--confg=configs/base.py': ["--confg is not an option. Did you mean '--config'?"],
    '--mode=trian': ["--mode = 'trian' is not known. Did you mean 'train'?"],
    '--mode=train': ['needs --config=FILE'],
    '--mode=evaluate': ['needs --workdir=FOLDER'],
    '--mode=generate': ['needs --workdir=FOLDER'],
    '--mode=lr_find': ['needs --config=FILE'],
    '--mode=compare': ['needs --runs=A,B'],
    '--mode=compare --runs=runs/a': ['needs --runs=A,B'],
    '--mode=compare --runs=/nowhere/a,/nowhere/b': ["run '/nowhere/a' does not exist"],
    '--config=configs/quikstart.py': ["'configs/quikstart.py'", "mean 'configs/quickstart.py'?"],
    '--config=configs': ["config file 'configs' does not exist"],
    '--config=quikstart': [
        "config file 'quikstart' does not exist in ",
        "Did you mean 'quickstart'?",
    ],
    '--config': ['Missing value for flag --config'],
    '--config.model.num_layers=2': ['--config.model.num_layers', 'give --config=FILE'],
    '--config=configs/base.py configs/brown.py': ["unexpected argument 'configs/brown.py'"],
    '--config=configs/base.py --config.model.num_layer=2': ["mean 'model.num_layers'?"],
    '--config=configs/base.py --config.modle.dropout=0': ["mean 'model.dropout'?"],
    '--config=configs/base.py --config.model=2': ['is a section', 'such as config.model.'],
    '--config=configs/base.py --config.train.steps=many': ["train.steps = 'many'", 'int'],
    '--config=configs/base.py --config.train.steps=1.5': ["train.steps = '1.5'", 'int'],
    '--config=configs/base.py --config.model.dropout=high': ["model.dropout = 'high'", 'float'],
    '--config=configs/base.py --config.model.qk_norm=maybe': ["qk_norm = 'maybe'", 'bool'],
    '--config=configs/base.py --distributed=perhaps': ['distributed'],
}


@pytest.mark.parametrize('options', OPTIONS)
def test_options(options):
    assert_refused(call(options.split()), *OPTIONS[options])


@pytest.mark.parametrize(
    ('content', 'parts'),
    [
        ('def get_config(:\n', ['line 1', 'SyntaxError']),
        ('import no_such_module\n', ['line 1', "No module named 'no_such_module'"]),
        ('\ndef get_config():\n    return 1 / 0\n', ['line 3', 'division by zero']),
        ('x = 1\n', ['defines no function get_config()']),
    ],
)
def test_config_files(tmp_path, content, parts):
    path = tmp_path / 'mine.py'
    path.write_text(content)
    assert_refused(call([f'--config={path}']), f"config file '{path}'", *parts)


# ------------------------------------------------------------------------------- config and data

# Name -> overrides and what the line says.
SETTINGS = {
    'too small': ({'train__steps': 0}, ['config.train.steps = 0 is too small; the least is 1']),
    'too large': ({'model__dropout': 1.5}, ['config.model.dropout = 1.5', 'the most is 1']),
    'activation': ({'model__activation': 'swigul'}, ["Did you mean 'swiglu'?"]),
    'attention': ({'model__attention': "('casual',)"}, ["Did you mean 'causal'?"]),
    'attention that sees too much': ({'model__attention': "('full',)"}, ["'full' lets tokens see"]),
    'not a number': ({'optimizer__learning_rate': 'nan'}, ['learning_rate = nan is not a number']),
    'optimizer': ({'optimizer__name': 'adamv'}, ["Did you mean 'adam"]),
    'optimizer of another kind': ({'optimizer__name': 'lbfgs'}, ["'lbfgs' cannot be used here"]),
    'schedule': ({'schedule__kind': 'cosin'}, ["Did you mean 'cosine'?"]),
    'tokenizer': ({'tokenizer__kind': 'unigrams'}, ["Did you mean 'unigram'?"]),
    'tokenizer file': ({'tokenizer__path': '/nowhere/a.model'}, ['/nowhere/a.model']),
    'document': ({'data__document': 'lines'}, ["Did you mean 'line'?"]),
    'heads': ({'model__num_heads': 3}, ['num_heads', '16', '3']),
    'batch': ({'data__batch_size': 12}, ['12 rows cannot be divided by 8', 'nearest that can: 16']),
    'evaluation batch': ({'eval__batch_size': 3}, ['config.eval.batch_size = 3', ' 8.']),
    'accumulation': ({'optimizer__accumulation': 3}, ['optimizer.accumulation 3']),
    'length': (
        {'mesh__data': 1, 'mesh__sequence': 8, 'data__length': 20},
        [
            'config.data.length = 20',
            'mesh.sequence = 8',
            'nearest that can: 16 tokens, or mesh.sequence = 10',
        ],
    ),
    'devices': ({'mesh__data': 3}, ['data=3', 'there are 8']),
    'two open axes': ({'mesh__fsdp': -1}, ['only one may be -1']),
    'parameter': (
        {'mesh__data': 1, 'mesh__tensor': 8},
        ["mesh.tensor = 8 cannot divide the 260 in parameter 'embed/embedding'", 'vocab_multiple'],
    ),
    'vocabulary': (
        {'tokenizer__kind': 'unigram', 'tokenizer__vocab_size': 100000},
        ['config.tokenizer.vocab_size = 100000', 'the largest that works is'],
    ),
    'source kind': ({'data__train': 'txt:a'}, ["Did you mean 'text'?"]),
    'no source kind': ({'data__train': 'a.txt'}, ["'text:a.txt'"]),
    'source split': ({'data__train': 'builtin:pydocs[trian]'}, ["Did you mean 'train'?"]),
    'missing data file': ({'data__train': 'data:none/a.txt'}, ['LM_DATA_DIR', 'README.md']),
    'missing validation file': ({'data__valid': 'text:/nowhere/a.txt'}, ['/nowhere/a.txt']),
    'glob': ({'data__train': 'text:/nowhere/*.txt'}, ["'text:/nowhere/*.txt' matches no file"]),
    'part of nothing': ({'data__train': 'text:{text}[900000w:]'}, ['holds no text']),
    'short text': ({'data__train': 'text:{text}[:100c]'}, ['less than one batch of 8 rows']),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_settings(text, tmp_path, name):
    overrides, parts = SETTINGS[name]
    overrides = {k: str(v).replace('{text}', str(text)) for k, v in overrides.items()}
    workdir = tmp_path / 'run'
    assert_refused(call(arguments(text, workdir, **overrides)), *parts)
    # Nothing is left that would bind the workdir to the mistake.
    assert not workdir.exists() or snapshot(workdir) == {}


@pytest.mark.parametrize('content', [b'', b'\n\n \n'], ids=['empty', 'blank'])
@pytest.mark.parametrize('kind', ['bytes', 'chars', 'unigram'])
def test_a_text_of_nothing(text, tmp_path, kind, content):
    empty = tmp_path / 'empty.txt'
    empty.write_bytes(content)
    overrides = {'tokenizer__kind': kind, 'data__document': 'paragraph'}
    assert_refused(call(arguments(empty, tmp_path / 'run', **overrides)), 'no text')


def test_one_mistake_after_the_other_in_one_workdir(text, tmp_path):
    """Each of them is corrected in the next start: the workdir takes no side."""
    workdir = tmp_path / 'run'
    for overrides in (
        {'data__valid': 'text:/nowhere'},
        {'tokenizer__kind': 'chars', 'data__batch_size': 1024},
        {'model__norm': 'layer'},
    ):
        assert_refused(call(arguments(text, workdir, **overrides)))
    assert snapshot(workdir) == {}
    assert_refused(call(arguments(text, workdir, model__norm='layer')), "Did you mean 'layernorm'?")


@pytest.mark.slow
def test_bytes_that_are_not_utf8_are_counted_and_told(text, tmp_path):
    text.write_bytes(b'caf\xe9 \xff\xfe\n' + text.read_bytes())
    workdir = tmp_path / 'run'
    result = run(arguments(text, workdir, train__steps=2))
    assert result.code == 0, result.err
    for split in ('train', 'valid'):
        line = f"warning: 3 bytes of the {split} source 'text:{text}' are not UTF-8"
        assert line in result.err
    report = json.loads((workdir / 'report.json').read_text())
    assert report['history'][0]['invalid_utf8_bytes'] == {'train': 3, 'valid': 3}
    assert 'train 3, valid 3' in (workdir / 'report.html').read_text()


# --------------------------------------------------------------------------------- the workdir


def assert_kept(before, workdir):
    """Asserts that what was in the workdir is still there, the same."""
    after = snapshot(workdir)
    assert {name: after.get(name) for name in before} == before


def test_a_workdir_of_another_config(finished, workdir):
    before = snapshot(workdir)
    result = call(arguments(finished[0], workdir, train__steps=4, model__num_heads=1, seed=5))
    assert_refused(result, 'seed (0 there, 5 now)', 'model.num_heads (2 there, 1 now)', '--workdir')
    assert 'dropout' not in result.err
    assert_kept(before, workdir)


def test_a_workdir_that_another_process_trains_in(finished, workdir):
    before = snapshot(workdir)
    with workdirs.lock(workdir):
        result = call(arguments(finished[0], workdir, train__steps=4, checkpoint__keep=9))
        assert_refused(result, f"another process is training in workdir '{workdir}'")
    assert_kept(before, workdir)


@pytest.mark.parametrize('place', ['text.txt', 'text.txt/run'])
def test_a_workdir_that_is_a_file_or_below_one(text, tmp_path, place):
    result = call(arguments(text, tmp_path / place))
    assert_refused(result, f"workdir '{tmp_path / place}' cannot be made")
    assert text.is_file()


@needs_root
def test_a_workdir_on_a_disk_that_is_read_only(text, tmp_path):
    with small_disk(tmp_path / 'disk', 100) as disk:
        subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
        assert_refused(call(arguments(text, disk)), f"workdir '{disk}' cannot be written")
        assert_refused(call(arguments(text, disk / 'run')), f"workdir '{disk}/run' cannot be made")


@pytest.mark.parametrize('content', ['{"seed": ', '[]', '\xff', 'null', '{}'])
def test_a_damaged_config_json(finished, workdir, content):
    (workdir / 'config.json').write_text(content, 'latin-1')
    before = snapshot(workdir)
    training = arguments(finished[0], workdir, train__steps=4)
    for options in (training, [f'--workdir={workdir}', '--mode=evaluate']):
        assert_refused(call(options), 'config')
    assert_kept(before, workdir)


@pytest.mark.parametrize('name', ['checkpoints/7/state/d', 'tokenizer.model', 'metrics.jsonl'])
def test_a_folder_that_is_not_a_runs_is_not_taken_over(text, tmp_path, name):
    path = tmp_path / 'run' / name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    result = call(arguments(text, tmp_path / 'run'))
    assert_refused(result, name.split('/')[0], 'no config.json', 'another --workdir')
    assert path.read_text() == 'mine'


def test_a_tokenizer_that_is_damaged_or_gone(finished, workdir):
    path = workdir / 'tokenizer.json'
    for content in ('{"kind": ', None):
        path.unlink()
        if content:
            path.write_text(content)
        training = arguments(finished[0], workdir, train__steps=4)
        for options in (training, [f'--workdir={workdir}', '--mode=generate']):
            assert_refused(call(options), 'tokenizer')


# ------------------------------------------------------------------------ evaluate and generate


@pytest.mark.parametrize('mode', ['evaluate', 'generate'])
def test_modes_that_need_a_run(finished, workdir, tmp_path, mode):
    nowhere, empty = tmp_path / 'nowhere', tmp_path / 'empty'
    empty.mkdir()
    for folder in (nowhere, empty):
        assert_refused(call([f'--workdir={folder}', f'--mode={mode}']), f"'{folder}' is not the")
    assert not nowhere.exists()
    options = [f'--workdir={workdir}', f'--mode={mode}']
    for name in ('9', 'newest', '-3'):
        line = f"checkpoint '{name}' is not in '{workdir}'. There are: latest, best, 3, 4."
        assert_refused(call([*options, f'--checkpoint={name}']), line)
    for path in workdir.glob('checkpoints/*/metrics'):
        shutil.rmtree(path)
    assert_refused(call([*options, '--checkpoint=best']), 'no validation loss was measured')
    shutil.rmtree(workdir / 'checkpoints')
    assert_refused(call(options), f"workdir '{workdir}' holds no checkpoint yet")
    assert not (workdir / 'checkpoints').exists()


def test_evaluation_of_a_missing_text(workdir):
    options = ['--config=configs/base.py', '--config.data.valid=text:/nowhere/a.txt']
    before = snapshot(workdir)
    result = call([f'--workdir={workdir}', '--mode=evaluate', *options])
    assert_refused(result, "'text:/nowhere/a.txt' matches no file")
    assert_kept(before, workdir)


def test_a_comparison_with_a_run_that_is_not_finished(workdir, tmp_path):
    (tmp_path / 'other').mkdir()
    options = ['--mode=compare', f'--output={tmp_path / "out"}']
    result = call([*options, f'--runs={workdir},{tmp_path / "other"}'])
    assert_refused(result, f"run '{tmp_path / 'other'}' has no report.json")
    result = call([*options, f'--runs={workdir},{tmp_path / "runn"}'])
    assert_refused(result, f"run '{tmp_path / 'runn'}' does not exist. Did you mean '{workdir}'?")
    (workdir / 'report.json').write_text('{')
    assert_refused(call([*options, f'--runs={workdir},{workdir}']), 'report.json')
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_prompts(workdir):
    options = [f'--workdir={workdir}', '--mode=generate']
    result = call(
        [*options, '--prompt=the cat', '--prompt=', '--prompt=na\u00efve \u2603 ' + 50 * 'x']
    )
    assert result.code == 0
    assert result.out.count('--- ') == 3
    assert "--- 'the cat', sample 1 of 1\nthe cat" in result.out


# ------------------------------------------------------------------------------------ full disk

# The moment from which the disk is full -> what the line says, and the checkpoints that are left.
FULL = {
    'start': ('No space left', []),
    'metrics': ('metrics.jsonl', [4, 8]),
    'checkpoint': ('is full: this checkpoint was not saved. Kept: steps [4, 8].', [4, 8]),
    'report': ('report.json', [8, 12]),
}

# Fills the disk just before step 10 is logged, step 12 is saved, or the report is written.
FILL = """
import sys, time
from pathlib import Path
sys.path.insert(0, 'tests')
from test_bad_input import fill
from lm import checkpoint, main, report, writer
def before(place, name, is_time):
    function = getattr(place, name)
    def filling(self, *arguments):
        if is_time(self, *arguments):
            fill(Path(FILLER))
        return function(self, *arguments)
    setattr(place, name, filling)
def log_10(self, step, metrics):
    if step == 10:
        while not (self._path.parent / 'checkpoints/8').exists():
            time.sleep(0.01)
        fill(Path(FILLER))
        fill(self._path)  # the rest of its last block
if WHAT == 'metrics':
    before(writer.MetricsWriter, 'write', log_10)
if WHAT == 'checkpoint':
    before(checkpoint.Checkpoints, 'save', lambda self, step, *rest: step == 12)
if WHAT == 'report':
    before(report, 'write', lambda *rest: True)
main.app.run(main.main, argv=['lm.main', *sys.argv[1:]], flags_parser=main.parse_flags)
"""


def fill(path):
    """Appends to a file until the disk is full."""
    with path.open('ab', buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b'x' * size)


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize('what', FULL)
def test_a_full_disk_loses_nothing(text, tmp_path, what):
    message, kept = FULL[what]
    with small_disk(tmp_path / 'disk', 4000) as disk:
        workdir, filler = disk / 'run', disk / 'filler'
        options = arguments(text, workdir, train__steps=12, checkpoint__every=4)
        if what == 'start':
            fill(filler)
        program = FILL.replace('FILLER', repr(str(filler))).replace('WHAT', repr(what))
        result = run(options, program=program)
        assert_refused_at_last(result, message)
        found = sorted(int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit())
        assert found == kept
        filler.unlink()
        result = run(options)
        assert result.code == 0, result.err
        assert [line['step'] for line in metrics(workdir) if 'train/loss' in line] == [
            *range(1, 13)
        ]
        events = json.loads((workdir / 'report.json').read_text())['history']
        assert events[-2]['step'] == max(kept, default=0)


def assert_refused_at_last(result, part):
    """As `assert_refused`, for a run that has shown progress before."""
    assert result.code == 2, result
    assert 'Traceback' not in result.err + result.out, result.err
    lines = result.err.splitlines()
    assert lines[-1].startswith('error: '), result.err
    assert part in lines[-1], lines[-1]
    assert all(line.startswith(('step ', 'tokenize ')) for line in lines[:-1]), result.err


# -------------------------------------------------------------------------------- it diverges


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_says_what_is_known(text, tmp_path):
    workdir = tmp_path / 'run'
    rates = {'optimizer__learning_rate': 1e30, 'optimizer__clip_norm': 0, 'train__max_bad_steps': 4}
    result = run(arguments(text, workdir, train__log_every=2, **rates))
    assert result.code == 1
    assert 'Traceback' not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith('error: step ')
    assert 'the gradient was not finite 4 steps in a row' in last
    assert str(workdir / 'nonfinite.json') in last
    found = json.loads((workdir / 'nonfinite.json').read_text())
    assert f'step {found["step"]}: ' in last
    assert found['batch']['batch'] == found['step'] - 1
    assert len(found['batch']['rows']) == 8
    assert found['metrics']['skipped_in_a_row'] == '4.0'
    assert set(found['gradient_norms']) == set(found['parameter_norms'])
    assert {'nan', 'inf'} & set(found['gradient_norms'].values())
    skipped = [line['train/skipped'] for line in metrics(workdir) if 'train/skipped' in line]
    assert skipped[-1] > 0


# --------------------------------------------------------------------------------- clean output


@pytest.mark.slow
def test_nothing_of_the_machinery_is_seen(finished, tmp_path):
    """No word of XLA's, JAX's or Orbax's, with the platform not given either."""
    text, workdir = finished[0], tmp_path / 'run'
    given = ('JAX_PLATFORMS', 'TF_CPP_MIN_LOG_LEVEL')  # by the tests, and by JAX in this process
    environment = {k: v for k, v in os.environ.items() if k not in given}
    sizes = {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}
    result = subprocess.run(
        [sys.executable, '-m', 'lm.main', *arguments(text, workdir, train__steps=4, **sizes)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert all(line.startswith('step ') for line in result.stderr.splitlines()), result.stderr
    assert [line.split(':')[0] for line in result.stdout.splitlines()] == ['valid', 'Report']

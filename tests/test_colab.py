"""The notebooks: they run from top to bottom, and what is committed shows what they show."""

import importlib.util
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / 'colab'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
WIDGET = (
    'application/vnd.jupyter.widget-view+json'  # A progress bar: shown nowhere but where it ran.
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def kinds(cell):
    """Returns the kinds of a cell's outputs, without progress bars and their like."""
    return [set(out.data) for out in cell.outputs if 'data' in out and WIDGET not in out.data]


# What is committed shows where more steps lead; to see that a notebook runs takes less.
SMALLER = {
    r"'steps': \d+": "'steps': 24",  # The schedules warm up for 20.
    r"'(eval_every|every)': \d+": r"'\1': 12",
    r"'(quickstart\w*)', train=": r"'\1', model={'num_layers': 2, 'embed_dim': 64}, train=",
    r"'embed_dim': 128": "'embed_dim': 64",
    r'lengths = \(512, 1024, 2048, 4096\)': 'lengths = (256, 512)',
}


def smaller(source):
    """Returns the source of a cell with fewer steps, narrower models and shorter rows."""
    for pattern, replacement in SMALLER.items():
        source = re.sub(pattern, replacement, source)
    return source


def test_what_is_made_smaller_is_there():
    sources = [cell.source for path in NOTEBOOKS for cell in code_cells(nbformat.read(path, 4))]
    for pattern in SMALLER:
        assert any(re.search(pattern, source) for source in sources), pattern


def test_there_are_five():
    assert [path.name[:2] for path in NOTEBOOKS] == ['01', '02', '03', '04', '05']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == 'error']
    assert not [out for out in outputs if WIDGET in out.get('data', {})]
    assert sum('image/png' in kind for cell in cells for kind in kinds(cell)) >= 2
    # Pages and paths of the machine that ran it are nobody's business.
    assert '/home/' not in str(outputs)
    assert str(Path.cwd()) not in str(outputs)


PLANS = (
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec('libtpu') is None, reason="needs pip install -e '.[plan]'"
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    'path',
    [pytest.param(path, marks=PLANS if 'plan' in path.stem else ()) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_from_a_clean_kernel_and_shows_the_same_kinds(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
        cell.source = smaller(cell.source)
    resources = {'metadata': {'path': str(tmp_path)}}
    # The kernel has the one device of a laptop, and programs that are optimised.
    kept = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
    nbclient.NotebookClient(notebook, timeout=1200, resources=resources).execute(env=kept)
    for ran, shown in zip(code_cells(notebook), code_cells(committed), strict=True):
        assert kinds(ran) == kinds(shown), ran.source

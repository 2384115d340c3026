"""The floors of the house: a file imports only lower floors, or siblings in its own folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'lm'
FLOORS = [
    {'tree', 'errors', 'memory'},
    {
        *('mesh', 'checkpoint', 'losses', 'optimizers', 'tokenizer', 'writer', 'config', 'corpora'),
        *('pretrained_tokenizer', 'vocabulary', 'codes'),
        *('tokenizer_base', 'sentencepiece_tokenizer', 'words_tokenizer', 'fertility'),
        *('goodput', 'profile', 'profile_table', 'memory_advice'),
        *('environment', 'throughput', 'plots', 'matmul', 'grouped', 'backend', 'metrics'),
        *('chips', 'flops', 'hlo', 'hlo_cost', 'hlo_memory', 'topology', 'command'),
        *('hosts', 'watch', 'rows', 'signals', 'workdir'),
    },
    {'attention', 'objectives', 'data'},
    {'layers', 'tasks'},
    {'models'},
    {'terms', 'precision', 'step', 'decode', 'beam'},
    {
        *('run', 'run_checks'),
        *('training', 'loop', 'finish'),
        'perplexity',
        'translation',
        'back_translation',
        *('scores', 'link_prediction'),
        'inference',
        'evaluate',
        'lr_find',
        'report',
        *('compare', 'pictures'),
        'page',
        'predictions',
        *('likelihood', 'harness', 'corpus_report'),
        *('vocabulary_report', 'vocabulary_page'),
        *('plan', 'plan_inputs', 'plan_report', 'plan_sweep'),
        *('run_page', 'out_of_memory', 'model_flops'),
    },
    {'pretrained', 'launch'},
    {'main', 'corpus'},
]
HOST_SIDE, DEVICE_SIDE = {'data', 'objectives', 'tasks'}, {'attention', 'layers', 'models'}
FILES = [p for p in sorted(PACKAGE.rglob('*.py')) if p != PACKAGE / '__init__.py']


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(path: Path) -> set[str]:
    """The rooms of `lm` that a file imports anywhere, inside functions too."""
    rooms, roots = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split('.')
            roots.add(parts[0])
            if parts[0] == 'lm' and len(parts) > 1:
                rooms.add(parts[1])
    return rooms | ({'jax'} if roots & {'jax', 'flax', 'optax', 'orbax'} else set())


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    for name in imported(path) - {'jax', here, '__version__'}:
        assert floor(name) <= floor(here), f'{path.name} imports {name}, which is above it'
        # On one floor, files are siblings and folders are neighbours who do not know each other.
        if floor(name) == floor(here):
            assert path.parent == PACKAGE, f'{path} imports the folder {name} beside its own'
        assert not (here in HOST_SIDE and name in DEVICE_SIDE)
        assert not (here in DEVICE_SIDE and name in HOST_SIDE)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_host_side_is_numpy(path):
    if room(path) in HOST_SIDE | {'tokenizer', 'config', 'errors', 'writer'}:
        assert 'jax' not in imported(path)


def test_no_hidden_defaults():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == 'get':
                assert 'config' not in ast.unparse(node.value).lower(), f'{path}:{node.lineno}'

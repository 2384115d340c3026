import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest

import lm
from lm import config
from lm.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(p for p in (ROOT / 'configs').glob('*.py') if p.stem != '__init__')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_config_parses_and_documents_itself(path):
    parsed = config.parse(config.load(path))
    assert config.parse(config.to_dict(parsed)) == parsed
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert path.stem == 'base' or f'--config=configs/{path.name}' in docstring


def test_every_key_of_base_has_a_comment_with_its_type():
    source = (ROOT / 'configs' / 'base.py').read_text().splitlines()
    for key, value in config.flatten(config.load('base').to_dict()):
        leaf = key.split('.')[-1]
        lines = [
            i for i, line in enumerate(source) if re.search(rf"('{leaf}'|config\.{leaf})\W", line)
        ]
        kind = {'dict': 'dict', 'list': 'tuple of'}.get(type(value).__name__, type(value).__name__)
        near = '\n'.join('\n'.join(source[max(0, i - 12) : i + 1]) for i in lines)
        assert re.search(rf'# {kind}\b', near), f'{key} has no comment that says it is {kind}'


def test_dataclasses_have_no_defaults():
    def check(cls):
        for field in dataclasses.fields(cls):
            assert field.default is dataclasses.MISSING
            assert field.default_factory is dataclasses.MISSING
            kind = typing.get_type_hints(cls)[field.name]
            if dataclasses.is_dataclass(kind):
                check(kind)

    check(config.Config)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (
            {'model': {'num_layer': 3}},
            "'config.model.num_layer' is not a config key. Did you mean ",
        ),
        (
            {'model': {'num_layers': '3'}},
            r"config.model.num_layers = '3' is of type str; it must be int",
        ),
        ({'model': {'num_layers': 0}}, 'config.model.num_layers = 0 is too small; the least is 1'),
        ({'model': {'dropout': 1.5}}, 'config.model.dropout = 1.5 is too large; the most is 1'),
        ({'model': {'num_layers': True}}, 'it must be int'),
        ({'sed': 3}, "'config.sed' is not a config key. Did you mean 'seed'"),
    ],
)
def test_bad_values_are_one_line(overrides, message):
    with pytest.raises(InputError, match=message) as error:
        config.parse(lm.get_config('base', **overrides))
    assert '\n' not in str(error.value)


def test_overrides_change_only_what_they_name():
    changed = lm.get_config('base', model={'num_layers': 9}, seed=4)
    old, new = config.load('base').to_dict(), changed.to_dict()
    assert config.differences(old, new) == {'model.num_layers': (6, 9), 'seed': (0, 4)}


def test_an_int_serves_where_a_float_is_wanted():
    assert config.parse(lm.get_config('base', model={'dropout': 0})).model.dropout == 0.0


@pytest.mark.parametrize(
    ('rates', 'weights'),
    [('fixed', (0.5, 0.5)), ('progress', (0.5, 0.5)), ('scheduled', (0.5, 2.0))],
)
def test_only_a_schedule_has_last_weights(rates, weights):
    base = lm.get_config('base', multitask={'rates': rates})
    with base.unlocked():
        base.tasks = {'a': {'weight': 0.5, 'final_weight': 2}, 'b': {}}
    assert config.task_weights(config.parse(base)) == {'a': weights, 'b': (1.0, 1.0)}


def test_tasks_of_a_report_are_those_of_the_run():
    base = lm.get_config('base')
    with base.unlocked():
        base.tasks = {'a': {'data': {'length': 8}, 'generate': {'prompts': ('',)}}, 'b': {}}
    parsed = config.parse(base)
    found = config.tasks_as_dicts(config.to_dict(parsed))
    for name, task in config.tasks(parsed).items():
        expected = config.to_dict(task)
        for section in ('data', 'objective', 'generate', 'model'):
            assert found[name][section] == expected[section]
    assert list(found) == ['a', 'b']


def test_missing_config_file_names_the_nearest():
    with pytest.raises(InputError, match='configs/quickstart.py'):
        config.load(ROOT / 'configs' / 'quikstart.py')


def test_a_folder_of_the_same_name_is_not_a_config(tmp_path, monkeypatch):
    (tmp_path / 'quickstart').mkdir()
    monkeypatch.chdir(tmp_path)
    assert config.load('quickstart').data.train == lm.get_config('quickstart').data.train

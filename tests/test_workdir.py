"""The folder of a run: what is read there that was written long ago."""

import json

from lm import config as configs
from lm.workdir import read_config


def test_a_config_from_before_a_key_was_there(tmp_path):
    """Keys that came later have their defaults; what was set stays."""
    values = json.loads(json.dumps(configs.defaults()))
    old = json.loads(json.dumps(values))
    del old['multitask'], old['data']['prefix']
    old['data']['length'] = 7
    old['tasks'] = {'a': {'weight': 2.0}}
    (tmp_path / 'config.json').write_text(json.dumps(old))
    found = read_config(tmp_path)
    assert dict(configs.differences(values, found)) == {
        'data.length': (values['data']['length'], 7),
        'tasks': ({}, None),
        'tasks.a.weight': (None, 2.0),
    }
    configs.parse(found)

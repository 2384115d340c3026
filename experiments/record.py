"""Prints a run's numbers as one JSON line, to be kept beside an experiment's README.

python -m experiments.record runs/brown >> experiments/brown/results.jsonl
"""

import json
import sys
from pathlib import Path

from lm import config as configs

KEYS = ('name', 'steps', 'parameters', 'seconds', 'splits', 'tasks', 'throughput', 'environment')


def record(workdir: str) -> dict:
    """Returns the numbers of `report.json`, and of the config what differs from `configs/base.py`."""
    report = json.loads((Path(workdir) / 'report.json').read_text())
    defaults = json.loads(json.dumps(configs.defaults()))
    changed = {
        key: new for key, (_, new) in configs.differences(defaults, report['config']).items()
    }
    return {key: report[key] for key in KEYS} | {'config': changed}


if __name__ == '__main__':
    for folder in sys.argv[1:]:
        print(json.dumps(record(folder)))

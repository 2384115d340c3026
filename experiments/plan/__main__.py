"""Plans of three models on three topologies, none of which is here.

    python -m pip install -e '.[plan]'
    python -m experiments.plan --output=experiments/plan/results.jsonl

Each is a line of JSON, with the five largest arrays and collectives. README.md says what came out.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

from lm import config as configs  # noqa: E402
from lm import plan  # noqa: E402
from lm.environment import environment  # noqa: E402

MOST = 5  # Of arrays and collectives.
# What one device, or a few, cannot hold at once goes through in more parts.
CASES = (
    ('gpt2_124m', 'v5e:4x4', {}),
    ('gpt2_124m', 'v5p:2x2x2', {}),
    ('gpt2_124m', 'h200', {'optimizer.accumulation': 4}),
    ('gpt2_xl', 'v5e:4x4', {}),
    ('gpt2_xl', 'v5p:2x2x2', {}),
    ('gpt2_xl', 'h200', {'optimizer.accumulation': 16}),
    ('llama_7b', 'v5e:4x4', {}),
    ('llama_7b', 'v5p:2x2x2', {}),
    ('llama_7b', 'h200', {'optimizer.accumulation': 256}),
)


def run(name: str, topology: str, changes: dict) -> dict:
    """Returns the plan of a config, and how long it took."""
    config = configs.load(name)
    configs.put(config, changes)
    started = time.perf_counter()
    found = plan.plan(configs.parse(config), plan.target(topology))
    for key in ('buffers', 'collectives'):
        found[key] = found.get(key, [])[:MOST]
    return {
        'config': name,
        'changes': changes,
        **found,
        'seconds': round(time.perf_counter() - started, 1),
        'environment': environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--cases', nargs='+', type=int, default=range(len(CASES)))
    parser.add_argument('--output', type=Path, required=True, help='a file to add JSON lines to')
    flags = parser.parse_args()
    for number in flags.cases:
        found = run(*CASES[number])
        with flags.output.open('a') as file:
            file.write(json.dumps(found) + '\n')
        print(number, found['config'], found['topology'], found['fits'], found['why'], flush=True)


if __name__ == '__main__':
    main()

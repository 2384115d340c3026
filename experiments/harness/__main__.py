"""The harness on a run, and its own backend `hf` on the run's export: are the answers the same?

python -m experiments.harness --workdir=runs/quickstart --limit=500
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = ('blimp', 'hellaswag', 'sst2', 'rte3', 'ag_news', 'eprstmt', 'stereoset', 'xquad_en')


def compare(workdir: str, tasks: list[str], limit: int, shots: int | None) -> dict[str, Any]:
    """Returns `{'tasks': {task: {metric: [ours, theirs]}}, 'seconds': [ours, theirs], ...}`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lm import harness, pretrained
    from lm.environment import environment

    logging.getLogger('lm_eval').setLevel(logging.ERROR)
    found, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        pretrained.export(workdir, f'{folder}/exported')
        backends = (
            harness.Model(workdir=workdir),
            HFLM(pretrained=f'{folder}/exported', dtype='float32', device='cpu', batch_size=64),
        )
        for backend in backends:
            start = time.perf_counter()
            result = lm_eval.simple_evaluate(
                model=backend,
                tasks=tasks,
                num_fewshot=shots,
                limit=limit,
                task_manager=TaskManager(include_path=str(HERE / 'tasks')),
                log_samples=False,
                bootstrap_iters=0,
            )
            seconds.append(round(time.perf_counter() - start, 1))
            found.append({**result['results'], **result.get('groups', {})})
    return {
        'workdir': Path(workdir).name,
        'lm_eval': lm_eval.__version__,
        'limit': limit,
        'shots': shots,
        'tasks': {
            task: {
                name.removesuffix(',none'): [result[task][name] for result in found]
                for name in values
                if name.split(',')[0] in ('acc', 'acc_norm', 'exact_match')
            }
            for task, values in found[0].items()
        },
        'seconds': seconds,
        'environment': environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, help='of a decoder')
    parser.add_argument('--tasks', default=','.join(TASKS), help='separated by commas')
    parser.add_argument('--limit', type=int, default=500, help='questions of each task')
    parser.add_argument('--shots', type=int, help='solved examples before a question')
    given = parser.parse_args()
    found = compare(given.workdir, given.tasks.split(','), given.limit, given.shots)
    with open(HERE / 'results.jsonl', 'a', encoding='utf-8') as file:
        file.write(json.dumps(found) + '\n')
    print('| task | metric | ours | `hf` on the export |\n|---|---|--:|--:|')
    for task, metrics in found['tasks'].items():
        for metric, (ours, theirs) in metrics.items():
            print(f'| {task} | {metric} | {ours:.4f} | {theirs:.4f} |')
    print('seconds:', *found['seconds'])


if __name__ == '__main__':
    main()

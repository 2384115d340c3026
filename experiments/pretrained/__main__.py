"""How fast is a published model read and written, beside safetensors alone?

    python -m experiments.pretrained

Makes a folder of GPT-2's form with random weights, and reads and writes it in turn: the parameters to where
a mesh of one device has them, the whole of `from_pretrained`, and safetensors alone, tensors
read and forgotten, or loaded and kept. Files are dropped from the system's cache before each reading (where
it obeys), and written through to the disk.
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

import lm
from lm import config as configs
from lm import mesh, pretrained, tokenizer
from lm import run as runs
from lm.environment import environment
from lm.inference import LanguageModel
from lm.pretrained import convert
from lm.pretrained.families import FAMILIES
from lm.pretrained.folder import Weights, Writer

HERE = Path(__file__).parent


def main() -> None:
    """Measures, prints a table and adds a line to the results."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.pretrained',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--layers', type=int, default=24)
    parser.add_argument('--width', type=int, default=1024)
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--folder', type=Path, default=None, help='where; default: a temporary one')
    parser.add_argument('--output', type=Path, default=HERE / 'results.jsonl')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.layers, options.width, options.rounds)
    with options.output.open('a') as file:
        file.write(json.dumps(found | {'environment': environment()}) + '\n')
    for name, line in found['cases'].items():
        low, middle, high = line['share']
        print(
            f'{name}: {line["mb_per_second"]:,.0f} MB/s, {middle:.2f} of {line["of"]} '
            f'({low:.2f} to {high:.2f})'
        )


def measure(folder: Path, layers: int, width: int, rounds: int) -> dict:
    """Returns MB/s and the share of the plain form's, quartiles over the rounds."""
    model = _model(layers, width)
    pretrained.save(model, folder / 'model')
    weights = folder / 'model' / 'model.safetensors'
    size = weights.stat().st_size
    family, shapes = FAMILIES['gpt2'], model.run.steps.shapes.params

    def plain_read() -> None:
        with safetensors.safe_open(weights, framework='numpy') as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                file.get_tensor(name)

    def plain_load() -> None:
        safetensors.numpy.load_file(weights)

    def parameters() -> None:
        with Weights(folder / 'model') as file:
            found, _ = convert.load(
                family, model.run.config.model, shapes, file, np.dtype(np.float32)
            )
            jax.block_until_ready(found)

    def whole() -> None:
        jax.block_until_ready(pretrained.from_pretrained(folder / 'model').params)

    tensors = safetensors.numpy.load_file(weights)

    def plain_write() -> None:
        safetensors.numpy.save_file(tensors, folder / 'plain.safetensors')
        _flush(folder / 'plain.safetensors')

    def ours_write() -> None:
        plan, arrays = convert.unload(
            family, model.run.config.model, model.params, np.dtype(np.float32)
        )
        (folder / 'ours').mkdir(exist_ok=True)
        Writer(folder / 'ours', plan).write(arrays)
        _flush(folder / 'ours' / 'model.safetensors')

    cases: dict[str, tuple[Callable[[], None], str]] = {
        'safetensors, read': (plain_read, 'safetensors, read'),
        'safetensors, loaded': (plain_load, 'safetensors, read'),
        'parameters': (parameters, 'safetensors, read'),
        'from_pretrained': (whole, 'safetensors, read'),
        'safetensors, written': (plain_write, 'safetensors, written'),
        'exported tensors': (ours_write, 'safetensors, written'),
    }
    for run, _ in cases.values():  # Compiles what there is to compile.
        run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases.items())
    for i in range(rounds):
        # What comes first is another one each time.
        for name, (run, _) in order[i % len(order) :] + order[: i % len(order)]:
            _forget(weights)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    shutil.rmtree(folder / 'ours')
    return {
        'bytes': size,
        'rounds': rounds,
        'cases': {
            name: {
                'mb_per_second': size / 1e6 / statistics.median(seconds[name]),
                'of': of,
                'share': _quartiles(
                    [b / a for a, b in zip(seconds[name], seconds[of], strict=True)]
                ),
                'seconds': seconds[name],
            }
            for name, (_, of) in cases.items()
        },
    }


@functools.cache
def _model(layers: int, width: int) -> LanguageModel:
    config = lm.get_config(
        'gpt2_124m',
        model={
            'num_layers': layers,
            'embed_dim': width,
            'num_heads': width // 64,
            'dtype': 'float32',
            'vocab_size': 50_257,
            'vocab_multiple': 1,
        },
        tokenizer={'kind': 'bytes'},
        optimizer={'name': 'sgd', 'b1': 0.0},
        data={'batch_size': 8},
    )
    run = runs.build(configs.parse(config), tokenizer.Bytes(), mesh.one_device())
    return LanguageModel(run, run.steps.init().params)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, middle, high


def _forget(path: Path) -> None:
    """Asks the system to keep nothing of a file in memory."""
    with path.open('rb') as file:
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _flush(path: Path) -> None:
    with path.open('rb') as file:
        os.fsync(file.fileno())


if __name__ == '__main__':
    main()

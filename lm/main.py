"""Trains, evaluates and samples language models from a config file.

Train, then read runs/quickstart/report.html:
  python -m lm.main --config=configs/quickstart.py
Change any key of the config (all of them are explained in configs/base.py):
  python -m lm.main --config=configs/quickstart.py --config.model.num_layers=8
The same start again goes on where the last one ended. Then, on what it trained:
  python -m lm.main --workdir=runs/quickstart --mode=evaluate
  python -m lm.main --workdir=runs/quickstart --mode=generate --prompt="Return the"
Find a learning rate; put several runs beside each other:
  python -m lm.main --config=configs/quickstart.py --mode=lr_find
  python -m lm.main --mode=compare --runs=runs/a,runs/b
"""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lm.config import flatten, load, parse
from lm.errors import InputError, RunStopped, lookup, nearest

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, such as configs/quickstart.py. --config.KEY=VALUE changes a key.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Folder of the run. Default: runs/ and the name of the config file.'
)
_MODE = flags.DEFINE_string('mode', 'train', 'train | evaluate | generate | lr_find | compare.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'latest', 'evaluate, generate: latest | best | a step.'
)
_PROMPT = flags.DEFINE_multi_string(
    'prompt', None, "generate: text to continue; may be repeated. Default: the config's prompts."
)
_RUNS = flags.DEFINE_list('runs', [], 'compare: workdirs, separated by commas.')
_OUTPUT = flags.DEFINE_string('output', 'runs/compare', 'compare: folder for the result.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Join the other hosts of a TPU pod or cluster (jax.distributed).'
)


def _config() -> ConfigDict:
    if _CONFIG.value is None:
        raise InputError(
            f'--mode={_MODE.value} needs --config=FILE, such as --config=configs/quickstart.py.'
        )
    return _CONFIG.value


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    _config()
    return Path('runs') / Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem


def _train() -> None:
    from lm.training import train

    written = train(_config(), _workdir())
    if not written['finished']:
        print(f'Stopped at step {written["steps"]}. The same command goes on from there.')
        return
    for split, result in written['splits'].items():
        print(_line(split, result))
    print(f'Report: {_workdir() / "report.html"}')


def _line(split: str, result: dict) -> str:
    parts = [
        f'{split}: loss {result["loss"]:.4f} nats a token',
        f'perplexity {result["perplexity"]:.2f}',
    ]
    if result['bits_per_byte'] is not None:
        parts.append(f'{result["bits_per_byte"]:.4f} bits a byte')
    if result['word_perplexity'] is not None:
        parts.append(f'word perplexity {result["word_perplexity"]:.2f}')
    return ', '.join([*parts, f'{result["tokens"]:,} tokens'])


def _evaluate() -> None:
    from lm.evaluate import evaluate

    for split, result in evaluate(_workdir(), _CHECKPOINT.value, _CONFIG.value).items():
        print(_line(split, result))


def _generate() -> None:
    from lm.inference import load

    model = load(_workdir(), _CHECKPOINT.value)
    settings = model.run.config.generate
    if _CONFIG.value is not None:
        settings = parse(_CONFIG.value).generate
    for prompt in _PROMPT.value or settings.prompts:
        for sample in range(settings.samples):
            print(f'\n--- {prompt!r}, sample {sample + 1} of {settings.samples}')
            print(prompt, end='', flush=True)
            model.generate(
                prompt,
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                min_p=settings.min_p,
                seed=model.run.config.seed + sample,
                stream=lambda text: print(text, end='', flush=True),
            )
            print()


def _lr_find() -> None:
    from lm.lr_find import find

    suggestion = find(_config(), _workdir())
    print(f'Suggested: --config.optimizer.learning_rate={suggestion:.2g}')
    print(f'Plot: {_workdir() / "lr_find.png"}')


def _compare() -> None:
    from lm.compare import compare

    if len(_RUNS.value) < 2:
        raise InputError('--mode=compare needs --runs=A,B with at least two workdirs.')
    print(compare([Path(run) for run in _RUNS.value], Path(_OUTPUT.value)))
    print(f'Report: {Path(_OUTPUT.value) / "compare.html"}')


MODES: dict[str, Callable[[], None]] = {
    'train': _train,
    'evaluate': _evaluate,
    'generate': _generate,
    'lr_find': _lr_find,
    'compare': _compare,
}


def main(arguments: list[str]) -> None:
    """Runs the mode that the flags name; bad input is one line and exit code 2."""
    try:
        if len(arguments) > 1:
            raise InputError(f"unexpected argument '{arguments[1]}': options begin with '--'.")
        if _DISTRIBUTED.value:
            import jax

            jax.distributed.initialize()
        lookup(MODES, _MODE.value, '--mode')()
    except InputError as error:
        _exit(error, 2)
    except RunStopped as error:
        _exit(error, 1)


def _exit(error: object, code: int) -> None:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(code)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; a mistake in it is one line that names the nearest right choice."""
    if {'--help', '-h', '-help', '--helpfull', '--helpshort'} & set(arguments):
        print(__doc__)
        print(flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        _check_config_flags(arguments)
        return flags.FLAGS(arguments)
    except InputError as error:
        _exit(error, 2)
    except flags.UnrecognizedFlagError as error:
        known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])]
        _exit(f'--{error.flagname} is not an option.{nearest(error.flagname, known)}', 2)
    except flags.Error as error:
        _exit(' '.join(str(error).split()), 2)
    raise AssertionError('unreachable')


def _check_config_flags(arguments: list[str]) -> None:
    """Raises InputError for a config file that does not exist and for keys that no config has."""
    path = None
    for before, argument in zip(['', *arguments], arguments, strict=False):
        if argument.startswith('--config='):
            path = argument.removeprefix('--config=')
        elif before == '--config':
            path = argument
    if path is None:
        return
    known = dict(flatten(load(path).to_dict()))
    for argument in arguments:
        if argument.startswith('--config.'):
            key = argument.removeprefix('--config.').split('=')[0]
            if key not in known:
                raise InputError(f"'config.{key}' is not a config key.{nearest(key, known)}")


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)

"""Trains, evaluates and samples language models from a config file.

Train, then read runs/quickstart/report.html:
  python -m lm.main --config=configs/quickstart.py
Change any key of the config (all of them are explained in configs/base.py):
  python -m lm.main --config=configs/quickstart.py --config.model.num_layers=8
The same start again goes on where the last one ended. Then, on what it trained:
  python -m lm.main --workdir=runs/quickstart --mode=evaluate
  python -m lm.main --workdir=runs/quickstart --mode=evaluate --tasks=hellaswag,blimp
  python -m lm.main --workdir=runs/quickstart --mode=generate --prompt="Return the"
  python -m lm.main --workdir=runs/de_en --mode=translate --source=text:mono.de --output=synthetic.tsv
On several hosts the same on each of them; elsewhere than on TPU pods, Slurm and Kubernetes with who is who:
  python -m lm.main --config=configs/quickstart.py --workdir=/shared/run --distributed
  python -m lm.main --config=... --workdir=... --coordinator=node0:1234 --processes=2 --process=0
Find a learning rate; put several runs beside each other:
  python -m lm.main --config=configs/quickstart.py --mode=lr_find
  python -m lm.main --mode=compare --runs=runs/a,runs/b
What a step takes on chips that are not here: memory, time, cost (pip install -e '.[plan]'):
  python -m lm.main --config=configs/gpt2_124m.py --mode=plan --topology=v5e:4x4 --price=1.2
What a vocabulary comes to on texts, beside others and against its size (--config.tokenizer.kind=bpe, ...):
  python -m lm.main --config=configs/quickstart.py --mode=vocabulary --compare=path/to/gpt2
  python -m lm.main --mode=vocabulary --source=en=text:a.txt --source=zh=text:b.txt
Start from a published model (a folder of Hugging Face's form), train it further, hand a result on as one:
  python -m lm.main --mode=import --from=gpt2 --workdir=runs/gpt2 --config.data.train=text:mine.txt
  python -m lm.main --workdir=runs/gpt2
  python -m lm.main --mode=export --workdir=runs/quickstart --to=exported
  python -m lm.main --mode=export --workdir=runs/quickstart --to=program --format=stablehlo
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lm import command, environment, memory
from lm.config import load, parse, put
from lm.errors import InputError, lookup

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, such as configs/quickstart.py. --config.KEY=VALUE changes a key. Without one, training '
    'goes on in the --workdir of a run.',
)
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Folder of the run. Default: runs/ and the name of the config file.'
)
_MODE = flags.DEFINE_string(
    'mode',
    'train',
    'train | evaluate | generate | translate | lr_find | plan | compare | import | export | vocabulary.',
)
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint',
    '',
    'evaluate, generate, translate: latest | best | average:N (the mean of the latest N) | a step. '
    'Default: config.eval.checkpoint.',
)
_PROMPT = flags.DEFINE_multi_string(
    'prompt', None, "generate: text to continue; may be repeated. Default: the config's prompts."
)
_RUNS = flags.DEFINE_list('runs', [], 'compare: workdirs, separated by commas.')
_OUTPUT = flags.DEFINE_string(
    'output',
    '',
    'compare, vocabulary: folder for the result, runs/compare or runs/vocabulary by default. translate: a '
    '.tsv file.',
)
_SOURCE = flags.DEFINE_multi_string(
    'source',
    [],
    'translate: what, such as text:mono.de, a text a line; of pairs, the first sides. vocabulary: texts to '
    'train it on and to measure, en=text:a.txt with their language, of pairs en,zh=tsv:b.tsv; may be '
    "repeated. Default: the config's.",
)
_METHOD = flags.DEFINE_string(
    'method',
    'beam',
    'translate: beam (as config.eval says) | noised (words of it dropped, blanked and moved) | sample '
    '(drawn from the model) | top10 (drawn from the ten likeliest tokens).',
)
_SWAP = flags.DEFINE_bool(
    'swap', False, 'translate: the translation first, then the text: pairs for the other direction.'
)
_THROUGH = flags.DEFINE_string(
    'through',
    '',
    'translate: workdir of a second run, which translates the translations back: pairs of a text and its '
    'paraphrase.',
)
_TASK = flags.DEFINE_string(
    'task', '', 'generate, translate, evaluate --tasks: of a run of several tasks, which.'
)
_TAG = flags.DEFINE_string(
    'tag', '', "translate: written before the first column, such as '<BT>' with --swap."
)
_FROM = flags.DEFINE_string(
    'from', '', 'import: folder with config.json, model.safetensors and tokenizer.json, say.'
)
_TO = flags.DEFINE_string(
    'to', '', 'export: new folder, which transformers can read; of --format=gguf a file.'
)
_FAMILY = flags.DEFINE_string(
    'family', '', 'export: gpt2 | llama | bert | t5 | ...; default: the first that has the form.'
)
_DTYPE = flags.DEFINE_string(
    'dtype',
    'float32',
    'export: of the tensors, float32 | bfloat16 | float16. import: of what the workdir keeps, or keep: '
    'as in the files.',
)
_FORMAT = flags.DEFINE_string(
    'format',
    'huggingface',
    'export: huggingface | gguf (a file for llama.cpp) | stablehlo (for Python and C++ without lm).',
)
_SHAPE = flags.DEFINE_list(
    'shape',
    [],
    'export --format=stablehlo: rows and tokens, such as 1,128, of the program with one shape; of an '
    'encoder-decoder also tokens of the source. Default: one row, as long as can be.',
)
_WEIGHTS = flags.DEFINE_string(
    'weights', 'outside', 'export --format=stablehlo: outside | inside of the programs.'
)
_TASKS = flags.DEFINE_list(
    'tasks',
    [],
    "evaluate: tasks of EleutherAI's lm-evaluation-harness, such as hellaswag,blimp, instead of the run's "
    'own splits.',
)
_TASK_FILES = flags.DEFINE_string(
    'task_files', '', 'evaluate --tasks: folder of YAML files with more tasks for the harness.'
)
_SHOTS = flags.DEFINE_integer(
    'shots',
    None,
    'evaluate --tasks: solved examples before each question; default: as the task says.',
)
_LIMIT = flags.DEFINE_integer(
    'limit', None, 'evaluate --tasks: at most so many questions of each task.'
)
_BESIDE = flags.DEFINE_list(
    'compare',
    [],
    'vocabulary: other tokenizers to measure: .model, tokenizer.json, folders, workdirs.',
)
_SIZES = flags.DEFINE_list(
    'sizes',
    None,
    'vocabulary: sizes to train for the curve; none: --sizes=. Default: 1,024 to 50,257.',
)
_BYTES = flags.DEFINE_integer(
    'bytes', 2_000_000, 'vocabulary: measured of each source and language, spread over it.', 1
)
_IDENTIFY = flags.DEFINE_bool(
    'identify', False, "vocabulary: tell languages by py3langid (pip install -e '.[corpus]')."
)
_TOPOLOGY = flags.DEFINE_string(
    'topology',
    '',
    'plan: chips that need not be here: v4:2x2x1 | v5e:4x4 | v5p:2x2x2 | v6e:4x4 | tpu7x:2x2x1 | h100:8 | '
    'h200:8 | cpu:8. Default: the devices of this machine.',
)
_PRICE = flags.DEFINE_float('price', None, 'plan: dollars for an hour of a chip.', 0)
_SWEEP = flags.DEFINE_bool(
    'sweep',
    False,
    'plan: try meshes, what is computed again (remat) and batch sizes, and rank them.',
)
_STOPPED_CODE = flags.DEFINE_integer(
    'stopped_code',
    0,
    'train: exit code where it was asked to stop (SIGTERM) before the last step; lm.launch tells by it.',
)
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed',
    False,
    'Join the other processes of a TPU pod, of Slurm, of Kubernetes (JobSet) or of Open MPI, which say '
    'where they are. Elsewhere --coordinator, --processes and --process say it.',
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'HOST:PORT of process 0, the same on all. The port after it is taken too.'
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes there are.', 1)
_PROCESS = flags.DEFINE_integer('process', None, 'Which of them this is, from 0 on.', 0)
_JOIN_LIMIT = flags.DEFINE_float(
    'join_limit', 300.0, 'Seconds until all processes have come; then those that have stop.', 1.0
)
_SILENCE_LIMIT = flags.DEFINE_float(
    'silence_limit', 30.0, 'Seconds without a sign of a process; then all others stop.', 1.0
)
_STALL_LIMIT = flags.DEFINE_float(
    'stall_limit',
    3600.0,
    'Seconds in which a process takes no step, as while it compiles; then all stop.',
    1.0,
)


_BEGAN = time.time()
environment.only_cpu_where_nothing_else_is()

# What XLA and JAX say of themselves (backends that are not there, layouts) is no help; errors are.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)

# Whose keys `--config.KEY=VALUE` names where there is no --config: changes of another config.
_BASE = Path(__file__).parent.parent / 'configs' / 'base.py'
_changes_only = False


def _config() -> ConfigDict:
    if _CONFIG.value is None:
        raise InputError(
            f'--mode={_MODE.value} needs --config=FILE, such as --config=configs/quickstart.py.'
        )
    return _CONFIG.value


def _changes() -> dict[str, Any]:
    """Returns the keys that the command line changes, and their values."""
    return config_flags.get_override_values(flags.FLAGS['config']) if _changes_only else {}


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    if _CONFIG.value is None:
        raise InputError(
            f'--mode={_MODE.value} needs --workdir=FOLDER, the folder of a run, or its --config=FILE.'
        )
    return Path('runs') / Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem


def _config_or_runs() -> ConfigDict:
    """Returns the config of --config, or the --workdir's with the keys that the command line changes."""
    from lm.workdir import read_config

    if not _WORKDIR.value or not (_CONFIG.value is None or _changes_only):
        return _config()
    config = ConfigDict(read_config(_workdir()))
    put(config, _changes())
    return config


def _say(*lines: str) -> None:
    """Prints on the first host only."""
    import jax

    if jax.process_index() == 0:
        print(*lines, sep='\n')


def _train() -> None:
    memory.share_one_arena()
    from lm import profile
    from lm.training import train

    written = train(_config_or_runs(), _workdir(), _BEGAN)
    if not written['finished']:
        _say(f'Stopped at step {written["steps"]}. The same command goes on from there.')
        sys.exit(_STOPPED_CODE.value)
    _say_results(written)
    if written['profile']:
        _say(profile.how_to_open(_workdir(), written['profile']))
    _say(f'Report: {_workdir() / "report.html"}')


def _say_results(found: dict[str, Any]) -> None:
    for split, result in found['splits'].items():
        _say(_line(split, result))
    for task, result in found['tasks'].items():
        signature = result.get('signature')
        scores = ', '.join(f'{k} {v:.4g}' for k, v in result.items() if isinstance(v, int | float))
        _say(f'{task}: {scores}' + (f' ({signature})' if signature else ''))


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
    from lm.evaluate import evaluate, evaluate_tasks

    if _TASKS.value:
        if _CONFIG.value is not None:
            raise InputError('--tasks asks the run as it is: leave --config out.')
        options = {'shots': _SHOTS.value, 'limit': _LIMIT.value, 'folder': _TASK_FILES.value}
        _, table = evaluate_tasks(
            _workdir(), _TASKS.value, _CHECKPOINT.value, _TASK.value, **options
        )
        _say(table)
        return
    _only(('shots', 'limit', 'task_files', 'task'), '--tasks')
    _say_results(evaluate(_workdir(), _CHECKPOINT.value, _CONFIG.value))


def _only(names: tuple[str, ...], place: str) -> None:
    """Raises InputError for options that were given and have a meaning only elsewhere."""
    for name in names:
        if flags.FLAGS[name].value not in (flags.FLAGS[name].default, None):
            raise InputError(f'--{name} is for {place}.')


def _generate() -> None:
    from lm.inference import load, sampling

    model = load(_workdir(), _CHECKPOINT.value)
    if _TASK.value:
        model = model.of(_TASK.value)
    settings = model.run.config.generate
    if _CONFIG.value is not None:
        settings = parse(_CONFIG.value).generate
    for prompt in _PROMPT.value or settings.prompts:
        for sample in range(settings.samples):
            print(f'\n--- {prompt!r}, sample {sample + 1} of {settings.samples}')
            reads = model.run.config.model.architecture == 'encoder_decoder'
            print(prompt, end='\n' if reads else '', flush=True)
            model.generate(
                prompt,
                seed=model.run.config.seed + sample,
                stream=lambda text: print(text, end='', flush=True),
                **sampling(settings),
            )
            print()


def _translate() -> None:
    from lm import back_translation

    sources = [*filter(None, _SOURCE.value)]
    for name, value in (('source', sources), ('output', _OUTPUT.value)):
        if not value:
            raise InputError(
                f'--mode=translate needs --{name}, as in --source=text:mono.de --output=synthetic.tsv.'
            )
    if len(sources) > 1:
        raise InputError("--mode=translate takes one --source; join several by ' + '.")
    count, empty = back_translation.write(
        _workdir(),
        sources[0],
        _OUTPUT.value,
        _METHOD.value,
        _SWAP.value,
        _TAG.value,
        _CHECKPOINT.value,
        _CONFIG.value,
        _TASK.value,
        _THROUGH.value,
        _say,
    )
    _say(f'{count - empty:,} pairs of {count:,} texts: {_OUTPUT.value}')


def _lr_find() -> None:
    from lm.lr_find import find

    suggestion = find(_config(), _workdir())
    _say(f'Suggested: --config.optimizer.learning_rate={suggestion:.2g}')
    _say(f'Plot: {_workdir() / "lr_find.png"}')


def _plan() -> None:
    from lm import page, plan, plan_report, plan_sweep

    config = parse(_config_or_runs())
    on = plan.target(_TOPOLOGY.value, _PRICE.value)
    workdir = _workdir()
    found = plan.plan(config, on, workdir)
    _say(plan_report.lines(found))
    tried = plan_sweep.sweep(config, on) if _SWEEP.value else []
    if tried:
        _say(page.text_table(*plan_report.sweep_table(tried)))
    name = _TOPOLOGY.value.replace(':', '_') or 'here'
    output = workdir if _WORKDIR.value else Path('runs/plan') / f'{workdir.name}_{name}'
    plan_report.write(output, found, tried)
    _say(f'Plan: {output / "plan.html"}')


def _compare() -> None:
    from lm.compare import compare

    if len(_RUNS.value) < 2:
        raise InputError('--mode=compare needs --runs=A,B with at least two workdirs.')
    output = Path(_OUTPUT.value or 'runs/compare')
    print(compare([Path(run) for run in _RUNS.value], output))
    print(f'Report: {output / "compare.html"}')


def _import() -> None:
    from lm import pretrained

    if not _FROM.value or not _WORKDIR.value:
        raise InputError(
            '--mode=import needs --from=FOLDER and --workdir=FOLDER, as in --from=gpt2 '
            '--workdir=runs/gpt2.'
        )
    if _CONFIG.value is not None and not _changes_only:
        raise InputError(
            '--mode=import takes the config from the folder: leave --config out. --config.KEY=VALUE '
            'changes a key of it.'
        )
    run = pretrained.import_model(_FROM.value, _WORKDIR.value, _changes(), _say, _DTYPE.value)
    _say(f'{run.steps.parameters:,} parameters: {_WORKDIR.value}')


def _export() -> None:
    if not _TO.value:
        raise InputError('--mode=export needs --to=FOLDER, such as --to=exported.')
    from lm import pretrained
    from lm.inference import LanguageModel, load

    def huggingface(model: LanguageModel) -> str:
        of = _workdir(), _CHECKPOINT.value
        family = pretrained.save(model, _TO.value, _FAMILY.value, _DTYPE.value, *of)
        return f'a model of the family {family.name}'

    def stablehlo(model: LanguageModel) -> str:
        shape = tuple(map(int, _SHAPE.value))
        pretrained.save_stablehlo(model, _TO.value, _DTYPE.value, _WEIGHTS.value, shape)
        return 'StableHLO; README.md there says how to run it'

    def gguf(model: LanguageModel) -> str:
        family = pretrained.save_gguf(model, _TO.value, _FAMILY.value, _DTYPE.value, _workdir())
        return f"for llama.cpp, as its '{family.name}'"

    formats = {'huggingface': huggingface, 'gguf': gguf, 'stablehlo': stablehlo}
    write = lookup(formats, _FORMAT.value, '--format')
    if _FORMAT.value == 'stablehlo':
        _only(('family',), '--format=huggingface and gguf')
    else:
        _only(('shape', 'weights'), '--format=stablehlo')
    if not all(size.isdigit() for size in _SHAPE.value):
        raise InputError(f'--shape = {",".join(_SHAPE.value)} is no B,T or B,T,S.')
    _say(f'{_TO.value}: {write(load(_workdir(), _CHECKPOINT.value))}')


def _vocabulary() -> None:
    from lm.vocabulary_report import Options, report
    from lm.workdir import read_config

    if not (_WORKDIR.value or _SOURCE.value or _CONFIG.value):
        raise InputError(
            '--mode=vocabulary needs --config=FILE, the --workdir of a run, or --source=en=text:a.txt.'
        )
    if _WORKDIR.value and _CONFIG.value is not None:
        raise InputError(
            "--mode=vocabulary measures a run's tokenizer as it is: leave --config out."
        )
    if not all(size.isascii() and size.isdigit() for size in _SIZES.value or ()):
        raise InputError(f'--sizes = {",".join(_SIZES.value)} are no sizes, such as 4096,16384.')
    config = ConfigDict(read_config(_workdir())) if _WORKDIR.value else _CONFIG.value or load(_BASE)
    sizes = None if _SIZES.value is None else tuple(map(int, _SIZES.value))
    sources = [*filter(None, _SOURCE.value)]
    options = Options(sources, _BESIDE.value, sizes, _BYTES.value, _IDENTIFY.value)
    output = Path(_OUTPUT.value or 'runs/vocabulary')
    report(parse(config), output, options, _WORKDIR.value, _say)
    _say(
        (output / 'report.md').read_text().split('## Coverage')[0], f'Report: {output}/report.html'
    )


MODES: dict[str, Callable[[], None]] = {
    'train': _train,
    'evaluate': _evaluate,
    'generate': _generate,
    'translate': _translate,
    'lr_find': _lr_find,
    'plan': _plan,
    'compare': _compare,
    'import': _import,
    'export': _export,
    'vocabulary': _vocabulary,
}


def main(arguments: list[str]) -> None:
    """Runs the mode that the flags name; bad input is one line and exit code 2."""
    with command.errors_as_lines():
        command.no_more(arguments)
        run = lookup(MODES, _MODE.value, '--mode')
    with contextlib.ExitStack() as stack:
        asked = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
        if _DISTRIBUTED.value or asked != ('', None, None):
            from lm import hosts

            stack.enter_context(command.errors_as_lines(hosts.leave))
            limits = hosts.Limits(_JOIN_LIMIT.value, _SILENCE_LIMIT.value, _STALL_LIMIT.value)
            stack.enter_context(hosts.joined(*hosts.find(*asked, limits), limits))
        else:
            stack.enter_context(command.errors_as_lines())
        run()


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; a mistake in it is one line that names the nearest right choice."""
    global _changes_only
    _changes_only = _has_changes_only(arguments)
    base = _BASE if _changes_only else None
    return command.parse_flags(arguments, sys.modules[__name__], 'configs/quickstart.py', base=base)


def _has_changes_only(arguments: list[str]) -> bool:
    """Whether keys are changed of a config that is not --config: an import's, or a workdir's."""
    given = [argument for argument in arguments if argument.startswith('--config')]
    if not given or not all(argument.startswith('--config.') for argument in given):
        return False
    modes = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == '--mode']
    modes += [a.removeprefix('--mode=') for a in arguments if a.startswith('--mode=')]
    workdir = any(a == '--workdir' or a.startswith('--workdir=') for a in arguments)
    return modes[-1:] in (['import'], ['vocabulary']) or (
        modes[-1:] in ([], ['train'], ['plan']) and workdir
    )


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)

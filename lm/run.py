"""One run: everything that its config builds.

A `Run` is what needs no data but the tokenizer (`build`); the tokenizer, the splits and the batches that it
is trained on have a function each.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lm import backend, mesh, objectives, optimizers, precision, run_checks, tokenizer, vocabulary
from lm import config as configs
from lm import workdir as workdirs
from lm.config import Config, DataConfig
from lm.data import augmenter, blend, features, pipeline, source
from lm.data import mixture as mixtures
from lm.data.pipeline import Objective
from lm.errors import InputError, lookup
from lm.models import ARCHITECTURES
from lm.models import pipeline as stages
from lm.objectives import OBJECTIVES
from lm.step import Rates, Steps

SPLITS = ('train', 'valid', 'test')


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config builds.

    Attributes:
        config: the config.
        tokenizer: saved in the workdir.
        mesh: over all devices.
        steps: the compiled functions.
        learning_rate: learning rate by step.
        objective: what is made of windows of tokens; of the first task where there are several.
        task: its name; '' where there is but one.
        others: where there are several, a run of each, which shares all but config and objective.
    """

    config: Config
    tokenizer: tokenizer.Tokenizer
    mesh: Mesh
    steps: Steps
    learning_rate: optax.Schedule
    objective: Objective
    task: str = ''
    others: Mapping[str, 'Run'] | None = None

    @property
    def tasks(self) -> Mapping[str, 'Run']:
        """The run of each task; itself where there is but one."""
        return self.others or {self.task: self}


def build(config: Config, text: tokenizer.Tokenizer, device_mesh: Mesh) -> Run:
    """Returns the run of a config and a tokenizer over a mesh, such as `check_mesh(config)`.

    Raises:
        InputError: the mesh does not fit a parameter, a name is unknown, or the model would see what it
            is to predict.
    """
    lookup(ARCHITECTURES, config.model.architecture, 'config.model.architecture')
    precision.check(config.model)
    made, size = {}, 0
    for task, part in configs.tasks(config).items():
        with _of_task(task):
            spec = spec_of(part, text)
            objectives.check(part.objective.name, part.model.architecture, spec)
            run_checks.check_attention(part)
            run_checks.check_options(part, text)
            augmenter.check(part.data, text, spec.vocabulary)
        made[task], size = (part, _objective(part, spec)), spec.vocabulary.total
    run_checks.check_evaluated(config)
    if set(device_mesh.devices.flat) <= set(jax.devices()):  # What is not here is only planned for.
        backend.keep_compiled(features.cache_dir(config.data) / 'xla')
    learning_rate = optimizers.schedule(
        config.schedule, config.optimizer.learning_rate, config.train.steps
    )
    optimizer = optimizers.build(config.optimizer, learning_rate)
    with jax.set_mesh(device_mesh):
        steps = Steps(config, size, device_mesh, optimizer)
    runs = {
        task: Run(part, text, device_mesh, steps, learning_rate, objective, task)
        for task, (part, objective) in made.items()
    }
    first = next(iter(runs.values()))
    return (
        dataclasses.replace(first, config=config, task='', others=runs) if config.tasks else first
    )


@contextlib.contextmanager
def _of_task(task: str) -> Iterator[None]:
    """Says of which task a mistake is."""
    try:
        yield
    except InputError as error:
        raise InputError(f'config.tasks.{task}: {error}' if task else str(error)) from None


def spec_of(config: Config, text: tokenizer.Tokenizer) -> objectives.Spec:
    """Returns what a config's objective is told besides the tokens."""
    ids = vocabulary.build(text, config.tokenizer)
    length = config.data.length
    source_length = config.data.source_length or length
    return objectives.Spec(config.objective, ids, length, source_length)


def prompt_of(config: Config, text: tokenizer.Tokenizer) -> objectives.Prompt:
    """Returns the ids around what an encoder-decoder reads, and those that it goes on writing after."""
    return OBJECTIVES[config.objective.name].prompt(spec_of(config, text))


def _objective(config: Config, spec: objectives.Spec) -> Objective:
    entry = OBJECTIVES[config.objective.name]
    label = entry.label
    return Objective(
        name=config.objective.name,
        fields=lambda tokens, rng, draw: entry.function(tokens, rng, spec, draw),
        window=objectives.window(entry, spec),
        least=entry.least,
        sizes=lambda n: entry.sizes(n, spec),
        length=spec.length,
        source_length=spec.source_length * (config.model.architecture == 'encoder_decoder'),
        overlap=entry.overlap,
        whole=entry.whole,
        slides=entry.slides(config.objective),
        takes=entry.takes,
        label=label and (lambda text: label(text, config.objective)),
        writes=entry.writes,
    )


def check_mesh(config: Config, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh, after checking that it divides the batches.

    Args:
        config: the config.
        devices: those to lay it over, which need not be here. None: all that are.

    Raises:
        InputError: it does not, or does not fit the devices, or there is no device.
    """
    try:
        devices = devices or jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names what this machine does not have.
        raise InputError(f'JAX finds no device: {" ".join(str(error).split())}') from None
    device_mesh = mesh.make(config.mesh, devices)
    parts = config.optimizer.accumulation
    stages.check(config.model, device_mesh)
    micro = stages.micro_batches(config.model, device_mesh)
    for task, part in configs.tasks(config).items():
        data, place = part.data, f'config.tasks.{task}.data' if task else 'config.data'
        batch_size = f'{place}.batch_size'
        mesh.check_batch(data.batch_size, data.length, parts, device_mesh, batch_size, micro)
        if config.model.architecture == 'encoder_decoder' and (
            (data.source_length or data.length) % device_mesh.shape['sequence']
        ):
            raise InputError(
                f'{place}.source_length = {data.source_length} cannot be divided by mesh.sequence = '
                f'{device_mesh.shape["sequence"]}.'
            )
        rows = evaluation_rows(part)
        mesh.check_batch(rows, data.length, 1, device_mesh, 'config.eval.batch_size', micro)
    return device_mesh


def evaluation_rows(config: Config) -> int:
    """Returns the rows of an evaluation batch: those that go through the model at once in training."""
    return config.eval.batch_size or config.data.batch_size // config.optimizer.accumulation


def build_tokenizer(config: Config, workdir: Path) -> tokenizer.Tokenizer:
    """Returns the workdir's tokenizer, or trains one, which `begin` saves.

    Raises:
        InputError: the workdir's cannot be read, or none can be made of the config's text.
    """
    if workdirs.present(workdir, *tokenizer.FILES, 'checkpoints'):
        return tokenizer.load(workdir)
    if jax.process_count() == 1:
        return train_tokenizer(config)
    if jax.process_index() == 0:
        workdirs.new_tokenizer(workdir, train_tokenizer(config))
    mesh.barrier('tokenizer')  # The others read what the first has made.
    text = tokenizer.load(workdir / workdirs.NEW_TOKENIZER)
    mesh.barrier('tokenizer read')
    return text


def train_tokenizer(config: Config) -> tokenizer.Tokenizer:
    """Returns the tokenizer of a config, from the training texts of all its tasks.

    Raises:
        InputError: none can be made of them.
    """
    sources = {
        (spec, part.data.document, part.data.prefix): source.parse(spec, part.data)
        for part in configs.tasks(config).values()
        for spec in training_sources(part.data).values()
    }

    def documents() -> Iterator[str]:
        for texts in sources.values():
            yield from texts.documents()

    return tokenizer.build(config.tokenizer, documents)


def training_sources(data: DataConfig) -> dict[str, str]:
    """Returns what is trained on: of each corpus its source, or of '' `config.data.train`, if any."""
    named = {name: each['source'] for name, each in sorted(data.corpora.items())}
    return named or ({'': data.train} if data.train else {})


def split_sources(data: DataConfig) -> dict[str, str]:
    """Returns the source of each split that there is: `train`, or `train CORPUS`; `valid` and `test`."""
    found = {f'train {name}'.rstrip(): spec for name, spec in training_sources(data).items()}
    return found | {name: spec for name in SPLITS[1:] if (spec := getattr(data, name))}


def tokenized_splits(
    config: Config, text: tokenizer.Tokenizer, names: tuple[str, ...] = SPLITS
) -> dict[str, features.TokenizedSplit]:
    """Returns the config's splits as tokens, from the cache where they are there.

    Args:
        config: the config.
        text: its tokenizer.
        names: of `SPLITS`. `train` of a config with corpora is a split of each, as `split_sources`.
    """
    code_ids = vocabulary.code_ids(text, config.tokenizer)
    return {
        name: features.tokenize(source.parse(spec, config.data), text, config.data, name, code_ids)
        for name, spec in split_sources(config.data).items()
        if name.split()[0] in names
    }


def blends(
    run: Run, splits: Mapping[str, Mapping[str, features.TokenizedSplit]]
) -> dict[str, blend.Blend]:
    """Returns what each task is trained on.

    Args:
        run: the run.
        splits: by task, and then by name, as `tokenized_splits`.

    Raises:
        InputError: a split is not of what its objective learns from; or as `lm.data.blend.build`.
    """
    found = {}
    for number, (task, part) in enumerate(run.tasks.items()):
        data, objective = part.config.data, part.objective
        with _of_task(task):
            for split in splits[task].values():
                pipeline.check_source(split, objective)
            names = training_sources(data)
            if not names:
                raise InputError("config.data.train = '' and config.data.corpora names none.")
            training = {name: splits[task][f'train {name}'.rstrip()] for name in names}
            augmenters = {
                name: augmenter_of(part, split) for name, split in training.items() if data.augment
            }
            seed, steps = run.config.seed + number, run.config.train.steps
            found[task] = blend.build(training, data, objective, seed, steps, augmenters)
    return found


def mixture(run: Run, trained: Mapping[str, blend.Blend]) -> mixtures.Mixture:
    """Returns the training batches of a run, of which this host makes its rows.

    Args:
        run: the run.
        trained: of its tasks, as `blends`.

    Raises:
        InputError: `config.multitask` cannot be.
    """
    config = run.config
    weights = configs.task_weights(config) or {'': (1.0, 1.0)}
    rows_here = mesh.rows_here(run.mesh)
    datasets = {task: each.dataset(rows_here) for task, each in trained.items()}
    first, last = np.array(list(weights.values())).T
    rows = np.array([each.rows for each in trained.values()], float)
    tasks = mixtures.Tasks(tuple(datasets), first, last, rows)
    steps, ahead = config.train.steps, config.data.prefetch
    return mixtures.Mixture(datasets, tasks, config.multitask, steps, config.seed, ahead)


def augmenter_of(run: Run, split: features.TokenizedSplit) -> augmenter.Augmenter:
    """Returns what `config.data.augment` does to the texts of a training split."""
    ids = vocabulary.build(run.tokenizer, run.config.tokenizer)
    return augmenter.build(run.config.data, run.tokenizer, ids, split)


def shares(run: Run, item: mixtures.Item) -> Rates:
    """Returns what the step weights the tasks of an item by; None where it is of one."""
    if not run.others or run.config.multitask.mode != 'joint':
        return None
    return {task: np.float32(item.rates[task]) for task in item.numbers}

"""Published models in, ours out: folders of Hugging Face's form.

    model = lm.from_pretrained('gpt2')          # a folder: config.json, model.safetensors, tokenizer.json
    lm.pretrained.save(model, 'exported')       # what transformers' from_pretrained reads

`families/` has an entry for each family: how its config and its tensors correspond to ours, for both
directions. There is no class of models for a family, but the one Transformer of this project, configured.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lm import config as configs
from lm import mesh, models, tokenizer, tree
from lm import run as runs
from lm import workdir as workdirs
from lm.checkpoint import Checkpoints
from lm.errors import InputError, lookup
from lm.inference import LanguageModel
from lm.inference import load as load_run
from lm.models import Electra
from lm.pretrained import card as cards
from lm.pretrained import convert, tokenizers
from lm.pretrained.families import FAMILIES
from lm.pretrained.family import Family
from lm.pretrained.folder import DTYPES, Weights, Writer, read_json
from lm.pretrained_tokenizer import HuggingFace, begins
from lm.run import Run
from lm.writer import atomic_write

# Their names of dtypes on the command line.
PRECISIONS = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}

# The folder of a workdir that keeps what an import did not need: config.json and the tokenizer's files.
KEPT = 'pretrained'
GENERATION = 'generation_config.json'
# Sections of the config that are changed by those who mean to use a model as it is.
_OF_USE = {'mesh', 'eval', 'generate', 'checkpoint', 'log'}
_KEPT_FILES = (
    *('config.json', GENERATION, 'tokenizer.json', 'tokenizer_config.json'),
    *('special_tokens_map.json', 'added_tokens.json', 'vocab.json', 'merges.txt', 'vocab.txt'),
    *('tokenizer.model', 'spiece.model', 'chat_template.jinja'),
)


def from_pretrained(
    folder: str | Path, dtype: str = 'float32', overrides: dict[str, Any] | None = None
) -> LanguageModel:
    """Returns the model of a folder of Hugging Face's form, over the devices that there are.

    Parameters are read one tensor at a time, straight to where the mesh has them.

    Args:
        folder: with `config.json`, `model.safetensors` (or an index and its files) and a tokenizer.
        dtype: of the parameters: float32, bfloat16, float16, or `keep` for that of the files.
        overrides: keys of the config, such as `{'mesh.fsdp': -1, 'mesh.data': 1}`.

    Raises:
        InputError: it is no such folder, the family is not known, an option is not supported, a tensor is
            missing, not known or of another shape.
    """
    model, _ = _read(Path(folder), dtype, overrides or {})
    return model


def import_model(
    folder: str | Path,
    workdir: str | Path,
    overrides: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
    dtype: str = 'float32',
) -> Run:
    """Makes a workdir of a folder: config, tokenizer, and a checkpoint of step 0 that holds the parameters.

    Training goes on from there: `lm.train(lm.workdir.read_config(workdir), workdir)`.

    Args:
        folder: as in `from_pretrained`.
        workdir: new, or empty.
        overrides: as in `from_pretrained`. Where there are others than of mesh, eval, generate, checkpoint
            and log, the optimizer is that of the config (`configs/base.py`), and the model is to be trained
            further; else it keeps no state, and cannot be.
        say: prints a line for a person.
        dtype: of the parameters in the checkpoint, as in `from_pretrained`. Who loads it has float32.

    Raises:
        InputError: as in `from_pretrained`, or the workdir holds a run, or a model that is to be trained
            is not to have float32.
    """
    folder, workdir, overrides = Path(folder), Path(workdir), overrides or {}
    trains = bool(_sections(overrides) - _OF_USE)
    if trains and dtype != 'float32':
        raise InputError(
            f"dtype = '{dtype}' is for a model that is used as it is; what is trained further has float32."
        )
    if workdir.is_dir() and any(workdir.iterdir()):
        raise InputError(f"workdir '{workdir}' is not empty: give a new one.")
    model, family = _read(folder, dtype, overrides, say)
    run = model.run
    with jax.set_mesh(run.mesh):
        state = run.steps.begin(model.params)
    workdir.mkdir(parents=True, exist_ok=True)
    workdirs.begin(workdir, run.config, run.tokenizer)
    if jax.process_index() == 0:
        (workdir / KEPT).mkdir(exist_ok=True)
        for path in (folder / name for name in _KEPT_FILES):
            # A link may lead anywhere; those of Hugging Face's cache lead to its blobs.
            if path.is_file() and (not path.is_symlink() or path.resolve().parent.name == 'blobs'):
                shutil.copyfile(path, workdir / KEPT / path.name)
    with Checkpoints(workdir, run.config.checkpoint, say) as checkpoints:
        checkpoints.save(0, state, {'next_index': 0}, None)
    event = f'{workdirs.IMPORTED} from {folder.name} ({family.name})'
    workdirs.add_history(workdir, event, 0, trains=trains)
    return run


def _read(
    folder: Path,
    dtype: str,
    overrides: dict[str, Any],
    say: Callable[[str], None] = print,
) -> tuple[LanguageModel, Family]:
    chosen = None if dtype == 'keep' else DTYPES[lookup(PRECISIONS, dtype, 'dtype')]
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder with a model: there is no such folder.")
    theirs = read_json(folder / 'config.json')
    family = lookup(FAMILIES, str(theirs.get('model_type')), f"'{folder}/config.json': model_type")
    with _mistakes_in(folder), Weights(folder) as weights:
        config = convert.config_of(family, theirs, frozenset(weights))
        text = tokenizer.from_pretrained(folder)
        if config.model.architecture == 'decoder':
            config.generate.bos = begins(folder, text)
        config.tokenizer.begin_sources = bool(text.before)
        try:
            run = _build(config, text, overrides, say)
        except InputError as error:
            if overrides:  # It is not the folder's.
                raise _Changed(str(error)) from None
            raise
        shapes = run.steps.shapes.params
        with jax.set_mesh(run.mesh), _changes_in(overrides):
            params, fresh = convert.load(family, run.config.model, shapes, weights, chosen)
            if fresh:
                say(f'Not in {folder}, and so at their initial values: {", ".join(fresh)}.')
                params = _filled(params, run, fresh)
    return LanguageModel(run, params), family


@contextlib.contextmanager
def _mistakes_in(folder: Path) -> Iterator[None]:
    """Says in which folder a mistake is."""
    try:
        yield
    except _Changed:
        raise
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise InputError(f"'{folder}': {error}") from None


class _Changed(InputError):
    """A mistake in what was changed of a folder's config."""


@contextlib.contextmanager
def _changes_in(overrides: dict[str, Any]) -> Iterator[None]:
    """Says which change may be why a tensor does not fit."""
    try:
        yield
    except InputError as error:
        keys = [key for key in overrides if key.startswith('model.') or key == 'data.length']
        if not keys:
            raise
        changed = ', '.join(f'config.{key} = {overrides[key]!r}' for key in keys)
        raise InputError(f'{error} {changed} was changed: leave it as the folder has it.') from None


def _sections(overrides: dict[str, Any]) -> set[str]:
    return {key.split('.')[0] for key in overrides}


def _build(
    config: ConfigDict, text: Any, overrides: dict[str, Any], say: Callable[[str], None]
) -> Run:
    if isinstance(text, HuggingFace):
        text = text.within(config.model.vocab_size)
    config.tokenizer.mask = text.specials.mask >= 0
    changed = _sections(overrides)
    if not changed - _OF_USE:  # Nothing but the parameters is kept.
        config.optimizer.name, config.optimizer.b1 = 'sgd', 0.0
    configs.put(config, overrides)
    parsed = configs.parse(config)
    try:
        device_mesh = runs.check_mesh(parsed)
    except InputError as error:
        if changed - {'generate', 'checkpoint', 'log'}:
            raise
        say(f'On one device only: {error}')
        device_mesh = mesh.one_device()
    return runs.build(parsed, text, device_mesh)


def _filled(params: Any, run: Run, absent: list[str]) -> Any:
    """Returns the parameters, with initial ones at the paths of those that are absent."""

    def initial() -> dict[str, jax.Array]:
        found = tree.by_path(run.steps.initial().params)
        return {path: found[path] for path in absent}

    made = jax.jit(initial)()
    return tree.map_with_path(
        lambda path, _, leaf: made.get(path, leaf), run.steps.shapes.params, params
    )


def save(
    model: LanguageModel,
    folder: str | Path,
    family: str = '',
    dtype: str = 'float32',
    workdir: Path | None = None,
    checkpoint: str = '',
) -> Family:
    """Writes a model as `transformers` reads it, with its config, tokenizer and model card.

    Args:
        model: any that a family has the form of.
        folder: new, or empty.
        family: its `model_type`; '' is the first that fits.
        dtype: of the tensors: float32, bfloat16 or float16.
        workdir: of the run that it is of: what was measured there stands in the model card, and files
            of the model that it was imported from are kept.
        checkpoint: the name of the one that it is of.

    Returns:
        The family.

    Raises:
        InputError: no family fits, and why the nearest does not; or the folder is not empty.
    """
    precision, model = DTYPES[lookup(PRECISIONS, dtype, 'dtype')], _wanted(model)
    entry, written, kept = _described(model, family, dtype, _kept(workdir))
    config = model.run.config
    shapes, arrays = convert.unload(entry, config.model, model.params, precision)
    with _whole(Path(folder)) as part:
        _write_json(part / 'config.json', written)
        if kept:
            for path in kept.iterdir():
                if path.name != 'config.json':
                    shutil.copyfile(path, part / path.name)
        else:
            tokenizers.save_pretrained(model.run.tokenizer, config, part)
        if config.model.architecture != 'encoder' and not (part / GENERATION).exists():
            ids = ('bos_token_id', 'decoder_start_token_id', 'eos_token_id', 'pad_token_id')
            _write_json(part / GENERATION, {key: written[key] for key in ids if key in written})
        Writer(part, shapes).write(arrays)
        about = cards.card(
            Path(folder).name, written, model.run.steps.parameters, model.step, checkpoint, workdir
        )
        atomic_write(part / 'README.md', about)
    return entry


def _wanted(model: LanguageModel) -> LanguageModel:
    """Returns what an export is of: of ELECTRA's two models the discriminator, else the model itself."""
    run = model.run
    if not isinstance(run.steps.model, Electra):
        return model
    objective = dataclasses.replace(run.config.objective, generator_size=0.0)
    config = dataclasses.replace(run.config, objective=objective)
    alone = runs.build(config, run.tokenizer, run.mesh)
    return LanguageModel(alone, models.discriminator(model.params), model.step)


def _described(
    model: LanguageModel, family: str, dtype: str, kept: Path | None
) -> tuple[Family, dict[str, Any], Path | None]:
    """Returns the family of a model, its config.json, and the folder it was imported from, if of it.

    Args:
        model: any.
        family: '' is the first that fits.
        dtype: of the tensors.
        kept: the folder of what it was imported with.
    """
    config = model.run.config
    original = read_json(kept / 'config.json') if kept else {}
    family = family or original.get('model_type', '')
    entry, theirs = _fitting(family, config, model.params)
    if original.get('model_type') != entry.name:
        original, kept = {}, None
    original = {k: v for k, v in original.items() if k not in ('torch_dtype', 'auto_map')}
    paths = tree.paths(model.params)
    names = [
        name for name, start in entry.classes.items() if any(p.startswith(start) for p in paths)
    ]
    if not names:
        raise InputError(
            f"the family '{entry.name}' is exported as {' or '.join(entry.classes)}, and this model has "
            'none of their heads.'
        )
    specials = model.run.tokenizer.specials
    decodes = config.model.architecture == 'encoder_decoder'
    begins = 'decoder_start_token_id' if decodes else 'bos_token_id'
    ids = {begins: specials.bos, 'eos_token_id': specials.eos, 'pad_token_id': specials.pad}
    written = {'architectures': names[:1], 'model_type': entry.name, 'dtype': dtype}
    return entry, ids | original | theirs | written, kept


@contextlib.contextmanager
def _whole(path: Path, folder: bool = True) -> Iterator[Path]:
    """Gives a folder, or the name of a file, to write to; it has its own name when all of it is there.

    Raises:
        InputError: there is such a file, or the folder is not empty.
    """
    if path.exists() and not path.is_dir():
        what = 'is a file: give a new folder' if folder else 'exists: give a new file'
        raise InputError(f"'{path}' {what}.")
    if path.is_dir() and not folder:
        raise InputError(f"'{path}' is a folder: give a new file.")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"'{path}' is not empty: give a new folder.")
    part = path.with_name(f'.{path.name}.part')
    _remove(part)
    try:
        (part if folder else part.parent).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"'{path.parent}' is a file, not a folder.") from None
    try:
        yield part
    except BaseException:
        _remove(part)
        raise
    part.rename(path)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def save_gguf(
    model: LanguageModel,
    file: str | Path,
    family: str = '',
    dtype: str = 'float32',
    workdir: Path | None = None,
) -> Family:
    """Writes a model as llama.cpp reads it; the arguments are those of `save`, but for the new file.

    Raises:
        InputError: no family fits, or llama.cpp has not what the model is made of; or the file exists.
    """
    from lm.pretrained import gguf  # llama.cpp's package is an extra.

    precision = DTYPES[lookup(PRECISIONS, dtype, 'dtype')]
    entry, theirs, _ = _described(model, family, dtype, _kept(workdir))
    config = model.run.config
    shapes, arrays = convert.unload(entry, config.model, model.params, precision)
    with _whole(Path(file), folder=False) as part:
        gguf.write(part, entry.name, theirs, shapes, arrays, model.run.tokenizer, config)
    return entry


def save_stablehlo(
    model: LanguageModel,
    folder: str | Path,
    dtype: str = 'float32',
    weights: str = 'outside',
    shape: Sequence[int] = (),
) -> None:
    """Writes a model as StableHLO, for Python and C++ without this project; see `lm.pretrained.stablehlo`.

    Args:
        model: a decoder, an encoder or an encoder-decoder.
        folder: new, or empty.
        dtype: of the weights: float32, bfloat16 or float16.
        weights: `outside` or `inside` of the programs.
        shape: B and T (and S) of the program with one shape; () is one row as long as can be.

    Raises:
        InputError: the model has no such form, or the folder is not empty.
    """
    from lm.pretrained import stablehlo

    precision, model = DTYPES[lookup(PRECISIONS, dtype, 'dtype')], _wanted(model)
    lookup(dict.fromkeys(stablehlo.WEIGHTS), weights, 'weights')
    with _whole(Path(folder)) as part:
        stablehlo.write(model, part, precision, Path(folder).name, weights, shape)
        tokenizers.save_pretrained(model.run.tokenizer, model.run.config, part)


def _fitting(name: str, config: configs.Config, params: Any) -> tuple[Family, dict[str, Any]]:
    """Returns the family of a model, and its config there."""
    rows = params['embed']['embedding'].shape[0]
    model = dataclasses.replace(config.model, vocab_size=rows, vocab_multiple=1)
    config = dataclasses.replace(config, model=model)
    chosen = [lookup(FAMILIES, name, '--family')] if name else FAMILIES.values()
    reasons = []
    for family in chosen:
        try:
            theirs = convert.config_for(family, config)
            convert.pieces(family, model, params)
        except convert.Unfit as error:
            reasons.append(error)
        else:
            return family, theirs
    nearest = min(reasons, key=lambda error: error.distance)
    if name:
        raise nearest
    raise InputError(f'this model has the form of no family that is known; the nearest: {nearest}')


def _write_json(path: Path, value: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def export(
    workdir: str | Path,
    folder: str | Path,
    family: str = '',
    dtype: str = 'float32',
    checkpoint: str = '',
) -> Family:
    """Writes the model of a workdir; as `save`, with the checkpoint that `lm.load` takes."""
    model = load_run(workdir, checkpoint)
    return save(model, folder, family, dtype, Path(workdir), str(checkpoint))


def _kept(workdir: Path | None) -> Path | None:
    """Returns the folder of what a run was imported with, where it was."""
    kept = workdir / KEPT if workdir else None
    return kept if kept and kept.is_dir() else None

"""What a step is compiled for where no text is read: a vocabulary by its size, a batch by its shapes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm import mesh, tokenizer
from lm.config import Config
from lm.data import pack
from lm.errors import InputError
from lm.run import Run

_FEW = 8  # Tokens of a text whose row is filled up anyway.


class Unseen(tokenizer.Tokenizer):
    """A tokenizer of which only the size is known: it knows no text."""

    def __init__(self, kind: str, size: int):
        self.kind, self.vocab_size, self.fingerprint = kind, size, ''

    def pieces(self) -> list[bytes]:
        return [b'a'] * int(self.is_text.sum())

    def encode_batch(self, texts: Any) -> tuple[np.ndarray, np.ndarray]:
        sizes = tokenizer.lengths_of(texts)
        return np.full(sizes.sum(), tokenizer.FIRST, np.int32), sizes


def vocabulary(config: Config, workdir: Path | None = None) -> tokenizer.Tokenizer:
    """Returns the tokenizer of a workdir, or what is known of a config's before it was trained.

    Raises:
        InputError: its size is that of a text.
    """
    if workdir and any((workdir / file).exists() for file in tokenizer.FILES):
        return tokenizer.load(workdir)
    spec = config.tokenizer
    if spec.path or spec.kind not in (*tokenizer.WITH_SYMBOLS, tokenizer.Chars.kind):
        return tokenizer.build(spec, lambda: ())
    if spec.kind == tokenizer.Chars.kind:
        if not config.model.vocab_size:
            raise InputError(
                "config.tokenizer.kind = 'chars' has as many ids as its text has characters, and a plan "
                'reads no text: set config.model.vocab_size, or give the --workdir of a run.'
            )
        return Unseen(spec.kind, config.model.vocab_size)
    return Unseen(spec.kind, spec.vocab_size)


def batch(run: Run) -> Any:
    """Returns the shapes of a training batch with their shardings, `[B, T]`, of the batch contract.

    Of several tasks learnt jointly it is of all; of those that alternate, of the one with most tokens.
    """
    if not run.others:
        return _fields(run, run.mesh)
    parts = {task: _fields(part, run.mesh) for task, part in run.tasks.items()}
    if run.config.multitask.mode == 'joint':
        return parts
    most = max(parts, key=lambda task: sum(field.size for field in parts[task].values()))
    return {most: parts[most]}


def rates(run: Run) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Returns the shapes of the rates of tasks; None where there are none."""
    if not run.others or run.config.multitask.mode != 'joint':
        return None
    return {task: jax.ShapeDtypeStruct((), jnp.float32) for task in run.tasks}


def tokens(fields: Any) -> int:
    """Returns the tokens of targets in a batch of `[B, T]`, padding too."""
    if 'inputs' not in fields:
        return sum(map(tokens, fields.values()))
    return fields['inputs'].size


def _fields(run: Run, device_mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Makes one row of made-up tokens, which has the fields and types of all."""
    objective, rng = run.objective, np.random.default_rng(0)
    ids = run.tokenizer
    text = np.flatnonzero(ids.is_text)

    def draw(rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.choice(text, size).astype(np.int32)

    if 'window' in objective.takes:
        given: Any = draw(rng, objective.window)
        given[0], given[-1] = ids.specials.bos, ids.specials.eos
    else:
        sides = 2 if 'pair' in objective.takes else 1
        given = (draw(rng, _FEW),) * sides
        if objective.label:
            classes = run.config.objective.classes
            named = run.config.objective.name == 'classification'
            given = given, objective.label(classes[0] if named else '0')
    row = objective.fields(given, rng, draw)
    row = pack.assemble([row], objective.length, objective.source_length)
    rows, sharding = run.config.data.batch_size, mesh.batch_sharding(device_mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, *value.shape), value.dtype, sharding=sharding)
        for name, value in row.items()
    }

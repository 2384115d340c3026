"""What a run makes of a corpus, as pairs to train on.

Back-translation (Sennrich et al. 2016, https://arxiv.org/abs/1511.06709): a model of the other direction
translates text of the target language, and what it makes is the source of pairs whose targets are real.

Round trips (Yu et al. 2018, https://arxiv.org/abs/1804.09541, section 3): a second run translates the
translation back, and what comes out says the same in other words, more or less.
"""

import dataclasses
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from lm import config as configs
from lm import mesh, translation
from lm.config import EvalConfig
from lm.data import source
from lm.errors import InputError, lookup
from lm.inference import LanguageModel, load
from lm.words_tokenizer import SPACED
from lm.writer import atomic_write

# Texts that are translated together, and kept when the next ones are interrupted.
_CHUNK = 1024
# Of `noised`: the part of words that is dropped, and blanked; the places that a word may move.
_DROPPED, _BLANKED, _FARTHEST = 0.1, 0.1, 3
BLANK = '<BLANK>'


class Method(NamedTuple):
    """How a text is translated: the arguments of `LanguageModel.generate`, and whether noise follows."""

    how: Callable[[EvalConfig], dict[str, Any]]
    noise: bool = False


# As compared by Edunov et al. 2018 (https://arxiv.org/abs/1808.09381): with enough real pairs, samples and
# noise teach more than beams do.
METHODS = {
    'beam': Method(translation.search),
    'noised': Method(translation.search, noise=True),
    'sample': Method(lambda options: {'temperature': 1.0}),
    'top10': Method(lambda options: {'temperature': 1.0, 'top_k': 10}),
}


def write(
    workdir: str | Path,
    spec: str,
    output: str | Path,
    method: str = 'beam',
    swap: bool = False,
    tag: str = '',
    checkpoint: str | int = '',
    config: ConfigDict | None = None,
    task: str = '',
    through: str | Path = '',
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Translates each text of a source, and writes a file of two columns separated by a tab.

    Line i is of text i, and empty where no translation came out: `tsv:OUTPUT` skips it. While it is made
    the file is called `OUTPUT.partial`; the same call goes on where an earlier one was interrupted, and the
    end is the same. `OUTPUT.json` says how it was made.

    Args:
        workdir: of a run that learned pairs.
        spec: a source as in `configs/base.py`, a text a line; of pairs, the first sides are read.
        output: the file, named `.tsv`.
        method: an entry of `METHODS`.
        swap: write the translation before the text: pairs to train the other direction on.
        tag: is written before the first column, so that a model can tell such pairs from real ones
            (Caswell et al. 2019, https://arxiv.org/abs/1906.06442). It is one token where
            `config.tokenizer.symbols` has it.
        checkpoint: as `lm.load` takes it.
        config: where given, its `eval` section and its seed are used instead of the run's.
        task: of a run of several tasks that write, the one to do. Its `data.prefix` is read with each text,
            and not written.
        through: workdir of a second run, which translates the translations back: then the two columns are
            a text and what is left of it after the round trip. It takes the checkpoint of its own
            `config.eval.checkpoint`, translates by the same method, and noise comes last.
        say: prints a line for a person.

    Returns:
        The number of texts, and of those without a translation.

    Raises:
        InputError: there is no such run, checkpoint or source, the run did not learn pairs, the file is
            there, or what an interrupted call left of it was made otherwise.
    """
    output = Path(output)
    chosen = lookup(METHODS, method, '--method')
    if output.suffix != '.tsv':
        raise InputError(f"--output='{output}' is a file of columns between tabs: name it .tsv.")
    if output.exists():
        raise InputError(f"'{output}' exists already: remove it, or give another --output.")
    if re.search(r'[\t\r\n]', tag):
        raise InputError(
            f'--tag={tag!r} holds a tab or a newline, which separate columns and lines.'
        )
    new = None if config is None else configs.parse(config)
    model = _of_task(load(workdir, str(checkpoint) or (new.eval.checkpoint if new else '')), task)
    used = model.run.config
    if new:
        used = dataclasses.replace(used, eval=new.eval, seed=new.seed)
    back = _of_task(load(through, ''), '') if through else None
    how = chosen.how(used.eval)
    texts = source.parse(spec, dataclasses.replace(used.data, document='line', prefix=''))
    made_by = {
        'run': str(workdir),
        'step': model.step,
        'checkpoint': str(checkpoint) or used.eval.checkpoint,
        'task': task,
        'source': spec,
        'content': texts.fingerprint(),
        'method': method,
        **how,
        'swap': swap,
        'tag': tag,
        'seed': used.seed,
    }
    if back:
        made_by |= {'through': str(through), 'through_step': back.step}
    partial = output.with_name(f'{output.name}.partial')
    done = _begin(partial, made_by, output)
    total = sum(1 for _ in _singles(texts))
    if done:
        say(f'Going on from text {done:,} of {total:,}.')
    left = itertools.islice(_singles(texts), done, None)
    with _progress(total, done) as progress:
        while chunk := list(itertools.islice(left, _CHUNK)):
            label = f'{done:,} to {done + len(chunk):,} of {total:,}'
            made = _translated(model, chunk, how, label, (used.seed, done))
            if back:
                again = _translated(back, made, how, f'{label}, back', (used.seed, done, 1))
                # Of nothing a model would write something.
                made = [b if a.strip() else '' for a, b in zip(made, again, strict=True)]
            if chosen.noise:
                seeds = ((used.seed, done + i) for i in range(len(chunk)))
                made = [
                    noised(text, np.random.default_rng(seed))
                    for text, seed in zip(made, seeds, strict=True)
                ]
            lines = map(_line, chunk, made, itertools.repeat(swap), itertools.repeat(tag))
            if jax.process_index() == 0:
                _append(partial, ''.join(lines))
            done += len(chunk)
            progress.update(len(chunk))
    return _finish(partial, output)


def _translated(
    model: LanguageModel, texts: list[str], how: dict[str, Any], label: str, seed: Sequence[int]
) -> list[str]:
    given = [model.run.config.data.prefix + text for text in texts]
    return translation.translate(model, given, how, label, seed)


def noised(text: str, rng: np.random.Generator) -> str:
    """Returns a text with one word in ten dropped, one in ten blanked, and words up to 3 places away.

    As Edunov et al. 2018 do it, after Lample et al. 2018 (https://arxiv.org/abs/1711.00043). A word is what
    stands between white space, and each Chinese or Japanese character. At least one is left.

    >>> noised('eine Frau sitzt auf einer Bank im Park', np.random.default_rng(0))
    'Frau sitzt eine einer im Park'
    """
    words = SPACED.findall(text)
    gaps = SPACED.split(text)  # One more.
    count = len(words)
    if not count:
        return text
    # Two words change their order only where they are less than `_FARTHEST + 1` apart.
    order = np.argsort(np.arange(count) + rng.uniform(0, _FARTHEST + 1, count), kind='stable')
    kept = rng.random(count) >= _DROPPED
    kept[int(rng.integers(count))] |= not kept.any()
    blank = rng.random(count) < _BLANKED
    return ''.join(
        gaps[place] + (BLANK if blank[i] else words[i]) for place, i in enumerate(order) if kept[i]
    ).strip()


def _of_task(model: LanguageModel, task: str) -> LanguageModel:
    """Returns the model as its run does a task; '' is the only one that writes."""
    writers = {name: run for name, run in model.run.tasks.items() if run.objective.writes}
    if not writers:
        name = model.run.objective.name
        raise InputError(
            f"--mode=translate needs a run of config.objective.name = 'seq2seq', not '{name}'."
        )
    only = next(iter(writers)) if len(writers) == 1 else ''
    return LanguageModel(lookup(writers, task or only, '--task'), model.params, model.step)


def _singles(texts: source.Source) -> Iterator[str]:
    """Yields each text as one line without tabs."""
    documents = itertools.islice(texts.documents(), 0, None, 1 + texts.paired)
    return (re.sub(r'[\t\r\n]+', ' ', text) for text in documents)


def _line(text: str, made: str, swap: bool, tag: str) -> str:
    made = re.sub(r'[\t\r\n]+', ' ', made)
    if not made.strip() or not text.strip():
        return '\n'
    first, second = (made, text) if swap else (text, made)
    return f'{tag}{first}\t{second}\n'


def _begin(partial: Path, made_by: dict[str, Any], output: Path) -> int:
    """Returns how many texts an interrupted call left whole, after dropping what is not."""
    record = output.with_name(f'{output.name}.json')
    if partial.exists():
        earlier = json.loads(record.read_text()) if record.exists() else {}
        changed = configs.differences(earlier, made_by)
        if changed:
            text = ', '.join(
                f'{key} ({old!r} there, {now!r} now)' for key, (old, now) in changed.items()
            )
            raise InputError(
                f"'{partial}' was begun otherwise: {text}. Remove it, or give another --output."
            )
        lines = partial.read_bytes().split(b'\n')
        done = (len(lines) - 1) // _CHUNK * _CHUNK
        if jax.process_index() == 0:
            os.truncate(partial, sum(len(line) + 1 for line in lines[:done]))
        return done
    if jax.process_index() == 0:
        atomic_write(record, json.dumps(made_by, indent=1) + '\n')
    return 0


def _append(path: Path, text: str) -> None:
    with open(path, 'a', encoding='utf-8', newline='\n') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _finish(partial: Path, output: Path) -> tuple[int, int]:
    if jax.process_index() == 0:
        partial.rename(output)
    mesh.barrier('translated')
    lines = output.read_bytes().split(b'\n')[:-1]
    return len(lines), sum(not line for line in lines)


def _progress(total: int, done: int) -> tqdm.tqdm:
    """Returns a bar of texts; in a log file it says something only twice a minute."""
    live = sys.stderr.isatty()
    return tqdm.tqdm(
        desc='translate',
        total=total,
        initial=done,
        unit=' texts',
        mininterval=0.1 if live else 30,
        dynamic_ncols=live,
    )

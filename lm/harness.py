"""EleutherAI's lm-evaluation-harness on models of this project (`pip install 'lm[eval]'`).

    python -m lm.harness --model lm --model_args workdir=runs/gpt2 --tasks hellaswag,blimp

is the harness's own command, `lm_eval`, with the model `lm` added; all its options hold. `model_args`
are those of `Model`. `python -m lm.main --mode=evaluate --tasks=...` does the same, and keeps the result
beside the run's other evaluations.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import decode, likelihood
from lm.errors import InputError, nearest
from lm.inference import LanguageModel, load
from lm.models import Decoder, EncoderDecoder
from lm.run import prompt_of
from lm.writer import plain

os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
try:
    import lm_eval
    from lm_eval import tasks as harness_tasks
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models import utils as harness_models
except ImportError as error:
    if error.name not in ('lm_eval', 'datasets', 'evaluate'):
        raise
    raise InputError(
        "--tasks needs EleutherAI's harness: pip install 'lm[eval]' (or 'lm_eval')."
    ) from None

_ROWS = 16  # Of texts that are written at once, where no batch size is given.


@register_model('lm')
class Model(TemplateLM):
    """A trained model as the harness asks it.

    As with the harness's `hf`, a context has what the model's tokenizer puts before a text (a BOS, unless
    the tokenizer is one such as GPT-2's), what is too long loses its beginning, and windows of rolling
    likelihoods are disjoint. An encoder-decoder reads the context and writes the continuation. Other
    than there, a BOS is never among the tokens that are scored.
    """

    def __init__(
        self,
        workdir: str = '',
        checkpoint: str | int = '',
        task: str = '',
        model: LanguageModel | None = None,
        batch_size: int | str | None = None,
        **unknown: Any,
    ) -> None:
        """Loads it.

        Args:
            workdir: of a run.
            checkpoint: as `lm.load` takes it.
            task: of a run of several tasks, which.
            model: instead of a workdir.
            batch_size: rows; None and `auto` are as many as make 16,384 tokens on each device.
            unknown: the harness's `device` and `max_batch_size` are ignored.

        Raises:
            InputError: there is no such run, checkpoint, task or argument, or the model is an encoder.
        """
        super().__init__()
        self.tokenizer = None  # The harness reads templates of chats from it.
        for name in set(unknown) - {'device', 'max_batch_size'}:
            known = ('workdir', 'checkpoint', 'task', 'batch_size')
            raise InputError(f'--model_args: {name} is not one.{nearest(name, known)}')
        if model is None:
            if not workdir:
                raise InputError('--model lm needs --model_args workdir=FOLDER.')
            model = load(workdir, checkpoint)
        self.of = model.of(task) if task else model
        run = self.of.run
        if run.others and not task:
            raise InputError(
                f'of a run of several tasks one is evaluated: task={"|".join(run.others)}.'
            )
        if not isinstance(run.steps.model, Decoder | EncoderDecoder):
            raise InputError(
                f"config.model.architecture = '{run.config.model.architecture}' fills in and labels; the "
                "harness's tasks are for models that write."
            )
        given = str(batch_size or 'auto')
        if not given.startswith('auto') and not (given.isdigit() and int(given)):
            raise InputError(f"--batch_size = '{batch_size}' is no number, nor auto.")
        self._rows = 0 if given.startswith('auto') else int(given)
        self._draws = 0  # Batches that were drawn.

    @property
    def backend(self) -> str:
        """`causal` or `seq2seq`."""
        return 'seq2seq' if isinstance(self.of.run.steps.model, EncoderDecoder) else 'causal'

    @property
    def batch_size(self) -> int | str:
        """Rows of a batch."""
        return self._rows or 'auto'

    @property
    def max_length(self) -> int:
        """Tokens of the model's context."""
        return self.of.run.steps.model.max_length

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.of.run.tokenizer.specials.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands for no context: BOS of decoders, EOS of what an encoder reads."""
        specials = self.of.run.tokenizer.specials
        return specials.bos if self.backend == 'causal' else specials.eos

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart in the harness's cache of requests."""
        return f'lm-{self.of.run.tokenizer.fingerprint}'

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the harness writes beside results."""
        return {
            'model_num_parameters': self.of.run.steps.parameters,
            'model_step': self.of.step,
            'tokenizer': self.of.run.tokenizer.fingerprint,
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns token ids, with the special ones that the model has around a text."""
        text = self.of.run.tokenizer
        if add_special_tokens is False:
            return text.encode(string).tolist()
        return self.of.given(string)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """There is none."""
        raise InputError('--apply_chat_template: models of this project have no template of chats.')

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.backend == 'causal' and not context.strip():
            # Nothing is left of it where its spaces go to the continuation.
            return [self.prefix_token_id], self.tok_encode(context + continuation, False)
        return super()._encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        found = likelihood.continuations(
            self.of.run,
            self.of.params,
            [(context, continuation) for _, context, continuation in requests],
            self._rows,
            'likelihoods',
        )
        for (text, *_), answer in zip(requests, found, strict=True):
            if text is not None:
                self.cache_hook.add_partial('loglikelihood', text, tuple(answer))
        return [tuple(answer) for answer in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns log p of whole texts, nats, each from a BOS, in disjoint windows of the context."""
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            parts = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(part)) for part in parts]
            windows += parts
            counts.append(len(parts))
        answers = iter(self._loglikelihood_tokens(windows))
        found = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, answer)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns what is written after each context, up to the first of its ends."""
        found: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        from tqdm.auto import tqdm

        with tqdm(total=len(requests), desc='texts', disable=disable_tqdm or None) as bar:
            for options, places in groups.items():
                keys = harness_models.normalize_gen_kwargs(json.loads(options))
                ends = harness_models.handle_stop_sequences(keys.pop('until'), eos=None)
                self._shorten(keys)
                ids = {
                    place: self._context(requests[place].args[0], keys['max_gen_toks'])
                    for place in places
                }
                places = sorted(places, key=lambda place: -len(ids[place]))
                rows = self._rows or _ROWS
                for start in range(0, len(places), rows):
                    part = places[start : start + rows]
                    texts = self._write([ids[place] for place in part], rows, keys, ends)
                    for place, text in zip(part, texts, strict=True):
                        found[place] = text
                        self.cache_hook.add_partial('generate_until', requests[place].args, text)
                    bar.update(len(part))
        return [found[place] for place in range(len(requests))]

    def _shorten(self, keys: dict[str, Any]) -> None:
        """Leaves at least half of a decoder's context to the question, and says so."""
        most = self.max_length // 2
        if self.backend == 'causal' and keys['max_gen_toks'] > most:
            logging.getLogger(__name__).warning(
                'Texts have at most %d tokens, not %d: the model has a context of %d.',
                *(most, keys['max_gen_toks'], self.max_length),
            )
            keys['max_gen_toks'] = most

    def _context(self, text: str, new: int) -> list[int]:
        """Returns the ids of a context, the last ones that leave room for new tokens."""
        model = self.of.run.steps.model
        ids = self.tok_encode(text) or [self.prefix_token_id]
        if self.backend == 'seq2seq':
            return ids[-model.max_source :]
        return ids[new - model.max_length :]

    def _write(
        self, contexts: list[list[int]], rows: int, keys: dict[str, Any], ends: list[str]
    ) -> list[str]:
        run = self.of.run
        model, text = run.steps.model, run.tokenizer
        # The last batch is as large as the others, so that nothing is compiled again.
        count, contexts = len(contexts), contexts + contexts[-1:] * (rows - len(contexts))
        sources = None
        self._draws += 1
        if self.backend == 'seq2seq':
            sources = decode.padded(contexts, model.max_source)
            contexts = [list(prompt_of(run.config, text).begun)] * rows
        draws = keys['do_sample']
        sampling = decode.Sampling(
            float(keys.get('temperature', 1.0)) if draws else 0.0,
            int(keys.get('top_k', 0)),
            float(keys.get('top_p', 1.0)),
            float(keys.get('min_p', 0.0)),
        )
        with jax.set_mesh(run.mesh):
            tokens, counts = decode.generate(
                model,
                self.of.params,
                *decode.padded(contexts, model.max_length),
                jax.random.fold_in(jax.random.key(0), self._draws),
                max_tokens=keys['max_gen_toks'],
                sampling=sampling,
                stop=(text.specials.eos, *self._ends_with(tuple(ends))),
                sources=sources,
            )
        texts = [text.decode(row[:size]) for row, size in zip(tokens, counts, strict=True)]
        return [
            harness_models.postprocess_generated_text(made, ends, None) for made in texts[:count]
        ]

    @functools.lru_cache(maxsize=8)  # noqa: B019 (a model lives as long as the program)
    def _ends_with(self, ends: tuple[str, ...]) -> tuple[int, ...]:
        """Returns the ids whose text begins with an end: after them nothing is kept."""
        text = self.of.run.tokenizer
        starts = tuple(end.encode() for end in ends if end)
        if not starts:
            return ()
        ids = np.flatnonzero(text.is_text).tolist()
        return tuple(
            index
            for index, piece in zip(ids, text.pieces(), strict=True)
            if piece.startswith(starts)
        )


@dataclasses.dataclass(frozen=True)
class Questions:
    """What a model is asked.

    Attributes:
        manager: the harness's tasks.
        asked: what was asked for: names of tasks, groups and tags.
        names: of the tasks that are meant.
        shots: solved examples before each question; None is what the task says.
        limit: at most so many questions of each task.
    """

    manager: harness_tasks.TaskManager
    asked: tuple[str, ...]
    names: tuple[str, ...]
    shots: int | None = None
    limit: int | None = None


def find(
    tasks: Sequence[str],
    shots: int | None = None,
    limit: int | None = None,
    folder: str | Path = '',
) -> Questions:
    """Returns the questions of tasks; no data are read yet.

    Args:
        tasks: names of tasks, groups or tags of the harness.
        shots: of `Questions`.
        limit: of `Questions`.
        folder: of YAML files with more tasks, which come before those of the harness of the same names.

    Raises:
        InputError: there is no such task or folder, or a number makes no sense.
    """
    if limit is not None and limit < 1:
        raise InputError(f'--limit = {limit}: at least one question is asked.')
    if shots is not None and shots < 0:
        raise InputError(f'--shots = {shots}: there are no fewer examples than none.')
    if folder and not Path(folder).is_dir():
        raise InputError(f"--task_files = '{folder}' is no folder.")
    with _quiet():
        manager = harness_tasks.TaskManager(include_path=str(folder) if folder else None)
        names: dict[str, None] = {}
        for name in tasks:
            if not (matches := manager.match_tasks([name])):
                raise InputError(
                    f"--tasks: '{name}' is no task of lm_eval {lm_eval.__version__}"
                    f'{f" or of {folder}" if folder else ""}.{nearest(name, manager.all_tasks)}'
                )
            names |= dict.fromkeys(matches)
    return Questions(manager, tuple(tasks), tuple(names), shots, limit)


def evaluate(
    model: LanguageModel, questions: Questions, task: str = ''
) -> tuple[dict[str, Any], str]:
    """Returns the results of tasks of the harness, and its table of them.

    Args:
        model: a decoder or an encoder-decoder.
        questions: of `find`.
        task: of a run of several tasks, which.

    Returns:
        `{'harness': its version, 'limit': limit, 'benchmarks': {name: {'version', 'shots', 'questions',
        metric: value, metric_stderr: its standard error}}}`, groups among them.

    Raises:
        InputError: the data of a task cannot be had, or the model is none that writes.
    """
    asked = Model(model=model, task=task)
    with _quiet():
        try:
            questions.manager.load(list(questions.names))
        # Whatever `datasets` raises for what it cannot have, and a task's own code.
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
            reason = ' '.join(str(error).split())[:300]
            raise InputError(
                f'--tasks={",".join(questions.asked)} cannot be loaded: {reason} '
                '(--task_files=FOLDER names tasks of your own.)'
            ) from None
        found = lm_eval.simple_evaluate(
            model=asked,
            tasks=list(questions.names),
            num_fewshot=questions.shots,
            limit=questions.limit,
            task_manager=questions.manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    every = {**found['results'], **found.get('groups', {})}
    results = {}
    for name in every:
        values = {**found['results'].get(name, {}), **found.get('groups', {}).get(name, {})}
        asked_of = found.get('n-samples', {}).get(name, {}).get('effective')
        results[name] = {
            'version': found['versions'].get(name),
            'shots': found['n-shot'].get(name),
            'questions': asked_of,
            **{
                key.removesuffix(',none'): value
                for key, value in values.items()
                if isinstance(value, int | float) and ',' in key
            },
        }
    table = utils.make_table(found)
    if found.get('groups'):
        table += '\n' + utils.make_table(found, 'groups')
    told = {'harness': lm_eval.__version__, 'limit': questions.limit, 'benchmarks': results}
    return plain(told), table


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves only warnings of what the harness says."""
    logger = logging.getLogger('lm_eval')
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def main() -> None:
    """The harness's own command; bad input of ours is one line and exit code 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()

"""A trained model in three lines: load, generate, measure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import beam, decode, mesh, vocabulary
from lm import codes as control
from lm import config as configs
from lm import run as runs
from lm import workdir as workdirs
from lm.checkpoint import Checkpoints, averaged
from lm.config import GenerateConfig
from lm.data import features
from lm.errors import InputError, lookup
from lm.models import Decoder, Electra, Encoder, EncoderDecoder
from lm.objectives import OBJECTIVES
from lm.perplexity import perplexity
from lm.run import Run
from lm.step import evaluated_params
from lm.tokenizer import Tokenizer


class LanguageModel:
    """A model with its tokenizer.

    Attributes:
        run: config, tokenizer and compiled functions.
        params: the parameters (the moving average, where there is one).
        step: the training step that they are of, or None.
    """

    def __init__(self, run: Run, params: Any, step: int | None = None) -> None:
        self.run, self.params, self.step = run, params, step
        self._streamer = _Streamer(run.tokenizer)

    def of(self, task: str) -> 'LanguageModel':
        """Returns the model as one of the tasks of its run has it.

        Raises:
            InputError: there is no such task; the nearest is named.
        """
        if not self.run.others:
            raise InputError(f"model.of('{task}'): the run has one task only.")
        run = lookup(self.run.others, task, 'the task')
        return LanguageModel(run, self.params, self.step)

    def generate(
        self,
        text: str | Sequence[str] = '',
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        stream: Callable[[str], None] | None = None,
        beams: int = 0,
        length_penalty: float = 0.6,
        codes: Sequence[str] = (),
        guidance: float = 1.0,
    ) -> str | list[str]:
        """Returns the continuation of a text, or of each of several.

        An encoder-decoder reads the text, and what it makes of it is returned: a translation, say.

        Args:
            text: what to continue, or what the encoder reads.
            max_tokens: at most so many tokens; fewer if the document ends.
            temperature: 0 takes the likeliest token each time.
            top_k: only the k likeliest; 0 is off.
            top_p: only the likeliest tokens that reach this probability together; 1 is off.
            min_p: only tokens with this part of the likeliest one's probability; 0 is off.
            seed: of the sampling.
            stream: called with each piece of text as it comes; for a single text only.
            beams: so many texts are searched for at once, and the best is returned; nothing is then drawn.
                0 draws, as the five above say.
            length_penalty: of beam search; see `lm.beam.Beam`.
            codes: what the text is to be, of `config.tokenizer.codes`: `('news', 'title=The cat')`.
            guidance: how much they count; see `lm.decode.generate`. 1 is with them, 0 without.

        A context longer than the model's goes on from its last half.
        """
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        if stream and not single:
            raise InputError('generate(stream=…) takes a single text.')
        if stream and beams:
            raise InputError(
                'generate(stream=…) takes no beams: a search knows its text at the end.'
            )
        given = self._codes(codes)
        if given and not self.run.config.generate.bos:
            raise InputError('codes stand after a BOS: set config.generate.bos = True.')
        if not given and guidance != 1:
            raise InputError(f'guidance = {guidance} is towards codes, and none are given.')
        if beams and guidance not in (0, 1):
            raise InputError(f'guidance = {guidance} takes no beams; 1 and 0 do.')
        prompts, sources = self._prompts(texts)
        if beams and guidance:
            prompts = [control.before(prompt, given, begins=True) for prompt in prompts]
        prompts, lengths = decode.padded(prompts, self.run.steps.model.max_length)
        stop = (self.run.tokenizer.specials.eos,)
        with jax.set_mesh(self.run.mesh):
            if beams:
                tokens, counts, _ = beam.search(
                    self.run.steps.model,
                    self.params,
                    prompts,
                    lengths,
                    max_tokens=max_tokens,
                    beam=beam.Beam(beams, length_penalty),
                    stop=stop,
                    sources=sources,
                )
                tokens, counts = tokens[:, 0], counts[:, 0]
            else:
                if stream:
                    self._streamer.begin(stream)
                tokens, counts = decode.generate(
                    self.run.steps.model,
                    self.params,
                    prompts,
                    lengths,
                    jax.random.key(seed),
                    max_tokens=max_tokens,
                    sampling=decode.Sampling(temperature, top_k, top_p, min_p),
                    stop=stop,
                    stream=self._streamer if stream else None,
                    sources=sources,
                    codes=given,
                    guidance=guidance,
                )
        made = [
            self.run.tokenizer.decode(row[:count])
            for row, count in zip(np.asarray(tokens), np.asarray(counts), strict=True)
        ]
        return made[0] if single else made

    def given(self, text: str, cut: bool = False) -> list[int]:
        """Returns the ids that the model is given of a text: to go on with, or of what it reads.

        A decoder has them after a BOS: `config.generate.bos` says whether there is one, and where there is
        no text there always is. An encoder-decoder has around them what its objective puts there.

        Args:
            text: any.
            cut: an encoder-decoder is given the beginning of a text that is longer than it can read.
        """
        run = self.run
        ids = run.tokenizer.encode(text).tolist()
        if not isinstance(run.steps.model, EncoderDecoder):
            return [run.tokenizer.specials.bos] * (run.config.generate.bos or not text) + ids
        before, after, _ = runs.prompt_of(run.config, run.tokenizer)
        most = run.steps.model.max_source - len(before) - len(after)
        return [*before, *(ids[:most] if cut else ids), *after]

    def _codes(self, codes: Sequence[str]) -> list[int]:
        """Returns the tokens of codes; raises InputError where one is not known."""
        ids = vocabulary.code_ids(self.run.tokenizer, self.run.config.tokenizer)
        codes = [codes] if isinstance(codes, str) else codes
        return control.tokens(codes, ids, self.run.tokenizer.encode, 'codes')

    def _prompts(self, texts: list[str]) -> tuple[list[list[int]], decode.Sources | None]:
        """Returns what the decoder begins with, and what the encoder reads."""
        run, model = self.run, self.run.steps.model
        if isinstance(model, Encoder | Electra):
            raise InputError(
                "config.model.architecture = 'encoder' fills in and labels, and does not generate."
            )
        given = [self.given(text, cut=True) for text in texts]
        if isinstance(model, Decoder):
            return given, None
        begun = runs.prompt_of(run.config, run.tokenizer).begun
        return [list(begun)] * len(texts), decode.padded(given, model.max_source)

    def perplexity(
        self, texts: str | Sequence[str], codes: Sequence[str] = ()
    ) -> dict[str, float | None]:
        """Returns loss, perplexity, bits per byte and word perplexity of texts (see `lm.perplexity`).

        Args:
            texts: each is a document.
            codes: that each of them has. The codes of the lowest loss say what a text most likely is.
        """
        if self.run.others:
            raise InputError(
                'a run of several tasks has a perplexity of each: model.of(TASK).perplexity(...), with one '
                f'of {", ".join(self.run.others)}.'
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        split = features.from_texts(texts, self.run.tokenizer, self._codes(codes))
        return perplexity(self.run, self.params, split)

    def logits(self, tokens: Any) -> jax.Array:
        """Returns the logits [B, T, V] float32 that follow tokens [B, T] int32, of a decoder."""
        if not isinstance(self.run.steps.model, Decoder):
            raise InputError(
                f"logits(tokens) is for decoders, and this model's config.model.architecture is "
                f"'{self.run.config.model.architecture}'."
            )
        with jax.set_mesh(self.run.mesh):
            return _logits(self.run.steps.model, self.params, jnp.asarray(tokens, jnp.int32))

    def samples(self, config: GenerateConfig, seed: int) -> list[dict[str, str]]:
        """Returns `{'prompt', 'text'}` of each prompt's continuations, for a report.

        There are none where the objective trains nothing that writes.
        """
        prompts = [prompt for prompt in config.prompts for _ in range(config.samples)]
        if not prompts or not OBJECTIVES[self.run.objective.name].generates:
            return []
        texts = self.generate(prompts, seed=seed, **sampling(config))
        return [{'prompt': p, 'text': t} for p, t in zip(prompts, texts, strict=True)]


def sampling(config: GenerateConfig) -> dict[str, Any]:
    """Returns a config's keys that `LanguageModel.generate` takes, by name."""
    names = ('max_tokens', 'temperature', 'top_k', 'top_p', 'min_p', 'codes', 'guidance')
    return {name: getattr(config, name) for name in names}


class _Streamer:
    """Turns tokens that come one by one into text: only what later tokens cannot change is let out.

    One object serves all calls of a model, since the compiled loop is kept by its callback.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def begin(self, write: Callable[[str], None]) -> None:
        """Starts a new text."""
        self._write, self._tokens, self._shown = write, [], 0

    def __call__(self, tokens: np.ndarray) -> None:
        token = int(np.asarray(tokens)[0])
        if token < 0:
            return
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if not text.endswith('\ufffd'):  # half of a character
            self._write(text[self._shown :])
            self._shown = len(text)


def _logits(model: Any, params: Any, tokens: jax.Array) -> jax.Array:
    return model.apply({'params': params}, tokens)


_logits = jax.jit(_logits, static_argnums=0)


def load(workdir: str | Path, checkpoint: str | int = '') -> LanguageModel:
    """Returns the model of a workdir.

    Args:
        workdir: of a run that saved at least one checkpoint.
        checkpoint: `latest`, `best` (lowest validation loss), `average:N` (the mean of the parameters of
            the latest N) or a step; '' is what `config.eval.checkpoint` says.

    Raises:
        InputError: there is no such run or checkpoint.
    """
    workdir = Path(workdir)
    config = configs.parse(workdirs.read_config(workdir))
    checkpoint = str(checkpoint) or config.eval.checkpoint
    if not (workdir / 'checkpoints').is_dir():
        raise InputError(f"workdir '{workdir}' holds no checkpoint yet.")
    with Checkpoints(workdir, config.checkpoint, read_only=True) as checkpoints:
        steps = chosen(checkpoints, checkpoint, config, workdir)
        try:
            device_mesh = runs.check_mesh(config)
        except InputError:  # trained on other devices than there are here
            device_mesh = mesh.one_device()
        run = runs.build(config, runs.build_tokenizer(config, workdir), device_mesh)
        step, params = parameters(run, checkpoints, steps)
    return LanguageModel(run, params, step)


def chosen(
    checkpoints: Checkpoints, name: str, config: configs.Config, workdir: Path
) -> list[int] | None:
    """Returns the steps of the checkpoints that a name stands for, ascending; None for the latest.

    Args:
        checkpoints: of the run.
        name: `latest`, `best`, `average:N` or a step.
        config: the run's; `checkpoint.keep` is read.
        workdir: what messages call it.

    Raises:
        InputError: it stands for none, or there are fewer than N.
    """
    steps = checkpoints.steps
    if not steps:
        raise InputError(f"workdir '{workdir}' holds no checkpoint yet.")
    if name == 'latest':
        return None
    if name == 'best':
        if checkpoints.best is None:
            raise InputError(
                f"checkpoint 'best' is not in '{workdir}': no validation loss was measured at any of "
                f'its checkpoints ({", ".join(map(str, steps))}).'
            )
        return [checkpoints.best]
    if count := averaged(name):
        latest = steps[-config.checkpoint.keep :]  # Of the others, the best may be far back.
        if len(latest) < count:
            raise InputError(
                f"checkpoint '{name}' is not in '{workdir}': of the latest checkpoints it holds "
                f'{len(latest)} ({", ".join(map(str, latest))}). config.checkpoint.keep = '
                f'{config.checkpoint.keep} says how many are kept, and config.checkpoint.every = '
                f'{config.checkpoint.every} how often one is made.'
            )
        return latest[-count:]
    if name.isdigit() and int(name) in steps:
        return [int(name)]
    raise InputError(
        f"checkpoint '{name}' is not in '{workdir}'. There are: "
        f'latest, best, {", ".join(map(str, steps))}.'
    )


def parameters(run: Run, checkpoints: Checkpoints, steps: list[int] | None) -> tuple[int, Any]:
    """Returns the latest of the steps, and the mean of the parameters after each.

    The mean of checkpoints near the end of training is often better than the last one (Vaswani et al.
    2017, section 6.1, who take 5). It is the float32 sum, from the first to the last, divided by their
    number: of one checkpoint, what it holds.

    Args:
        run: what the checkpoints are of.
        checkpoints: where they are.
        steps: ascending; None is the newest checkpoint that is whole.

    Raises:
        InputError: one cannot be read.
    """
    step, total = 0, None
    for each in steps or [None]:
        step, state, _ = checkpoints.restore(run.steps.shapes, each)
        params = evaluated_params(state)
        total = params if total is None else jax.tree.map(jnp.add, total, params)
    return step, jax.tree.map(lambda x: x / len(steps or [None]), total)

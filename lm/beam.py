"""Beam search on the device: the likeliest texts, in one jit, with a KV cache."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode import Sources, check_prompts, encoded, next_logits
from lm.errors import InputError
from lm.mesh import constrain
from lm.models import Decoder, EncoderDecoder


@dataclasses.dataclass(frozen=True)
class Beam:
    """How texts are searched for.

    Attributes:
        size: texts that are kept at each step; 1 is greedy.
        length_penalty: a; a text of n tokens, its end included, scores `log p / ((5 + n) / 6)^a` (Wu et al.
            2016, https://arxiv.org/abs/1609.08144, section 7). 0 is the log probability.
        best: texts that are returned, at most `size`.
    """

    size: int = 4
    length_penalty: float = 0.6
    best: int = 1

    def __post_init__(self):
        if self.size < 1 or not 1 <= self.best <= self.size:
            raise InputError(f'{self}: size is at least 1, and best from 1 to size.')
        if self.length_penalty < 0:
            raise InputError(f'{self}: length_penalty is at least 0.')


def search(
    model: Decoder | EncoderDecoder,
    params: dict,
    prompts: np.ndarray,
    lengths: np.ndarray,
    *,
    max_tokens: int,
    beam: Beam,
    stop: tuple[int, ...],
    sources: Sources | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the best texts that beam search finds, from the best on.

    A search ends when no text that is not finished can become better than the worst of the finished ones.
    A row whose texts all reach `max_tokens` gives these.

    Args:
        model: its masks are causal.
        params: its parameters.
        prompts: int32 `[B, P]`, padded on the right with any ids.
        lengths: int32 `[B]`, the tokens of each prompt; at least 1.
        max_tokens: new tokens a row, at most, the stop token included.
        beam: how.
        stop: ids that end a text.
        sources: what an encoder reads.

    Returns:
        tokens: int32 `[B, best, max_tokens]`; 0 from a text's end on, and no stop token.
        counts: int32 `[B, best]`, tokens before the end.
        scores: float32 `[B, best]`; -inf where fewer texts were found.

    Raises:
        InputError: a prompt is empty, or they outgrow learned positions.
    """
    prompts, lengths = check_prompts(prompts, lengths)
    longest = int(lengths.max())
    if longest + max_tokens - 1 > model.max_length and model.config.position == 'learned':
        raise InputError(
            f'a prompt of {longest} tokens and {max_tokens} more outgrow the '
            f"{model.max_length} that config.model.position = 'learned' was made for."
        )
    found = _search(
        params, prompts, lengths, sources, model=model, size=max_tokens, beam=beam, stop=tuple(stop)
    )
    tokens, scores = jax.device_get(found)
    counts = np.argmax(np.isin(tokens, (-1, *stop)), axis=-1)
    counts = np.where(np.isin(tokens, (-1, *stop)).any(axis=-1), counts, max_tokens)
    tokens = np.where(np.arange(max_tokens) < counts[..., None], tokens, 0)
    return tokens, counts.astype(np.int32), scores


@functools.partial(jax.jit, static_argnames=('model', 'size', 'beam', 'stop'))
def _search(
    params: dict,
    prompts: jax.Array,
    lengths: jax.Array,
    sources: Sources | None,
    *,
    model: Decoder | EncoderDecoder,
    size: int,
    beam: Beam,
    stop: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Returns int32 `[B, best, size]`, stop tokens included and -1 after them, and scores `[B, best]`."""
    (batch, width), wide = prompts.shape, beam.size
    memory = encoded(model, params, sources)
    params = jax.lax.optimization_barrier(model.for_decoding(params))
    positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    hidden, cache = model.apply(
        {'params': params},
        prompts,
        positions,
        model.make_cache(batch, width + size),
        valid=positions < lengths[:, None],
        fresh=True,
        method='decode',
        **memory,
    )
    logits = next_logits(model, params, hidden[jnp.arange(batch), lengths - 1])
    cache = jax.tree.map(lambda x: jnp.repeat(x, wide, axis=0), cache)
    # The beams of a row are the same at first: all but one of them are out.
    alive = jnp.where(jnp.arange(wide) == 0, 0.0, -jnp.inf)
    state = {
        'step': jnp.int32(0),
        'logits': jnp.repeat(logits[:, None], wide, axis=1),  # [B, W, V]
        'cache': cache,
        'alive': jnp.broadcast_to(alive, (batch, wide)),  # Log probabilities.
        'texts': jnp.full((batch, wide, size), -1, jnp.int32),
        'scores': jnp.full((batch, wide), -jnp.inf),  # Of finished texts, the best first.
        'finished': jnp.full((batch, wide, size), -1, jnp.int32),
    }

    def unfinished(state: dict[str, Any]) -> jax.Array:
        # Log probabilities only fall, and the longest text is divided by most.
        possible = state['alive'][:, 0] / _penalty(size, beam)
        return (state['step'] < size) & jnp.any(possible > state['scores'][:, -1])

    def advance(state: dict[str, Any]) -> dict[str, Any]:
        step, vocab = state['step'], state['logits'].shape[-1]
        each = state['alive'][..., None] + jax.nn.log_softmax(state['logits'])
        # At most W of the best 2 W end here, for one stop token: W are left to go on.
        count = min((len(stop) + 1) * wide, wide * vocab)
        logs, found = jax.lax.top_k(each.reshape(batch, -1), count)  # [B, 2 W]
        parent, token = found // vocab, (found % vocab).astype(jnp.int32)
        texts = jnp.take_along_axis(state['texts'], parent[..., None], axis=1)
        texts = texts.at[:, :, step].set(token)
        ends = jnp.isin(token, jnp.array(stop, jnp.int32)) if stop else jnp.zeros(token.shape, bool)

        scores = jnp.where(ends, logs / _penalty(step + 1, beam), -jnp.inf)
        scores = jnp.concatenate([state['scores'], scores], axis=1)
        finished = jnp.concatenate([state['finished'], texts], axis=1)
        scores, kept = jax.lax.top_k(scores, wide)
        finished = jnp.take_along_axis(finished, kept[..., None], axis=1)

        alive, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, logs), wide)
        parent, token = (jnp.take_along_axis(x, kept, axis=1) for x in (parent, token))
        cache = _of_parents(state['cache'], parent)
        places = jnp.repeat(lengths, wide)[:, None] + step
        hidden, cache = model.apply(
            {'params': params}, token.reshape(-1, 1), places, cache, method='decode'
        )
        logits = next_logits(model, params, hidden[:, 0])
        return {
            'step': step + 1,
            'logits': logits.reshape(batch, wide, -1),
            'cache': cache,
            'alive': alive,
            'texts': jnp.take_along_axis(texts, kept[..., None], axis=1),
            'scores': scores,
            'finished': finished,
        }

    state = jax.lax.while_loop(unfinished, advance, state)
    none = ~jnp.isfinite(state['scores'][:, :1])
    scores = jnp.where(none, state['alive'] / _penalty(state['step'], beam), state['scores'])
    texts = jnp.where(none[..., None], state['texts'], state['finished'])
    texts, scores = texts[:, : beam.best], scores[:, : beam.best]
    return constrain(texts, (None, None, None)), constrain(scores, (None, None))


def _penalty(length: jax.Array | int, beam: Beam) -> jax.Array | float:
    return ((5 + length) / 6) ** beam.length_penalty


def _of_parents(cache: Any, parent: jax.Array) -> Any:
    """Returns the cache with row w of each text that of beam `parent[w]`: `[B, W]`."""
    batch, wide = parent.shape
    rows = (jnp.arange(batch)[:, None] * wide + parent).reshape(-1)

    def taken(path: tuple, leaf: jax.Array) -> jax.Array:
        # All beams of a row read the same memory.
        shared = any(getattr(key, 'key', None) == 'memory' for key in path)
        return leaf if shared else leaf[rows]

    return jax.tree_util.tree_map_with_path(taken, cache)

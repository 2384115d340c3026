"""Text from a model: greedy and sampled decoding, prompts of unequal length together, in one jit."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from lm.codes import before
from lm.errors import InputError
from lm.mesh import constrain
from lm.models import Decoder, EncoderDecoder

# A step reads the whole cache. From so many tokens on, the first half of them is made with room for no
# more. Each loop is compiled by itself, so there are not more than two.
_SPLIT = 128

# What an encoder reads: int32 [B, S], and int32 [B], how many tokens of each row are there.
Sources = tuple[np.ndarray, np.ndarray]
# Called with int32 [B], the tokens of one step; -1 where a row has ended.
Stream = Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters work together, in the order of the fields.

    Attributes:
        temperature: logits are divided by it; 0 is greedy.
        top_k: only the k likeliest tokens (Fan et al. 2018, https://arxiv.org/abs/1805.04833); 0 = off.
        top_p: only the likeliest tokens that together reach this probability (Holtzman et al. 2019,
            https://arxiv.org/abs/1904.09751); 1 = off.
        min_p: only tokens of at least this part of the likeliest one's probability (Nguyen et al. 2024,
            https://arxiv.org/abs/2407.01082); 0 = off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, low, high in (
            ('temperature', 0, float('inf')),
            ('top_k', 0, float('inf')),
            ('top_p', 0, 1),
            ('min_p', 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f'{name} = {value} is out of range: from {low} to {high}.')


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns `logits / temperature`, with -inf for tokens that may not be drawn.

    Equal logits are kept or dropped together. Of probabilities (0.5, 0.3, 0.2), `top_p=0.6` keeps the
    first two, `min_p=0.5` too, `top_k=1` the first.

    Args:
        logits: float32 `[..., V]`.
        sampling: of a temperature above 0.
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all likelier tokens
        kept = (before < sampling.top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def sample(logits: jax.Array, rng: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns int32 token ids `[...]`, drawn from float32 logits `[..., V]`."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(rng, filter_logits(logits, sampling)).astype(jnp.int32)


def generate(
    model: Decoder | EncoderDecoder,
    params: dict,
    prompts: np.ndarray,
    lengths: np.ndarray,
    rng: jax.Array,
    *,
    max_tokens: int,
    sampling: Sampling,
    stop: tuple[int, ...],
    stream: Stream | None = None,
    sources: Sources | None = None,
    codes: Sequence[int] = (),
    guidance: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Continues prompts, all rows at once, until each has met a stop token or has `max_tokens`.

    With a guidance beside 0 and 1 each text is read twice, with the codes and without, and the logits of
    its next token are those without + guidance (those with - those without): classifier-free guidance (Ho
    and Salimans 2022, https://arxiv.org/abs/2207.12598; of text Sanchez et al. 2023,
    https://arxiv.org/abs/2306.17806).

    Compiled once for each (model, sampling, stop, stream, B) and power of two above P and `max_tokens`.
    Where a row outgrows the model's `max_length`, its last half goes on as a new prompt.

    Args:
        model: a decoder whose masks are causal.
        params: its parameters.
        prompts: int32 `[B, P]`, padded on the right with any ids.
        lengths: int32 `[B]`, the tokens of each prompt; at least 1.
        rng: a key. Each row draws from its own stream, whatever the other rows are.
        max_tokens: new tokens a row, at most.
        sampling: how they are drawn.
        stop: ids that end a row; may be empty.
        stream: called on the host after each step, in order.
        sources: what an encoder reads.
        codes: tokens of control codes; they stand in each prompt after its first token, the BOS, as in
            training (`lm.codes.before`).
        guidance: 1 is with the codes, 0 without; above 1 they count for more.

    Returns:
        tokens: int32 `[B, max_tokens]`; 0 after a row's end.
        counts: int32 `[B]`, tokens before the end. The stop token is not among them.

    Raises:
        InputError: a prompt is empty, or the model cannot generate.
    """
    prompts, lengths = check_prompts(prompts, lengths)
    # Ordered callbacks exist on one device only; on more, the loop itself keeps the steps in order.
    ordered = len(jnp.asarray(jax.tree.leaves(params)[0]).sharding.device_set) == 1
    run = functools.partial(
        _continue, model=model, sampling=sampling, stop=tuple(stop), stream=stream, ordered=ordered
    )
    half = max(model.max_length // 2, 1)
    given = np.array(codes, np.int32)[:half]
    guided = len(given) > 0 and guidance not in (0, 1)
    # What stands before each text: with the codes or without, or a row for each.
    ways = [given, given[:0]] if guided else [given[: len(given) * bool(guidance)]]
    starts = [way for way in ways for _ in lengths]
    rows = [
        before(prompt[:length], way, begins=True)
        for way in ways
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    made = np.zeros((len(prompts), 0), np.int32)
    ended = np.zeros(len(prompts), bool)
    while made.shape[1] < max_tokens and not ended.all():
        rows = [
            row
            if len(row) < model.max_length
            else np.concatenate([start, row[-max(half - len(start), 1) :]])
            for start, row in zip(starts, rows, strict=True)
        ]
        longest = max(len(row) for row in rows)
        limit = min(max_tokens - made.shape[1], max(model.max_length - longest, 1))
        new, ended = jax.device_get(
            run(
                params,
                *padded(rows, model.max_length),
                sources,
                ended,
                rng,
                made.shape[1],
                limit,
                guidance if guided else None,
                size=_bucket(limit),
            )
        )
        if stream is not None:
            jax.effects_barrier()
        new = new[:, :limit]
        made = np.concatenate([made, new], axis=1)
        rows = [
            np.concatenate([row, tokens[tokens >= 0]])
            for row, tokens in zip(rows, [*new] * len(ways), strict=True)
        ]
    tokens = np.full((len(prompts), max_tokens), -1, np.int32)
    tokens[:, : made.shape[1]] = made
    return np.maximum(tokens, 0), (tokens >= 0).sum(axis=1).astype(np.int32)


def padded(rows: Sequence[Sequence[int] | np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of unequal length as int32 `[B, P]`, and their lengths, int32 `[B]`.

    P is one of few: that of `_bucket`, or `most` where that is less and holds them.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    longest = int(lengths.max())
    filled = np.zeros((len(rows), min(_bucket(longest), max(most, longest))), np.int32)
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return filled, lengths


def check_prompts(prompts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as int32; raises InputError where a prompt is empty, or longer than its row."""
    prompts, lengths = np.asarray(prompts, np.int32), np.asarray(lengths, np.int32)
    if len(lengths) == 0 or lengths.min() < 1 or lengths.max() > prompts.shape[1]:
        raise InputError(
            'each prompt needs at least one token, such as the one that begins a document.'
        )
    return prompts, lengths


def encoded(
    model: Decoder | EncoderDecoder, params: dict, sources: Sources | None
) -> dict[str, jax.Array]:
    """Returns what `decode` takes: `memory` `[B, S, D]` and `memory_segments` `[B, S]`. Traceable."""
    if sources is None:
        return {}
    tokens, lengths = (jnp.asarray(x) for x in sources)
    segments = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
    memory = model.apply({'params': params}, tokens, segment_ids=segments, method='encode')
    return {'memory': memory, 'memory_segments': segments}


def next_logits(model: Decoder | EncoderDecoder, params: dict, hidden: jax.Array) -> jax.Array:
    """Returns float32 `[B, V]` of `[B, D]`; -inf for ids that only fill the table up. Traceable."""
    logits = model.apply({'params': params}, hidden, method='logits')
    return jnp.where(jnp.arange(logits.shape[-1]) < model.vocab_size, logits, -jnp.inf)


def guide(logits: jax.Array, guidance: jax.Array) -> jax.Array:
    """Returns [B, V] of [2 B, V]: those without codes + guidance (those with, which come first - those)."""
    given, free = jnp.split(logits, 2)
    # -inf, of ids that only fill the table up, stays what it is.
    return jnp.where(jnp.isneginf(free), free, free + guidance * (given - free))


def _bucket(size: int) -> int:
    """The next power of two, from 16 on: few shapes, few compilations."""
    return max(16, 1 << (size - 1).bit_length())


@functools.partial(
    jax.jit, static_argnames=('model', 'sampling', 'stop', 'stream', 'ordered', 'size')
)
def _continue(
    params: dict,
    prompts: jax.Array,
    lengths: jax.Array,
    sources: Sources | None,
    ended: jax.Array,
    rng: jax.Array,
    start: jax.Array,
    limit: jax.Array,
    guidance: jax.Array | None = None,
    *,
    model: Decoder | EncoderDecoder,
    sampling: Sampling,
    stop: tuple[int, ...],
    stream: Stream | None,
    ordered: bool,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the next tokens, int32 `[B, size]`, -1 from a row's end on; and bool `[B]`, has it ended.

    At most `limit <= size` tokens are made, after `start` earlier ones. With a guidance there are two
    prompts of each text, first all with codes, then all without: `[2 B, P]`.
    """
    (prompt_rows, width), batch = prompts.shape, len(ended)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))  # one a row
    memory = encoded(model, params, sources)
    params = jax.lax.optimization_barrier(model.for_decoding(params))  # once, not in each step

    def forward(tokens, positions, cache, **options):
        return model.apply({'params': params}, tokens, positions, cache, **options, method='decode')

    def draw(hidden, ended, step):
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, start + step)
        logits = next_logits(model, params, hidden)
        if guidance is not None:
            logits = guide(logits, guidance)
        token = jax.vmap(functools.partial(sample, sampling=sampling))(logits, step_keys)
        if stop:
            ended |= jnp.any(token[:, None] == jnp.array(stop), axis=1)
        shown = jnp.where(ended, -1, token)
        if stream is not None:
            io_callback(stream, None, shown, ordered=ordered)
        return token, shown, ended

    def unfinished(state, end):
        step, _, _, ended, _ = state
        return (step < jnp.minimum(limit, end)) & ~jnp.all(ended)

    def advance(state):
        step, token, cache, ended, out = state
        inputs = jnp.tile(token, prompt_rows // batch)
        hidden, cache = forward(inputs[:, None], (lengths + step - 1)[:, None], cache)
        token, shown, ended = draw(hidden[:, 0], ended, step)
        return step + 1, token, cache, ended, out.at[:, step].set(shown)

    positions = jnp.broadcast_to(jnp.arange(width), (prompt_rows, width))
    ends = (size // 2, size) if size >= _SPLIT else (size,)
    cache = model.make_cache(prompt_rows, width + ends[0])
    hidden, cache = forward(
        prompts, positions, cache, valid=positions < lengths[:, None], fresh=True, **memory
    )
    token, shown, ended = draw(hidden[jnp.arange(prompt_rows), lengths - 1], ended, 0)
    out = jnp.full((batch, size), -1, jnp.int32).at[:, 0].set(shown)
    step = jnp.int32(1)
    for end in ends:
        cache = model.grow(cache, width + end)
        step, token, cache, ended, out = jax.lax.while_loop(
            functools.partial(unfinished, end=end), advance, (step, token, cache, ended, out)
        )
    return constrain(out, (None, None)), constrain(ended, (None,))

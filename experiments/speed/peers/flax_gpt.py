"""A GPT as a newcomer to Flax would write it: the modules that Flax has, optax, `jax.jit`."""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.speed import gpt
from experiments.speed.gpt import Shape


class Block(nn.Module):
    """A layer."""

    shape: Shape
    dtype: Any

    @nn.compact
    def __call__(self, x, mask):
        d = self.shape.width
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(self.shape.heads, dtype=self.dtype)(y, mask=mask)
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(4 * d, dtype=self.dtype)(y))
        return x + nn.Dense(d, dtype=self.dtype)(y)


class GPT(nn.Module):
    """The model."""

    shape: Shape
    dtype: Any

    @nn.compact
    def __call__(self, tokens):
        shape = self.shape
        embed = nn.Embed(shape.vocab, shape.width, dtype=self.dtype)
        positions = nn.Embed(shape.length, shape.width, dtype=self.dtype)
        x = embed(tokens) + positions(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(shape.layers):
            x = Block(shape, self.dtype)(x, mask)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x))


def parameters(shape: Shape) -> dict[str, Any]:
    """Returns the common weights under Flax's names."""
    w = gpt.weights(shape)
    d, h = shape.width, shape.heads

    def block(i: int) -> dict[str, Any]:
        attention: dict[str, Any] = {
            'out': {'kernel': w['out'][i].reshape(h, d // h, d), 'bias': w['out_bias'][i]}
        }
        kernels, biases = np.split(w['qkv'][i], 3, axis=1), np.split(w['qkv_bias'][i], 3)
        for name, kernel, bias in zip(('query', 'key', 'value'), kernels, biases, strict=True):
            attention[name] = {
                'kernel': kernel.reshape(d, h, d // h),
                'bias': bias.reshape(h, d // h),
            }
        norms = {
            f'LayerNorm_{j}': {'scale': w[name][i], 'bias': w[f'{name}_bias'][i]}
            for j, name in enumerate(('attention_norm', 'mlp_norm'))
        }
        denses = {
            f'Dense_{j}': {'kernel': w[name][i], 'bias': w[f'{name}_bias'][i]}
            for j, name in enumerate(('up', 'down'))
        }
        return {'MultiHeadDotProductAttention_0': attention, **norms, **denses}

    return {
        'Embed_0': {'embedding': w['embedding']},
        'Embed_1': {'embedding': w['positions']},
        'LayerNorm_0': {'scale': w['final_norm'], 'bias': w['final_norm_bias']},
        **{f'Block_{i}': block(i) for i in range(shape.layers)},
    }


def adamw() -> optax.GradientTransformation:
    """Returns clipping and AdamW that decays matrices only."""
    return optax.chain(
        optax.clip_by_global_norm(gpt.CLIP),
        optax.adamw(
            gpt.LEARNING_RATE,
            *gpt.BETAS,
            eps=gpt.EPS,
            weight_decay=gpt.DECAY,
            mask=lambda params: flax.traverse_util.path_aware_map(
                lambda path, _: path[-1] in ('kernel', 'embedding'), params
            ),
        ),
    )


def train_step(model: GPT, optimizer: optax.GradientTransformation) -> Callable[..., tuple]:
    """Returns the jitted step: (params, opt_state, inputs, targets) to (params, opt_state, loss)."""

    def train(params, opt_state, inputs, targets):
        def loss(params):
            logits = model.apply({'params': params}, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), targets
            ).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return jax.jit(train, donate_argnums=(0, 1))


def step(
    sizes: dict[str, int], rows: int, dtype: str, steps: int = 1
) -> tuple[dict[str, Any], Callable[[], float]]:
    """A training step; a sample is tokens/s."""
    shape = Shape(**sizes)
    model = GPT(shape, jnp.dtype(dtype))
    params = jax.tree.map(jnp.asarray, parameters(shape))
    optimizer = adamw()
    inputs, targets = map(jnp.asarray, gpt.batch(shape, rows))
    train = train_step(model, optimizer)
    opt_state = optimizer.init(params)

    def take() -> float:
        nonlocal params, opt_state
        params, opt_state, value = train(params, opt_state, inputs, targets)
        return float(value)

    losses, sample = gpt.racing(take, rows * shape.length, steps)
    facts = {'losses': losses, 'jax': jax.__version__, 'flax': flax.__version__}
    return facts, sample

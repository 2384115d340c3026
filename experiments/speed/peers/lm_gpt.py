"""This project's own GPT."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from configs.base import get_config
from experiments.speed import gpt
from experiments.speed.gpt import Shape
from lm import config as configs
from lm import decode as decoding
from lm import memory, mesh, optimizers
from lm.config import Config
from lm.models.decoder import Decoder
from lm.step import Steps, TrainState


def config(shape: Shape, rows: int, dtype: str, scan: bool) -> Config:
    """Returns the config of the model that all contestants are."""
    c = get_config()
    c.data.train = 'none'
    c.data.length, c.data.batch_size, c.data.packing = shape.length, rows, False
    c.model.num_layers, c.model.embed_dim, c.model.num_heads = (
        shape.layers,
        shape.width,
        shape.heads,
    )
    c.model.norm, c.model.position, c.model.activation = 'layernorm', 'learned', 'gelu'
    c.model.bias, c.model.tie_embeddings = True, True
    c.model.dtype, c.model.scan_layers = dtype, scan
    c.optimizer.name, c.optimizer.learning_rate = 'adamw', gpt.LEARNING_RATE
    c.optimizer.b1, c.optimizer.b2 = gpt.BETAS
    c.optimizer.eps, c.optimizer.weight_decay = gpt.EPS, gpt.DECAY
    c.optimizer.clip_norm = gpt.CLIP
    c.schedule.kind, c.schedule.warmup_steps = 'constant', 0
    return configs.parse(c)


def parameters(shape: Shape) -> dict[str, Any]:
    """Returns the common weights under this project's names."""
    w = gpt.weights(shape)
    n, d, h = shape.layers, shape.width, shape.heads
    q, k, v = np.split(w['qkv'], 3, axis=-1)
    q_bias, k_bias, v_bias = np.split(w['qkv_bias'], 3, axis=-1)

    def heads(kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
        return {'kernel': kernel.reshape(n, d, h, d // h), 'bias': bias.reshape(n, h, d // h)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {'scale': w[name], 'bias': w[f'{name}_bias']}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {'kernel': w[name], 'bias': w[f'{name}_bias']}

    out = {'kernel': w['out'].reshape(n, h, d // h, d), 'bias': w['out_bias']}
    return {
        'embed': {'embedding': w['embedding']},
        'position': {'embedding': w['positions']},
        'final_norm': norm('final_norm'),
        'layers': {
            'attention_norm': norm('attention_norm'),
            'attention': {
                'query': heads(q, q_bias),
                'key': heads(k, k_bias),
                'value': heads(v, v_bias),
                'out': out,
            },
            'mlp_norm': norm('mlp_norm'),
            'mlp': {'up': dense('up'), 'down': dense('down')},
        },
    }


def batch(shape: Shape, rows: int) -> dict[str, np.ndarray]:
    """Returns the common tokens as a batch, on the host."""
    inputs, targets = gpt.batch(shape, rows)
    return {
        'inputs': inputs,
        'targets': targets,
        'loss_weights': np.ones(inputs.shape, np.float32),
        'positions': np.broadcast_to(np.arange(shape.length, dtype=np.int32), inputs.shape).copy(),
        'segment_ids': np.ones(inputs.shape, np.int32),
    }


def build(
    shape: Shape, rows: int, dtype: str, scan: bool
) -> tuple[Steps, TrainState, dict[str, jax.Array]]:
    """Returns the compiled functions, the state before the first step, and a batch on the device."""
    memory.share_one_arena()  # As `python -m lm.main` does.
    c = config(shape, rows, dtype, scan)
    device_mesh = mesh.make(c.mesh)
    learning_rate = optimizers.schedule(c.schedule, c.optimizer.learning_rate, c.train.steps)
    jax.set_mesh(device_mesh)
    steps = Steps(c, shape.vocab, device_mesh, optimizers.build(c.optimizer, learning_rate))
    state = steps.init()
    ours = jax.tree.map(
        lambda value, spec: jax.device_put(value, spec.sharding),
        parameters(shape),
        steps.shapes.params,
    )
    return steps, state.replace(params=ours), mesh.put(batch(shape, rows), device_mesh)


def step(
    sizes: dict[str, int], rows: int, dtype: str, scan: bool = False, steps: int = 1
) -> tuple[dict[str, Any], Callable[[], float]]:
    """A training step; a sample is tokens/s."""
    shape = Shape(**sizes)
    compiled, state, fields = build(shape, rows, dtype, scan)

    def take() -> float:
        nonlocal state
        state, metrics = compiled.train(state, fields)
        return float(metrics['nats'])

    # Training, too, keeps memory after its first step.
    losses, sample = gpt.racing(take, rows * shape.length, steps, prepare=memory.keep)
    facts = {'losses': losses, 'jax': jax.__version__, 'parameters': compiled.parameters}
    return facts, sample


def decode(
    sizes: dict[str, int], rows: int, dtype: str, prompt: int, tokens: int
) -> tuple[dict[str, Any], Callable[[], float]]:
    """Greedy decoding; a sample is tokens/s, the prompt's pass included, compilation not.

    The facts count what a step reads: all parameters, and on average the cache at its half.
    """
    shape = Shape(**sizes)
    model = Decoder(config(shape, rows, dtype, scan=False).model, shape.vocab, shape.length)
    params = jax.tree.map(jax.numpy.asarray, parameters(shape))
    prompts = gpt.batch(shape, rows, prompt)[0]
    lengths = np.full(rows, prompt, np.int32)

    def take() -> np.ndarray:
        return decoding.generate(
            model,
            params,
            prompts,
            lengths,
            jax.random.key(0),
            max_tokens=tokens,
            sampling=decoding.Sampling(temperature=0.0),
            stop=(),
        )[0]

    start = time.perf_counter()
    out = take()
    first = time.perf_counter() - start

    def sample() -> float:
        start = time.perf_counter()
        take()
        return rows * tokens / (time.perf_counter() - start)

    cached = 2 * shape.layers * rows * (prompt + tokens / 2) * shape.width
    facts = {
        'tokens': out.flatten().tolist(),
        'distinct_tokens': len(np.unique(out)),
        'first_seconds': first,
        'step_mb': (shape.parameters + cached) * jax.numpy.dtype(dtype).itemsize / 1e6,
        'jax': jax.__version__,
    }
    return facts, sample

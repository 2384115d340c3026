"""Hugging Face's `GPT2LMHeadModel`, with PyTorch's `scaled_dot_product_attention`."""

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.speed import gpt
from experiments.speed.gpt import Shape
from experiments.speed.peers import torch_gpt


def build(shape: Shape) -> GPT2LMHeadModel:
    """Returns the model with the common weights."""
    transformers.logging.set_verbosity_error()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab,
            n_positions=shape.length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation='sdpa',
        )
    )
    w = {name: torch.from_numpy(array) for name, array in gpt.weights(shape).items()}
    state = {
        'transformer.wte.weight': w['embedding'],
        'transformer.wpe.weight': w['positions'],
        'transformer.ln_f.weight': w['final_norm'],
        'transformer.ln_f.bias': w['final_norm_bias'],
        'lm_head.weight': w['embedding'],
    }
    theirs = {
        'ln_1': 'attention_norm',
        'attn.c_attn': 'qkv',
        'attn.c_proj': 'out',
        'ln_2': 'mlp_norm',
        'mlp.c_fc': 'up',
        'mlp.c_proj': 'down',
    }
    for i in range(shape.layers):
        for name, ours in theirs.items():
            state[f'transformer.h.{i}.{name}.weight'] = w[ours][i]
            state[f'transformer.h.{i}.{name}.bias'] = w[f'{ours}_bias'][i]
    model.load_state_dict(state)
    return model


def step(
    sizes: dict[str, int], rows: int, dtype: str, steps: int = 1
) -> tuple[dict[str, Any], Callable[[], float]]:
    """A training step; the loss is the model's own."""
    shape = Shape(**sizes)
    model = build(shape)

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(inputs, labels=targets, shift_labels=targets, use_cache=False).loss

    facts, sample = torch_gpt.racing(model, loss, shape, rows, dtype, steps)
    return facts | {'transformers': transformers.__version__}, sample


def decode(
    sizes: dict[str, int], rows: int, dtype: str, prompt: int, tokens: int
) -> tuple[dict[str, Any], Callable[[], float]]:
    """Greedy `generate` with its cache; a sample is tokens/s."""
    shape = Shape(**sizes)
    model = build(shape).to(getattr(torch, dtype)).eval()
    inputs = torch.from_numpy(gpt.batch(shape, rows, prompt)[0]).long()

    def take() -> torch.Tensor:
        with torch.inference_mode():
            return model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    out = take()[:, prompt:]

    def sample() -> float:
        start = time.perf_counter()
        take()
        return rows * tokens / (time.perf_counter() - start)

    facts = {
        'tokens': out.flatten().tolist(),
        'torch': torch.__version__,
        'transformers': transformers.__version__,
    }
    return facts, sample

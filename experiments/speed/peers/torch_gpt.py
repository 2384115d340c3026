"""A plain GPT in PyTorch, written the way PyTorch's own tutorials would write it.

Attention by `scaled_dot_product_attention`, AdamW fused, 16 bits by autocast: what is fast in PyTorch is
used.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.speed import gpt
from experiments.speed.gpt import Shape


class Block(nn.Module):
    """A layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, self.heads = shape.width, shape.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).split(d, dim=2)
        q, k, v = (y.view(b, t, self.heads, d // self.heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate='tanh'))


class GPT(nn.Module):
    """The model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.positions = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.width)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(inputs) + self.positions(torch.arange(inputs.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load(model: GPT, shape: Shape) -> None:
    """Puts the common weights into the model."""
    w = {name: torch.from_numpy(array) for name, array in gpt.weights(shape).items()}
    state = {
        'embedding.weight': w['embedding'],
        'positions.weight': w['positions'],
        'final_norm.weight': w['final_norm'],
        'final_norm.bias': w['final_norm_bias'],
    }
    for i in range(shape.layers):
        for name in ('attention_norm', 'mlp_norm'):
            state[f'blocks.{i}.{name}.weight'] = w[name][i]
            state[f'blocks.{i}.{name}.bias'] = w[f'{name}_bias'][i]
        for name in ('qkv', 'out', 'up', 'down'):
            state[f'blocks.{i}.{name}.weight'] = w[name][i].T
            state[f'blocks.{i}.{name}.bias'] = w[f'{name}_bias'][i]
    model.load_state_dict(state)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW, fused, that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {'params': [p for p in parameters if p.ndim >= 2], 'weight_decay': gpt.DECAY},
        {'params': [p for p in parameters if p.ndim < 2], 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=gpt.LEARNING_RATE, betas=gpt.BETAS, eps=gpt.EPS, fused=True)


def racing(
    model: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    shape: Shape,
    rows: int,
    dtype: str,
    steps: int,
) -> tuple[dict[str, Any], Callable[[], float]]:
    """Returns facts, and a sample of the training step of any PyTorch model, in tokens/s."""
    optimizer = adamw(model)
    inputs, targets = (torch.from_numpy(x).long() for x in gpt.batch(shape, rows))

    def take() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
            value = loss(inputs, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), gpt.CLIP)
        optimizer.step()
        return value.item()

    losses, sample = gpt.racing(take, rows * shape.length, steps)
    facts = {
        'losses': losses,
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'parameters': sum(p.numel() for p in model.parameters()),
    }
    return facts, sample


def step(
    sizes: dict[str, int], rows: int, dtype: str, compiled: bool = False, steps: int = 1
) -> tuple[dict[str, Any], Callable[[], float]]:
    """A training step, eager or compiled (forward, loss and backward)."""
    shape = Shape(**sizes)
    model = GPT(shape)
    load(model, shape)
    loss = torch.compile(model) if compiled else model
    return racing(model, loss, shape, rows, dtype, steps)

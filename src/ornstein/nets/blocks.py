"""The pieces that the networks are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def zeroed(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """The layer with weight and bias 0, so that what it ends starts as the zero function."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """h (1 + scale) + shift: a normalised activation whose scale and shift come from the embedding."""
    return h * (1 + scale) + shift


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over tokens, `heads` at once; (batch, tokens, width) -> the same.

    Written out because the fused kernels of PyTorch have no forward-mode derivative; the memory is batch * heads *
    tokens^2 numbers. Source: Vaswani et al. 2017 (arXiv:1706.03762).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        batch, tokens, width = h.shape
        q, k, v = self.qkv(h).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(width // self.heads), dim=-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class TransformerBlock(nn.Module):
    """h <- h + gate1 attention(modulate(norm(h))), then h <- h + gate2 mlp(modulate(norm(h))); adaLN-Zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(e)[:, None].chunk(6, dim=-1)
        h = h + gate1 * self.attention(modulate(self.norm(h), scale1, shift1))
        out: Tensor = h + gate2 * self.mlp(modulate(self.norm(h), scale2, shift2))
        return out

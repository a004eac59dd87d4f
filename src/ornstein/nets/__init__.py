"""Small networks F(x, t, cond) to begin with: forward-mode differentiable, `torch.compile`-safe, of any dtype."""

from ornstein.nets.base import Net
from ornstein.nets.dit import DiT
from ornstein.nets.embedding import NULL
from ornstein.nets.joined import Joined
from ornstein.nets.mlp import MLP
from ornstein.nets.probability import Probability
from ornstein.nets.set_transformer import SetTransformer
from ornstein.nets.time_map import TimeMap
from ornstein.nets.unet import UNet

__all__ = ["MLP", "NULL", "DiT", "Joined", "Net", "Probability", "SetTransformer", "TimeMap", "UNet"]

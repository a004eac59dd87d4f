"""Meeting other libraries: models, schedulers, statistics that people have. Extras are imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._extras import require
from .autoencoder import Autoencoder
from .deepinv import from_deepinv
from .exported import export_sampler
from .file import load_model, read_card, save
from .hub import from_hub, model_card, push_to_hub, save_folder
from .load import Pretrained as Pretrained
from .load import load as load
from .network import Network
from .schedule import ConfigError, PublishedGrid, Schedule, schedule_of
from .sigma import SigmaModel, from_sigma, to_sigma

if TYPE_CHECKING:
    from .scheduler import OrnsteinScheduler as OrnsteinScheduler

__all__ = [
    "Autoencoder",
    "ConfigError",
    "Network",
    "OrnsteinScheduler",
    "Pretrained",
    "PublishedGrid",
    "Schedule",
    "SigmaModel",
    "export_sampler",
    "from_deepinv",
    "from_hub",
    "from_sigma",
    "load",
    "load_model",
    "model_card",
    "push_to_hub",
    "read_card",
    "save",
    "save_folder",
    "schedule_of",
    "to_sigma",
]


def __getattr__(name: str) -> Any:
    if name != "OrnsteinScheduler":  # a class of diffusers', which is an extra
        raise AttributeError(f"module 'ornstein.interop' has no attribute {name!r}")
    require("diffusers", extra="diffusers")
    return import_module(".scheduler", __name__).OrnsteinScheduler

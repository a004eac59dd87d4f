"""Shapes and types of every annotated function are checked while tests run; hypothesis repeats its examples."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typechecker import install

install()

import hypothesis
import torch

torch.set_num_threads(1)

# Same examples every time, kept nowhere, and no wall-clock deadline: machines stall.
hypothesis.settings.register_profile("ornstein", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("ornstein")

# A million objects of torch are never garbage; looking through them took a twelfth of the time. Tests hold little, so
# what is garbage in cycles may wait for a hundred times as many new objects.
gc.freeze()
gc.set_threshold(100_000, 50, 100)

pytest_plugins = ["proof_plugin"]

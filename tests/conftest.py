"""Shapes and types of every annotated function are checked while tests run; hypothesis repeats its examples."""

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

pytest_plugins = ["proof_plugin"]

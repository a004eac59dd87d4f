"""Exact worlds dressed as the networks of diffusers pipelines."""

from types import SimpleNamespace

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from ornstein.interop import schedule_of
from worlds import F64, ring


class ExactUNet(ModelMixin, ConfigMixin):
    """The exact noise (or v, x0, velocity) of a 2-D mixture under a published schedule, as a UNet2DModel of 2 channels
    and one pixel: what a perfectly trained network would answer when told a timestep."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, scheduler: dict, in_channels: int = 2, sample_size: int = 1):
        super().__init__()
        self.schedule = schedule_of(scheduler)
        self.world = ring()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=F64))
        self.calls = 0

    def level(self, t):
        process, schedule = self.schedule.process, self.schedule
        t = torch.as_tensor(t, dtype=F64).reshape(-1)
        if schedule.precondition is not None:  # told log(s)/4
            return process.level(process.time(-8 * t).clamp(max=1))
        return process.level((t + 1) / process.steps if hasattr(process, "steps") else t / 1000)

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        answer = self.answer(sample, timestep)
        return SimpleNamespace(sample=answer) if return_dict else (answer,)

    def answer(self, x, t):
        self.calls += 1
        level, schedule = self.level(t), self.schedule
        level = level[0] if len(level) == 1 else level
        if schedule.precondition is not None:  # x arrives scaled by c_in; answer what c_skip x + c_out F = x0 asks for
            c_in, skip, out, _ = schedule.precondition.coefficients(level)
            state = x / c_in
            x0 = self.world.denoiser(schedule.process)(state.flatten(1), level).x0.reshape(x.shape)
            return schedule.sign * (x0 - skip * state) / out
        p = self.world.denoiser(schedule.process, predicts=schedule.predicts)(x.flatten(1).double(), level)
        return schedule.sign * p.view(schedule.predicts).reshape(x.shape).to(x.dtype)

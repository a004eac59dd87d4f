"""Published scheduler configurations, against diffusers' own schedulers."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.interop import ConfigError, schedule_of
from worlds import F64

PUBLISHED = {path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("schedulers/*.json")}
REFUSED = {"openai_cd_imagenet64": "CMStochasticIterativeScheduler", "sana_sprint": "SCMScheduler"}
CONFIGS = {name: found["config"] for name, found in sorted(PUBLISHED.items()) if name not in REFUSED}
TOKENS = 1024
STEPS = (5, 10, 20, 50)


def theirs(config, steps=None, schedule=None):
    """diffusers' scheduler of a configuration, set to so many steps as its pipeline does it."""
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    if steps is None:
        return scheduler
    if config.get("use_dynamic_shifting"):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=schedule.grid.mu)
    elif config["_class_name"] == "ScoreSdeVeScheduler":
        scheduler.set_sigmas(steps)
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def frame(schedule, scheduler, steps):
    """(alpha, sigma) of the N + 1 levels that a scheduler visits, from its own tables, and its N timesteps."""
    told = scheduler.timesteps.to(F64)
    if type(scheduler).__name__ == "PNDMScheduler":  # the second is evaluated twice
        told = torch.cat([told[:1], told[2:]])
    if type(scheduler).__name__ == "ScoreSdeVeScheduler":
        told = scheduler.discrete_sigmas.flip(0).to(F64)
        return None, torch.cat([told, told.new_zeros(1)]), told
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) == steps + 1:
        s = scheduler.sigmas.to(F64)
        if isinstance(schedule.process, orn.Flow):
            return 1 - s, s, told
        if isinstance(schedule.process, orn.EDM):
            return None, s, told
        return 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt(), told
    table = torch.cat([scheduler.alphas_cumprod.to(F64)[told.long()], last(scheduler).to(F64).reshape(1)])
    return table.sqrt(), (1 - table).sqrt(), told


def last(scheduler):
    return getattr(scheduler, "final_alpha_cumprod", getattr(scheduler, "one", torch.ones(())))


def test_at_least_twelve_of_the_published_were_read():
    read = [name for name in CONFIGS if "recalled" not in PUBLISHED[name]["source"]]
    assert len(read) >= 12
    assert len({CONFIGS[name]["_class_name"] for name in CONFIGS}) >= 10


@pytest.mark.parametrize("name", CONFIGS)
def test_alpha_and_sigma_at_every_timestep_of_training(name):
    config = CONFIGS[name]
    schedule, scheduler = schedule_of(config), theirs(CONFIGS[name])
    if isinstance(schedule.process, orn.DiscreteTime):
        level = schedule.process.level(schedule.process.time_of(torch.arange(schedule.process.steps)))
        table = scheduler.alphas_cumprod.to(F64)
        torch.testing.assert_close(level.alpha, table.sqrt(), rtol=0, atol=1e-6)
        torch.testing.assert_close(level.sigma, (1 - table).sqrt(), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            schedule.timestep(level), torch.arange(schedule.process.steps, dtype=F64), rtol=0, atol=1e-9
        )
    elif isinstance(schedule.process, orn.Flow):
        assert schedule.timestep(schedule.process.level(0.25)) == pytest.approx(0.25 * len_of(scheduler))
    else:
        assert schedule.process.sigma_max == pytest.approx(scheduler.config.sigma_max)


def len_of(scheduler):
    return scheduler.config.num_train_timesteps


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_levels_and_timesteps_of_a_run(name, steps):
    """alpha, sigma and what the network is told, to 1e-6 of theirs (relative for sigmas of tens and timesteps of
    hundreds, which they hold in float32). UniPC begins its flows at t = 1 - 1e-6, where ours is 1."""
    config = CONFIGS[name]
    schedule = schedule_of(config).at_resolution(TOKENS)
    alpha, sigma, told = frame(schedule, theirs(config, steps, schedule), steps)
    level = schedule.grid(schedule.process, steps=steps)
    pulled = config["_class_name"] == "UniPCMultistepScheduler" and isinstance(schedule.process, orn.Flow)
    count = len(level)
    assert count == steps + 1 or (count == steps and float(sigma[-1]) == pytest.approx(float(sigma[-2]), rel=1e-6))
    if alpha is not None:
        torch.testing.assert_close(level.alpha, alpha[:count], rtol=0, atol=2e-6 if pulled else 1e-6)
    torch.testing.assert_close(level.sigma, sigma[:count], rtol=1e-6, atol=2e-6 if pulled else 1e-6)
    torch.testing.assert_close(schedule.grid.timesteps(schedule.process, steps), told, rtol=1e-6, atol=1e-6)


NAMES = {"epsilon": "noise", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_question(name):
    """x0 from the network's answer, beside the scheduler's own conversion of the same answer."""
    config = CONFIGS[name]
    schedule = schedule_of(config).at_resolution(TOKENS)
    scheduler = theirs(config, 10, schedule)
    g = torch.Generator().manual_seed(0)
    x, answer = (torch.randn(2, 3, 4, 4, generator=g, dtype=F64) for _ in range(2))
    level = schedule.grid(schedule.process, steps=10)[4]
    net = torch.nn.Identity()
    net.forward = lambda *a: schedule.sign * answer
    model = orn.Denoiser(
        net, schedule.process, schedule.predicts, precondition=schedule.precondition, timestep=schedule.timestep
    )
    s = level.sigma / level.alpha
    asked = config.get("prediction_type", "flow_prediction" if isinstance(schedule.process, orn.Flow) else "epsilon")
    if schedule.precondition is not None:  # their frame is x0 + s n
        ours = model(x, level).x0
        own = scheduler.precondition_outputs(x, answer, s) if hasattr(scheduler, "precondition_outputs") else None
        if own is None:  # EulerDiscrete with continuous timesteps
            own = answer * (-s / (s**2 + 1) ** 0.5) + x / (s**2 + 1)
    elif schedule.predicts == "score":
        ours, own = model(x, level).x0, x + s**2 * answer
    else:
        ours = model(x, level).x0
        alpha, sigma = level.alpha, level.sigma
        assert schedule.predicts == NAMES[asked]
        own = {
            "noise": lambda: (x - sigma * answer) / alpha,
            "x0": lambda: answer,
            "v": lambda: alpha * x - sigma * answer,
            "velocity": lambda: x - sigma * answer,
        }[schedule.predicts]()
        if hasattr(scheduler, "convert_model_output"):
            scheduler._step_index = 4
            own = scheduler.convert_model_output(answer, sample=x)
        elif config["_class_name"] in ("DDIMScheduler", "DDPMScheduler"):
            bare = type(scheduler).from_config(
                config, clip_sample=False, thresholding=False, variance_type="fixed_small"
            )
            bare.set_timesteps(10)
            own = bare.step(answer, bare.timesteps[4], x).pred_original_sample
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


VARIANTS = [
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "final_sigmas_type": "sigma_min"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"use_karras_sigmas": True}),  # repeats its last sigma; ours stops there
    ("SASolverScheduler", {}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "time_shift_type": "linear"}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("DDIMScheduler", {"trained_betas": [0.001 * (i + 1) for i in range(100)], "num_train_timesteps": 100}),
    (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    (
        "EulerDiscreteScheduler",
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
    ),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_every_spacing_and_schedule(name, options):
    config = {"_class_name": name, **options}
    schedule = schedule_of(config).at_resolution(TOKENS)
    for steps in (7, 20):
        alpha, sigma, told = frame(schedule, theirs(config, steps, schedule), steps)
        level = schedule.grid(schedule.process, steps=steps)
        if alpha is not None:
            torch.testing.assert_close(level.alpha, alpha[: len(level)], rtol=0, atol=1e-6)
        torch.testing.assert_close(level.sigma, sigma[: len(level)], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(schedule.grid.timesteps(schedule.process, steps), told, rtol=1e-6, atol=1e-5)


def test_clipping_is_read():
    """On by default where diffusers' class has it on."""
    for name in ("DDPMScheduler", "DDIMScheduler", "CogVideoXDDIMScheduler"):
        assert schedule_of({"_class_name": name}).clip == 1.0
        assert theirs({"_class_name": name}).config.clip_sample is True
    assert schedule_of({"_class_name": "DDIMScheduler", "clip_sample_range": 2.5}).clip == 2.5
    assert schedule_of({"_class_name": "DDIMScheduler", "clip_sample": False}).clip is None
    assert schedule_of({"_class_name": "EulerDiscreteScheduler"}).clip is None


def test_a_zero_terminal_snr_that_their_table_would_rise_to():
    """2^-24 stands in for 0 there; with the linear betas it is above the timestep before, and 0 itself is kept."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    process = schedule_of({"_class_name": "EulerDiscreteScheduler", **options}).process
    assert process.alphas_cumprod[-1] == 0
    assert theirs({"_class_name": "EulerDiscreteScheduler", **options}).alphas_cumprod.diff()[-1] > 0


def test_the_interleaved_timesteps_of_two_stage_classes():
    for name, stride in (("HeunDiscreteScheduler", 1), ("KDPM2DiscreteScheduler", 0)):
        config = {"_class_name": name}
        schedule, scheduler = schedule_of(config), theirs(config, 10)
        told = scheduler.timesteps.to(F64)
        main = torch.cat([told[:1], told[1::2]]) if stride else told[::2]
        torch.testing.assert_close(schedule.grid.timesteps(schedule.process, 10), main, rtol=1e-6, atol=1e-4)


def test_the_shift_of_the_resolution():
    """mu of diffusers' pipelines: 0.5 at 256 tokens, 1.15 at 4096; without it the times are refused."""
    schedule = schedule_of(CONFIGS["flux_1_dev"])
    assert schedule.at_resolution(256).grid.mu == pytest.approx(0.5)
    assert schedule.at_resolution(4096).grid.mu == pytest.approx(1.15)
    with pytest.raises(ConfigError, match="at_resolution"):
        schedule.grid(schedule.process, steps=4)
    plain = schedule_of(CONFIGS["stable_diffusion_3_medium"])
    assert plain.at_resolution(4096) == plain


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_diffusion_schedule_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{REFUSED[name]}' is not known: choose from DDPMScheduler"):
        schedule_of(PUBLISHED[name]["config"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "MyScheduler"}, "'MyScheduler' is not known"),
        ({"beta_schedule": "linear"}, "does not name its class"),
        (7, "got int"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}, "at least 2"),
        ({"_class_name": "DDIMScheduler", "beta_end": 2.0}, r"lie in \(0, 1\)"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "xyz"}, "prediction_type='xyz' is not known: choose from"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}, "beta_schedule='cubic' is not known"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, r"shape \(2,\), num_train_timesteps is 1000"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}, "contradict.*use_flow_sigmas"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": "epsilon"},
            "contradict.*flow_prediction",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "karras and beta spacing at once",
        ),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "none"}, "choose zero or sigma_min"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "'epsilon' contradict"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "sigma_data"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "wants prediction_type"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(ConfigError, match=message):
        schedule_of(config)

"""Unmodified pipelines with our scheduler, beside our own loop around the loaded model."""

import diffusers
import pytest
import tiny
import torch
from test_load import FAMILIES, STEPS, apart, ours, theirs
from test_schedule import CONFIGS

import ornstein as orn
from ornstein.interop import OrnsteinScheduler, load

CHOSEN = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "DiT", "CogVideoX", "Wan", "Lumina2")


@pytest.mark.parametrize("name", CHOSEN)
def test_a_pipeline_with_our_scheduler_gives_what_our_loop_gives(name):
    """The default (UniPC on LogSNR) and DDIM, with guidance where the family has it. Networks and latents are float32,
    and so are the times that a pipeline hands over: a few hundred roundings of 6e-8. The scheduler that the pipeline
    came with (the rival) is far from it."""
    make, own = FAMILIES[name]
    case = make(own)
    model = load(case.pipe, null=case.null)
    scale = case.scale if case.scale is not None else 1.0
    published, kind = case.pipe.scheduler, "latent" if case.latents else "pt"
    before = theirs(case, kind, scale)
    cond = model.encode(case.call["prompt"]) if case.cond is None else case.cond
    denoiser = model if scale == 1 else orn.CFG(model, scale)
    codec, denoiser.scaling = denoiser.scaling, None
    for solver in (orn.UniPC(), orn.DDIM()):
        case.pipe.scheduler = OrnsteinScheduler.from_config(published, solver=solver)
        made = theirs(case, kind, scale)
        begin = 1.0 if isinstance(model.process, orn.Flow) else case.pipe.scheduler.init_noise_sigma
        out = orn.sample(denoiser, x_init=case.x * begin, cond=cond, solver=solver, steps=STEPS)
        own = case.pack(out.x) if case.latents else codec.decode(out.x).detach().clamp(0, 1)
        assert apart(own, made) < 1e-4
        assert apart(before, made) > 1e-3


def test_image_to_image_and_inpainting_with_the_default_solver():
    """The pipelines begin in the middle, and paint the known part into the latents after every step: where the mask
    keeps the image, the result is the image's own latents, and elsewhere it is not."""
    case = tiny.stable_diffusion(orn.DDIM())
    parts = {**case.pipe.components, "image_encoder": None}
    texts = {"prompt_embeds": case.cond["encoder_hidden_states"]} if case.cond else {"prompt": case.call["prompt"]}
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = []
    for kind in (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline):
        pipe = tiny.quiet(kind(**parts, requires_safety_checker=False))
        pipe.scheduler = OrnsteinScheduler.from_config(case.pipe.scheduler)
        options = {"image": image, "strength": 0.6, "num_inference_steps": 10, "guidance_scale": 1.0, **texts}
        if kind is diffusers.StableDiffusionInpaintPipeline:
            options |= {"mask_image": torch.zeros(2, 1, 16, 16), "height": 16, "width": 16}
        made.append(pipe(**options, generator=torch.Generator().manual_seed(1), output_type="latent").images)
    assert all(bool(latents.isfinite().all()) for latents in made)
    known = load(case.pipe).scaling.encode(image).detach()
    assert apart(made[1], known) < 0.5 * apart(made[0], known)


@pytest.mark.parametrize("solver", [orn.UniPC(), orn.DDIM(), orn.DDPM(), orn.Heun()], ids=repr)
def test_ddpm_pipeline_with_our_scheduler_gives_what_our_loop_gives(solver):
    """Pixels: the same first noise, and the same draws after it, from one generator; images in [0, 1]."""
    pipe = tiny.quiet(diffusers.DDPMPipeline(tiny.unet(), diffusers.DDPMScheduler(clip_sample=False)))
    model = load(pipe)
    before = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=6, output_type="pt")
    pipe.scheduler = OrnsteinScheduler.from_config(pipe.scheduler, solver=solver)
    made = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=6, output_type="pt")
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, *model.event, generator=drawn)
    out = orn.sample(model, x_init=x, solver=solver, steps=6, seed=drawn)
    assert apart(out.x.clamp(0, 1), made.images) < 1e-4
    assert apart(before.images, made.images) > 1e-3


FORMULA = {
    "DDIMScheduler": orn.DDIM(),
    "DDPMScheduler": orn.DDPM(),
    "EulerDiscreteScheduler": orn.DDIM(),
    "FlowMatchEulerDiscreteScheduler": orn.Euler(),
    "DPMSolverMultistepScheduler": orn.DPMSolverPP(),
    "CogVideoXDDIMScheduler": orn.DDIM(),
}
OF = {
    "StableDiffusion": ["stable_diffusion_2_1"],
    "StableDiffusion3": ["stable_diffusion_3_5_large", "stable_diffusion_3_medium"],
    "AuraFlow": ["auraflow"],
    "CogVideoX": ["cogvideox_2b", "cogvideox_5b"],
    "DiT": ["dit_xl_2_256"],
    "PixArtAlpha": ["pixart_alpha_xl_2"],
    "Lumina2": ["lumina_image_2_0"],
    "HunyuanDiT": ["hunyuan_dit"],
    "StableDiffusionXL": ["sdxl_base_1_0", "kolors"],
}


@pytest.mark.parametrize(("name", "fixture"), [(name, f) for name, found in OF.items() for f in found])
def test_published_configurations_on_networks_of_their_class(name, fixture):
    """A tiny random network of the class, in its unmodified pipeline with the scheduler built from the published
    configuration, beside our loop with the same formula on the times read from it."""
    config = {**CONFIGS[fixture], "clip_sample": False}
    make, _ = FAMILIES[name]
    case = make(FORMULA[config["_class_name"]])
    case.pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    model = load(case.pipe, null=case.null)
    kind = "latent" if case.latents else "pt"
    made = theirs(case, kind, 1.0)
    codec = model.scaling
    grid = model.schedule.grid
    case.x = case.x * grid.start_scale(grid(model.process, STEPS)[0])  # 1 for flows
    z = ours(case, model, 1.0)
    own = case.pack(z) if case.latents else codec.decode(z).detach().clamp(0, 1)
    assert apart(own, made) < 1e-4

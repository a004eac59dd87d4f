"""The models that people have: each is run by its own pipeline, unmodified, and by ours, and the two agree.

Networks are tiny and random. Both runs call the same float32 network with inputs equal to rounding; a handful of layers
answers to about 1e-6 of its largest value, and four steps with a guidance of 3 multiply that by less than ten: the
latents agree to 1e-5 of the largest. A wrong convention (time, sign, scale, order of patches) changes them by 1e-3 and
more, which is asserted by running it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import diffusers
import huggingface_hub
import pytest
import tiny
import torch

import ornstein as orn
from ornstein.interop import Autoencoder, ConfigError, load, network
from worlds import F64

ROUNDING, WRONG = 1e-5, 1e-3
STEPS = 4
FAMILIES = {
    "StableDiffusion": (tiny.stable_diffusion, orn.DDIM()),
    "StableDiffusionXL": (tiny.stable_diffusion_xl, orn.DPMSolverPP(order=2)),
    "StableDiffusion3": (tiny.stable_diffusion_3, orn.Euler()),
    "Flux": (tiny.flux, orn.Euler()),
    "FluxSchnell": (lambda solver: tiny.flux(solver, distilled=False), orn.Euler()),
    "DiT": (tiny.dit, orn.DDIM()),
    "PixArtAlpha": (tiny.pixart, orn.DPMSolverPP(order=2)),
    "PixArtSigma": (lambda solver: tiny.pixart(solver, sigma=True), orn.DPMSolverPP(order=2)),
    "Sana": (tiny.sana, orn.DPMSolverPP(order=2)),
    "AuraFlow": (tiny.auraflow, orn.Euler()),
    "CogVideoX": (tiny.cogvideox, orn.DDIM()),
    "CogVideoX1.5": (lambda solver: tiny.cogvideox(solver, newer=True), orn.DDIM()),
    "Lumina2": (tiny.lumina2, orn.Euler()),
    "HunyuanDiT": (tiny.hunyuandit, orn.DDPM()),
    "Wan": (tiny.wan, orn.solvers.UniPC(order=2)),
    "Wan2.2-5B": (lambda solver: tiny.wan(solver, by_token=True), orn.solvers.UniPC(order=2)),
    "LTX": (tiny.ltx, orn.Euler()),
    "LTX0.9.1": (lambda solver: tiny.ltx(solver, told=True), orn.Euler()),
    "QwenImage": (tiny.qwenimage, orn.Euler()),
    "Kandinsky": (tiny.kandinsky, orn.DDPM(variance="learned")),
}


def theirs(case, kind, scale):
    call = {**case.call, case.guided: scale, "num_inference_steps": STEPS, "output_type": kind, "return_dict": False}
    if case.latents:
        call["latents"] = case.pack(case.x)
    out = case.pipe(**call, generator=generator())[0]
    return out if isinstance(out, torch.Tensor) else torch.stack(list(out))


def generator():
    return torch.Generator().manual_seed(5)


def ours(case, model, scale, **replaced):
    """Latents, from the same numbers: the steps' noises follow the latents in one generator."""
    schedule = model.schedule if case.tokens is None else model.schedule.at_resolution(case.tokens)
    levels = model.process.level(schedule.grid.times(model.process, STEPS))
    if schedule.grid.config["_class_name"] == "UniPCMultistepScheduler":  # which begins 1e-6 before noise, in float32
        first = torch.tensor([1 - 1e-6], dtype=torch.float32).double()
        levels = model.process.level(torch.cat([first, levels.t[1:]]))
    cond = model.encode(case.call["prompt"]) if case.cond is None else case.cond
    noise = generator()
    if not case.latents:
        torch.randn(case.x.shape, generator=noise)
    denoiser = model if scale == 1 else orn.CFG(model, scale)
    denoiser.scaling, codec = None, denoiser.scaling
    out = orn.sample(denoiser, x_init=case.x, cond=cond, solver=case.solver, grid=levels, seed=noise)
    denoiser.scaling = codec
    return out.x


def apart(a, b):
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def wrong(model):
    """Conventions that are nearly right, each put in place when it is asked for, and taken back."""
    net = model.net
    told, sign, pack, unpack = net.told, net.sign, net.pack, net.unpack
    net.told = network.step if told.__name__ == "unit" else network.unit
    yield "time"
    net.told, net.sign = told, -sign
    yield "sign"
    net.sign = sign
    if isinstance(net, network.Patches):  # the patch's cells before its channels
        cells = (2, 2, model.event[0])

        def turned(x):
            return pack(x).unflatten(-1, (cells[-1], 2, 2)).movedim(2, -1).flatten(2)

        def back(answer, x):
            return unpack(answer.unflatten(-1, cells).movedim(-1, 2).flatten(2), x)

        net.pack, net.unpack = turned, back
        yield "patches"
        net.pack, net.unpack = pack, unpack


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_as_in_its_own_pipeline(name):
    make, solver = FAMILIES[name]
    case = make(solver)
    model = load(case.pipe, null=case.null)
    if case.whole:  # their scheduler truncates; ours tells the time itself
        told = model.net.told
        model.net.told = lambda t: told((t + 5e-4).floor())
    for scale in (1.0, case.scale):
        if scale is not None:
            z = ours(case, model, scale)
            if case.latents:
                assert apart(case.pack(z), theirs(case, "latent", scale)) < ROUNDING
    if case.decoded:
        images = theirs(case, "pt", case.scale or 1.0)
        images = ((images + 1) / 2).clamp(0, 1) if name == "Kandinsky" else images  # whose tensors stay in [-1, 1]
        own = model.scaling.decode(z).detach()
        own = own.transpose(1, 2) if own.dim() == 5 else own
        assert float((own.clamp(0, 1) - images).abs().max()) < ROUNDING  # of the range 1
        assert float(((images > 0) & (images < 1)).float().mean()) > 0.9  # few are clamped
        for name, neutral in (("shift", 0), ("scale", 1)):
            number = getattr(model.scaling, name)
            if bool((number != neutral).any()):
                kept = number.clone()
                number.fill_(neutral)
                rival = model.scaling.decode(z).detach()
                number.copy_(kept)
                assert apart(rival, model.scaling.decode(z).detach()) > WRONG
    right = ours(case, model, 1.0)
    for _ in wrong(model):
        assert apart(ours(case, model, 1.0), right) > WRONG
    assert apart(ours(case, model, 1.0), right) == 0


@pytest.fixture(scope="module")
def pixels():
    """An unconditional pipeline, of the kind of the first published ones."""
    return tiny.quiet(diffusers.DDPMPipeline(tiny.unet(), diffusers.DDPMScheduler(clip_sample=False)))


def run(pipe, **call):
    return pipe(batch_size=2, num_inference_steps=STEPS, output_type="pt", generator=generator(), **call).images


def test_pixel_models(pixels):
    model = load(pixels)
    assert model.event == (3, 8, 8)
    assert model.null is None
    assert model.schedule.predicts == "noise"
    noise = generator()
    x = torch.randn(2, *model.event, generator=noise)
    out = orn.sample(model, x_init=x, solver=orn.DDPM(), grid=model.schedule.grid, steps=STEPS, seed=noise)
    assert float((out.x.clamp(0, 1) - run(pixels)).abs().max()) < ROUNDING
    for v in (False, True):
        config = {"clip_sample": False, "prediction_type": "v_prediction" if v else "epsilon"}
        pipe = tiny.quiet(diffusers.DDIMPipeline(pixels.unet, diffusers.DDIMScheduler(**config)))
        model = load(pipe)
        out = orn.sample(model, x_init=x, solver=orn.DDIM(), grid=model.schedule.grid, steps=STEPS)
        images = run(pipe)
        assert float((out.x.clamp(0, 1) - images).abs().max()) < ROUNDING
    rival = load(pipe.unet, scheduler=diffusers.DDIMScheduler(clip_sample=False))  # says noise of a v network
    rival.scaling = model.scaling
    out = orn.sample(rival, x_init=x, solver=orn.DDIM(), grid=model.schedule.grid, steps=STEPS)
    assert float((out.x.clamp(0, 1) - images).abs().max()) > WRONG


def test_schedulers_in_another_frame_begin_at_their_own_scale():
    """Euler's state is x/alpha, and begins as sigma_max/alpha noise, in which no data is left."""
    case = tiny.stable_diffusion(orn.DDIM(), diffusers.EulerDiscreteScheduler(**tiny.DPM))
    model = load(case.pipe)
    grid = model.schedule.grid
    start = model.process.level(grid.times(model.process, STEPS))[0]
    case.x, latents = grid.start_scale(start) * case.x, case.x
    z = ours(case, model, 3.0)
    case.x = latents
    assert apart(z, theirs(case, "latent", 3.0)) < ROUNDING


def test_texts_are_conditions():
    case = tiny.stable_diffusion_xl(orn.DDIM())
    model = load(case.pipe)
    cond = model.encode(["a red cat", "dog"])
    assert {name: tuple(value.shape) for name, value in cond.items()} == {
        "encoder_hidden_states": (2, 8, 16), "text_embeds": (2, 8), "time_ids": (2, 6),
    }  # fmt: skip
    assert cond["time_ids"][0].tolist() == [16, 16, 0, 0, 16, 16]
    assert model.null == {"encoder_hidden_states": 0.0, "text_embeds": 0.0}  # as its configuration asks
    one = model.encode("a red cat")["text_embeds"]
    torch.testing.assert_close(one, cond["text_embeds"][:1])
    plain = load(tiny.stable_diffusion(orn.DDIM()).pipe)
    torch.testing.assert_close(plain.null["encoder_hidden_states"], plain.encode("")["encoder_hidden_states"])
    cfg = orn.CFG(plain, 3.0).without(plain.encode(["dog", "cat"]))
    torch.testing.assert_close(cfg["encoder_hidden_states"][1:], plain.encode("")["encoder_hidden_states"])
    classes = load(tiny.dit(orn.DDIM()).pipe)
    assert classes.null == {"class_labels": 1000}
    with pytest.raises(ValueError, match="a DiTPipeline to encode texts with"):
        classes.encode("a cat")


def test_networks_with_conditions_of_their_own():
    """Classes of a pixel model, and the conditions that its configuration makes necessary."""
    net = tiny.unet(classes=10)
    model = load(net, scheduler=diffusers.DDIMScheduler(clip_sample=False), null={"class_labels": 9})
    x, label = tiny.normal(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        want = net(x, torch.tensor([499.0, 499.0]), class_labels=label).sample
        torch.testing.assert_close(model(x, 0.5, {"class_labels": label}).noise, want)
        with pytest.raises(ValueError, match="needs cond with class_labels"):
            model(x, 0.5)
    with pytest.raises(ValueError, match="takes no label: it takes class_labels"):
        model(x, 0.5, {"class_labels": label, "label": label})
    with pytest.raises(ValueError, match="maps names"):
        model(x, 0.5, label)
    assert model.null == {"class_labels": 9}
    sdxl = load(tiny.stable_diffusion_xl(orn.DDIM()).pipe)
    cond = sdxl.encode(["dog", "a cat"])
    with pytest.raises(ValueError, match="needs cond with time_ids"):
        sdxl(tiny.normal(2, 4, 8, 8), 0.5, {name: cond[name] for name in ("encoder_hidden_states", "text_embeds")})
    with pytest.raises(ValueError, match=r"takes no time_idz: it takes .*text_embeds, time_ids"):
        sdxl(tiny.normal(2, 4, 8, 8), 0.5, {**cond, "time_idz": cond["time_ids"]})
    flux = load(tiny.flux(orn.Euler(), distilled=False).pipe)
    with pytest.raises(ValueError, match="needs cond with encoder_hidden_states, pooled_projections"):
        flux(tiny.normal(2, 4, 8, 8), 0.5)
    cond = {"encoder_hidden_states": tiny.normal(2, 6, 8), "pooled_projections": tiny.normal(2, 8)}
    with pytest.raises(ValueError, match="2 x 2 patches: got 7 x 8"):
        flux(tiny.normal(2, 4, 7, 8), 0.5, cond)


def test_compiled_and_derived_networks_are_known(pixels):
    class Mine(diffusers.UNet2DModel):
        pass

    mine = Mine.from_config(pixels.unet.config)
    mine.load_state_dict(pixels.unet.state_dict())
    x = tiny.normal(2, 3, 8, 8)
    want = load(pixels)(x, 0.5).x0
    torch.testing.assert_close(load(mine.eval(), scheduler=pixels.scheduler)(x, 0.5).x0, want)

    class Unknown(torch.nn.Module):  # of the user's own, trained by the same recipe
        config = pixels.unet.config

        def forward(self, sample, timestep, return_dict=True):
            return pixels.unet(sample, timestep, return_dict=return_dict)

    torch.testing.assert_close(load(Unknown(), scheduler=pixels.scheduler)(x, 0.5).x0, want)
    compiled = torch.nn.Module()  # as torch.compile makes it, which takes seconds
    compiled._orig_mod = pixels.unet
    compiled.forward = pixels.unet.forward
    torch.testing.assert_close(load(compiled, scheduler=pixels.scheduler)(x, 0.5).x0, want)


@pytest.mark.parametrize("kind", ["kl", "vq", "movq", "wan", "ltx", "qwen", "cogvideox"])
def test_autoencoders_encode_and_decode_as_published(kind):
    """Against the autoencoder itself, with its numbers written out; encode and decode are inverse in scale."""
    image = tiny.normal(2, 3, 16, 16).sigmoid()
    options = {}
    if kind == "kl":
        vae = tiny.vae(shift_factor=0.3, scaling_factor=1.5)
        scale, shift = 1.5, 0.3
    elif kind in ("vq", "movq"):
        vae, scale, shift = tiny.kandinsky(orn.DDIM()).pipe.movq, (0.18215 if kind == "vq" else 1.0), 0.0
        options = {"raw": kind == "movq"}
    elif kind == "cogvideox":
        vae, scale, shift, options = tiny.cogvideox(orn.DDIM()).pipe.vae, 0.7, 0.0, {"frames_first": True}
        image = tiny.normal(1, 3, 5, 16, 16).sigmoid()
    else:
        vae = {"wan": tiny.wan, "ltx": tiny.ltx, "qwen": tiny.qwenimage}[kind](orn.Euler()).pipe.vae
        own = vae if kind == "ltx" else vae.config
        mean, std = (torch.as_tensor(v)[:, None, None, None] for v in (own.latents_mean, own.latents_std))
        scale, shift = 1 / std, mean
        options = {"still": kind == "qwen"}
        image = tiny.normal(1, 3, 32, 32).sigmoid() if kind == "qwen" else tiny.normal(1, 3, 9, 32, 32).sigmoid()
    given = image[:, :, None] if kind == "qwen" else image
    with torch.no_grad():
        found = vae.encode(2 * given - 1)
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mean
        latents = (z - shift) * scale
        plain = {"force_not_quantize": True} if kind == "movq" else {}
        decoded = (vae.decode(z, **plain).sample + 1) / 2
        if kind == "qwen":
            latents, decoded = latents[:, :, 0], decoded[:, :, 0]
        latents = latents.transpose(1, 2) if kind == "cogvideox" else latents
        codec = Autoencoder(vae, **options)
        torch.testing.assert_close(codec.encode(image), latents)
        torch.testing.assert_close(codec.decode(latents), decoded)
        assert not torch.allclose(codec.decode(latents), codec.decode(1.1 * latents), atol=1e-4) or kind == "vq"


def test_images_of_another_range_are_refused(pixels):
    codec = Autoencoder(tiny.vae())
    image = tiny.normal(2, 3, 16, 16).sigmoid()
    for bad in ((255 * image).to(torch.uint8), 255 * image, 2 * image - 1, image / 0):
        with pytest.raises(ValueError, match=r"floats in \[0, 1\]: got"):
            codec.encode(bad)


def test_half_precision_autoencoders_that_overflow_run_in_single():
    vae = tiny.vae(force_upcast=True)
    z = tiny.normal(1, 4, 8, 8)
    want = Autoencoder(vae).decode(z).detach()
    got = Autoencoder(vae.half()).decode(z).detach()
    assert vae.dtype == torch.float16
    assert apart(got, want) < 2 * 2**-11  # only the weights were rounded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A latent pipeline as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("model")
    pipe = tiny.stable_diffusion(orn.DDIM()).pipe
    pipe.save_pretrained(path)
    return path, pipe


def test_folders(folder):
    path, pipe = folder
    x = tiny.normal(2, 4, 8, 8)
    want = load(pipe)
    cond = want.encode(["a red cat", "dog"])
    with torch.no_grad():
        expected = want(x, 0.5, cond).x0
        whole = load(path)
        torch.testing.assert_close(whole(x, 0.5, whole.encode(["a red cat", "dog"])).x0, expected, rtol=0, atol=0)
        torch.testing.assert_close(whole.scaling.decode(x), want.scaling.decode(x), rtol=0, atol=0)
        config = json.loads((path / "scheduler" / "scheduler_config.json").read_bytes())
        for given in (None, path / "scheduler", str(path / "scheduler"), config, pipe.scheduler):
            model = load(str(path / "unet"), scheduler=given)
            assert model.schedule.process == want.schedule.process
            torch.testing.assert_close(model(x, 0.5, cond).x0, expected, rtol=0, atol=0)
            assert (model.event, model.pipeline, model.scaling) == ((4, 8, 8), None, None)
        model = load(path, subfolder="unet")
        torch.testing.assert_close(model(x, 0.5, cond).x0, expected, rtol=0, atol=0)
        other = diffusers.DDIMScheduler(**{**tiny.SD, "beta_end": 0.02})
        assert load(path, scheduler=other).schedule.process != want.schedule.process


def test_dtype_and_device(folder):
    path, _ = folder
    x = tiny.normal(2, 4, 8, 8)
    expected = (single := load(path))(x, 0.5, cond := single.encode(["a red cat", "dog"])).x0.detach()
    for model in (load(path, dtype=F64, device="cpu"), load(load(path).pipeline, dtype=F64)):
        assert {parameter.dtype for parameter in model.parameters()} == {F64}
        double = model.encode(["a red cat", "dog"])
        assert double["encoder_hidden_states"].dtype == F64
        assert apart(model(x.double(), 0.5, double).x0.detach(), expected) < ROUNDING
        assert orn.sample(model, x_init=x.double(), cond=double, steps=2).x.dtype == F64
    unet = load(single.pipeline.unet, scheduler=single.pipeline.scheduler, dtype=F64)
    assert apart(unet(x.double(), 0.5, {k: v.double() for k, v in cond.items()}).x0.detach(), expected) < ROUNDING
    meta = load(path / "unet", device="meta")
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".CKPT"])
def test_pickles_are_refused(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"cos\nsystem\n.")
    with pytest.raises(ValueError, match=r"is a pickle, which runs whatever code it holds.*save_pretrained"):
        load(file)


def test_weights_in_a_pickle_are_not_opened(folder, tmp_path):
    _, pipe = folder
    pipe.unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.bin").exists()
    with pytest.raises(FileNotFoundError, match=r"Only safetensors weights are read.*safe_serialization=True"):
        load(tmp_path / "unet")
    with pytest.raises(ValueError, match="use_safetensors=False would open pickles"):
        load(tmp_path / "unet", use_safetensors=False)
    for name, part in (("all", None), ("text", pipe.text_encoder), ("vae", pipe.vae)):
        pipe.save_pretrained(tmp_path / name, safe_serialization=part is not None)
        if part is not None:  # one component alone
            where = tmp_path / name / ("vae" if part is pipe.vae else "text_encoder")
            [file] = where.glob("*.safetensors")
            file.unlink()
            stem = "diffusion_pytorch_model" if part is pipe.vae else "pytorch_model"
            torch.save(part.state_dict(), where / f"{stem}.bin")
        with pytest.raises(FileNotFoundError, match="Only safetensors weights are read"):
            load(tmp_path / name)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    _, pipe = folder
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere, and it is no hub name"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config.json or model_index.json \(it is empty\)"):
        load(tmp_path)
    pipe.unet.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=r"UNet2DConditionModel does not say its schedule: give scheduler="):
        load(tmp_path / "net")
    with pytest.raises(FileNotFoundError, match=r"has no scheduler_config.json \(config.json, diffusion"):
        load(tmp_path / "net", scheduler=tmp_path / "net")
    with pytest.raises(ValueError, match="is one file: give the folder"):
        load(tmp_path / "net" / "diffusion_pytorch_model.safetensors")
    config = tmp_path / "net" / "config.json"
    right = config.read_text()
    for text, message in (
        (right[:40], r"config.json is damaged: .*line"),
        ("[1]", "config.json is no configuration"),
        ('{"_class_name": "Nobody"}', "of the class 'Nobody', which diffusers does not have"),
        ("{}", "of the class None"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "net", scheduler=pipe.scheduler)
    config.write_text(right)
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(OSError, match=r"net could not be loaded: .*one is damaged"):
        load(tmp_path / "net", scheduler=pipe.scheduler)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        load(tmp_path)


def test_a_hub_name_without_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for options in ({}, {"subfolder": "unet", "scheduler": tiny.SD | {"_class_name": "DDIMScheduler"}}):
        with pytest.raises(FileNotFoundError, match=r"nobody/nothing could not be loaded: it is not here"):
            load("nobody/nothing", cache_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="of nobody/nothing only unet is asked for: give its scheduler="):
        load("nobody/nothing", subfolder="unet")


def test_what_is_no_model_is_refused(pixels, folder):
    _, pipe = folder
    for bad in (torch.nn.Linear(2, 2), None, 3, lambda x, t: x):
        with pytest.raises(ValueError, match=r"pipeline, network, folder or hub name: got .*orn\.Denoiser"):
            load(bad)
    with pytest.raises(ValueError, match=r"AutoencoderKL is no denoising network .*UNet2DModel.*schedule_of"):
        load(pipe.vae, scheduler=pipe.scheduler)
    with pytest.raises(ValueError, match="UNet2DModel does not say its schedule"):
        load(pixels.unet)
    with pytest.raises(ValueError, match="takes 9 channels and answers 4: it sees more than the state"):
        load(tiny.text_unet(in_channels=9), scheduler=pipe.scheduler)
    with pytest.raises(ValueError, match="revision: for a folder or a hub name"):
        load(pixels, revision="main")
    wan = tiny.wan(orn.Euler()).pipe
    wan.register_to_config(boundary_ratio=0.9)
    with pytest.raises(ValueError, match=r"boundary_ratio=0\.9 has two networks"):
        load(wan)
    with pytest.raises(ValueError, match="has no unet or transformer"):
        load(SimpleNamespace(components={}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "LCMScheduler"}, "scheduler class 'LCMScheduler' is not known"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "noise"}, "prediction_type='noise' is not known"),
        (
            {"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True},
            "prediction_type='epsilon' contradict each other",
        ),
        ({"beta_start": 1e-4}, "does not name its class"),
        (3, "give a scheduler"),
    ],
)
def test_schedules_that_cannot_be_read(pixels, config, message):
    with pytest.raises(ConfigError, match=message):
        load(pixels.unet, scheduler=config)


def test_the_import_is_light():
    code = "import sys, ornstein.interop; print([m for m in ('diffusers', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

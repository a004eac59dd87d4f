"""Our tables inside diffusers: the loop's own answers, diffusers' answers for the same formula, and bad use."""

import copy
import inspect
import warnings

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from pipelines import ExactUNet

import ornstein as orn
from ornstein.interop import ConfigError, OrnsteinScheduler, load, schedule_of
from ornstein.tuning import teach, tune
from worlds import F64

V = {"prediction_type": "v_prediction"}


def noise(n=32, seed=0):
    return torch.randn(n, 2, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))


def run(unet, scheduler, steps, x, seed=1):
    """The loop of a diffusers pipeline."""
    g = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = {"generator": g} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(seen, t).sample, t, x, **takes).prev_sample
    return x


def config(scheduler):
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SAME = [
    (DDIMScheduler(clip_sample=False), orn.DDIM()),
    (DDIMScheduler(clip_sample=False, **ZERO_SNR), orn.DDIM()),
    (DDPMScheduler(clip_sample=False), orn.DDPM()),
    (DDPMScheduler(clip_sample=True), orn.DDPM()),
    (DDPMScheduler(clip_sample=False, variance_type="fixed_large", **V), orn.DDPM(variance="forward")),
    (EulerDiscreteScheduler(), orn.DDIM()),
    (EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, use_karras_sigmas=True), orn.DDIM()),
    (EulerAncestralDiscreteScheduler(), orn.DDIM(eta=1.0)),
    (HeunDiscreteScheduler(), orn.Heun()),
    (DPMSolverMultistepScheduler(), orn.DPMSolverPP(order=2)),
    (DPMSolverMultistepScheduler(timestep_spacing="trailing", **V), orn.DPMSolverPP(order=2)),
    (UniPCMultistepScheduler(solver_order=2), orn.solvers.UniPC(order=2)),
    (FlowMatchEulerDiscreteScheduler(shift=3.0), orn.Euler()),
    (FlowMatchHeunDiscreteScheduler(shift=3.0), orn.Heun(variable="t")),
    (EDMEulerScheduler(), orn.DDIM()),
    (EDMDPMSolverMultistepScheduler(), orn.DPMSolverPP(order=2)),
    (
        EulerDiscreteScheduler(
            timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, **V
        ),
        orn.DDIM(),
    ),
]


@pytest.mark.parametrize(("theirs", "solver"), SAME, ids=lambda v: type(v).__name__)
def test_the_same_formula_and_times_give_what_diffusers_gives(theirs, solver):
    """Schedules and coefficients there are float32: each step moves the state, of size 1 to 2, by about 6e-8, and the
    ring's flow stretches that by up to 30 where modes part. A relative of the method, or other times, misses by
    0.01 and more (the last assertion)."""
    unet = ExactUNet(config(theirs))
    ours = OrnsteinScheduler.from_config(theirs, solver=solver, grid="published")
    for steps in (10, 20):
        a, b = run(unet, ours, steps, noise()), run(unet, theirs, steps, noise())
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    other = OrnsteinScheduler.from_config(theirs, solver=orn.DPMSolverPP(order=3, start="published"), grid="published")
    assert float((run(unet, other, 10, noise()) - run(unet, theirs, 10, noise())).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), torch.round),
        (
            DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
            torch.floor,
        ),
    ],
    ids=["karras", "flow"],
)
def test_where_theirs_tells_the_network_a_rounded_time(theirs, told):
    """A known difference: with sigmas between timesteps these schedulers tell the network a whole number. Told the same
    whole numbers, ours is theirs; told the exact times, both move by what the rounding is worth."""

    class Rounded(ExactUNet):
        def answer(self, x, t):
            return super().answer(x, told(torch.as_tensor(t, dtype=F64) + 1e-6))

    ours = OrnsteinScheduler.from_config(theirs, solver=orn.DPMSolverPP(order=2), grid="published")
    exact, rounded = ExactUNet(config(theirs)), Rounded(config(theirs))
    torch.testing.assert_close(run(rounded, ours, 10, noise()), run(rounded, theirs, 10, noise()), rtol=0, atol=2e-5)
    assert float((run(exact, ours, 10, noise()) - run(exact, theirs, 10, noise())).abs().max()) > 1e-3


def test_a_learned_variance():
    """The second half of the channels, as DDPM with learned_range reads it; other solvers read the first half alone.
    The head is sin(3x), between the two variances."""

    class Learned(ExactUNet):
        def answer(self, x, t):
            return torch.cat([super().answer(x, t), torch.sin(3 * x)], 1)

    theirs = DDPMScheduler(clip_sample=False, variance_type="learned_range")
    unet, plain = Learned(config(theirs)), ExactUNet(config(theirs))
    ours = OrnsteinScheduler.from_config(theirs, solver=orn.DDPM(variance="learned"), grid="published")
    a, b = run(unet, ours, 20, noise()), run(unet, theirs, 20, noise())
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    posterior = OrnsteinScheduler.from_config(theirs, solver=orn.DDPM(), grid="published")
    assert float((run(unet, posterior, 20, noise()) - b).abs().max()) > 0.1
    torch.testing.assert_close(
        run(unet, posterior, 20, noise()), run(plain, posterior, 20, noise()), rtol=0, atol=1e-12
    )


def test_where_theirs_clips_half():
    """A known difference: DDIM there clips x0 and keeps the noise of the unclipped one, two answers that contradict
    each other, unless it is told `use_clipped_model_output`. Ours has one answer."""
    theirs = DDIMScheduler(clip_sample=True)
    unet, ours = ExactUNet(config(theirs)), OrnsteinScheduler.from_config(theirs, solver=orn.DDIM(), grid="published")
    ends = {}
    for clipped in (True, False):
        theirs.set_timesteps(10)
        x = noise()
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t).sample, t, x, use_clipped_model_output=clipped).prev_sample
        ends[clipped] = x
    a = run(unet, ours, 10, noise())
    torch.testing.assert_close(a, ends[True], rtol=0, atol=2e-5)
    assert float((a - ends[False]).abs().max()) > 1e-2


def test_where_theirs_ends_twice():
    """A known fault: DEIS with Karras sigmas repeats its last sigma, and that step is 0/0."""
    theirs = DEISMultistepScheduler(use_karras_sigmas=True)
    ours = OrnsteinScheduler.from_config(theirs, solver=orn.DDIM(), grid="published")
    unet = ExactUNet(config(theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.set_timesteps(10)
    assert float(theirs.sigmas[-1]) == float(theirs.sigmas[-2])
    assert bool(run(unet, ours, 10, noise()).isfinite().all())
    assert len(ours.timesteps) == 9


SOLVERS = [orn.DDIM(), orn.DDIM(eta=0.5), orn.DDPM(), orn.Euler(), orn.Heun(), *map(orn.DPMSolverPP, (1, 2, 3))]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("theirs", [DDPMScheduler(clip_sample=False), FlowMatchEulerDiscreteScheduler(shift=3.0)])
def test_a_pipelines_loop_is_our_loop(theirs, solver):
    """The same table and noise. The pipeline tells its network the times in float32, relative 6e-8 of them."""
    unet = ExactUNet(config(theirs))
    model = load(unet, scheduler=theirs)
    grid = orn.LogSNR(end=6.0)
    if isinstance(solver, orn.Euler) and isinstance(theirs, DDPMScheduler):
        grid = orn.Uniform(end=0.01)
    ours = OrnsteinScheduler.from_config(theirs, solver=solver, grid=grid)
    a = run(unet, ours, 8, noise())
    g = torch.Generator().manual_seed(1)

    class Pipelike(orn.Noise):  # draws in the state's dtype, as a pipeline does
        def normal(self, shape):
            return torch.randn(tuple(shape), generator=g, dtype=F64)

        def rewind(self):
            g.manual_seed(1)

    x = noise() * ours.init_noise_sigma
    b = orn.sample(model, x_init=x, solver=solver, grid=grid, steps=8, seed=Pipelike(batch=32))
    torch.testing.assert_close(a, b.x, rtol=0, atol=1e-5)
    assert len(ours.timesteps) == b.nfe


def test_half_precision_is_carried_in_float32():
    """Ten steps in bfloat16 states would each round by 2^-9; only the last rounding is left."""
    theirs = FlowMatchEulerDiscreteScheduler()
    unet = ExactUNet(config(theirs))
    ours = OrnsteinScheduler.from_config(theirs, solver=orn.Euler(), grid="published")
    fine, half = run(unet, ours, 50, noise()), run(unet, ours, 50, noise().bfloat16())
    assert half.dtype == torch.bfloat16
    start = noise().bfloat16().double()
    torch.testing.assert_close(half.double(), run(unet, ours, 50, start), rtol=2**-7, atol=2**-7)
    assert fine.dtype == F64


def test_a_changed_sample_is_taken():
    """Inpainting pipelines paint into the state between steps: the next step goes on from what it is given."""
    theirs = DDIMScheduler(clip_sample=False)
    unet = ExactUNet(config(theirs))
    ends = []
    for scheduler in (theirs, OrnsteinScheduler.from_config(theirs, solver=orn.DDIM(), grid="published")):
        scheduler.set_timesteps(10)
        x = noise()
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
            if i == 4:
                x = torch.where(torch.arange(2).reshape(1, 2, 1, 1) == 0, x, x.flip(0))
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_a_changed_sample_is_taken_by_every_solver():
    """An edit of the state after a step shifts the answer of one step later by what the network does not undo: the
    network noise = x/sigma answers x0 = 0, so the step to s keeps sigma_s/sigma_t of the edit, by any method. Edits in
    place count too, in half precision as well."""
    theirs = DDIMScheduler(clip_sample=False)
    for solver in (orn.DDIM(), orn.DPMSolverPP(), orn.UniPC(), orn.SASolver(tau=0.0)):
        for dtype, in_place in ((F64, False), (torch.bfloat16, True)):
            found = []
            for edit in (0.0, 8.0):
                scheduler = OrnsteinScheduler.from_config(theirs, solver=solver, grid=orn.LogSNR(end=6.0))
                scheduler.set_timesteps(8)
                x = noise(4).to(dtype)
                for i, t in enumerate(scheduler.timesteps[:5]):
                    level = scheduler.table.levels[i]
                    x = scheduler.step((x.double() / level.sigma).to(dtype), t, x).prev_sample
                    if i == 3 and in_place:
                        x += edit
                    elif i == 3:
                        x = x + edit
                found.append(x.double())
            levels = scheduler.table.levels
            kept = float(levels.sigma[5] / levels.sigma[4])
            tolerance = 1e-9 if dtype == F64 else 0.1
            assert float((found[1] - found[0]).mean()) == pytest.approx(8 * kept, rel=tolerance), solver


BEGINS = [(DPMSolverMultistepScheduler(), orn.DPMSolverPP(order=2)), (HeunDiscreteScheduler(), orn.Heun())]


@pytest.mark.parametrize("set_begin", [True, False])
@pytest.mark.parametrize(("theirs", "solver"), BEGINS, ids=lambda v: type(v).__name__)
def test_image_to_image_begins_in_the_middle(theirs, solver, set_begin):
    """As the img2img pipelines do: noise the image at the k-th timestep and go on from there."""
    unet = ExactUNet(config(theirs))
    ends = []
    for scheduler in (theirs, OrnsteinScheduler.from_config(theirs, solver=solver, grid="published")):
        scheduler.set_timesteps(12)
        times = scheduler.timesteps[5 * scheduler.order :]
        if set_begin:
            scheduler.set_begin_index(5 * scheduler.order)
        x = scheduler.add_noise(noise(seed=3), noise(seed=4), times[:1].repeat(32))
        for t in times:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", [None, orn.SASolver(tau=0.0), orn.DDIM(eta=1.0), orn.RK4()], ids=repr)
def test_image_to_image_with_any_solver_is_the_loop_from_there(solver):
    """The rest of the run is that of the solver on the rest of the grid."""
    theirs = DDIMScheduler(clip_sample=False)
    unet = ExactUNet(config(theirs))
    ours = OrnsteinScheduler.from_config(theirs, solver=solver)
    ours.set_timesteps(10)
    begin = 5 * ours.order
    ours.set_begin_index(begin)
    times = ours.timesteps[begin:]
    level = ours.table.levels[begin]
    points = [row.level.t for row in ours.table.rows if row.on_grid and float(row.level.t) <= float(level.t)]
    start = ours.process.corrupt(noise(seed=3), level, noise=noise(seed=4)).x
    x, g = start, torch.Generator().manual_seed(1)
    for t in times:
        x = ours.step(unet(x, t).sample, t, x, generator=g).prev_sample
    if solver == orn.DDIM(eta=1.0):
        assert bool(x.isfinite().all())
        return
    model = load(unet, scheduler=theirs)
    expected = orn.sample(model, x_init=start, solver=ours.solver, grid=torch.stack(points)).x
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


SAVED = [
    *(orn.UniPC(order=3), orn.Restart(orn.DDIM(), intervals=((0.2, 2.0, 2),)), orn.solvers.PredictorCorrector()),
    *(orn.DDIM(eta=0.3), orn.Heun(variable="t"), orn.solvers.DEIS(order=2)),
]


@pytest.mark.parametrize("solver", SAVED, ids=repr)
def test_solvers_and_grids_are_saved_whole(tmp_path, solver):
    grid = orn.Shifted(orn.LogSNR(end=6.0), 3.0)
    for chosen in (grid, "published"):
        ours = OrnsteinScheduler.from_config(DDIMScheduler(), solver=solver, grid=chosen)
        ours.save_pretrained(tmp_path)
        again = OrnsteinScheduler.from_pretrained(tmp_path)
        assert (again.solver, again.grid) == (ours.solver, ours.grid)
        ours.set_timesteps(12)
        again.set_timesteps(12)
        assert str(again.table) == str(ours.table)


def test_copies_begin_anew():
    theirs = DDIMScheduler(clip_sample=False)
    ours = OrnsteinScheduler.from_config(theirs)
    unet = ExactUNet(config(theirs))
    whole = run(unet, ours, 5, noise())
    ours.set_timesteps(5)
    x = noise() * ours.init_noise_sigma
    ours.step(unet(x, ours.timesteps[0]).sample, ours.timesteps[0], x)
    torch.testing.assert_close(run(unet, copy.deepcopy(ours), 5, noise()), whole, rtol=0, atol=0)


def test_options_override_the_published_and_no_other_is_swallowed():
    theirs = DDIMScheduler(clip_sample=True)
    ours = OrnsteinScheduler.from_config(theirs, grid="published", timestep_spacing="trailing", clip=False)
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [999, 749, 499, 249]
    assert ours.clip is None
    with pytest.raises(ConfigError, match="slover is no option"):
        OrnsteinScheduler.from_config(theirs, slover=orn.DDIM())


def test_noise_is_added_as_the_process_does():
    theirs = DDPMScheduler()
    ours = OrnsteinScheduler.from_config(theirs)
    t = torch.tensor([0, 10, 500, 999])
    x, z = noise(4), noise(4, seed=1)
    torch.testing.assert_close(ours.add_noise(x, z, t), theirs.add_noise(x, z, t), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.get_velocity(x, z, t), theirs.get_velocity(x, z, t), rtol=1e-6, atol=1e-6)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500)
    own = OrnsteinScheduler.from_config(flow, solver=orn.Euler(), grid="published")
    for scheduler in (flow, own):
        scheduler.set_timesteps(10)
    at = flow.timesteps[3:4].repeat(4)
    torch.testing.assert_close(own.get_velocity(x, z, at), z - x, rtol=0, atol=0)
    own.set_timesteps(timesteps=[500.0, 250.0])
    assert own.table.levels.t.tolist() == [1.0, 0.5]
    own.set_timesteps(10)
    torch.testing.assert_close(
        own.scale_noise(x, own.timesteps[3:4].repeat(4), z), flow.scale_noise(x, at, z), rtol=1e-5, atol=1e-6
    )


def test_given_timesteps_and_sigmas():
    """Lists that a pipeline passes: timesteps of a discrete model; sigmas of a flow before its shift; of a model in
    the frame x/alpha with their last 0."""
    theirs = EulerDiscreteScheduler()
    unet, ours = ExactUNet(config(theirs)), OrnsteinScheduler.from_config(theirs, solver=orn.DDIM(), grid="published")
    ours.set_timesteps(timesteps=[999, 500, 100])
    assert ours.timesteps.tolist() == [999, 500, 100]
    sigmas = [30.0, 5.0, 1.0, 0.1, 0.0]
    ends = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=sigmas)
        x = noise() * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-4)
    flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    own = OrnsteinScheduler.from_config(flow, solver=orn.Euler(), grid="published")
    for scheduler in (flow, own):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3], mu=0.8)
    torch.testing.assert_close(own.timesteps.double(), flow.timesteps.double(), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(own.sigmas, flow.sigmas, rtol=1e-6, atol=1e-6)


def test_tuned_tables_by_number_of_steps(tmp_path):
    """A table that was compiled (or tuned) for 6 steps is used at 6, the solver at any other number; it is saved with
    the configuration and comes back exactly."""
    theirs = DDIMScheduler(clip_sample=False)
    schedule = schedule_of(theirs)
    table = orn.DPMSolverPP(order=3).compile(schedule.process, orn.LogSNR()(schedule.process, steps=6))
    ours = OrnsteinScheduler.from_config(theirs, solver=orn.DDIM(eta=0.5), grid=orn.Karras(), tables={6: table})
    ours.set_timesteps(6)
    assert str(ours.table) == str(table)
    assert len(ours.timesteps) == table.nfe
    ours.set_timesteps(5)
    assert "DDIM" in ours.table.solver
    ours.save_pretrained(tmp_path)
    again = OrnsteinScheduler.from_pretrained(tmp_path)
    assert (again.solver, again.grid, again.process) == (ours.solver, ours.grid, ours.process)
    unet = ExactUNet(config(theirs))
    torch.testing.assert_close(run(unet, again, 6, noise()), run(unet, ours, 6, noise()), rtol=0, atol=0)


def test_a_saved_pipeline_comes_back_with_it(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    pipe = diffusers.DDPMPipeline(unet, DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = OrnsteinScheduler.from_config(pipe.scheduler, solver=orn.DPMSolverPP(order=3), grid=orn.LogSNR())
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.solver == orn.DPMSolverPP(order=3)
    a, b = (
        p(batch_size=2, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for p in (pipe, again)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def tuned(theirs):
    process = schedule_of(theirs).process
    table = orn.DDIM().compile(process, orn.LogSNR()(process, steps=4))
    ours = OrnsteinScheduler.from_config(theirs, tables={4: table})
    ours.set_timesteps(4)
    ours.set_begin_index(2)
    ours.step(noise(), ours.timesteps[2], noise())


def begun(index):
    ours = OrnsteinScheduler.from_config(DDIMScheduler())
    ours.set_timesteps(4)
    ours.set_begin_index(index)


def another_batch():
    ours = OrnsteinScheduler.from_config(DDIMScheduler(clip_sample=False), solver=orn.DDIM())
    ours.set_timesteps(4)
    ours.step(noise(2), ours.timesteps[0], noise(2))
    ours.step(noise(3), ours.timesteps[1], noise(3))


def stepped(*indices, **options):
    ours = OrnsteinScheduler.from_config(DDIMScheduler(clip_sample=False), solver=orn.DDIM(), grid="published")
    ours.set_timesteps(3)
    x = noise(2)
    for i in indices:
        t = ours.timesteps[i] if i < 3 else 3
        x = ours.step(x, t, x, **options).prev_sample


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: stepped(0, 2), RuntimeError, "but 333 .number 1. is next: steps come in the order"),
        (lambda: stepped(0, 0), RuntimeError, "number 1"),
        (lambda: stepped(0, 1, 2, 2), RuntimeError, "all 3 timesteps are done"),
        (lambda: stepped(3), ValueError, "none of this scheduler's"),
        (lambda: stepped(0, eta=0.3), ValueError, r"solver=orn.DDIM\(eta=...\)"),
        (
            lambda: OrnsteinScheduler.from_config(DDIMScheduler()).step(noise(), 1, noise()),
            RuntimeError,
            "set_timesteps",
        ),
        (lambda: OrnsteinScheduler.from_config(DDIMScheduler()).set_timesteps(), ValueError, "one of them"),
        (lambda: OrnsteinScheduler(), ConfigError, "from_config"),
        (lambda: tuned(DDIMScheduler()), ValueError, "begins at its first timestep"),
        (lambda: OrnsteinScheduler.from_config(DDIMScheduler(), tables=2), ConfigError, "a mapping"),
        (lambda: OrnsteinScheduler.from_config(DDIMScheduler(), tables={2: "x.json"}), ConfigError, "x.json"),
        (lambda: OrnsteinScheduler.from_config(DDIMScheduler(), tables={2: {}}), ConfigError, "damaged"),
        (
            lambda: OrnsteinScheduler.from_config(DDIMScheduler(), solver={"class": "DDIM", "options": {"et": 1}}),
            ConfigError,
            "cannot be made",
        ),
        (
            lambda: OrnsteinScheduler.from_config(DDIMScheduler(), solver=orn.solvers.AcceleratedDDPM()).set_timesteps(
                4
            ),
            orn.TableError,
            "does not begin by evaluating",
        ),
        (lambda: begun(100), ValueError, "begin_index=100"),
        (lambda: another_batch(), ValueError, "another batch"),
        (
            lambda: OrnsteinScheduler.from_config(FlowMatchEulerDiscreteScheduler()).add_noise(
                noise(), noise(), torch.ones(32)
            ),
            RuntimeError,
            "set_timesteps",
        ),
        (lambda: OrnsteinScheduler.from_config(DDIMScheduler().config), ConfigError, "does not name its class"),
        (lambda: OrnsteinScheduler.from_config(DDIMScheduler(), solver="ddim"), ConfigError, "such as orn.DDIM"),
        (
            lambda: OrnsteinScheduler.from_config(
                DDIMScheduler(), tables={2: orn.DDIM().compile(orn.Flow(), orn.Flow().level([1.0, 0.5, 0.0]))}
            ),
            orn.TableError,
            "another process",
        ),
        (
            lambda: OrnsteinScheduler.from_config(DDIMScheduler(), grid=orn.Timesteps()).set_timesteps(2000),
            ValueError,
            "has 1000 timesteps",
        ),
    ],
)
def test_out_of_order_and_out_of_range(use, error, message):
    with pytest.raises(error, match=message):
        use()


def test_the_default_grid_is_ours_whatever_a_pipeline_passes():
    """LogSNR, also for pipelines that hand their own sigmas to the scheduler; given timesteps are followed."""
    flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = OrnsteinScheduler.from_config(flow)
    ours.set_timesteps(sigmas=[1.0, 0.6, 0.3], mu=0.8)
    expected = orn.LogSNR()(orn.Flow(), steps=3)
    torch.testing.assert_close(ours.sigmas.double(), expected.t, rtol=1e-6, atol=1e-7)
    ours.set_timesteps(timesteps=[1000.0, 500.0])
    assert ours.timesteps.tolist() == [1000.0, 500.0]


def test_a_tuned_table_in_an_unmodified_pipeline(tmp_path):
    """A table tuned for the model is used at its own number of steps. The pipeline ends where our loop does, to the
    rounding of float32, not where the named table does with which tuning began; it comes back from its configuration,
    which is JSON."""
    theirs = DDIMScheduler(clip_sample=False)
    unet = ExactUNet(config(theirs))
    model = load(unet, scheduler=theirs)
    three, start = (orn.DPMSolverPP().compile(model.process, orn.LogSNR()(model.process, n)) for n in (3, 4))
    lessons = teach(model, (16, 2, 1, 1), seed=3, steps=20)
    tuned = tune(model, nfe=4, lessons=lessons, iterations=3, start=start)
    ours = OrnsteinScheduler.from_config(theirs, table=tuned, tables={3: three})
    x = noise()
    expected, rival = (orn.sample(model, x_init=x, table=table).x for table in (tuned.table, start))
    assert float((rival - expected).abs().max()) > 1e-2
    torch.testing.assert_close(run(unet, ours, 4, x), expected, rtol=0, atol=1e-5)
    ours.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scheduler_config.json"]
    again = OrnsteinScheduler.from_pretrained(tmp_path)
    assert sorted(again.tables) == [3, 4]
    torch.testing.assert_close(run(unet, again, 4, x), run(unet, ours, 4, x), rtol=0, atol=0)
    # a whole pipeline, which draws its own start
    pipe = diffusers.DDPMPipeline(unet, theirs)
    pipe.scheduler = again
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(5)
    images = pipe(batch_size=8, num_inference_steps=4, generator=rng, output_type="np").images
    drawn = torch.randn(8, 2, 1, 1, generator=torch.Generator().manual_seed(5), dtype=unet.dtype)
    out = orn.sample(model, x_init=drawn, table=tuned.table).x
    shown = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.as_tensor(images), shown, rtol=0, atol=1e-5, check_dtype=False)
    with pytest.raises(ConfigError, match="compiled tables"):
        OrnsteinScheduler.from_config(theirs, table=3)

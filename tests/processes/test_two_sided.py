"""Processes between two laws of data: draws, targets, training, what runs on them and what is refused."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import Interpolant, InterpolantLevel, TwoSided
from ornstein.solvers import RK4, AdamsBashforth, EulerMaruyama, StochasticHeun, Table
from ornstein.training import Coupled, Objective, OneStep, reflow_pairs
from worlds import F64, name, normal

PROCESSES = [TwoSided(), TwoSided(orn.Cosine()), Interpolant(), Interpolant(orn.Cosine(), noise_level=0.3)]
MIXED = [TwoSided(), Interpolant()]


def plane() -> TwoSidedMixture:
    data = GaussianMixture(2 * normal(3, 2, seed=2), 0.5, torch.tensor([1.0, 2, 3]))
    return TwoSidedMixture(data, GaussianMixture(2 * normal(2, 2, seed=3), torch.tensor([0.4, 0.7], dtype=F64)))


def smooth() -> TwoSidedMixture:
    """Wide components, where 20 steps are already those of the asymptotic order."""
    data = GaussianMixture(normal(3, 2, seed=2), 0.9, torch.tensor([1.0, 2, 3]))
    return TwoSidedMixture(data, GaussianMixture(normal(2, 2, seed=3), torch.tensor([0.8, 1.0], dtype=F64)))


def velocity_and_noise(world, process):
    """Two models as a user has them, who learned each apart."""
    exact = {view: world.denoiser(process, view) for view in ("velocity", "noise")}

    def model(view):
        def net(x, t):
            out = exact[view].forward(x, t)
            return out["main"] if isinstance(out, dict) else out

        return orn.Denoiser(net, process, predicts=view)

    return model("velocity"), model("noise")


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_draws_and_targets(process):
    """x_t = alpha x0 + beta x1 + gamma z, and the velocity target is its derivative with all three held."""
    x0, x1, z = (normal(5, 3, seed=i) for i in range(3))
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    given = {"noise": z} if isinstance(process, Interpolant) else {}

    def path(t):
        return process.corrupt(x0, t, x1, **given)

    drawn = path(t)
    base = process.base.level(t)
    expected = base.alpha[:, None] * x0 + base.sigma[:, None] * x1
    if isinstance(process, Interpolant):
        expected = expected + torch.sqrt(process.noise_level * t * (1 - t))[:, None] * z
        torch.testing.assert_close(drawn.target("noise"), z)
        torch.testing.assert_close(drawn.target("score"), -z / process.gamma(t)[:, None])
    else:
        torch.testing.assert_close(drawn.target("noise"), x1)
        torch.testing.assert_close(process.corrupt(x0, t, noise=x1).x, drawn.x)
    torch.testing.assert_close(drawn.x, expected)
    torch.testing.assert_close(drawn.target("x0"), x0)
    h = 1e-5
    slope = (path(t + h).x - path(t - h).x) / (2 * h)
    torch.testing.assert_close(drawn.target("velocity"), slope, rtol=1e-6, atol=1e-6)
    for end, x in ((0.0, x0), (1.0, x1)):
        torch.testing.assert_close(process.corrupt(x0, end, x1).x, x, rtol=0, atol=1e-12)
    assert torch.equal(process.corrupt(x0, 0.3, x1, seed=4).x, process.corrupt(x0, 0.3, x1, seed=4).x)


@pytest.mark.parametrize("process", MIXED, ids=name)
def test_training_takes_the_other_end(process):
    """The loss of the exact model is the least: at each view the error target - exact is uncorrelated with functions of
    x_t (5 standard errors of 20,000 draws), and the network is asked without x1. With pairs that are not those of the
    world (rolled by one row) it is not."""
    world, n = plane(), 20_000
    pairs = TwoSidedMixture(world.data, world.other, torch.tensor([[1.0, 0], [1, 1], [1, 2]], dtype=F64) / 6)
    x0, x1 = pairs.sample(n, seed=5, dtype=F64)
    t = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=F64)
    for view in ("velocity",) if isinstance(process, TwoSided) else ("velocity", "noise"):
        for kept in (True, False):
            drawn = process.corrupt(x0, t, x1 if kept else x1.roll(1, 0), seed=2)
            answer = pairs.denoiser(process, view)(drawn.x, t).view(view)
            error = drawn.target(view) - answer
            probes = torch.stack([torch.ones_like(t), drawn.x[:, 0], drawn.x[:, 1], torch.sin(drawn.x.sum(1)), t])
            products = (error[None] * probes[..., None]).flatten(2)
            z = products.mean(1) / (products.std(1) / math.sqrt(n))
            assert (float(z.abs().max()) < 5) == kept or view == "noise"  # z knows nothing of the pairs

    seen = []

    def net(x, t, cond=None):
        seen.append(cond)
        return torch.zeros_like(x)

    model = orn.Denoiser(net, process, predicts="velocity")
    label = torch.arange(8)
    loss = Objective()(model, x0[:8], {"x1": x1[:8], "label": label}, seed=0)
    assert list(seen[-1]) == ["label"]
    Objective()(model, x0[:8], {"x1": x1[:8]}, seed=0)
    assert seen[-1] is None
    assert torch.equal(loss, Coupled()(model, x0[:8], {"x1": x1[:8], "label": label}, seed=0))
    named = type(process)(end="source")
    other = orn.Denoiser(net, named, predicts="velocity")
    assert torch.equal(loss, Objective()(other, x0[:8], {"source": x1[:8], "label": label}, seed=0))
    for cond in (None, {"label": label}):
        with pytest.raises(ValueError, match=r"runs between two laws: train with cond=\{'x1': x1\}"):
            Objective()(model, x0[:8], cond, seed=0)


def test_one_step_learns_at_the_end_alone():
    """The loss of a velocity at t = 1 is E |x1 - x0 - answer|^2 / d, and no other time is asked."""
    times = []

    def net(x, t):
        times.append(t)
        return 0.5 * x

    x0, x1 = normal(6, 2), normal(6, 2, seed=1)
    loss = OneStep()(orn.Denoiser(net, TwoSided(), predicts="velocity"), x0, {"x1": x1}, seed=0)
    assert bool((times[-1] == 1).all())
    expected = (x1 - x0 - 0.5 * x1).square().sum(1).mean() / 2 / 2  # UnitTarget: alpha'^2 + sigma'^2 = 2
    torch.testing.assert_close(loss, expected)
    flow = OneStep()(orn.Denoiser(net, orn.Flow(), predicts="velocity"), x0, {"noise": x1}, seed=0)
    torch.testing.assert_close(flow, expected)


ORDERS = [
    (orn.Euler(), 1, TwoSided()),
    (orn.Heun(variable="t"), 2, TwoSided()),
    (orn.DDIM(), 1, TwoSided()),
    (orn.UniPC(), 3, TwoSided(orn.Cosine())),
    (orn.Euler(), 1, Interpolant()),
    (orn.Heun(variable="t"), 2, Interpolant()),
    (AdamsBashforth(order=2, variable="t"), 2, Interpolant(noise_level=0.3)),
    (RK4(variable="t"), 4, Interpolant()),
]


@pytest.mark.parametrize(("solver", "order", "process"), ORDERS, ids=name)
def test_orders(solver, order, process):
    """Slopes to the exact flow, from t = 0.95 to 0.05 and back along a rising grid, within 0.3 of theory."""
    world = smooth()
    for ends in ((0.95, 0.05), (0.05, 0.95)):
        x = world.at(process, ends[0]).sample(12, seed=0, dtype=F64)
        truth = world.flow(process, x, *ends, rtol=1e-12, atol=1e-13)
        found = []
        for steps in (20, 40):
            grid = torch.linspace(*ends, steps + 1, dtype=F64)
            out = orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=grid).x
            found.append(float((out - truth).square().mean().sqrt()))
        assert min(found) > 1e-10, found
        assert math.log2(found[0] / found[1]) == pytest.approx(order, abs=0.3), (ends, found)


def test_default_samplers_reach_data():
    """Without a solver or a grid: UniPC between two laws, Heun in t with latent noise; both to the exact flow."""
    world = plane()
    x1 = world.sample(64, seed=1, dtype=F64)[1]
    for process, solver in ((TwoSided(), "UniPC"), (Interpolant(), "Heun(variable='t')")):
        truth = world.flow(process, x1, 1.0, 0.0, rtol=1e-8, atol=1e-9)
        outs = {steps: orn.sample(world.denoiser(process), x_init=x1, steps=steps) for steps in (20, 80)}
        assert outs[20].table.solver.startswith(solver)
        errors = [float((out.x - truth).norm(dim=1).median()) for out in outs.values()]
        assert errors[1] < errors[0] / 8  # 16 at order 2
        assert errors[1] < 0.01
    with pytest.raises(ValueError, match="sample with x_init=x1"):
        orn.sample(world.denoiser(TwoSided()), (4, 2))
    with pytest.raises(ValueError, match="sample with x_init=x1"):
        orn.sample(world.denoiser(Interpolant()), (4, 2))


@pytest.mark.parametrize("diffusion", [0.0, 1.0, lambda level: 0.5 * level.sigma**2], ids=["flow", "default", "own"])
def test_heads_are_the_exact_denoiser(diffusion):
    """A velocity and a noise learned apart, as one model, run every sampler as the exact denoiser does, and both cost
    an evaluation. The velocity alone runs the flow alone."""
    world, process = plane(), Interpolant()
    velocity, noise = velocity_and_noise(world, process)
    both = orn.Heads(velocity, latent=noise)
    x1 = world.sample(16, seed=1, dtype=F64)[1]
    for solver in (EulerMaruyama(diffusion), StochasticHeun(diffusion)):
        # inside: a score from a noise has no limit at the ends
        runs = [
            orn.sample(model, x_init=x1, solver=solver, grid=torch.linspace(0.99, 0.01, 9, dtype=F64), seed=7)
            for model in (both, world.denoiser(process))
        ]
        torch.testing.assert_close(runs[0].x, runs[1].x)
        assert runs[0].nfe == 2 * runs[1].nfe
    if diffusion == 1.0:  # nothing is drawn at the ends, so the default reaches them
        outs = [
            orn.sample(m, x_init=x1, solver=EulerMaruyama(), steps=9, seed=7).x for m in (both, world.denoiser(process))
        ]
        torch.testing.assert_close(*outs)
        with pytest.raises(orn.ViewError, match="score does not follow from what this model answers, velocity"):
            orn.sample(velocity, x_init=x1, solver=EulerMaruyama(), steps=4, grid=orn.Uniform())
        turned = orn.sample(orn.Heads(noise, b=velocity), x_init=x1, steps=5, grid=orn.Uniform()).x
        torch.testing.assert_close(turned, orn.sample(velocity, x_init=x1, steps=5, grid=orn.Uniform()).x)
    answer = both(x1, 0.4)
    torch.testing.assert_close(answer.score, world.score(x1, process, 0.4))
    torch.testing.assert_close(answer.head("latent").noise, answer.noise)


def test_heads_refuse():
    world = plane()
    velocity, noise = velocity_and_noise(world, Interpolant())
    other = velocity_and_noise(world, Interpolant(noise_level=0.5))[1]
    with pytest.raises(ValueError, match=r"latent is a model of Interpolant.*0.5.*the main one of Interpolant.*1.0"):
        orn.Heads(velocity, latent=other)
    scaled = orn.Denoiser(noise.net, Interpolant(), "noise", scaling=orn.Scaling(1.0, 2.0))
    with pytest.raises(ValueError, match="latent has another scaling than the main model"):
        orn.Heads(velocity, latent=scaled)
    same = orn.Denoiser(velocity.net, Interpolant(), "velocity", scaling=orn.Scaling(1.0, 2.0))
    assert orn.Heads(same, latent=scaled).scaling is same.scaling
    with pytest.raises(ValueError, match="no further heads"):
        orn.Heads(orn.Heads(velocity, latent=noise), more=noise)


GATES = [
    (orn.EulerMaruyama(), TwoSided(), r"reads score, which TwoSided.* does not have \(it has x0, noise, velocity, v\)"),
    (orn.DDIM(eta=1.0), TwoSided(), "draws noise, and TwoSided.*is no diffusion"),
    (orn.DDIM(), Interpolant(), "(reads x0|reads noise), which Interpolant.* Choose one in t: Euler"),
    (orn.DPMSolverPP(), Interpolant(), "reads .*, which Interpolant.* Choose one in t: Euler"),
    (orn.UniPC(), Interpolant(), "reads .*, which Interpolant"),
    (orn.Heun(), Interpolant(), "reads .*, which Interpolant"),
    (EulerMaruyama(lambda level: 1 + level.t), Interpolant(noise_level=0.0), "draws noise, and Interpolant"),
]


@pytest.mark.parametrize(("solver", "process", "message"), GATES, ids=name)
def test_gates(solver, process, message):
    """What a process does not have is refused by name before anything runs."""
    with pytest.raises(ValueError, match=message):
        solver.compile(process, orn.Uniform(0.9, 0.1)(process, steps=4))


def test_other_refusals():
    """Each bad input with its value and the way out."""
    x = normal(4, 2)
    for process in MIXED:
        with pytest.raises(ValueError, match=r"train with cond=\{'x1': x1\}.*x_init=x1"):
            process.corrupt(x, 0.5)
        with pytest.raises(ValueError, match=r"x0 is \(4, 2\), x1 \(3, 2\): give one x1 for each x0"):
            process.corrupt(x, 0.5, x[:3])
        with pytest.raises(ValueError, match=r"x1 is torch.int64: data are floating-point"):
            process.corrupt(x, 0.5, torch.ones(4, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match="runs between two laws"):
            process.prior((4, 2))
        with pytest.raises(ValueError, match=r"t = 1.5 lies outside"):
            process.corrupt(x, 1.5, x)
        model = orn.Denoiser(lambda x, t: x, process, predicts="velocity")
        with pytest.raises(ValueError, match="give x1=, states at t = 1, and no shape"):
            reflow_pairs(model, (4, 2))
        with pytest.raises(ValueError, match="one GaussianProcess"):
            orn.training.invert_pairs(model, x)
    with pytest.raises(ValueError, match="draws its noise: give a shape"):
        reflow_pairs(orn.Denoiser(lambda x, t: x, orn.Flow()), x1=x)
    with pytest.raises(ValueError, match=r"noise_level=-1"):
        Interpolant(noise_level=-1.0)
    with pytest.raises(Exception, match=r"AffineProcess|takes its schedule from a process"):
        TwoSided("flow")
    with pytest.raises(orn.ViewError, match="has no v: choose from velocity, noise, score, x0"):
        orn.Denoiser(lambda x, t: x, Interpolant(), predicts="v")
    with pytest.raises(orn.ViewError, match="not finite at the ends"):
        Interpolant().corrupt(x, 1.0, x, seed=0).target("velocity")
    with pytest.raises(ValueError, match=r"noise of shape \(2, 2\) for data of shape \(4, 2\)"):
        Interpolant().corrupt(x, 0.5, x, noise=x[:2])
    for process in MIXED:  # its end is data, of which no density is known
        model = plane().denoiser(process)
        with pytest.raises(ValueError, match=r"no known density|process of one component with a noise"):
            orn.density.log_likelihood(model, x, rtol=1e-2, atol=1e-2)


def test_tables_keep_their_levels(tmp_path):
    """A table of an interpolant is saved and read with both schedules, runs as before, and belongs to its process."""
    world, process = plane(), Interpolant(noise_level=0.5)
    x1 = world.sample(8, seed=1, dtype=F64)[1]
    table = EulerMaruyama().compile(process, orn.Uniform()(process, steps=6))
    table.save(tmp_path / "table.json")
    read = Table.load(tmp_path / "table.json")
    assert isinstance(read.start, InterpolantLevel)
    for level, other in zip(table.levels, read.levels, strict=True):
        for part in ("t", "alpha", "beta", "sigma", "d_alpha", "d_beta", "d_sigma", "log_snr"):
            assert torch.equal(getattr(level, part), getattr(other, part)), part
    runs = [orn.sample(world.denoiser(process), x_init=x1, table=each, seed=3).x for each in (table, read)]
    assert torch.equal(*runs)
    for other in (Interpolant(noise_level=0.4), Interpolant(orn.Cosine(), noise_level=0.5), TwoSided(), orn.Flow()):
        with pytest.raises(orn.TableError, match=r"another process|for states of a InterpolantLevel"):
            read.check_process(other)


def test_latent_noise_is_one_function():
    """A process with another gamma^2 trains and samples: its velocity is the derivative of its path."""

    class Quartic(Interpolant):
        def gamma2(self, t):
            return (t * (1 - t)) ** 2

    process, world = Quartic(), plane()
    t = torch.tensor([0.2, 0.7], dtype=F64)
    torch.testing.assert_close(process.d_gamma(t), 1 - 2 * t)
    torch.testing.assert_close(process.level(t[:1].expand(3)).d_sigma, torch.full((3,), 0.6, dtype=F64))
    x1 = world.sample(16, seed=1, dtype=F64)[1]
    truth = world.flow(process, x1, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    out = orn.sample(world.denoiser(process), x_init=x1, steps=80).x
    assert float((out - truth).norm(dim=1).median()) < 0.01


def test_pairs_of_a_flow_between_laws():
    """(X(x1), x1) of the exact flow, under the name that training reads, in any batches; and they train a student."""
    world, process = plane(), TwoSided(end="source")
    x1 = world.sample(40, seed=1, dtype=F64)[1]
    teacher = world.denoiser(process)
    pairs = reflow_pairs(teacher, x1=x1, steps=40)
    truth = world.flow(process, x1, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    assert float((pairs.x0 - truth).norm(dim=1).median()) < 0.02
    assert torch.equal(pairs.cond["source"], x1)
    small = reflow_pairs(teacher, x1=x1, steps=40, batch_size=16)
    torch.testing.assert_close(small.x0, pairs.x0)
    both = pairs + small
    assert len(both) == 80
    assert list(both.cond) == ["source"]
    student = orn.Denoiser(orn.nets.MLP(2, width=8, depth=1), process, "velocity")
    orn.fit(student, both.x0.float(), cond={"source": both.noise.float()}, steps=2, batch_size=8, progress=False)
    assert bool((student.net.last[1].weight != 0).any())

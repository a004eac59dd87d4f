"""The exponential engine against symbolic integrals, the family's equivalences to rounding, and its ends."""

import itertools
import math

import mpmath
import pytest
import sympy
import torch

import ornstein as orn
from ornstein.numerics.quadrature import gauss_legendre, lagrange
from ornstein.numerics.spline import Spline
from ornstein.solvers import (
    DEIS,
    DPMSolver,
    DPMSolverPP,
    DPMSolverV3,
    ModelStatistics,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)
from ornstein.solvers.exponential import _series, fresh_std, half_step, moments, secant_weights, transfer, weights
from worlds import F64, at, name, normal, ring

WORLD = ring()
PROCESSES = [orn.VP(), orn.EDM(), orn.Flow()]
INSIDE = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
ODE = [
    *(cls(order=k, mode=m) for cls in (DPMSolver, DPMSolverPP) for m in ("multistep", "singlestep") for k in (1, 2, 3)),
    *(UniPC(order=k, predicts=view) for k in (1, 2, 3, 4) for view in ("x0", "noise")),
    UniPC(order=1, variant="bh1"),
    UniPC(order=2, variant="vary_coeff", corrector=False),
    *(DEIS(order=r, method=m) for m in ("tAB", "rhoAB", "rhoRK") for r in (0, 1, 3)),
    SASolver(tau=0.0),
]
SDE = [
    SDEDPMSolverPP(order=1),
    SDEDPMSolverPP(order=2),
    SASolver(),
    SASolver(predictor=2, corrector=1, tau=0.4),
    SASolver(predictor=2, corrector=2, tau=lambda level: torch.sigmoid(-level.log_snr)),
]


# ---- the engine


@pytest.mark.parametrize("h", [-30.0, -2.5, -0.999, -1e-3, 1e-9, 0.3, 1.0, 1.7, 40.0])
def test_moments(h):
    """h^-k int_{-h}^0 e^u u^k du by quadrature of 30 digits; by parts loses h^-3 roundings at |h| = 1 and fewer
    beyond, which stay below 1e-13 relative to the largest."""
    with mpmath.workdps(30):
        truth = [mpmath.quad(lambda u, k=k: mpmath.exp(u) * (u / h) ** k, [-h, 0]) for k in range(5)]
    found = moments(torch.tensor(h, dtype=F64), 5)
    for k in range(5):
        assert float(found[k]) == pytest.approx(float(truth[k]), rel=1e-12, abs=1e-13 * abs(float(truth[0])))


def test_moments_have_derivatives():
    """dI_0/dh = e^-h, d2I_0/dh2 = -e^-h, though the series was first summed where nothing has a gradient; each of a
    batch alone under vmap."""
    _series.cache_clear()
    h = torch.tensor([-1.5, 0.0, 0.3, 2.0], dtype=F64)
    with torch.inference_mode():
        moments(h[1:3], 1)
    v = h.clone().requires_grad_()
    (first,) = torch.autograd.grad(moments(v, 1)[..., 0].sum(), v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), v)
    assert torch.allclose(first, torch.exp(-h), rtol=1e-12)
    assert torch.allclose(second, -torch.exp(-h), rtol=1e-12)
    assert torch.allclose(torch.vmap(lambda one: moments(one, 3))(h), moments(h, 3), rtol=1e-12)


def test_weights_have_second_derivatives_where_a_node_is_the_end():
    """A corrector's node at s, r = 0: the second derivative in the time t is the difference of first ones."""
    others = torch.tensor([0.8, 0.3], dtype=F64)

    def corrector(t):
        o, s = orn.VP().level(others)
        return weights(orn.VP().level(t), s, [orn.VP().level(t), o, s])[2]

    slope, t, e = torch.func.grad(corrector), torch.tensor(0.5, dtype=F64), 1e-5
    difference = (slope(t + e) - slope(t - e)) / (2 * e)
    assert float(torch.func.grad(slope)(t)) == pytest.approx(float(difference), rel=1e-6)


def symbolic_weights(t, s, nodes, view, tau):
    """The weights integrated by sympy from their definition, in 30 digits."""
    u = sympy.Symbol("u")
    h = sympy.Float(float(half_step(t, s)), 30)
    at_nodes = [sympy.Float(float(half_step(s, node)), 30) for node in nodes]
    factor = 1 + sympy.Float(tau, 30) ** 2
    if view == "x0":
        kernel = sympy.Float(float(s.alpha), 30) * factor * sympy.exp(factor * u)
    else:
        kernel = -sympy.Float(float(s.sigma), 30) * factor * sympy.exp(-u)
    found = []
    for j, own in enumerate(at_nodes):
        poly = sympy.prod([(u - other) / (own - other) for i, other in enumerate(at_nodes) if i != j])
        found.append(float(sympy.integrate(sympy.expand(kernel * sympy.expand(poly)), (u, -h, 0))))
    return found


@pytest.mark.parametrize("view", ["x0", "noise"])
@pytest.mark.parametrize("tau", [0.0, 0.6])
def test_weights_are_the_integrals_of_lagrange_polynomials(view, tau):
    levels = orn.VP().level(torch.tensor([0.8, 0.6, 0.45, 0.2, 0.15], dtype=F64))
    t, s = levels[2], levels[3]
    for nodes in ([t, levels[1]], [t, levels[1], levels[0], s]):
        found = [float(w) for w in weights(t, s, nodes, view, tau)]
        assert found == pytest.approx(symbolic_weights(t, s, nodes, view, tau), rel=1e-10)


def test_closed_forms_of_the_papers():
    """With r the place of the other node: the coefficients of DPM-Solver-3's last two stages, of 2S, 2M and SDE-2M."""
    levels = orn.VP().level(torch.tensor([0.6, 0.45, 0.3, 0.2], dtype=F64))
    before, t, middle, s = levels
    h, e = float(half_step(t, s)), math.expm1
    r = float(half_step(t, middle)) / h
    slope = -float(s.sigma) / r * (e(h) / h - 1)  # DPM-Solver-3: sigma_s/r ((e^h - 1)/h - 1) D
    assert [float(w) for w in weights(t, s, [t, middle], "noise")] == pytest.approx(
        [-float(s.sigma) * e(h) - slope, slope], rel=1e-12
    )
    slope = float(s.alpha) / r * (e(-h) / h + 1)  # DPM-Solver++ 3S: alpha_s/r ((e^-h - 1)/h + 1) D
    assert [float(w) for w in weights(t, s, [t, middle])] == pytest.approx(
        [-float(s.alpha) * e(-h) - slope, slope], rel=1e-12
    )
    for node, place in ((middle, r), (before, float(half_step(t, before)) / h)):
        for view, tau, whole in (
            ("x0", 0.0, -float(s.alpha) * e(-h)),  # 2S (r > 0) and 2M (r = -h'/h)
            ("noise", 0.0, -float(s.sigma) * e(h)),  # DPM-Solver-2
            ("x0", 1.0, -float(s.alpha) * e(-2 * h)),  # SDE-DPM-Solver++ 2M
            ("noise", 1.0, -2 * float(s.sigma) * e(h)),
        ):
            found = [float(w) for w in secant_weights(t, s, node, view, tau)]
            assert found == pytest.approx([whole * (1 - 1 / (2 * place)), whole / (2 * place)], rel=1e-12)
    b = float(s.alpha) * h / (2 * r)  # UniPC's B(h) = h
    assert float(secant_weights(t, s, middle, b="bh1")[1]) == pytest.approx(b, rel=1e-12)


def test_the_published_third_order_formula():
    """-alpha phi_1 m0 + alpha phi_2 D1 - alpha phi_3 D2 with the divided differences of the published code: D1 that of
    the parabola, D2 half of its second derivative. variant="exact" has twice the last term."""
    process = orn.VP()
    grid = process.level(torch.tensor([0.8, 0.65, 0.4, 0.2], dtype=F64))
    h1, h0, h = (float(half_step(a, b)) for a, b in itertools.pairwise(grid))
    phi1 = math.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    r0, r1 = h0 / h, h1 / h
    m = torch.eye(3, dtype=F64)  # the coefficients of the evaluations, newest first
    near, far = (m[0] - m[1]) / r0, (m[1] - m[2]) / r1
    d1, d2 = near + r0 / (r0 + r1) * (near - far), (near - far) / (r0 + r1)
    for variant, factor in (("published", 1), ("exact", 2)):
        table = DPMSolverPP(order=3, start="published", variant=variant).compile(process, grid)
        expected = grid[-1].alpha * (-phi1 * m[0] + phi2 * d1 - factor * phi3 * d2)
        found = [float(c) for atom, c in table.rows[-1].terms.items() if str(atom).startswith("x0")]
        assert found == pytest.approx(expected.tolist(), rel=1e-11)


def test_unipc_solves_the_system_of_its_paper():
    """R_p a B = phi with R[k, m] = r_m^(k-1), phi_k = k! varphi_{k+1}(-h) (-h)^k, in symbols: the engine's weights."""
    levels = orn.VP().level(torch.tensor([0.8, 0.6, 0.45, 0.2], dtype=F64))
    t, s, nodes = levels[2], levels[3], [levels[1], levels[0], levels[3]]
    h = sympy.Float(float(half_step(t, s)), 30)
    r = [sympy.Float(float(half_step(t, node) / half_step(t, s)), 30) for node in nodes]
    varphi = [sympy.exp(-h)]
    for k in range(4):
        varphi.append((varphi[-1] - 1 / sympy.factorial(k)) / -h)
    system = sympy.Matrix(3, 3, lambda k, m: r[m] ** k)
    right = sympy.Matrix([h * sympy.factorial(k) * varphi[k + 1] for k in (1, 2, 3)])
    a = system.solve(right)
    expected = [float(s.alpha * float(a[m] / r[m])) for m in range(3)]
    found = [float(w) for w in weights(t, s, [t, *nodes])]
    assert found[1:] == pytest.approx(expected, rel=1e-10)
    assert sum(found) == pytest.approx(float(-s.alpha * torch.expm1(-half_step(t, s))), rel=1e-12)


def test_transfer_and_fresh_noise_are_those_of_the_reverse_sde():
    """d var/d lambda of the linear SDE dx = (1 + tau^2) [...] integrated: after two steps the same as after one."""
    t, m, s = orn.VP().level(torch.tensor([0.6, 0.4, 0.2], dtype=F64))
    for view in ("x0", "noise"):
        for tau in (0.0, 0.3, 1.0):
            assert float(transfer(t, s, view, tau)) == pytest.approx(
                float(transfer(t, m, view, tau) * transfer(m, s, view, tau)), rel=1e-13
            )
            two = transfer(m, s, view, tau) ** 2 * fresh_std(t, m, view, tau) ** 2 + fresh_std(m, s, view, tau) ** 2
            assert float(fresh_std(t, s, view, tau)) == pytest.approx(float(two.sqrt()), rel=1e-12)


def test_quadrature_and_splines():
    points, measure = gauss_legendre(7)
    for k in range(14):  # exact below degree 14
        assert float((measure * points**k).sum()) == pytest.approx((1 + (-1) ** k) / (k + 1), abs=1e-14)
    knots, at_ = torch.tensor([-1.0, 0.2, 0.9, 2.0], dtype=F64), torch.linspace(-1, 2, 9, dtype=F64)
    torch.testing.assert_close(lagrange(at_, knots) @ knots**3, at_**3, rtol=1e-12, atol=1e-12)
    curve = Spline(torch.linspace(0, math.pi, 60, dtype=F64))
    sine = torch.sin(curve.knots)  # natural: sin'' = 0 at both ends; the error of cubic splines is (5/384) h^4
    x = torch.linspace(0.01, 3.1, 33, dtype=F64)
    bound = 5 / 384 * (math.pi / 59) ** 4
    assert float((curve.cardinal(x) @ sine - x.sin()).abs().max()) < bound
    assert float((curve.primitive(x) @ sine - (1 - x.cos())).abs().max()) < bound * math.pi
    slope = torch.func.jvp(lambda v: curve.cardinal(v) @ sine, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(curve.slope(x) @ sine, slope, rtol=1e-11, atol=1e-11)


# ---- equivalences


class ScaledEuler(orn.Solver):
    """Euler's method for y = x/alpha in rho = sigma/alpha: dy/d rho = noise."""

    def write(self, table, grid):
        x = table.state
        for t, s in itertools.pairwise(grid):
            noise = table.evaluate(x, t).noise
            x = table.step((s.alpha / t.alpha) * x + s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha) * noise, s)


def run(process, solver, grid, steps, **options):
    x = at(process, grid(process, steps=1)[0], WORLD, 6)
    return orn.sample(WORLD.denoiser(process), x_init=x, solver=solver, grid=grid, steps=steps, **options).x


SAME = {
    "ddim": (
        orn.DDIM(), ScaledEuler(), DPMSolver(order=1), DPMSolver(order=1, mode="singlestep"), DPMSolverPP(order=1),
        UniPC(order=1, corrector=False), UniPC(order=1, corrector=False, predicts="noise"), DEIS(order=0),
        DEIS(order=0, method="rhoAB"), DEIS(order=0, method="rhoRK"), SASolver(predictor=1, corrector=0, tau=0.0),
    ),
    "2M": (DPMSolverPP(order=2), UniPC(order=2, corrector=False)),
    "2M of noise": (DPMSolver(order=2), UniPC(order=2, corrector=False, predicts="noise")),
    "multistep in lambda": (DPMSolver(order=3), DEIS(order=2, method="lambdaAB")),
    "Heun in rho": (orn.Heun(), DEIS(order=1, method="rhoRK")),
    "Adams": (SASolver(predictor=3, corrector=3, tau=0.0), UniPC(order=3, start="published", variant="vary_coeff")),
    "data prediction": (
        DPMSolverV3(order=3, statistics=ModelStatistics.constant(1, 0)), UniPC(order=3, variant="vary_coeff"),
    ),
    "noise prediction": (
        DPMSolverV3(order=2, statistics=ModelStatistics.constant(0, -1)),
        UniPC(order=2, variant="vary_coeff", predicts="noise"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_one_method_under_several_names(name):
    """To rounding, in 20 steps of states of size 10 at most whose weights may be 10 times larger: 1e-12."""
    for process in PROCESSES:
        first, *others = [run(process, solver, INSIDE, 20) for solver in SAME[name]]
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-12, atol=1e-11)


def test_different_methods_differ():
    grid = INSIDE
    found = [run(orn.VP(), solvers[0], grid, 20) for solvers in SAME.values()]
    found += [run(orn.VP(), UniPC(order=1, variant=v), grid, 20) for v in ("bh1", "bh2", "vary_coeff")]
    for a, b in itertools.combinations(found, 2):
        assert float((a - b).abs().max()) > 1e-7


def test_stochastic_methods_under_several_names():
    """The table's coefficients themselves: SDE-DPM-Solver++ 1, SA-Solver of one evaluation and DDIM with eta = 1."""
    for process in PROCESSES:
        tables = [
            solver.compile(process, INSIDE(process, steps=4))
            for solver in (orn.DDIM(eta=1.0), SDEDPMSolverPP(order=1), SASolver(predictor=1, corrector=0))
        ]
        for rows in zip(*(table.rows[1:] for table in tables), strict=True):
            for atom, c in rows[0].terms.items():
                assert [row.terms[atom] for row in rows[1:]] == pytest.approx([c, c], rel=1e-11)
    half = SASolver(predictor=1, corrector=0, tau=0.5).compile(orn.VP(), INSIDE(orn.VP(), steps=4))
    assert half.rows[1].terms != pytest.approx(tables[0].rows[1].terms, rel=1e-3)


# ---- ends, budgets, directions


@pytest.mark.parametrize("solver", [*ODE, *SDE], ids=name)
def test_few_steps_on_full_grids_keep_a_point_mass(solver):
    """x0 constant: from pure noise to data in 1 to 4 steps the law is exact, N(alpha_s m, sigma_s^2) and at
    data m. (Noise extrapolated in rho over steps of e^2 has weights near 1e4, which leave 1e-8.)"""
    for process in [orn.Flow(), orn.VP()]:
        for grid in (orn.LogSNR(), orn.Karras(), INSIDE):
            for steps in (1, 2, 4) if grid == INSIDE else (1, 2, 3):
                if grid == orn.Karras() and steps == 1:
                    continue
                table = solver.compile(process, grid(process, steps=steps))
                assert table.steps == steps
                out = orn.response(table, 1.7, 0.0)
                first, last = table.start, table.end
                assert float(out.mean(first.alpha * 1.7)) == pytest.approx(float(last.alpha) * 1.7, rel=1e-10)
                variance = float(out.variance(first.sigma**2))
                assert variance == pytest.approx(float(last.sigma**2), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [
        (DPMSolver(order=3), 60),
        (DPMSolverPP(order=3), 60),
        (DPMSolver(order=2, mode="singlestep"), 119),
        (DPMSolverPP(order=3, mode="singlestep"), 178),
        (UniPC(order=2), 60),
        (UniPC(order=3), 62),
        (UniPC(order=4), 66),
        (UniPC(order=4, start="published"), 60),
        (UniPC(order=4, corrector=False), 62),
        (DEIS(order=2), 60),
        (DEIS(order=3), 62),
        (DEIS(order=3, method="rhoRK"), 237),
        (SASolver(), 60),
    ],
    ids=name,
)
def test_evaluations_of_sixty_steps_to_data(solver, nfe):
    """Correction is free and a matched start of order q costs (q - 2)(q - 3) more; the last step to data is one. Where
    the first steps are long there is no such start."""
    process = orn.EDM()  # starts at a finite level, so 59 steps are of full order
    assert solver.compile(process, orn.LogSNR(deepest=-9.0)(process, steps=60)).nfe == nfe
    if "singlestep" not in repr(solver) and "rhoRK" not in repr(solver):
        assert solver.compile(process, orn.LogSNR()(process, steps=10)).nfe == 10


@pytest.mark.parametrize(
    "solver",
    [DPMSolver(order=3), DPMSolverPP(order=2, mode="singlestep"), UniPC(), DEIS(order=2), DEIS(order=1, method="rhoRK"),
     SASolver(predictor=2, corrector=2, tau=0.0)],
    ids=name,
)  # fmt: skip
def test_rising_grids_invert_the_flow(solver):
    process, falling = orn.VP(), INSIDE(orn.VP(), steps=60)
    x = at(process, falling[-1], WORLD, 8)
    truth = WORLD.flow(process, x, falling[-1], falling[0], rtol=1e-9, atol=1e-10)
    rising = process.level(falling.t.flip(0))
    out = orn.sample(WORLD.denoiser(process), x_init=x, solver=solver, grid=rising).x
    assert float((out - truth).norm(dim=1).median()) < 5e-3
    ddim = orn.sample(WORLD.denoiser(process), x_init=x, solver=orn.DDIM(), grid=rising).x
    assert float((ddim - truth).norm(dim=1).median()) > 5e-3


@pytest.mark.parametrize("solver", ODE, ids=name)
def test_rising_to_pure_noise_keeps_a_point_mass(solver):
    """The last step, to alpha = 0, has an infinite log-SNR too: x = sigma noise, exactly."""
    process = orn.Flow()
    table = solver.compile(process, process.level(torch.tensor([0.2, 0.4, 0.7, 1.0], dtype=F64)))
    out = orn.response(table, 1.7, 0.0)
    assert float(out.mean(0.8 * 1.7)) == pytest.approx(0.0, abs=1e-10)
    assert float(out.variance(0.2**2)) == pytest.approx(1.0, rel=1e-9)


def test_inversion_from_data_needs_noise_at_data():
    """At sigma = 0 only a network that predicts noise (or velocity) has an answer; a first step holds it constant."""
    process = orn.Flow()
    rising = process.level(torch.linspace(0.0, 0.9, 13, dtype=F64))
    x = WORLD.sample(8, seed=0).to(F64)
    for solver in (DPMSolver(order=2), UniPC(predicts="noise"), DEIS(order=1)):
        out = orn.sample(WORLD.denoiser(process, predicts="velocity"), x_init=x, solver=solver, grid=rising).x
        assert out.isfinite().all()
        plain = orn.sample(WORLD.denoiser(process, predicts="velocity"), x_init=x, solver=orn.Euler(), grid=rising).x
        assert float((out - plain).norm(dim=1).median()) < 0.5


@pytest.mark.parametrize("solver", SDE, ids=name)
def test_noise_is_not_added_going_up(solver):
    process = orn.VP()
    with pytest.raises(ValueError, match="inversion needs tau = 0"):
        solver.compile(process, process.level(INSIDE(process, steps=5).t.flip(0)))


@pytest.mark.parametrize("solver", [s for s in [*ODE, *SDE] if "3" in name(s) or "2" in name(s)], ids=name)
def test_times_of_their_own_for_each_sample(solver):
    """Two samples with grids of their own in one run are what they are alone (noise left out by its seeds)."""
    process = orn.VP()
    grids = [process.time(torch.linspace(a, b, 6, dtype=F64)) for a, b in ((-4.0, 5.0), (-2.0, 6.0))]
    both = process.level(torch.stack(grids, 1))
    x, oracle = normal(2, 2), WORLD.denoiser(process)
    out = orn.sample(oracle, x_init=x, solver=solver, grid=both, seed=[3, 4]).x
    for i in range(2):
        own = orn.sample(oracle, x_init=x[i : i + 1], solver=solver, grid=process.level(grids[i]), seed=[3 + i]).x
        torch.testing.assert_close(out[i : i + 1], own, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver(order=4), "order=4: choose 1, 2 or 3"),
        (lambda: DPMSolverPP(mode="single"), "mode='single': choose multistep or singlestep"),
        (lambda: DPMSolver(variant="ours"), "variant='ours': choose exact or published"),
        (lambda: UniPC(order=5), "order=5"),
        (lambda: UniPC(variant="bh3"), "variant='bh3': choose bh1, bh2, vary_coeff"),
        (lambda: UniPC(predicts="score"), "predicts='score'"),
        (lambda: DEIS(order=4), "order=4"),
        (lambda: DEIS(method="AB"), "method='AB': choose tAB"),
        (lambda: SASolver(predictor=0), "predictor=0"),
        (lambda: SASolver(corrector=5), "corrector=5"),
        (lambda: SASolver(tau=-1.0), "tau=-1.0"),
        (lambda: SDEDPMSolverPP(order=3), "order=3"),
        (lambda: SDEDPMSolverPP(predicts="v"), "predicts='v'"),
        (lambda: DPMSolverV3(order=4), "order=4"),
        (lambda: DPMSolverV3(start="x"), "start='x'"),
        (lambda: DPMSolverV3().compile(orn.VP(), INSIDE(orn.VP(), steps=3)), "calibrate"),
        (lambda: SASolver(tau=lambda level: -level.t).compile(orn.VP(), INSIDE(orn.VP(), steps=3)), "not negative"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""The referee finds each fault that is planted here, each by the check that is for it, and passes the sound twins.

Bounds are the checks' own (derived where they stand); nothing here is tuned. Known faults of published code that can be
installed in a test run are in the second half; those of other packages are in `benchmarks/referee.py`.
"""

import itertools
import json
import math
import os
import re
import time

import diffusers
import pytest
import torch

import ornstein as orn
from ornstein.cli.app import run as command
from ornstein.referee import Candidate, Claims, adapt, certify, checks, for_solver, load_object
from ornstein.referee.oracle import FRAME, Oracle, State, broad, error, truth
from ornstein.referee.report import CHECKS, chart

NAMES = tuple(CHECKS)


# Sound samplers in the frame x = x0 + sigma noise.
def euler(denoise, x, sigmas, sign=1.0):
    for s, r in itertools.pairwise(sigmas):
        x = x + sign * (r - s) / s * (x - denoise(x, s))
    return x


def heun(denoise, x, sigmas):
    for s, r in itertools.pairwise(sigmas):
        slope = (x - denoise(x, s)) / s
        y = x + (r - s) * slope
        x = y if r == 0 else x + (r - s) * (slope + (y - denoise(y, r)) / r) / 2
    return x


def third(denoise, x, sigmas, two=2.0):
    """With lambda = -log sigma, dx = (D - x) dlambda; D is a parabola through three answers, whose second derivative is
    twice its second divided difference. A last step to 0 goes to D."""
    seen = []
    for s, r in itertools.pairwise(sigmas):
        seen = [(-math.log(s), denoise(x, s)), *seen[:2]]
        (t0, d0), h = seen[0], math.log(s / r) if r > 0 else math.inf
        if r == 0:
            return d0
        b0 = -math.expm1(-h)
        x = math.exp(-h) * x + b0 * d0
        if len(seen) > 1:
            h1, d1 = t0 - seen[1][0], seen[1][1]
            first, second = (d0 - d1) / h1, torch.zeros_like(x)
            if len(seen) > 2:
                h2 = seen[1][0] - seen[2][0]
                divided = (first - (d1 - seen[2][1]) / h2) / (h1 + h2)
                first, second = first + divided * h1, two * divided
            x = x + (h - b0) * first + (h**2 / 2 - (h - b0)) * second
    return x


def ancestral(denoise, x, sigmas, generator, loud=1.0, draw=None):
    """x at r given x at s and x0: mean x0 + (r/s)^2 (x - x0), variance r^2 (1 - (r/s)^2)."""
    for s, r in itertools.pairwise(sigmas):
        x0, q = denoise(x, s), (r / s) ** 2
        z = draw(x) if draw else torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        x = x0 + q * (x - x0) + loud * r * (1 - q).sqrt() * z
    return x


# Faulty ones: what is wrong is said by the check that must find it.
def wrong_sign(denoise, x, sigmas):
    return euler(denoise, x, sigmas, sign=-1.0)


def lost_factor(denoise, x, sigmas):
    return third(denoise, x, sigmas, two=1.0)


def loud_noise(denoise, x, sigmas, generator):
    return ancestral(denoise, x, sigmas, generator, loud=math.sqrt(2))


def no_noise_below_one(denoise, x, sigmas, generator):
    """Stochastic where it does not matter, then the mean of the posterior at every step: too narrow."""
    x = ancestral(denoise, x, torch.cat([sigmas[sigmas > 1], sigmas[sigmas <= 1][:1]]), generator)
    return ancestral(denoise, x, sigmas[sigmas <= 1], generator, loud=0.0)


def leak(denoise, x, sigmas):
    """A step size for the whole batch, from all of its samples."""
    return euler(lambda x, s: denoise(x, s) * (1 + 0.01 * (x / s).square().mean()), x, sigmas)


def global_noise(denoise, x, sigmas, generator):
    return ancestral(denoise, x, sigmas, generator, draw=torch.randn_like)


def unseeded(denoise, x, sigmas, generator):
    fresh = torch.Generator()
    fresh.seed()
    return ancestral(denoise, x, sigmas, fresh)


def doubled(denoise, x, sigmas):
    return euler(denoise, x, sigmas).double()


def imprecise(denoise, x, sigmas):
    """float64 is carried as it is, float32 in bfloat16."""
    rounded = (lambda v: v.bfloat16().float()) if x.dtype == torch.float32 else (lambda v: v)
    return euler(lambda x, s: rounded(denoise(x, s)), x, sigmas)


def nan_at_two(denoise, x, sigmas):
    return euler(denoise, x, sigmas) * (len(sigmas) - 3) / (len(sigmas) - 3 if len(sigmas) != 3 else math.nan)


def index_at_one(denoise, x, sigmas):
    assert sigmas[2] is not None
    return euler(denoise, x, sigmas)


def images_only(denoise, x, sigmas):
    return euler(denoise, x.reshape(*x.shape[:2], 1, 1) if x.dim() == 2 else torch.einsum("bchw->bchw", x), sigmas)


def early_jump(denoise, x, sigmas):
    return euler(denoise, x, torch.cat([sigmas[(sigmas > 1.0) | (sigmas == sigmas[0])], sigmas[-1:]]))


def even_sigmas(denoise, x, sigmas):
    return heun(denoise, x, torch.linspace(float(sigmas[0]), float(sigmas[-1]), len(sigmas), dtype=x.dtype))


def shrunk(denoise, x, sigmas):
    return 0.98 * euler(denoise, x, sigmas)


def twice(denoise, x, sigmas):
    return euler(lambda x, s: (denoise(x, s) + denoise(x, s)) / 2, x, sigmas)


def always_nan(denoise, x, sigmas):
    return x * math.nan


def another_shape(denoise, x, sigmas):
    return x[:, :1]


def raises(denoise, x, sigmas):
    raise KeyError("no such step")


def no_tensor(denoise, x, sigmas):
    return [x]


TWO = Claims(order=2, nfe_per_step=2, stochastic=False)
ONE = Claims(order=1, nfe_per_step=1, stochastic=False)
SOUND = [(euler, ONE), (heun, TWO), (third, Claims(order=3, nfe_per_step=1)), (ancestral, Claims(stochastic=True))]


@pytest.mark.parametrize(("fn", "claims"), SOUND, ids=lambda v: getattr(v, "__name__", ""))
def test_a_sound_sampler_passes(fn, claims):
    report = certify(fn, claims=claims, isolate=False)
    assert report.passed, report.table()
    assert [finding.check for finding in report.findings] == list(NAMES)


@pytest.mark.parametrize(
    ("fn", "check", "claims", "words"),
    [
        (wrong_sign, "order", ONE, "does not vanish"),
        (lost_factor, "order", Claims(order=3), "called order 3, and converges at order 2"),
        (euler, "order", TWO, "called order 2, and converges at order 1"),
        (no_noise_below_one, "law", None, "do not have the law"),
        (leak, "batch", ONE, "influence each other"),
        (global_noise, "seeds", None, "global generator"),
        (unseeded, "seeds", None, "same seed gives another result"),
        (euler, "seeds", Claims(stochastic=True), "another seed changes nothing"),
        (ancestral, "seeds", Claims(stochastic=False), "called deterministic"),
        (doubled, "dtype", ONE, "float32 becomes float64"),
        (imprecise, "dtype", ONE, "float32 is far from float64"),
        (nan_at_two, "options", ONE, "not finite: Karras levels, 2 steps"),
        (index_at_one, "options", ONE, "IndexError"),
        (images_only, "shapes", ONE, "(n, 2, 1, 1, 1)"),
        (early_jump, "converges", ONE, "more steps help little"),
        (even_sigmas, "rival", TWO, "plain Euler is more accurate"),
        (shrunk, "constant", ONE, "does not end where the denoiser points"),
        (wrong_sign, "constant", ONE, "does not end where the denoiser points"),
        (twice, "nfe", ONE, "another number of times"),
        (heun, "nfe", ONE, "another number of times"),
        (always_nan, "runs", None, "NaN"),
        (another_shape, "runs", None, "another shape"),
        (raises, "runs", None, "raises"),
        (no_tensor, "runs", None, "raises"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_planted_fault_is_found(fn, check, claims, words):
    report = certify(fn, claims=claims, checks=[check], isolate=False)
    (finding,) = report.findings
    assert finding.verdict == "fail", report.table()
    assert words in finding.why
    assert not report.passed


def test_a_measured_order_is_that_of_the_method():
    """Nearest to that whole number: the lost factor leaves order 2, and with it the order is 3."""
    for fn, slope in ((lost_factor, 2), (third, 3)):
        found = certify(fn, checks=["order"], isolate=False)["order"]
        assert float(found.figure) == pytest.approx(slope, abs=0.5)


def test_a_measured_variance_is_that_of_the_method():
    """With noise of variance g times too large, ancestral steps on N(m, c) obey, for y = c + s^2 and small steps,
    dv/dy = 2 v/y - g, so that v = y (g + (1 - g) y/y_0): at s = 0 the variance is g times the true one."""
    finding = certify(loud_noise, checks=["law"], isolate=False)["law"]
    found = float(re.search(r"variance ([\d.]+)", finding.figure)[1])
    assert found == pytest.approx(2.0, abs=2.0 * checks.LEVEL * math.sqrt(10 / checks.DRAWS))
    assert finding.verdict == "fail"


def test_a_hang_and_a_death_are_findings():
    """The process that hangs is killed at the timeout, the one that ends itself is noticed; the rest goes on."""

    def hangs_on_float32(denoise, x, sigmas):
        while x.dtype == torch.float32:
            time.sleep(0.01)
        return euler(denoise, x, sigmas)

    def dies_on_images(denoise, x, sigmas):
        if x.dim() > 2:
            os._exit(7)
        return euler(denoise, x, sigmas)

    chosen = ["runs", "nfe", "shapes", "dtype", "constant"]
    hung = certify(hangs_on_float32, checks=chosen, timeout=2.0)
    assert [f.verdict for f in hung.failures] == ["fail"]
    assert (hung["dtype"].why, hung["dtype"].figure) == ("it hangs", "no end after 2 s")
    dead = certify(dies_on_images, checks=chosen)
    assert [f.check for f in dead.failures] == ["shapes"]
    assert (dead["shapes"].why, dead["shapes"].figure) == ("it ends the process", "exit code 7")
    assert dead["dtype"].verdict == "pass"


def test_after_a_first_run_that_fails_nothing_else_is_tried():
    for isolate in (True, False):
        report = certify(raises, isolate=isolate)
        assert [f.check for f in report.failures] == ["runs"]
        assert "KeyError" in report["runs"].figure
        assert {f.verdict for f in report.findings[1:]} == {"not applicable"}


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    certify(global_noise, checks=["runs", "seeds", "batch"], isolate=False)
    assert torch.equal(before, torch.get_rng_state())


# The measuring instruments themselves.
def test_the_oracle_answers_in_every_frame_and_counts():
    """One state in three clothes: x0 + s noise, variance preserving, and straight; two samples asked at once count as
    one evaluation of a batch of two."""
    world, z = broad(), torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    oracle, s = Oracle(world, 2), 0.7
    scales = (1.0, 1 / math.sqrt(1 + s**2), 1 / (1 + s))
    answers = [oracle(a * z, a, a * s) for a in scales]
    exact = world.posterior_mean(z, orn.EDM(), orn.EDM().level(torch.tensor(s / 80, dtype=torch.float64)))
    for answer in answers:
        torch.testing.assert_close(answer, exact, rtol=1e-10, atol=1e-12)
    oracle(z.reshape(2, 2, 1, 1), 1.0, torch.tensor([s, 2 * s]))
    assert oracle.evaluations == 4
    assert oracle.levels == pytest.approx([s, s, s, 2 * s])


def test_the_truth_is_the_flow_between_the_samplers_own_levels():
    """For N(0, 1) the flow scales x/alpha by sqrt(1 + r^2)/sqrt(1 + s^2), also from alpha = 0."""
    world = orn.exact.Gaussian(torch.zeros(2, dtype=torch.float64), cov=torch.eye(2, dtype=torch.float64))
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    start, end = State(x, 0.6, 1.8), State(x, 1.0, 0.5)
    expected = x / 0.6 * math.sqrt(1 + 0.25) / math.sqrt(1 + 9)
    torch.testing.assert_close(truth(world, start, end), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(truth(world, State(x, 0.0, 1.0), end), x * math.sqrt(1.25), rtol=1e-8, atol=1e-10)
    assert error(world, start, State(expected, 1.0, 0.5)) < 1e-8
    assert orn.Flow() == FRAME


def test_the_kolmogorov_distance_is_that_of_its_definition():
    """Of exact samples below its quantile; of a point at 0, 1 - F(0) with F(0) = 0.3 Phi(1/0.3) + 0.7 Phi(-0.8/0.4)."""
    x = checks.two_modes().sample(4000, seed=0).double().flatten()
    assert checks.kolmogorov(x) < checks.KS / math.sqrt(4000)
    below = 0.3 * (1 + math.erf(1 / 0.3 / math.sqrt(2))) / 2 + 0.7 * (1 + math.erf(-2 / math.sqrt(2))) / 2
    assert checks.kolmogorov(torch.zeros(10, dtype=torch.float64)) == pytest.approx(1 - below, abs=1e-9)


# Published code that a test run has.
def test_the_known_faults_of_diffusers_are_found_without_being_told():
    """Third order that is second; 0.34 to 0 in one jump; plain Euler ahead at 20 and 40 evaluations; NaN at order 3
    where the last sigma repeats."""
    third_order = certify(
        diffusers.DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True), checks=["order"], isolate=False
    )
    assert "called order 3, and converges at order 2" in third_order["order"].why
    default = certify(diffusers.DPMSolverMultistepScheduler, checks=["end", "rival"], isolate=False)
    assert [finding.check for finding in default.failures] == ["end", "rival"]
    assert default["end"].figure.startswith("sigma 0.342 to 0 in one step: 60%")
    assert "20 and 40" in default["rival"].why
    tried = dict(adapt(diffusers.DPMSolverMultistepScheduler).settings())
    for k, verdict in ((3, "fail"), (2, "pass")):
        setting = tried[f"(use_karras_sigmas=True, final_sigmas_type='sigma_min', solver_order={k})"]
        finding = certify(setting, checks=["options"], isolate=False)["options"]
        assert finding.verdict == verdict
        assert finding.figure == f"{int(verdict == 'fail')} of 5 runs failed"


def test_a_repeated_last_level_is_found():
    """Karras's sigmas of DEIS end in 0.01 twice; those of DPM++ go on to 0. DEIS in equal steps of time leaves 0.34."""
    deis = diffusers.DEISMultistepScheduler(use_karras_sigmas=True)
    dpm = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    assert "the level is repeated" in certify(deis, checks=["end"], isolate=False)["end"].why
    assert certify(dpm, checks=["end"], isolate=False).passed
    found = certify(diffusers.DEISMultistepScheduler(), checks=["end"], isolate=False)["end"]
    assert (found.verdict, found.figure) == ("fail", "sigma 0.342 to 0.01 in one step: 54% of detail of size 0.15")


def test_a_sound_scheduler_of_diffusers_passes():
    report = certify(diffusers.UniPCMultistepScheduler(use_karras_sigmas=True))
    assert report.passed, report.table()
    assert "solver_order" not in report.name
    assert report.name == "UniPCMultistepScheduler(use_karras_sigmas=True)"


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EulerDiscreteScheduler(),
        diffusers.DDIMScheduler(prediction_type="v_prediction"),
        diffusers.HeunDiscreteScheduler(prediction_type="sample"),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    ],
    ids=lambda s: type(s).__name__,
)
def test_predictions_and_frames_of_diffusers_are_understood(scheduler):
    """A wrong sign or frame in the adaptor would leave no order, and a denoiser of a point not followed."""
    report = certify(scheduler, checks=["order", "constant", "nfe"], isolate=False)
    assert report.passed, report.table()


def test_our_solvers_pass():
    for solver, chosen in (
        (orn.DPMSolverPP(order=3), ["order", "nfe", "end"]),
        (orn.DDPM(), ["constant", "seeds"]),
        (for_solver(orn.DPMSolverPP(), process=orn.EDM()), ["order"]),  # whose log-SNR ends above the probe's
    ):
        report = certify(solver, checks=chosen)
        assert report.passed, report.table()


# The interfaces of k-diffusion and azula, which a test run need not have: Euler as each would write it.
def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for s, r in itertools.pairwise(sigmas):
        x = x + (r - s) * (x - model(x, s * x.new_ones(len(x)), **(extra_args or {}))) / s
    return x


def sample_heun_by_ends(model, x, sigma_min, sigma_max, n, extra_args=None, callback=None, disable=None):
    """Heun between two ends, whose order is 2, on levels of its own."""
    sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), n + 1, dtype=torch.float64).exp()
    return heun(lambda x, s: model(x, s.expand(len(x))), x, sigmas)


class EulerSampler:
    """x/alpha moves along (x - alpha x0)/sigma by the change of sigma/alpha."""

    timesteps = None

    def __init__(self, denoiser, steps=64, silent=False, dtype=None, wrong=False):
        self.denoiser, self.wrong = denoiser, wrong
        self.times = torch.linspace(1.0, 0.0, steps + 1, dtype=dtype)

    def __call__(self, x):
        for t, s in itertools.pairwise(self.times):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = self.denoiser.schedule(t), self.denoiser.schedule(s)
            noise = (x - alpha_t * self.denoiser(x, t).mean) / sigma_t
            scale = 1.0 if self.wrong else alpha_s
            x = alpha_s / alpha_t * x + scale * (sigma_s / alpha_s - sigma_t / alpha_t) * noise
        return x


@pytest.mark.parametrize(
    ("fn", "adaptor", "options", "order", "failed"),
    [
        (sample_euler, "k-diffusion", {}, 1, []),
        (sample_heun_by_ends, "k-diffusion", {}, 2, []),
        (EulerSampler, "azula", {}, 1, []),
        (EulerSampler, "azula", {"wrong": True}, 1, ["order"]),
    ],
)
def test_other_interfaces_are_recognised_and_driven(fn, adaptor, options, order, failed):
    by_name, seen = adapt(fn, adaptor, **options), adapt(fn, **options)
    assert type(by_name) is type(seen)
    assert seen.claims.order == order
    report = certify(seen, checks=["runs", "order", "constant"], isolate=False)
    assert [finding.check for finding in report.failures] == failed, report.table()
    if not failed:
        assert float(report["order"].figure) == pytest.approx(order, abs=0.2)


# Reports and refusals.
@pytest.fixture(scope="module")
def report():
    return certify(lost_factor, claims=Claims(order=3), checks=["runs", "order", "law"], isolate=False)


def test_a_report_is_saved_whole(report, tmp_path):
    page = report.save(tmp_path / "deep" / "folder").read_text()
    kept = json.loads((tmp_path / "deep" / "folder" / "report.json").read_text())
    assert (kept["name"], kept["passed"]) == ("lost_factor", False)
    assert [f["check"] for f in kept["findings"]] == ["runs", "order", "law"]
    assert len(kept["findings"][1]["series"]["this sampler"][1]) == len(checks.ORDER_STEPS)
    assert "<svg" in page
    assert "called order 3, and converges at order 2" in page
    assert not re.search(r"""(src|href)\s*=|url\(|http|<script""", page)
    assert "FAIL" in report.table()
    assert report.summary() == "1 of 2 checks passed; failed: order"


def test_names_cannot_break_the_page(report):
    evil = type(report)("<script>alert(1)</script>", report.findings)
    assert "<script" not in evil.html()


def test_a_chart_leaves_out_what_has_no_logarithm():
    drawn = chart({"a": ([1, 2, 4], [1.0, math.nan, 0.01]), "b": ([1, 2, 4], [0.0, math.inf, 0.1])})
    assert drawn.count("<circle") == 3
    assert "nan" not in drawn
    assert "no finite figure" in chart({"a": ([1], [math.nan])})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: certify(euler, checks=["ordre"]), "check 'ordre' is unknown: choose from runs, order"),
        (lambda: certify(euler, adaptor="diffuser"), "adaptor='diffuser': choose from auto, callable"),
        (lambda: certify(3), "3 is no sampler that the referee knows"),
        (lambda: certify(euler, timeout=0), "timeout=0"),
        (lambda: Claims(order=0), "order=0"),
        (lambda: load_object("math"), "write PKG:OBJECT"),
        (lambda: load_object("no_such_package:x"), "cannot import 'no_such_package'"),
        (lambda: load_object("math:sinus"), "'math' has no 'sinus'"),
        (lambda: load_object("absent.py:x"), "no file absent.py"),
        (lambda: adapt(diffusers.EDMEulerScheduler), "no level of its timesteps"),
        (lambda: adapt(diffusers.DDIMScheduler, steps=3), "cannot be made with the options {'steps': 3}"),
        (lambda: adapt(orn.DDIM(), eta=1.0), "has its options already"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_a_candidate_of_ones_own_is_taken_as_it_is():
    candidate = adapt(euler, claims=ONE)
    assert isinstance(candidate, Candidate)
    assert adapt(candidate) is candidate


# The command.
SAMPLERS = """
def euler(denoise, x, sigmas, grow=1.0):
    for s, r in zip(sigmas[:-1], sigmas[1:]):
        x = grow * (x + (r - s) / s * (x - denoise(x, s)))
    return x
"""


def test_the_command_reports_and_its_exit_code_judges(tmp_path, capsys):
    file = tmp_path / "samplers.py"
    file.write_text(SAMPLERS)
    assert command(["certify", f"{file}:euler", "--order", "1", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "euler: 9 of 9 checks passed" in out
    assert (tmp_path / "out" / "report.html").is_file()
    assert command(["certify", f"{file}:euler", "--options", '{"grow": 0.9}']) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["math"], "write PKG:OBJECT"),
        (["no_such_package:x"], "cannot import"),
        (["math:pi"], "no sampler"),
        (["math:sqrt", "--adaptor", "x"], "choose from auto"),
        (["math:sqrt", "--options", "{"], "is not JSON"),
        (["math:sqrt", "--options", "[1]"], "give an object"),
        (["math:sqrt", "--order", "0"], "order=0"),
        (["diffusers:DDIMScheduler", "--options", '{"timeout": 1}'], "cannot be made with"),
        ([], "sampler"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words, capsys):
    assert command(["certify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err.lower() or words in err


def test_the_commands_help_shows_an_example(capsys):
    assert command(["certify", "--help"]) == 0
    assert "  ornstein certify " in capsys.readouterr().out

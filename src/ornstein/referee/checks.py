"""The checks. Each takes a candidate and returns one finding; bounds are derived where they stand."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..exact.world import World
from .candidate import Candidate, Outcome
from .oracle import FINEST, Answer, Oracle, State, broad, error, line, point, ring, two_modes
from .report import Finding, Verdict

F64 = torch.float64
STEPS = 10
"""Steps of the runs whose result is compared with another run's."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def play(
    candidate: Candidate, world: World | Answer, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0
) -> tuple[Outcome, Oracle]:
    """One run under the global seed `seed`, which a sampler without a generator draws from; the state of torch's global
    generator is put back."""
    oracle = Oracle(world, len(z))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return candidate.run(oracle, z, steps, probe=probe, seed=seed), oracle


def judged(holds: bool) -> Verdict:
    return "pass" if holds else "fail"


@functools.lru_cache(maxsize=8)
def is_stochastic(candidate: Candidate) -> bool:
    """Whether another seed gives another result."""
    if candidate.claims.stochastic is not None:
        return candidate.claims.stochastic
    z = normal(4, 2)
    one, two = (play(candidate, broad(), z, STEPS, seed=seed)[0].end.x for seed in (1, 2))
    return not torch.equal(one, two)


def runs(candidate: Candidate) -> Finding:
    z = normal(8, 2)
    x = play(candidate, ring(), z, 8)[0].end.x
    if x.shape != z.shape:
        return Finding("runs", "fail", f"shape {tuple(x.shape)}", f"{tuple(z.shape)}", "the result has another shape")
    bad = int((~x.isfinite()).flatten(1).any(1).sum())
    why = "some samples are NaN or infinite" if bad else "it runs, and its samples are finite"
    return Finding("runs", judged(not bad), f"{bad} of 8 samples not finite", "0", why)


ORDER_STEPS = (10, 20, 40, 80, 160)
ROUNDING = 1e-5
"""Errors below this are not read: coefficients in float32 (1.2e-7 each) acting on states near 90 may leave as much."""


ADAPTIVE = "the number of steps does not change its evaluations: it chooses them itself"


def order(candidate: Candidate) -> Finding:
    """Slope of log2(error) over the finest halving whose errors are above `ROUNDING`.

    Orders are whole numbers, so a slope is the claimed one's if it is nearer to it than to the next below: more than
    k - 1/2. Without a claim the method must converge as a consistent one does: at least at order 1.
    """
    if is_stochastic(candidate):
        return Finding("order", "not applicable", why="it adds noise: its law is checked instead")
    world, z, errors, spent = broad(), normal(32, 2), [], []
    for steps in ORDER_STEPS:
        outcome, oracle = play(candidate, world, z, steps, probe=True)
        assert oracle.first is not None
        assert oracle.last is not None
        # a jump to data is left out of the measurement: the state before it, where the network was asked last, counts
        end = outcome.end if outcome.end.level > 0 else oracle.last
        errors.append(error(world, oracle.first, end))
        spent.append(oracle.evaluations)
    if spent[-1] < 2 * spent[0]:
        return Finding("order", "not applicable", why=ADAPTIVE)
    pairs = [(a, b) for a, b in itertools.pairwise(errors) if not b <= ROUNDING]
    curves: dict[str, Any] = {"this sampler": (ORDER_STEPS, errors)}
    claimed = candidate.claims.order
    least = (claimed or 1) - 0.5
    bound = f"above {least:g}, for the claimed order {claimed}" if claimed else f"above {least:g}: order 1 or more"
    if not pairs:
        if errors[0] > ROUNDING:  # from a visible error to none: at least this fast
            pairs = [(errors[0], max(errors[1], 1e-12))]
        else:
            return Finding("order", "pass", f"error {max(errors):.1e} at all steps", bound, "exact up to rounding")
    slope = math.log2(pairs[-1][0] / pairs[-1][1]) if all(map(math.isfinite, pairs[-1])) else math.nan
    for k in sorted({1, claimed or 1}):
        curves[f"slope {k}"] = (ORDER_STEPS, [errors[0] * (ORDER_STEPS[0] / n) ** k for n in ORDER_STEPS])
    holds = slope > least
    if holds:
        why = f"the error falls as steps^-{slope:.1f}"
    elif claimed and slope > 0.5:
        why = f"it is called order {claimed}, and converges at order {slope:.1f}"
    else:
        why = "the error does not vanish as steps shrink"
    return Finding("order", judged(holds), f"{slope:.2f}", bound, why, curves)


def constant(candidate: Candidate) -> Finding:
    """For x0 = c whatever x, noise = (x - alpha c)/sigma stays what it was: the flow ends at alpha c + sigma noise.

    Exact is below 1e-3 (float32 coefficients leave 160 * 1.2e-7 = 2e-5); else the error must halve from 16 to 64 steps.
    """
    z, errors = normal(16, 2), []
    stochastic = is_stochastic(candidate)
    for steps in (16, 64):
        outcome, oracle = play(candidate, point, z, steps)
        assert oracle.first is not None
        end, first = outcome.end.clean(), oracle.first
        aim = point(end, end)
        if stochastic:  # noise of the last level may be left: of that size, and up to 5 of its standard deviations
            off = float(((end - aim).abs().amax() - 5 * outcome.end.level).clamp_min(0))
        else:
            noise = (first.x.reshape(16, -1).double() - first.alpha * aim) / first.sigma
            off = float((end - aim - outcome.end.level * noise).abs().amax())
        errors.append(off)
    holds = errors[0] < 1e-3 or errors[1] < errors[0] / 2
    words = {True: "it ends where a constant denoiser points", False: "it does not end where the denoiser points"}
    figure = f"off by {errors[0]:.1e} after 16 steps, {errors[1]:.1e} after 64"
    return Finding("constant", judged(holds), figure, "below 1e-3, or halved", words[holds])


DRAWS, LAW_STEPS = 8192, 64
LEVEL = 3.9
"""A normal variable is further out than this many standard deviations with probability 1e-4."""
KS = 2.23
"""sqrt(n) times a Kolmogorov distance exceeds this with probability 2 exp(-2 2.23^2) = 1e-4."""


def law(candidate: Candidate) -> Finding:
    """Mean and variance on N(0.5, 0.3^2), and the Kolmogorov distance on two modes, at N and 2N steps.

    A consistent sampler of finite steps is biased by O(1/N). Extrapolation, 2 r(2N) - r(N), takes that away; what is
    left is O(1/N^2), bounded by the difference of the two, and the standard deviation sqrt(5) times one run's. Each of
    three tests alarms falsely with probability 1e-4.
    """
    if not is_stochastic(candidate):
        return Finding("law", "not applicable", why="it adds no noise: each sample is compared with the exact flow")
    means, variances, distances = [], [], []
    for i, steps in enumerate((LAW_STEPS, 2 * LAW_STEPS)):
        x = play(candidate, line(), normal(DRAWS, 1, seed=i), steps, seed=i)[0].end.clean().flatten()
        means.append(float(x.mean() - 0.5) / 0.3)
        variances.append(float(x.var()) / 0.09)
        x = play(candidate, two_modes(), normal(DRAWS, 1, seed=2 + i), steps, seed=2 + i)[0].end.clean().flatten()
        distances.append(kolmogorov(x))
    noise = LEVEL * math.sqrt(5 / DRAWS)
    mean, variance = (2 * v[1] - v[0] for v in (means, variances))
    most = [noise + abs(means[1] - means[0]), math.sqrt(2) * noise + abs(variances[1] - variances[0])]
    # of a bias of O(1/N), the distance at 2N keeps as much as it lost since N; each of the two is known to one quantile
    far = 2 * KS / math.sqrt(DRAWS) + max(0.0, distances[0] - distances[1])
    holds = abs(mean) <= most[0] and abs(variance - 1) <= most[1] and distances[1] <= far
    figure = f"mean off by {mean:.3f} std, variance {variance:.3f} of the true one, Kolmogorov {distances[1]:.3f}"
    bound = f"{most[0]:.3f}, 1 within {most[1]:.3f}, {far:.3f} (level 1e-4 each)"
    why = "its samples have the law of the data" if holds else "its samples do not have the law of the data"
    return Finding("law", judged(holds), figure, bound, why)


def kolmogorov(x: Tensor) -> float:
    """Largest distance between the distribution functions of samples and of `two_modes`."""
    x = x.sort().values
    if not bool(x.isfinite().all()):
        return math.inf
    exact = 0.3 * torch.special.ndtr((x + 1) / 0.3) + 0.7 * torch.special.ndtr((x - 0.8) / 0.4)
    ranks = torch.arange(len(x) + 1, dtype=F64) / len(x)
    return float(torch.maximum((exact - ranks[:-1]).abs(), (exact - ranks[1:]).abs()).max())


def nfe(candidate: Candidate) -> Finding:
    """Evaluations a sample, at 8 and 16 steps; a claim a step may save up to one step's at an end."""
    z, counted, announced = normal(4, 2), [], []
    for steps in (8, 16):
        outcome, oracle = play(candidate, broad(), z, steps)
        counted.append(oracle.evaluations)
        announced.append(outcome.claimed)
    claim = candidate.claims.nfe_per_step
    figure = f"{counted[0]:g} in 8 steps, {counted[1]:g} in 16"
    if claim is not None:
        holds = counted[1] - counted[0] == 8 * claim and abs(counted[0] - 8 * claim) <= claim
        bound = f"{claim} a step"
    elif announced[0] is not None:
        holds, bound = counted == announced, f"announced: {announced[0]}, {announced[1]}"
    else:
        return Finding("nfe", "not applicable", figure, "", "nothing is announced")
    why = "it evaluates as often as it says" if holds else "it evaluates another number of times than it says"
    return Finding("nfe", judged(holds), figure, bound, why)


SAME = 1e-4
"""Two runs agree to this, relative to the spread of the data: rounding in float32 (1.2e-7), enlarged by states of size
160 and by a flow that parts modes, stays below; a sample that sees its neighbours' does not."""


def batch(candidate: Candidate) -> Finding:
    """Sample 0, when all others are replaced by ones far away and everything else is kept; and, without noise, the
    batch against its halves and in reverse."""
    z, world = normal(8, 2), broad()
    x = play(candidate, world, z, STEPS, seed=3)[0].end.x
    other = z.clone()
    other[1:] = 3 * normal(7, 2, seed=9)
    alone = float((play(candidate, world, other, STEPS, seed=3)[0].end.x[0] - x[0]).abs().max())
    figure, worst = f"sample 0 moves by {alone:.1e} with its neighbours", alone
    if not is_stochastic(candidate):
        halves = torch.cat([play(candidate, world, part, STEPS)[0].end.x for part in (z[:3], z[3:])])
        turned = play(candidate, world, z.flip(0), STEPS)[0].end.x.flip(0)
        parts = float(torch.maximum((halves - x).abs(), (turned - x).abs()).max())
        figure, worst = f"{figure}, {parts:.1e} in parts or in reverse", max(alone, parts)
    holds = worst <= SAME
    why = "a sample's result is its own" if holds else "samples of one batch influence each other"
    return Finding("batch", judged(holds), figure, f"{SAME:g}", why)


def shapes(candidate: Candidate) -> Finding:
    """The numbers of (6, 2) as (6, 2, 1, 1), (6, 1, 2, 1) and (6, 2, 1, 1, 1)."""
    z, world, bad = normal(6, 2), broad(), []
    stochastic = is_stochastic(candidate)
    x = None
    for event in ((2,), (2, 1, 1), (1, 2, 1), (2, 1, 1, 1)):
        try:
            end = play(candidate, world, z.reshape(6, *event), STEPS, seed=4)[0].end.x
        except Exception as raised:
            bad.append(f"(n, {', '.join(map(str, event))}): {told(raised)}")
            continue
        x = end.reshape(6, -1) if x is None else x
        far = float((end.reshape(6, -1) - x).abs().max())
        if tuple(end.shape[1:]) != event:
            bad.append(f"(n, {', '.join(map(str, event))}) becomes {tuple(end.shape)}")
        elif not math.isfinite(far) or (not stochastic and far > SAME):
            bad.append(f"(n, {', '.join(map(str, event))}): another result, off by {far:.1e}")
    why = "; ".join(bad) if bad else "the shape of a sample makes no difference"
    return Finding("shapes", judged(not bad), f"{4 - len(bad)} of 4 shapes", "4", why)


def seeds(candidate: Candidate) -> Finding:
    """One seed twice, another seed, and torch's global generator before and after.

    A sampler that takes a generator must not read the global one, nor may one that is called deterministic. Where
    nothing can be handed in, the global generator is the seed, and may be read in vain.
    """
    z, world, wrong = normal(4, 2), broad(), []

    def end(seed: int, outer: int) -> tuple[Tensor, bool]:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(outer)
            before = torch.get_rng_state()
            x = candidate.run(Oracle(world, 4), z, STEPS, seed=seed).end.x
            return x, not torch.equal(before, torch.get_rng_state())

    inside = candidate.takes_generator
    (one, touched), (again, _), (other, _) = end(1, 1), end(1, 5 if inside else 1), end(2, 2)
    if not torch.equal(one, again):
        wrong.append("the same seed gives another result")
    stochastic = not torch.equal(one, other) or candidate.claims.stochastic is True
    if candidate.claims.stochastic is not None and stochastic == torch.equal(one, other):
        wrong.append("another seed changes nothing")
    if candidate.claims.stochastic is False and not torch.equal(one, other):
        wrong.append("it is called deterministic, and a seed changes it")
    if touched and (inside or candidate.claims.stochastic is False):
        wrong.append("it draws from torch's global generator")
    if not torch.equal(one, play(candidate, world, z, STEPS, seed=1)[0].end.x) and not wrong:
        wrong.append("a run leaves something behind that changes the next")
    kind = "stochastic" if stochastic else "deterministic"
    by = "a generator" if inside else "the global generator"
    figure = f"{kind}, seeded by {by}" if stochastic else kind + ", though it draws noise" * touched
    return Finding("seeds", judged(not wrong), figure, "", "; ".join(wrong) or "a seed says everything")


def dtype(candidate: Candidate) -> Finding:
    """float32 and float64 in, the same out; and float32 within 1e-3 of float64, in units of the data: some 10^4
    roundings of 1.2e-7, where steps and the parting of modes enlarge a few. bfloat16 may be carried in float32."""
    z, world, wrong = normal(16, 2), broad(), []
    ends = {}
    for kind in (F64, torch.float32, torch.bfloat16):
        try:
            x = play(candidate, world, z.to(torch.float32).to(kind), STEPS, seed=5)[0].end.x
        except Exception as raised:
            wrong.append(f"{short(kind)}: {told(raised)}")
            continue
        ends[kind] = x
        if x.dtype != kind and (kind, x.dtype) != (torch.bfloat16, torch.float32):
            wrong.append(f"{short(kind)} becomes {short(x.dtype)}")
        if not bool(x.isfinite().all()):
            wrong.append(f"{short(kind)} is not finite")
    far = math.nan
    if F64 in ends and torch.float32 in ends and not is_stochastic(candidate):
        far = float((ends[F64].double() - ends[torch.float32].double()).norm(dim=1).median())
        if not far <= 1e-3:
            wrong.append("float32 is far from float64")
    figure = f"float32 is {far:.1e} from float64" if math.isfinite(far) else f"{3 - len(wrong)} of 3 kept"
    return Finding("dtype", judged(not wrong), figure, "1e-3", "; ".join(wrong) or "precision is kept")


def short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def end(candidate: Candidate) -> Finding:
    """What 10 steps lose in the last one, from the level s = sigma/alpha of the last evaluation to the end e.

    Detail of standard deviation c has a spread sqrt(c^2 + s^2) in x/alpha, which the flow shrinks to sqrt(c^2 + e^2),
    and one step by E[x0 | x] multiplies by e/s + (1 - e/s) c^2/(c^2 + s^2). Noise that is left adds
    sqrt(1 + e^2/c^2) - 1. With N steps, the others of a first-order method lose about 1/N: the last one should not
    lose more. c = 0.15. Nor may the last evaluation be made of the very state that is returned: a repeated level.
    """
    if not candidate.own_levels:
        return Finding("end", "not applicable", why="the levels are the caller's")
    outcome, oracle = play(candidate, ring(), normal(4, 2), STEPS)
    left, least = outcome.end.level, min(level for level in oracle.levels if level > 0)
    own = (left / least + (1 - left / least) / (1 + (least / FINEST) ** 2)) if least > left else 1.0
    exact = math.sqrt((FINEST**2 + left**2) / (FINEST**2 + least**2)) if least > left else 1.0
    lost = abs(1 - own / exact) + math.sqrt(1 + (left / FINEST) ** 2) - 1
    words = f"sigma {least:.3g} to {left:.3g} in one step"
    assert oracle.last is not None
    still = bool(torch.isclose(outcome.end.x, oracle.last.x, rtol=1e-5, atol=1e-6).all())
    wasted = still and oracle.last.level <= left * (1 + 1e-5)
    holds = lost <= 1 / STEPS and not wasted
    if wasted:
        why = f"the last evaluation, at sigma {least:.3g}, changes nothing: the level is repeated"
    elif not holds:
        why = f"with {STEPS} steps, {words}: more is lost there than in all others"
    else:
        why = "it ends where it should"
    return Finding("end", judged(holds), f"{words}: {lost:.0%} of detail of size {FINEST:g}", f"{1 / STEPS:.0%}", why)


def options(candidate: Candidate) -> Finding:
    """Few steps, and 20, with each setting of the candidate's; a refusal in words (ValueError) is no fault. (Some
    samplers treat their last steps with care only below 15.)"""
    z, tried, wrong = normal(3, 2), 0, dict[str, list[str]]()
    for name, variant in candidate.settings():
        for steps in (1, 2, 3, 10, 20):
            tried += 1
            try:
                finite = bool(play(variant, ring(), z, steps)[0].end.x.isfinite().all())
            except (ValueError, NotImplementedError, ImportError):
                continue
            except Exception as raised:
                wrong.setdefault(told(raised), []).append(f"{name}, {steps} steps")
                continue
            if not finite:
                wrong.setdefault("not finite", []).append(f"{name}, {steps} steps")
    failed = sum(map(len, wrong.values()))
    lines = [f"{what}: {'; '.join(where[:6])}{' ...' if len(where) > 6 else ''}" for what, where in wrong.items()]
    why = ". ".join(lines) or "every setting ends in finite numbers or is refused in words"
    return Finding("options", judged(not failed), f"{failed} of {tried} runs failed", "0", why)


BUDGETS = (20, 40, 80)


@functools.lru_cache(maxsize=8)
def own_errors(candidate: Candidate) -> tuple[list[float], list[float]]:
    """(evaluations, errors) on the ring on the candidate's own levels, to data, at about `BUDGETS` evaluations."""
    z, world, spent, errors = normal(48, 2), ring(), [], []
    rate = max(1, round(play(candidate, world, z[:2], 16)[1].evaluations / 16))
    for budget in BUDGETS:
        outcome, oracle = play(candidate, world, z, budget // rate)
        assert oracle.first is not None
        spent.append(oracle.evaluations)
        errors.append(error(world, oracle.first, outcome.end))
    return spent, errors


def converges(candidate: Candidate) -> Finding:
    """From 20 to 80 evaluations, order 1 divides an error by 4; half of that on the logarithmic scale, 2, is asked."""
    if is_stochastic(candidate):
        return Finding("converges", "not applicable", why="it adds noise")
    spent, errors = own_errors(candidate)
    if spent[-1] < 2 * spent[0]:
        return Finding("converges", "not applicable", f"error {errors[0]:.2g}", why=ADAPTIVE)
    ratio = errors[0] / errors[-1] if errors[-1] > 0 else math.inf
    holds = errors[-1] < 1e-4 or ratio >= 2
    why = "more steps help" if holds else "more steps help little: something else than the steps limits the accuracy"
    series = {"this sampler": (spent, errors)}
    figure = f"error {errors[0]:.2g} to {errors[-1]:.2g}, divided by {ratio:.1f}"
    return Finding("converges", judged(holds), figure, "2 or more, from 20 to 80 evaluations", why, series)


def rival(candidate: Candidate) -> Finding:
    """Errors at 20, 40 and 80 evaluations beside those of plain Euler (DDIM) on plain levels between the same ends. A
    method of higher order that loses to it at two of the three gives nothing for its name."""
    if is_stochastic(candidate):
        return Finding("rival", "not applicable", why="it adds noise")
    if (candidate.claims.order or 1) < 2:
        return Finding("rival", "not applicable", why="no order above 1 is claimed")
    spent, errors = own_errors(candidate)
    if spent[-1] < 2 * spent[0]:
        return Finding("rival", "not applicable", why=ADAPTIVE)
    z, world, simple = normal(48, 2), ring(), []
    for budget in BUDGETS:
        alphas, sigmas = candidate.plain(budget)
        oracle = Oracle(world, len(z))
        x = z * float(sigmas[0])
        for i in range(budget):
            x0 = oracle(x, alphas[i], sigmas[i])
            x = alphas[i + 1] * x0 + sigmas[i + 1] * (x - alphas[i] * x0) / sigmas[i]
        assert oracle.first is not None
        simple.append(error(world, oracle.first, State(x, alphas[-1], sigmas[-1])))
    lost = [n for n, a, b in zip(BUDGETS, errors, simple, strict=True) if not a <= b]
    holds = len(lost) < 2
    pairs = ", ".join(f"{a:.2g} to {b:.2g}" for a, b in zip(errors, simple, strict=True))
    why = (
        "it is worth its order"
        if holds
        else f"plain Euler is more accurate at {' and '.join(map(str, lost))} evaluations"
    )
    series = {"this sampler": (spent, errors), "plain Euler": (BUDGETS, simple)}
    return Finding("rival", judged(holds), f"{pairs} of Euler", "less at two of 20, 40 and 80 evaluations", why, series)


def told(raised: BaseException) -> str:
    """An exception in one short line."""
    return f"{type(raised).__name__}: {' '.join(str(raised).split())[:160]}"


CHECKS: tuple[Callable[[Candidate], Finding], ...] = (
    runs, order, constant, law, nfe, batch, shapes, seeds, dtype, end, options, converges, rival,
)  # fmt: skip

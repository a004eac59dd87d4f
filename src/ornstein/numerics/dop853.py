"""A private reference integrator: adaptive Dormand-Prince of order 8, in float64 on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Field = Callable[[float, Tensor], Tensor]

# Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I (2nd ed., 1993), section II.10 and code DOP853.
C = (
    0.0,
    0.526001519587677318785587544488e-01,
    0.789002279381515978178381316732e-01,
    0.118350341907227396726757197510,
    0.281649658092772603273242802490,
    1.0 / 3.0,
    0.25,
    4.0 / 13.0,
    0.651282051282051282051282051282,
    0.6,
    6.0 / 7.0,
    1.0,
)
# Row m - 1 holds {i: A[m, i]}: the nonzero weights of the earlier slopes in stage m.
A: tuple[dict[int, float], ...] = (
    {0: 5.26001519587677318785587544488e-2},
    {0: 1.97250569845378994544595329183e-2, 1: 5.91751709536136983633785987549e-2},
    {0: 2.95875854768068491816892993775e-2, 2: 8.87627564304205475450678981324e-2},
    {
        0: 2.41365134159266685502369798665e-1,
        2: -8.84549479328286085344864962717e-1,
        3: 9.24834003261792003115737966543e-1,
    },
    {
        0: 3.7037037037037037037037037037e-2,
        3: 1.70828608729473871279604482173e-1,
        4: 1.25467687566822425016691814123e-1,
    },
    {
        0: 3.7109375e-2,
        3: 1.70252211019544039314978060272e-1,
        4: 6.02165389804559606850219397283e-2,
        5: -1.7578125e-2,
    },
    {
        0: 3.70920001185047927108779319836e-2,
        3: 1.70383925712239993810214054705e-1,
        4: 1.07262030446373284651809199168e-1,
        5: -1.53194377486244017527936158236e-2,
        6: 8.27378916381402288758473766002e-3,
    },
    {
        0: 6.24110958716075717114429577812e-1,
        3: -3.36089262944694129406857109825,
        4: -8.68219346841726006818189891453e-1,
        5: 2.75920996994467083049415600797e1,
        6: 2.01540675504778934086186788979e1,
        7: -4.34898841810699588477366255144e1,
    },
    {
        0: 4.77662536438264365890433908527e-1,
        3: -2.48811461997166764192642586468,
        4: -5.90290826836842996371446475743e-1,
        5: 2.12300514481811942347288949897e1,
        6: 1.52792336328824235832596922938e1,
        7: -3.32882109689848629194453265587e1,
        8: -2.03312017085086261358222928593e-2,
    },
    {
        0: -9.3714243008598732571704021658e-1,
        3: 5.18637242884406370830023853209,
        4: 1.09143734899672957818500254654,
        5: -8.14978701074692612513997267357,
        6: -1.85200656599969598641566180701e1,
        7: 2.27394870993505042818970056734e1,
        8: 2.49360555267965238987089396762,
        9: -3.0467644718982195003823669022,
    },
    {
        0: 2.27331014751653820792359768449,
        3: -1.05344954667372501984066689879e1,
        4: -2.00087205822486249909675718444,
        5: -1.79589318631187989172765950534e1,
        6: 2.79488845294199600508499808837e1,
        7: -2.85899827713502369474065508674,
        8: -8.87285693353062954433549289258,
        9: 1.23605671757943030647266201528e1,
        10: 6.43392746015763530355970484046e-1,
    },
)
B = {
    0: 5.42937341165687622380535766363e-2,
    5: 4.45031289275240888144113950566,
    6: 1.89151789931450038304281599044,
    7: -5.8012039600105847814672114227,
    8: 3.1116436695781989440891606237e-1,
    9: -1.52160949662516078556178806805e-1,
    10: 2.01365400804030348374776537501e-1,
    11: 4.47106157277725905176885569043e-2,
}
# B minus the weights of an embedded rule of order 5, and of one of order 3.
E5 = {
    0: 0.1312004499419488073250102996e-1,
    5: -0.1225156446376204440720569753e1,
    6: -0.4957589496572501915214079952,
    7: 0.1664377182454986536961530415e1,
    8: -0.3503288487499736816886487290,
    9: 0.3341791187130174790297318841,
    10: 0.8192320648511571246570742613e-1,
    11: -0.2235530786388629525884427845e-1,
}
E3 = {
    **B,
    0: B[0] - 0.244094488188976377952755905512,
    8: B[8] - 0.733846688281611857341361741547,
    11: B[11] - 0.220588235294117647058823529412e-1,
}


class Solution(NamedTuple):
    """The state at the last time, and what it cost: accepted and rejected steps, evaluations of the field."""

    y: Tensor
    steps: int
    rejected: int
    evaluations: int


def dop853(
    field: Field,
    y: Tensor,
    start: float,
    stop: float,
    *,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_steps: int = 100_000,
) -> Solution:
    """Integrate dy/dt = field(t, y) from `start` to `stop`, forward or backward in time.

    y: (batch, ...) float64. One step size serves the batch, but the error is judged for each sample alone (root mean
    square over its event, relative to atol + rtol |y|) and the worst sample decides: a batch is never less accurate
    than its samples. The local error is that of orders 5 and 3 combined, so the result of order 8 is usually one or
    two digits better than asked. Gradients flow through the steps, not through their sizes.

    Raises ValueError for a state that is not float64 or tolerances that are not positive, FloatingPointError when the
    field turns non-finite or the step underflows, RuntimeError after `max_steps` steps. Hairer, Norsett, Wanner (1993).
    """
    if y.dtype != torch.float64:
        raise ValueError(f"the reference integrator works in float64, got a state in {y.dtype}")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be positive, got rtol={rtol}, atol={atol}")
    if not (math.isfinite(start) and math.isfinite(stop)):
        raise ValueError(f"times must be finite, got {start} to {stop}")
    if start == stop or y.numel() == 0:
        return Solution(y, 0, 0, 0)
    t, slope = start, field(start, y)
    if not bool(slope.isfinite().all()):
        raise FloatingPointError(f"the field is not finite at the first time t={start}")
    h = _first_step(field, y, slope, start, stop, rtol, atol)
    steps, rejected, evaluations = 0, 0, 2
    while t != stop:
        if steps + rejected >= max_steps:
            raise RuntimeError(f"no end after {max_steps} steps: t={t} between {start} and {stop}, step {h:.3g}")
        if abs(h) <= 4 * math.ulp(t):
            raise FloatingPointError(
                f"the step underflows at t={t} between {start} and {stop}: stiff or singular there"
            )
        last = abs(h) >= abs(stop - t) * (1 - 1e-12)  # no sliver of a step is left over
        h = stop - t if last else h
        proposal, slopes = step(field, t, y, slope, h)
        error = _error(slopes, h, y, proposal, rtol, atol)
        evaluations += len(C) - 1
        if error <= 1:
            t = stop if last else t + h
            end = field(t, proposal)
            evaluations += 1
            if bool(end.isfinite().all()):
                y, slope, steps = proposal, end, steps + 1
                h *= min(6.0, 0.9 * error ** (-1 / 8)) if error > 0 else 6.0
                continue
            raise FloatingPointError(f"the field is not finite at t={t}")
        rejected += 1
        h *= max(0.2, 0.9 * error ** (-1 / 8)) if math.isfinite(error) else 0.2
    return Solution(y, steps, rejected, evaluations)


def step(field: Field, t: float, y: Tensor, slope: Tensor, h: float) -> tuple[Tensor, list[Tensor]]:
    """One step of order 8: y + h sum_i B[i] k_i with k_m = field(t + C[m] h, y + h sum_i A[m, i] k_i), k_0 = slope."""
    slopes = [slope]
    for c, row in zip(C[1:], A, strict=True):
        slopes.append(field(t + c * h, y + h * _combine(row, slopes)))
    return y + h * _combine(B, slopes), slopes


def _combine(weights: dict[int, float], slopes: list[Tensor]) -> Tensor:
    (first, weight), *others = weights.items()
    total = weight * slopes[first]
    for i, w in others:
        total = total + w * slopes[i]
    return total


def _worst(ratio: Tensor) -> float:
    """The largest root mean square over the batch."""
    return float(ratio.detach().reshape(len(ratio), -1).square().mean(1).max().sqrt())


def _error(slopes: list[Tensor], h: float, y: Tensor, proposal: Tensor, rtol: float, atol: float) -> float:
    """|h| e5^2 / sqrt(e5^2 + 0.01 e3^2), per sample, in units of the tolerance; the largest of them."""
    slopes = [k.detach() for k in slopes]
    scale = atol + rtol * torch.maximum(y.detach().abs(), proposal.detach().abs())
    e5, e3 = ((_combine(weights, slopes) / scale).reshape(len(y), -1).square().mean(1) for weights in (E5, E3))
    # e5 = e3 = 0 is a perfect step, not 0 / 0; NaN passes through and is refused by the caller.
    error = abs(h) * e5 / (e5 + 0.01 * e3).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error.max())


def _first_step(field: Field, y: Tensor, slope: Tensor, start: float, stop: float, rtol: float, atol: float) -> float:
    """Hairer's guess: the step whose eighth derivative term would weigh 0.01 of the tolerance."""
    span, scale = stop - start, atol + rtol * y.abs()
    size, speed = _worst(y / scale), _worst(slope / scale)
    h = min(0.01 * size / speed, abs(span)) if min(size, speed) > 1e-5 else min(1e-6, abs(span))
    h = math.copysign(h, span)
    bend = _worst((field(start + h, y + h * slope) - slope) / scale) / abs(h)
    top = max(speed, bend)
    guess = (0.01 / top) ** (1 / 8) if top > 1e-15 else max(1e-6, 1e-3 * abs(h))
    return math.copysign(min(100 * abs(h), guess if math.isfinite(guess) else abs(h), abs(span)), span)

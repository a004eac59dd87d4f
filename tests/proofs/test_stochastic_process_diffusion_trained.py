"""Functions learned from irregular observations: continuity, autocovariance, imputation, by the colour of the noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.exact import Functions
from ornstein.metrics import crps
from ornstein.processes import OU, RBF, VP, GaussianProcessNoise

WORLD = Functions(RBF(0.2, 1e-3))
POINTS = 16


def given(times: Tensor, values: Tensor, observed: Tensor) -> dict[str, Tensor]:
    return {"times": times.float(), "values": (values * observed).float(), "observed": observed.float()}


@pytest.mark.proof("stochastic-process-diffusion-training")
def test_stochastic_process_diffusion_training(proof: Callable[..., None]) -> None:
    """One small attention network, trained alike under smooth noise (RBF of length 0.1, half the data's), OU noise and
    white noise on 20,000 smooth functions at 16 irregular times, half of them close to another; a quarter of the rows
    with nothing observed, the rest with 0 to 80 %.

    roughness: mean of (x(t) - x(t + 0.01))^2 of 2,000 functions drawn with nothing observed, over that of the data.
    covariance: the largest error of their covariance at 16 times (variance 1); its noise is 0.1 at most.
    crps: of 32 imputations of 64 series, 60 % hidden, over that of as many draws of the exact posterior.

    The claim is continuity: with noise as smooth as functions are, samples are as continuous as data, and white noise
    leaves them rougher. Half as rough again is the line: the trained network's own error is white, and was of the size
    of the nugget. OU noise is continuous, but rougher than the data at 0.01 by 30 times.
    """
    g = torch.Generator().manual_seed(0)
    times = torch.rand(20_000, POINTS, generator=g, dtype=torch.float64)
    near = 0.003 + 0.03 * torch.rand(20_000, POINTS // 2, generator=g, dtype=torch.float64)
    times[:, POINTS // 2 :] = times[:, : POINTS // 2] + near
    x = WORLD.sample(times, seed=1)
    share = 0.8 * torch.rand(len(x), 1, generator=g)
    observed = (torch.rand(len(x), POINTS, generator=g) < share).double()
    observed[::4] = 0

    k, m = 64, 32
    at = torch.rand(k, POINTS, generator=g, dtype=torch.float64)
    truth, seen = WORLD.sample(at, seed=6), (torch.rand(k, POINTS, generator=g) < 0.4).double()
    hidden = seen == 0
    mean, cov = WORLD.posterior(at, truth, seen)
    root = torch.linalg.cholesky(cov + torch.diag_embed(1e-12 + seen))
    exact = mean + (root @ torch.randn(m, k, POINTS, 1, generator=g, dtype=torch.float64)).squeeze(-1)
    ideal = float(crps(exact, truth)[hidden].mean())

    n, grid = 2_000, torch.linspace(0, 0.98, POINTS // 2, dtype=torch.float64)
    pairs = torch.cat([grid, grid + 0.01])
    law = WORLD.covariance(pairs[None])[0]
    apart = float((2 - 2 * law[: POINTS // 2, POINTS // 2 :].diagonal()).mean())

    figures: dict[str, float] = {}
    noises = {
        "smooth": GaussianProcessNoise(VP(), RBF(0.1, 1e-3)),
        "ou": GaussianProcessNoise(VP(), OU(0.3)),
        "white": VP(),
    }
    for name, process in noises.items():
        torch.manual_seed(0)
        net = orn.nets.SetTransformer(width=48, depth=2, conditions={"values": 1, "observed": 1})
        model = orn.Denoiser(net, process, "v")
        cond = given(times, x, observed)
        orn.fit(model, x.float(), cond=cond, steps=800, batch_size=128, lr=2e-3, seed=0, progress=False)
        blank = torch.zeros(n, POINTS)
        drawn = orn.sample(
            model, (n, POINTS), cond=given(pairs.expand(n, -1), blank, blank), steps=20, seed=2
        ).x.double()
        figures[f"roughness_{name}"] = float((drawn[:, :8] - drawn[:, 8:]).square().mean()) / apart
        figures[f"covariance_{name}"] = float((drawn.T @ drawn / n - law).abs().max())
        rows = [part.repeat(m, 1) for part in (at, truth, seen)]
        filled = orn.sample(model, (k * m, POINTS), cond=given(*rows), steps=20, seed=1).x.double()
        figures[f"crps_{name}"] = float(crps(filled.reshape(m, k, POINTS), truth)[hidden].mean()) / ideal
    proof(
        figures=figures,
        thresholds={
            "roughness_smooth": (0.8, 1.5),
            "roughness_white": (1.5, None),
            "covariance_smooth": (None, 0.4),
            "crps_smooth": (0.9, 3.0),
        },
        seed=0,
    )

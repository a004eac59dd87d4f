"""CoPaint: what is hidden follows what is seen, which replacement loosens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CoPaint, RePaint, restore
from worlds import F64

VP = orn.VP()


@pytest.mark.system("copaint", rival="replacement")
def test_copaint() -> None:
    """Two numbers, the first of them seen exactly; 400 samples, at 250 evaluations each.

    A Gaussian of correlation 0.9 with 1.5 seen has the hidden mean 1.35. Replacement has it too near 0, by more than
    0.3, as the hidden number has seen the other only through noise. Moved together, they miss by less than that less
    five standard errors, though to the other side: what was fitted is fitted again (by 0.20 in 250 steps).
    Of two modes, (1, 1) and (-1, -1), with 0.6 seen, the second is impossible (e^-30): replacement leaves more samples
    there, by three standard errors of counts. But with 0.1 seen, where the first is 148 times as likely, the method
    finds it in less than 80 of 100 samples (57): it goes by which is nearer.
    """
    seen, n = linops.Mask(torch.tensor([1.0, 0.0], dtype=F64)), 400

    def hidden(world: Any, method: Any, steps: int, y: float) -> torch.Tensor:
        out = restore(
            world.denoiser(VP), seen, torch.tensor([[y, 0.0]], dtype=F64), method=method, samples=n, steps=steps, seed=1
        )
        assert out.nfe == 250
        assert float(out.residual.max()) < 1e-3
        return out.samples[0, :, 1]

    pair = orn.exact.Gaussian(torch.zeros(2, dtype=F64), cov=torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64))
    found, rival = (hidden(pair, *how, 1.5) for how in ((CoPaint(), 50), (RePaint(resamples=1), 250)))
    error = 5 * float(found.std() + rival.std()) / math.sqrt(n)
    assert float(1.35 - rival.mean()) > 0.3
    assert 0 < float(found.mean() - 1.35) < float(1.35 - rival.mean()) - error / 2
    modes = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    two = orn.exact.GaussianMixture(modes, torch.full((2,), 0.2, dtype=F64))
    found, rival = (hidden(two, *how, 0.6) for how in ((CoPaint(), 50), (RePaint(resamples=1), 250)))
    wrong, more = int((found < 0).sum()), int((rival < 0).sum())
    assert more - wrong > 3 * math.sqrt(more + wrong)
    assert float((hidden(two, CoPaint(), 50, 0.1) > 0).double().mean()) < 0.8

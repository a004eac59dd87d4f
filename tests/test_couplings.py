"""Couplings made within each batch: what they keep, what they straighten, what they refuse."""

import functools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.processes import Interpolant, Product, TwoSided
from ornstein.random import Share
from ornstein.training import C2OT, MinibatchOT, Objective, Shuffled, unpaired
from worlds import F64, normal

FLOW = orn.Flow()


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@functools.cache
def net():
    return orn.nets.MLP(2, width=8, depth=1)


def model_of(process):
    return orn.Denoiser(net(), process, "velocity")


def draw(objective, process, x0, cond=None, seed=0, share=None):
    share = share or Share(0, len(x0), len(x0))
    t = torch.full((len(x0),), 0.5, dtype=F64)
    return objective.draw(model_of(process), x0, t, cond, seed, share)


def test_optimal_pairs_cross_less_the_larger_the_batch():
    """E Var(noise - x0 | x_t) at t = 1/2, of 1-D Gaussian data of width s, from 4,096 pairs in 64 bins of equal count.

    Random pairs: s^2/((1 - t)^2 s^2 + t^2), to 5 standard errors of a mean of squares, 5 sqrt(2/4096) = 11 %, and 5 %
    for the width of the bins. Optimal pairs of a batch of N leave O(1/N): it falls with N, below a tenth at N = 256.
    """
    s, t, n = 0.6, 0.5, 4096

    def crossing(objective, batch):
        rows = [draw(objective, FLOW, s * normal(batch, 1, seed=seed), seed=seed) for seed in range(n // batch)]
        x, u = (torch.cat(column).squeeze(1) for column in zip(*((d.x, d.noise - d.x0) for d, _ in rows), strict=True))
        return float(u[x.argsort()].reshape(64, -1).var(1).mean())

    exact = s**2 / ((1 - t) ** 2 * s**2 + t**2)
    assert crossing(Objective(), 256) == pytest.approx(exact, rel=0.16)
    falling = [crossing(MinibatchOT(), batch) for batch in (16, 64, 256)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] < exact
    assert falling[-1] < exact / 10


@pytest.mark.parametrize("process", [FLOW, orn.VP(), TwoSided(), Interpolant()], ids=lambda p: type(p).__name__)
def test_pairs_are_rows_in_another_order(process):
    """Both marginals stay what they were, to the bit; what a network sees has no x1; the seed decides."""
    x0, x1, label = normal(16, 2), normal(16, 2, seed=1), torch.arange(16) % 2
    sided = process.end is not None
    cond = {"label": label, "x1": x1} if sided else {"label": label}

    def other(drawn):
        return drawn.x1 if type(process) is Interpolant else drawn.noise

    rows = other(draw(Objective(), process, x0, cond)[0])
    for objective in (Shuffled(), MinibatchOT(), C2OT()):
        drawn, left = draw(objective, process, x0, cond)
        assert torch.equal(other(drawn).sort(0).values, rows.sort(0).values)
        assert torch.equal(other(drawn), other(draw(objective, process, x0, cond)[0]))
        assert list(left) == ["label"]
        assert torch.equal(drawn.x0, x0)
        assert torch.equal(other(drawn), rows) == (type(objective) is Shuffled and not sided)
    if sided:
        first, second = (other(draw(Shuffled(), process, x0, cond, seed=seed)[0]) for seed in (0, 1))
        assert not torch.equal(first, second)
        assert draw(MinibatchOT(), process, x0, {"x1": x1})[1] is None


def test_random_pairs_are_uniform():
    """Over 600 seeds every row meets every other equally often: 5 standard errors of a count of 600/4."""
    x0, x1 = normal(4, 2), torch.arange(8, dtype=F64).reshape(4, 2)
    counts = torch.zeros(4, 4)
    for seed in range(600):
        given, _ = Shuffled().pair(model_of(TwoSided()), x0, {"x1": x1}, seed, Share(0, 4, 4))
        counts[torch.arange(4), (given["x1"][:, 0] / 2).long()] += 1
    assert float((counts - 150).abs().max()) < 5 * math.sqrt(600 * 0.25 * 0.75)


def test_shares_are_paired_by_themselves():
    """A share pairs its own rows, of the noise that the whole batch has."""
    x0 = normal(12, 2)
    whole = draw(Objective(), FLOW, x0)[0].noise
    share = Share(4, 8, 12)
    mine = draw(MinibatchOT(), FLOW, x0[4:8], share=share)[0].noise
    assert torch.equal(mine.sort(0).values, whole[4:8].sort(0).values)
    options = {"steps": 3, "batch_size": 12, "accumulate": 2, "seed": 0, "progress": False}
    for process, cond in ((FLOW, None), (TwoSided(), {"x1": normal(24, 2, seed=1)})):
        runs = [orn.fit(model_of(process), normal(24, 2), cond=cond, objective=MinibatchOT(), **options) for _ in "ab"]
        assert bool(runs[0].history["loss"].isfinite().all())


def test_two_sets_of_unequal_size():
    """The smaller is repeated evenly, in random order, with the conditions that belong to it; the larger stays."""
    x0, x1, label = normal(7, 2), normal(17, 2, seed=1), torch.arange(7)
    data, cond = unpaired(x0, x1, cond={"label": label}, seed=3)
    assert torch.equal(cond["x1"], x1)
    assert torch.equal(data, x0[cond["label"]])
    counts = torch.bincount(cond["label"])
    assert set(counts.tolist()) == {2, 3}
    assert torch.equal(unpaired(x0, x1, seed=3)[0], data)
    assert not torch.equal(unpaired(x0, x1, seed=4)[0], data)
    other, cond = unpaired(x1, x0, cond={"label": torch.arange(17)}, end="source")
    assert torch.equal(other, x1)
    assert torch.equal(cond["label"], torch.arange(17))
    assert len(cond["source"]) == 17
    run = orn.fit(
        model_of(TwoSided()), *unpaired(x0, x1)[:1], cond=unpaired(x0, x1)[1],
        objective=MinibatchOT(), steps=2, batch_size=8, progress=False,
    )  # fmt: skip
    assert run.steps == 2


def test_what_is_refused():
    x0, sided = normal(6, 2), TwoSided()
    for objective in (Shuffled(), MinibatchOT(), C2OT()):
        with pytest.raises(ValueError, match=r"unequal size: x0 is \(6, 2\), x1 \(5, 2\).*unpaired"):
            draw(objective, sided, x0, {"x1": normal(5, 2), "label": torch.zeros(6)})
        with pytest.raises(ValueError, match=r"cond=\{'x1': x1\}"):
            draw(objective, sided, x0, {"label": torch.zeros(6)})
        with pytest.raises(ValueError, match=r"cond=\{'x1': x1\}"):
            draw(objective, Interpolant(), x0, {"label": torch.zeros(6)})
    with pytest.raises(ValueError, match=r"'label'.*missing"):
        draw(C2OT(), FLOW, x0)
    model = orn.Denoiser(orn.nets.Joined(orn.nets.MLP(4, width=8, depth=1)), Product(Pair(FLOW, FLOW)), "velocity")
    with pytest.raises(ValueError, match="one tensor each"):
        MinibatchOT()(model, Pair(x0, x0), seed=0)
    for bad, match in (
        ({"weight": -1.0}, "weight=-1"),
        ({"weight": math.nan}, "weight=nan"),
        ({"ratio": 0.0}, "ratio=0"),
        ({"ratio": 1.0}, "ratio=1"),
        ({"distance": "l1"}, "squared, cosine"),
    ):
        with pytest.raises(ValueError, match=match):
            C2OT(**bad)
    with pytest.raises(ValueError, match=r"event shape.*\(6, 2\) and \(4, 3\)"):
        unpaired(x0, normal(4, 3))
    with pytest.raises(ValueError, match="neither empty"):
        unpaired(x0, normal(4, 2)[:0])
    with pytest.raises(ValueError, match="mapping"):
        unpaired(x0, x0, cond=x0)
    with pytest.raises(ValueError, match=r"label.*batch of 6"):
        unpaired(x0, x0, cond={"label": torch.zeros(5)})
    with pytest.raises(ValueError, match="batch of 6"):
        orn.fit(model_of(sided), x0, cond={"x1": normal(5, 2)}, steps=1, objective=MinibatchOT(), progress=False)


def test_a_dropped_condition_is_a_class_of_its_own():
    """Rows without a class exchange noise among themselves, so the unconditional branch is not skewed either."""
    x0, label = normal(64, 2), torch.arange(64) % 3 - 1
    before, after = (draw(objective, FLOW, x0, {"label": label})[0].noise for objective in (Objective(), C2OT()))
    for k in (-1, 0, 1):
        assert torch.equal(before[label == k].sort(0).values, after[label == k].sort(0).values)

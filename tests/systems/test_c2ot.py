"""C2OT: optimal transport within batches that leaves the law of the noise given the condition alone."""

import itertools
import math

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.random import Share
from ornstein.training import C2OT, MinibatchOT, Objective
from ornstein.training.couplings import adaptive_weight, assignment, costs
from worlds import F64, normal

FLOW = orn.Flow()
N = 512


def drawn(objective, x0, cond, seed=0, process=FLOW):
    """A batch's draw, as the objective couples it, and the condition that the network sees."""
    model = orn.Denoiser(orn.nets.MLP(x0.shape[1:], width=8, depth=1), process, "velocity")
    t = torch.full((len(x0),), 0.5, dtype=F64)
    return objective.draw(model, x0, t, cond, seed, Share(0, len(x0), len(x0)))


def two_classes(n, seed):
    """Classes N(+3, 1) and N(-3, 1), about half the data each."""
    label = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
    return (6.0 * label - 3)[:, None] + normal(n, 1, seed=seed), label


class Read(orn.BaseDenoiser):
    """E[noise - x0 | x_t, label] of pairs in one dimension that do not cross, read off between them, class by class."""

    process, predicts = FLOW, "velocity"

    def __init__(self, x0, noise, label):
        super().__init__()
        self.pairs = []
        for k in (0, 1):
            order = noise[label == k].squeeze(1).argsort()
            self.pairs.append((x0[label == k].squeeze(1)[order], noise[label == k].squeeze(1)[order]))

    def bind(self, levels, x, cond):
        def answer(t, x):
            out = torch.empty_like(x)
            for k, (x0, noise) in enumerate(self.pairs):
                rows = cond["label"] == k
                out[rows, 0] = torch.from_numpy(np.interp(x[rows, 0], (1 - t) * x0 + t * noise, noise - x0))
            return out

        return [lambda x, t=t: answer(float(t), x) for t in levels.t]


@pytest.mark.system("c2ot", rival="minibatch optimal transport that does not see the condition")
def test_c2ot():
    """Classes N(+-3, 1). Transport that does not see the class gives the upper half of the noise to the upper class:
    E[noise | class] = +-sqrt(2/pi) (large batches, classes that hardly overlap), where sampling has 0. C2OT exchanges
    noise within classes alone, so it is independent of the class: its mean lies within 5 standard errors of 0. Its cost
    is that of the monotone map within a class, 9; random pairs have 9 + 1 + 1.

    Standard errors: of the mean of a class 1/sqrt(n/2); of the mean cost 2 * 3 sqrt(2/n), from its term 2 * 3 (e - z).
    Finite batches move the rival's threshold between the halves by O(1/sqrt(N)), its mean by O(1/N); the overlap of the
    classes takes less than 0.02 of it; the cost of matching N/2 of one law with N/2 of the same is below 0.06.

    One step of the flow that the pairs make, from fresh noise for each class: W1 to the class. Where paths are told
    apart, that of N/2 samples (below 0.15); the independent coupling steps to the mean of the class, sqrt(2/pi); the
    rival is asked where it has no pairs.
    """
    batches = 10
    n = batches * N
    mean, cost, step = {}, {}, {}
    for objective in (Objective(), MinibatchOT(), C2OT()):
        rows = []
        for seed in range(batches):
            x0, label = two_classes(N, seed)
            draw, left = drawn(objective, x0, {"label": label}, seed)
            assert torch.equal(left["label"], label)
            rows.append((draw.x0, draw.noise, label))
        x0, noise, label = (torch.cat(column) for column in zip(*rows, strict=True))
        kind = type(objective)
        mean[kind], cost[kind] = float(noise[label == 1].mean()), float((x0 - noise).square().mean())
        model, z, asked = Read(*rows[0]), normal(2000, 1, seed=99), torch.arange(2000) % 2
        out = orn.sample(model, x_init=z, cond={"label": asked}, solver=orn.Euler(), grid=[1.0, 0.0]).x
        truth = normal(2000, seed=7)
        step[kind] = max(orn.metrics.wasserstein1(out[asked == k, 0], 6 * k - 3 + truth) for k in (0, 1))
    error, dear = math.sqrt(2 / n), 5 * 6 * math.sqrt(2 / n)
    assert abs(mean[C2OT]) < 5 * error
    assert abs(mean[Objective]) < 5 * error
    assert mean[MinibatchOT] == pytest.approx(math.sqrt(2 / math.pi), abs=5 * error + 0.02)  # the curse, as computed
    assert cost[Objective] == pytest.approx(11, abs=dear)
    assert cost[C2OT] == pytest.approx(9, abs=dear + 0.06)
    assert cost[MinibatchOT] < cost[C2OT] < cost[Objective] - dear
    assert step[C2OT] < 0.15
    assert step[MinibatchOT] > 0.4
    # the noise of a class is the same set before and after: independent not in the mean alone
    x0, label = two_classes(N, 0)
    (before, _), (after, _) = (drawn(objective, x0, {"label": label}) for objective in (Objective(), C2OT()))
    for k in (0, 1):
        assert torch.equal(before.noise[label == k].sort(0).values, after.noise[label == k].sort(0).values)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_optimal(seed):
    """Against every permutation of 6 rows, for the plain cost, with a weight, and within classes."""
    x0, x1, label = normal(6, 2, seed=seed), normal(6, 2, seed=10 + seed), torch.tensor([0, 1, 0, 0, 1, 0])
    apart = (label[:, None] != label).double()
    every = torch.tensor(list(itertools.permutations(range(6))))
    rows = torch.arange(6)
    for objective, cost in (
        (MinibatchOT(), costs(x0, x1)),
        (C2OT(weight=0.0), costs(x0, x1)),
        (C2OT(weight=0.7), costs(x0, x1) + 0.7 * apart),
        (C2OT(), costs(x0, x1) + 1e6 * apart),
    ):
        best = every[cost[rows, every].sum(1).argmin()]
        assert torch.equal(objective.order(x0, x1, {"label": label}), best)
    torch.testing.assert_close(costs(x0, x1)[2, 3], (x0[2] - x1[3]).square().sum())
    # only inner products matter: the scale of the noise changes nothing
    assert torch.equal(MinibatchOT().order(x0, 80 * x1), MinibatchOT().order(x0, x1))


def test_adaptive_weight():
    """The least w whose r(w) is at most the ratio, by the definition of r; 0 where even that is low enough; inf where
    equal conditions alone have more."""
    x0, x1, c = normal(40, 2), normal(40, 2, seed=1), normal(40, 3, seed=2)
    cost, apart = costs(x0, x1), costs(c, c)

    def share(w):
        return float((cost + w * apart < cost.diagonal()[:, None]).double().mean())

    for ratio in (0.01, 0.05, 0.2):
        w = adaptive_weight(cost, apart, ratio)
        assert share(w) <= ratio < share(w * (1 - 1e-9))
    assert adaptive_weight(cost, apart, 0.999) == 0
    assert adaptive_weight(cost, torch.zeros_like(apart), 0.01) == math.inf
    assert adaptive_weight(cost, (c[:, :1] > 0).double() @ (c[:, :1] < 0).double().mT, 0.1) == math.inf
    plain, given = (C2OT(condition="c", ratio=r).order(x0, x1, {"c": c}) for r in (0.999, 0.05))
    assert torch.equal(plain, assignment(cost))
    assert torch.equal(given, assignment(cost + adaptive_weight(cost, apart, 0.05) * apart))


def test_numbers_as_conditions():
    """x0 = c + 0.2 e with c ~ N(0, 1): plain transport makes the noise a function of the condition (correlation above
    0.9), an infinite weight none at all (5 standard errors), the adaptive one lies between in both dependence and cost,
    and more of one is less of the other as its ratio grows."""
    table = {}
    for name, objective in {
        "plain": MinibatchOT(),
        "wide": C2OT(condition="c", ratio=0.2),
        "narrow": C2OT(condition="c", ratio=0.02),
        "inf": C2OT(condition="c", weight=math.inf),
    }.items():
        rows = []
        for seed in range(8):
            c = normal(256, seed=seed)
            x0 = (c + 0.2 * normal(256, seed=100 + seed))[:, None]
            draw, _ = drawn(objective, x0, {"c": c}, seed)
            rows.append((c, draw.noise[:, 0], (x0 - draw.noise).square().sum(1)))
        c, noise, cost = (torch.cat(column) for column in zip(*rows, strict=True))
        table[name] = float(torch.corrcoef(torch.stack([c, noise]))[0, 1]), float(cost.mean())
    correlations, prices = zip(*table.values(), strict=True)
    assert correlations[0] > 0.9
    assert abs(correlations[-1]) < 5 / math.sqrt(8 * 256)
    assert list(correlations) == sorted(correlations, reverse=True)
    assert list(prices) == sorted(prices)
    assert correlations[2] < 0.3
    assert C2OT(condition="c", distance="cosine", weight=3.0).order(x0, x0, {"c": torch.eye(256)}).shape == (256,)

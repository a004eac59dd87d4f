"""Condition perturbation: training under slightly wrong conditions raises the entropy and lowers W2."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.random import Share
from ornstein.training import ConditionPerturbation, Objective, TimeLaw, corrupt_labels
from worlds import F64, normal

FLOW = orn.Flow()


@dataclass(frozen=True)
class At(TimeLaw):
    """One time."""

    t: float = 0.5

    def quantile(self, u, process):
        return torch.full_like(u, self.t)

    def density(self, level):
        raise NotImplementedError


class Linear(nn.Module):
    """x0 = W x + V c at one time, c the embedding of the label: the paper's network. Embeddings are orthonormal."""

    def __init__(self, w, v):
        super().__init__()
        self.w, self.v = nn.Parameter(w), nn.Parameter(v)
        self.embedding = orn.nets.embedding.LabelEmbedding(2, v.shape[1])
        self.embedding.table = nn.Parameter(torch.eye(3, v.shape[1], dtype=F64), requires_grad=False)

    def forward(self, x, t, cond):
        c = self.embedding(cond["label"])
        return x @ self.w.mT + (c + cond.get("label_offset", 0.0)) @ self.v.mT


def minimiser(x, y, gamma, width, t=0.5):
    """(kappa, covariance that the denoiser acts on, W, V) for two classes of equal size, in closed form.

    Given x_t the regression on c = e_y + delta has E c c^T = I/2 + gamma^2/width I on the span of the embeddings, so
    V = kappa (I - alpha W) [m_1, m_2] with kappa = (1/2)/(1/2 + gamma^2/width). What is left of x0 to explain from x_t
    is S + (1 - kappa) M, S the covariance inside the classes and M = sum_k m_k m_k^T/2: W is its Wiener filter.
    """
    means = torch.stack([x[y == k].mean(0) for k in (0, 1)])
    inside = sum((x[y == k] - means[k]).mT @ (x[y == k] - means[k]) / len(x) for k in (0, 1))
    kappa = 0.5 / (0.5 + gamma**2 / width)
    act = inside + (1 - kappa) * means.mT @ means / 2
    alpha, sigma = 1 - t, t
    eye = torch.eye(x.shape[1], dtype=F64)
    w = alpha * act @ torch.linalg.inv(alpha**2 * act + sigma**2 * eye)
    v = torch.zeros(x.shape[1], width, dtype=F64)
    v[:, :2] = kappa * (eye - alpha * w) @ means.mT
    return kappa, means, act, w, v


def gradients(x, y, w, v, objective, batches=24, copies=100):
    """The mean gradient of the loss over a data set in units of its standard error, by independent batches."""
    model = orn.Denoiser(Linear(w.clone(), v.clone()), FLOW, "x0")
    rows = []
    for seed in range(batches):
        loss = objective(model, x.repeat(copies, 1), {"label": y.repeat(copies)}, seed=seed)
        grads = torch.autograd.grad(loss, [model.net.w, model.net.v])
        rows.append(torch.cat([g.flatten() for g in grads]))
    rows = torch.stack(rows)
    return float((rows.mean(0).abs() / (rows.std(0) / math.sqrt(batches)).clamp_min(1e-12)).max())


def w2(mean, cov, true_mean, true_cov):
    """W_2^2 of Gaussians."""
    values, vectors = torch.linalg.eigh(true_cov)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov @ root).clamp_min(0).sqrt().sum()
    return float((mean - true_mean).square().sum() + cov.trace() + true_cov.trace() - 2 * cross)


@pytest.mark.system("condition-perturbation", rival="training under the right conditions (gamma = 0)")
def test_condition_perturbation():
    """The paper's theorem on its own ground, a linear network and Gaussian classes N(m_k, I) in d dimensions.

    First the library's loss is shown to have the closed-form minimiser (`minimiser`): its mean gradient there is zero
    within error, the largest of 22 entries of about 24 batches (Student, 5 for 1 in 10^3), while at the minimiser of
    plain training the same gradient is many errors away. Then the generated law of class k, which for that denoiser is
    N(kappa m_k, S + (1 - kappa) M) exactly, is compared with the truth over 200 data sets.

    With n samples a class both parts of W2^2 fall at first order in eps = 1 - kappa: |m_k'|^2 is too large on average
    by d/n (shrinking it gains 2 eps d/n), and S is too small. At second order |m|^2 eps^2 is lost: a large gamma hurts.
    """
    d, n, width, gamma = 4, 12, 8, 0.3
    true_means = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], dtype=F64)
    y = torch.arange(2 * n) % 2
    x = true_means[y] + normal(2 * n, d, seed=1)
    perturbed = ConditionPerturbation(time=At(), gamma=1.5)
    *_, w, v = minimiser(x, y, 1.5, width)
    assert gradients(x, y, w, v, perturbed) < 5
    *_, w0, v0 = minimiser(x, y, 0.0, width)
    assert gradients(x, y, w0, v0, perturbed) > 20
    # uniform noise of this gamma has a third of the variance
    *_, w3, v3 = minimiser(x, y, 1.5 / math.sqrt(3), width)
    assert gradients(x, y, w3, v3, ConditionPerturbation(time=At(), gamma=1.5, law="uniform")) < 5

    eye = torch.eye(d, dtype=F64)

    def judged(seed, gamma):
        x = true_means[y] + normal(2 * n, d, seed=seed)
        kappa, means, act, _, _ = minimiser(x, y, gamma, width)
        return w2(kappa * means[0], act, true_means[0], eye), float(torch.logdet(act)) / 2

    base, small, large = (torch.tensor([judged(s, g) for s in range(200)]) for g in (0.0, gamma, 4.0))
    gain = base[:, 0] - small[:, 0]
    assert bool((small[:, 1] > base[:, 1]).all())  # entropy up in every data set
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(200)  # W2 down, at three standard errors
    assert float(large[:, 0].mean()) > float(base[:, 0].mean())  # and only for slight corruption


def test_gamma_zero_is_plain_training():
    """Bit for bit, and the other random numbers do not depend on gamma."""
    x, y = normal(32, 2).float(), torch.arange(32) % 3
    model = orn.Denoiser(orn.nets.MLP(2, labels=3, width=16, depth=1), FLOW)
    torch.nn.init.normal_(model.net.last[1].weight, generator=torch.Generator().manual_seed(0))
    plain = Objective().losses(model, x, {"label": y}, seed=5)
    for gamma, same in ((0.0, True), (1.0, False)):
        loss, t = ConditionPerturbation(gamma=gamma).losses(model, x, {"label": y}, seed=5)
        assert torch.equal(t, plain[1])
        assert torch.equal(loss, plain[0]) is same
    # what a model answers later knows nothing of it
    fits = []
    for objective in (Objective(), ConditionPerturbation(gamma=0.0), ConditionPerturbation(gamma=1.0)):
        torch.manual_seed(0)
        model = orn.Denoiser(orn.nets.MLP(2, labels=3, width=16, depth=1), FLOW)
        orn.fit(model, x, cond={"label": y}, steps=4, batch_size=8, objective=objective)
        fits.append(orn.sample(model, (8, 2), cond={"label": y[:8]}, steps=4, seed=0).x)
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_size_and_share():
    """delta has standard deviation gamma/sqrt(d), so |delta| is about gamma for every d; a process that holds rows 3 to
    7 of a batch draws theirs."""
    cond = {"text": torch.zeros(4000, 10, 5, dtype=F64), "label": torch.zeros(4000, dtype=torch.long)}
    x0 = torch.zeros(4000, 2, dtype=F64)
    model = orn.Denoiser(orn.nets.MLP(2, labels=3, width=16), FLOW)
    t, share = torch.full((4000,), 0.5, dtype=F64), Share(0, 4000, 4000)
    for law, third in (("normal", 1.0), ("uniform", 3.0)):
        objective = ConditionPerturbation(gamma=0.7, law=law, names=("text", "label"))
        _, seen = objective.draw(model, x0, t, cond, 1, share)
        for name, d in (("text", 50), ("label_offset", 16)):
            square = seen[name].flatten(1).square().sum(1)
            # the mean of 4000 d independent squares, relative error sqrt(2/(4000 d)) < 0.006
            assert float(square.mean()) == pytest.approx(0.7**2 / third, rel=0.03), (law, name, d)
        part = {name: c[3:7] for name, c in cond.items()}
        _, own = objective.draw(model, x0[3:7], t[3:7], part, 1, Share(3, 7, 4000))
        assert torch.equal(own["text"], seen["text"][3:7])
        assert torch.equal(own["label_offset"], seen["label_offset"][3:7])
    assert float(seen["text"].abs().max()) <= 0.7 / math.sqrt(50)


def test_refusals():
    model = orn.Denoiser(orn.nets.MLP(2, width=8), FLOW)
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="no cond\\['label'\\]"):
        ConditionPerturbation()(model, x, seed=0)
    with pytest.raises(ValueError, match="LabelEmbedding"):
        ConditionPerturbation()(model, x, {"label": torch.zeros(4, dtype=torch.long)}, seed=0)
    with pytest.raises(ValueError, match="floating-point"):
        ConditionPerturbation(names=("k",))(model, x, {"k": torch.zeros(4, dtype=torch.long)}, seed=0)
    for wrong in ({"gamma": -1.0}, {"gamma": math.inf}, {"names": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ConditionPerturbation(**wrong)


def test_corrupted_labels():
    """The share of wrong labels is the one asked for, and every wrong class is as likely."""
    y = torch.arange(30_000) % 5
    bad = corrupt_labels(y, 0.2, seed=1)
    wrong = bad != y
    assert float(wrong.double().mean()) == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 30_000))
    steps = torch.bincount((bad - y)[wrong] % 5, minlength=5)[1:] / wrong.sum()
    assert float((steps - 0.25).abs().max()) < 4 * math.sqrt(0.1875 / 6_000)
    assert torch.equal(corrupt_labels(y, 0.0), y)
    assert bool((corrupt_labels(y, 1.0) != y).all())
    for labels, options in ((y.float(), {}), (y, {"classes": 3}), (torch.zeros(4, dtype=torch.long), {})):
        with pytest.raises(ValueError, match="labels"):
            corrupt_labels(labels, 0.5, **options)
    with pytest.raises(ValueError, match="share"):
        corrupt_labels(y, 1.5)

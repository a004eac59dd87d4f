"""Flow matching: the conditional loss has the gradient of the intractable one; the flow it learns has a likelihood."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood
from ornstein.numerics.quadrature import gauss_legendre
from ornstein.processes import ConditionalOT
from worlds import F64

MEANS, STDS, WEIGHTS = (torch.tensor(v, dtype=F64) for v in ([-1.5, 0.5, 2.0], [0.3, 0.5, 0.4], [0.3, 0.5, 0.2]))
WORLD = orn.exact.GaussianMixture(MEANS[:, None], STDS, WEIGHTS)
PATHS = [ConditionalOT(0.1), orn.VP(), orn.VE(0.1, 5.0)]  # the paper's OT, VP and VE


class Fixed(orn.Objective):
    """The loss with weights of one at given pairs: a quadrature in place of draws."""

    def losses_at(self, model, x0, noise, t):
        draw = model.process.corrupt(x0, t, noise=noise)
        return self.compare(model, model(draw.x, draw.level), draw, None)


def nodes(count=120, reach=7.0):
    """Points and weights of an integral against N(0, 1), exact to rounding for what is smooth."""
    points, weights = gauss_legendre(count)
    return reach * points, reach * weights * torch.exp(-((reach * points) ** 2) / 2) / math.sqrt(2 * math.pi)


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def network(process):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(F64)
    return orn.Denoiser(At(net), process, predicts="velocity")


class At(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None].expand_as(x)], 1))


def both(process, t):
    """(FM gradient, CFM gradient, CFM gradient with the target of straight paths) at t, by quadrature."""
    model, objective, level = network(process), Fixed(weighting=lambda *_: torch.ones((), dtype=F64)), process.level(t)
    z, w = nodes()
    # x_t is a mixture of N(alpha m, alpha^2 s^2 + sigma^2): FM regresses on its exact velocity
    spread = torch.sqrt(level.alpha**2 * STDS**2 + level.sigma**2)
    x = (level.alpha * MEANS[:, None] + spread[:, None] * z).reshape(-1, 1)
    weight = (WEIGHTS[:, None] * w).reshape(-1)
    error = model(x, level).velocity - WORLD.denoiser(process)(x, level).velocity
    marginal = gradients(model, (weight * error.square().squeeze(1)).sum())
    # CFM draws the pair
    x0 = (MEANS[:, None, None] + STDS[:, None, None] * z[:, None] + 0 * z).reshape(-1, 1)
    noise = (0 * MEANS[:, None, None] + 0 * z[:, None] + z).reshape(-1, 1)
    pairs = (WEIGHTS[:, None, None] * w[:, None] * w).reshape(-1)
    conditional = gradients(model, (pairs * objective.losses_at(model, x0, noise, level)).sum())
    draw = process.corrupt(x0, level, noise=noise)
    straight = (model(draw.x, level).velocity - (noise - x0)).square().squeeze(1)
    return marginal, conditional, gradients(model, (pairs * straight).sum())


@pytest.mark.system("flow-matching", rival="the displacement noise - x0 as the target, whatever the path")
def test_flow_matching():
    for process in PATHS:
        for t in (0.1, 0.6):
            marginal, conditional, rival = both(process, t)
            scale = float(marginal.norm())
            assert float((conditional - marginal).norm()) < 1e-7 * scale, (process, t)
            assert float((rival - marginal).norm()) > 1e-3 * scale, (process, t)

    # the likelihood of the flow is that of what it makes of the prior, and its mean the entropy: by a quadrature too
    z, w = nodes(40)
    for process in PATHS:
        level, end = process.level(0.0), process.level(1.0)
        blurred = torch.hypot(STDS, level.sigma / level.alpha)
        world = orn.exact.GaussianMixture(MEANS[:, None], blurred, WEIGHTS)
        x = (MEANS[:, None] + blurred[:, None] * z).reshape(-1, 1)
        found = log_likelihood(WORLD.denoiser(process), x, rtol=1e-5, atol=1e-5)
        end_law = torch.distributions.Normal(torch.zeros((), dtype=F64), end.sigma).log_prob(found.latent).squeeze(1)
        truth = world.log_prob(x) + end_law - WORLD.log_prob(found.latent, process, 1.0)
        torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=1e-4)
        weight = (WEIGHTS[:, None] * w).reshape(-1)
        points, weights = gauss_legendre(400)
        line = 8 * points[:, None]
        entropy = -float((8 * weights * world.log_prob(line).exp() * world.log_prob(line)).sum())
        # the KL of the world's end law from the prior: alpha^2 E[x0^2]/(2 sigma^2), E[x0^2] = 2.1, and less
        slack = 1e-4 + 1.1 * float((end.alpha / end.sigma) ** 2)
        assert -float((weight * found.log_prob).sum()) == pytest.approx(entropy, abs=slack), process

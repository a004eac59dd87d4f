"""Rectified flow: from any coupling to one that is cheaper for every convex cost, and straight."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import TwoSided
from ornstein.training import reflow_pairs
from worlds import F64, normal

PROCESS = TwoSided()
TIMES = torch.linspace(1, 0, 201, dtype=F64)


@pytest.fixture(autouse=True)
def doubles():
    """Worlds have no parameters to take a dtype from."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def followed(world, x1):
    return orn.sample(world.denoiser(PROCESS), x_init=x1, solver=orn.Heun(variable="t"), grid=TIMES, trajectory=True)


@pytest.mark.system("rectified-flow", rival="the coupling that it was given, and its own first, curved flow")
def test_rectified_flow():
    """Between Gaussians whose covariances do not commute everything is linear, so all of a reflow is closed form: the
    flow is x0 = M x1, the new coupling has the cross-covariance M B. With D the covariance of x1 - x0:

    - M B M^T = A: the marginals are kept;
    - D falls as a matrix, which between Gaussians of one mean is "no convex cost rises"; the squared cost falls by the
      straightness S and the mean variance V of x1 - x0 given x_t, the paper's identity;
    - the flow of the new coupling is straight, one Euler step of it is exact, and a further reflow changes nothing.

    The rivals do not: the flow of the coupling given is curved, its one step ends in the mean. And M is not symmetric:
    the map is straight but not the optimal transport for squares, whose cost is lower still."""
    a = torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    b = torch.tensor([[0.3, -0.5], [-0.5, 2.0]])
    ends = [GaussianMixture(torch.zeros(1, 2), covs=cov[None]) for cov in (a, b)]
    given = TwoSidedMixture(*ends)
    m = given.flow(PROCESS, torch.eye(2), 1.0, 0.0).mT
    torch.testing.assert_close(m @ b @ m.mT, a, rtol=1e-8, atol=1e-8)
    cross = m @ b
    spread = [a + b, a + b - cross - cross.mT]
    assert float(torch.linalg.eigvalsh(spread[0] - spread[1])[0]) > 0.1
    assert float((m - m.mT).abs().max()) > 0.05
    root = torch.linalg.svd(torch.linalg.cholesky(b).mT @ torch.linalg.cholesky(a)).S.sum()
    optimal = float((a + b).trace() - 2 * root)
    assert optimal < float(spread[1].trace()) - 1e-3

    # S and V of the given coupling: over the path of the flow, and over the law of x_t
    x1 = torch.linalg.cholesky(b).mT  # its rows have the second moment b/2
    path = followed(given, x1)
    straight = 2 * orn.metrics.straightness(path.trajectory, TIMES)
    speed = torch.zeros(())
    for t in (torch.arange(200) + 0.5) / 200:
        gain = given.velocity(torch.eye(2), PROCESS, t).mT
        speed += (gain @ given.at(PROCESS, t).moments()[1] @ gain.mT).trace() / 200
    unknown = float(spread[0].trace() - speed)
    assert straight > 0.1
    assert float(spread[0].trace() - spread[1].trace()) == pytest.approx(straight + unknown, rel=1e-3)

    again = TwoSidedMixture(*ends, cross=cross[None, None])
    for world, is_straight in ((again, True), (given, False)):
        one = orn.sample(world.denoiser(PROCESS), x_init=x1, solver=orn.Euler(), grid=[1.0, 0.0]).x
        landed = float((one - x1 @ m.mT).abs().max())
        curved = orn.metrics.straightness(followed(world, x1).trajectory, TIMES)
        assert (landed < 1e-9) == is_straight
        assert (curved < 1e-12) == is_straight
    torch.testing.assert_close(again.flow(PROCESS, x1, 1.0, 0.0), x1 @ m.mT, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(one, torch.zeros_like(one))  # the rival's one step


def test_on_a_line_it_is_the_monotone_map():
    """Whatever the coupling, here one that crosses: the flow keeps the order of points and both laws, so it is
    F0^-1(F1(x1)), the optimal transport of every convex cost. The pairs do not cross any more: their own flow is
    straight, and one step of it enough."""
    plan = torch.tensor([[0.0, 0.5], [0.3, 0.2]])
    data = GaussianMixture(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.4, 0.6]), plan.sum(1))
    other = GaussianMixture(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.5, 0.7]), plan.sum(0))
    world = TwoSidedMixture(data, other, plan)
    x0, x1 = world.sample(400, seed=0)

    def below(law, x):
        std = law.covariance.floor.sqrt()
        return torch.special.ndtr((x - law.means[:, 0]) / std) @ law.weights

    images = world.flow(PROCESS, x1[:40], 1.0, 0.0)
    torch.testing.assert_close(below(data, images), below(other, x1[:40]), rtol=0, atol=1e-8)
    pairs = reflow_pairs(world.denoiser(PROCESS), x1=x1)

    def crossings(x0):
        return float(((x0 - x0.mT) * (x1 - x1.mT) < 0).double().mean())

    assert crossings(x0) > 0.4
    assert crossings(pairs.x0) == 0
    for power in (1.0, 1.5, 2.0, 4.0):
        before, after = ((x1 - start).abs().pow(power).mean() for start in (x0, pairs.x0))
        assert after < before


def test_no_convex_cost_rises():
    """Pairs of the flow between mixtures, for a coupling of a plan: each cost falls by more than 5 standard errors, and
    both marginals stay, to 5. The pairs are in the order of the x1 given."""
    data = GaussianMixture(2 * normal(3, 2, seed=2), 0.5, torch.tensor([1.0, 2, 3]))
    other = GaussianMixture(2 * normal(2, 2, seed=3), torch.tensor([0.4, 0.7]))
    world = TwoSidedMixture(data, other, torch.tensor([[1.0, 0], [1, 1], [1, 2]]) / 6)
    n = 3000
    x0, x1 = world.sample(n, seed=0)
    pairs = reflow_pairs(world.denoiser(PROCESS), x1=x1, steps=30)
    assert torch.equal(pairs.noise, x1)
    costs = {
        "l1": lambda d: d.abs().sum(1),
        "l2": lambda d: d.norm(dim=1),
        "max": lambda d: d.abs().amax(1),
        "square": lambda d: d.square().sum(1),
        "fourth power": lambda d: d.square().sum(1) ** 2,
        "one side": lambda d: (d[:, 0] + 0.5 * d[:, 1]).clamp_min(0),
        "log-cosh": lambda d: torch.log(torch.cosh(2 * d)).sum(1),
    }
    for key, cost in costs.items():
        fall = cost(x1 - x0) - cost(x1 - pairs.x0)
        assert float(fall.mean()) > 5 * float(fall.std()) / math.sqrt(n), key
    mean, cov = data.moments()
    apart = pairs.x0 - mean
    for value, truth in ((pairs.x0, mean), (apart[:, :, None] * apart[:, None], cov)):
        assert bool(((value.mean(0) - truth).abs() < 5 * value.std(0) / math.sqrt(n)).all())

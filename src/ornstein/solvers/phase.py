"""What exponential integrators share in phase space: integrals of the drift's transition against the noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..numerics.quadrature import between
from ..processes import Level, Matrix, PhaseSpace
from .table import Evaluation, Expression, Register

_RULE = 32  # points of the Gauss-Legendre rule, in sqrt(t)


def follow(process: PhaseSpace, x: Register, e: Evaluation, s: Level) -> Expression:
    """z_s = Phi(s, t) z_t + [R(s) - Phi(s, t) R(t)] n,    n = -R(t)^T score

    the flow of a point mass, whose noise n stays what it is: DDIM in phase space, exact for constant x0 and down to
    t = 0. It is said in the noise and not in x0 since of a network's two noises x0 keeps but one.

    Source: Zhang, Tao, Chen 2022, "gDDIM" (2206.05564), equation 18.
    """
    t = e.level
    phi, root = process.transition(t.t, s.t), process.flow_root(t.t)
    gained = process.flow_root(s.t) - phi @ root
    return Matrix(phi) * x - Matrix(gained @ root.mT) * e.score


def advance_phase(
    process: PhaseSpace,
    x: Register,
    t: Level,
    s: Level,
    nodes: Sequence[Evaluation],
    basis: Callable[[Level], Tensor],
    growth: Tensor | float = 1.0,
) -> Expression:
    """z_s = growth Phi(s, t) z_t + sum_j W_j n_j,    W_j = int_t^s basis_j(tau) Phi(s, tau) (G G^T/2) R(tau)^-T dtau

    with n_j = -R(node_j)^T score the noise that the flow of a point mass keeps: the exact solution of the probability
    flow dz = [F z + (G G^T/2) R^-T n] dt for noise that is sum_j basis_j(tau) n_j. `basis` gives (..., points, nodes)
    at levels (..., points).

    Source: Zhang, Chen 2022 (2204.13902), equation 10; for R: Zhang, Tao, Chen 2022 (2206.05564).
    """
    v, dv = between(torch.sqrt(t.t), torch.sqrt(s.t), _RULE)
    at = process.level(v**2)
    pull = process.transition(at.t, s.t[..., None]) @ at.diffusion @ torch.linalg.inv(process.flow_root(at.t)).mT
    weights = torch.einsum("...p,...pj,...pab->j...ab", v * dv, basis(at), pull)
    value: Expression = (Matrix(process.transition(t.t, s.t)) * growth) * x
    for weight, node in zip(weights, nodes, strict=True):
        value = value - (Matrix(weight) * Matrix(process.flow_root(node.level.t)).mT) * node.score
    return value

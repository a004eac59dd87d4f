"""Score priors: a posterior fitted by variational inference, under the likelihood of the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Scaling
from ..density import log_likelihood
from ..density.flow_likelihood import FlowLikelihood
from ..density.units import units_of
from ..errors import NonFiniteError
from ..guidance.wrapped import calls_in
from ..linops import GaussianNoise, NoiseModel, Operator
from ..processes import GaussianProcess
from ..progress import bar
from ..random import Noise, as_noise, fresh_seed
from ..solvers import Samples, Solver
from ..solvers.sample import evaluation, in_units
from .measurement import Measurement
from .method import Method, Restored, check_positive, prepared, residuals
from .variational import Family, Law, Normal

GRADIENTS = ("flow", "score")
_OWN = ("steps", "nfe", "grid", "progress", "debug", "dtype", "device", "seed")


@dataclass(frozen=True)
class Fitted(Restored):
    """What `ScorePrior.posterior` returns: a `Restored` whose samples are those of one fit, and what they weigh.

    law: q, of the flattened states in the model's units.
    log_weight: log p(y | x) + log p(x) - log q(x) in nats, of the densities in the user's units, (batch, samples). It
    is the same number, log p(y), at every sample if q is the posterior.
    """

    law: Law
    log_weight: Tensor

    @property
    def bound(self) -> Tensor:
        """The mean of log_weight: an unbiased estimate of log p(y) - KL(q || posterior) <= log p(y), (batch,)."""
        return self.log_weight.mean(1)

    @property
    def error(self) -> Tensor:
        """The standard error of `bound`, (batch,); 0 where q is the posterior."""
        return self.log_weight.std(1) / math.sqrt(self.log_weight.shape[1])


@dataclass(frozen=True)
class ScorePrior(Method):
    """min over q of E_q[log q(x) - log p(y | x) - log p(x)] = KL(q || p(x | y)) - log p(y)

    with the log p(x) of the model's own probability flow: no weight between data and prior is left to choose, and of
    all laws of the family q is the nearest to the posterior. Exact for normal posteriors; elsewhere as good as the
    family, from the side of too little spread: what lies between modes it avoids, and modes it may miss. `posterior`
    tells the bound of log p(y) that was reached, by which families compare.

    Each step draws `particles` samples x = q(z) of each measurement and moves them by Adam along the gradient in x of
    log p(y | x) + log p(x) - log q(x): its mean is that of the bound, and its variance vanishes with the distance of q
    from the posterior. The learning rate falls to 0 by a cosine; steps, particles and lr decide how near to the
    optimum the fit comes, not where that is. The operator may be any with gradients, the noise any with a density.

    family: what q is chosen from, `Normal` or `RealNVP`.
    particles: samples of a step, and of one fit: `orn.restore` fits again for every so many more.
    gradient: of log p(x). "flow" is that of the likelihood itself, see `FlowLikelihood`; "score" is the model's score
        at the level `end`: one evaluation in place of hundreds, and the same thing for an exact model. A network's
        score is no gradient, is hardly trained at so little noise, and knows little of where the fit begins.
    probes: random signs for the flow's divergence, None for its exact trace (a product for each number of x).
    flow_steps: of the flow, four evaluations each.
    end: log-SNR at which data are put; 12 is noise of 0.0025. The model's finest level, where that has more noise.
    lr: of Adam, by default the family's.

    Source: Feng, Smith, Rubinstein, Chang, Bouman, Freeman 2023, "Score-Based Diffusion Models as Principled Priors for
    Inverse Imaging" (2304.11751), equations 4 to 8; the gradient without the score of q's parameters: Roeder, Wu,
    Duvenaud 2017 (1703.09194), equation 8.
    """

    family: Family = field(default_factory=Normal)
    particles: int = 16
    gradient: str = "flow"
    probes: int | None = 1
    flow_steps: int = 16
    end: float = 12.0
    lr: float | None = None

    def __post_init__(self) -> None:
        check_positive(lr=self._lr)
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient={self.gradient!r}: choose from {', '.join(GRADIENTS)}")
        for name, value in (("particles", self.particles), ("flow_steps", self.flow_steps), ("probes", self.probes)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least one")

    @property
    def _lr(self) -> float:
        return self.family.lr if self.lr is None else self.lr

    @property
    def steps(self) -> int:
        """Steps of the fit."""
        return 1000

    def solver(self, measurement: Measurement) -> Solver:
        raise ValueError(f"{self!r} is an optimisation: it has no table of steps")

    def check(self, model: BaseDenoiser, measurement: Measurement) -> None:
        self._start(model)
        measurement.density(self).gradient(self)

    def run(self, model: BaseDenoiser, measurement: Measurement, cond: Cond, **options: Any) -> Samples:
        law, draw, noise, nfe = self._fit(model, measurement, cond, **options)
        with torch.no_grad():
            return Samples(in_units(model, draw(law)), nfe, noise.seed, None)

    def posterior(
        self,
        model: BaseDenoiser,
        operator: Operator,
        y: Tensor,
        *,
        noise: NoiseModel | float = 0.0,
        cond: Cond = None,
        seed: int | None = None,
        probes: int | None = None,
        **options: Any,
    ) -> Fitted:
        """The fit to each measurement: what `orn.restore` returns of `particles` samples, and their weights.

        probes: of the `log_likelihood` of the samples, which is computed once; None for the exact one. The other
        arguments are those of `orn.restore`. The noise needs a density, the model's codec a Jacobian.
        """
        units_of(model, "likelihood")  # refused before the fit
        seed = fresh_seed() if seed is None else seed
        moved, repeated, own = prepared(model, operator, y, noise, self.particles, cond, seed, options)
        law, draw, _, nfe = self._fit(model, moved, repeated, **own)
        y = operator.check_measurement(y)
        with torch.no_grad():
            states = draw(law)
            log_q = law.log_prob(states.reshape(len(y), self.particles, -1)).flatten().cpu().double()
            found = in_units(model, states).to(y)
            if isinstance(model.scaling, Scaling):
                log_q = log_q - model.scaling.std.double().cpu().log().expand(states.shape[1:]).sum()
            index = torch.arange(len(y)).repeat_interleave(self.particles)
            likelihood = noise if isinstance(noise, NoiseModel) else GaussianNoise(float(noise))
            clean, wide = operator.rows(index)(found), y.repeat_interleave(self.particles, 0)
            log_y = likelihood.rows(index).log_prob(wide, clean).cpu().double()
        prior = log_likelihood(model, found, cond=repeated, start=self._start(model), probes=probes, seed=own["seed"])
        shape = (len(y), self.particles)
        found = found.reshape(*shape, *operator.event)
        return Fitted(
            found,
            nfe + prior.nfe,
            residuals(operator, y, found),
            seed,
            law,
            (log_y + prior.log_prob - log_q).reshape(shape),
        )

    def _start(self, model: BaseDenoiser) -> float:
        process = model.process
        if not isinstance(process, GaussianProcess):
            raise ValueError(f"{self!r} is for a GaussianProcess: {process!r} is none")
        return max(process.finest, float(process.time(torch.tensor(self.end, dtype=torch.float64))))

    def _fit(
        self, model: BaseDenoiser, measurement: Measurement, cond: Cond, **options: Any
    ) -> tuple[Law, Callable[[Law], Tensor], Noise, int]:
        """(the laws, what draws a sample of each row from them, their noise, evaluations)."""
        _check(self, measurement, options)
        y = measurement.y
        shape = (len(y), *measurement.operator.event)
        noise = as_noise(options.get("seed"), batch=len(y), dtype=y.dtype, device=y.device)
        populations, dim = len(y) // self.particles, math.prod(shape[1:])
        law = self.family.law(populations, dim).to(y)

        def draw(law: Law) -> Tensor:
            drawn: Tensor = law(noise.normal((len(y), law.noise)).reshape(populations, self.particles, -1))
            return drawn.reshape(shape)

        prior, cost = self._prior(model, y.new_empty(shape), cond, noise)
        steps = options.get("steps") or self.steps
        if options.get("nfe") is not None:
            steps = options["nfe"] // cost
            if steps < 1:
                raise ValueError(f"nfe={options['nfe']}: one step of this fit takes {cost} evaluations")
        adam = torch.optim.Adam(law.parameters(), self._lr, betas=(0.9, 0.99))
        with evaluation(model), bar(steps, "fitting", options.get("progress")) as tick:
            for i in range(steps):
                adam.param_groups[0]["lr"] = self._lr * (1 + math.cos(math.pi * i / steps)) / 2
                with torch.enable_grad():
                    x = draw(law)
                    at = x.detach().requires_grad_()
                    value = measurement.noise.log_prob(y, measurement.operator(at))
                    value = value - law.log_prob(at.reshape(populations, self.particles, dim)).flatten()
                    (uphill,) = torch.autograd.grad(value.sum(), at)
                    uphill = uphill + prior(at.detach())
                    if options.get("debug") and not bool(uphill.isfinite().all()):
                        raise NonFiniteError(f"the gradient of the bound is not finite at step {i} of {steps}")
                    adam.zero_grad()
                    torch.autograd.backward([x], [-uphill / self.particles])
                adam.step()
                tick()
        if not all(bool(p.isfinite().all()) for p in law.parameters()):
            raise NonFiniteError("the fit is not finite: debug=True tells the step, a smaller lr may help")
        return law, draw, noise, steps * cost

    def _prior(
        self, model: BaseDenoiser, x: Tensor, cond: Cond, noise: Noise
    ) -> tuple[Callable[[Tensor], Tensor], int]:
        """The gradient of log p at states like x, and the evaluations it takes."""
        start = self._start(model)
        if self.gradient == "score":
            level = model.process.level(start)[None]
            process: Any = model.process
            if process.shift(level.t[0], cond) is not None:
                raise ValueError(f"{self!r} is for a process without a shift: {process!r} has one")
            alpha = float(level.alpha)  # the density is of x0 = x/alpha
            (score,) = calls_in("score", model, level, x, cond)

            def by_score(x: Tensor) -> Tensor:
                with torch.no_grad():
                    slope: Tensor = alpha * score(alpha * x)
                    return slope

            return by_score, model.cost(level)[0]
        flow = FlowLikelihood(model, x, cond=cond, start=start, steps=self.flow_steps)

        def by_flow(x: Tensor) -> Tensor:
            if self.probes is None:
                return flow(x)[1]
            drawn = noise.normal((len(x), self.probes, *x.shape[1:])).transpose(0, 1)
            return flow(x, torch.where(drawn < 0, -1.0, 1.0).to(x))[1]

        return by_flow, flow.cost(x[0].numel() if self.probes is None else self.probes)


def _check(method: ScorePrior, measurement: Measurement, options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - set(_OWN))
    if unknown or options.get("grid") is not None:
        named = ", ".join(unknown) or "grid"
        raise ValueError(f"{named}: a fit has the options steps or nfe, progress, debug, dtype and device")
    if options.get("steps") is not None and options.get("nfe") is not None:
        raise ValueError("give steps or nfe, not both")
    if options.get("steps") is not None and options["steps"] < 1:
        raise ValueError(f"steps={options['steps']}: a fit has at least one step")
    measurement.density(method).gradient(method)

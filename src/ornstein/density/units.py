"""What a density is of: one state of one process, in units whose Jacobian is known."""

from __future__ import annotations

from ..denoiser import BaseDenoiser, Scaling
from ..processes import AffineProcess


def units_of(model: BaseDenoiser, what: str) -> tuple[AffineProcess, Scaling | None]:
    """(process, scaling) of a model of which `what` ("likelihood", "bound") can be told, or a ValueError."""
    process, scaling = model.process, model.scaling
    if not isinstance(process, AffineProcess):
        raise ValueError(f"a {what} is of a process of one component with a noise: got {process!r}")
    if scaling is not None and not isinstance(scaling, Scaling):
        raise ValueError(f"{type(scaling).__name__} has no Jacobian: take the {what} of its states, without it")
    return process, scaling

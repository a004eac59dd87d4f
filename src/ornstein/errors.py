"""The library's own errors; each is also the built-in error that a caller would expect."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file of tensors that cannot be trusted: truncated, damaged, of another program or kind, or too new."""


class ViewError(ValueError):
    """A view of a prediction that does not exist at this level, or for this process."""


class TableError(ValueError):
    """A table that is not causal, not finite, or not made for this process."""


class NonFiniteError(FloatingPointError):
    """A sampler met NaN or infinity; the message names the step."""


class DivergenceWarning(UserWarning):
    """A training loss has risen far above what it was; the message names the step."""

"""Names for annotations: shapes are checked while tests run, and cost nothing otherwise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from typing import Annotated as Float
elif "jaxtyping" in sys.modules:  # the test suite imports it first; a user's import stays light
    from jaxtyping import Float
else:

    class _Plain:
        def __getitem__(self, item: tuple[Any, ...]) -> Any:
            return item[0]

    Float = _Plain()

Array: TypeAlias = Float[Tensor, "batch *event"]
"""A batch of events: the batch axis first, any event shape after."""

State: TypeAlias = Any
"""A tensor (batch, *event), or a named tuple of such tensors."""

Cond: TypeAlias = Any
"""Any nest of tensors whose first axis is the batch, or None."""

View: TypeAlias = Literal["x0", "noise", "score", "velocity", "v"]
VIEWS: tuple[View, ...] = ("x0", "noise", "score", "velocity", "v")

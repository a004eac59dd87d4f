"""What the networks share: the embedding of time and label, further conditions, named outputs, and the checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein._types import Array, Cond
from ornstein.io.recipe import Recorded
from ornstein.nets.embedding import LabelEmbedding, TimeEmbedding

LABEL_OFFSET = "label_offset"
"""The condition that is added to a label's embedding: a perturbation of it in training, or a direction between."""


class Net(Recorded, nn.Module, ABC):
    """F(x, t, cond) = body([x, conditions], silu(e(t) + e(label))).

    x (batch, *event); t (batch,) or a scalar, in x's dtype; the answer has x's shape. With `labels` > 0 the condition
    "label", (batch,) integers in [0, labels) or NULL = -1, is needed; so is every name in `conditions`, a tensor laid
    out as x, whose number of channels (features, for an MLP) `conditions` gives, and which is joined to the input; 0
    accepts a condition and does not read it. With labels a condition "label_offset", (batch, width), may be given too:
    it is added to e(label). With `outputs`, whose first name is "main", the answer is a dict with one such tensor a
    name. A condition missing or unknown, or a shape that does not match, is a ValueError.

    A subclass lays its event out with `layout` and answers in `body`. A new network, before training, answers 0.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        labels: int = 0,
        conditions: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if labels < 0:
            raise ValueError(f"labels={labels}: the number of classes, or 0 for no labels")
        if outputs and (outputs[0] != "main" or len(set(outputs)) < len(outputs)):
            raise ValueError(f"outputs={tuple(outputs)}: distinct names, the first one 'main'")
        self.channels = channels
        self.conditions = dict(conditions or {})
        if "label" in self.conditions:
            raise ValueError("conditions names 'label': labels are embedded, say labels=... instead")
        self.outputs = tuple(outputs)
        self.inputs = channels + sum(self.conditions.values())
        self.answers = channels * max(len(outputs), 1)
        self.time = TimeEmbedding(width)
        self.label = LabelEmbedding(labels, width) if labels else None

    @abstractmethod
    def layout(self, x: Tensor, name: str, channels: int) -> Tensor:
        """(batch, *event) -> (batch, channels, *space), or a ValueError that names the tensor and what is expected."""

    @abstractmethod
    def body(self, h: Tensor, e: Tensor) -> Tensor:
        """(batch, self.inputs, *space) and the embedding (batch, width) -> (batch, self.answers, *space)."""

    def forward(self, x: Array, t: Tensor, cond: Cond = None) -> Array | dict[str, Array]:
        batch = x.shape[0]
        if t.ndim > 0 and t.shape != (batch,):
            raise ValueError(f"t has shape {tuple(t.shape)}: one time, or one a sample ({batch},), is expected")
        given = self._given(cond)
        e = self.time(t.expand(batch))
        if self.label is not None:
            label = given["label"]
            if label.shape != (batch,) or label.is_floating_point():
                found = f"{label.dtype} of shape {tuple(label.shape)}"
                raise ValueError(f"cond['label'] is {found}: integers of shape ({batch},) are expected")
            e = e + self.label(label)
            if LABEL_OFFSET in given:
                e = e + given[LABEL_OFFSET]
        parts = [self.layout(x, "x", self.channels)]
        for name, channels in self.conditions.items():
            if channels:
                part = self.layout(given[name], f"cond[{name!r}]", channels)
                if part.shape[:1] + part.shape[2:] != parts[0].shape[:1] + parts[0].shape[2:]:
                    raise ValueError(
                        f"cond[{name!r}] has shape {tuple(part.shape)}, and x {tuple(x.shape)}: they differ"
                    )
                parts.append(part)
        answer = self.body(torch.cat(parts, dim=1), functional.silu(e))
        if not self.outputs:
            return answer.reshape(x.shape)
        heads = answer.chunk(len(self.outputs), dim=1)
        return {name: head.reshape(x.shape) for name, head in zip(self.outputs, heads, strict=True)}

    def _given(self, cond: Cond) -> Mapping[str, Tensor]:
        given: Mapping[str, Tensor] = {} if cond is None else cond
        if not isinstance(given, Mapping):
            raise ValueError(f"cond is a {type(cond).__name__}: this network reads a dict of tensors by name")
        known = [*(["label"] if self.label is not None else []), *self.conditions]
        for name in known:
            if name not in given:
                hint = " (NULL = -1 where there is none)" if name == "label" else ""
                raise ValueError(f"this network needs cond[{name!r}]{hint}: it was given {list(given)}")
        for name in given:
            if name not in known and not (name == LABEL_OFFSET and self.label is not None):
                built = (
                    "labels=..." if name == "label" else f"conditions={{{name!r}: ...}} (0 to accept and not read it)"
                )
                raise ValueError(f"this network knows no cond[{name!r}]: build it with {built}")
        return given

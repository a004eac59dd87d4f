"""Trackers: the history of a run, sent to those that accelerate knows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._extras import require
from ..io import inside, read_json, write_json
from .run import Training


class Track:
    """A callback of `fit` that sends loss, gradient norm and learning rate of each step, once, to trackers.

    Args:
        names: "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab" or "trackio": what
            accelerate knows and is installed.
        folder: where trackers that write files do; what was sent is remembered there, so that a resumed run goes on.
        run: its name.
        config: settings to be stored with it.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: str | os.PathLike[str],
        run: str = "run",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        known: dict[str, Any] = require("accelerate.tracking", extra="train").LOGGER_TYPE_TO_CLASS
        for name in names:
            if name not in known:
                raise ValueError(f"unknown tracker {name!r}: accelerate knows {', '.join(known)}")
        utils = require("accelerate.utils", extra="train")
        missing = [name for name in names if not getattr(utils, f"is_{name}_available", lambda: True)()]
        if missing:
            raise ImportError(f"tracker {missing[0]!r} is not installed: pip install {missing[0]}")
        self.names, self.folder, self.run, self.config = tuple(names), Path(folder), run, dict(config or {})
        self._makers = [known[name] for name in names]
        self._open: list[Any] | None = None

    def __call__(self, step: int, training: Training) -> None:
        history = training.history
        if not training.main:
            return
        mark = inside(self.folder, "tracked.json")
        sent = read_json(mark)["step"] if mark.exists() else 0
        for tracker in self._trackers():
            for k in range(sent, step):
                values = {name: float(history[name][k]) for name in ("loss", "grad_norm", "lr")}
                tracker.log(values, step=k + 1)
            if step == training.steps:
                tracker.finish()
        write_json(mark, {"step": step})

    def _trackers(self) -> list[Any]:
        if self._open is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open = []
            for make in self._makers:
                place = {"logging_dir": str(self.folder)} if make.requires_logging_directory else {}
                tracker = make(self.run, **place)
                if hasattr(tracker, "start"):
                    tracker.start()
                tracker.store_init_configuration(self.config)
                self._open.append(tracker)
        return self._open

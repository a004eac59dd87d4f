"""Progress bars: tqdm where it is installed and stderr is a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: int, label: str, show: bool | None = None) -> Iterator[Callable[[], object]]:
    """A function to call after each of `total` units of work; `show=None` shows the bar on a terminal only."""
    if show is None:
        show = sys.stderr.isatty()
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        show = False
    if not show:
        yield lambda: None
        return
    with tqdm(total=total, desc=label, leave=False, dynamic_ncols=True) as shown:
        yield shown.update

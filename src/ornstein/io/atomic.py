"""A write that a kill at any moment leaves either not begun or complete."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

if sys.platform != "win32":  # Windows removes and renames no open file, so it needs no lock
    import fcntl

CHUNK = 1 << 24  # bytes handed to the system at once, so that a large file has many failpoints


def _nothing(name: str) -> None:
    pass


failpoint: Callable[[str], None] = _nothing
"""Called before each primitive step with its name ("write", "flush", "fsync", "rename", "fsync_dir"); a test puts
a function here that raises, or ends the process, to prove that every such moment is survived."""


def atomic_write(path: str | os.PathLike[str], data: bytes | Callable[[Sink], None]) -> None:
    """Old file -> new file in one step: write a neighbour, flush, fsync, rename over `path`, fsync the folder.

    `data` is the content, or a function that writes it piece by piece to the sink it is given. Whenever the process or
    the machine stops, `path` holds the whole old content or the whole new one; once the call returns it is the new one.
    If the writer raises, the error passes through and the old file stays. What a killed writer leaves behind is a
    hidden neighbour, `.name.*.tmp`, that nobody reads; the next write to `path` removes it. A symbolic link is
    followed, and missing folders are made. Two processes may write one path at the same time: the last rename wins.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    with _temporary(target) as (file, temporary):
        sink = Sink(file)
        if isinstance(data, bytes):
            sink.write(data)
        else:
            data(sink)
        failpoint("flush")
        file.flush()
        failpoint("fsync")
        os.fsync(file.fileno())
        if sys.platform == "win32":
            file.close()  # elsewhere closing would give up the lock too early
        failpoint("rename")
        os.replace(temporary, target)
    failpoint("fsync_dir")
    if sys.platform != "win32":  # Windows has no fsync of a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def inside(folder: str | os.PathLike[str], *names: str) -> Path:
    """folder/name/..., proven to stay in `folder` when every link on the way is followed.

    A run folder may come from a stranger, and `atomic_write` follows links: a fixed name in it is asked for here. The
    folder itself may be a link.

    Errors: ValueError for a place that leaves the folder, or is the folder itself.
    """
    target = Path(folder, *names)
    if Path(os.path.realpath(folder)) not in Path(os.path.realpath(target)).parents:
        raise ValueError(f"{target} leads out of {os.fspath(folder)} by a link: remove the link")
    return target


class Sink:
    """What a writer callback is given: `write` appends bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            failpoint("write")
            self.file.write(view[start : start + CHUNK])


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A new locked neighbour of `target`, removed if the block raises. The lock, which the system drops when the
    process dies, tells a living writer from a leftover."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        with open(temporary, "xb") as file:
            if not _lock(file):
                continue  # another writer's sweep came between our creating the file and locking it
            try:
                yield file, temporary
            except BaseException:
                file.close()
                temporary.unlink(missing_ok=True)
                raise
            return


def _lock(file: IO[bytes]) -> bool:
    """Take the lock of an open file without waiting; False if someone holds it or the file is already removed."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing is swept there, so the file is ours
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _sweep(target: Path) -> None:
    """Remove the leftovers of killed writers of `target`: neighbours whose lock is free."""
    leftover = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp")
    for name in filter(leftover.fullmatch, os.listdir(target.parent)):
        with contextlib.suppress(OSError):  # held by a living writer, swept by another one, or no locks here
            if sys.platform == "win32":
                os.unlink(target.with_name(name))
            else:
                with open(target.with_name(name), "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(file.name)

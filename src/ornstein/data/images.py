"""Images: folders of files, decoded at once or on demand, and pictures written back."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from ..io import atomic_write
from .array import ArraySpace
from .data import Data, Lazy

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What the bytes of an image may be, whatever its name says: decoders that start other programs (EPS) are not asked."""
LARGEST = 64
"""Side to which images are reduced unless `size` says otherwise."""
MEMORY = 1 << 30
"""Bytes of decoded images above which they are decoded on demand."""
PIXELS = 100_000_000
"""An image of more pixels is refused as a decompression bomb."""
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?|samples\.json", re.IGNORECASE)
"""Names that Windows keeps for devices, and that of the note beside the pictures."""


@dataclass(frozen=True)
class ImageSpace(ArraySpace):
    """Images (n, 1 or 3, height, width); `bounds` are the values of black and of white.

    Written as an .npz, as one .png (a sheet of all), or as a folder of .png, one folder a class where there are labels.
    """

    kind = "images"
    formats = (*ArraySpace.formats, ".png", "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.event) != 3 or self.event[0] not in (1, 3):
            raise ValueError(f"an image is (1 or 3, height, width): got {self.event}")

    def pixels(self, x: Tensor) -> Any:
        """User samples as bytes (n, height, width, 1 or 3): black is the lower bound, or the least value there is."""
        low, high = self.bounds or (float(x.min()), float(x.max()))
        value = ((x.detach().cpu().double() - low) / max(high - low, 1e-12)).clamp(0, 1)
        return (value * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def _write_png(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        n, (_, height, width) = len(x), self.event
        pixels = self.pixels(x)
        columns = max(1, round(n**0.5))
        sheet = np.full((-(-n // columns) * (height + 1) - 1, columns * (width + 1) - 1, pixels.shape[3]), 255, "uint8")
        for i, picture in enumerate(pixels):
            top, left = i // columns * (height + 1), i % columns * (width + 1)
            sheet[top : top + height, left : left + width] = picture
        atomic_write(path, _png(sheet))

    def _write_folder(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        digits = len(str(max(len(x) - 1, 1)))
        folders = class_folders(self.labels)
        for i, picture in enumerate(self.pixels(x)):
            folder = path if labels is None else path / folder_of(folders, int(labels[i]))
            atomic_write(folder / f"{i:0{digits}d}.png", _png(picture))


def class_folders(labels: Sequence[str]) -> list[str]:
    """A folder's name for each class, its own where any disk can hold it beside the others; else with its number.

    No name leaves the folder it stands in, and no two are the same to a disk that is blind to case; those that
    Windows keeps for itself, and dots and spaces at an end, are no names.
    """
    plain = [re.sub(r"[^\w .+-]", "_", unicodedata.normalize("NFC", name))[:50].rstrip(" .") for name in labels]
    seen = Counter(name.casefold() for name in plain)
    taken = {name for name, count in seen.items() if count == 1} | {"samples.json"}
    folders = []
    for label, name in enumerate(plain):
        own = name.strip(" .") and not RESERVED.fullmatch(name) and seen[name.casefold()] == 1
        if not own:
            name = f"{name.partition('.')[0]} class {label}".strip()
            while name.casefold() in taken:
                name += "_"
            taken.add(name.casefold())
        folders.append(name)
    return folders


def folder_of(folders: Sequence[str], label: int) -> str:
    """The folder of a class among `class_folders`; of one without a name, its number."""
    return folders[label] if label < len(folders) else str(label)


class Source(ABC):
    """Where images come from: encoded ones, by number."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What image `i` is called in messages."""

    @abstractmethod
    def open(self, i: int) -> Any:
        """What `PIL.Image.open` takes for image `i`."""

    @abstractmethod
    def mark(self, i: int) -> str:
        """What tells image `i` from another without decoding it."""


class Files(Source):
    """Images in files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return str(self.paths[i])

    def open(self, i: int) -> Any:
        return self.paths[i]

    def mark(self, i: int) -> str:
        return f"{self.paths[i].name} {self.paths[i].stat().st_size}"


class Pictures(Lazy):
    """x = decode(resize(crop(image))) for the images of a source, in [0, 1], (channels, height, width) each."""

    def __init__(self, source: Source, event: tuple[int, ...], index: Tensor) -> None:
        self.source, self.event, self.index = source, event, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Tensor:
        return _decode(self.source, int(self.index[i]), self.event)

    def take(self, index: Tensor) -> Pictures:
        """Those of these places, decoded no sooner."""
        return Pictures(self.source, self.event, self.index[index])

    def marks(self) -> Iterator[str]:
        """Names and sizes of the encoded images."""
        return (self.source.mark(i) for i in self.index.tolist())


def read_folder(folder: Path, **options: Any) -> Data:
    """The images in a folder: a folder within it is a class; see `read_images` for the options.

    Errors: ValueError for a folder without images, or with images beside folders of images.
    """
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and _visible(p, folder)]
    paths.sort(key=lambda p: [_natural(part) for part in p.relative_to(folder).parts])
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)}), nor a data set saved by `save_to_disk`")
    parents = [p.relative_to(folder).parts[0] if p.parent != folder else None for p in paths]
    names = sorted({name for name in parents if name is not None}, key=_natural)
    if names and None in parents:
        loose = paths[parents.index(None)]
        raise ValueError(
            f"{loose} has no label: {folder} has images of its own beside folders of images ({', '.join(names[:5])}); "
            "move them into a folder of their class"
        )
    labels = torch.tensor([names.index(str(name)) for name in parents]) if names else None
    return read_images(Files(paths), labels, tuple(names), name=str(folder), **options)


def read_images(
    source: Source,
    labels: Tensor | None,
    names: tuple[str, ...],
    *,
    name: str,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    memory: int = MEMORY,
) -> Data:
    """Images of one size: each is cut to its centre and reduced, in [0, 1].

    Args:
        source: the encoded images.
        labels, names: (n,) and the names of the classes.
        name: what the data are called in messages.
        size: height and width, or the side of a square. By default that of the images if all have the same, of at most
            64 a side, and otherwise the side of a square, the shortest side there is or 64.
        channels: 1 or 3; by default 3 if any of the images has colours.
        memory: bytes of decoded images above which they are decoded on demand, so that a damaged one is found then.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (colours): got {channels}")
    heads = [_head(source, i) for i in range(len(source))]
    colours = [colour for _, _, colour, _ in heads]
    shapes = Counter((height, width) for height, width, _, _ in heads)
    notes = []
    if size is None:
        short, same = min(min(shape) for shape in shapes), next(iter(shapes))
        size = same if len(shapes) == 1 and max(same) <= LARGEST else min(short, LARGEST)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or height * width > PIXELS:
        raise ValueError(f"size is a side or (height, width), 1 to {PIXELS:,} pixels in all: got {size}")
    if set(shapes) != {(height, width)}:
        most = ", ".join(f"{h} x {w}" for (h, w), _ in shapes.most_common(3)) + (", ..." if len(shapes) > 3 else "")
        notes.append(f"images of {most} (height x width) were cut to their centre and resized to {height} x {width}")
    if channels is None:
        channels = 3 if any(colours) else 1
    if other := sum(colour != (channels == 3) for colour in colours):
        what = "grey and were given three equal channels" if channels == 3 else "in colour and were turned to grey"
        notes.append(f"{other} of {len(heads)} images are {what}")
    if clear := sum(alpha for *_, alpha in heads):
        notes.append(f"{clear} images have transparency: they were laid on white")
    event = (channels, height, width)
    space = ImageSpace(event, names, (0.0, 1.0))
    pictures = Pictures(source, event, torch.arange(len(source)))
    data = Data(pictures, labels, space, name, tuple(notes))
    if 4 * len(source) * channels * height * width > memory:
        return data
    x, _ = data.rows()
    return Data(x, labels, space, name, tuple(notes))


def _head(source: Source, i: int) -> tuple[int, int, bool, bool]:
    """(height, width, whether it has colours, whether it is transparent) as the file's head says."""
    with _opened(source, i) as image:
        width, height = image.size
        # a PNG would be decoded whole to look for what it does not have
        if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112) in (5, 6, 7, 8):
            width, height = height, width
        mode = image.mode
        if mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits ({mode!r}), of which none says what is white")
        colour = mode not in ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N")
        if mode == "P":
            palette = np.asarray(image.getpalette() or [0]).reshape(-1, 3 if image.getpalette() else 1)
            colour = bool((palette != palette[:, :1]).any())
        return height, width, colour, "A" in mode or "transparency" in image.info


def _decode(source: Source, i: int, event: tuple[int, ...]) -> Tensor:
    pil, ops = require("PIL.Image", extra="data"), require("PIL.ImageOps", extra="data")
    channels, height, width = event
    with _opened(source, i) as image:
        image = ops.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = pil.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            image = pil.alpha_composite(pil.new("RGBA", image.size, (255, 255, 255, 255)), image)
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ops.fit(image, (width, height), method=pil.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@contextmanager
def _opened(source: Source, i: int) -> Iterator[Any]:
    """Image `i`, opened; what goes wrong with it, then or later, is one error that names it."""
    pil = require("PIL.Image", extra="data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            image = pil.open(source.open(i), formats=FORMATS)
        if image.size[0] * image.size[1] > PIXELS:
            raise pil.DecompressionBombError(f"{image.size[1]} x {image.size[0]}")
        with image:
            yield image
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ValueError(
            f"{source.name(i)} would unpack to more than {PIXELS:,} pixels, as a decompression bomb does: remove it, "
            "or reduce it first"
        ) from error
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file meets any error of a decoder
        raise ValueError(f"{source.name(i)} is no image, or a damaged one: {error}; remove or replace it") from error


def _visible(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _natural(name: str) -> tuple[Any, ...]:
    """Numbers within names in their order: 2 before 10; names of equal numbers ("1", "01") in that of their letters."""
    parts = tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))
    return parts, name


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    require("PIL.Image", extra="data").fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()

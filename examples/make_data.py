"""Three kinds of data, made from what scikit-learn ships, to try the library on.

    python examples/make_data.py data

writes data/digits/ (1,797 images in folders, a folder a class, of three sizes), data/measures.csv (what one may measure
of them: numbers, whole numbers, categories, a date, missing values) and data/scanlines.npz (1,600 series of two
channels and 24 times, with gaps: the brightness and the warmth of two photographs along their lines).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images


def images(folder: Path) -> None:
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        size = (8, 10, 16)[i % 3]  # as people's pictures are: of several sizes
        picture = Image.fromarray((pixels * 15.9375).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        path = folder / "digits" / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def table(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    digits = load_digits()
    ink = digits.images / 16
    place = np.arange(8.0)
    total, rows, columns = ink.sum((1, 2)), ink.sum(2), ink.sum(1)
    height, across = rows @ place / total, columns @ place / total
    tall = np.sqrt(rows @ place**2 / total - height**2)
    wide = np.sqrt(columns @ place**2 / total - across**2)
    slant = np.einsum("nij,i,j->n", ink, place, place) / total - height * across
    words = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    thirds = np.stack([rows[:, :3].sum(1), rows[:, 3:5].sum(1) * 1.5, rows[:, 5:].sum(1)], 1)
    outside = [ndimage.label(picture < 0.3)[1] for picture in np.pad(ink, ((0, 0), (1, 1), (1, 1)))]
    made = pd.DataFrame(
        {
            "digit": words[digits.target],
            "ink": total.round(1),
            "dark_pixels": (ink > 0.7).sum((1, 2)),
            "empty_columns": (columns < 0.1).sum(1),
            "centre_across": across.round(2),
            "centre_down": height.round(2),
            "width": wide.round(2),
            "height": tall.round(2),
            "slant": (slant / (tall * wide)).round(2),
            "top_left": ink[:, :4, :4].sum((1, 2)).round(1),
            "bottom_right": ink[:, 4:, 4:].sum((1, 2)).round(1),
            "heaviest": np.array(["top", "middle", "bottom"])[thirds.argmax(1)],
            "closed_loop": np.array(outside) > 1,
            # they came in this order, writer after writer: some forty a day
            "scanned": pd.Timestamp("1998-07-01") + pd.to_timedelta(np.arange(len(ink)) // 40, unit="D"),
        }
    )
    # what is missing is not missing by chance alone: faint digits and narrow ones are hard to measure
    faint, narrow = 1 - made["ink"].rank(pct=True), 1 - made["width"].rank(pct=True)
    for column, chance in (("slant", 0.4 * narrow**2), ("top_left", 0.25 * faint), ("heaviest", 0.2 * faint**2)):
        made[column] = made[column].mask(rng.random(len(made)) < chance)
    made.to_csv(folder / "measures.csv", index=False)


def series(folder: Path, seed: int = 0, length: int = 24, count: int = 1600) -> None:
    rng = np.random.default_rng(seed)
    found = []
    for picture in load_sample_images().images:
        colours = picture.astype(np.float32) / 255
        both = np.stack([colours.mean(2), colours[..., 0] - colours[..., 2]])  # brightness, warmth
        for _ in range(count // 2):
            row, start = rng.integers(both.shape[1]), rng.integers(both.shape[2] - 4 * length)
            found.append(both[:, row, start : start + 4 * length : 4])
    x = np.stack(found)
    gap = rng.random(x.shape) < 0.1
    for i, start in enumerate(rng.integers(0, length - 4, len(x))):
        gap[i, :, start : start + 4] |= rng.random() < 0.5  # half of them lack a stretch of four
    np.savez(folder / "scanlines.npz", x=np.where(gap, np.nan, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    images(folder)
    table(folder)
    series(folder)
    print(f"{folder}: digits/, measures.csv, scanlines.npz")


if __name__ == "__main__":
    main()

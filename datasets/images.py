"""Images as bytes: how rows of them are held, and what they come down to where one number has to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import ImageFeature

_BLOCK_BYTES = 32_000_000


def image_rows(images: list[Any], feature: ImageFeature) -> NDArray[np.uint8]:
    """(M, S + 1) rows of images, lists of S numbers in any nesting; None is a missing one."""
    rows = np.zeros((len(images), feature.size + 1), dtype=np.uint8)
    for row, image in zip(rows, images, strict=True):
        if image is None:
            row[-1] = 1
        else:
            row[:-1] = np.asarray(image).reshape(-1)
    return rows


def is_missing(rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(M,) which images are missing."""
    return np.asarray(rows[:, -1] != 0)


def channels_first(rows: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(M, channels, height, width) of rows (M, S + 1) of images of `shape` (height, width, channels)."""
    return np.moveaxis(rows[:, :-1].reshape(-1, *shape), 3, 1)


def mean_brightness(rows: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(M,) mean of each image's numbers, from 0 to 255; NaN where it is missing. Read in blocks."""
    brightness = np.empty(len(rows))
    step = max(1, _BLOCK_BYTES // rows.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        mean = block[:, :-1].mean(axis=1, dtype=np.float64)
        brightness[start : start + step] = np.where(is_missing(block), np.nan, mean)
    return brightness


def image_problem(feature: ImageFeature, value: object) -> str | None:
    """What is wrong with an image as JSON has it, or None: the rules of `datasets.image_sql`."""
    height, width, channels = feature.shape
    nested = ((feature.size,), (height, width, channels), *([(height, width)] if channels == 1 else []))
    try:
        numbers = np.asarray(value if isinstance(value, list) else None)
    except ValueError:  # rows of different lengths
        numbers = np.empty(0, dtype=object)
    is_numeric = numbers.dtype.kind in "iuf" and not _holds_a_boolean(value)
    if numbers.shape not in nested or not is_numeric:
        found = f"an array of {' x '.join(map(str, numbers.shape))}" if is_numeric else str(value)[:60]
        return f"wants an image of {feature.shown_shape} numbers, found {found}"
    if not ((numbers >= 0) & (numbers <= 255) & (numbers == np.floor(numbers))).all():
        return "holds something else than whole numbers from 0 to 255"
    return None


def _holds_a_boolean(value: object) -> bool:
    # NumPy takes a truth value among numbers for a number.
    return any(map(_holds_a_boolean, value)) if isinstance(value, list) else isinstance(value, bool)

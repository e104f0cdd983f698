"""Fewer points that look the same: MinMaxLTTB per series, spikes kept, values that are not finite kept as marks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tsdownsample import MinMaxLTTBDownsampler

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
_MARKS = 4
"""At most a quarter of the points are marks of values that are not finite."""
_LEAST = 3


def pick(x: Floats, y: Floats, points: int) -> Index:
    """Return indices, in order, of at most `points` points; `x` is sorted and finite.

    The first and the last finite point are among them. Not-finite points are thinned out evenly.
    """
    count = len(x)
    if count <= points:
        return np.arange(count, dtype=np.int64)
    is_finite = np.isfinite(y)
    if is_finite.all():
        return _lttb(x, y, points)
    marks = np.flatnonzero(~is_finite)
    limit = max(1, points // _MARKS)
    if len(marks) > limit:
        marks = marks[np.linspace(0, len(marks) - 1, limit).astype(np.int64)]
    finite = np.flatnonzero(is_finite)
    wanted = points - len(marks)
    if len(finite) > wanted:
        finite = finite[_lttb(x[finite], y[finite], wanted)]
    merged = np.concatenate([finite, marks])
    merged.sort()
    return merged.astype(np.int64)


def _lttb(x: Floats, y: Floats, points: int) -> Index:
    if points < _LEAST:
        return np.linspace(0, len(x) - 1, points).astype(np.int64)
    # The library measures triangles; huge values would overflow there and leave indices undefined.
    scale = max(float(y.max()), -float(y.min()))
    if scale > 1e100:
        y = y / scale
    chosen = MinMaxLTTBDownsampler().downsample(
        np.ascontiguousarray(x), np.ascontiguousarray(y), n_out=points
    )
    return np.unique(chosen).astype(np.int64)

"""Drawing for the page: fields as small pictures, shores as a path; no library, nothing to load."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

from fengwu_ghr.shores import coastlines

Palette = Sequence[tuple[int, int, int]]
_SHORE_STEP = 0.7
"""Degrees: points of shores closer than this are left out of the page."""
_SHADES = 256
# After ColorBrewer's PuOr and matplotlib's cividis: told apart by eyes that do not see red and green.
DIVERGING: Palette = (
    (45, 0, 75),
    (128, 115, 172),
    (216, 218, 235),
    (247, 247, 247),
    (253, 224, 182),
    (224, 130, 20),
    (127, 59, 8),
)
SEQUENTIAL: Palette = ((0, 34, 78), (66, 78, 108), (124, 123, 120), (188, 175, 111), (254, 232, 56))


def shades(field: Shaped[np.ndarray, "lat lon"], low: float, high: float) -> UInt8[np.ndarray, "lat lon"]:
    """From 0 to 255; what lies beyond the ends takes their shade, NaN the middle one."""
    share = np.nan_to_num((field - low) / (high - low), nan=0.5)
    return (np.clip(share, 0, 1) * (_SHADES - 1)).astype(np.uint8)


def bar(palette: Palette) -> str:
    """All shades in a row."""
    return picture(np.arange(_SHADES, dtype=np.uint8)[None], palette)


def picture(shades: UInt8[np.ndarray, "row column"], palette: Palette) -> str:
    """A PNG of palette colours as a data URI (ISO 15948)."""
    rows, columns = shades.shape
    stops = np.linspace(0, 1, len(palette))
    colours = np.stack(
        [np.interp(np.linspace(0, 1, _SHADES), stops, [c[i] for c in palette]) for i in range(3)], axis=1
    )
    lines = np.zeros((rows, columns + 1), np.uint8)  # every line begins with its filter: none
    lines[:, 1:] = shades
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", colours.round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def shore_path(*, centre: float) -> str:
    """Shores as the path of a picture 360 wide and 180 high, this longitude in the middle."""
    parts = []
    for shore in coastlines():
        known = shore[np.isfinite(shore).all(axis=1)]
        if len(known) < 4:
            continue
        thin = known[_far_apart(known)]
        x = np.mod(thin[:, 0] - centre + 180, 360)
        y = 90 - thin[:, 1]
        pen_up = np.append(True, np.abs(np.diff(x)) > 180)
        parts += [
            f"{'M' if up else 'L'}{a:.1f} {b:.1f}"
            for up, a, b in zip(pen_up.tolist(), x.tolist(), y.tolist())
        ]
    return "".join(parts)


def _far_apart(points: np.ndarray) -> np.ndarray:
    """Indices of points at least a step from the one kept before."""
    kept, last = [0], points[0]
    for index, point in enumerate(points[1:], start=1):
        if np.abs(point - last).max() >= _SHORE_STEP:
            kept.append(index)
            last = point
    return np.array(kept)

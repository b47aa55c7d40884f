"""Regridding one field at 0.09 degrees, against what else is at hand; one core each, but for the rows that say two.

`python -m benchmarks.regrid [--rounds 5] [--scale 1]`. The field is a polynomial of Cartesian coordinates of order
one, known everywhere; the largest error is over all target points, poles and dateline included. Rivals that know no
sphere get the field one column further east, which is the least that their users do.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray
from scipy.interpolate import RegularGridInterpolator

from benchmarks.passport import passport
from fengwu_ghr import regrid
from fengwu_ghr.grid import (
    REGISTRATIONS,
    LatLonGrid,
    NetworkGrid,
    ReducedGaussianGrid,
    backbone_grid,
    product_grid,
)
from fengwu_ghr.regrid import NetworkMap, Regridder

AIM_SECONDS = 0.05
SLOW = 2.0  # seconds: what takes longer is measured once

Work = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Contest:
    """One task: who does it, ours first, what the result should be, and what of ours two threads do at once."""

    title: str
    expected: np.ndarray
    rivals: dict[str, Work]
    two_threads: Callable[[], object]


def field(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    x, y, z = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi) + 0 * lam
    return (x * y + z**3 - 0.5 * x**4 * z).astype(np.float32)


def on(grid: LatLonGrid | ReducedGaussianGrid) -> np.ndarray:
    if isinstance(grid, LatLonGrid):
        return field(grid.latitude[:, None], grid.longitude[None, :])
    rows = [field(lat, 360 / n * np.arange(n)) for lat, n in zip(grid.latitude, grid.row_points)]
    return np.concatenate(rows)


def reduced(scale: int, cache: Path) -> Contest:
    """O1280 (O1280 / scale) to the product grid with weights that are there already."""
    source, target = ReducedGaussianGrid.octahedral(1280 // scale), product_grid(scale)
    ours, values = Regridder(source, target, cache_dir=cache), on(source)
    ours.apply(values)
    body = regrid._body(source, target, cache)
    columns, weights = body.indices.reshape(-1, 4).astype(np.intp), body.data.reshape(-1, 4)
    warnings.filterwarnings("ignore", "Sparse", UserWarning)  # torch calls its CSR matrices beta
    parts = [torch.from_numpy(np.array(a)) for a in (body.indptr, body.indices, body.data)]
    matrix, tensor = torch.sparse_csr_tensor(*parts, body.shape), torch.from_numpy(values)

    def gather() -> np.ndarray:
        return np.einsum("pk,pk->p", values[columns], weights).reshape(target.shape)

    return Contest(
        f"{source.name} → {target.name}, weights cached",
        on(target),
        {
            "**Regridder**": lambda: ours.apply(values),
            "numpy gather, the same weights": gather,
            "torch.sparse_csr, the same weights": lambda: (matrix @ tensor).numpy().reshape(target.shape),
        },
        lambda: ours.apply(values),
    )


def refine(scale: int) -> Contest:
    """The backbone grid to the rows of the network grid from pole to pole."""
    source, target = backbone_grid(scale), NetworkGrid(scale).inner
    ours, values = Regridder(source, target), on(source)
    return Contest(
        f"{source.name} → {target.name}",
        on(target),
        {
            "**Regridder**, cubic": lambda: ours.apply(values),
            "**Regridder**, linear": lambda: ours.apply(values, smooth=False),
            "scipy RegularGridInterpolator, linear": lambda: with_scipy(values, source, target),
            "xarray interp, linear": lambda: with_xarray(values, source, target),
        },
        lambda: ours.apply(values),
    )


def there_and_back(scale: int, registration: str) -> Contest:
    """Product grid to network grid to product grid, which every forecast does with every field."""
    network = NetworkGrid(scale, registration)
    product, ours = network.product, NetworkMap(network)
    values = on(product)

    def both_ways() -> np.ndarray:
        inside = ours.from_source(values, product, is_vector=False, smooth=True)
        return ours.to_product(inside, is_vector=False, smooth=True)

    rivals: dict[str, Work] = {"**NetworkMap**": both_ways}
    if registration == "pixel":
        rivals["torch F.interpolate, bicubic, no dateline, no poles"] = lambda: with_torch(values, network)
    else:
        rivals["xarray interp, linear"] = lambda: with_xarray(
            with_xarray(values, product, network.inner), network.inner, product
        )
    return Contest(
        f"{product.name} → {network.name} → {product.name}, {registration}", values, rivals, both_ways
    )


def with_scipy(values: np.ndarray, source: LatLonGrid, target: LatLonGrid) -> np.ndarray:
    longitude, wrapped = closed(values, source)
    interpolate = RegularGridInterpolator((source.latitude[::-1], longitude), wrapped[::-1])
    start = source.longitude[0]
    points = np.meshgrid(target.latitude, start + (target.longitude - start) % 360, indexing="ij")
    return interpolate(tuple(points))


def with_xarray(values: np.ndarray, source: LatLonGrid, target: LatLonGrid) -> np.ndarray:
    longitude, wrapped = closed(values, source)
    array = xarray.DataArray(wrapped, {"latitude": source.latitude, "longitude": longitude})
    start = source.longitude[0]
    longitude = start + (target.longitude - start) % 360
    return array.interp(latitude=target.latitude, longitude=longitude).to_numpy()


def with_torch(values: np.ndarray, network: NetworkGrid) -> np.ndarray:
    tensor = torch.from_numpy(values)[None, None]
    for shape in (network.shape, network.product.shape):
        tensor = torch.nn.functional.interpolate(tensor, shape, mode="bicubic")
    return tensor[0, 0].numpy()


def closed(values: np.ndarray, grid: LatLonGrid) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and values with the first column again at the end."""
    longitude = np.append(grid.longitude, grid.longitude[0] + 360)
    return longitude, np.concatenate([values, values[:, :1]], axis=1)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_two_threads(work: Callable[[], object]) -> float:
    """Seconds per field when two threads do eight fields."""
    with ThreadPoolExecutor(2) as pool:
        return seconds(lambda: list(pool.map(lambda _: work(), range(8)))) / 8


def measure(contest: Contest, rounds: int) -> tuple[dict[str, float], float]:
    """Least seconds of every rival, round after round, and of ours in two threads."""
    best = {name: seconds(work) for name, work in contest.rivals.items()}
    ours = in_two_threads(contest.two_threads)
    for _ in range(rounds):
        for name, work in contest.rivals.items():
            if best[name] < SLOW:
                best[name] = min(best[name], seconds(work))
        ours = min(ours, in_two_threads(contest.two_threads))
    return best, ours


def report(contest: Contest, rounds: int) -> float:
    """Prints Markdown, one line per rival; returns our seconds."""
    best, both = measure(contest, rounds)
    ours = next(iter(best.values()))
    lines = []
    for name, work in contest.rivals.items():
        error = np.abs(work() - contest.expected).max()
        lines.append(
            f"| {contest.title} | {name} | {best[name]:.3f} | {best[name] / ours:.1f} | {error:.0e} |"
        )
    lines.insert(1, f"| | the same, two threads | {both:.3f} | {both / ours:.1f} | |")
    print("\n".join(lines), flush=True)
    return ours


def first_use(scale: int, cache: Path) -> str:
    """What weights cost: built and kept, then found by the next process."""
    source, target = ReducedGaussianGrid.octahedral(1280 // scale), product_grid(scale)
    values = np.zeros(source.points, np.float32)
    taken = []
    for _ in range(2):
        regrid._four_point.cache_clear()
        regrid._body.cache_clear()
        taken.append(seconds(lambda: Regridder(source, target, cache_dir=cache).apply(values)))
    size = sum(path.stat().st_size for path in cache.rglob("*.weights"))
    return (
        f"First field {source.name} → {target.name}: {taken[0]:.1f} s where weights ({size / 1e6:.0f} MB) must be "
        f"built and kept, {taken[1]:.2f} s where they are found, checksum included."
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.regrid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="grid steps times so many")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| task | by | seconds a field | times ours | largest error |", "|---|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        cost = first_use(options.scale, Path(folder))
        ours = report(reduced(options.scale, Path(folder)), options.rounds)
    report(refine(options.scale), options.rounds)
    for registration in REGISTRATIONS:
        report(there_and_back(options.scale, registration), options.rounds)
    print(
        f"\n{cost}\n\n- {'met' if ours <= AIM_SECONDS else 'MISSED'}: {ours:.3f} s, aim {AIM_SECONDS} s a field\n"
    )
    print(passport(grid=f"{product_grid(options.scale)}, float32"))


if __name__ == "__main__":
    main(sys.argv[1:])

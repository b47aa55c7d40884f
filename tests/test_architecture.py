"""The order of the package is its architecture: it is written once, in the package's docstring, and held here."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fengwu_ghr

ROOT = Path(fengwu_ghr.__file__).parent
FILES = {path: path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))}
HEAVY = (
    "torch",
    "xarray",
    "zarr",
    "tensorstore",
    "eccodes",
    "cfgrib",
    "dask",
    "scipy",
    "matplotlib",
    "pandas",
)

NETWORK = (
    "attention",
    "forcing",
    "backbone",
    "res",
    "joint",
    "sharing",
    "diffusion",
    "transfer",
    "initialise",
    "checkpoint",
    "catalogue",
    "onnx_export",
    "engine",
    "training",
    "nowcast",
)
FENCES = {
    "eccodes": ("grib",),
    "gribapi": ("grib",),
    "cfgrib": ("grib",),
    "zarr": ("skeleton",),
    "zarrs": ("store",),
    "tensorstore": ("store",),
    "torch": NETWORK,
    "safetensors": NETWORK,
    "onnx": ("onnx_files",),
    "onnxruntime": ("engine.onnx_engine",),
    "jax": ("training.harmonics", "training.simulator"),
    "jcm": ("training.simulator",),
    "dinosaur": ("training.harmonics", "training.simulator"),
    "matplotlib": ("plot", "training.pictures", "training.record", "nowcast.pictures"),
    "mpl_toolkits": ("shores",),
    "pdbufr": ("grib",),
    "distributed": ("verify", "hindcast"),
    "dask_jobqueue": ("hindcast",),
    "typer": (
        "options",
        "cli",
        "model_verbs",
        "training_verbs",
        "verification_verbs",
        "hindcast_verbs",
        "nowcast_verbs",
        "attention_verbs",
    ),
    "pysteps": ("nowcast.pysteps_child",),
    "h5py": ("nowcast.pysteps_child",),
    "pygrib": ("nowcast.pysteps_child",),
    "rasterio": ("nowcast.pysteps_child",),
    # Never: pickles run code; a second PROJ library beside the one of ecCodes crashes the process (the child has none).
    "pickle": (),
    "pyproj": ("nowcast.pysteps_child",),
    "cartopy": (),
}


def reading_order() -> list[str]:
    """The module names of the indented list in the package's docstring."""
    return re.findall(r"^    ([a-z_.0-9]+)  +\S", fengwu_ghr.__doc__ or "", flags=re.MULTILINE)


def module_name(path: Path) -> str:
    parts = FILES[path].with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def has_code(path: Path) -> bool:
    body = syntax(path).body
    return len(body) > 1 or bool(body and ast.get_docstring(syntax(path)) is None)


MODULES = {module_name(p): p for p in FILES if p.parent != ROOT or p.name != "__init__.py"}
LISTED = {name: p for name, p in MODULES.items() if p.name != "__init__.py" or has_code(p)}


def imports(path: Path) -> Iterator[str]:
    """Dotted names a module imports, anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[path]}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> Iterator[str]:
    """Our modules that a module imports."""
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "fengwu_ghr":
            inside = rest if rest in MODULES else rest.rpartition(".")[0]
            assert inside, f"{FILES[path]} imports {rest!r} from the package; import it from its module"
            yield inside


def test_every_module_is_listed_once() -> None:
    order = reading_order()
    assert len(order) == len(set(order))
    assert set(LISTED) - set(order) == set(), "add these to the list in fengwu_ghr/__init__.py"


def test_every_listed_module_exists() -> None:
    assert set(reading_order()) - set(LISTED) == set(), (
        "the list in fengwu_ghr/__init__.py names what is not there"
    )


@pytest.mark.parametrize("name", LISTED)
def test_imports_point_upward(name: str) -> None:
    order = reading_order()
    for used in ours(LISTED[name]):
        assert order.index(used) < order.index(name), f"{name} imports {used}, which is listed below it"


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_behind_their_fences(name: str) -> None:
    for imported in imports(MODULES[name]):
        rooms = FENCES.get(imported.partition(".")[0])
        assert rooms is None or {name, name.partition(".")[0]} & set(rooms), (
            f"{name} imports {imported}; allowed in {rooms}"
        )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_small_and_named_for_what_they_hold(path: Path) -> None:
    assert path.stem not in ("utils", "util", "common", "helpers", "misc")
    assert len(path.read_text().splitlines()) <= 400
    assert "from __future__ import annotations" not in path.read_text(), "it turns the shape checks off"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_evaluates_code(path: Path) -> None:
    called = {
        n.func.id for n in ast.walk(syntax(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__"}


def test_public_names_resolve() -> None:
    for name in fengwu_ghr.__dir__():
        assert getattr(fengwu_ghr, name) is not None
    assert set(fengwu_ghr.__all__) == set(fengwu_ghr._PUBLIC)
    with pytest.raises(AttributeError, match="its public names are"):
        _ = fengwu_ghr.Forecast


def loaded_after(statements: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has loaded after these statements."""
    report = f"\nimport sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", statements + report]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import fengwu_ghr; fengwu_ghr.State; fengwu_ghr.__version__") == set()


@pytest.mark.skipif("cli" not in MODULES, reason="the package has no command line")
def test_help_loads_nothing_heavy() -> None:
    run = "import runpy, sys\nsys.argv = ['fengwu-ghr', '--help']\n"
    run += "try: runpy.run_module('fengwu_ghr.cli', run_name='__main__')\nexcept SystemExit as e: assert not e.code"
    assert loaded_after(run) == set()


def test_nothing_depends_on_the_hash_seed() -> None:
    """A set that is iterated, a key that is hash(...): both would differ between two runs of the same command."""
    script = """
from datetime import datetime, timedelta; import hashlib
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.grid import product_grid
from fengwu_ghr.synthetic import synthetic_state
from fengwu_ghr.variables import CHANNEL_SETS
grid, start = product_grid(80), datetime(2024, 1, 1)
for name, channels in CHANNEL_SETS.items():
    state = synthetic_state(grid, channels.channels, initial_time=start, lead=timedelta(hours=6))
    encode, digest = GribEncoder(grid).encode, hashlib.sha256(state.values)
    for c in channels.channels:
        digest.update(encode(c, state[c], initial_time=start, lead=state.lead))
    print(name, digest.hexdigest())
"""
    command = [sys.executable, "-c", script]
    seeds = ({**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2"))
    first, second = (
        subprocess.run(command, env=env, capture_output=True, check=True).stdout for env in seeds
    )
    assert first == second
    assert first.count(b"\n") == 4

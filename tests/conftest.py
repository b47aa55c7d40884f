"""What every test shares: checked array annotations, a private cache, seeded numbers, real data where there is any."""

import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from fengwu_ghr.training.normals import Normals
    from fengwu_ghr.training.world import World

# Before the package is first imported: from here on, every annotated shape and dtype is checked at each call.
install_import_hook("fengwu_ghr", "typechecker.check")

_REPOSITORY = Path(__file__).resolve().parents[1]
_CACHE = pytest.StashKey[str]()
_DESELECTED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the user's caches, models and display out of the tests; child processes inherit it."""
    config.stash[_CACHE] = tempfile.mkdtemp(prefix="fengwu-ghr-tests-")
    os.environ["FENGWU_GHR_CACHE"] = config.stash[_CACHE]
    os.environ.pop("FENGWU_GHR_MODELS", None)
    # More threads than cores, of tests side by side: those that wait for each other are not to spin meanwhile.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: each computes with one thread
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MPLBACKEND"] = "Agg"


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items[:1]:
        item.config.stash[_DESELECTED] = item.config.stash.get(_DESELECTED, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of several processes each deselects the same tests; the one that reports hears of it from them alone."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = session.config.stash.get(_DESELECTED, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped, deselected = len(terminalreporter.stats.get("skipped", ())), config.stash.get(_DESELECTED, 0)
    terminalreporter.write_line(f"skipped tests: {skipped}; left for make test-full: {deselected}")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real GRIB files; tests that need it skip where there is none."""
    folder = Path(os.environ.get("FENGWU_GHR_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is no folder; set FENGWU_GHR_DATA to one")
    return folder


@pytest.fixture(scope="session")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete analysis of the analytic atmosphere at 2.5 degrees, as GRIB2."""
    from fengwu_ghr.synthetic import (
        write_synthetic_analysis,  # after the import hook, and in tests that need it only
    )

    path = tmp_path_factory.mktemp("analysis") / "analysis.grib2"
    write_synthetic_analysis(path)
    return path


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only: not on order, selection or the hash seed."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """A small world to learn from, of the module's own."""
    from worlds import tiny_world

    return tiny_world(tmp_path_factory.mktemp("world") / "world", days=3)


@pytest.fixture(scope="module")
def normals(world: "World", tmp_path_factory: pytest.TempPathFactory) -> "Normals":
    """The climatology of that world: its mean."""
    from fengwu_ghr.progress import Silence
    from fengwu_ghr.training.normals import Normals

    return Normals.of(world, tmp_path_factory.mktemp("normals"), harmonics=0, progress=Silence())

"""Who computes: Dask workers on this machine, of a batch system, or of a cluster that is there."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from distributed.comm import CommClosedError

from fengwu_ghr.engine.torch_engine import gpu_count
from fengwu_ghr.errors import Interrupted, ResourceError, UsageError
from fengwu_ghr.hindcast.settings import ClusterSection, HindcastConfig
from fengwu_ghr.machine import usable_cores
from fengwu_ghr.memory_plan import MEMORY_SHARE, available_memory
from fengwu_ghr.preflight import ForecastPlan
from fengwu_ghr.scheduler import connect

TURNS = 2
"""Initial times a worker takes: one is computed, the analysis of the other is read."""
GPU = "GPU"
START_SECONDS = 120
NOTE_SECONDS = 60
GONE = "the Dask scheduler is gone; what is committed stands, run the same command again to resume"
_SETTINGS = {
    # A worker that dies takes at most the initial time it computes with it, and the farm counts how often.
    "distributed.scheduler.allowed-failures": 0,
    # Nothing a worker keeps could be spilled; the nanny ends one that outgrows its limit.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # dask has glibc give back every freed array at once: a network's temporaries would be paged in anew at every use.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}


@dataclass(frozen=True)
class Host:
    """What the workers of one machine have to share."""

    workers: int
    cores: int
    memory: int

    @property
    def threads(self) -> int:
        """Of each worker."""
        return max(1, self.cores // self.workers)

    @property
    def memory_budget(self) -> int:
        """Of each worker."""
        return int(MEMORY_SHARE * self.memory / self.workers)


class Prepare(WorkerPlugin):
    """A worker of this machine leaves Ctrl-C to the command that started it, and has a GPU to itself."""

    name = "fengwu-ghr-hindcast"

    def __init__(self, gpus: list[str]) -> None:
        self.gpus = gpus

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(worker.name) % len(self.gpus)]


def this_machine(config: HindcastConfig, sample: ForecastPlan) -> Host:
    """As many workers as are asked for; else one a GPU, or as many as cores and memory carry of this forecast."""
    cores, memory = usable_cores(), available_memory()
    if config.cluster.workers:
        return Host(config.cluster.workers, cores, memory)
    if config.compute.device == "cuda":
        return Host(gpu_count(), cores, memory)
    fitting = int(MEMORY_SHARE * memory) // (config.compute.memory_budget or sample.memory_with(1).peak)
    return Host(max(1, min(cores // max(1, config.compute.threads), fitting)), cores, memory)


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names those that this process may use."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(gpu_count())]


def resources(config: HindcastConfig) -> dict[str, float]:
    """What an initial time takes of a worker, so that a GPU has as many as it has turns."""
    return {GPU: 1 / TURNS} if config.compute.device == "cuda" else {}


@contextmanager
def open_client(config: HindcastConfig, host: Host) -> Iterator[Client]:
    """A client of the workers that the configuration asks for; what was started here ends with it.

    Raises UsageError where there is no scheduler or no dask-jobqueue, ResourceError where this machine's do not start;
    Interrupted where the scheduler is lost at any moment inside.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with ExitStack() as opened:
        opened.enter_context(_scheduler_may_go())
        opened.enter_context(dask.config.set(_SETTINGS))
        if config.cluster.scheduler:
            yield opened.enter_context(connect(config.cluster.scheduler))
            return
        start = _local if config.cluster.kind == "local" else _batch
        cluster = opened.enter_context(start(config, host))
        client = opened.enter_context(Client(cluster))
        if config.cluster.kind == "local":
            client.register_plugin(Prepare(visible_gpus() if config.compute.device == "cuda" else []))
            _wait_for_workers(client, host.workers)
        yield client


@contextmanager
def _scheduler_may_go() -> Iterator[None]:
    try:
        yield
    except CommClosedError as error:
        raise Interrupted(GONE) from error


def hosts(client: Client, tell: Callable[[str], None]) -> list[Host]:
    """The machines of the workers that are there; the first one is waited for."""
    while not client.scheduler_info(n_workers=-1)["workers"]:
        try:
            client.wait_for_workers(1, timeout=NOTE_SECONDS)
        except TimeoutError:
            tell("no worker is there yet; waiting for one (Ctrl-C stops)")
    found = client.run(_facts)
    by_name: dict[str, list[tuple[int, int, int]]] = {}
    for name, *facts in found.values():
        by_name.setdefault(name, []).append(tuple(facts))
    return [_host(facts) for facts in by_name.values()]


def _host(facts: Sequence[tuple[int, int, int]]) -> Host:
    """Of the cores, the free memory and the limit (0: none) that each of its workers tells."""
    cores, free, limit = (min(values) for values in zip(*facts))
    return Host(len(facts), cores, min(free, limit * len(facts)) if limit else free)


def _facts(dask_worker: Worker) -> tuple[str, int, int, int]:
    limit = dask_worker.memory_manager.memory_limit
    return socket.gethostname(), usable_cores(), available_memory(), limit or 0


def _local(config: HindcastConfig, host: Host) -> LocalCluster:
    budget = config.compute.memory_budget or host.memory_budget
    return LocalCluster(
        n_workers=host.workers,
        threads_per_worker=TURNS,
        memory_limit=int(budget / MEMORY_SHARE),
        dashboard_address=config.cluster.dashboard,
        resources=_worker_resources(config),
    )


def _batch(config: HindcastConfig, host: Host) -> Any:
    """Workers as jobs of Slurm or PBS."""
    made = batch_cluster(config.cluster, _worker_resources(config) or {})
    made.scale(jobs=config.cluster.workers)
    return made


def batch_cluster(section: ClusterSection, offered: Mapping[str, float]) -> Any:
    """The cluster, without a job yet. Raises UsageError without dask-jobqueue, or for options it does not take."""
    try:
        from dask_jobqueue import PBSCluster, SLURMCluster
    except ImportError:
        raise UsageError(
            f"cluster.kind {section.kind} needs dask-jobqueue: pip install 'fengwu_ghr[cluster]'"
        ) from None
    kind = {"slurm": SLURMCluster, "pbs": PBSCluster}[section.kind]
    options = {"processes": 1, **section.job}  # a job is a worker: it is counted so, and has a GPU to itself
    more = ["--nthreads", str(TURNS), *(f"--resources={name}={count:g}" for name, count in offered.items())]
    options["worker_extra_args"] = [*options.get("worker_extra_args", ()), *more]
    known = {name for made in (kind, *kind.job_cls.__mro__) for name in signature(made.__init__).parameters}
    if unknown := sorted(options.keys() - known):
        raise UsageError(
            f"cluster.job has options of {section.kind} that dask-jobqueue does not know: {', '.join(unknown)}"
        )
    try:
        return kind(scheduler_options={"dashboard_address": section.dashboard}, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"cluster.job does not suit {section.kind}: {error}") from None


def _worker_resources(config: HindcastConfig) -> dict[str, float] | None:
    return {GPU: 1} if config.compute.device == "cuda" else None


def _wait_for_workers(client: Client, count: int) -> None:
    try:
        client.wait_for_workers(count, timeout=START_SECONDS)
    except TimeoutError:
        raise ResourceError(
            f"{count} workers did not start within {START_SECONDS} s; this machine is too busy: ask for fewer with "
            "--workers"
        ) from None

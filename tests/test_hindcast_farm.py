"""The farm: what becomes of initial times whose workers die, hang, outgrow their memory or cannot write."""

from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import farm_works
import pytest
import seasons
from distributed import Client
from distributed.comm import CommClosedError

from fengwu_ghr.errors import Interrupted, OutputError, UsageError
from fengwu_ghr.hindcast.cluster import Host, batch_cluster, open_client, resources
from fengwu_ghr.hindcast.farm import STRIKES, Farm
from fengwu_ghr.hindcast.settings import ClusterSection, HindcastConfig
from fengwu_ghr.hindcast.task import Outcome

TIMES = seasons.times_of(6)
BAD = TIMES[2]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    config = HindcastConfig.model_validate(
        seasons.season(tmp_path, tmp_path, 6, compute={"memory_budget": "400MiB"})
    )
    with open_client(config, Host(workers=2, cores=2, memory=2**30)) as opened:
        yield opened


def outcomes(
    client: Client, folder: Path, bad: Callable[[], None], *, stall: float = 600, only_first: bool = False
) -> dict[datetime, Outcome]:
    works = farm_works.Works(folder, {BAD: bad}, only_first)
    farm = Farm(client, works, stall)
    found = [outcome for outcome in farm.run(deque(TIMES), lambda: False) if outcome is not None]
    assert sorted(outcome.time for outcome in found) == TIMES  # each once
    return {outcome.time: outcome for outcome in found}


def attempts(folder: Path, time: datetime) -> int:
    return len(list(folder.glob(f"{time:%d%H}-*")))


def test_all_finish_each_once(client: Client, tmp_path: Path) -> None:
    found = outcomes(client, tmp_path, farm_works.finish)
    assert all(outcome.finished for outcome in found.values())
    assert [attempts(tmp_path, time) for time in TIMES] == [1] * len(TIMES)


def test_a_worker_that_dies_once_costs_nothing(client: Client, tmp_path: Path) -> None:
    found = outcomes(client, tmp_path, farm_works.die, only_first=True)
    assert all(outcome.finished for outcome in found.values())
    assert attempts(tmp_path, BAD) == 2


@pytest.mark.parametrize(
    ("bad", "said"), [(farm_works.die, "its worker died"), (farm_works.outgrow, "too little memory")]
)
def test_one_that_kills_its_workers_is_given_up(
    client: Client, tmp_path: Path, bad: Callable[[], None], said: str
) -> None:
    found = outcomes(client, tmp_path, bad)
    assert [time for time in TIMES if not found[time].finished] == [BAD]
    assert said in found[BAD].reason
    assert not found[BAD].is_noted
    assert attempts(tmp_path, BAD) == STRIKES


def test_a_worker_that_hangs_is_started_again(client: Client, tmp_path: Path) -> None:
    found = outcomes(client, tmp_path, farm_works.hang, stall=2, only_first=True)
    assert all(outcome.finished for outcome in found.values())
    assert attempts(tmp_path, BAD) == 2


def test_a_full_disk_stops_all(client: Client, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"):
        outcomes(client, tmp_path, farm_works.fill_the_disk)


def test_jobs_of_slurm_ask_for_what_the_configuration_says() -> None:
    job = {"queue": "gpu", "cores": 16, "memory": "64GiB", "walltime": "02:00:00", "account": "weather"}
    section = ClusterSection(kind="slurm", workers=3, dashboard=":0", job=job)
    with batch_cluster(section, {"GPU": 1}) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p gpu", "#SBATCH -A weather", "#SBATCH --cpus-per-task=16", "#SBATCH -t 02:00:00"):
        assert line in script
    worker = script.splitlines()[-1]
    assert "--nworkers" not in worker  # a job is a worker
    assert worker.index("--nthreads 16") < worker.index(
        "--nthreads 2 --resources=GPU=1"
    )  # the last one counts


def test_options_that_slurm_does_not_know_are_an_error() -> None:
    section = ClusterSection(
        kind="slurm", workers=1, dashboard=":0", job={"cores": 1, "memory": "1GB", "quue": "x"}
    )
    with pytest.raises(UsageError, match="dask-jobqueue does not know: quue"):
        batch_cluster(section, {})


def test_no_scheduler_is_a_readable_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fengwu_ghr.scheduler.CONNECT", "1s")
    tree = seasons.season(tmp_path, tmp_path, 2, cluster={"scheduler": "tcp://127.0.0.1:1", "workers": 0})
    config = HindcastConfig.model_validate(tree)
    with (
        pytest.raises(UsageError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"),
        open_client(config, Host(1, 1, 2**30)),
    ):
        pass


def test_a_scheduler_that_is_lost_while_it_is_asked_interrupts(client: Client, tmp_path: Path) -> None:
    """Whatever it is asked: that the workers are, before anything is handed out, too."""
    address = client.scheduler.address
    tree = seasons.season(tmp_path, tmp_path, 2, cluster={"scheduler": address, "workers": 0})
    with (
        pytest.raises(Interrupted, match="run the same command again"),
        open_client(HindcastConfig.model_validate(tree), Host(1, 1, 2**30)),
    ):
        raise CommClosedError("in <TCP (closed)>: Stream is closed")


def test_a_gpu_has_as_many_initial_times_as_it_has_turns(tmp_path: Path) -> None:
    config = HindcastConfig.model_validate(seasons.season(tmp_path, tmp_path, 2, compute={"device": "cuda"}))
    assert resources(config) == {"GPU": 0.5}

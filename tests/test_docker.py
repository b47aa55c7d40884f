"""The compose file is held against what it names; no engine is needed for that."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fengwu_ghr.cli import app

DOCKER = Path(__file__).parents[1] / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_images_are_built_from_stages_that_there_are(compose: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert {"cpu", "gpu"} <= set(stages)
    for service in compose["services"].values():
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
        assert build["target"] == "${TARGET:-cpu}"


def test_services_and_volumes_are_declared(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"scheduler", "worker", "client"}
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        named = {mount.partition(":")[0] for mount in service["volumes"] if mount[0].isalpha()}
        assert named <= set(compose["volumes"])


def test_worker_and_client_find_the_scheduler(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert [services[name]["entrypoint"] for name in ("scheduler", "worker")] == [
        ["dask", "scheduler"],
        ["dask", "worker"],
    ]
    port = services["scheduler"]["command"][1]
    assert services["worker"]["command"][0] == f"tcp://scheduler:{port}"
    verb, _, *options = services["client"]["command"]
    assert options == ["--scheduler", f"tcp://scheduler:{port}"]
    assert verb in {command.name or command.callback.__name__ for command in app.registered_commands}

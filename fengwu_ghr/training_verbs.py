"""The verbs of `fengwu-ghr train`: each reads one file of settings and goes on where it stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fengwu_ghr.options import Quiet, Verbose, verb

if TYPE_CHECKING:
    from fengwu_ghr.training.chain import ChainSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Simulate a world, pretrain a backbone on it, transfer it to the fine grid, and prove the gain.",
    rich_markup_mode=None,
)

Settings = Annotated[Path, typer.Argument(help="A TOML file, as configs/transfer_smoke.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value in place of what the file says.")
]


@app.command(epilog="Example: fengwu-ghr train simulate configs/transfer_demo.toml")
@verb
def simulate(
    config: Settings, more: Overrides = None, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Simulate the world of [simulate]: members from rest, states fine and coarse, restarts, statistics."""
    from fengwu_ghr import console
    from fengwu_ghr.training import chain

    settings = _settings(config, more)
    with console.StepProgress(quiet=quiet) as progress:
        world = chain.run_simulate(settings, progress)
    facts = [("folder", str(world.folder)), ("persisted", ", ".join(world.statistics.persisted) or "none")]
    days = [(split, f"{sum(map(len, world.series(split))) / 4:g} days") for split in world.splits]
    console.show_facts("The world", facts + days)


@app.command(epilog="Example: fengwu-ghr train pretrain configs/transfer_demo.toml pretrain.train.batch=8")
@verb
def pretrain(
    config: Settings, more: Overrides = None, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Train the backbone of [pretrain] on the coarse states, once per seed."""
    from fengwu_ghr import console
    from fengwu_ghr.training import chain

    with console.StepProgress(quiet=quiet) as progress:
        made = chain.run_pretrain(_settings(config, more), progress)
    console.show_facts("Backbones", [(path.parent.parent.name, path) for path in made])


@app.command(epilog="Example: fengwu-ghr train adapt configs/transfer_demo.toml")
@verb
def adapt(config: Settings, more: Overrides = None, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Transfer the backbone to the fine states, stage by stage as [[transfer]] says."""
    from fengwu_ghr import console
    from fengwu_ghr.training import chain

    with console.StepProgress(quiet=quiet) as progress:
        made = chain.run_adapt(_settings(config, more), progress)
    console.show_facts("Models", [(path.parent.name, path) for path in made])


@app.command(epilog="Example: fengwu-ghr train evidence configs/transfer_demo.toml evidence.dates=20")
@verb
def evidence(
    config: Settings, more: Overrides = None, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Score the trained models and every baseline on the test dates of [evidence], and write the report."""
    from fengwu_ghr import console
    from fengwu_ghr.training import chain
    from fengwu_ghr.training.report import Report
    from fengwu_ghr.training.world import World

    settings = _settings(config, more)
    with console.StepProgress(quiet=quiet) as progress:
        scored = chain.run_evidence(settings, progress)
    command = " ".join(["fengwu-ghr train evidence", str(config), *(more or [])])
    world = World.open(settings.simulate.folder)
    console.show_facts("Evidence", [("report", Report(settings, world, scored, command).write())])


def _settings(path: Path, more: list[str] | None) -> "ChainSettings":
    from fengwu_ghr.config import read_settings
    from fengwu_ghr.training.chain import ChainSettings

    return read_settings(ChainSettings, path, overrides=more or ())

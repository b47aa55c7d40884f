"""Put what a training run made into the package: the model, a held-out analysis, and the truth that followed.

    python -m pipelines.embed configs/transfer_demo.toml [--split test] [--model NAME] [section.key=value ...]

Weights are rounded to bfloat16, which halves them; what is in the package is replaced.
"""

import argparse
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import torch

from fengwu_ghr import checkpoint, console, demo
from fengwu_ghr.catalogue import packaged_folder
from fengwu_ghr.config import read_settings
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grib.encode import GribEncoding, Packing, index_path, write_messages
from fengwu_ghr.options import exit_code
from fengwu_ghr.progress import Silence
from fengwu_ghr.training.chain import ChainSettings
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.reference import ReferenceForecasts, restart_indices, state_messages, write_analysis
from fengwu_ghr.training.world import STEP, Series, World
from fengwu_ghr.transfer import TransferModel
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify.climate_build import keep_climatology

DAYS = 10
_SMALL = Packing(bits=10)
"""Of what is only scored: half a step is a few hundredths of an error, and everything embedded stays small."""
_NORMALS_BITS = (14, 8)
"""Of the mean, and of the harmonics, whose last bits are tens of times smaller."""


def embed(settings: ChainSettings, *, split: str, name: str) -> list[Path]:
    """The embedded files, as they now are. Raises InputError where no series of the split is long enough."""
    world = World.open(settings.simulate.folder)
    series, index = _initial(world, split)
    model = embed_model(settings.model(settings.seeds[0], name), split=split)
    demo.EMBEDDED.mkdir(exist_ok=True)
    analysis, truth, numerical = (
        demo.EMBEDDED / name for name in (demo.ANALYSIS, demo.TRUTH, demo.NUMERICAL)
    )
    write_analysis(world, series.fine(index), series.times[index], analysis)
    write_truth(world, series, index, truth)
    write_numerical(world, series, index, numerical, truncation=settings.evidence.baseline_truncation)
    for path in (analysis, truth, numerical):
        index_path(path).unlink()  # nobody in the package reads them
    return [model, analysis, truth, numerical, write_normals(settings, world)]


def embed_model(source: Path, *, split: str) -> Path:
    """The checkpoint lies in the package under the name of the demonstration's model.

    Its card says from which split of its world the embedded analysis comes.
    """
    found, target = checkpoint.Checkpoint.open(source), packaged_folder() / demo.MODEL
    model = for_the_package(found)
    provenance = found.card.provenance | {"analysis": split}
    card = found.card.model_copy(update={"name": demo.MODEL, "provenance": provenance})
    if target.exists():
        shutil.rmtree(target)
    checkpoint.save(target, model, card=card)
    return target


def for_the_package(found: checkpoint.Checkpoint) -> TransferModel:
    """The model with rounded weights; its mean state less so, since forecasts are pulled at it in every step."""
    model = checkpoint.load_model(found, dtype=torch.bfloat16)
    if model.diffusion is not None:
        model.diffusion.mean = model.diffusion.mean.half()
    return model


def write_truth(world: World, series: Series, index: int, path: Path) -> None:
    """The scored channels of the days after this state, in one GRIB2 file of analyses."""
    messages = []
    for day in range(1, DAYS + 1):
        state = series.fine(index + day * (timedelta(days=1) // STEP))
        valid_time = series.times[index] + timedelta(days=day)
        messages += state_messages(
            world, state, valid_time, HEADLINE, encoding=GribEncoding(_SMALL, is_analysis=True)
        )
    write_messages(path, messages)


def write_numerical(world: World, series: Series, index: int, path: Path, *, truncation: int | None) -> None:
    """The scored channels of the coarser simulator's forecast from this state, day by day, in one GRIB2 file."""
    if truncation is None:
        raise UsageError("the demonstration shows a numerical baseline: set evidence.baseline_truncation")
    initial_time, messages = series.times[index], []
    forecast = ReferenceForecasts(world, truncation=truncation).forecast(
        series.member, initial_time, hours=24 * DAYS
    )
    for step, state in enumerate(forecast, start=1):
        if (lead := step * STEP) % timedelta(days=1) == timedelta(0):
            messages += state_messages(
                world, state, initial_time, HEADLINE, lead=lead, encoding=GribEncoding(_SMALL)
            )
    write_messages(path, messages)


def write_normals(settings: ChainSettings, world: World) -> Path:
    """The climatology of the training years, of the scored channels."""
    normals = Normals.of(world, settings.folder, harmonics=settings.evidence.harmonics, progress=Silence())
    target = demo.EMBEDDED / demo.NORMALS
    if target.exists():
        shutil.rmtree(target)
    keep_climatology(normals.fine, HEADLINE, target, hours=(0.0,), keep_bits=_NORMALS_BITS)
    return target


def _initial(world: World, split: str) -> tuple[Series, int]:
    """The first 00 UTC of a series of the split where the simulator can begin, with all days of truth after it."""
    for series in world.series(split):
        for index in restart_indices(world, series):
            if series.times[index].hour == 0 and index + DAYS * (timedelta(days=1) // STEP) < len(series):
                return series, index
    raise InputError(
        f"no {split} series of {world.folder} keeps a restart of a 00 UTC with {DAYS} days after it; simulate "
        "longer ones"
    )


def main(arguments: list[str]) -> int:
    """Exit code as of the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.embed", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="of the analysis")
    parser.add_argument("--model", help="a stage, or backbone; default the headline")
    asked = parser.parse_args(arguments)

    def work() -> None:
        settings = read_settings(ChainSettings, asked.config, overrides=asked.overrides)
        made = embed(settings, split=asked.split, name=asked.model or settings.headline)
        console.show_facts("Embedded", [(path.name, path) for path in made])

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The verbs of `fengwu-ghr models`: list, create and verify checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from fengwu_ghr.options import Quiet, Verbose, verb

app = typer.Typer(no_args_is_help=True, help="List, create and verify checkpoints.", rich_markup_mode=None)


@app.command("list", epilog="Example: fengwu-ghr models list")
@verb
def models_list(quiet: Quiet = False, verbose: Verbose = False) -> None:
    """The models that a name finds, and the architectures that can be created."""
    from fengwu_ghr import console
    from fengwu_ghr.catalogue import list_models

    rows = [(m.name, m.state, m.description, m.path or "made on first use") for m in list_models()]
    console.show_table("models", ("name", "state", "what it is", "where"), rows)


@app.command(
    "create", epilog="Example: fengwu-ghr models create ghr-tiny-1p8 --init zero --output persistence"
)
@verb
def models_create(
    architecture: Annotated[str, typer.Argument(help="Architecture and grid, as ghr-tiny-1p8.")],
    output: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    init: Annotated[
        str, typer.Option(help="zero (persistence) or random (a small bounded tendency).")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    channels: Annotated[str, typer.Option(help="Channel set: ghr-69, ghr-74, ghr-88, fengwu-69.")] = "ghr-69",
    registration: Annotated[str, typer.Option(help="nested or pixel.")] = "nested",
    split: Annotated[str, typer.Option(help="Where the nine sub-fields part: pixel or token.")] = "pixel",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make an untrained checkpoint."""
    from fengwu_ghr import console
    from fengwu_ghr.catalogue import create_model
    from fengwu_ghr.checkpoint import Checkpoint

    create_model(
        architecture,
        init=init,
        seed=seed,
        output=output,
        channel_set=channels,
        registration=registration,
        split=split,
    )
    console.show_facts(f"{output} is a checkpoint now", Checkpoint.open(output).facts().items())


@app.command("verify", epilog="Example: fengwu-ghr models verify ghr-tiny-1p8")
@verb
def models_verify(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or model name.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check a checkpoint's files against their hashes, and its tensors against its architecture."""
    from fengwu_ghr import console
    from fengwu_ghr.catalogue import verify_model

    console.show_facts(f"{model} is whole", verify_model(model).facts().items())

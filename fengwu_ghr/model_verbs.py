"""The verbs of `fengwu-ghr models`: list, create, verify, convert and export checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from fengwu_ghr.options import Quiet, Verbose, verb

app = typer.Typer(
    no_args_is_help=True, help="List, create, verify, convert and export checkpoints.", rich_markup_mode=None
)


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


@app.command(
    "convert",
    epilog="Example: fengwu-ghr models convert fengwu_v2.onnx --statistics data_mean.npy --statistics data_std.npy "
    "--output fengwu-v2",
)
@verb
def models_convert(
    path: Annotated[
        Path, typer.Argument(help="An .onnx file, or the folder of encoder, blocks and decoder.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the new checkpoint; files are linked or copied.")],
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            help="Mean and std, as two .npy files or as GHR's .json; default those beside the graphs."
        ),
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Channel set; default told by the input.")] = None,
    registration: Annotated[
        str | None, typer.Option(help="pixel (as published), nested or backbone; default told by the input.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(help="Grid steps k times as wide, where the size is open.")
    ] = None,
    predicts: Annotated[
        Literal["state", "tendency"], typer.Option(help="What comes out; published weights give states.")
    ] = "state",
    name: Annotated[str | None, typer.Option(help="Of the model; default its folder's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the card.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a checkpoint of ONNX files (FengWu, or the GHR package), or say exactly what does not fit."""
    from fengwu_ghr import console
    from fengwu_ghr.convert import About, convert

    told = About(channels, registration, scale, predicts, tuple(statistics or ()), name)
    made = convert(path, output, told if licence is None else replace(told, licence=licence))
    console.show_facts(f"{output} is a checkpoint now", made.facts().items())


@app.command(
    "export-onnx",
    epilog="Example: fengwu-ghr models export-onnx ghr-demo --packaging chain --output demo-onnx",
)
@verb
def models_export_onnx(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or model name.")],
    output: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    packaging: Annotated[
        Literal["single", "chain"],
        typer.Option(
            help="single: one graph, as FengWu; chain: encoder, blocks, decoder, as the GHR package."
        ),
    ] = "chain",
    precision: Annotated[
        Literal["float32", "float16"], typer.Option(help="Of weights and fields.")
    ] = "float32",
    grid: Annotated[
        Literal["network", "backbone"],
        typer.Option(
            help="network: the whole model; backbone: the pretrained network alone, on its own grid."
        ),
    ] = "network",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a checkpoint as ONNX graphs, which is a checkpoint too and runs in onnxruntime."""
    from fengwu_ghr import console
    from fengwu_ghr.catalogue import resolve_model
    from fengwu_ghr.checkpoint import Checkpoint
    from fengwu_ghr.onnx_export import export_onnx

    checkpoint = Checkpoint.open(resolve_model(model))
    with console.StepProgress(quiet=quiet) as progress:
        made = export_onnx(
            checkpoint, output, packaging=packaging, precision=precision, where=grid, progress=progress
        )
    console.show_facts(f"{output} is a checkpoint now", made.facts().items())

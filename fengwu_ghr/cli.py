"""The verbs of `fengwu-ghr`: each reads its options, calls one function of the package and shows what came."""

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fengwu_ghr import (
    attention_verbs,
    hindcast_verbs,
    model_verbs,
    nowcast_verbs,
    training_verbs,
    verification_verbs,
)
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.options import (
    Budget,
    Config,
    Date,
    Inputs,
    Model,
    MoreFiles,
    Quiet,
    Store,
    Threads,
    Time,
    Verbose,
    initial_time,
    list_of,
    place,
    show_version,
    verb,
)

if TYPE_CHECKING:
    from fengwu_ghr.config import RunConfig
    from fengwu_ghr.forecast import ForecastResult
    from fengwu_ghr.preflight import ForecastPlan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(model_verbs.app, name="models")
app.add_typer(training_verbs.app, name="train")
app.add_typer(nowcast_verbs.app, name="nowcast")
app.add_typer(attention_verbs.app, name="attention")
verification_verbs.add_to(app)
hindcast_verbs.add_to(app)


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """High-resolution global forecasts: GRIB analyses in, Zarr and GRIB forecasts out."""


@app.command(epilog="Example: fengwu-ghr inspect analysis.grib2 run.zarr")
@verb
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="GRIB files, checkpoint folders, run stores.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what GRIB files, checkpoints and run stores hold."""
    from fengwu_ghr import console
    from fengwu_ghr.inspection import describe

    descriptions, problems = describe(paths)
    if as_json:
        typer.echo(json.dumps([d.facts for d in descriptions], indent=2))
    else:
        for description in descriptions:
            console.show_table(description.title, description.columns, description.rows)
    if problems:
        raise InputError("\n".join(map(str, problems)))


@app.command(epilog="Example: fengwu-ghr check --model ghr-tiny-0p09 --input analysis.grib2 --lead-time 24")
@verb
def check(
    files: MoreFiles = None,
    model: Model = None,
    input_: Inputs = None,
    date: Date = None,
    time: Time = None,
    lead_time: Annotated[int | None, typer.Option(help="Hours to forecast.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The run store that would be written.")
    ] = None,
    grib: Annotated[Path | None, typer.Option(help="Folder for GRIB files that would be written.")] = None,
    config: Config = None,
    memory_budget: Budget = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say whether a forecast could run, and what it would take, without running it."""
    flags = {
        "model.name": model,
        "input.time": initial_time(date, time),
        "forecast.lead_time_hours": lead_time,
        "output.zarr": output,
        "output.grib": grib,
        "compute.device": device,
        "compute.memory_budget": memory_budget,
        "compute.threads": threads,
    }
    from fengwu_ghr import console
    from fengwu_ghr.forecast import online_verification
    from fengwu_ghr.preflight import plan_forecast
    from fengwu_ghr.resume import find_attempt

    fallback = {"output.zarr": "forecast.zarr"}
    plan = plan_forecast(_configuration(config, flags, input_, files, fallback=fallback), try_encoding=True)
    with online_verification(plan, find_attempt(plan)) as watch:
        pass
    _show_plan(plan)
    for note in watch.notes if watch else ():
        console.OUT.print(f"verification: {note}")
    console.OUT.print("this forecast can run")


@app.command(
    epilog="Example: fengwu-ghr forecast --model ghr-tiny-0p09 --input analysis.grib2 --output run.zarr "
    "--grib grib --lead-time 24"
)
@verb
def forecast(
    files: MoreFiles = None,
    model: Model = None,
    input_: Inputs = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The run store to write, NAME.zarr.")
    ] = None,
    grib: Annotated[Path | None, typer.Option(help="Folder for one GRIB2 file per lead.")] = None,
    netcdf: Annotated[Path | None, typer.Option(help="NetCDF file of all leads, written at the end.")] = None,
    lead_time: Annotated[int | None, typer.Option(help="Hours to forecast; default 240.")] = None,
    date: Date = None,
    time: Time = None,
    variables: Annotated[str | None, typer.Option(help="Keep these variables only: z,t,2t.")] = None,
    levels: Annotated[str | None, typer.Option(help="Keep these levels (hPa) only: 500,850.")] = None,
    leads: Annotated[str | None, typer.Option(help="Keep these leads (hours) only: 0,24,48.")] = None,
    area: Annotated[str | None, typer.Option(help="Keep this box only: north,west,south,east.")] = None,
    keep_bits: Annotated[
        int | None, typer.Option(help="Round all products to so many mantissa bits (1-23).")
    ] = None,
    config: Config = None,
    memory_budget: Budget = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16, float8 or auto.")] = None,
    threads: Threads = None,
    output_threads: Annotated[int | None, typer.Option(help="Threads that make and write products.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the blocks (torch.compile).")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Record the trunk once (GPU).")] = False,
    paging: Annotated[
        bool, typer.Option("--paging", help="Keep blocks in host memory, two on the GPU.")
    ] = False,
    ranks: Annotated[int | None, typer.Option(help="GPUs that share the nine sub-fields.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    accept_numerics: Annotated[
        bool, typer.Option("--accept-numerics", help="Resume although the rest will not be byte-equal.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Forecast from one analysis; run again after any stop to resume."""
    flags = {
        "model.name": model,
        "input.time": initial_time(date, time),
        "output.zarr": output,
        "output.grib": grib,
        "output.netcdf": netcdf,
        "output.overwrite": overwrite or None,
        "forecast.lead_time_hours": lead_time,
        "forecast.variables": list_of(variables, str),
        "forecast.levels": list_of(levels, int),
        "forecast.leads_hours": list_of(leads, int),
        "forecast.area": list_of(area, float),
        "forecast.keep_bits": keep_bits,
        "compute.device": device,
        "compute.precision": precision,
        "compute.threads": threads,
        "compute.output_threads": output_threads,
        "compute.compile": compile_ or None,
        "compute.cuda_graphs": cuda_graphs or None,
        "compute.paging": paging or None,
        "compute.ranks": ranks,
        "compute.memory_budget": memory_budget,
        "compute.accept_numerics": accept_numerics or None,
    }
    _forecast(_configuration(config, flags, input_, files), quiet=quiet)


@app.command(epilog="Example: fengwu-ghr export run.zarr --grib grib --netcdf run.nc")
@verb
def export(
    store: Store,
    grib: Annotated[Path | None, typer.Option(help="Folder for one GRIB2 file per lead.")] = None,
    netcdf: Annotated[Path | None, typer.Option(help="NetCDF file of all committed leads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of another run.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write GRIB or NetCDF from a run store."""
    from fengwu_ghr import console
    from fengwu_ghr.export import export_all_grib, export_netcdf
    from fengwu_ghr.store import RunStore

    if grib is None and netcdf is None:
        raise UsageError("say what to export: --grib FOLDER, --netcdf FILE or both")
    if netcdf and netcdf.exists() and not overwrite:
        raise UsageError(f"{netcdf} exists; choose another --netcdf file, or replace it with --overwrite")
    if grib:
        with RunStore.open(store) as run:
            for path in export_all_grib(run, grib, overwrite=overwrite):
                console.OUT.print(str(path), markup=False)
    if netcdf:
        console.OUT.print(str(export_netcdf(store, netcdf)), markup=False)


@app.command(epilog="Example: fengwu-ghr point run.zarr --at 52.5,13.4 --output berlin")
@verb
def point(
    store: Store,
    at: Annotated[str, typer.Option(help="Latitude,longitude in degrees.")],
    variables: Annotated[
        str | None, typer.Option(help="Fields to show; default: those of 2t,msl,10u,10v,z500,t850.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Initial time; default: the store's first.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Name of the CSV and PNG; default: beside the store.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A meteogram: the forecast at a place as CSV and PNG."""
    from fengwu_ghr import console
    from fengwu_ghr.views import write_meteogram

    latitude, longitude = place(at)
    there = store.resolve()
    stem = output or there.with_name(f"{there.stem}_{latitude:g}_{longitude:g}")
    for path in write_meteogram(
        store,
        list_of(variables, str) or None,
        latitude=latitude,
        longitude=longitude,
        time=time,
        stem=stem,
    ):
        console.OUT.print(str(path), markup=False)


@app.command(
    epilog="Example: fengwu-ghr plot run.zarr --variable z --level 500 --lead-time 24 --output map.png"
)
@verb
def plot(
    store: Store,
    variable: Annotated[str, typer.Option(help="Variable, as z or 2t.")],
    level: Annotated[int | None, typer.Option(help="Pressure level in hPa.")] = None,
    lead_time: Annotated[int, typer.Option(help="Lead time in hours.")] = 24,
    time: Annotated[str | None, typer.Option(help="Initial time; default: the store's first.")] = None,
    output: Annotated[Path, typer.Option(help="Picture to write; the suffix says which kind.")] = Path(
        "map.png"
    ),
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw a map of one field."""
    from fengwu_ghr import console
    from fengwu_ghr.views import write_map

    lead = timedelta(hours=lead_time)
    console.OUT.print(
        str(write_map(store, variable, level, lead=lead, time=time, output=output)), markup=False
    )


@app.command(epilog="Example: fengwu-ghr demo --output demo-output")
@verb
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = Path(
        "demo-output"
    ),
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The whole chain on the embedded world: ten days of forecast, GRIB, map, meteogram, verification."""
    from fengwu_ghr import console
    from fengwu_ghr.demo import run_demo, verify_demo
    from fengwu_ghr.views import write_map, write_meteogram

    with console.LeadProgress(quiet=quiet) as progress:
        result = run_demo(output, reporter=progress)
    day = timedelta(hours=24)
    picture = write_map(result.store, "z", 500, lead=day, time=None, output=output / "z500.png")
    series = write_meteogram(
        result.store, ("2t", "msl", "z500"), latitude=52.5, longitude=13.4, stem=output / "berlin"
    )
    _show_result(result)
    console.show_facts("Pictures", [("map", picture), ("meteogram", ", ".join(map(str, series)))])
    with console.StepProgress(quiet=quiet) as steps:
        verified = verify_demo(output, progress=steps)
    console.show_verified(verified)


def _configuration(
    path: Path | None,
    flags: dict[str, Any],
    inputs: list[Path] | None,
    more: list[str] | None,
    *,
    fallback: dict[str, Any] | None = None,
) -> "RunConfig":
    from fengwu_ghr.config import load_config

    more = more or []
    overrides = [text for text in more if "=" in text and not Path(text).exists()]
    files = [*(inputs or []), *(Path(text) for text in more if text not in overrides)]
    return load_config(path, flags=flags | {"input.files": files}, overrides=overrides, fallback=fallback)


def _forecast(config: "RunConfig", *, quiet: bool) -> None:
    from fengwu_ghr import console
    from fengwu_ghr.forecast import run_forecast
    from fengwu_ghr.preflight import plan_forecast

    plan = plan_forecast(config)
    _show_plan(plan)
    with console.LeadProgress(quiet=quiet) as progress:
        result = run_forecast(config, reporter=progress, plan=plan)
    _show_result(result)
    if config.verify is not None and config.verify.online:
        from fengwu_ghr.verify.job import run_on_sums

        console.show_verified(run_on_sums([config.verify.output], config.verify.output))


def _show_plan(plan: "ForecastPlan") -> None:
    from fengwu_ghr import console

    console.show_facts("The forecast that will run", plan.facts())


def _show_result(result: "ForecastResult") -> None:
    from fengwu_ghr import console

    facts: list[tuple[str, object]] = [("run store", result.store)]
    if result.grib_files:
        facts.append(("GRIB", f"{len(result.grib_files)} files in {result.grib_files[0].parent}"))
    if result.netcdf:
        facts.append(("NetCDF", result.netcdf))
    facts.append(("time", console.human_duration(result.seconds)))
    facts.append(("peak memory", console.human_bytes(result.peak_bytes)))
    console.show_facts("Products", facts)


def main() -> None:
    app(prog_name="fengwu-ghr")


if __name__ == "__main__":
    main()

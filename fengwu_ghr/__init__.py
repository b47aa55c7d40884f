"""FengWu-GHR: a GRIB analysis in, a 0.09-degree global forecast in Zarr and GRIB out.

Read the package in the order of this list: a module uses only modules above it. The main path in a minute: `state`
(the one noun), `grib.decode`, `regrid`, `rollout` (states in, states out), `outputs`, and `forecast`, which joins them.

  Words
    errors                what can go wrong; each error carries the exit code of the command line
    machine               what a measured number was measured on
    progress              who hears how far long work has come
    scheduler             a Dask cluster that is there already
    durable               checksums, flushing to the device, locks; a failed write is an error with a remedy
    config                TOML -> strict models; an unknown key is an error
    projection            latitude and longitude to a plane and back, as radar networks use them
    grid                  where the numbers are: product, backbone and network grids, cell areas
    projected_grid        points evenly spaced on a plane: radar composites
    variables             what the numbers mean: the registry of variables, the channel sets
    shores                where land ends: coastlines, a land mask
    state                 State: values, channels, grid, valid time, lead. The one noun

  GRIB, and from grid to grid
    grib.sections         where GRIB messages begin and end; a multi-field message taken apart
    grib.soundness        whether a data section holds what its header promises
    grib.worker           the child process in which ecCodes meets foreign bytes
    grib.pool             worker processes with deadlines; what kills one becomes an error naming file and offset
    grib.geometry         from a GRIB header to a grid, and to the order in which values were sent
    grib.keys             what raw header keys mean: parameter, surface, level, time and interval
    grib.messages         what GRIB files hold, read from the headers in worker processes
    grib.selection        which message makes which channel at which time; what is missing, in one error
    grib.derive           fields computed from others: gh -> z, r -> q
    grib.decode           files -> Analysis: every channel of the initial time, or an error naming what is missing
    grib.bufr             station reports in BUFR -> columns
    grib.header           what a message of ours says about its field
    grib.plane            ... and of a field on a plane
    grib.encode           a field -> a GRIB2 message; messages -> a file and its index
    synthetic             an analytic atmosphere for the demonstration and the tests
    interpolation         along circles of latitude and over the poles, without edges
    regrid                any source grid -> any grid of ours, exact at poles and dateline
    remap                 fields and whole states from grid to grid, kept to the bounds of their variables
    coarsen               area means of a fine grid over the cells of a coarse one

  The run store
    manifest              what is committed: JSON lines, each whole or not there
    restart               the master state in two slots, written in turn
    layout                what a run store is made of: its plan, every array and its CF attributes
    target                what may stand where a run store is to go, and what is never touched
    skeleton              a store without a field: its plan, written once and read back
    lead                  the fields of one lead: staged, flushed, moved into place, committed
    store                 the run store: sharded Zarr; plan, write a lead, commit it, what is complete

  The network
    normalise             physical values <-> what the network sees
    attention.window      exact attention inside windows of the sphere
    attention.partial     attention over part of the keys; how parts become the whole
    attention.wave_index  keys of a context in clusters, their means and sums
    attention.wave_store  where keys and values wait: host memory, a file
    attention.wave_buffer  clusters fetched, and kept where they are wanted again
    attention.certificate  a bound on the error of what is estimated
    attention.wave        decoding over a context that does not fit
    attention.certified   ... to a stated error
    attention.wave_field  all tokens of a field to all, in tiles
    attention.probe       keys of known kinds
    attention.rivals      what wave attention is measured against
    attention.bench       the measurements
    forcing               orography, land, sun: what a network may be told beside the state
    backbone              the 0.25-degree network on one page
    res                   the nine exchange what each did not see
    joint                 global attention over all nine at once
    sharing               tendencies of the nine averaged with their neighbours
    diffusion             departures from the mean state, smoothed after every step
    transfer              its weights at 0.09 degrees: split, recombine, adapt per lead step
    initialise            weights before training: where transfer starts, untrained networks
    model_card            model.toml: what a forecast must know about its weights, read strictly
    checkpoint            model.toml and safetensors or ONNX graphs, strict and hashed
    catalogue             where a model name is found; untrained models made on first use
    onnx_files            what an ONNX file holds
    convert               ONNX files -> a checkpoint, or what does not fit
    onnx_export           checkpoints of ours as ONNX graphs
    engine.stepper        Stepper: what a rollout needs from a network
    engine.finite         numbers that are no longer finite, and the part of the network they came from
    engine.float8         linear layers in 8-bit floating point
    engine.paging         blocks that wait in host memory, two on the device
    engine.graphs         compiled blocks, the trunk as a CUDA graph
    engine.outgoing       master states on their way to the writers
    engine.out_of_memory  memory that ran out, in whoever's words
    engine.torch_engine   the stepper that runs the torch network within a memory budget
    engine.device_memory  what a forecast takes of a GPU's memory
    engine.precision      which precision is faster here
    engine.sharded        the nine sub-fields over several processes, each on a GPU of its own
    engine.graph_pool     graphs that do not all fit into memory: which stay loaded
    engine.onnx_engine    the stepper that runs ONNX graphs
    engine.engines        which engine runs a model, and what it will take

  Verification
    verify.archive        named arrays in one file, without pickles
    verify.regions        boxes and masks, and sums over them weighted by area
    verify.statistics     values per grid point -> area-weighted sums that merge, by initial time and lead
    verify.metrics        scores as functions of mean statistics; intervals over dates; shares of targets won
    verify.significance   whether a difference could be chance: autocorrelation, bootstrap, many tests
    verify.climatology    mean and annual harmonics, fitted to states that stream by
    verify.spectra        power and coherence by total wavenumber; truncation
    verify.events         two-by-two tables of thresholds, and their scores
    verify.neighbourhood  how far one must look around: the fractions skill score
    verify.rain           SEEPS
    verify.quantities     what no file holds: wind speed, rain of 24 hours
    verify.units          as others spell them
    verify.fields         forecasts by initial time and lead, analyses by valid time
    verify.datasets       ... in Zarr and NetCDF of others
    verify.gribs          ... in GRIB files
    verify.opening        what stands at a path
    verify.climate        a climatology on disk: means, deviations, percentiles by day and hour
    verify.climate_build  how it is made, from analyses that stream by
    verify.stations       what was measured, and what a field says at the place
    verify.reports        SYNOP, METAR and ISD files -> observations
    verify.places         errors at stations: sums by region and by station
    verify.kept           sums in a folder that says what they are of; what results are made of
    verify.scoring        every sum of one initial time and lead, field by field
    verify.pairing        which initial times and leads can be verified
    verify.verification   what is compared with what, where, on which measures
    verify.pieces         the sums of every pair are computed: in parallel, resumable
    verify.online         the same while a forecast is computed, lead by lead
    verify.comparison     against a baseline: differences with confidence, targets won
    verify.results        scores as a dataset and as CSV
    verify.drawing        fields as small pictures, shores as a path
    verify.report         one page for people to read
    verify.job            from settings to report

  The job
    rollout               State -> State, State, ...; how to go on after a stop
    outputs               sinks for Zarr and GRIB: asynchronous, bounded, failing loudly
    export                products from a run store: GRIB, NetCDF, the series at a point
    memory_plan           what a forecast holds at its peak, on the host and on a GPU
    preflight             everything that can be known before work starts
    resume                what an earlier attempt left: go on from it, replace it, or leave it alone
    forecast              one initial time from end to end
    reproduce             a committed lead derived again from its provenance
    hindcast.settings     many initial times: from which input, into which store
    hindcast.ledger       what happened to each; how far all of them are
    hindcast.season       their model, the plan of their store, the forecast of each
    hindcast.arrival      input that comes late, or is still being copied
    hindcast.task         one initial time on one worker: claimed, computed, committed
    hindcast.cluster      Dask workers: of this machine, of a batch system, or there already
    hindcast.farm         hands out initial times; what dies or hangs has another turn
    hindcast.planning     what a season takes, and what of it is there already
    hindcast.job          from configuration to summary

  The demonstration
    demo                  the whole chain on the embedded world

  Training
    training.levels       sigma levels -> pressure levels and mean sea level, below ground too
    training.harmonics    spherical harmonic transforms by FFT, for the simulator on a CPU
    training.simulator    jcm with SPEEDY physics, from restart to restart
    training.world        a simulated world on disk: series of states, and their statistics
    training.identity     what decides a result of training, and whether it is the one that is there
    training.members      what it is to hold: members, segments, chunks; how far they have come
    training.simulate     makes it, each member in a process of its own; resumable
    training.reference    the simulator's own forecasts: the numerical baseline, the twin, analyses as GRIB
    training.normals      the climatology of a world's training years; the fine detail it holds
    training.dataset      windows of normalised states, and the order in which they are drawn
    training.forcings     what a network in training is told beside the states
    training.losses       what an error costs, by channel, level and area; amplitude and coherence
    training.scores       area-weighted errors of validation forecasts
    training.record       what a training run writes: its state, its log, its curves
    training.loop         the optimiser loop, the only one
    training.pretrain     a backbone from coarse states
    training.replay       forecasts under way, taken one step further
    training.stage        what a stage of transfer is
    training.fine         fine forecasts that can be differentiated
    training.fine_tasks   what the stages learn
    training.adapt        transfer, stage by stage
    training.downscale    the baseline that downscales coarse forecasts with a network
    training.sources      forecasts to be compared: ours and the baselines
    training.specs        a source in a few words
    training.tables       the sums of one source
    training.evidence     every source on the same held-out dates
    training.verdict      shares, headline scores, spectra
    training.pictures     errors, shares and spectra as pictures
    training.aims         what is aimed at, and what came
    training.chain        the settings of all of it, and its verbs
    training.report       the report of the evidence

  The nowcast
    nowcast.sequence      reflectivity at evenly spaced times: the noun of the nowcast
    nowcast.child         what needs pysteps, in a process of its own
    nowcast.pysteps_child  that process: importers, and the baselines of pysteps
    nowcast.radar         radar files -> a sequence, or what is wrong with them
    nowcast.events        which sequences train, validate and test; the windows cut from each
    nowcast.storms        generated storms, for pretraining and the demonstration
    nowcast.motion        how echoes move: velocity, paths, fields sampled on them
    nowcast.model         the network on one page: IMPA-Net, SimVP, TAU
    nowcast.loss          what an error costs, by progress, intensity and lead
    nowcast.samples       crops as the network sees them, and what it should give
    nowcast.weights       its checkpoints
    nowcast.train         training: generated storms, then events
    nowcast.predict       from frames to frames
    nowcast.forecast      one nowcast from end to end
    nowcast.baselines     persistence, extrapolation, pysteps
    nowcast.scores        sums of forecasts: tables of every cut, fractions, powers
    nowcast.comparison    models and baselines on the same starts
    nowcast.table         from sums to a table with intervals
    nowcast.verification  test events, or one store against what came
    nowcast.pictures      observation beside forecast, as a picture and as a film
    nowcast.demo          all of it on generated storms

  The command line
    plot                  maps and meteograms
    views                 a run store as a picture: the map of a field, the meteogram of a place
    inspection            what a path holds: GRIB files, a checkpoint, a run store
    console               tables, progress, errors as users see them
    options               what the verbs share
    model_verbs           the verbs of `fengwu-ghr models`
    training_verbs        the verbs of `fengwu-ghr train`
    verification_verbs    `fengwu-ghr verify` and `fengwu-ghr climatology`
    hindcast_verbs        `fengwu-ghr hindcast`
    nowcast_verbs         the verbs of `fengwu-ghr nowcast`
    attention_verbs       `fengwu-ghr attention`
    cli                   the verbs of `fengwu-ghr`, thin
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fengwu_ghr.forecast import run_forecast
    from fengwu_ghr.grid import LatLonGrid, NetworkGrid, product_grid
    from fengwu_ghr.state import State
    from fengwu_ghr.store import open_run
    from fengwu_ghr.variables import Channel, channel_set

    __version__: str

_PUBLIC = {
    "State": ("state", "State"),
    "LatLonGrid": ("grid", "LatLonGrid"),
    "NetworkGrid": ("grid", "NetworkGrid"),
    "product_grid": ("grid", "product_grid"),
    "Channel": ("variables", "Channel"),
    "channel_set": ("variables", "channel_set"),
    "run_forecast": ("forecast", "run_forecast"),
    "open_run": ("store", "open_run"),
}

__all__ = [
    "Channel",
    "LatLonGrid",
    "NetworkGrid",
    "State",
    "channel_set",
    "open_run",
    "product_grid",
    "run_forecast",
]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use: importing the package loads nothing else (PEP 562)."""
    if name == "__version__":
        return import_module("importlib.metadata").version("fengwu_ghr")
    if name not in _PUBLIC:
        raise AttributeError(f"fengwu_ghr has no {name!r}; its public names are {', '.join(_PUBLIC)}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"fengwu_ghr.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

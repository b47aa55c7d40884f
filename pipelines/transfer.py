"""From nothing to the table: simulate, pretrain, transfer, and score against every baseline, by one configuration.

    python -m pipelines.transfer configs/transfer_smoke.toml [section.key=value ...]

What is done is not done again: after a stop the same command goes on. The report is printed and lies in the folder.
"""

import shlex
import sys
from pathlib import Path

from fengwu_ghr import console
from fengwu_ghr.config import read_settings
from fengwu_ghr.errors import FengwuError, Interrupted, UsageError
from fengwu_ghr.options import stop_on_sigterm


def run(path: Path, overrides: list[str]) -> Path:
    """The report's path; everything it stands on lies in the folders that the configuration names."""
    from fengwu_ghr.training import chain
    from fengwu_ghr.training.report import Report

    settings = read_settings(chain.ChainSettings, path, overrides=overrides)
    with console.StepProgress(quiet=False) as progress:
        world = chain.run_simulate(settings, progress)
        chain.run_pretrain(settings, progress)
        chain.run_adapt(settings, progress)
        evidence = chain.run_evidence(settings, progress)
    command = shlex.join(["python", "-m", "pipelines.transfer", str(path), *overrides])
    written = Report(settings, world, evidence, command).write()
    console.OUT.print(written.read_text(encoding="utf-8"), markup=False)
    return written


def main(arguments: list[str]) -> int:
    """Exit code as of the command line."""
    stop_on_sigterm()
    console.set_verbosity(quiet=False, verbose=False)
    try:
        if not arguments or arguments[0].startswith("-"):
            raise UsageError("usage: python -m pipelines.transfer CONFIG [section.key=value ...]")
        console.OUT.print(f"report: {run(Path(arguments[0]), arguments[1:])}", markup=False)
    except FengwuError as error:
        return console.report_error(error)
    except KeyboardInterrupt:
        return console.report_error(Interrupted("stopped; run the same command again to go on"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

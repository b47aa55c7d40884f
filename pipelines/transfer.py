"""From nothing to the table: simulate, pretrain, transfer, and score against every baseline, by one configuration.

    python -m pipelines.transfer configs/transfer_smoke.toml [section.key=value ...]

What is done is not done again: after a stop the same command goes on. The report is printed and lies in the folder.
"""

import shlex
import sys
from pathlib import Path

from fengwu_ghr import console
from fengwu_ghr.config import read_settings
from fengwu_ghr.options import exit_code
from pipelines.arguments import configuration


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

    def work() -> None:
        report = run(*configuration("transfer", arguments))
        console.OUT.print(f"report: {report}", markup=False)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

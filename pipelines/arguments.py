"""What the pipelines are called with: a configuration, and overrides of it."""

from pathlib import Path

from fengwu_ghr.errors import UsageError


def configuration(program: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """The file of settings and the overrides. Raises UsageError where no file is named."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"usage: python -m pipelines.{program} CONFIG [section.key=value ...]")
    return Path(arguments[0]), arguments[1:]

"""What can go wrong, as users see it: every error carries the exit code of the command line.

A message states the rule that was broken, the value that came, and what to do about it.
"""


class FengwuError(Exception):
    """A failure with a stated cause; anything else that reaches the command line is a bug (exit 1)."""

    exit_code = 1


class UsageError(FengwuError):
    """Wrong options, configuration, checkpoint or recorded numerics."""

    exit_code = 2


class InputError(FengwuError):
    """Input fields missing, unreadable, inconsistent or implausible."""

    exit_code = 3


class MissingValues(InputError):
    """A field is there, but not all of its values are."""


class ConformanceError(FengwuError):
    """A product failed its own check before or after it was written."""

    exit_code = 4


class ResourceError(FengwuError):
    """The memory budget or the device's memory does not hold what was asked for."""

    exit_code = 5


class OutputError(FengwuError):
    """An output could not be written; what was committed stands and the run can be resumed."""

    exit_code = 6


class SomeFailed(FengwuError):
    """Some initial times of many failed; the others are there."""

    exit_code = 7


class Interrupted(FengwuError):
    """Stopped by a signal; run the same command again to resume."""

    exit_code = 75

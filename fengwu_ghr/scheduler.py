"""A Dask cluster that is there already."""

from typing import Any

from fengwu_ghr.errors import UsageError

CONNECT = "20s"
"""How long a scheduler may take to answer."""


def connect(address: str) -> Any:
    """A client of the scheduler at this address, to be closed. Raises UsageError where none answers."""
    try:
        from dask.distributed import Client
    except ImportError:
        raise UsageError("--scheduler needs distributed: pip install 'fengwu_ghr[cluster]'") from None
    try:
        return Client(address, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from None

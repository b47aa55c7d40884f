"""Archives: named arrays in one .npz file, whole or not there, without pickles; for sums and climatologies."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import InputError

_KIND = "kind"


def write_archive(path: Path, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """The file holds these arrays and what `kind` of thing they are; equal arrays make equal bytes.

    Raises OutputError where it cannot be written; a file that was there before then stands.
    """
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **{_KIND: np.array(kind)}, **arrays)
    with writing(path):
        make_folder(path.absolute().parent)
        replace_file(path, buffer.getvalue())


def read_archive(path: Path, kind: str) -> dict[str, np.ndarray]:
    """The arrays of such a file. Raises InputError where it is missing, damaged or of another kind."""
    try:
        # Opened here: numpy leaves a damaged file open.
        with open(path, "rb") as file:
            arrays = _named(np.load(file, allow_pickle=False))
    except FileNotFoundError:
        raise InputError(f"there is no {kind} at {path}; make it first, or give its path") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a {kind}: {error}; make it again") from error
    found = str(arrays.pop(_KIND, "file of unstated kind"))
    if found != kind:
        raise InputError(f"{path} should hold a {kind}; it holds a {found}: give the right file")
    return arrays


def read_array(path: Path, kind: str, name: str) -> np.ndarray:
    """One array of such a file, without reading the others. Raises InputError as `read_archive`."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            return np.asarray(content[name])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a {kind}: {error}; make it again") from error


def _named(content: object) -> dict[str, np.ndarray]:
    if not isinstance(content, Mapping):
        raise ValueError("it holds a single array")
    return dict(content)

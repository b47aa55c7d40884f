"""Memory that ran out, in the words of whoever found out: numpy, torch on CPU and GPU, onnxruntime."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fengwu_ghr.errors import FengwuError, ResourceError

_WORDS = ("allocate memory", "bad_alloc", "out of memory", "BFCArena")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(word in str(error) for word in _WORDS)


@contextmanager
def memory_errors(message: str) -> Iterator[None]:
    """Raises ResourceError with this message, and the words of the error, where memory runs out within."""
    try:
        yield
    except FengwuError:  # whoever raised it has said what it is
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"{message} ({error})") from None

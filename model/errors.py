"""Exceptions of configuration and cache, and the causes of failed runs: out of memory or a device fault. No torch."""

import re
from collections.abc import Iterator

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_ALLOC_FAILED|bad_alloc|Invalid buffer size|\bMemoryError\b|\bOutOfMemoryError\b",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|CUSOLVER_STATUS|NCCL error|device-side assert|"
    r"uncorrectable ECC|no CUDA-capable device|CUDA-capable device\(s\) is/are busy|unspecified launch failure",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is that the GPU or the machine ran out of memory."""
    return any(_is_memory_error(cause) for cause in _causes(error))


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, makes the GPU unusable for this process, unlike out of memory."""
    runtime = (cause for cause in _causes(error) if isinstance(cause, RuntimeError))
    return not is_out_of_memory(error) and any(
        type(cause).__name__ == "AcceleratorError" or _DEVICE.search(str(cause)) for cause in runtime
    )


def _is_memory_error(error: BaseException) -> bool:
    # torch.OutOfMemoryError, by its name, because this module must not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then the error that it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


class ConfigError(ValueError):
    """A wrong configuration that is detected only when a run is prepared. The message names the key."""


class CacheError(ConfigError):
    """The cache directory is not writable. The cause is the machine, not the configuration.

    n_bytes: size of what cannot be written, 0 if it is not known.
    """

    def __init__(self, message: str, n_bytes: int = 0) -> None:
        super().__init__(message)
        self.n_bytes = n_bytes

"""What a failed run died of: too little memory, or a device that is of no more use to this process. Without torch."""

import re
from collections.abc import Iterator

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_ALLOC_FAILED|bad_alloc|Invalid buffer size",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|CUSOLVER_STATUS|NCCL error|device-side assert|"
    r"uncorrectable ECC|no CUDA-capable device|CUDA-capable device\(s\) is/are busy|unspecified launch failure",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is that memory of the GPU or of the machine ran out."""
    return any(_ran_out(cause) for cause in _causes(error))


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error, or what caused it, leaves the GPU unusable for this process; no lack of memory."""
    runtime = (cause for cause in _causes(error) if isinstance(cause, RuntimeError))
    return not is_out_of_memory(error) and any(
        type(cause).__name__ == "AcceleratorError" or _DEVICE.search(str(cause)) for cause in runtime
    )


def _ran_out(error: BaseException) -> bool:
    # torch.OutOfMemoryError, also known as torch.cuda.OutOfMemoryError, by its name: torch is not to be imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


class ConfigError(ValueError):
    """A user's mistake that shows only when a run is prepared; the message names the key."""


class CacheError(ConfigError):
    """The folder of prepared data cannot be written: this machine's doing, not the configuration's."""

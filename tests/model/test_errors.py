import subprocess
import sys

import pytest
import torch

from model.errors import is_device_fault, is_out_of_memory
from tests.support.cases import sparse

# What torch's allocators and CUDA say, word by word.
NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"),
    torch.cuda.OutOfMemoryError("HIP out of memory."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:73] . DefaultCPUAllocator: not enough memory: you tried to allocate"),
]
DEVICE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("HIP error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("No CUDA-capable device is detected"),
    RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1"),
]
NEITHER = [
    ValueError("out of memory"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    KeyError("CUDA error"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_too_little_memory_is_recognised_by_its_message(error):
    assert is_out_of_memory(error)
    assert not is_device_fault(error)


@pytest.mark.parametrize("error", DEVICE, ids=str)
def test_a_broken_device_is_recognised_by_its_message(error):
    assert is_device_fault(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", NEITHER, ids=str)
def test_any_other_error_is_neither(error):
    assert not is_out_of_memory(error)
    assert not is_device_fault(error)


def test_the_cause_of_an_error_counts():
    error = RuntimeError("the backward pass failed")
    error.__cause__ = MemoryError()
    error.__cause__.__cause__ = error  # a circle ends
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "program", sparse(["torch.ones(2**36)", "bytearray(2**36)", "torch.ones(2**20) @ torch.ones(2**36)"], 3)
)
def test_memory_that_really_runs_out_is_known(program):
    code = f"""
import resource, torch
from model.errors import is_device_fault, is_out_of_memory
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
try:
    {program}
except BaseException as error:
    print(type(error).__name__, is_out_of_memory(error), is_device_fault(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["True", "False"], done.stdout


def test_faults_are_distinguished_without_torch():
    code = "import sys; import model.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Device, precision and compilation of a run: what `auto` stands for on this machine."""

import torch

from model.config import TrainConfig
from model.errors import ConfigError
from model.section import updated


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the configuration with each `auto` of run.device, run.precision and run.compile replaced.

    Raises:
        ConfigError: this machine does not have the device or precision that the configuration names.
    """
    run = config.run
    device = best_device() if run.device == "auto" else run.device
    if not is_available(device):
        raise ConfigError(f"run.device: no {device} device on this machine; use auto or cpu, got {run.device}")
    precision = _precision(config, device)
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("run.precision: this GPU has no bf16; use auto, fp32 or fp16, got bf16")
    if precision == "tf32" and not (device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)):
        raise ConfigError("run.precision: this device has no TF32; use auto or fp32, got tf32")
    compiled = run.compile
    if compiled == "auto":
        compiled = "on" if device == "cuda" and compiles(config) else "off"
    if compiled == "on" and config.model.name == "moe" and device == "cuda" and not _multiplies_groups(precision):
        raise ConfigError(
            "run.compile: a GPU compiles a mixture of experts in bf16 only, from compute capability 9.0 on; "
            "use auto or off, got on"
        )
    return updated(config, {"run.device": device, "run.precision": precision, "run.compile": compiled})


def compiles(config: TrainConfig) -> bool:
    """Return whether `auto` may compile the steps of a configuration on this device."""
    device = best_device() if config.run.device == "auto" else config.run.device
    if device == "cuda" and config.model.name == "moe":
        return _multiplies_groups(_precision(config, device))
    return device in ("cpu", "cuda")


def _precision(config: TrainConfig, device: str) -> str:
    """Return the precision that a configuration stands for on a device."""
    if config.run.precision != "auto":
        return config.run.precision
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def _multiplies_groups(precision: str) -> bool:
    """Return whether this GPU has a kernel for the products of experts, so that a CUDA graph can hold them.

    Elsewhere, torch reads the number of tokens of each expert before it multiplies.
    """
    return precision == "bf16" and torch.cuda.get_device_capability() >= (9, 0)


def set_tf32(config: TrainConfig) -> None:
    """Let the matrix products of this process use TF32 if a resolved configuration says so, and otherwise not."""
    if config.run.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = config.run.precision == "tf32"


def is_available(device: str) -> bool:
    """Return whether torch can use a device: cpu, cuda or mps."""
    if device == "mps":
        return torch.backends.mps.is_available()
    return device == "cpu" or torch.cuda.is_available()


def best_device() -> str:
    """Return the first available device of cuda, mps and cpu."""
    return next(device for device in ("cuda", "mps", "cpu") if is_available(device))

"""The device and the floating-point type that a worker computes with.

The driver chooses the device and tells its workers: a worker may see GPUs of its host that belong to another.
"""

from typing import TYPE_CHECKING, Literal

from sciqa.core.errors import InputError

if TYPE_CHECKING:  # spares the driver the import of PyTorch
    import torch

Device = Literal["cpu", "cuda"]


def check_device(device: Device) -> None:
    """Raise `InputError` if this process is to compute on a GPU and PyTorch finds none."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"a GPU is to be used that PyTorch {torch.__version__} cannot use; install its CUDA build that fits the "
            "driver (the torch line of constraints.txt), or pass --accelerator cpu"
        )


def this_device(accelerator: str) -> Device:
    """Return the device of a process that has no driver; with `--accelerator auto`, a GPU where there is one.

    Raises:
        InputError: a GPU is requested, and there is none.
    """
    import torch

    device: Device = "cuda" if accelerator != "cpu" and (accelerator != "auto" or torch.cuda.is_available()) else "cpu"
    check_device(device)
    return device


def device_cpus() -> int:
    """Return how many CPUs this process may use, by its affinity and its container's quota."""
    import joblib

    return joblib.cpu_count()


def device_half_precision(device: Device) -> "torch.dtype":
    """Return the fastest floating-point type that a device supports natively: 16 bits where the hardware has them.

    GPUs before compute capability 8.0 (V100, T4), and CPUs with AVX512 alone, have no bfloat16: they accept it, but
    compute in float32, with conversions.
    """
    import torch

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32

"""What this process computes on."""

import torch


def this_device() -> str:
    """Return `cuda` where this process was given a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def half_precision(device: str) -> torch.dtype:
    """Return the quickest type a device computes in: 16 bits where the hardware has them."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32

"""What the optimizer needs beside itself: the gradient norm, the learning-rate schedule, and the device it runs on."""

import torch
import transformers

from sciqa.core import cluster
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.training.options import FinetuneOptions


def learning_rate_schedule(options: FinetuneOptions, optimizer: torch.optim.Optimizer, steps: int) -> object:
    """Return the learning-rate scheduler, with warm-up."""
    name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    return transformers.get_scheduler(name, optimizer, round(options.warmup * steps), steps)


def optimizer_is_paged(options: FinetuneOptions, device: Device) -> bool:
    """Whether the optimizer is bitsandbytes' paged AdamW, and not that of PyTorch."""
    own = options.method == "qlora" and device == "cuda" and not options.offload
    return options.optimizer == "paged-adamw" or (options.optimizer == "auto" and own)


def optimizer_gradient_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the norm of all gradients that an optimizer is about to use."""
    gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def check_optimizer(options: FinetuneOptions) -> None:
    """Raise `InputError` if the optimizer needs a GPU, and none is used."""
    if options.optimizer == "paged-adamw" and cluster.cluster_device(options) == "cpu":
        raise InputError("--optimizer paged-adamw: pages between GPU and host, and no GPU is used; pass adamw or auto")

"""What the optimizer needs beside itself: the gradient norm and the learning-rate schedule."""

import torch
import transformers

from sciqa.training.options import FinetuneOptions


def learning_rate_schedule(options: FinetuneOptions, optimizer: torch.optim.Optimizer, steps: int) -> object:
    """Return the learning-rate scheduler, with warm-up."""
    name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    return transformers.get_scheduler(name, optimizer, round(options.warmup * steps), steps)


def gradient_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the norm of all gradients that an optimizer is about to use."""
    gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)

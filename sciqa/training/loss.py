"""The loss over a question's options, the gradient norm and the learning-rate schedule."""

from collections.abc import Sequence

import torch
import transformers

from sciqa.training.options import FinetuneOptions, Loss


def gradient_norm(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the norm of all gradients that an optimizer is about to use."""
    gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def mean_loss(scores: Sequence[torch.Tensor], golds: list[int], loss: Loss) -> torch.Tensor:
    """Return the mean loss of questions.

    Args:
        scores: scores of the options, shape (options,) per question.
        golds: index of the right option of each question.
        loss: `ranking` is the cross-entropy of the options' softmax, which compares all options; `completion` is the
            negative score of the right option. With log-likelihoods, that is the loss of plain supervised
            fine-tuning.
    """
    if loss == "completion":
        return -torch.stack([score[gold] for score, gold in zip(scores, golds, strict=True)]).mean()
    each = [-score.log_softmax(dim=0)[gold] for score, gold in zip(scores, golds, strict=True)]
    return torch.stack(each).mean()


def learning_rate_schedule(options: FinetuneOptions, optimizer: torch.optim.Optimizer, steps: int) -> object:
    """Return the learning-rate scheduler, with warm-up."""
    name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    return transformers.get_scheduler(name, optimizer, round(options.warmup * steps), steps)

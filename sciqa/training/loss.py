"""The loss over a question's options."""

from collections.abc import Sequence

import torch

from sciqa.core.errors import InputError
from sciqa.training.options import Loss


class DivergedError(InputError):
    """A figure of training is not a finite number, and would not be if the run went on from a checkpoint."""


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

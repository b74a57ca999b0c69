"""Training room: adapters and fine-tuned models from questions, their contexts and a base model, on Ray Train."""

from sciqa.training.finetune import finetune
from sciqa.training.options import FinetuneOptions

__all__ = ["FinetuneOptions", "finetune"]

"""Fine-tune models or adapters on questions and their contexts, with Ray Train."""

from sciqa.training.finetune import finetune
from sciqa.training.options import FinetuneOptions

__all__ = ["FinetuneOptions", "finetune"]

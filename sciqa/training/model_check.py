"""Check on the driver, without the values of weights, that a model can be trained as the options say."""

import torch

from sciqa.core.errors import InputError
from sciqa.core.model_files import model_file_family
from sciqa.models import adapter, load
from sciqa.training.options import FinetuneOptions


def check_finetune_model(options: FinetuneOptions) -> None:
    """Raise `InputError` if the model is incomplete, or peft refuses it or what it is called with."""
    family = model_file_family(options.model)
    model = load.load_on_meta_device(options.model, family, torch.float32)
    model = adapter.add_trainable_adapter(model, family, options.method, options.peft_fields())
    if options.zero and adapter.adapts_ranks(model):
        raise InputError("--zero: this adapter reads whole gradients, which ZeRO shards; use --zero 0")
    if "peft_type" in options.peft_fields() and family == "causal":
        try:
            model.eval()(input_ids=torch.zeros((1, 2), dtype=torch.long, device="meta"))
        except ValueError as error:  # such as of adapters that want the number of a task
            raise InputError(f"--peft: {error}") from error
        except RuntimeError:  # it computes with values, which there are none of here
            return

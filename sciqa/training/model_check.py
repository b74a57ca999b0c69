"""Checks before training: whether a model can be trained as the options say, and the memory that a batch needs."""

import torch
from transformers import PreTrainedModel

from sciqa.core.errors import InputError
from sciqa.core.model_files import model_file_family
from sciqa.models import adapter, load
from sciqa.models.scorer import EncodedForScorer, Scorer
from sciqa.training.options import FinetuneOptions, TrainOptions


def check_finetune_model(options: FinetuneOptions) -> None:
    """Raise `InputError` if the model is incomplete, or peft or `--gradient-checkpointing` cannot be used with it.

    This needs no values of weights, so the driver calls it.
    """
    family = model_file_family(options.model)
    model = load.load_on_meta_device(options.model, family, torch.float32)
    model = adapter.add_trainable_adapter(model, family, options.method, options.peft_fields())
    check_checkpointing(options, model)
    if options.zero and adapter.adapts_ranks(model):
        raise InputError("--zero: this adapter reads whole gradients, which ZeRO shards; use --zero 0")
    if "peft_type" in options.peft_fields() and family == "causal":
        try:
            model.eval()(input_ids=torch.zeros((1, 2), dtype=torch.long, device="meta"))
        except ValueError as error:  # such as of adapters that want the number of a task
            raise InputError(f"--peft: {error}") from error
        except RuntimeError:  # it computes with values, which there are none of here
            return


def check_checkpointing(options: TrainOptions, model: PreTrainedModel) -> None:
    """Raise `InputError` if activations are to be computed again, and transformers cannot do so for the model."""
    if options.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise InputError(
            f"--gradient-checkpointing: {model.config.model_type} models cannot compute activations again; leave it out"
        )


def check_minimum_memory(scorer: Scorer, longest: EncodedForScorer, micro_batch: int) -> int:
    """Return a lower bound of the bytes that a training step needs beyond the loaded weights.

    It counts gradients and both AdamW moments of the trained weights, in float32, and the input of every layer for the
    backward pass, at 2 bytes per value (2sbhL: Korthikanti et al. 2022, table 2, with full recomputation).
    """
    held = (getattr(each, "ds_tensor", each) for each in scorer.parameters() if each.requires_grad)  # of ZeRO-3
    trained = sum(each.numel() for each in held)
    config = scorer.model.config
    tokens = micro_batch * (scorer.padded_tokens([longest]) if scorer.batch_layout else longest.length)
    inputs = 2 * tokens * config.hidden_size * config.num_hidden_layers
    return 12 * trained + inputs

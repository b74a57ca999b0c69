"""Checks before training: whether a model can be trained as the options say, and the memory that a batch needs."""

import re
from typing import TYPE_CHECKING, cast

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from sciqa.core.errors import InputError
from sciqa.core.model_files import model_file_family
from sciqa.models import adapter, load
from sciqa.models.scorer import EncodedForScorer, Scorer
from sciqa.training.options import FinetuneOptions, TrainOptions

if TYPE_CHECKING:
    import peft

#: Fields of peft's configurations that name modules.
NAMING = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern")


def check_finetune_model(options: FinetuneOptions) -> None:
    """Raise `InputError` if the model is incomplete, or peft or `--gradient-checkpointing` cannot be used with it.

    This needs no values of weights, so the driver calls it.
    """
    _check_patterns(options.peft_fields())
    family = model_file_family(options.model)
    model = load.load_on_meta_device(options.model, family, torch.float32)
    model = adapter.add_trainable_adapter(model, family, options.method, options.peft_fields())
    check_checkpointing(options, model)
    _check_score_head(options, model)
    if options.method != "full":
        _check_adapter(options, cast("peft.PeftModel", model))
    if options.zero and adapter.adapts_ranks(model):
        raise InputError("--zero: this adapter reads whole gradients, which ZeRO shards; use --zero 0")
    if "peft_type" in options.peft_fields() and family == "causal":
        try:
            model.eval()(input_ids=torch.zeros((1, 2), dtype=torch.long, device="meta"))
        except ValueError as error:  # such as of adapters that want the number of a task
            raise InputError(f"--peft: {error}") from error
        except RuntimeError:  # it computes with values, which there are none of here
            return


def _check_patterns(fields: dict) -> None:
    """Raise `InputError` if a name of modules is no regular expression, as which peft reads most of them."""
    for field in (*NAMING, "exclude_modules"):
        given = fields.get(field) or ()
        for each in [given] if isinstance(given, str) else given if isinstance(given, list | dict) else ():
            try:
                re.compile(str(each))
            except re.error as error:
                raise InputError(
                    f"--peft: {field}: {each!r} is no regular expression ({error}); any letters are .* there, as in "
                    "'.*_proj'"
                ) from error


def _check_score_head(options: FinetuneOptions, model: PreTrainedModel) -> None:
    """Raise `InputError` if a model that scores answers is to be trained, and transformers has none of this type."""
    kind = model.config.model_type
    if options.objective == "reward" and kind not in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            f"--objective reward: {options.model} is of the type {kind}, of which transformers has no model that gives "
            "a score; pass another --model"
        )


def _check_adapter(options: FinetuneOptions, model: "peft.PeftModel") -> None:
    """Raise `InputError` if an adapter cannot be saved, trains nothing, or names a module that peft would leave out."""
    if options.zero == 3 and model.active_peft_config.is_prompt_learning:  # which peft computes when it saves it
        raise InputError("--zero 3: a soft prompt is saved by one worker, which has a share of it alone; use --zero 2")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise InputError("--peft: no weight is trained with these fields; leave inference_mode out")
    modules = model.get_base_model().named_modules()
    names = [name.replace(".original_module", "") for name, _ in modules]  # where peft has a module saved whole
    names += ["score"] * (options.objective == "reward")
    for field in NAMING:
        given = getattr(model.active_peft_config, field, None) or ()
        for each in () if isinstance(given, str) else given:
            if not any(re.fullmatch(f".*({each})", name) for name in names):
                raise InputError(f"--peft: {field}: the model has no module {each!r}, so that nothing would change")


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

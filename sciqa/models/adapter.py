"""Adapters: made from peft's own configurations, stored with what they need to be used again, attached, merged."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from sciqa.errors import InputError
from sciqa.hub import ABOUT_TRAINED, Family, about_trained
from sciqa.models.format import Format, Method

if TYPE_CHECKING:  # peft takes a second to import, which a model without an adapter need not wait for
    import peft

#: peft has no task of multiple choice; without one it passes everything through to the model.
TASKS: dict[Family, str | None] = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "multiple-choice": None}


def make_trainable(model: PreTrainedModel, family: Family, method: Method, fields: dict) -> nn.Module:
    """Return the model with an adapter to train, or itself to train whole; what is trained is float32.

    Args:
        model: a base model, which is changed.
        family: its kind.
        method: `lora` and `qlora` differ in how the base was loaded only.
        fields: of peft's `LoraConfig` or `PromptTuningConfig`, passed on to it.

    Raises:
        InputError: peft refuses the fields, or finds none of the modules they name.
    """
    import peft

    if method == "full":
        return model.float().requires_grad_()
    try:
        wrapped = peft.get_peft_model(model, peft_config(model, family, method, fields))
    except (ValueError, TypeError) as error:
        raise InputError(f"--peft: {error}") from error
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def peft_config(model: PreTrainedModel, family: Family, method: Method, fields: dict) -> "peft.PeftConfig":
    """Return peft's configuration: the given fields over our defaults, the heads of the model always saved."""
    import peft

    if method == "prompt-tuning":
        if family != "causal":
            raise InputError("--method prompt-tuning: for causal models only; use lora or full")
        return peft.PromptTuningConfig(**{"task_type": TASKS[family], "num_virtual_tokens": 16} | fields)
    saved = sorted({*head_modules(model), *(fields.get("modules_to_save") or [])})
    defaults = {"task_type": TASKS[family], "target_modules": "all-linear"}
    return peft.LoraConfig(**defaults | fields | {"modules_to_save": saved or None})


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the top-level modules with weights outside the backbone of a model that has no language-model head."""
    if model.get_output_embeddings() is not None:
        return []
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def attach(model: PreTrainedModel, folder: str) -> "peft.PeftModel":
    """Return the model with a stored adapter, frozen.

    Raises:
        InputError: the adapter's weights do not fit the model.
    """
    import peft

    try:
        attached = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: this adapter does not fit the model ({str(error)[:300]})") from error
    for parameter in attached.parameters():
        if parameter.is_floating_point() and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(model.dtype)
    return attached


def stored_style(folder: str) -> Format | None:
    """Return the format that an adapter or fine-tuned model was trained with, if it is known."""
    style = about_trained(folder).get("style")
    return Format(**style) if style else None


def save(model: nn.Module, folder: Path, state: dict[str, torch.Tensor], description: dict) -> None:
    """Write an adapter, or a whole fine-tuned model, as plain peft and transformers load it.

    Args:
        model: that was trained.
        folder: to write to.
        state: its trained weights by their names in the model, gathered where they are sharded.
        description: stored as `sciqa.json`.
    """
    import peft

    if isinstance(model, peft.PeftModel):
        model.peft_config["default"].base_model_name_or_path = description["base"]
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    else:
        model.save_pretrained(folder, state_dict=state)
    (folder / ABOUT_TRAINED).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")

"""Adapters: made from peft's own configurations, stored with what they need to be used again, attached, merged."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from sciqa.core.errors import InputError
from sciqa.core.hub import ABOUT_TRAINED, ADAPTER_WEIGHTS, Family, about_trained
from sciqa.models.format import Format, Method
from sciqa.models.weights import listed, new_weights, settle_tie, shared_weights

if TYPE_CHECKING:  # peft takes a second to import, which a model without an adapter need not wait for
    import peft

#: peft has no task of multiple choice; without one it passes everything through to the model.
TASKS: dict[Family, str | None] = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "multiple-choice": None}

#: What is to be done about an adapter that is not whole.
AGAIN = "copy its folder again whole, pass the base model that it was made for, or train it again"


def make_trainable(model: PreTrainedModel, family: Family, method: Method, fields: dict) -> nn.Module:
    """Return the model with an adapter to train, or itself to train whole; what is trained is float32.

    Args:
        model: a base model, which is changed.
        family: its kind.
        method: `lora` and `qlora` differ in how the base was loaded only.
        fields: of peft's `LoraConfig` or `PromptTuningConfig`, passed on to it.

    Raises:
        InputError: peft refuses the fields, or finds none of the modules they name; or they name one whose change
            no merged model could hold.
    """
    import peft

    if method == "full":
        return model.float().requires_grad_()
    try:
        wrapped = peft.get_peft_model(model, peft_config(model, family, method, fields))
    except (ValueError, TypeError) as error:
        raise InputError(f"--peft: {error}") from error
    _check_shared(wrapped, "--peft")
    _check_tied(wrapped)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def peft_config(model: PreTrainedModel, family: Family, method: Method, fields: dict) -> "peft.PeftConfig":
    """Return peft's configuration: the given fields over our defaults; heads and what is new are always saved."""
    import peft

    if method == "prompt-tuning":
        if family != "causal":
            raise InputError("--method prompt-tuning: for causal models only; use lora or full")
        return peft.PromptTuningConfig(**{"task_type": TASKS[family], "num_virtual_tokens": 16} | fields)
    heads = head_modules(model)
    saved = sorted({*heads, *_new_modules(model, heads), *(fields.get("modules_to_save") or [])})
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


def _new_modules(model: PreTrainedModel, heads: list[str]) -> set[str]:
    """Return the modules outside the heads that hold weights which no file held, such as a pooler."""
    modules = set()
    for name in new_weights(model):
        module = name.rpartition(".")[0]
        if not module:
            raise InputError(f"{name}: new in this model, and an adapter cannot hold it; use --method full")
        if module.split(".")[0] not in heads:
            modules.add(module)
    return modules


def attach(model: PreTrainedModel, folder: str) -> "peft.PeftModel":
    """Return the model with a stored adapter, frozen.

    Raises:
        InputError: the adapter's weights do not fit the model, some are missing, or what is new in the model is.
    """
    import peft

    new = new_weights(model)
    try:
        attached = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except KeyError as error:
        raise InputError(f"{folder}: no weights there for {error}; {AGAIN}") from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: this adapter does not fit the model ({str(error)[:300]})") from error
    _check_adapter(attached, folder, new)
    _check_shared(attached, folder)
    for parameter in attached.parameters():
        if parameter.is_floating_point() and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(model.dtype)
    return attached


def _check_adapter(attached: "peft.PeftModel", folder: str, new: frozenset[str]) -> None:
    """Raise `InputError` unless an adapter's file holds all that it has, and all that the model lacks, and no more."""
    import peft

    with safe_open(Path(folder, ADAPTER_WEIGHTS), "pt") as file:
        held = set(file.keys())
    expected = peft.get_peft_model_state_dict(attached, save_embedding_layers=False).keys()
    missing = {key for key in expected - held if ".original_module." not in key}
    missing |= {f"base_model.model.{name}" for name in new} - held
    # Besides its own weights an adapter may hold such of the base, as of an embedding for more tokens.
    unknown = held - expected - attached.state_dict().keys()
    if missing or unknown:
        problems = [f"no weights there for {listed(missing)}"] * bool(missing)
        problems += [f"weights there for what the model has not: {listed(unknown)}"] * bool(unknown)
        raise InputError(f"{folder}: this adapter does not fit the model: {'; '.join(problems)}; {AGAIN}")


def _check_shared(wrapped: "peft.PeftModel", source: str) -> None:
    """Raise `InputError` where an encoder-decoder's shared weight is adapted in one of its places.

    Merged, the layers would differ, which no configuration of such a model can say.
    """
    if wrapped.config.is_encoder_decoder and (names := [name for name, _, _ in _adapted_shared(wrapped)]):
        raise InputError(
            f"{source}: {listed(names)}: other layers of this model share its weight and would not change with it; "
            "leave it out of target_modules, modules_to_save and trainable_token_indices, or use --method full"
        )


def _check_tied(wrapped: "peft.PeftModel") -> None:
    """Raise `InputError` where peft would train two views of one product, which shards and 16 bits pull apart."""
    from peft.tuners.lora import LoraLayer

    if getattr(wrapped.active_peft_config, "ensure_weight_tying", False):
        modules = dict(wrapped.named_modules())
        if names := [name for name, _, _ in _adapted_shared(wrapped) if isinstance(modules[name], LoraLayer)]:
            raise InputError(
                f"--peft: {listed(names)}: ensure_weight_tying of products is not trained here; leave it out, and head "
                "and embedding each have their own, or put the embedding into modules_to_save"
            )


def _adapted_shared(wrapped: "peft.PeftModel") -> list[tuple[str, nn.Module, str]]:
    """Return the layers that are adapted while others share their weight: name, layer and name of the weight in it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    shared, found = shared_weights(wrapped), []
    for name, module in wrapped.named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
            weights = layer.named_parameters(recurse=False)
            found += [(name, layer, own) for own, weight in weights if id(weight) in shared]
    return found


def merged(attached: "peft.PeftModel") -> nn.Module:
    """Return the model with the adapter's weights added to its own, or with a soft prompt as it is.

    An adapted layer that shared its weight with another, as a head with the embedding, gets one of its own, because in
    training only the adapted one has changed.
    """
    if attached.active_peft_config.is_prompt_learning:
        return attached
    for _, layer, own in _adapted_shared(attached):
        setattr(layer, own, nn.Parameter(getattr(layer, own).detach().clone(), requires_grad=False))
    said = attached.config.tie_word_embeddings
    model = attached.merge_and_unload()
    model.config.tie_word_embeddings = said
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if said and head is not None and torch.equal(table.weight, head.weight):  # both were changed alike
        head.weight = table.weight
    settle_tie(model)
    return model


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

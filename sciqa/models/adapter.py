"""Create, store, attach and merge peft adapters."""

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from sciqa.core.adapter_files import read_adapter_config
from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED, ADAPTER_WEIGHTS, Family
from sciqa.models.prompt_format import Method
from sciqa.models.weights import list_weight_names, newly_initialised_weights, settle_tied_weights, shared_weights

if TYPE_CHECKING:  # importing peft takes a second, which models without an adapter can save
    import peft

#: Task types of peft. It has none for multiple choice; with None it passes all arguments through to the model.
TASKS: dict[Family, str | None] = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "multiple-choice": None}

#: File of a checkpoint with what `update_adapter_ranks` has seen, and the names that peft gives it.
RANKS, SEEN = "ranks.safetensors", ("ipt", "exp_avg_ipt", "exp_avg_unc")
#: Advice in errors about an incomplete adapter.
AGAIN = "copy its folder again whole, pass the base model that it was made for, or train it again"


def add_trainable_adapter(model: PreTrainedModel, family: Family, method: Method, fields: dict) -> PreTrainedModel:
    """Prepare a model, in place, for training with an adapter or as a whole; the trained weights are float32.

    The fields are those of `adapter_peft_config`; `lora` and `qlora` differ only in how the base model was loaded.

    Raises:
        InputError: peft refuses the fields or finds none of the modules they name, or they name a module whose
            change a merged model cannot store.
    """
    import peft

    if method == "full":
        adapter_weights_as_float32(model.float().requires_grad_())
        return model
    try:
        wrapped = peft.get_peft_model(model, adapter_peft_config(model, family, method, fields))
    except NotImplementedError as error:
        advice = "pass another peft_type; one that needs the values of weights cannot be checked without them"
        raise InputError(f"--peft: {advice} ({error})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"--peft: {error}") from error
    if any(getattr(config, "deltaT", 1) != 1 for config in wrapped.peft_config.values()):
        raise InputError("--peft: deltaT: between its steps a model has ranks that its file leaves out; leave it at 1")
    _check_shared(wrapped, "--peft")
    _check_tied(wrapped)
    adapter_weights_as_float32(wrapped)
    return cast("PreTrainedModel", wrapped)  # which hands on to its base model what it does not have itself


def adapter_weights_as_float32(model: nn.Module) -> None:
    """Convert the trained weights to float32; of a weight that ZeRO-3 has sharded, this rank's share."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if hasattr(parameter, "ds_tensor"):
                parameter.ds_tensor.data = parameter.ds_tensor.data.float()


def adapts_ranks(model: nn.Module) -> bool:
    """Whether an adapter, such as AdaLoRA, changes its ranks in the course of training, by `update_adapter_ranks`."""
    return hasattr(getattr(model, "base_model", None), "update_and_allocate")


def update_adapter_ranks(model: nn.Module, step: int) -> None:
    """Let an adapter choose its ranks by the gradients of an optimizer step that was taken, counted from 1."""
    if adapts_ranks(model):
        cast("peft.AdaLoraModel", model.base_model).update_and_allocate(step)


def save_adapter_ranks(model: nn.Module, folder: Path) -> None:
    """Write what `update_adapter_ranks` has seen of earlier gradients into a checkpoint, if the adapter uses it."""
    if adapts_ranks(model):
        allocator = cast("peft.AdaLoraModel", model.base_model).rankallocator
        seen = {f"{kind}.{name}": each for kind in SEEN for name, each in getattr(allocator, kind).items()}
        save_file(seen, folder / RANKS, {"rank_pattern": json.dumps(allocator.peft_config.rank_pattern)})


def load_adapter_ranks(model: nn.Module, folder: Path) -> None:
    """Read what `save_adapter_ranks` has written, or raise `InputError` if a checkpoint that needs it lacks it."""
    if not adapts_ranks(model):
        return
    if not (folder / RANKS).exists():
        raise InputError("begun by a version that kept no ranks of such an adapter; pass another --name to train anew")
    allocator = cast("peft.AdaLoraModel", model.base_model).rankallocator
    with safe_open(folder / RANKS, "pt", device=str(next(model.parameters()).device)) as file:
        for key in file.keys():  # noqa: SIM118 (no dictionary)
            kind, _, name = key.partition(".")
            getattr(allocator, kind)[name] = file.get_tensor(key)
        allocator.peft_config.rank_pattern = json.loads(file.metadata()["rank_pattern"])


def adapter_without_input_casts(model: nn.Module, active: bool) -> AbstractContextManager:
    """Leave out, if `active`, the casts of adapters' inputs to float32 and back: autocast makes them a waste of time.

    Some kinds of adapters cannot leave them out, and keep them.
    """
    from peft.helpers import disable_input_dtype_casting
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    able = all(hasattr(layer, "cast_input_dtype_enabled") for layer in layers)
    return disable_input_dtype_casting(model, active=active and able)


def adapter_peft_config(model: PreTrainedModel, family: Family, method: Method, fields: dict) -> "peft.PeftConfig":
    """Return the configuration of an adapter of any kind that peft has.

    The fields are those of the configuration, and `peft_type`, its name in peft's registry, which follows from the
    method where it is not given. By default LoRA has all linear layers, and a soft prompt 16 tokens. Heads and new
    modules are always saved.

    Raises:
        InputError: no such kind, or one that cannot hold the new weights of the model.
    """
    import peft

    _check_whole_row("--peft", fields)
    by_method = "PROMPT_TUNING" if method == "prompt-tuning" else "LORA"
    kind = str(fields.get("peft_type", by_method)).upper()
    registry = {each.value: config for each, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in registry:
        raise InputError(f"--peft: no peft_type {kind!r} in this peft; there are {', '.join(sorted(registry))}")
    config = registry[kind]
    given = {"task_type": TASKS[family]} | fields | {"peft_type": kind}
    if issubclass(config, peft.PromptLearningConfig):
        if family != "causal":
            raise InputError(f"{kind}: a soft prompt, for causal models only; use another --peft, or --method full")
        return peft.get_peft_config({"num_virtual_tokens": 16} | given)
    heads = adapter_head_modules(model)
    asked = fields.get("modules_to_save") or []
    saved = sorted({*heads, *_new_modules(model, heads), *([asked] if isinstance(asked, str) else asked)})
    if kind == "LORA":
        given.setdefault("target_modules", "all-linear")
    if "modules_to_save" in {field.name for field in dataclasses.fields(config)}:
        given["modules_to_save"] = saved or None
    elif saved:
        raise InputError(f"--peft: {kind} cannot hold {', '.join(saved)}, which are new in this model")
    return peft.get_peft_config(given)


def adapter_head_modules(model: PreTrainedModel) -> list[str]:
    """Return the top-level modules with weights outside the backbone; none for a model with a language-model head."""
    if model.get_output_embeddings() is not None:
        return []
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def _new_modules(model: PreTrainedModel, heads: list[str]) -> set[str]:
    """Return the modules outside the heads that have newly initialised weights, such as a pooler."""
    modules = set()
    for name in newly_initialised_weights(model):
        module = name.rpartition(".")[0]
        if not module:
            raise InputError(f"{name}: new in this model, and an adapter cannot hold it; use --method full")
        if module.split(".")[0] not in heads:
            modules.add(module)
    return modules


def attach_adapter(model: PreTrainedModel, folder: str) -> "peft.PeftModel":
    """Attach a stored adapter to a model, with all weights frozen.

    Raises:
        InputError: the adapter does not fit the model, or lacks weights of its own or new weights of the model.
    """
    import peft

    new = newly_initialised_weights(model)
    _check_whole_row(folder, read_adapter_config(folder))
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


def _check_whole_row(source: str, fields: dict) -> None:
    """Raise `InputError` for an adapter that changes only a part of each row, from certain tokens on (aLoRA)."""
    if fields.get("alora_invocation_tokens"):
        raise InputError(
            f"{source}: alora_invocation_tokens: an adapter that begins at certain tokens of a row is not supported, "
            "since rows of several questions would have it for the last one alone; leave them out, or pass another"
        )


def _check_adapter(attached: "peft.PeftModel", folder: str, new: frozenset[str]) -> None:
    """Raise `InputError` unless an adapter's file holds all its weights, all new weights of the model and no others."""
    import peft

    with safe_open(Path(folder, ADAPTER_WEIGHTS), "pt") as file:
        held = set(file.keys())
    expected = peft.get_peft_model_state_dict(attached, save_embedding_layers=False).keys()
    missing = {key for key in expected - held if ".original_module." not in key}
    missing |= {f"base_model.model.{name}" for name in new} - held
    # An adapter may also hold weights of the base model, such as an embedding for more tokens.
    unknown = held - expected - attached.state_dict().keys()
    if missing or unknown:
        problems = [f"no weights there for {list_weight_names(missing)}"] * bool(missing)
        problems += [f"weights there for what the model has not: {list_weight_names(unknown)}"] * bool(unknown)
        raise InputError(f"{folder}: this adapter does not fit the model: {'; '.join(problems)}; {AGAIN}")


def _check_shared(wrapped: "peft.PeftModel", source: str) -> None:
    """Raise `InputError` if an adapter changes an encoder-decoder's layer that shares its weight with others.

    After merging, these layers would differ, which the model's configuration cannot express.
    """
    if wrapped.config.is_encoder_decoder and (names := [name for name, _, _ in _adapted_shared(wrapped)]):
        raise InputError(
            f"{source}: {list_weight_names(names)}: other layers of this model share its weight and would not change "
            "with it; leave it out of target_modules, modules_to_save and trainable_token_indices, or use --method full"
        )


def _check_tied(wrapped: "peft.PeftModel") -> None:
    """Raise `InputError` if peft would tie the LoRA products of two layers, which sharding and 16 bits make differ."""
    from peft.tuners.lora import LoraLayer

    if getattr(wrapped.active_peft_config, "ensure_weight_tying", False):
        modules = dict(wrapped.named_modules())
        if names := [name for name, _, _ in _adapted_shared(wrapped) if isinstance(modules[name], LoraLayer)]:
            raise InputError(
                f"--peft: {list_weight_names(names)}: ensure_weight_tying of products is not trained here; leave it "
                "out, and head and embedding each have their own, or put the embedding into modules_to_save"
            )


def _adapted_shared(wrapped: "peft.PeftModel") -> list[tuple[str, nn.Module, str]]:
    """Return the adapted layers that share a weight with other layers, as (layer name, layer, weight name)."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    shared, found = shared_weights(wrapped), []
    for name, module in wrapped.named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
            weights = layer.named_parameters(recurse=False)
            found += [(name, layer, own) for own, weight in weights if id(weight) in shared]
    return found


def adapter_merged_model(attached: "peft.PeftModel") -> PreTrainedModel:
    """Return the model with the adapter merged into its weights; with a soft prompt, return it unchanged.

    An adapted layer that shares its weight with another, such as a head with the embedding, gets its own copy, because
    training changed only the adapted layer.
    """
    if attached.active_peft_config.is_prompt_learning:
        return cast("PreTrainedModel", attached)
    for _, layer, own in _adapted_shared(attached):
        setattr(layer, own, nn.Parameter(getattr(layer, own).detach().clone(), requires_grad=False))
    said = attached.config.tie_word_embeddings
    try:
        model = attached.merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError) as error:
        raise InputError(
            f"{attached.active_peft_config.peft_type.value}: adapters of this kind stay beside their base, "
            f"so there is nothing to merge ({error})"
        ) from error
    model.config.tie_word_embeddings = said
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if said and head is not None and torch.equal(table.weight, head.weight):  # both changed in the same way
        head.weight = table.weight
    settle_tied_weights(model)
    return model


def save_adapter_or_model(
    model: "PreTrainedModel | peft.PeftModel", folder: Path, state: dict[str, torch.Tensor] | None, description: dict
) -> None:
    """Write an adapter or a fully fine-tuned model, in the format of peft or transformers.

    The state has the trained weights by name, gathered if they are sharded; it is None if they are written already.
    The description is the content of `sciqa.json`.
    """
    import peft

    if isinstance(model, peft.PeftModel):
        model.peft_config["default"].base_model_name_or_path = description["base"]
        model.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
    elif state is not None:
        model.save_pretrained(folder, state_dict=state)
    (folder / ABOUT_TRAINED).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")

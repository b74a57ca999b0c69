"""Weights of a loaded model: check that all are from its files, tell which are shared, sharded or new."""

import inspect
import re
from collections import Counter
from collections.abc import Collection, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from sciqa.core.errors import InputError
from sciqa.core.model_files import model_files_have_head

#: Causal masks and rotary frequencies, which follow from the configuration; older decoders stored them as weights.
CONSTANTS = re.compile(r"(^|\.)(attn(\.attention)?\.(bias|masked_bias|causal_mask)|rotary_emb\.inv_freq)$")
#: Exceptions that transformers raises for files that it cannot load, among them those of packages that are missing.
UNLOADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)
#: Number of names that an error lists.
NAMED = 3


def check_all_weights_read(name: str, model: PreTrainedModel, found: dict) -> frozenset[str]:
    """Check a model's weights against its files, and return the names of new ones: an encoder's untrained head.

    A plain encoder has no multiple-choice head, and may lack the pooler before it; loading creates both. Its heads for
    other tasks are ignored. What is `found` is transformers' loading report, as `from_pretrained` returns it.

    Raises:
        InputError: the files lack weights of the model, hold unknown ones, or hold some of another shape.
    """
    missing = set(found["missing_keys"])
    unexpected = {key for key in found["unexpected_keys"] if not CONSTANTS.search(key)}
    other = {key: f"{key} ({_by(held)}, {_by(own)} expected)" for key, held, own in found["mismatched_keys"]}
    new: set[str] = set()
    if type(model).__name__.endswith("ForMultipleChoice") and not model_files_have_head(name):
        new = (missing | other.keys()) - _needed(model)
        unexpected = {key for key in unexpected if _in_backbone(key, model)}
    found_wrong = {
        "no weights in its files for": missing - new,
        "in its files weights that such a model has not:": unexpected,
        "weights of another shape:": {text for key, text in other.items() if key not in new},
    }
    if problems := [f"{problem} {list_weight_names(keys)}" for problem, keys in found_wrong.items() if keys]:
        hint = _hint(missing, unexpected) or "fetch or save it again, with the config.json that belongs to its weights"
        raise InputError(f"{name}: not a whole {type(model).__name__}; {'; '.join(problems)}; {hint}")
    return frozenset(new)


def newly_initialised_weights(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that were newly initialised when a model was loaded."""
    return getattr(model, "new_weights", frozenset())


def has_quantised_weights(model: nn.Module) -> bool:
    """Whether a model's weights are quantised, so that nothing can be added to them exactly."""
    return getattr(model.config, "quantization_config", None) is not None


def is_weight_sharded(weight: nn.Parameter | None) -> bool:
    """Whether this rank of DeepSpeed's ZeRO-3 holds only its share of a weight."""
    return hasattr(weight, "ds_id")


def has_sharded_weights(model: nn.Module) -> bool:
    """Whether this rank of DeepSpeed's ZeRO-3 holds only its share of a model's weights."""
    return any(map(is_weight_sharded, model.parameters()))


def list_weight_names(names: Iterable[str]) -> str:
    """Return the first few names as text, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
    return ", ".join(names[:NAMED]) + more


def shared_weights(model: nn.Module) -> set[int]:
    """Return the `id()` of the weights that several layers of a model share."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {number for number, count in counts.items() if count > 1}


def settle_tied_weights(model: PreTrainedModel) -> None:
    """Set `tie_word_embeddings` in a decoder's configuration to whether its head and embedding share a weight."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if model.config.is_encoder_decoder or any(getattr(end, "weight", None) is None for end in ends):
        return
    model.config.tie_word_embeddings = ends[0].weight is ends[1].weight


def _needed(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights that an encoder needs: those of its class without a pooler."""
    backbone = model.base_model
    kind, without = type(backbone), {}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        without = {"add_pooling_layer": False}
    with torch.device("meta"):
        bare = kind(backbone.config, **without)
    return {f"{model.base_model_prefix}.{key}" for key in bare.state_dict()}


def _in_backbone(key: str, model: PreTrainedModel) -> bool:
    first = key.removeprefix(f"{model.base_model_prefix}.").split(".")[0]
    return first in dict(model.base_model.named_children())


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _hint(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """Return advice if a wrapper has left a prefix on the names of all weights; None otherwise."""
    key = min(unexpected, default="")
    for name in missing:
        if key.endswith(f".{name}"):
            return f"take {key.removesuffix(name)!r} from the beginning of their names, which a wrapper left there"
    return None

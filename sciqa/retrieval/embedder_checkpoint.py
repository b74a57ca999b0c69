"""Load embedding models and cross-encoders through sentence-transformers; incomplete models are rejected."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, read_model_file, read_model_file_modules
from sciqa.models.weights import list_weight_names

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from transformers import PreTrainedModel

#: Constants that older versions of some models stored among the weights.
CONSTANTS = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq|attn\.(attention\.)?(bias|masked_bias))$")
#: Names in transformers of tables of learned positions.
POSITIONS = ("position_embeddings", "embed_positions", "wpe")


@overload
def load_embedder_checkpoint(
    name: str,
    kind: Literal["SentenceTransformer"],
    device: str,
    dtype: "torch.dtype | str",
    attention: str | None = None,
) -> "SentenceTransformer": ...


@overload
def load_embedder_checkpoint(
    name: str, kind: Literal["CrossEncoder"], device: str, dtype: "torch.dtype | str", attention: str | None = None
) -> "CrossEncoder": ...


def load_embedder_checkpoint(
    name: str,
    kind: Literal["SentenceTransformer", "CrossEncoder"],
    device: str,
    dtype: "torch.dtype | str",
    attention: str | None = None,
) -> "SentenceTransformer | CrossEncoder":
    """Load a model with every weight from its files, and limit its texts to its table of positions.

    Args:
        name: name for `sciqa.core.model_files.find_model`.
        kind: class of sentence-transformers.
        device: device, as PyTorch names it.
        dtype: type of the weights; `auto` is that of the files.
        attention: attention implementation in transformers, by default the fastest.

    Raises:
        InputError: no such model, files that lack some of its weights or hold more layers than it has, or pickles.
    """
    _check_folder(name, kind)
    import sentence_transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = {"use_safetensors": True, "dtype": dtype} | ({"attn_implementation": attention} if attention else {})
    try:
        model = getattr(sentence_transformers, kind)(
            find_model(name).folder,
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs=settings,
        )
        problems = [text for module in _transformers(model) for text in _problems(name, module)]
    except InputError:
        raise
    except Exception as error:  # the package tokenizers raises no narrower class
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: no whole {kind} that can be loaded ({type(error).__name__}: {reason})") from error
    if problems:
        raise InputError(
            f"{name}: {'; '.join(problems)}; fetch or save it again, with the config.json that belongs to its weights"
        )
    for module in _transformers(model):
        _fit_length(module)
        if kind == "SentenceTransformer":
            _fit_padding(name, module)
    return model


def _check_folder(name: str, kind: str) -> None:
    """Raise `InputError` for a model that sentence-transformers would load as another kind, or from pickles."""
    files = find_model(name)
    folder = Path(files.folder)
    if files.gguf_file:
        raise InputError(f"{name}: a GGUF file; a folder as sentence-transformers saves it, with safetensors, expected")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{name}: an adapter; merge it into its base model, and save that with sentence-transformers")
    saved = read_model_file(name, "config_sentence_transformers.json").get("model_type", kind)
    if saved != kind and read_model_file_modules(name):
        raise InputError(f"{name}: a {saved} by its config_sentence_transformers.json, a {kind} expected")
    for module in read_model_file_modules(name):
        inner = folder / module["path"]
        if (inner / "pytorch_model.bin").exists() and not any(inner.glob("*.safetensors")):
            raise InputError(f"{name}: {inner / 'pytorch_model.bin'} is a pickle; save the model with safetensors")
        activation = (
            read_model_file(name, str(Path(module["path"], "config.json"))).get("activation_function") or "torch."
        )
        if not activation.startswith("torch."):
            raise InputError(f"{name}: {inner}: its activation function {activation} is none of PyTorch's own")


def _transformers(model: "SentenceTransformer | CrossEncoder") -> "Iterator[Transformer]":
    from sentence_transformers.base.modules import Transformer

    return (module for module in model.modules() if isinstance(module, Transformer))


def _problems(name: str, module: "Transformer") -> list[str]:
    """Return the problems with a module's weights, in words; none if some folder of the model has all of them."""
    root = Path(find_model(name).folder)
    kind = module.model.config.model_type
    told = []
    for path in sorted(root.rglob("config.json")):
        inner = path.parent.relative_to(root)
        if path.parent == root or read_model_file(name, str(inner / "config.json")).get("model_type") == kind:
            told.append(_differences(module, path.parent))
    return min(told, key=len, default=[f"no config.json of a {kind} model"])


def _differences(module: "Transformer", folder: Path) -> list[str]:
    """Return, in words, how a folder's weights differ from a module's, by the loading report of transformers.

    Loading on PyTorch's meta device reads names and shapes, but no values.
    """
    model: PreTrainedModel = module.model
    pair = type(model).from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        use_safetensors=True,
        local_files_only=True,
        device_map="meta",
        output_loading_info=True,
    )
    _, found = cast("tuple[PreTrainedModel, dict]", pair)
    missing = set(found["missing_keys"])
    outputs = {str(each["method_output_name"]) for each in module.modality_config.values()}
    if outputs == {"last_hidden_state"}:  # the pooler is not used, and files of many encoders lack it
        missing = {key for key in missing if not key.startswith("pooler.")}
    parts = dict(model.base_model.named_children())
    more = {
        key
        for key in found["unexpected_keys"]
        if key.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in parts and not CONSTANTS.search(key)
    }
    told = [f"no weights in its files for {list_weight_names(missing)}"] * bool(missing)
    told += [f"in its files weights that its configuration has no layers for: {list_weight_names(more)}"] * bool(more)
    return [f"{type(model).__name__}: {text}" for text in told]


def _fit_length(module: "Transformer") -> None:
    """Limit a module's maximum length of texts to its table of learned positions.

    Positions begin at the padding token's number plus one in models like RoBERTa, and at an offset in models like
    BART. The entries before are never used.
    """
    limits = []
    for name, table in module.model.named_modules():
        if name.rpartition(".")[2] in POSITIONS and hasattr(table, "num_embeddings"):
            unused = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            limits.append(table.num_embeddings - unused)
    given = module.max_seq_length
    if limits and (given is None or given > min(limits)):
        module.max_seq_length = min(limits)


def _fit_padding(name: str, module: "Transformer") -> None:
    """Let a tokenizer without a padding token pad with its end-of-text token; padding is masked."""
    tokenizer = module.tokenizer
    if tokenizer is not None and tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: no token for padding in its tokenizer; name a pad_token in its configuration")
        tokenizer.pad_token = tokenizer.eos_token

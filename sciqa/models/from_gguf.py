"""Convert GGUF files to a configuration and weights of transformers.

transformers reads the weights and most of the metadata. This module adds the rest or refuses the file, because a model
that lacks a part still gives answers.
"""

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS, read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    GGUF_SENTENCEPIECE_BUILDERS,
)
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from sciqa.core.errors import InputError
from sciqa.core.hashes import BESIDE_GGUF
from sciqa.core.model_files import ModelFiles
from sciqa.models.weights import check_all_weights_read, list_weight_names

#: Metadata without effect on the scores of a transformers model.
WITHOUT_EFFECT = ("tensor_data_layout", "rope.scaling.finetuned", "use_parallel_residual", "attention.value_length")
#: Tensors that become part of the configuration instead of weights.
ROTATIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
#: Architectures whose rotary embedding may cover only part of a head.
PARTIAL = ("phi3", "stablelm", "nemotron")
#: Number of layers of the models with 27 billion parameters, which do not scale attention by the head size.
LARGEST = {"gemma2": 46, "gemma3": 62}
#: Names of how texts are split (`tokenizer.ggml.pre`), besides those of `GGUF_PRE_TOKENIZER_SPLITS`: as GPT-2 does, as
#: GPT-2 does with each digit alone, and as Qwen2 does. They are grouped as in llama.cpp's llama-vocab.cpp.
GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum", "trillion"}
GPT2_SPLIT |= {"granite-docling", "exaone4"}
DIGITS_SPLIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")
QWEN2_SPLIT = ("stablelm2", "hunyuan", "solar-open")
#: Names with which, in llama.cpp, a text begins with a BOS token unless the file says otherwise, and a word of the
#: vocabulary is one token without merges.
LLAMA3_SPLIT = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
LLAMA3_SPLIT |= {"jina-v5-nano", "tekken"}


class GgufMetadata:
    """Metadata of a GGUF file; values of the architecture are removed as they are handled, so unknown ones remain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            said, tensors = read_gguf_metadata(str(path))
            self.kind = said["general.architecture"]
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise InputError(f"{path}: not a whole GGUF file ({error!r}); fetch or write it again") from error
        prefix = f"{self.kind}."
        self.tensors = set(tensors)
        self.values = {name.removeprefix(prefix): value for name, value in said.items() if name.startswith(prefix)}
        words = "tokenizer.ggml."
        self.tokenizer = {name.removeprefix(words): value for name, value in said.items() if name.startswith(words)}

    def take(self, name: str, default: object = None) -> Any:  # noqa: ANN401 (each value has a type of its own)
        """Remove and return a value, by its name without the architecture prefix."""
        return self.values.pop(name, default)

    def numbers(self, name: str) -> list[float]:
        """Return the values of a float32 tensor."""
        from gguf import GGUFReader

        return next(tensor for tensor in GGUFReader(self.path).tensors if tensor.name == name).data.ravel().tolist()

    def refuse(self, what: str) -> InputError:
        """Return the error for a property that cannot be converted to transformers."""
        return InputError(f"{self.path}: {what}, which is not converted; use the model in safetensors")


def gguf_config(path: Path) -> PreTrainedConfig:
    """Return the transformers configuration of the model in a GGUF file.

    Raises:
        InputError: the file is not a GGUF model, or its metadata cannot be expressed in the configuration.
    """
    about = GgufMetadata(path)
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a model that transformers reads from GGUF ({error})") from error
    for settle in (_settle_heads, _settle_attention, _settle_caps, _settle_rotations):
        settle(about, config)
    known = {name for name, ours in cast("dict", GGUF_CONFIG_MAPPING).get(about.kind, {}).items() if ours}
    if about.kind in GGUF_CONFIG_ARCHS:  # transformers reads all their metadata
        known |= about.values.keys()
    if unknown := {
        f"{about.kind}.{name} = {value}"
        for name, value in about.values.items()
        if name not in known and name not in WITHOUT_EFFECT and (value or value is False)
    }:
        raise about.refuse(f"its metadata say {list_weight_names(unknown)}")
    return config


def _settle_heads(about: GgufMetadata, config: PreTrainedConfig) -> None:
    """Set the head size, and the share of it that the rotary embedding covers."""
    usual = config.hidden_size // config.num_attention_heads
    size = about.take("attention.key_length", getattr(config, "head_dim", None) or usual)
    if about.values.get("attention.value_length", size) != size:
        raise about.refuse("its keys and values differ in length")
    if size != (getattr(config, "head_dim", None) or usual):
        config.head_dim = size
    rotated = about.take("rope.dimension_count", size)
    if rotated == size:
        return
    if about.kind not in PARTIAL:
        raise about.refuse(f"{rotated} of the {size} dimensions of a head are rotated")
    config.rope_parameters["partial_rotary_factor"] = rotated / size


def _settle_attention(about: GgufMetadata, config: PreTrainedConfig) -> None:
    """Set the sliding window, the layers that have one, and the scale of attention scores."""
    if about.take("attention.causal", True) is not True:
        raise about.refuse("its attention is not causal")
    window = about.take("attention.sliding_window")
    if about.kind in ("phi3", "gemma2", "gemma3") and window is not None:
        config.sliding_window = window or None
    elif window and window < config.max_position_embeddings:
        raise about.refuse(f"its attention has a window of {window} tokens")
    elif config.model_type == "mistral":  # the default configuration has a window
        config.sliding_window = None
    pattern = about.take("attention.sliding_window_pattern")
    if pattern is not None:
        layers = range(config.num_hidden_layers)
        slides = pattern if isinstance(pattern, list) else [(layer + 1) % pattern > 0 for layer in layers]
        if getattr(config, "layer_types", None) is None:
            raise about.refuse("a pattern of layers with a window")
        config.layer_types = ["sliding_attention" if slide else "full_attention" for slide in slides]
    if about.kind in LARGEST:
        largest = config.num_hidden_layers == LARGEST[about.kind]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim


def _settle_caps(about: GgufMetadata, config: PreTrainedConfig) -> None:
    """Set the soft caps of attention scores and logits."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (value := about.take(name)) is not None:
            if not hasattr(config, name):
                raise about.refuse(f"{about.kind}.{name} = {value}")
            setattr(config, name, value)


def _settle_rotations(about: GgufMetadata, config: PreTrainedConfig) -> None:
    """Set the scaling of the rotary embedding."""
    kind, factor = about.take("rope.scaling.type"), about.take("rope.scaling.factor", 1.0)
    original = about.take("rope.scaling.original_context_length", config.max_position_embeddings)
    attention = about.take("rope.scaling.attn_factor")
    short, long = "rope_factors_short.weight", "rope_factors_long.weight"
    scaling: dict[str, object] = {}
    if "rope_freqs.weight" in about.tensors:
        # Wavelength factors, as in Llama 3.1. longrope divides by any factors, here at every length.
        short = long = "rope_freqs.weight"
        original, attention = config.max_position_embeddings, attention or 1.0
    if short in about.tensors and long in about.tensors:
        scaling = {"rope_type": "longrope", "factor": config.max_position_embeddings / original}
        scaling |= {"short_factor": about.numbers(short), "long_factor": about.numbers(long)}
        scaling |= {"original_max_position_embeddings": original}
        scaling |= {"attention_factor": attention} if attention else {}
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": factor}
        scaling |= {"original_max_position_embeddings": original} if kind == "yarn" else {}
    elif kind not in (None, "none") or factor != 1.0:
        raise about.refuse(f"its rotations are scaled by {kind} with a factor of {factor}")
    if attention not in (None, 1.0) and scaling.get("rope_type") != "longrope":
        raise about.refuse(f"{about.kind}.rope.scaling.attn_factor = {attention}")
    _set_rotations(about, config, scaling)


def _set_rotations(about: GgufMetadata, config: PreTrainedConfig, scaling: dict) -> None:
    base = about.take("rope.freq_base_swa")
    rotations = config.rope_parameters
    if "full_attention" in (rotations or {}):  # each kind of layer has its own
        rotations["full_attention"] |= scaling
        if base:
            rotations["sliding_attention"]["rope_theta"] = base
    elif base:
        raise about.refuse("layers with a window have rotations of their own")
    elif scaling:
        config.rope_parameters = rotations | scaling
        if hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = scaling.get(
                "original_max_position_embeddings", config.max_position_embeddings
            )


@contextmanager
def _read_once() -> Iterator[None]:
    """Read a file's metadata and the table of tensor names once while this context lasts.

    transformers parses the file for the configuration, for the tokenizer and for the weights, and has gguf build the
    table again for each module of the model, which takes most of the time of a conversion.
    """
    import gguf

    reader, table = gguf.GGUFReader, gguf.get_tensor_name_map
    opened = cache(reader)
    gguf.GGUFReader = lambda path: opened(os.path.realpath(path))  # type: ignore[misc, assignment]
    gguf.get_tensor_name_map = cache(table)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, table  # type: ignore[misc]


@_read_once()
def convert_gguf(files: ModelFiles, folder: Path) -> None:
    """Write the model of a GGUF file as float32 safetensors, with its tokenizer.

    Raises:
        InputError: the file lacks weights of the model, or has metadata or tensors that cannot be converted.
    """
    name = str(files.gguf_file)
    path = Path(files.folder, name)
    config = gguf_config(path)
    _convert_tokenizer(files, folder)
    how: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        pair = AutoModelForCausalLM.from_pretrained(files.folder, gguf_file=name, config=config, **how)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a whole GGUF file ({error!r}); fetch or write it again") from error
    loaded, found = cast("tuple[PreTrainedModel, dict]", pair)
    check_all_weights_read(str(path), loaded, found)
    _check_tensors(GgufMetadata(path), loaded)
    # transformers does not save a model that counts as GGUF-quantised, so its weights are copied to a plain one.
    config = AutoConfig.for_model(**loaded.config.to_dict() | {"quantization_config": None})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)


def _convert_tokenizer(files: ModelFiles, folder: Path) -> None:
    """Write the tokenizer of a GGUF file, whatever tokenizer's files lie beside it."""
    about = GgufMetadata(Path(files.folder, str(files.gguf_file)))
    with tempfile.TemporaryDirectory() as alone:
        for name in (about.path.name, *BESIDE_GGUF):
            if (file := about.path.with_name(name)).is_file():
                Path(alone, name).symlink_to(file.absolute())
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=about.path.name)
        except Exception as error:  # the package tokenizers raises no narrower class
            said = str(error).replace(alone, str(about.path.parent))
            raise InputError(f"{about.path}: its tokenizer cannot be loaded ({said})") from error
    is_qwen = type(tokenizer).__name__.startswith("Qwen")
    if about.tokenizer.get("model") == "gpt2":
        if is_qwen:
            _check_qwen_split(about)
        else:
            _settle_split(about, tokenizer.backend_tokenizer)
        if about.tokenizer.get("pre") in LLAMA3_SPLIT and "add_bos_token" not in about.tokenizer:
            tokenizer.add_bos_token = True  # type: ignore[misc]  # it has a setter
    elif about.tokenizer.get("add_space_prefix") is False and about.kind not in GGUF_SENTENCEPIECE_BUILDERS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.save_pretrained(folder)
    if not is_qwen:  # another class than this one would split texts in its own way, whatever is in tokenizer.json
        file = folder / "tokenizer_config.json"
        fields = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "TokenizersBackend"}
        file.write_text(json.dumps(fields), encoding="utf-8")


def _check_qwen_split(about: GgufMetadata) -> None:
    """Raise `InputError` if a file says that texts are split in another way than Qwen's class of tokenizers does."""
    name = about.tokenizer.get("pre", "default")
    same = GGUF_PRE_TOKENIZER_SPLITS.get(name) == GGUF_PRE_TOKENIZER_SPLITS["qwen2"]
    if not same and name not in ("default", "qwen35", *QWEN2_SPLIT):
        raise about.refuse(f"its texts are split as {name} (tokenizer.ggml.pre)")


def _settle_split(about: GgufMetadata, tokenizer: Tokenizer) -> None:
    """Set how a byte-level tokenizer splits texts before its merges, where transformers does not know the name."""
    name = about.tokenizer.get("pre")
    if name in DIGITS_SPLIT:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif name in QWEN2_SPLIT:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    elif name is None and about.kind != "gpt2":
        raise about.refuse("its metadata do not say how texts are split (tokenizer.ggml.pre)")
    elif name not in (None, *GPT2_SPLIT, *GGUF_PRE_TOKENIZER_SPLITS):
        raise about.refuse(f"its texts are split as {name} (tokenizer.ggml.pre)")
    tokenizer.model.ignore_merges = name in LLAMA3_SPLIT


def _check_tensors(about: GgufMetadata, loaded: PreTrainedModel) -> None:
    """Raise `InputError` for tensors that transformers ignored because the model has no such weight."""
    if about.kind in GGUF_CONFIG_ARCHS:  # the loading report covers these
        return
    read = TENSOR_PROCESSORS.get(about.kind, TensorProcessor)(config=loaded.config.to_dict())
    if unknown := about.tensors - {*ROTATIONS} - get_gguf_hf_weights_map(loaded, read).keys():
        raise about.refuse(f"it has the tensors {list_weight_names(unknown)}")

"""Causal language models, from safetensors or GGUF, in the type the hardware is quickest in."""

from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sciqa.cache import cached_folder
from sciqa.device import half_precision, this_device
from sciqa.errors import InputError
from sciqa.hub import ModelFiles, find_model

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def load_causal(
    name: str, precision: Precision = "auto", threads: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal model in evaluation mode, on this worker's device, and its tokenizer.

    A GGUF file is turned into safetensors once per machine: de-quantising it takes ten times the time of
    loading them.

    Args:
        name: as `sciqa.hub.find_model` takes it.
        precision: `auto` is bfloat16 where the device has it, float16 on older GPUs, float32 on older CPUs.
        threads: CPU threads of this process; None leaves them as they are.

    Raises:
        InputError: the files hold no causal language model with a tokenizer.
    """
    if threads:
        torch.set_num_threads(threads)
    device = this_device()
    files = find_model(name)
    dtype = half_precision(device) if precision == "auto" else getattr(torch, precision)
    try:
        folder = files.folder
        if files.gguf_file:
            folder = cached_folder(f"gguf-{files.revision}", lambda folder: _convert_gguf(files, folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a causal language model with a tokenizer ({error})") from error
    return model.to(device).eval(), tokenizer


def _convert_gguf(files: ModelFiles, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": files.folder, "gguf_file": files.gguf_file}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The loaded model counts as GGUF-quantised, which transformers will not save; a plain one takes its weights.
    config = AutoConfig.for_model(**loaded.config.to_dict() | {"quantization_config": None})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)

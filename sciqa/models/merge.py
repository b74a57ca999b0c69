"""The `merge` step: adds an adapter's weights to those of its base model."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from sciqa.core import adapter_files, storage
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.lock import lock
from sciqa.core.model_files import ABOUT_TRAINED, model_file_family
from sciqa.core.summary import Summary
from sciqa.models.options import MergeOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merge(options: MergeOptions) -> Summary:
    """Write base model and adapter as one safetensors model that transformers loads.

    On a disk, the folder is written aside and then moved into place.

    Raises:
        InputError: there is no such adapter, it is for another base model, or base or adapter cannot be merged.
    """
    started = time.monotonic()
    require_extra("train", "sciqa merge")
    if said := adapter_files.check_adapter_files(options.adapter, options.model):
        console.print(said, markup=False, soft_wrap=True)
    if storage.path_exists(options.output):
        raise InputError(f"{options.output}: there already; delete it, or pass another --output")
    on_disk = "://" not in options.output
    parent = str(Path(options.output).parent) if on_disk else options.output.rpartition("/")[0]
    storage.check_storage_writable(parent)
    if adapter_files.adapter_virtual_tokens(options.adapter):
        raise InputError(f"{options.adapter}: soft prompts are not weights, so there is nothing to merge")
    with lock(options.output):
        model, tokenizer = _merged(options)
        with storage.storage_errors(options.output, "written"):
            weights = _write(options, model, tokenizer, parent if on_disk else None)
    made = f"{model.num_parameters():,} parameters, {weights / 1e6:,.0f} MB in safetensors"
    return Summary("merge", options.output, made, time.monotonic() - started)


def _merged(options: MergeOptions) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model with the adapter's weights added to its own, and the tokenizer with the adapter's template."""
    import torch

    from sciqa.models import adapter
    from sciqa.models.load import load_base
    from sciqa.models.weights import has_quantised_weights

    folder = adapter_files.local_adapter(options.adapter)
    model, tokenizer = load_base(options.model, model_file_family(options.model), torch.float32)
    if has_quantised_weights(model):
        raise InputError(
            f"{options.model}: its weights are stored in a few bits, to which an adapter's cannot be added; "
            "pass the model that it was made of as --model"
        )
    tokenizer.chat_template = adapter_files.adapter_files_chat_template(folder) or tokenizer.chat_template
    merged = adapter.adapter_merged_model(adapter.attach_adapter(model, folder))
    return merged.to(getattr(torch, options.precision)), tokenizer


def _write(
    options: MergeOptions, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", parent: str | None
) -> int:
    """Write a model in a folder of `parent`, move or copy it into place, and return the bytes of its weights."""
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=parent) as around:
        aside = Path(around, "model")
        try:
            model.save_pretrained(aside)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(aside)
        storage.write_json(str(aside / ABOUT_TRAINED), adapter_files.read_adapter_record(options.adapter))
        weights = sum(file.stat().st_size for file in aside.glob("*.safetensors"))
        if parent:
            aside.rename(options.output)
        else:
            storage.copy_files(str(aside), options.output)
    return weights

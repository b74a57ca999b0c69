"""The `merge` step: adds an adapter's weights to those of its base model."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sciqa.core import adapter_files, storage
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.extras import require
from sciqa.core.model_files import ABOUT_TRAINED, local_path, model_family
from sciqa.core.options import Summary
from sciqa.models.options import ModelOptions


@dataclass(kw_only=True)
class MergeOptions(ModelOptions):
    """Options of the `merge` step."""

    adapter: str = "sciqa-run/trained/reader"
    """Folder of the adapter."""
    output: str = "sciqa-run/merged"
    """Folder (or URI) for the merged model; it must not exist yet."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the written weights; they are added in float32."""

    def __post_init__(self) -> None:
        """Make local paths absolute."""
        super().__post_init__()
        self.adapter = local_path(self.adapter)


def merge(options: MergeOptions) -> Summary:
    """Write base model and adapter as one safetensors model that transformers loads; completely or not at all.

    Raises:
        InputError: there is no such adapter, it is for another base model, or base or adapter cannot be merged.
    """
    started = time.monotonic()
    require("train", "sciqa merge")
    if said := adapter_files.check_adapter_base(options.adapter, options.model):
        console.print(said, markup=False, soft_wrap=True)
    if storage.exists(options.output):
        raise InputError(f"{options.output}: there already; delete it, or pass another --output")
    storage.check_writable(options.output.rpartition("/")[0] or ".")
    import peft
    import torch

    from sciqa.models import adapter
    from sciqa.models.load import load_base
    from sciqa.models.weight_checks import has_quantised_weights

    folder = adapter_files.local_adapter(options.adapter)
    if peft.PeftConfig.from_pretrained(folder).is_prompt_learning:
        raise InputError(f"{options.adapter}: soft prompts are not weights, so there is nothing to merge")
    model, tokenizer = load_base(options.model, model_family(options.model), torch.float32)
    if has_quantised_weights(model):
        raise InputError(
            f"{options.model}: its weights are stored in a few bits, to which an adapter's cannot be added; "
            "pass the model that it was made of as --model"
        )
    tokenizer.chat_template = adapter_files.read_adapter_chat_template(folder) or tokenizer.chat_template
    merged = adapter.merge_adapter(adapter.attach_adapter(model, folder)).to(getattr(torch, options.precision))
    with tempfile.TemporaryDirectory() as aside:
        merged.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        weights = sum(file.stat().st_size for file in Path(aside).glob("*.safetensors"))
        storage.copy_files(aside, options.output)
    storage.write_json(storage.join(options.output, ABOUT_TRAINED), adapter_files.read_trained_record(options.adapter))
    made = f"{merged.num_parameters():,} parameters, {weights / 1e6:,.0f} MB in safetensors"
    return Summary("merge", options.output, made, time.monotonic() - started)

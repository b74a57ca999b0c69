"""The merge step: an adapter's weights added into those of its base model."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sciqa import storage
from sciqa.cluster import Summary
from sciqa.console import console
from sciqa.errors import InputError
from sciqa.hub import ABOUT_TRAINED, about_trained, check_base, local_adapter, local_path


@dataclass(kw_only=True)
class MergeOptions:
    """What is merged."""

    model: str = "SmolLM2-135M-Instruct"
    """Base model: a packaged one, a local folder, a .gguf file or a hub id."""
    adapter: str = "sciqa-run/trained/reader"
    """Folder of the adapter."""
    output: str = "sciqa-run/merged"
    """Folder (or URI) for the merged model; it must not be there yet."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which the weights are added and written."""

    def __post_init__(self) -> None:
        """Make paths that are here absolute."""
        self.model, self.adapter = local_path(self.model), local_path(self.adapter)


def merge(options: MergeOptions) -> Summary:
    """Write base and adapter as one model, in safetensors, that plain transformers loads; whole or not at all.

    Raises:
        InputError: no such adapter, one for another base, or of a kind that has no weights to add.
    """
    started = time.monotonic()
    if said := check_base(options.adapter, options.model):
        console.print(said, markup=False, soft_wrap=True)
    if storage.exists(options.output):
        raise InputError(f"{options.output}: there already; delete it, or pass another --output")
    storage.check_writable(options.output.rpartition("/")[0] or ".")
    import peft

    from sciqa.models.load import load_scorer

    if peft.PeftConfig.from_pretrained(local_adapter(options.adapter)).is_prompt_learning:
        raise InputError(f"{options.adapter}: soft prompts are not weights, so there is nothing to merge")
    scorer = load_scorer(options.model, precision=options.precision, adapter=options.adapter)
    merged = scorer.model
    with tempfile.TemporaryDirectory() as folder:
        merged.save_pretrained(folder)
        scorer.tokenizer.save_pretrained(folder)
        weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        storage.copy_files(folder, options.output)
    storage.write_json(storage.join(options.output, ABOUT_TRAINED), about_trained(options.adapter))
    made = f"{merged.num_parameters():,} parameters, {weights / 1e6:,.0f} MB in safetensors"
    return Summary("merge", options.output, made, time.monotonic() - started)

"""Load models as scorers: from safetensors or GGUF, optionally in NF4, with or without an adapter."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from sciqa.core.adapter_files import (
    adapter_files_chat_template,
    adapter_virtual_tokens,
    check_adapter_files,
    local_adapter,
)
from sciqa.core.cache import cached_folder
from sciqa.core.console import quiet_console
from sciqa.core.device import Device, check_device, device_half_precision
from sciqa.core.errors import InputError
from sciqa.core.model_files import (
    ADAPTER_CONFIG,
    Family,
    ModelFiles,
    find_model,
    model_file_family,
    read_model_file,
)
from sciqa.models import adapter as adapters
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.causal import CausalScorer
from sciqa.models.from_gguf import convert_gguf, gguf_config
from sciqa.models.multiple_choice import MultipleChoiceScorer
from sciqa.models.packing_check import stored_packing_check
from sciqa.models.prompt_format import Precision, PromptFormat, read_prompt_format
from sciqa.models.scorer import Scorer
from sciqa.models.seq2seq import Seq2SeqScorer
from sciqa.models.streamed_scorer import StreamedScorer
from sciqa.models.streamed_weights import StreamedWeightsSettings, check_streamed_weights
from sciqa.models.weights import (
    UNLOADABLE,
    check_all_weights_read,
    has_quantised_weights,
    list_weight_names,
    newly_initialised_weights,
    settle_tied_weights,
)

#: Version of converted GGUF models in the machine's cache; raise it when the result of the conversion changes.
GGUF_FORMAT = 5
SCORERS: dict[Family, type[Scorer]] = {
    "causal": CausalScorer,
    "multiple-choice": MultipleChoiceScorer,
    "seq2seq": Seq2SeqScorer,
}


def load_scorer(
    name: str,
    *,
    style: PromptFormat | None = None,
    precision: Precision = "auto",
    nf4: bool = False,
    adapter: str | None = None,
    threads: int | None = None,
    streaming: StreamedWeightsSettings | None = None,
    device: Device = "cpu",
    revision: str | None = None,
    adapter_revision: str | None = None,
) -> Scorer:
    """Return a model as a scorer in evaluation mode.

    Args:
        name: model name, as for `sciqa.core.model_files.find_model`.
        style: question format; by default that of the adapter or fine-tuned model, else `PromptFormat()`.
        precision: type of computation and weights; `auto` is bfloat16 where the device supports it, float16 on older
            GPUs, float32 on older CPUs.
        nf4: keep the linear layers in 4 bits (NF4 with double quantisation: Dettmers et al. 2023, QLoRA).
        adapter: folder of an adapter that `sciqa finetune` or peft wrote for this model.
        threads: CPU threads of this process; None leaves them as they are.
        streaming: how to read a causal model layer by layer in every pass, without an adapter; None loads it whole.
        device: device that computes.
        revision: hash of the model's files that the command has recorded.
        adapter_revision: the same of the adapter, by `adapter_hash`.

    Raises:
        InputError: the files hold no supported model with a tokenizer, model or adapter is another one than recorded,
            the adapter is for another model, or there is no such device.
    """
    if threads:
        torch.set_num_threads(threads)
    check_device(device)
    dtype = load_dtype(precision, device)
    folder = find_model(name, revision).folder
    if streaming:
        return _load_streamed(name, style, dtype, streaming, device).eval()
    family = model_file_family(name)
    model, tokenizer = load_base(name, family, dtype, nf4, device)
    if adapter:
        folder = local_adapter(adapter, adapter_revision)
        check_adapter_files(folder, name)
        tokenizer.chat_template = adapter_files_chat_template(folder) or tokenizer.chat_template
        attached = adapters.attach_adapter(model, folder)
        # Merging saves the adapter's matrix products in every batch. In 16 bits the sum would lose small changes, and
        # adapters of other kinds than LoRA are never merged, or not exactly.
        is_lora = attached.active_peft_config.peft_type == "LORA"
        exact = attached.dtype == torch.float32 and not has_quantised_weights(attached) and is_lora
        model = adapters.adapter_merged_model(attached) if exact else cast("PreTrainedModel", attached)
    elif new := newly_initialised_weights(model):
        raise InputError(
            f"{name}: its files hold no head that scores options ({list_weight_names(new)}); run `sciqa finetune` on "
            "it and pass what that makes as --adapter, or as --model"
        )
    style = style or read_prompt_format(folder) or PromptFormat()
    return scorer_of_loaded(name, family, model, tokenizer, style).eval()


def scorer_of_loaded(
    name: str,
    family: Family,
    model: PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    style: PromptFormat,
) -> Scorer:
    """Return a loaded model as a scorer, with the batch layout that a test once per machine has found."""
    scorer = SCORERS[family](model, tokenizer, style)
    load_batch_layout(scorer, name)
    return scorer


def load_batch_layout(scorer: Scorer, name: str, exchange: Callable[[BatchLayout | None], list] | None = None) -> None:
    """Set the batch layout that a test once per machine has found; see `stored_packing_check`."""
    scorer.batch_layout = stored_packing_check(scorer, find_model(name).revision, exchange)


def _load_streamed(
    name: str, style: PromptFormat | None, dtype: torch.dtype, streaming: StreamedWeightsSettings, device: Device
) -> StreamedScorer:
    _silence()
    folder = load_safetensors_folder(find_model(name))
    check_streamed_weights(folder)
    tokenizer = _load_tokenizer(name, "causal")
    try:
        style = style or read_prompt_format(find_model(name).folder) or PromptFormat()
        return StreamedScorer(folder, tokenizer, style, dtype, streaming, device)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a causal model with a tokenizer ({error})") from error


def load_without_weights(name: str, style: dict, adapter: str | None = None) -> Scorer:
    """Return the scorer of a model without its weights: it can encode questions but not score them.

    The style has fields of `PromptFormat` that override those the model or adapter was trained with; of an adapter,
    only the format and the number of virtual tokens are read.

    Raises:
        InputError: the model has no tokenizer, or no configuration of a supported model.
    """
    _silence()
    files, family = find_model(name), model_file_family(name)
    tokenizer = _load_tokenizer(name, family)
    model = load_on_meta_device(name, family, torch.bfloat16)
    folder = local_adapter(adapter) if adapter else files.folder
    if adapter:
        tokenizer.chat_template = adapter_files_chat_template(folder) or tokenizer.chat_template
    trained = read_prompt_format(folder)
    scorer = SCORERS[family](model, tokenizer, replace(trained or PromptFormat(), **style))
    scorer.limit = min(scorer.limit, scorer.positions - adapter_virtual_tokens(folder))
    return scorer


def load_dtype(precision: Precision, device: Device) -> torch.dtype:
    """Return the torch type of a precision on a device."""
    return device_half_precision(device) if precision == "auto" else getattr(torch, precision)


def load_base(
    name: str, family: Family, dtype: torch.dtype, nf4: bool = False, device: Device = "cpu"
) -> tuple[PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Return a base model in evaluation mode on a device, and its tokenizer.

    A GGUF file is converted to safetensors once per machine, because de-quantising it takes ten times as long as
    loading safetensors.
    """
    _silence()
    how = {"quantization_config": nf4_load_config(dtype), "device_map": {"": device}} if nf4 else {}
    tokenizer = _load_tokenizer(name, family)
    model = _load(name, load_safetensors_folder(find_model(name)), family, dtype, **how)
    return (model if nf4 else model.to(device)).eval(), tokenizer  # type: ignore[arg-type]  # its `to` is wrapped


def _load_tokenizer(name: str, family: Family) -> transformers.PreTrainedTokenizerBase:
    """Return a model's tokenizer; a GGUF file is converted first."""
    folder = load_safetensors_folder(find_model(name))
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the package tokenizers raises no narrower class
        raise InputError(f"{name}: not a {family} model with a tokenizer ({error})") from error


def _load(name: str, folder: str, family: Family, dtype: torch.dtype, **how: object) -> PreTrainedModel:
    """Load a model, and check that it has the same weights as its files."""
    auto = getattr(transformers, SCORERS[family].auto_class)
    how |= {"trust_remote_code": False, "use_safetensors": True, "dtype": dtype, "output_loading_info": True}
    try:
        model, found = auto.from_pretrained(folder, ignore_mismatched_sizes=True, **how)  # checked below
    except (*UNLOADABLE, SafetensorError) as error:
        raise InputError(f"{name}: not a whole {family} model, or none that can be loaded here ({error})") from error
    model.new_weights = check_all_weights_read(name, model, found)
    settle_tied_weights(model)
    return model


def load_on_meta_device(name: str, family: Family, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model on PyTorch's meta device, checked against its files but without the values of its weights.

    For GGUF files and quantised weights, only the configuration is read.

    Raises:
        InputError: as in `load_base`.
    """
    _silence()
    files = find_model(name)
    if files.gguf_file or "quantization_config" in read_model_file(name, "config.json"):
        return load_empty_model(files.folder, files.gguf_file, family, dtype)
    return _load(name, load_safetensors_folder(files), family, dtype, device_map="meta")


def _silence() -> None:
    quiet_console("transformers", "bitsandbytes")
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # handled or refused here


def load_empty_model(folder: str | Path, gguf_file: str | None, family: Family, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model without weights, on PyTorch's meta device, from its configuration alone.

    Raises:
        InputError: transformers cannot read the configuration, or has no model of that family for it.
    """
    try:
        if gguf_file:
            config = gguf_config(Path(folder, gguf_file))
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return getattr(transformers, SCORERS[family].auto_class).from_config(config, dtype=dtype)
    except UNLOADABLE as error:
        raise InputError(f"{folder}: not the configuration of a {family} model ({error})") from error


def nf4_load_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return QLoRA's quantisation: NF4, double quantisation, stored in the compute type so that ZeRO-3 can shard it."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def load_safetensors_folder(files: ModelFiles) -> str:
    """Return a folder with a model's weights as safetensors; a GGUF file is converted into the cache first.

    Raises:
        InputError: the folder also holds an adapter, for which transformers would load another base model.
    """
    if Path(files.folder, ADAPTER_CONFIG).exists():
        raise InputError(
            f"{files.folder}: holds an adapter ({ADAPTER_CONFIG}) beside a model, and which is meant cannot be told; "
            "move one of them to a folder of its own"
        )
    if not files.gguf_file:
        return files.folder
    return str(cached_folder(f"gguf-{GGUF_FORMAT}-{files.revision}", lambda folder: convert_gguf(files, folder)))

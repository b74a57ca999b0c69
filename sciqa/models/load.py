"""From names to a scorer: base model from safetensors or GGUF, in NF4 if asked, with its adapter attached."""

from dataclasses import replace
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from sciqa.cache import cached_folder
from sciqa.console import quiet
from sciqa.device import Device, check_device, half_precision
from sciqa.errors import InputError
from sciqa.hub import Family, ModelFiles, check_base, find_model, local_adapter, model_family
from sciqa.models import adapter as adapters
from sciqa.models.causal import CausalScorer
from sciqa.models.format import Format, Precision
from sciqa.models.multiple_choice import MultipleChoiceScorer
from sciqa.models.scorer import Scorer
from sciqa.models.seq2seq import Seq2SeqScorer
from sciqa.models.stored import Streaming, check_streamed
from sciqa.models.streamed import StreamedScorer

#: Of the models converted from GGUF in the machine's cache; raised with every change of what converting makes.
GGUF_FORMAT = 2
SCORERS: dict[Family, type[Scorer]] = {
    "causal": CausalScorer,
    "multiple-choice": MultipleChoiceScorer,
    "seq2seq": Seq2SeqScorer,
}


def load_scorer(
    name: str,
    *,
    style: Format | None = None,
    precision: Precision = "auto",
    nf4: bool = False,
    adapter: str | None = None,
    threads: int | None = None,
    streaming: Streaming | None = None,
    device: Device = "cpu",
) -> Scorer:
    """Return a model as a scorer in evaluation mode.

    Args:
        name: as `sciqa.hub.find_model` takes it.
        style: how questions are put to it; by default that of the adapter or fine-tuned model, else `Format()`.
        precision: type of computing and of weights; `auto` is bfloat16 where the device has it, float16 on older
            GPUs, float32 on older CPUs.
        nf4: keep the linear layers in 4 bits (NF4 with double quantisation: Dettmers et al. 2023, QLoRA).
        adapter: folder of an adapter that `sciqa finetune` or peft wrote for this model.
        threads: CPU threads of this process; None leaves them as they are.
        streaming: read a causal model, without an adapter, layer by layer in every pass, and how.
        device: what it computes on.

    Raises:
        InputError: the files hold no such model with a tokenizer, the adapter is for another model, or there is no such
            device.
    """
    if threads:
        torch.set_num_threads(threads)
    check_device(device)
    dtype = as_dtype(precision, device)
    if streaming:
        return _load_streamed(name, style, dtype, streaming, device).eval()
    family = model_family(name)
    model, tokenizer = load_base(name, family, dtype, nf4, device)
    folder = find_model(name).folder
    if adapter:
        folder = local_adapter(adapter)
        check_base(folder, name)
        model = adapters.attach(model, folder)
        if not nf4 and not model.active_peft_config.is_prompt_learning:
            model = model.merge_and_unload()  # so that no batch pays for the adapter's own products
    style = style or adapters.stored_style(folder) or Format()
    return SCORERS[family](model, tokenizer, style).eval()


def _load_streamed(
    name: str, style: Format | None, dtype: torch.dtype, streaming: Streaming, device: Device
) -> StreamedScorer:
    _silence()
    folder = plain_folder(find_model(name))
    check_streamed(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        style = style or adapters.stored_style(find_model(name).folder) or Format()
        return StreamedScorer(folder, tokenizer, style, dtype, streaming, device)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a causal model with a tokenizer ({error})") from error


def load_encoder(name: str, style: dict) -> CausalScorer:
    """Return a causal model's scorer without its weights: it encodes questions and scores none.

    Args:
        name: of a model in safetensors, as `sciqa.hub.find_model` takes it.
        style: fields of `Format` that differ from what the model was trained with.

    Raises:
        InputError: there is no tokenizer with it, or no configuration of such a model.
    """
    _silence()
    folder = find_model(name).folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a causal model with a tokenizer ({error})") from error
    model = empty_model(folder, None, "causal", torch.bfloat16)
    return CausalScorer(model, tokenizer, replace(adapters.stored_style(folder) or Format(), **style))


def as_dtype(precision: Precision, device: Device) -> torch.dtype:
    """Return the torch type of a precision on a device."""
    return half_precision(device) if precision == "auto" else getattr(torch, precision)


def load_base(
    name: str, family: Family, dtype: torch.dtype, nf4: bool = False, device: Device = "cpu"
) -> tuple[PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Return a base model in evaluation mode on a device, and its tokenizer.

    A GGUF file is turned into safetensors once per machine: de-quantising it takes ten times the time of
    loading them.
    """
    _silence()
    files = find_model(name)
    how = {}
    if nf4:
        how = {"quantization_config": nf4_config(dtype), "device_map": {"": device}}
    try:
        folder = plain_folder(files)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        auto = getattr(transformers, SCORERS[family].auto_class)
        model = auto.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=dtype, **how)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{name}: not a whole {family} model with a tokenizer ({error})") from error
    return (model if nf4 else model.to(device)).eval(), tokenizer


def _silence() -> None:
    quiet("transformers", "bitsandbytes")
    transformers.utils.logging.disable_progress_bar()


def empty_model(folder: str | Path, gguf_file: str | None, family: Family, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model without weights, on PyTorch's meta device, from its configuration alone.

    Raises:
        InputError: a configuration that transformers cannot read, or of no model of that family.
    """
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        with torch.device("meta"):
            return getattr(transformers, SCORERS[family].auto_class).from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not the configuration of a {family} model ({error})") from error


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return QLoRA's quantisation: NF4, double quantisation; stored as the compute type, which ZeRO-3 can shard."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def plain_folder(files: ModelFiles) -> str:
    """Return a folder with a model's weights as safetensors, converted from GGUF in the cache where need be."""
    if not files.gguf_file:
        return files.folder
    return str(cached_folder(f"gguf-{GGUF_FORMAT}-{files.revision}", lambda folder: _convert_gguf(files, folder)))


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

"""Tiny random models of the real classes, in folders that `--model` takes, with the packaged models' tokenizers."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers

from sciqa.core.model_files import find_model
from sciqa.models.load import load_safetensors_folder

DECODER = {  # sizes that bitsandbytes' blocks of 64 weights divide
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,  # at 0.02 so small a model says the same of everything
}
FAMILIES = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig, DECODER),
    "mistral": ("MistralForCausalLM", transformers.MistralConfig, DECODER),
    "phi3": ("Phi3ForCausalLM", transformers.Phi3Config, DECODER),
    "bert": ("BertModel", transformers.BertConfig, ENCODER),
    "deberta-v2": (
        "DebertaV2Model",
        transformers.DebertaV2Config,
        ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        transformers.T5Config,
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
}
CAUSAL = ("llama", "mistral", "phi3")
ENCODERS = ("bert", "deberta-v2")


def tiny_model(family: str, **config: object) -> transformers.PreTrainedModel:
    """Return a model with random weights, the same in every call, in evaluation mode."""
    torch.manual_seed(0)
    name, kind, fields = FAMILIES[family]
    return getattr(transformers, name)(kind(**{"vocab_size": 200} | fields | config)).eval()


def tiny_tokenizer(family: str) -> transformers.PreTrainedTokenizerBase:
    """Return the packaged tokenizer that a family is given."""
    name = "all-MiniLM-L6-v2" if family in ENCODERS else "SmolLM2-135M-Instruct"
    return transformers.AutoTokenizer.from_pretrained(load_safetensors_folder(find_model(name)))


def tiny_folder(folder: Path, family: str, **config: object) -> str:
    """Write a tiny model and its tokenizer, and return the folder."""
    tokenizer = tiny_tokenizer(family)
    tiny_model(family, vocab_size=len(tokenizer), **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def mostly_slow(cases: Iterable, *quick: object) -> list:
    """Return the cases of a parametrised test; all but the quick ones are marked slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]

"""Tiny random embedding models of the real classes, in folders as sentence-transformers saves them."""

from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from sciqa.core.model_files import find_model

MINILM = "all-MiniLM-L6-v2"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = SIZES | {"initializer_range": 0.2, "max_position_embeddings": 96, "pad_token_id": 0}
DECODER = SIZES | {"initializer_range": 0.2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
FAMILIES = {
    "bert": ("BertModel", transformers.BertConfig, ENCODER),
    "mpnet": ("MPNetModel", transformers.MPNetConfig, ENCODER),
    "roberta": ("RobertaModel", transformers.RobertaConfig, ENCODER),
    "distilbert": (
        "DistilBertModel",
        transformers.DistilBertConfig,
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 96},
    ),
    "modernbert": (
        "ModernBertModel",
        transformers.ModernBertConfig,
        ENCODER
        | {"local_attention": 8, "global_attn_every_n_layers": 2, "max_position_embeddings": 900}
        | {"cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102},
    ),
    "qwen3": ("Qwen3Model", transformers.Qwen3Config, DECODER),
    "mistral": ("MistralModel", transformers.MistralConfig, DECODER | {"sliding_window": 16}),
    "gemma3": (
        "Gemma3TextModel",
        transformers.Gemma3TextConfig,
        DECODER | {"sliding_window": 16, "use_bidirectional_attention": True},
    ),
    "t5": (
        "T5EncoderModel",
        transformers.T5Config,
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
}


def tiny_tokenizer(**changes: object) -> transformers.PreTrainedTokenizerBase:
    """Return the packaged embedding model's tokenizer with some attributes changed."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_model(MINILM).folder)
    tokenizer.model_max_length = 1 << 20  # what bounds a text is the model
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def tiny_embedder(
    folder: Path,
    family: str = "bert",
    pooling: str = "mean",
    *,
    include_prompt: bool = True,
    more: tuple[torch.nn.Module, ...] = (),
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    edit: object = None,
    **config: object,
) -> str:
    """Write a model with random weights, the same in every call, and return its folder.

    Args:
        folder: to write to.
        family: in `FAMILIES`.
        pooling: mode of it.
        include_prompt: whether a prompt is pooled too.
        more: modules behind the pooling.
        tokenizer: another than `tiny_tokenizer()`.
        edit: function that is given the transformers model before it is saved.
        config: fields of the transformers model's configuration.
    """
    torch.manual_seed(0)
    name, kind, fields = FAMILIES[family]
    tokenizer = tokenizer or tiny_tokenizer()
    model = getattr(transformers, name)(kind(**{"vocab_size": len(tokenizer)} | fields | config)).eval()
    if edit:
        edit(model)
    plain = folder / "plain"
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain))
    size = transformer.get_embedding_dimension()
    pooled = Pooling(size, pooling_mode=pooling, include_prompt=include_prompt)
    SentenceTransformer(modules=[transformer, pooled, *more], device="cpu").save(str(folder / "model"))
    return str(folder / "model")

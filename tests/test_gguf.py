"""GGUF files: a model converted from one scores as the model it was made of, or is refused by what it cannot be."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tiny import DECODER
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.models.load import load_base, load_scorer
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import score_options
from sciqa.models.streamed_weights import StreamedWeightsSettings

#: Of bytes alone, so that files are small.
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120t", "<|endoftext|>"]
MERGES = [("\u0120", "t")]


def small_tokenizer():
    """A byte-level tokenizer, as GPT-2's and SmolLM2's are."""
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(TOKENS)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(TOKENS[-1], special=True, normalized=False)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=TOKENS[-1], eos_token=TOKENS[-1], unk_token=TOKENS[-1]
    )


def score(folder, **arguments):
    """Of two questions, all options, without context."""
    scorer = load_scorer(str(folder), precision="float32", style=PromptFormat(), **arguments)
    encoded = [scorer.encode(question, "") for question in read_exam("direct-validation").to_pylist()[:2]]
    return np.concatenate(score_options(scorer, encoded))


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LONG |= {"short_factor": [1.0, 1.5, 2, 3, 4, 5, 6, 7], "long_factor": [2.0, 3, 4, 5, 6, 7, 8, 9]}


def write_gguf(path, model, values=(), tensors=(), leave_out=(), split="gpt-2", begins=None):
    """Write a decoder as llama.cpp's converter does: its names, rows of queries and keys in its order.

    Args:
        path: of the file.
        model: of transformers.
        values: of the metadata, further ones by their names after the architecture.
        tensors: further ones by their names.
        leave_out: names of tensors that are left out.
        split: name of how texts are split before merges, or None.
        begins: whether a text gets a space before it, of a SentencePiece vocabulary; None for bytes.
    """
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in dict(values).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"{kind}.{name}", value)
    writer.add_tokenizer_model("gpt2" if begins is None else "llama")
    if begins is not None:
        writer.add_add_space_prefix(begins)
        writer.add_token_scores([0.0] * len(TOKENS))
    if split:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(len(TOKENS) - 1)
    arch = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        written = f"{names.get_name(stem)}.{end}"
        for part, heads in (("attn_q.", config.num_attention_heads), ("attn_k.", config.num_key_value_heads)):
            if kind == "llama" and part in written:
                weight = weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        if written not in leave_out and not (written == "output.weight" and config.tie_word_embeddings):
            writer.add_tensor(written, weight.contiguous().numpy())
    for name, weight in dict(tensors).items():
        writer.add_tensor(name, np.array(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def decoder(folder, kind="Llama", **config):
    """Write a tiny decoder with its tokenizer, and return it."""
    torch.manual_seed(0)
    fields = DECODER | {"vocab_size": len(TOKENS), "max_position_embeddings": 1024, "initializer_range": 0.2}
    settings = getattr(transformers, f"{kind}Config")(**fields | config)
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return model


def factors(model):
    """What llama.cpp stores of Llama 3's rotations: the usual inverse frequencies over those of the model."""
    usual = transformers.LlamaConfig(**DECODER, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    return (LlamaRotaryEmbedding(usual).inv_freq / model.model.rotary_emb.inv_freq).tolist()


ROTATED = {
    "plain": ("Llama", {"tie_word_embeddings": True}, lambda model: ({"rope.dimension_count": 16}, {})),
    "llama3": ("Llama", {"rope_parameters": LLAMA_3}, lambda model: ({}, {"rope_freqs.weight": factors(model)})),
    "linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        lambda model: ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    ),
    "yarn": (
        "Qwen2",
        {"rope_parameters": YARN},
        lambda model: (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            {},
        ),
    ),
    "longrope": (
        "Phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 32},
        lambda model: (
            {"rope.dimension_count": 16, "rope.scaling.original_context_length": 32},
            {"rope_factors_short.weight": LONG["short_factor"], "rope_factors_long.weight": LONG["long_factor"]},
        ),
    ),
    "window": ("Phi3", {"sliding_window": 24}, lambda model: ({"attention.sliding_window": 24}, {})),
    "partial": (
        "Phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        lambda model: ({"rope.dimension_count": 8}, {}),
    ),
    "long heads": (
        "Qwen3",
        {"head_dim": 32},
        lambda model: ({"attention.key_length": 32, "attention.value_length": 32}, {}),
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Converted files of these models need not stay."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", ROTATED)
def test_a_gguf_file_scores_as_the_model_that_it_was_made_of(tmp_path, case):
    kind, config, more = ROTATED[case]
    model = decoder(tmp_path / "model", kind, **config)
    values, tensors = more(model)
    split = "qwen2" if kind.startswith("Qwen") else "gpt-2"
    path = write_gguf(tmp_path / "model.gguf", model, values, tensors, split=split)
    np.testing.assert_allclose(score(path), score(tmp_path / "model"), atol=1e-4)
    about = load_base(path, "causal", torch.float32)[0].config
    assert getattr(about, "sliding_window", None) == config.get("sliding_window")
    if case == "llama3":
        np.testing.assert_allclose(
            score(path, streaming=StreamedWeightsSettings()), score(tmp_path / "model"), atol=1e-4
        )
        plain = write_gguf(tmp_path / "plain.gguf", model)
        assert np.abs(score(plain) - score(tmp_path / "model")).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {"rope.scaling.type": "longrope", "rope.scaling.factor": 8.0}}, "scaled by longrope"),
        ({"values": {"attention.sliding_window": 24}}, "a window of 24 tokens"),
        ({"values": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping = 30.0"),
        ({"values": {"logit_scale": 0.5}}, "logit_scale = 0.5"),
        ({"values": {"rope.dimension_count": 8, "attention.key_length": 16}}, "8 of the 16 dimensions"),
        ({"tensors": {"blk.0.attn_q.bias": [1.0] * 64}}, "tensors blk.0.attn_q.bias"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, "no weights .*layers.1.mlp.up_proj"),
        ({"split": "deepseek-coder"}, r"split as deepseek-coder \(tokenizer.ggml.pre\), which is not converted"),
        ({"split": None}, "do not say how texts are split"),
    ],
    ids=["scaling", "window", "cap", "scale", "partly rotated", "bias", "no layer", "split", "no split"],
)
def test_what_a_gguf_file_says_and_a_model_cannot_be_is_refused(tmp_path, change, message):
    path = write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model"), **change)
    with pytest.raises(InputError, match=message):
        score(path)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


#: Tokens of a text with three spaces, two digits and a word of the vocabulary that no merge makes.
SPLIT = {
    "gpt-2": ["a", "Ġ", "Ġ", "Ġ", "12", "\u0120", "w", "o"],
    "smollm": ["a", "Ġ", "Ġ", "Ġ", "1", "2", "\u0120", "w", "o"],
    "stablelm2": ["a", "Ġ", "Ġ", "Ġ", "1", "2", "\u0120", "w", "o"],
    "llama-bpe": [TOKENS[-1], "a", "Ġ", "Ġ", "Ġ", "12", "\u0120wo"],
}
SPLIT |= {"mellum": SPLIT["gpt-2"], "minerva-7b": SPLIT["smollm"], "solar-open": SPLIT["stablelm2"]}
SPLIT |= {"lfm2": SPLIT["llama-bpe"], "falcon3": SPLIT["llama-bpe"]}


@pytest.fixture
def more_tokens(monkeypatch):
    """A vocabulary with two digits as a token, and a word that no merge makes."""
    monkeypatch.setattr("test_gguf.TOKENS", [*TOKENS[:-1], "12", "\u0120wo", TOKENS[-1]])
    monkeypatch.setattr("test_gguf.MERGES", [*MERGES, ("1", "2")])


def split_by(path):
    tokenizer = load_base(path, "causal", torch.float32)[1]
    return tokenizer.convert_ids_to_tokens(tokenizer("a   12 wo")["input_ids"])


@pytest.mark.parametrize("split", SPLIT)
def test_texts_are_split_as_the_file_says(tmp_path, more_tokens, split):
    path = write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model"), split=split)
    assert split_by(path) == SPLIT[split]


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer"])
@pytest.mark.parametrize("split", ["smollm", "llama-bpe"])
def test_no_class_beside_a_file_splits_its_texts_otherwise(tmp_path, more_tokens, split, name):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    path = write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model"), split=split)
    assert split_by(path) == SPLIT[split]


@pytest.mark.parametrize("case", ["yarn", "long heads"])
def test_a_qwen_file_is_split_as_its_class_does_or_refused(tmp_path, more_tokens, case):
    kind, config, more = ROTATED[case]
    model = decoder(tmp_path / "model", kind, **config)
    for split in (None, "qwen2"):  # files of before May 2024 do not say it
        path = write_gguf(tmp_path / f"{split}.gguf", model, *more(model), split=split)
        assert split_by(path) == SPLIT["stablelm2"]
    with pytest.raises(InputError, match="split as smollm"):
        split_by(write_gguf(tmp_path / "other.gguf", model, *more(model), split="smollm"))


@pytest.mark.parametrize("begins", [True, False])
def test_a_space_before_a_text_is_put_there_if_the_file_says_so(tmp_path, monkeypatch, begins):
    monkeypatch.setattr("test_gguf.TOKENS", ["\u2581", "a", "\u2581a", "<s>"])
    monkeypatch.setattr("test_gguf.MERGES", [("\u2581", "a")])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    path = write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model"), split="default", begins=begins)
    tokenizer = load_base(path, "causal", torch.float32)[1]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a a", add_special_tokens=False)["input_ids"])
    assert tokens == ["\u2581a" if begins else "a", "\u2581a"]


def test_a_gguf_file_that_is_cut_is_told_in_one_line(tmp_path):
    path = Path(write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model")))
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(InputError, match=r"model.gguf: not a model that transformers reads from GGUF \(cannot"):
        score(path)


def test_the_tokenizer_of_a_gguf_file_is_its_own_whatever_lies_beside_it(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model"))
    other = Tokenizer(models.WordLevel({"t": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_allclose(score(path), score(tmp_path / "model"), atol=1e-4)

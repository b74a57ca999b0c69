"""The proof at load: options score as their sequences do alone, whatever a model is made of, or it is refused."""

import numpy as np
import pytest
import torch
import transformers
from test_scorers import one_by_one, random_questions
from tiny import DECODER, tiny_folder, tiny_model

from sciqa.core.errors import InputError
from sciqa.models import adapter
from sciqa.models.attention_limits import attention_window
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_base, load_scorer
from sciqa.models.packing_check import packing_check_copies
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer, score_options

SIZES = DECODER | {"vocab_size": 200, "initializer_range": 0.2}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
    "factor": 4.0,
}
MODELS = {
    "llama": ("Llama", SIZES, "sdpa", "packed"),
    "llama-eager": ("Llama", SIZES, "eager", "packed"),
    "gemma2-eager": ("Gemma2", SIZES | {"head_dim": 16, "sliding_window": 24}, "eager", "packed"),
    "mistral-window": ("Mistral", SIZES | {"sliding_window": 32}, "sdpa", "packed"),
    "gpt-neo-window": (
        "GPTNeo",
        {"vocab_size": 200, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["local"], 2]]}
        | {"window_size": 100, "max_position_embeddings": 120, "initializer_range": 0.2},
        None,
        "packed",
    ),
    "phi3-longrope": (
        "Phi3",
        SIZES | {"max_position_embeddings": 256, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
        "sdpa",
        "packed",
    ),
    "dynamic-rope": (
        "Llama",
        SIZES | {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
        "sdpa",
        "packed",
    ),
    "lfm2": ("Lfm2", SIZES | {"layer_types": ["conv", "full_attention"]}, "sdpa", None),
    "mamba2": (
        "Mamba2",
        {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8}
        | {"n_groups": 2, "chunk_size": 16, "initializer_range": 0.2},
        None,
        "rows",
    ),
    "bloom": ("Bloom", {"vocab_size": 200, "hidden_size": 64, "n_layer": 2, "n_head": 4}, None, "cached prompt"),
}


def random_model(kind, sizes, attention=None):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    how = {"attn_implementation": attention} if attention else {}
    return transformers.AutoModelForCausalLM.from_config(config, **how).eval()


def long_and_short():
    """Questions of which some share a beginning, some are long, and one has options on both sides of 64 tokens."""
    rng = np.random.default_rng(5)
    shared = rng.integers(10, 200, 70).tolist()
    questions = random_questions(6)
    questions += [
        EncodedForScorer(shared + question.prompt[:20], question.options, question.divisors)
        for question in random_questions(3, 1)
    ]
    prompt = rng.integers(10, 200, 62).tolist()
    return [*questions, EncodedForScorer(prompt, [[11], [12, 13, 14, 15], [16, 17]], [1.0] * 3)]


@pytest.mark.parametrize("name", MODELS)
def test_options_score_as_their_sequences_alone(name):
    kind, sizes, attention, layout = MODELS[name]
    scorer = CausalScorer(random_model(kind, sizes, attention), None, PromptFormat())
    questions = long_and_short()
    expected = [  # by a new model each, since a dynamic rotary embedding keeps what a long sequence made of it
        [one_by_one(random_model(kind, sizes, attention), question.only(n))[0] for n in range(len(question.options))]
        for question in questions
    ]
    for budget in (1, 400, 100_000):
        for found, right in zip(score_options(scorer, questions, budget), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-4)
    assert layout in (None, scorer.layout)
    assert bool(scorer.note) == (scorer.layout != "packed")
    with torch.enable_grad():  # what the trainer differentiates is the same
        trained = torch.cat(scorer(questions)).detach().numpy()
    np.testing.assert_allclose(trained, np.concatenate(expected), atol=1e-4)


def test_models_that_see_later_tokens_are_refused():
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    scorer = CausalScorer(random_model("Bert", sizes | {"initializer_range": 0.2}), None, PromptFormat())
    with pytest.raises(InputError, match="no causal language model"):
        score_options(scorer, random_questions(2))


def test_scores_that_are_not_numbers_are_refused():
    model = tiny_model("llama")
    model.model.norm.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match="not numbers"):
        score_options(CausalScorer(model, None, PromptFormat()), random_questions(2))


def test_a_model_in_16_bits_is_proved_in_32(monkeypatch):
    model = random_model("Lfm2", SIZES | {"layer_types": ["conv", "full_attention"]}).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scorer = CausalScorer(model, None, PromptFormat())
    assert scorer.layout != "packed"
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert CausalScorer(tiny_model("llama").bfloat16(), None, PromptFormat()).layout == "packed"


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_soft_prompt_in_16_bits_is_proved_and_no_weight_changes(tied):
    """Peft names the embedding a second time, and its head may be the same weight."""
    model = tiny_model("llama", tie_word_embeddings=tied).bfloat16()
    model = adapter.add_trainable_adapter(model, "causal", "prompt-tuning", {"num_virtual_tokens": 4})
    before = {name: (id(weight), weight.dtype) for name, weight in model.named_parameters(remove_duplicate=False)}
    scorer = CausalScorer(model, None, PromptFormat())
    assert scorer.layout == "packed"
    after = {name: (id(weight), weight.dtype) for name, weight in model.named_parameters(remove_duplicate=False)}
    assert after == before
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_the_proof_is_kept_and_follows_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, proved = tiny_folder(tmp_path / "model", "llama"), []
    prove = CausalScorer.prove
    monkeypatch.setattr(CausalScorer, "prove", lambda scorer: proved.append(scorer) or prove(scorer))
    for _ in range(2):
        assert load_scorer(folder, precision="float32").batch_layout.layout == "packed"
    assert len(proved) == 1
    load_scorer(folder, precision="bfloat16")
    assert len(proved) == 2
    tiny_folder(tmp_path / "model", "llama", num_hidden_layers=3)
    load_scorer(folder, precision="float32")
    assert len(proved) == 3


def test_windows_are_read_from_configurations():
    assert attention_window(transformers.LlamaConfig()) > 1 << 40
    assert attention_window(transformers.MistralConfig(sliding_window=128)) == 128
    assert attention_window(transformers.Qwen2Config(use_sliding_window=False, sliding_window=64)) > 1 << 40
    assert attention_window(transformers.GPTNeoConfig()) == 256


def test_a_model_in_4_bits_is_proved_in_float32(tmp_path):
    """In bfloat16, rounding alone makes packed and single rows differ by more than the test allows."""
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "initializer_range": 0.5}
    model, tokenizer = load_base(tiny_folder(tmp_path / "llama", "llama", **size), "causal", torch.bfloat16, nf4=True)
    layers = [module for module in model.modules() if hasattr(getattr(module, "weight", None), "quant_state")]
    before = [(layer.compute_dtype, layer.support_avx512bf16_for_cpu) for layer in layers]
    assert CausalScorer(model, tokenizer, PromptFormat()).prove().layout == "packed"
    assert [(layer.compute_dtype, layer.support_avx512bf16_for_cpu) for layer in layers] == before
    assert {dtype for dtype, _ in before} == {torch.bfloat16}


def test_a_sharded_model_is_proved_in_float32(tmp_path):
    """Without float32 copies, bfloat16 would make packed and single rows differ by more than the test allows."""
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "initializer_range": 0.5}
    model, tokenizer = load_base(tiny_folder(tmp_path / "llama", "llama", **size), "causal", torch.bfloat16)
    for parameter in model.parameters():
        parameter.ds_id = 0  # as DeepSpeed marks what it shards
    scorer = CausalScorer(model, tokenizer, PromptFormat())
    assert packing_check_copies(scorer) is None
    assert scorer.prove().layout == "packed"
    assert model(torch.arange(9)[None]).logits.dtype == torch.bfloat16

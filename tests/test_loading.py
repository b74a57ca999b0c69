"""Loading: a model is made of what its files hold, all of it and nothing else, or there is an error that names it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import ENCODER, mostly_slow, tiny_folder, tiny_tokenizer

from sciqa.core.adapter_files import describe_adapter_files
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import model_file_family, model_file_tokenizer
from sciqa.exam import read_exam
from sciqa.models import adapter
from sciqa.models.load import (
    SCORERS,
    load_base,
    load_on_meta_device,
    load_scorer,
    load_without_weights,
    scorer_of_loaded,
)
from sciqa.models.merge import merge
from sciqa.models.options import MergeOptions
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import score_options
from sciqa.models.streamed_weights import StreamedWeightsSettings
from sciqa.training.sharding import gather_sharded

WEIGHTS, CONFIG, ADAPTER = "model.safetensors", "config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny models: a decoder, one with tied weights, an encoder without head, an encoder-decoder."""
    root = tmp_path_factory.mktemp("models")
    made = {family: tiny_folder(root / family, family) for family in ("llama", "bert", "t5")}
    return made | {"tied": tiny_folder(root / "tied", "llama", tie_word_embeddings=True)}


def scores(scorer):
    """Of two questions, all options."""
    questions = read_exam("direct-validation").to_pylist()[:2]
    encoded = [scorer.encode(question, "Some context.") for question in questions]
    return np.concatenate(score_options(scorer.eval(), encoded))


def score(folder, **arguments):
    return scores(load_scorer(str(folder), precision="float32", style=PromptFormat(), **arguments))


def changed(folder, to, change, file=WEIGHTS):
    """Copy a model with other weights, by their names, and return the new folder."""
    shutil.copytree(folder, to)
    weights = load_file(to / file)
    save_file(change(weights), to / file, metadata={"format": "pt"})
    return str(to)


def configured(folder, to, **config):
    """Copy a model with another configuration."""
    shutil.copytree(folder, to)
    path = Path(to, CONFIG)
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(to)


BROKEN = {
    "no layer": (lambda w: {k: t for k, t in w.items() if ".layers.1." not in k}, "no weights .*layers.1.* and 6 more"),
    "no head": (lambda w: {k: t for k, t in w.items() if k != "lm_head.weight"}, "no weights .*lm_head.weight"),
    "wrapped": (lambda w: {f"_orig_mod.{k}": t for k, t in w.items()}, "take '_orig_mod.' from the beginning"),
    "bias": (lambda w: w | {"model.layers.0.mlp.up_proj.bias": torch.ones(128)}, "has not: model.*up_proj.bias"),
    "more layers": (lambda w: w | {k.replace("s.1.", "s.2."): t + 1 for k, t in w.items()}, r"has not: .*layers\.2"),
    "shape": (lambda w: w | {"model.norm.weight": torch.ones(32)}, r"norm.weight \(32, 64 expected\)"),
}


@pytest.mark.parametrize("streaming", [None, StreamedWeightsSettings()], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", BROKEN)
def test_weights_that_are_not_those_of_the_model_are_refused_by_name(tmp_path, folders, fault, streaming):
    change, message = BROKEN[fault]
    folder = changed(folders["llama"], tmp_path / "model", change)
    if streaming:
        with pytest.raises(InputError, match=r"no (model|lm_head)|has not|has the shape"):
            score(folder, streaming=streaming)
        return
    with pytest.raises(InputError, match=message):
        score(folder)
    with pytest.raises(InputError, match=message):  # nor trained, and that is known before a weight is read
        load_on_meta_device(folder, "causal", torch.float32)


def test_what_checkpoints_hold_besides_is_let_be(tmp_path, folders):
    """Constants that older versions stored; and a folder without them scores alike."""
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    folder = changed(folders["llama"], tmp_path / "model", lambda weights: weights | more)
    for streaming in (None, StreamedWeightsSettings()):
        np.testing.assert_allclose(score(folder, streaming=streaming), score(folders["llama"]), atol=1e-5)


def test_a_configuration_that_ties_what_its_file_holds_apart_follows_the_file(tmp_path, folders):
    folder = configured(folders["llama"], tmp_path / "model", tie_word_embeddings=True)
    for streaming in (None, StreamedWeightsSettings()):
        np.testing.assert_allclose(score(folder, streaming=streaming), score(folders["llama"]), atol=1e-5)
    assert not load_base(folder, "causal", torch.float32)[0].config.tie_word_embeddings


def test_an_adapter_beside_a_model_is_refused(tmp_path, folders):
    shutil.copytree(folders["llama"], tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folders["tied"]}))
    for streaming in (None, StreamedWeightsSettings()):
        with pytest.raises(InputError, match="holds an adapter"):
            score(tmp_path / "model", streaming=streaming)


def test_weights_stored_in_four_bits_are_whole_and_nothing_is_added_to_them(tmp_path, folders):
    model, tokenizer = load_base(folders["llama"], "causal", torch.float32, nf4=True)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "stored")
    stored = str(tmp_path / "stored")
    expected = scores(SCORERS["causal"](model, tokenizer, PromptFormat()))
    np.testing.assert_allclose(score(stored), expected, atol=1e-5)
    outlined = load_on_meta_device(stored, "causal", torch.float32)
    assert outlined.device.type == "meta"
    *_, trained = made(stored, {"r": 2}, tmp_path / "adapter")
    assert np.abs(score(stored, adapter=trained) - expected).max() > 0.01
    with pytest.raises(InputError, match="stored in a few bits"):
        merge(MergeOptions(model=stored, adapter=trained, output=str(tmp_path / "merged")))


def encoder(folder, kind, config, **arguments):
    """Write a tiny encoder of a class, as it is published before it is fine-tuned."""
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**ENCODER | {"vocab_size": 30522})
    getattr(transformers, kind)(settings, **arguments).save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return str(folder)


PLAIN = {
    "RobertaForMaskedLM": ("RobertaConfig", {}, "roberta.pooler.dense"),
    "MPNetForMaskedLM": ("MPNetConfig", {}, "mpnet.pooler.dense"),
    "AlbertForMaskedLM": ("AlbertConfig", {}, "albert.pooler"),
    "BertModel": ("BertConfig", {"add_pooling_layer": False}, "bert.pooler.dense"),
    "ElectraForMaskedLM": ("ElectraConfig", {}, None),
}


@pytest.mark.parametrize("kind", mostly_slow(PLAIN, "RobertaForMaskedLM", "BertModel"))
def test_all_that_is_new_in_an_encoder_is_trained_saved_and_needed(tmp_path, kind):
    config, arguments, pooler = PLAIN[kind]
    folder = encoder(tmp_path / "base", kind, config, **arguments)
    model, tokenizer, trained = made(folder, {"r": 2}, tmp_path / "adapter")
    assert (pooler or "sequence_summary") in model.peft_config["default"].modules_to_save
    expected = scores(SCORERS["multiple-choice"](model, tokenizer, PromptFormat()))
    for _ in range(2):  # in every process alike
        np.testing.assert_allclose(score(folder, adapter=trained), expected, atol=1e-5)
    merged = merge(MergeOptions(model=folder, adapter=trained, output=str(tmp_path / "merged"))).path
    np.testing.assert_allclose(score(merged), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"hold no head .*classifier.* `sciqa finetune`"):
        score(folder)
    if pooler:  # as adapters were once written
        old = changed(trained, tmp_path / "old", lambda w: {k: t for k, t in w.items() if "pooler" not in k}, ADAPTER)
        with pytest.raises(InputError, match=f"no weights there for .*{pooler}"):
            score(folder, adapter=old)


def test_an_encoder_lacks_nothing_but_heads(tmp_path):
    folder = encoder(tmp_path / "base", "BertForMaskedLM", "BertConfig")
    gone = changed(folder, tmp_path / "gone", lambda w: {k: t for k, t in w.items() if ".layer.1." not in k})
    with pytest.raises(InputError, match=r"no weights .*bert.encoder.layer.1"):
        load_base(gone, "multiple-choice", torch.float32)
    fewer = configured(folder, tmp_path / "fewer", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"has not: .*bert.encoder.layer.1"):
        load_base(fewer, "multiple-choice", torch.float32)
    headless = configured(folder, tmp_path / "headless", architectures=["BertForMultipleChoice"])
    with pytest.raises(InputError, match=r"no weights .*classifier"):
        load_base(headless, "multiple-choice", torch.float32)


def made(folder, fields, to, precision="float32", method="lora"):
    """Make an adapter with random weights, save it, and return it in the model, with tokenizer and folder."""
    family = model_file_family(folder)
    model, tokenizer = load_base(folder, family, getattr(torch, precision))
    model = adapter.add_trainable_adapter(model, family, method, fields)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapter.save_adapter_or_model(model, to, gather_sharded(model, 0), describe_adapter_files(folder) | {"style": {}})
    return model, tokenizer, str(to)


TIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "DoRA": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved both": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [5, 260, 300]},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("fields", mostly_slow(TIED, "head", "DoRA"))
def test_training_predicting_and_merging_agree_where_weights_are_tied(tmp_path, folders, fields):
    model, tokenizer, trained = made(folders["tied"], {"r": 2} | TIED[fields], tmp_path / "adapter")
    expected = scores(SCORERS["causal"](model, tokenizer, PromptFormat()))
    assert np.abs(expected - score(folders["tied"])).max() > 0.01
    np.testing.assert_allclose(score(folders["tied"], adapter=trained), expected, atol=1e-5)
    merged = merge(MergeOptions(model=folders["tied"], adapter=trained, output=str(tmp_path / "merged"))).path
    plain = transformers.AutoModelForCausalLM.from_pretrained(merged)
    ends = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    assert plain.config.tie_word_embeddings == torch.equal(*ends)
    np.testing.assert_allclose(scores(SCORERS["causal"](plain, tokenizer, PromptFormat())), expected, atol=1e-5)
    np.testing.assert_allclose(score(merged, streaming=StreamedWeightsSettings()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("tied", {"target_modules": ["lm_head"], "ensure_weight_tying": True}),
        ("t5", {"target_modules": ["q", "lm_head"]}),
        ("t5", {"modules_to_save": ["shared"]}),
    ],
)
def test_what_cannot_be_trained_and_merged_alike_is_refused_at_once(folders, family, fields):
    model = load_on_meta_device(folders[family], model_file_family(folders[family]), torch.float32)
    with pytest.raises(InputError, match=r"--peft: .*(lm_head|shared).*(leave it out)"):
        adapter.add_trainable_adapter(model, model_file_family(folders[family]), "lora", fields)


def test_in_16_bits_an_adapter_computes_as_it_was_validated(tmp_path, folders):
    model, tokenizer, trained = made(folders["llama"], {"r": 2}, tmp_path / "adapter", "bfloat16")
    validated = scorer_of_loaded(folders["llama"], "causal", model, tokenizer, PromptFormat())
    with torch.autocast("cpu", torch.bfloat16):
        expected = scores(validated)
    found = scores(load_scorer(folders["llama"], precision="bfloat16", adapter=trained, style=PromptFormat()))
    np.testing.assert_allclose(found, expected, atol=1e-6)


ODD = {
    "half": lambda w: {k: t for k, t in w.items() if "v_proj" not in k},
    "other names": lambda w: {k.replace("model.layers", "model.blocks"): t for k, t in w.items()},
    "one more": lambda w: w | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)},
    "vectors": lambda w: {k: t for k, t in w.items() if "magnitude" not in k},
    "saved": lambda w: {k: t for k, t in w.items() if "norm" not in k},
    "tokens": lambda w: {k: t for k, t in w.items() if "trainable_tokens" not in k},
}


@pytest.mark.parametrize("change", ODD)
def test_an_adapter_is_whole_or_refused(tmp_path, folders, change):
    fields = {"r": 2, "target_modules": ["q_proj", "v_proj"], "use_dora": True, "modules_to_save": ["norm"]}
    *_, trained = made(folders["llama"], fields | {"trainable_token_indices": [5]}, tmp_path / "adapter")
    score(folders["llama"], adapter=trained)
    odd = changed(trained, tmp_path / "odd", ODD[change], ADAPTER)
    with pytest.raises(InputError, match=r"odd: (no weights there for|this adapter does not fit)"):
        score(folders["llama"], adapter=odd)


def test_an_adapter_of_a_part_of_each_row_is_refused(tmp_path, folders):
    fields = {"r": 2, "target_modules": ["q_proj"]}
    *_, trained = made(folders["llama"], fields, tmp_path / "adapter")
    path = Path(trained, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alora_invocation_tokens": [5, 6]}))
    with pytest.raises(InputError, match=r"adapter: alora_invocation_tokens: .*not supported"):
        score(folders["llama"], adapter=trained)
    model = load_on_meta_device(folders["llama"], "causal", torch.float32)
    with pytest.raises(InputError, match="--peft: alora_invocation_tokens"):
        adapter.add_trainable_adapter(model, "causal", "lora", fields | {"alora_invocation_tokens": [5]})


def test_an_adapter_of_a_later_version_is_refused(tmp_path, folders):
    *_, trained = made(folders["llama"], {"r": 2}, tmp_path / "adapter")
    path = Path(trained, "sciqa.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"style": {"prompt": "plain", "mood": "fair"}}))
    with pytest.raises(InputError, match=r"sciqa.json is of another version .*mood"):
        load_scorer(folders["llama"], adapter=trained)


def test_a_prompt_is_shown_with_the_room_that_a_soft_prompt_leaves(tmp_path, folders):
    *_, trained = made(folders["llama"], {"num_virtual_tokens": 3}, tmp_path / "adapter", method="prompt-tuning")
    limits = [load_without_weights(folders["llama"], {}, each).limit for each in (None, trained)]
    assert limits[1] == limits[0] - 3 == load_scorer(folders["llama"], adapter=trained).limit
    style = PromptFormat(max_length=100)  # which leaves room for them
    limit = load_without_weights(folders["llama"], {"max_length": 100}, trained).limit
    assert limit == load_scorer(folders["llama"], adapter=trained, style=style).limit == 100


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path, folders):
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    gptq = configured(folders["llama"], tmp_path / "gptq", quantization_config=quantised)
    with pytest.raises(InputError, match="gptq: not a whole causal model, or none that can be loaded here"):
        score(gptq)
    shutil.copytree(folders["llama"], tmp_path / "cut")
    file = tmp_path / "cut" / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut: not a causal model with a tokenizer"):
        score(tmp_path / "cut")
    with pytest.raises(InputError, match="cut: no tokenizer in it that can be loaded"):
        model_file_tokenizer(str(tmp_path / "cut"))


def test_a_soft_prompt_is_whole_or_refused(tmp_path, folders):
    model, tokenizer, trained = made(
        folders["llama"], {"num_virtual_tokens": 3}, tmp_path / "adapter", method="prompt-tuning"
    )
    expected = scores(SCORERS["causal"](model, tokenizer, PromptFormat()))
    np.testing.assert_allclose(score(folders["llama"], adapter=trained), expected, atol=1e-5)
    odd = changed(trained, tmp_path / "odd", lambda w: {f"x{k}": t for k, t in w.items()}, ADAPTER)
    with pytest.raises(InputError, match="prompt_embeddings"):
        score(folders["llama"], adapter=odd)


def test_a_model_is_merged_beside_where_it_goes(folders, monkeypatch):
    """Also below the root, which may be another file system than the working folder."""
    monkeypatch.setattr("sciqa.models.merge.adapter_files.check_adapter_files", lambda *_: None)
    asked = []
    monkeypatch.setattr("sciqa.models.merge.storage.check_storage_writable", lambda path: asked.append(path) or 1 / 0)
    for output in ("/merged", "/some/merged", "s3://bucket/merged"):
        monkeypatch.setattr("sciqa.models.merge.storage.path_exists", lambda _: False)
        with pytest.raises(ZeroDivisionError):
            merge(MergeOptions(model=folders["llama"], adapter="adapter", output=output))
    assert asked == ["/", "/some", "s3://bucket"]


def test_a_merged_model_is_moved_into_place(tmp_path, folders, monkeypatch):
    _, _, trained = made(folders["llama"], {"r": 2}, tmp_path / "adapter")
    output = tmp_path / "out" / "merged"
    options = MergeOptions(model=folders["llama"], adapter=trained, output=str(output))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sciqa.models.merge.adapter_files.read_adapter_record", lambda _: stopped())
        patch.setattr("sciqa.models.merge.adapter_files.check_adapter_files", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):  # when all but the record is written
            merge(options)
    assert [path.name for path in output.parent.iterdir()] == [".merged.lock"]
    with lock(str(output)), pytest.raises(InputError, match=r"merged: process .* is writing there"):
        merge(options)

    def full(*_):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
        with pytest.raises(InputError, match=r"merged: cannot be written \(No space left on device\)"):
            merge(options)
    monkeypatch.setattr("sciqa.models.merge.storage.copy_files", stopped)  # no file is copied there
    merge(options)
    assert sorted(path.name for path in output.parent.iterdir()) == [".merged.lock", "merged"]

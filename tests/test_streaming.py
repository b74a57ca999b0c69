"""Models streamed layer by layer: their scores are those of the whole model, however it lies on disk."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import QUESTIONS
from test_scorers import random_questions
from tiny import CAUSAL, DECODER, tiny_folder, tiny_model, tiny_tokenizer

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.models import streamed_scorer, streamed_weights
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_base, load_scorer
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import score_options
from sciqa.models.streamed_weights import StreamedWeightsSettings, check_streamed_weights, streamed_weight_bytes
from sciqa.predict import PredictOptions, predict


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a tiny model of each kind."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_folder(root / family, family, num_hidden_layers=3) for family in CAUSAL}


def score(folder, streaming=None, budget=300, precision="float32"):
    scorer = load_scorer(str(folder), precision=precision, streaming=streaming)
    return np.concatenate(score_options(scorer, random_questions(12), budget))


def check(folder, **arguments):
    """Streamed, a model scores as it does whole."""
    whole = score(folder, **arguments)
    assert np.ptp(whole) > 1
    np.testing.assert_allclose(score(folder, StreamedWeightsSettings(), **arguments), whole, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_streamed_model_scores_as_the_whole_one(folders, family):
    check(folders[family])


def test_tied_weights_and_those_of_other_kinds(tmp_path):
    tiny_folder(tmp_path / "tied", "llama", tie_word_embeddings=True)
    check(tmp_path / "tied")
    for kind in ("Qwen2", "Qwen3"):
        torch.manual_seed(0)
        # Their masks are by kind of layer, so of the two one has a sliding window.
        window = {"use_sliding_window": True, "sliding_window": 256, "max_window_layers": 1, "head_dim": 16}
        config = getattr(transformers, f"{kind}Config")(**DECODER | window, vocab_size=200)
        assert len(set(config.layer_types)) == 2
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path / kind)
        tiny_tokenizer("llama").save_pretrained(tmp_path / kind)
        check(tmp_path / kind)


def test_checkpoints_in_several_files_and_other_types(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(streamed_scorer, "HEAD_BLOCK", 64 * 4 * 10_000)  # the head in five blocks
    model = tiny_model("llama", vocab_size=49152, num_hidden_layers=3).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="4MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tiny_tokenizer("llama").save_pretrained(tmp_path)
    check(tmp_path)
    check(folders["llama"], budget=1)
    whole, streams = (score(tmp_path, each, precision="bfloat16") for each in (None, StreamedWeightsSettings()))
    np.testing.assert_allclose(streams, whole, atol=0.05)


def test_models_stored_in_four_bits(tmp_path, folders):
    model, tokenizer = load_base(folders["llama"], "causal", torch.float32, nf4=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert streamed_weight_bytes(str(tmp_path)) < streamed_weight_bytes(folders["llama"]) / 5
    streams = score(tmp_path, StreamedWeightsSettings())
    unpacked = score_options(
        CausalScorer(model.dequantize(torch.float32), tokenizer, PromptFormat()), random_questions(12), 300
    )
    np.testing.assert_allclose(streams, np.concatenate(unpacked), atol=1e-4)
    assert np.abs(streams - score(folders["llama"])).max() > 0.01


def test_hidden_states_beyond_the_limit_go_to_a_file(folders, tmp_path, monkeypatch):
    told, in_memory = [], score(folders["llama"], StreamedWeightsSettings())
    monkeypatch.setattr(streamed_scorer.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(streamed_scorer, "SILENCE", 0)
    np.testing.assert_array_equal(
        score(folders["llama"], StreamedWeightsSettings(memory=1000, say=told.append)), in_memory
    )
    assert [words.split(",")[0] for words in told] == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3"]
    assert all(words.endswith("of states in a file") for words in told)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(streamed_scorer.os, "posix_fallocate", no_room)
    with pytest.raises(InputError, match=r"no room for .* set TMPDIR"):
        score(folders["llama"], StreamedWeightsSettings(memory=1000))


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_every_weight_is_read_once_and_the_embedding_in_part(folders, monkeypatch):
    read, preadv = [], streamed_weights.os.preadv
    monkeypatch.setattr(streamed_weights.os, "preadv", lambda *given: read.append(preadv(*given)) or read[-1])
    scorer = load_scorer(folders["llama"], precision="float32", streaming=StreamedWeightsSettings())
    score_options(scorer, random_questions(12), 300)
    weights = sum(
        parameter.nbytes for parameter in tiny_model("llama", vocab_size=49152, num_hidden_layers=3).parameters()
    )
    # The tokens are among the first 200 of 49,152.
    rest = weights - scorer.table.nbytes
    assert rest + scorer.table.rows(0, 150).nbytes < sum(read) <= rest + scorer.table.rows(0, 200).nbytes


def test_predict_streams_to_the_same_answers(tmp_path, cluster, exam_file, folders):
    common = {"exam": exam_file, "reader": "closed-book", "model": folders["llama"], "precision": "float32"}
    read = {}
    for name, more in {"whole": {}, "streamed": {"stream": True, "stream_questions": 8}}.items():
        output = str(tmp_path / name)
        predict(PredictOptions(**common, **more, output=output, shard_questions=3, name="answers"))
        read[name] = tables.read_table(f"{output}/answers/answers").to_pylist()
    assert len(read["streamed"]) == QUESTIONS
    for whole, streams in zip(read["whole"], read["streamed"], strict=True):
        for figures in ("probabilities", "scores"):
            np.testing.assert_allclose(streams.pop(figures), whole.pop(figures), atol=1e-4)
        assert streams == whole


def test_what_cannot_be_streamed_is_refused(tmp_path, folders):
    with pytest.raises(InputError, match=r"bert in its config\.json; --stream reads decoders of the kinds llama"):
        check_streamed_weights(tiny_folder(tmp_path / "bert", "bert"))
    with pytest.raises(InputError, match="sciqa merge"):
        PredictOptions(stream=True, adapter="some")
    with pytest.raises(InputError, match="leave --nf4 out"):
        PredictOptions(stream=True, nf4=True)
    broken = tmp_path / "broken"
    shutil.copytree(folders["llama"], broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        predict(PredictOptions(stream=True, model=str(broken), reader="closed-book", output=str(tmp_path / "run")))
    config = json.loads((broken / "config.json").read_text())
    shutil.copy(Path(folders["llama"], "model.safetensors"), file)
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"no model.layers.3\..* in its safetensors files"):
        score(broken, StreamedWeightsSettings())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(InputError, match=r"has the shape \(128, 64\), by its config.json \(64, 64\)"):
        score(broken, StreamedWeightsSettings())

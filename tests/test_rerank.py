"""Cross-encoders rank by a trained head, or are refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tiny_embedders import ENCODER, MINILM, tiny_embedder, tiny_tokenizer

from sciqa.core.errors import InputError
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.retrieval.options import SearchOptions
from sciqa.retrieval.rerank import Reranker, check_reranker, note_reranked_by_beginning

PAIRS = [("What is iron?", "Iron is a metal."), ("What is iron?", " ".join(["Rain is water."] * 60)), ("Why?", "So.")]
NAMES = ["question 1 with passage a", "question 1 with passage b", "question 2 with passage c"]


def cross_encoder(folder, kind="Bert", **config):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    fields = ENCODER | {"vocab_size": len(tokenizer), "num_labels": 1} | config
    model = getattr(transformers, f"{kind}ForSequenceClassification")(getattr(transformers, f"{kind}Config")(**fields))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def change_weights(folder, change):
    path = Path(folder, "model.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("saved", [False, True])
def test_scores_are_those_of_the_cross_encoder(tmp_path, saved):
    folder = cross_encoder(tmp_path / "model")
    expected = CrossEncoder(folder, device="cpu").predict(PAIRS)
    if saved:
        CrossEncoder(folder, device="cpu").save(str(tmp_path / "saved"))
        folder = str(tmp_path / "saved")
    scores = Reranker(folder, "cpu").score(PAIRS, NAMES)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert len(Reranker(folder, "cpu").score([], [])) == 0


def test_large_scores_are_told_apart(tmp_path):
    folder = cross_encoder(tmp_path / "model")

    def raise_all(weights):
        weights["classifier.bias"] += 25

    change_weights(folder, raise_all)
    assert (CrossEncoder(folder, device="cpu").predict(PAIRS) == 1).all()
    plain = CrossEncoder(folder, device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    scores = Reranker(folder, "cpu").score(PAIRS, NAMES)
    assert len(set(scores)) == len(PAIRS)
    assert (scores.argsort() == plain.argsort()).all()


def test_pairs_are_cut_where_the_table_of_positions_ends(tmp_path):
    folder = cross_encoder(tmp_path / "model", "Roberta")  # of 96 positions the first is never used
    model = CrossEncoder(folder, device="cpu")
    model.max_seq_length = 95
    reranker = Reranker(folder, "cpu")
    np.testing.assert_allclose(reranker.score(PAIRS, NAMES), model.predict(PAIRS), atol=1e-5)
    assert reranker.notes == [f"{folder} reads no more than 95 tokens: longer passages are judged by their beginning"]
    whole = Reranker(folder, "cpu")
    whole.score([("What is iron?", "Iron is. " * 12)], NAMES)  # of more bytes than 95, but fewer tokens
    assert whole.notes == []


def test_an_embedder_tells_that_it_reranks_by_the_beginning():
    embedder = SimpleNamespace(model=MINILM, longest=256, revision=None, notes=[])
    note_reranked_by_beginning(embedder, "", ["Rain is water. " * 50])
    assert embedder.notes == []
    note_reranked_by_beginning(embedder, "", ["Rain.", "Rain is water. " * 100])
    assert embedder.notes == [f"{MINILM} reads no more than 256 tokens: longer passages are judged by their beginning"]


def test_a_head_that_gives_several_numbers_is_refused(tmp_path, small_index):
    folder = cross_encoder(tmp_path / "model", num_labels=2)
    with pytest.raises(InputError, match="its head gives 2 numbers for a pair"):
        retrieve(RetrieveOptions(output=str(tmp_path), index=f"{small_index}/index", exam="test", rerank=folder))
    CrossEncoder(folder, device="cpu").save(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="gives 2 numbers for a pair"):
        Reranker(str(tmp_path / "saved"), "cpu")


def test_an_encoder_without_a_head_is_refused(tmp_path):
    tiny_embedder(tmp_path)
    for folder in (str(tmp_path / "plain"), "SmolLM2-135M-Instruct"):
        with pytest.raises(InputError, match="which has no head that scores pairs"):
            check_reranker(folder)
    check_reranker(MINILM)  # an embedder, whose vectors are compared


def test_no_more_passages_are_kept_than_are_reranked():
    for given in ({"top_k": 21}, {"rerank_passages": 4}):
        with pytest.raises(InputError, match=r"--rerank-passages: \d+ given, at least --top-k \(\d+\) expected"):
            SearchOptions(rerank=MINILM, **given)
        SearchOptions(**given)
    SearchOptions(rerank=MINILM)
    SearchOptions(rerank=MINILM, top_k=30, rerank_passages=30)


def test_weights_that_a_file_lacks_are_refused_by_name(tmp_path):
    folder = cross_encoder(tmp_path / "model")
    change_weights(folder, lambda weights: weights.pop("classifier.weight"))
    with pytest.raises(InputError, match=r"no weights in its files for classifier\.weight"):
        Reranker(folder, "cpu")
    folder = cross_encoder(tmp_path / "other")
    change_weights(folder, lambda weights: weights.pop("bert.pooler.dense.weight"))
    with pytest.raises(InputError, match=r"no weights in its files for bert\.pooler\.dense\.weight"):
        Reranker(folder, "cpu")


def test_an_encoder_that_says_it_has_a_head_is_refused(tmp_path):
    folder = tiny_embedder(tmp_path)
    about = json.loads(Path(folder, "config.json").read_text())
    says = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}, "label2id": {"x": 0}}
    Path(folder, "config.json").write_text(json.dumps(about | says))
    with pytest.raises(InputError, match=r"no weights in its files for classifier|a SentenceTransformer by its"):
        Reranker(folder, "cpu")


def test_a_score_that_is_no_number_is_refused_with_its_question_and_passage(tmp_path):
    folder = cross_encoder(tmp_path / "model")

    def spoil(weights):
        weights["bert.embeddings.word_embeddings.weight"][4542] = float("nan")  # "rain"

    change_weights(folder, spoil)
    with pytest.raises(InputError, match="its score of question 1 with passage b is not a finite number"):
        Reranker(folder, "cpu").score(PAIRS, NAMES)

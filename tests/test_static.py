"""Static embedders: vectors are sentence-transformers' own, and those that are made are what their sources say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_jsonl
from gensim.models import Word2Vec
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tiny_embedders import tiny_embedder, tiny_tokenizer

from sciqa.core import extras, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, model_file_sequence_length, model_file_tokenizer
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import FindOptions, IndexOptions, static_training
from sciqa.retrieval.contexts import FindContexts, check_find_contexts
from sciqa.retrieval.embedder import TorchEmbedder, embed_one_by_one
from sciqa.retrieval.index import read_index_manifest
from sciqa.retrieval.index_shards import EmbedIndexShard
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import EmbedderOptions
from sciqa.retrieval.queries import query_texts
from sciqa.retrieval.search import LocalSearch
from sciqa.retrieval.static_embedder import StaticEmbedder
from sciqa.retrieval.static_training import make_embedder

TEXTS = [
    "Water",
    "Plants make sugar from light.",
    "Größe Σ(x²) ≈ 3 µm — 光合作用 😀",
    "cells divide " * 2000,
    " \tIt rains\n",
]
SMALL = {"vector_size": 16, "epochs": 2, "min_count": 1}


def save(folder, *more, rows=None, **settings):
    """Write a static embedder with a random table, and return its folder."""
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.enable_truncation(8)
    table = np.random.default_rng(0).standard_normal((rows or tokenizer.get_vocab_size(), 16)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, table), *more], device="cpu", **settings).save(str(folder))
    return str(folder)


def own_vectors(folder, texts, prompt=""):
    """Return unit vectors as sentence-transformers computes them, of whole texts."""
    model = SentenceTransformer(folder, device="cpu")
    model[0].tokenizer.no_truncation()
    return model.encode(texts, prompt=prompt, normalize_embeddings=True)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_vectors_are_those_of_sentence_transformers(tmp_path, monkeypatch, backend):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    folder = save(tmp_path / "model", Dense(16, 8), Normalize())
    embedder = load_embedder(folder, 2, backend)
    assert isinstance(embedder, StaticEmbedder)
    assert embedder.direct
    np.testing.assert_allclose(embedder.encode(TEXTS), own_vectors(folder, TEXTS), atol=1e-5)
    prefixed = embedder.encode(TEXTS, 2, prefix="a passage: ", kind="passage")
    np.testing.assert_allclose(prefixed, own_vectors(folder, TEXTS, "a passage: "), atol=1e-5)
    assert embedder.encode([]).shape == (0, 8)
    assert not list(tmp_path.glob("cache/sciqa/embedder-*")), "nothing is traced"


def test_a_vector_depends_on_its_text_alone(tmp_path):
    embedder = StaticEmbedder(save(tmp_path / "model"), 2)
    np.testing.assert_array_equal(embedder.encode(TEXTS), embed_one_by_one(embedder, TEXTS))


def test_where_direct_vectors_differ_sentence_transformers_computes_them(tmp_path, monkeypatch):
    folder = save(tmp_path / "model")
    monkeypatch.setattr(StaticEmbedder, "_direct", lambda self, texts: np.ones((len(texts), 16), np.float32))
    embedder = StaticEmbedder(folder, 2)
    np.testing.assert_allclose(embedder.encode(TEXTS), own_vectors(folder, TEXTS), atol=1e-5)
    assert "by SentenceTransformer.encode" in embedder.notes[0]


def test_a_table_with_too_few_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="100 vectors for the 30,522 tokens"):
        StaticEmbedder(save(tmp_path / "model", rows=100), 2)


def test_a_module_in_a_folder_of_its_own(tmp_path):
    folder = Path(save(tmp_path / "model"))
    (folder / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.move(folder / name, folder / "0_StaticEmbedding" / name)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"path": "0_StaticEmbedding"}]))
    assert model_file_tokenizer(str(folder)).encode("water").tokens == ["[CLS]", "water", "[SEP]"]
    assert model_file_sequence_length(str(folder)) is None
    np.testing.assert_allclose(StaticEmbedder(str(folder), 2).encode(TEXTS), own_vectors(str(folder), TEXTS), atol=1e-5)


def rows_of(folder):
    model = SentenceTransformer(folder, device="cpu")
    return model[0].tokenizer, model[0].embedding.weight.detach().numpy()


@pytest.mark.parametrize("pooling", ["mean", pytest.param("cls", marks=pytest.mark.slow)])
def test_distilled_vectors_are_the_teachers_rotated_and_weighted(tmp_path, pooling):
    teacher = tiny_embedder(tmp_path, pooling=pooling)
    made = make_embedder(EmbedderOptions(output=str(tmp_path), teacher=teacher, vector_size=32, sif=1e-3))
    tokenizer, rows = rows_of(made.path)
    assert (made.details["tokens"], made.details["dimension"]) == rows.shape
    assert tokenizer.truncation is None
    words = ["water", "plants", "sugar", "of", "light"]
    numbers = [tokenizer.token_to_id(word) for word in words]
    ranks = np.arange(2, len(rows) + 2)
    probabilities = (1 / ranks / (1 / ranks).sum())[numbers]  # Zipf's law
    found = rows[numbers] * ((1e-3 + probabilities) / 1e-3)[:, None]
    expected = TorchEmbedder(teacher, 2, "cpu", "float32").raw(words, 1)
    # All 32 principal components are kept, so distances are the teacher's.
    distances = [np.linalg.norm(each[:, None] - each, axis=2) for each in (found, expected)]
    np.testing.assert_allclose(*distances, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_distilled_is_refused(tmp_path):
    options = {"output": str(tmp_path / "run")}
    teachers = {
        "Transformer mean Dense cannot be distilled": tiny_embedder(tmp_path / "dense", more=(Dense(32, 8),)),
        "Transformer max cannot be distilled": tiny_embedder(tmp_path / "max", pooling="max"),
        "static itself": save(tmp_path / "static"),
    }
    for message, teacher in teachers.items():
        with pytest.raises(InputError, match=message):
            make_embedder(EmbedderOptions(teacher=teacher, **options))
    assert not list(tmp_path.glob("run/embedders/*distil"))


@pytest.fixture
def passages(tmp_path, cluster):
    """The run folder of a passages table: words of two subjects, and no sentence with both."""
    subjects = [["iron", "steel", "copper", "zinc", "metal"], ["whale", "seal", "shark", "squid", "ocean"]]
    chance = np.random.default_rng(0)
    sentences = [" ".join(chance.choice(subjects[n % 2], 6)).capitalize() + "." for n in range(240)]
    articles = [{"title": f"Article {n}", "text": sentence} for n, sentence in enumerate(sentences)]
    write_jsonl(tmp_path / "articles.jsonl", articles)
    output = str(tmp_path / "run")
    build_passages(CorpusOptions(output=output, corpus=(str(tmp_path / "articles.jsonl"),), shard_passages=100))
    return output


def test_passages_that_are_not_those_of_the_manifest_are_not_trained_on(passages):
    shards = tables.read_table_manifest(f"{passages}/passages", "corpus")["shards"]
    first, second = (Path(f"{passages}/passages", f"{shard['name']}.parquet") for shard in shards[:2])
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=f"^{second}: not the passages that the manifest names; delete this file"):
        make_embedder(EmbedderOptions(output=passages, method="cbow", **SMALL))


@pytest.mark.parametrize("method", ["skip-gram", "cbow"])
def test_trained_vectors_are_those_of_word2vec(passages, method):
    made = make_embedder(EmbedderOptions(output=passages, method=method, sif=1e-2, seed=3, **SMALL | {"epochs": 9}))
    tokenizer, rows = rows_of(made.path)
    texts = [titled_chunk(**row) for row in table_of(passages)]
    sentences = [[word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())] for text in texts]
    settings = {"vector_size": 16, "epochs": 9, "min_count": 1, "seed": 3, "workers": 1}
    vectors = Word2Vec(sentences, sg=int(method == "skip-gram"), **settings).wv
    counts = np.array([vectors.get_vecattr(word, "count") for word in vectors.index_to_key])
    centred = vectors.vectors - vectors.vectors.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1)
    found = rows[[tokenizer.token_to_id(word) for word in vectors.index_to_key]]
    np.testing.assert_allclose(found / np.linalg.norm(found, axis=1)[:, None], centred / lengths[:, None], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1e-2 / (1e-2 + counts / counts.sum()), rtol=1e-4)
    embedder = load_embedder(made.path, 2)
    iron, steel, whale = embedder.encode(["Iron", "STEEL", "whale"])
    assert iron @ steel > iron @ whale
    # Words that are not known count only where there is no other.
    np.testing.assert_allclose(*embedder.encode(["steel", "steel xyzzy plugh"]), atol=0.01)
    assert np.isfinite(embedder.encode(["xyzzy"])).all()


def table_of(output):
    return tables.read_table(f"{output}/passages", ["title", "section", "text"]).to_pylist()


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_the_same_inputs_give_the_same_files_and_others_are_refused(passages):
    options = {"output": passages, "method": "cbow"} | SMALL
    first = make_embedder(EmbedderOptions(**options))
    files = contents(first.path)
    assert set(files) == {"model.safetensors", "modules.json", "config_sentence_transformers.json", "tokenizer.json"}
    assert make_embedder(EmbedderOptions(**options)).made.endswith(", kept")
    Path(first.path, "model.safetensors").unlink()
    assert not make_embedder(EmbedderOptions(**options)).made.endswith(", kept")
    assert contents(first.path) == files
    again = make_embedder(EmbedderOptions(**options, name="again"))
    assert contents(again.path) == files
    with pytest.raises(InputError, match=r"made from other inputs \(seed: 0 there, 1 now\)"):
        make_embedder(EmbedderOptions(**options, seed=1))
    assert contents(first.path) == files
    make_embedder(EmbedderOptions(**options, seed=1, overwrite=True))
    assert contents(first.path)["model.safetensors"] != files["model.safetensors"]


@pytest.mark.parametrize("when", ["training", "writing"])
def test_a_run_that_is_stopped_leaves_no_model_and_can_be_repeated(passages, monkeypatch, when):
    options = EmbedderOptions(output=passages, method="cbow", **SMALL)
    whole = contents(make_embedder(EmbedderOptions(output=passages, method="cbow", name="whole", **SMALL)).path)

    def stop(*arguments):
        raise KeyboardInterrupt

    def write(path, data, write=storage.write_bytes):
        return stop() if path.endswith(".safetensors") else write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(
            *(static_training, "train_static_embedder", stop) if when == "training" else (storage, "write_bytes", write)
        )
        with pytest.raises(KeyboardInterrupt):
            make_embedder(options)
    assert not tables.is_finished_table(options.folder)
    with pytest.raises(InputError, match=r"no weights|neither a folder"):
        find_model(options.folder)
    assert contents(make_embedder(options).path) == whole


def test_bad_input_is_refused_before_any_work(passages, monkeypatch):
    with pytest.raises(InputError, match="run `sciqa corpus`"):
        make_embedder(EmbedderOptions(output=f"{passages}/none", method="cbow"))
    with pytest.raises(InputError, match="no word occurs --min-count"):
        make_embedder(EmbedderOptions(output=passages, method="cbow", min_count=9999))
    for name, value in (("window", 0), ("sif", 1), ("sample", 1), ("seed", -1), ("name", "../up")):
        with pytest.raises(InputError, match=f"--{name}"):
            EmbedderOptions(**{name: value})
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"model2vec not installed; run `pip install 'sciqa\[static\]'`"):
        make_embedder(EmbedderOptions(output=passages))


def test_passages_and_vectors_of_an_index_are_the_static_embedders(tmp_path, cluster):
    folder = save(tmp_path / "static")
    text = "Iron is a metal. It rusts in water. Whales are mammals and swim. " * 9
    write_jsonl(tmp_path / "articles.jsonl", [{"title": "Things", "text": text}])
    options = {"output": str(tmp_path / "run"), "embedder": folder}
    corpus = CorpusOptions(corpus=(str(tmp_path / "articles.jsonl"),), passage_tokens=40, **options)
    (shard,) = build_passages(corpus).details["shards"]
    indexing = IndexOptions(**options)
    EmbedIndexShard(indexing, indexing.embed_on("cpu", 2), indexing.embedding())({"part": shard})
    texts = [titled_chunk(**row) for row in table_of(tmp_path / "run")]
    tokenizer = model_file_tokenizer(folder)
    assert 30 < max(len(each.ids) for each in tokenizer.encode_batch(texts)) <= 40
    (path,) = tmp_path.glob("run/index/*/vectors.npy")
    np.testing.assert_allclose(np.load(path), own_vectors(folder, texts), atol=1e-5)


def test_an_embedder_scores_found_passages_again(tmp_path, small_index, exam_file):
    """Of all passages, two stages find what the second finds alone, by its own prompts."""
    folder = save(tmp_path / "static", prompts={"query": "metal: ", "document": "whale: "})
    texts = [titled_chunk(**row) for row in table_of(small_index)]
    questions = read_exam(exam_file).to_pylist()[:4]
    options = FindOptions(
        **{"output": str(tmp_path), "index": f"{small_index}/index", "dense": ("mean",), "words": ()},
        **{"query_prefix": "of the first stage alone", "rerank": folder, "rerank_passages": len(texts), "top_k": 9},
    )
    check_find_contexts(options)
    index = LocalSearch(options.index, read_index_manifest(options.index))
    found = FindContexts(None, options, index, options.embed_on("cpu", 2), options).find(questions)
    vectors = own_vectors(folder, texts, "whale: ")
    asked = [own_vectors(folder, *query_texts(questions, query), "metal: ") for query in ("prompt", "whole")]
    queries = sum(asked) / np.linalg.norm(sum(asked), axis=1, keepdims=True)
    for query, context in zip(queries, found, strict=True):
        scores = vectors @ query
        nearest = np.argsort(-scores)[:9]
        assert [titled_chunk(p["title"], p["section"], p["text"]) for p in context["passages"]] == [
            texts[number] for number in nearest
        ]
        np.testing.assert_allclose([p["score"] for p in context["passages"]], scores[nearest], atol=1e-5)

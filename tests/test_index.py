"""Embedding and index building, on real models."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model
from sciqa.corpus.articles import read_articles
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, index_listing, retrieve
from sciqa.retrieval.index import check_index_unchanged, finished_index, read_index_manifest
from sciqa.retrieval.index_shards import EmbedIndexShard
from sciqa.retrieval.load_embedder import load_embedder

MINILM = "all-MiniLM-L6-v2"


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_vectors_are_those_of_sentence_transformers(backend):
    texts = [article["text"] for article, _ in zip(read_articles("demo"), range(40), strict=False)]
    reference = SentenceTransformer(find_model(MINILM).folder, device="cpu").encode(texts, normalize_embeddings=True)
    vectors = load_embedder(MINILM, threads=2, backend=backend).encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert (reference * vectors).sum(axis=1).min() > 0.99


def test_manifest_tells_the_model_and_the_checksum_of_every_file(small_index):
    folder = storage.join_paths(small_index, "index")
    manifest = read_index_manifest(folder)
    assert (manifest["model"], manifest["dimension"], manifest["normalised"]) == (MINILM, 384, True)
    assert manifest["revision"] == find_model(MINILM).revision
    assert manifest["rows"] == sum(shard["rows"] for shard in manifest["shards"]) > 40
    for shard in manifest["shards"]:
        for name, digest in shard["sha256"].items():
            data = storage.read_bytes(storage.join_paths(folder, shard["name"], name))
            assert hashlib.sha256(data).hexdigest() == digest


def test_only_missing_shards_are_built_again(tmp_path, small_index):
    run = tmp_path / "run"
    shutil.copytree(small_index, run)
    kept = storage.read_bytes(str(run / "index" / "00000-00002" / "vectors.npy"))
    for lost in ("00000-00000", "00000-00003"):
        shutil.rmtree(run / "index" / lost)
    (run / "index" / "manifest.json").unlink()
    (run / "index" / "00000-00004" / "shard.json").unlink()  # embedded, but not finished
    summary = build_index(IndexOptions(output=str(run)))
    assert summary.details == {"built": 3, "kept": 2}
    assert storage.read_bytes(str(run / "index" / "00000-00002" / "vectors.npy")) == kept
    again, before = (read_index_manifest(storage.join_paths(path, "index")) for path in (str(run), small_index))
    assert again | {"passages": None} == before | {"passages": None}
    assert build_index(IndexOptions(output=str(run))).details == {"built": 0, "kept": 5}


def spoil(path, kind):
    """Change a file as another program, or a broken copy, would."""
    data, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    if kind == "missing":
        path.unlink()
        return
    path.write_bytes(data[:-1] if kind == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    if kind == "same size and time":
        os.utime(path, ns=times)


@pytest.mark.parametrize("name", ["passages.parquet", "vectors.npy", "index.faiss", "words.arrow"])
@pytest.mark.parametrize("kind", ["missing", "cut", "same size", "same size and time"])
def test_a_file_that_is_not_the_one_written_is_found_before_a_search(indexed, name, kind):
    options = IndexOptions(**indexed)
    manifest = read_index_manifest(options.index)
    check_index_unchanged(replace(options, verify=True), manifest)
    path = Path(options.index, "00000-00001", name)
    spoil(path, kind)
    wrong = {"missing": "no such file", "cut": r"not the file that was written \([\d,]+ bytes, "}
    with pytest.raises(InputError, match=f"^{path}: {wrong.get(kind, '.*its sha256 differs')}.*`sciqa index --verify`"):
        check_index_unchanged(replace(options, verify=True), manifest)
    if kind == "same size and time":  # as documented: nothing but reading it can tell
        check_index_unchanged(options, manifest)
    else:
        with pytest.raises(InputError, match=f"^{path}: .*run `sciqa index`, which builds its shard again"):
            check_index_unchanged(options, manifest)


def test_an_unchanged_index_is_listed_and_only_its_manifest_read(indexed, monkeypatch):
    options, hashed, read = IndexOptions(**indexed), [], []
    given = index_listing.cached_file_hash, storage.read_json
    monkeypatch.setattr(index_listing, "cached_file_hash", lambda path: hashed.append(path) or given[0](path))
    monkeypatch.setattr(storage, "read_json", lambda path: read.append(path) or given[1](path))
    assert build_index(options).details == {"built": 0, "kept": 2}
    assert f"{options.index}/manifest.json" in read
    assert not [path for path in read if path.endswith(("/embedded.json", "/shard.json"))]
    assert not hashed
    path = Path(options.index, "00000-00000", "vectors.npy")
    os.utime(path)  # as a copy made without times
    check_index_unchanged(options, read_index_manifest(options.index))
    assert hashed == [path]


@pytest.mark.parametrize(("name", "kind"), [("index.faiss", "missing"), ("vectors.npy", "same size and time")])
def test_index_builds_a_damaged_shard_again(indexed, name, kind):
    options = IndexOptions(verify=kind == "same size and time", **indexed)
    path = Path(options.index, "00000-00001", name)
    before = path.read_bytes()
    spoil(path, kind)
    assert build_index(options).details == {"built": 1, "kept": 1}
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "kind", "verify"),
    [
        ("index.faiss", "same size", False),
        ("vectors.npy", "same size", False),
        ("vectors.npy", "same size and time", True),
    ],
)
def test_a_stopped_repair_of_a_shard_is_made_up_for(indexed, monkeypatch, name, kind, verify):
    options = IndexOptions(**indexed)
    path = Path(options.index, "00000-00001", name)
    before = path.read_bytes()
    spoil(path, kind)
    with monkeypatch.context() as patched:
        patched.setattr("sciqa.retrieval.index._embed", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_index(replace(options, verify=verify))
    assert build_index(options).details == {"built": 1, "kept": 1}
    assert path.read_bytes() == before


def test_passages_longer_than_the_embedder_reads_are_not_indexed(tmp_path, indexed):
    folder = shutil.copytree(indexed["embedder"], tmp_path / "short")
    about = json.loads((folder / "sentence_bert_config.json").read_text())
    given = {"output": indexed["output"], "embedder": str(folder), "index": str(tmp_path / "other")}
    (folder / "sentence_bert_config.json").write_text(json.dumps(about | {"max_seq_length": 8}))
    said = r"00000-00000.parquet: passage '\w+' has \d+ tokens, but .*short reads no more than 8; run `sciqa corpus"
    with pytest.raises(InputError, match=said):
        build_index(IndexOptions(**given))
    # Nor are those of as few tokens of another tokenizer.
    for name in ("passages", "_passages"):
        shutil.copytree(Path(indexed["output"], name), tmp_path / name)
    inputs = tmp_path / "_passages/inputs.json"
    record = json.loads(inputs.read_text())
    record["inputs"] |= {"passage_tokens": 8, "tokenizer": "another"}
    inputs.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"passage '\w+' has \d+ tokens, but"):
        build_index(IndexOptions(**given, passages=str(tmp_path / "passages")))
    # Passages of at most 256 tokens may be longer than this embedder reads, but these are not.
    (folder / "sentence_bert_config.json").write_text(json.dumps(about | {"max_seq_length": 40}))
    assert build_index(IndexOptions(**given | {"index": str(tmp_path / "third")})).details == {"built": 2, "kept": 0}
    # But with a prefix before them they are.
    given |= {"index": str(tmp_path / "prefixed"), "passage_prefix": "passage: " * 15}
    with pytest.raises(InputError, match=r"passage '\w+' has \d+ tokens, but .*short reads no more than 10 after the"):
        build_index(IndexOptions(**given))
    with pytest.raises(InputError, match="reads no more than 0 after the prefix; pass a shorter --passage-prefix"):
        build_index(IndexOptions(**given | {"passage_prefix": "passage: " * 20}))


def test_passages_with_headings_that_fill_the_embedder_have_vectors_of_their_own(tmp_path, cluster):
    text = " ".join(f"This is fact {number} of iron." for number in range(20))
    (tmp_path / "articles.jsonl").write_text(json.dumps({"title": "iron " * 250, "text": text}) + "\n")
    output = str(tmp_path / "run")
    build_passages(CorpusOptions(output=output, corpus=(str(tmp_path / "articles.jsonl"),)))
    build_index(IndexOptions(output=output))
    vectors = np.load(next(Path(output, "index").rglob("vectors.npy")))
    assert len(np.unique(vectors, axis=0)) == len(vectors) > 1


def test_a_trained_index_that_is_not_the_one_written_is_not_used(indexed):
    options = IndexOptions(**indexed, overwrite=True, factory="IVF1,Flat")
    assert build_index(options).details == {"built": 2, "kept": 0}
    spoil(Path(options.index, "trained.faiss"), "same size")
    Path(options.index, "00000-00001", "index.faiss").unlink()
    with pytest.raises(InputError, match=r"trained.faiss: not the file that was written .*delete trained.json"):
        build_index(options)
    Path(options.index, "trained.json").unlink()
    assert build_index(options).details == {"built": 2, "kept": 0}


def test_what_was_trained_is_not_known_while_another_is_trained(indexed, monkeypatch):
    options = IndexOptions(**indexed, overwrite=True, factory="IVF1,Flat")
    build_index(options)
    monkeypatch.setattr("sciqa.retrieval.index.empty_shards_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("sciqa.retrieval.index.check_index", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        build_index(replace(options, factory="IVF1,SQ8"))
    assert not Path(options.index, "trained.json").exists()


def test_passages_that_changed_are_told_by_any_path_to_them(tmp_path, indexed):
    (tmp_path / "link").symlink_to(indexed["output"])
    shutil.copytree(Path(indexed["output"], "index"), tmp_path / "index")
    made = read_index_manifest(str(tmp_path / "index")) | {"passages": f"{indexed['output']}/passages"}
    storage.write_json(str(tmp_path / "index/manifest.json"), made)
    given = indexed | {"output": str(tmp_path / "link")}
    both = [IndexOptions(**given, index=index) for index in (f"{indexed['output']}/index", str(tmp_path / "index"))]
    assert all(map(finished_index, both))
    manifest = Path(indexed["output"], "_passages/manifest.json")
    about = json.loads(manifest.read_text())
    about["shards"][0]["content"] = "another"
    manifest.write_text(json.dumps(about))
    assert list(map(finished_index, both)) == [None, None]


def test_passages_that_are_not_those_of_the_manifest_are_not_embedded(indexed):
    options = IndexOptions(**indexed)
    shards = tables.read_table_manifest(options.passages, "corpus")["shards"]
    first, second = (Path(options.passages, f"{shard['name']}.parquet") for shard in shards)
    embed = {"model": options.embedder, "threads": 1, "backend": "torch", "device": "cpu"}
    worker = EmbedIndexShard(options, embed, options.embedding())
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=f"^{second}: not the passages .* delete this file, then run `sciqa corpus`"):
        worker({"part": shards[1]})


def test_an_index_of_another_model_is_refused(tmp_path, small_index):
    other = tmp_path / "model"
    shutil.copytree(find_model(MINILM).folder, other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    for step, options in (
        (build_index, IndexOptions(output=small_index, embedder=str(other))),
        (retrieve, RetrieveOptions(output=small_index, embedder=str(other), exam="test")),
    ):
        with pytest.raises(InputError, match=r"manifest.json: this index was built with .*all-MiniLM-L6-v2"):
            step(options)


def test_contexts_hold_the_passages_nearest_to_question_and_options(tmp_path, small_index, exam_file):
    options = RetrieveOptions(output=str(tmp_path), index=f"{small_index}/index", exam=exam_file, context_passages=2)
    summary = retrieve(options)
    assert summary.details["recall"] >= 0.9
    contexts = tables.read_table(options.contexts).to_pylist()
    exam = tables.read_table(f"{tmp_path}/exam.parquet").to_pylist()
    assert [row["id"] for row in contexts] == [row["id"] for row in exam]
    for row in contexts:
        scores = [passage["score"] for passage in row["passages"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert all(passage["text"] in row["context"] for passage in row["passages"][:2])
        assert row["passages"][2]["text"] not in row["context"]
    assert "kept" in retrieve(options).made


def test_a_context_given_by_the_exam_comes_first(tmp_path, small_index):
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"id": "1", "prompt": "Which?", "A": "x", "B": "y", "context": "Given by the exam."}\n')
    retrieve(RetrieveOptions(output=str(tmp_path / "run"), index=f"{small_index}/index", exam=str(exam)))
    row = tables.read_table(str(tmp_path / "run" / "contexts")).to_pylist()[0]
    assert row["context"].startswith("Given by the exam.\n")

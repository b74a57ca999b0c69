"""Sharded search against one FAISS index over all vectors."""

import pickle
from functools import partial

import bm25s
import faiss
import numpy as np
import pyarrow as pa
import pytest
import ray

from sciqa.core import cluster as core_cluster
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.corpus.articles import read_articles
from sciqa.corpus.chunking import titled_chunk
from sciqa.retrieval import IndexOptions, bm25, search
from sciqa.retrieval.bm25 import split_bm25_terms
from sciqa.retrieval.index import check_index, read_index_manifest, train_index_factory
from sciqa.retrieval.index_shards import ROW_GROUP, train_index_shards, write_index_shard
from sciqa.retrieval.queries import rank_queries
from sciqa.retrieval.search import (
    LocalSearch,
    SearchHits,
    ShardedSearch,
    fuse_search_hits,
    merge_search_hits,
    search_flat,
)
from sciqa.retrieval.search_parameters import check_search_parameters
from sciqa.retrieval.shard_files import ShardFiles
from sciqa.retrieval.vectors import StoredVectors

DIMENSION = 32


def flat_search(vectors, queries, k):
    """Every score from one flat index, put in order by score and then by row."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    scores, rows = index.search(queries, len(vectors))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def make_index(folder, vectors, shards, **options):
    """Write an index of the vectors in shards, as the embedding workers leave them for `write_index_shard`."""
    options = IndexOptions(index=str(folder), **options)
    named = []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        name = f"{number:05d}"
        np.save(_made(folder / name) / "vectors.npy", vectors[rows].astype(options.vector_type))
        columns = {name: [f"{name} {row}" for row in rows] for name in ("title", "section", "text")}
        table = pa.table({"passage_id": [str(row) for row in rows], **columns})
        written = tables.write_table(str(folder / name / "passages.parquet"), table, ROW_GROUP)
        digests = {"passages.parquet": written}
        record = {"name": name, "rows": len(rows), "dimension": DIMENSION, "sha256": digests}
        storage.write_json(str(folder / name / "embedded.json"), record)
        named.append({"name": name, "rows": len(rows), "sha256": "", "content": name})
    trained = train_index_factory(options, named, options.building(options.embedding()))
    records = [write_index_shard({"part": shard}, options, trained)["record"] for shard in named]
    return {"shards": records, "factory": options.factory, "metric": options.metric}


def _made(folder):
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def vectors():
    """Vectors of small whole numbers, so that sums are exact and many different rows score the same."""
    rng = np.random.default_rng(0)
    base = rng.integers(-2, 3, (150, DIMENSION)).astype(np.float32)
    return base[rng.integers(0, len(base), 500)]


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).integers(-1, 2, (40, DIMENSION)).astype(np.float32)


@pytest.mark.parametrize(
    ("shards", "k"),
    [
        (8, 5),
        (3, 1000),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1), (1, 5), (1, 1000), (3, 1), (3, 5), (8, 1))),
        pytest.param(8, 1000, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_shards_equals_one_flat_index_with_its_ties(tmp_path, cluster, vectors, queries, shards, k):
    index = ShardedSearch(str(tmp_path), make_index(tmp_path, vectors, shards), groups=min(shards, 2))
    hits = index.search(queries, k)
    scores, rows = flat_search(vectors, queries, k)
    assert (scores[:, :-1] == scores[:, 1:]).any() or k == 1  # there are ties to get right
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)
    found = index.passages(hits.rows[:, 0])
    assert [int(passage["passage_id"]) for passage in found] == rows[:, 0].tolist()


def test_real_embeddings_in_shards_equal_one_flat_index(small_index):
    index_folder = storage.join_paths(small_index, "index")
    manifest = read_index_manifest(index_folder)
    vectors = np.concatenate(
        [np.load(storage.join_paths(index_folder, shard["name"], "vectors.npy")) for shard in manifest["shards"]]
    )
    assert len(manifest["shards"]) > 2
    queries = vectors[::17] + 0.01
    hits = ShardedSearch(index_folder, manifest, groups=2).search(queries, 10)
    scores, rows = flat_search(vectors, queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)


def test_a_search_actor_that_dies_is_replaced(tmp_path, cluster, vectors, queries):
    index = ShardedSearch(str(tmp_path), make_index(tmp_path, vectors, 3), groups=2)
    before = index.search(queries, 5)
    for group in index.groups:
        ray.kill(group, no_restart=False)
    after = index.search(queries, 5)
    np.testing.assert_array_equal(before.rows, after.rows)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_the_cut_among_equal_scores_takes_the_lowest_rows():
    index = faiss.IndexFlatIP(2)
    index.add(np.tile(np.array([[1, 0]], np.float32), (50, 1)))
    hits = search_flat(index, np.array([[1, 0]], np.float32), 4, offset=100)
    assert hits.rows.tolist() == [[100, 101, 102, 103]]
    assert merge_search_hits([hits, search_flat(index, np.array([[1, 0]], np.float32), 4)], 4).rows.tolist() == [
        [0, 1, 2, 3]
    ]


@pytest.fixture(scope="module")
def unit_vectors():
    """Vectors around some hundred centres, as those of passages lie around subjects."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(100, DIMENSION))
    vectors = centres[rng.integers(100, size=6000)] + 0.5 * rng.normal(size=(6000, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("factory", "parameters", "metric"),
    [
        ("IVF32,Flat", "nprobe=12", "l2"),
        pytest.param("IVF32,PQ8", "nprobe=12", "inner-product", marks=pytest.mark.slow),
        pytest.param("OPQ8,IVF32,PQ8", "nprobe=12", "l2", marks=pytest.mark.slow),
        ("HNSW16", "efSearch=128", "inner-product"),
    ],
)
def test_candidates_of_any_factory_get_the_exact_scores(tmp_path, cluster, unit_vectors, factory, parameters, metric):
    manifest = make_index(tmp_path, unit_vectors, 3, factory=factory, metric=metric)
    index = ShardedSearch(str(tmp_path), manifest, groups=2, parameters=parameters, candidates=200)
    queries = unit_vectors[::60]
    hits = index.search(queries, 10)
    _, rows = flat_search(unit_vectors, queries, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(hits.rows.tolist(), rows.tolist(), strict=True)])
    assert found >= 0.95
    np.testing.assert_allclose(hits.scores, (queries[:, None] * unit_vectors[hits.rows]).sum(axis=2), atol=1e-5)
    assert (np.diff(hits.scores, axis=1) <= 0).all()


@pytest.mark.parametrize(
    ("factory", "parameters", "reason"),
    [
        ("Flat", "nprobe=32", "could not set parameter nprobe"),
        ("HNSW4", "efSerch=9", "could not set parameter efSerch"),
        ("HNSW4", "efSearch", "could not interpret parameters efSearch"),
        ("HNSW4", "efSearch=0", "0 given for efSearch, 1 or more expected"),
        ("HNSW4", "efSearch=-5", "-5 given for efSearch"),
        ("HNSW4", "efSearch=9,efSearch=1e30", "1e30 given for efSearch"),
        ("HNSW4", "efSearch=nan", "nan given for efSearch"),
        ("HNSW4", "efSearch=2efSearch", "2efSearch given for efSearch"),
        ("HNSW4,RFlat", "k_factor_rf=0.5", "0.5 given for k_factor_rf"),
    ],
)
def test_search_parameters_that_an_index_has_not_are_refused(tmp_path, unit_vectors, factory, parameters, reason):
    manifest = make_index(tmp_path, unit_vectors[:40], 2, factory=factory)
    for opened in (LocalSearch, partial(ShardedSearch, groups=2)):
        with pytest.raises(InputError, match=rf"--search-parameters {parameters}: .*{reason}"):
            opened(str(tmp_path), manifest, parameters=parameters)


def test_parameters_of_all_kinds_are_taken():
    about = {"factory": "IVF4_HNSW4,Flat,RFlat", "metric": "l2", "shards": [{"dimension": 8}]}
    check_search_parameters(about, "nprobe=2, quantizer_efSearch=16,max_codes=0,k_factor_rf=1.5")


def test_search_parameters_are_tried_with_the_metric_of_the_index(tmp_path, unit_vectors):
    manifest = make_index(tmp_path, unit_vectors[:40], 2, factory="LSH", metric="l2")  # of no other metric
    with pytest.raises(InputError, match=r"--search-parameters nprobe=32: .*could not set parameter nprobe"):
        LocalSearch(str(tmp_path), manifest, parameters="nprobe=32")


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("IDMap,Flat", "leave IDMap out"),
        ("PCA64,IDMap,Flat", "leave IDMap out"),
        ("HNSW0", "HNSW0 given, a number of at least 1 expected"),
        ("PQ48x0", "x0 given, a number"),
        ("IVF0,Flat", "IVF0 given, a number"),
        ("NSG32", "NSG takes neither the few vectors"),
    ],
)
def test_a_factory_that_takes_no_vectors_is_refused(tmp_path, factory, reason):
    with pytest.raises(InputError, match=rf"--factory {factory}: .*{reason}"):
        check_index(IndexOptions(index=str(tmp_path), factory=factory))
    check_index(IndexOptions(index=str(tmp_path), factory="OPQ48,IVF1024_NSG32,PQ48x10"))


def test_vectors_that_an_index_does_not_take_are_one_line(tmp_path, unit_vectors):
    with pytest.raises(InputError, match=r"--factory NSG4: .* 40 vectors of 00000 \(.*cannot build a graph smaller"):
        make_index(tmp_path, unit_vectors[:40], 1, factory="NSG4")


def test_no_more_vectors_train_an_index_than_are_asked_for(tmp_path, unit_vectors, monkeypatch):
    trained = []
    monkeypatch.setattr(faiss.IndexIVFFlat, "train", lambda self, sample: trained.append(sample))
    shards = [{"name": f"{number:05d}", "rows": 1 + number % 3} for number in range(20)]  # 39 in all
    ends = np.cumsum([shard["rows"] for shard in shards])
    for shard, end in zip(shards, ends, strict=True):
        (tmp_path / shard["name"]).mkdir()
        np.save(tmp_path / shard["name"] / "vectors.npy", unit_vectors[end - shard["rows"] : end])
    options = IndexOptions(index=str(tmp_path), factory="IVF4,Flat", train_vectors=10)
    assert train_index_shards({"part": shards}, options)["rows"] == 10
    np.testing.assert_array_equal(trained[0], unit_vectors[: ends[-1] : 4])


def test_vectors_that_are_cut_short_on_object_storage_are_one_line(tmp_path, s3, unit_vectors):
    np.save(tmp_path / "vectors.npy", unit_vectors[:40])
    path = f"s3://bucket/{tmp_path.name}/vectors.npy"
    storage.write_bytes(path, (tmp_path / "vectors.npy").read_bytes()[:-4])
    np.testing.assert_array_equal(StoredVectors(path).read(np.array([3, 1])), unit_vectors[[3, 1]])
    with pytest.raises(InputError, match=f"{path}: cut short"):
        StoredVectors(path).read(np.array([39]))


@pytest.mark.parametrize("factory", ["Flat", pytest.param("IVF32,PQ8", marks=pytest.mark.slow)])
def test_one_process_finds_what_the_actors_find(tmp_path, cluster, unit_vectors, factory):
    manifest = make_index(tmp_path, unit_vectors, 3, factory=factory)
    settings = {"parameters": "nprobe=12" if "IVF" in factory else None, "candidates": 50}
    here, spread = (
        LocalSearch(str(tmp_path), manifest, **settings),
        ShardedSearch(str(tmp_path), manifest, 2, **settings),
    )
    for k in (1, 10, 60):
        found, expected = here.search(unit_vectors[::300], k), spread.search(unit_vectors[::300], k)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
    texts = ["title 17 and text 4000", "5999"]
    found, expected = here.search_words(texts, 5), spread.search_words(texts, 5)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    rows = np.array([5999, 0, 3000, 17])
    assert here.passages(rows) == spread.passages(rows)
    assert [passage["passage_id"] for passage in here.passages(rows)] == ["5999", "0", "3000", "17"]


def test_half_precision_on_disk_is_read_row_by_row(tmp_path, cluster, unit_vectors):
    make_index(tmp_path, unit_vectors[:100], 1, vector_type="float16")
    stored = StoredVectors(str(tmp_path / "00000" / "vectors.npy"))
    rows = np.array([99, 3, 3, 50])
    np.testing.assert_allclose(stored.read(rows), unit_vectors[rows], atol=1e-3)


def test_hits_of_many_groups_are_merged_in_a_tree(tmp_path, cluster, vectors, queries, monkeypatch):
    monkeypatch.setattr(search, "FAN_IN", 2)
    manifest, expected = make_index(tmp_path, vectors, 12), flat_search(vectors, queries, 7)[1]
    for index in (ShardedSearch(str(tmp_path), manifest, groups=5), LocalSearch(str(tmp_path), manifest)):
        np.testing.assert_array_equal(index.search(queries, 7).rows, expected)


def test_words_of_shards_rank_like_one_bm25_index_each(small_index):
    folder = storage.join_paths(small_index, "index")
    manifest = read_index_manifest(folder)
    asked = ["Which planet is the largest?", "zzzz unknown zzzz"]
    hits = ShardedSearch(folder, manifest, groups=2).search_words(asked, 6)
    expected, first = [], 0
    for shard in manifest["shards"]:
        rows = tables.read_table(storage.join_paths(folder, shard["name"], "passages.parquet")).to_pylist()
        texts = [titled_chunk(row["title"], row["section"], row["text"]) for row in rows]
        reference = bm25s.BM25()
        reference.index(split_bm25_terms(texts), show_progress=False)
        known = [term for term in split_bm25_terms(asked)[0] if term in reference.vocab_dict]
        expected += [(-score, first + row) for row, score in enumerate(reference.get_scores(known)) if score > 0]
        first += len(rows)
    assert hits.rows[0].tolist() == [row for _, row in sorted(expected)[:6]]
    np.testing.assert_allclose(hits.scores[0], [-score for score, _ in sorted(expected)[:6]], rtol=1e-5)
    assert hits.rows[1].tolist() == [-1] * 6


@pytest.mark.parametrize(("block", "dense", "k"), [(1 << 16, 0.1, 20), (500, 0.02, 20), (1, 1, 2)])
def test_bm25_over_shards_is_every_score_in_order(tmp_path, monkeypatch, block, dense, k):
    """Scores of all queries together, in parts, and of the best kept from shard to shard, are those of bm25s alone."""
    monkeypatch.setattr(bm25, "BLOCK", block)
    monkeypatch.setattr(bm25, "DENSE", dense)
    texts = [article["text"] for article, _ in zip(read_articles("demo"), range(700), strict=False)] + ["the", "of a"]
    asked = [text.split(". ")[-1] for text in texts[::12]]
    asked = [text + own for text in asked for own in ("", " of iron", " of a metal")] + ["", "zzzz", "the"]
    shards, expected = [], np.zeros((len(asked), len(texts)), np.float32)
    for first in (0, 300, 600, 700):
        own = texts[first : min(first + 300, 700)] if first < 700 else texts[700:]
        (tmp_path / str(first)).write_bytes(bm25.bm25_file(own))
        shards.append((bm25.Bm25Index(str(tmp_path / str(first))), first))
        assert shards[-1][0].passages == len(own)
        if first < 700:
            reference = bm25s.BM25()
            reference.index(split_bm25_terms(own), show_progress=False)
            for query, terms in enumerate(split_bm25_terms(asked)):
                if known := [term for term in terms if term in reference.vocab_dict]:
                    expected[query, first : first + len(own)] = reference.get_scores(known)
    scores, rows = bm25.search_bm25(shards, asked, k)
    order = np.lexsort((np.broadcast_to(np.arange(len(texts)), expected.shape), -expected))[:, :k]
    best = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_array_equal(rows, np.where(best > 0, order, -1))
    np.testing.assert_array_equal(scores, np.where(best > 0, best, -np.inf))
    assert (rows[-3:] == -1).all()
    assert (rows[:-3, -1] >= 0).any()


def test_all_rankings_are_asked_at_once_and_each_gets_its_own_hits():
    asked = []

    def rank(numbers):
        asked.append(numbers.tolist())
        return SearchHits(numbers[:, None].astype(np.float32), numbers[:, None])

    hits = rank_queries([["a", "b", "c"], [None, "d", "e"], [None, None, "f"]], rank, 2)
    assert asked == [[0, 1, 3, 2, 4, 5]]  # the texts of a question stand together
    assert [each.rows.tolist() for each in hits] == [
        [[0, -1], [1, -1], [2, -1]],
        [[-1, -1], [3, -1], [4, -1]],
        [[-1, -1], [-1, -1], [5, -1]],
    ]
    assert hits[2].scores.tolist() == [[-np.inf, -np.inf], [-np.inf, -np.inf], [5, -np.inf]]
    (none,) = rank_queries([[]], rank, 2)
    assert (none.rows.shape, asked[1:]) == ((0, 2), [[]])


def test_words_of_no_query_and_of_passages_without_words_are_no_hits(tmp_path):
    path = tmp_path / "bm25"
    path.write_bytes(bm25.bm25_file(["...", ""]))
    for queries in ([], ["iron", ""]):
        scores, rows = bm25.search_bm25([(bm25.Bm25Index(str(path)), 0)], queries, 2)
        assert (scores.dtype, rows.dtype, rows.tolist()) == (np.float32, np.int64, [[-1, -1]] * len(queries))
        assert np.isneginf(scores).all()


def test_terms_of_other_stems_are_refused_and_are_those_of_another_index(tmp_path, monkeypatch):
    assert bm25.bm25_terms_hash() == bm25.TERMS
    path, building = tmp_path / "words.arrow", IndexOptions(index=str(tmp_path)).building({})
    path.write_bytes(bm25.bm25_file(["Iron rusts."]))
    monkeypatch.setattr(bm25, "bm25_terms_hash", lambda: "another")
    with pytest.raises(InputError, match=f"{path}: made with other versions of PyStemmer or bm25s"):
        bm25.Bm25Index(str(path))
    assert IndexOptions(index=str(tmp_path)).building({}) == building | {"terms": "another"}
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0).replace_schema_metadata({"passages": "1"})
    with pa.ipc.new_file(str(path), batch.schema) as writer:  # as earlier versions wrote it
        writer.write_batch(batch)
    assert bm25.Bm25Index(str(path)).passages == 1


def test_a_copy_of_an_index_with_files_of_another_is_not_searched(tmp_path, unit_vectors):
    sent = pickle.dumps(LocalSearch(str(tmp_path), make_index(tmp_path, unit_vectors[:40], 2)))
    pickle.loads(sent)
    path = tmp_path / "00001" / "words.arrow"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=f"{path}: not the file that was written"):
        pickle.loads(sent)


def test_a_shard_of_other_rows_than_its_record_says_is_found_when_it_is_opened(tmp_path, unit_vectors):
    manifest = make_index(tmp_path, unit_vectors[:90], 2, factory="HNSW4")
    index = LocalSearch(str(tmp_path), manifest)
    index.group.shards[1].record["rows"] += 1
    ask = {
        "index.faiss": lambda: ShardFiles.faiss.func(index.group.shards[1]),
        "words.arrow": lambda: index.search_words(["title"], 1),
        "vectors.npy": lambda: index.search(unit_vectors[:1], 1),
        "passages.parquet": lambda: index.passages(np.array([60])),
    }
    for name, action in ask.items():
        with pytest.raises(InputError, match=f"{name}: 45 rows, 46 expected; run `sciqa index --verify`"):
            action()


@pytest.mark.parametrize("name", ["index.faiss", "words.arrow", "vectors.npy", "passages.parquet"])
def test_files_that_vanish_or_are_emptied_after_the_check_are_one_line(tmp_path, unit_vectors, name):
    (record,) = make_index(tmp_path, unit_vectors[:40], 1, factory="HNSW4")["shards"]
    path = tmp_path / "00000" / name
    for change in (lambda: path.write_bytes(b""), path.unlink):
        change()
        shard = ShardFiles(str(tmp_path / "00000"), record, 0)
        with pytest.raises(InputError, match=f"{path}: "):
            getattr(shard, {"index": "faiss"}.get(path.stem, path.stem))


def test_passages_of_an_index_that_was_built_anew_are_not_taken_for_those_that_were_found(tmp_path, unit_vectors):
    index = LocalSearch(str(tmp_path), make_index(tmp_path, unit_vectors[:90], 2))
    path = str(tmp_path / "00001" / "passages.parquet")
    table = tables.read_table(path)
    others = pa.array([f"another text, {row}" for row in range(len(table))])
    tables.write_table(path, table.set_column(table.column_names.index("text"), "text", others), ROW_GROUP)
    assert index.passages(np.array([0]))[0]["text"] == "text 0"
    with pytest.raises(InputError, match=r"00001/passages\.parquet: not the file that was written .* start this step"):
        index.passages(np.array([60]))


def test_shards_on_object_storage_are_searched_from_the_cache(tmp_path, s3, monkeypatch, unit_vectors):
    manifest = make_index(tmp_path / "index", unit_vectors[:300], 2, factory="HNSW4")
    folder = f"s3://bucket/{tmp_path.name}"
    storage.copy_files(str(tmp_path / "index"), folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here, there = LocalSearch(str(tmp_path / "index"), manifest), LocalSearch(folder, manifest)
    for found, expected in (
        (there.search(unit_vectors[:9], 20), here.search(unit_vectors[:9], 20)),
        (there.search_words(["title 17", "text 299"], 5), here.search_words(["title 17", "text 299"], 5)),
    ):
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
    rows = np.array([299, 0, 128, 129, 0])
    assert there.passages(rows) == here.passages(rows)
    copies = [path for path in (tmp_path / "cache/sciqa/copies").iterdir() if path.stat().st_size]
    assert sorted(path.name for path in copies) == sorted(
        shard["sha256"][name] for shard in manifest["shards"] for name in ("index.faiss", "words.arrow")
    )
    path = f"{folder}/00001/index.faiss"
    data = storage.read_bytes(path)
    storage.write_bytes(path, data[:-1] + bytes([data[-1] ^ 1]))
    LocalSearch(folder, manifest)  # what is in the cache is what was written
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=f"{path}: not the file that was written"):
        LocalSearch(folder, manifest)
    with pytest.raises(InputError, match=r"with what is in use .* --cache-bytes is 10"):
        LocalSearch(folder, manifest, cache_bytes=10)


def test_a_search_actor_waits_for_a_node_with_its_memory(tmp_path, cluster, vectors, monkeypatch):
    monkeypatch.setattr(search, "SEARCH_MEMORY", 1 << 60)
    monkeypatch.setattr(core_cluster, "LONGEST_WAIT", 0)
    with pytest.raises(InputError, match=r"too few resources: a worker needs a node with CPU 0\.05, memory"):
        ShardedSearch(str(tmp_path), make_index(tmp_path, vectors, 1), groups=1)


def test_fusion_sums_reciprocal_ranks():
    first = SearchHits(np.array([[3.0, 2.0]]), np.array([[7, 5]]))
    second = SearchHits(np.array([[9.0, -np.inf]]), np.array([[5, -1]]))
    fused = fuse_search_hits([first, second], 3)
    assert fused.rows.tolist() == [[5, 7, -1]]
    np.testing.assert_allclose(fused.scores[0, :2], [1 / 61 + 1 / 62, 1 / 61])


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_questions_asked_together_find_what_each_finds_alone(metric):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 384)).astype(np.float32)
    vectors[2000:] = vectors[:1000]  # what stands twice has equal scores, whatever rounding does
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.index_factory(384, "Flat", metric)
    index.add(vectors)
    queries = vectors[:64] + 0.02 * rng.normal(size=(64, 384)).astype(np.float32)
    together = search_flat(index, queries, 20)
    for number in range(64):
        alone = search_flat(index, queries[number : number + 1], 20)
        np.testing.assert_array_equal(alone.scores[0], together.scores[number])
        np.testing.assert_array_equal(alone.rows[0], together.rows[number])
        assert together.rows[number, :2].tolist() == [number, number + 2000]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("H₂SO₄ dissolves", "H2SO4 dissolves", True),
        ("ﬁsh of co\xadral", "fish of coral", True),
        ("area in cm²", "area in cm2", True),
        ("10⁻¹⁹ C", "10^−19 C", True),
        ("10⁻¹⁹", "1019", False),
        ("10¹⁹", "1019", False),
        ("2½ cups", "2 1/2 cups", True),
        ("2½", "21/2", False),
    ],
)
def test_terms_are_the_same_however_unicode_writes_them_and_powers_are_no_digits(one, other, alike):
    assert (split_bm25_terms([one]) == split_bm25_terms([other])) == alike

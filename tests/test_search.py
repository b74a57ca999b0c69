"""Sharded search against one FAISS index over all vectors."""

import faiss
import numpy as np
import pyarrow as pa
import pytest
import ray

from sciqa import storage
from sciqa.retrieval.index import read_index_manifest, write_faiss
from sciqa.retrieval.search import ShardedIndex, merge_hits, search_flat

DIMENSION = 32


def flat_search(vectors, queries, k):
    """Every score from one flat index, put in order by score and then by row."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    scores, rows = index.search(queries, len(vectors))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def make_index(folder, vectors, shards):
    """Write an index of the vectors in shards, as the embedding workers leave them for `write_faiss`."""
    records = []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        name = f"{number:05d}"
        np.save(_made(folder / name) / "vectors.npy", vectors[rows])
        table = pa.table({"passage_id": [str(row) for row in rows]})
        storage.write_table(str(folder / name / "passages.parquet"), table)
        shard = {"name": name, "rows": len(rows), "sha256": {}, "passages_sha256": ""}
        records.append(write_faiss(shard, str(folder), "revision"))
    return records


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


@pytest.mark.parametrize("shards", [1, 3, 8])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_any_number_of_shards_equals_one_flat_index_with_its_ties(tmp_path, cluster, vectors, queries, shards, k):
    index = ShardedIndex(str(tmp_path), make_index(tmp_path, vectors, shards), groups=min(shards, 2))
    hits = index.search(queries, k)
    scores, rows = flat_search(vectors, queries, k)
    assert (scores[:, :-1] == scores[:, 1:]).any() or k == 1  # there are ties to get right
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)
    found = index.passages(hits.rows[:, 0])
    assert [int(passage["passage_id"]) for passage in found] == rows[:, 0].tolist()


def test_real_embeddings_in_shards_equal_one_flat_index(small_index):
    index_folder = storage.join(small_index, "index")
    manifest = read_index_manifest(index_folder)
    vectors = np.concatenate(
        [np.load(storage.join(index_folder, shard["name"], "vectors.npy")) for shard in manifest["shards"]]
    )
    assert len(manifest["shards"]) == 5
    queries = vectors[::17] + 0.01
    hits = ShardedIndex(index_folder, manifest["shards"], groups=2).search(queries, 10)
    scores, rows = flat_search(vectors, queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)


def test_a_search_actor_that_dies_is_replaced(tmp_path, cluster, vectors, queries):
    index = ShardedIndex(str(tmp_path), make_index(tmp_path, vectors, 3), groups=2)
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
    assert merge_hits([hits, search_flat(index, np.array([[1, 0]], np.float32), 4)], 4).rows.tolist() == [[0, 1, 2, 3]]

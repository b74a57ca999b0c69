"""Duplicates and near duplicates over all parts of a corpus, found by MinHash without holding the corpus.

A passage's signature is `BANDS` hashes, each of `ROWS` minima over its word triples (Broder 1997; bands as in
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4). Two passages are near duplicates when at
least `EQUAL` of the hashes agree: so are found all pairs with a Jaccard similarity of 1, 98 % of those with 0.98, 73 %
with 0.95, 22 % with 0.9 and 0.5 % with 0.8. Such pairs agree in one of the first `BANDS - EQUAL + 1` hashes, the keys;
passages are compared where they share a key, and the later one in the order of the corpus is dropped. So what is
dropped does not depend on how the corpus was split.
"""

import hashlib
import io
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from rensa import RMinHash

from sciqa import storage

BANDS, ROWS, EQUAL, SEED = 8, 8, 5, 1
KEYS = BANDS - EQUAL + 1
#: Parts of the range of keys; a task holds one at a time.
BUCKETS = 64
#: Of more passages with one key than this, the others are compared with the first ones only.
COMPARED = 1000

WORD = re.compile(r"\w+")
SIGNATURE = np.dtype((np.uint32, BANDS))
ENTRY = np.dtype([("key", np.uint64), ("title", np.uint64), ("row", np.uint32), ("signature", SIGNATURE)])
DROPPED = pa.schema([("part", pa.uint32()), ("row", pa.uint32())])


def title_hash(title: str) -> int:
    """Return 64 bits that stand for an article."""
    return int.from_bytes(hashlib.blake2b(title.encode(), digest_size=8).digest())


def sign(texts: list[str]) -> np.ndarray:
    """Return the signature of each text, uint32, shape (texts, BANDS)."""
    shingles = []
    for text in texts:
        words = WORD.findall(text.lower())
        shingles.append([" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))])
    minima = RMinHash.digest_matrix_from_token_sets(shingles, BANDS * ROWS, SEED).to_rows()
    minima = np.array(minima, np.uint64).reshape(len(texts), BANDS, ROWS)
    odd = np.random.default_rng(SEED).integers(1 << 63, size=ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return ((minima * odd).sum(axis=2, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32)


def write_entries(path: str, signatures: np.ndarray, titles: np.ndarray) -> None:
    """Write a part's entries, one per passage and key, as an Arrow file with a batch per bucket."""
    entries = np.empty((len(signatures), KEYS), ENTRY)
    entries["row"] = np.arange(len(signatures))[:, None]
    entries["title"], entries["signature"] = titles[:, None], signatures[:, None]
    entries["key"] = signatures[:, :KEYS].astype(np.uint64) * np.uint64(KEYS) + np.arange(KEYS, dtype=np.uint64)
    entries = entries.ravel()
    buckets = signatures[:, :KEYS].ravel() % BUCKETS
    sink = io.BytesIO()
    kind = pa.binary(ENTRY.itemsize)
    with pa.ipc.new_file(sink, pa.schema([("entry", kind)])) as writer:
        for bucket in range(BUCKETS):
            chosen = entries[buckets == bucket]
            data = pa.Array.from_buffers(kind, len(chosen), [None, pa.py_buffer(chosen.tobytes())])
            writer.write_batch(pa.record_batch([data], names=["entry"]))
    storage.write_bytes(path, sink.getvalue())


def find_duplicates(paths: list[str], bucket: int, removed: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (part, row) of the passages of a bucket that repeat an earlier one.

    Args:
        paths: the entries of every part, in the order of the corpus.
        bucket: which of the `BUCKETS`.
        removed: title hashes of articles that are left out, and so are nothing that could be repeated.
    """
    found, parts = [], []
    for number, path in enumerate(paths):
        filesystem, inner = storage.resolve(path)
        with filesystem.open_input_file(inner) as file:
            data = pa.ipc.open_file(file).get_batch(bucket).column(0)
            entries = np.frombuffer(data.buffers()[1] or b"", ENTRY, len(data))
        entries = entries[~np.isin(entries["title"], removed)]
        found.append(entries)
        parts.append(np.full(len(entries), number))
    entries, parts = np.concatenate(found), np.concatenate(parts)
    order = np.lexsort((entries["row"], parts, entries["key"]))
    keys = entries["key"][order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        group = order[start:end]
        signatures = entries["signature"][group]
        for number in range(1, len(group)):
            earlier = signatures[: min(number, COMPARED)]
            if ((earlier == signatures[number]).sum(axis=1) >= EQUAL).any():
                yield int(parts[group[number]]), int(entries["row"][group[number]])

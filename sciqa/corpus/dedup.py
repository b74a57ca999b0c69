"""Find passages that repeat an earlier one, over all parts of a corpus, without loading the corpus into memory.

An exact repeat has the same title, section and text as an earlier passage, apart from white space. On request, near
duplicates are found too: passages with the same title and the same numbers and signs in the same order, whose MinHash
signatures agree. A signature has `BANDS` hashes, each over `ROWS` minima of word triples (Broder 1997; bands as in
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4). Texts are near duplicates if at least
`EQUAL` hashes agree. This finds 98 % of the pairs with a Jaccard similarity of 0.98, 73 % with 0.95, 22 % with 0.9 and
0.5 % with 0.8. Such pairs agree in at least one of the first `BANDS - EQUAL + 1` hashes, which serve as keys.

Passages with a common key are compared, and the later one in corpus order is dropped. The result does not depend on
how the corpus was split.
"""

import hashlib
import io
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from rensa import RMinHash

from sciqa.core import storage

BANDS, ROWS, EQUAL, SEED = 8, 8, 5, 1
KEYS = BANDS - EQUAL + 1
#: Number of buckets that keys are divided into; a task holds one bucket at a time.
BUCKETS = 64
#: Maximum number of passages with the same key, counted from the first, that a later one is compared with.
COMPARED = 1000

WORD = re.compile(r"\w+")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion "
    "half third quarter once twice first second no not never without"
)
#: Parts of a text that near duplicates must share: numbers in figures and words, negations, symbols, Roman numerals
#: and single capital letters.
EXACT = re.compile(
    r"\d+(?:[.,:]\d+)*|[²³¹⁰⁴-⁹₀-₉¼-¾⅐-⅞]|[^\w\s.,;:!?\"()]|\b(?:[A-Z]|[IVXLCDM]+)\b|\b(?i:"
    + NUMBERS.replace(" ", "|")
    + r")\b"
)
#: Two passages may be repeats if key and check are equal. For exact repeats, these are the halves of a hash of the
#: whole passage, and the signature is 0. `passage` is the passage's id as a number.
ENTRY = np.dtype(
    [
        ("key", np.uint64),
        ("check", np.uint64),
        ("title", np.uint64),
        ("passage", np.uint64),
        ("row", np.uint32),
        ("signature", np.dtype((np.uint32, BANDS))),
    ]
)
REPEATS = pa.schema([("part", pa.uint32()), ("row", pa.uint32()), ("repeats", pa.uint64()), ("kind", pa.string())])


def dedup_title_hash(title: str) -> int:
    """Return a 64-bit hash of an article's title."""
    return int.from_bytes(_digest(title)[:8])


def make_dedup_entries(passages: list[dict[str, str]], first: int, near: bool) -> np.ndarray:
    """Return the entries for finding repeats: one per passage, and `KEYS` more for near duplicates.

    Args:
        passages: rows with `passage_id`, `title`, `section` and `text`.
        first: row number of the first passage within its part.
        near: whether to find near duplicates.
    """
    entries = np.zeros((len(passages), 1 + KEYS * near), ENTRY)
    entries["row"] = np.arange(first, first + len(passages))[:, None]
    entries["title"] = np.array([dedup_title_hash(passage["title"]) for passage in passages], np.uint64)[:, None]
    entries["passage"] = np.array([int(passage["passage_id"], 16) for passage in passages], np.uint64)[:, None]
    whole = [_digest(*(passage[name] for name in ("title", "section", "text"))) for passage in passages]
    halves = np.frombuffer(b"".join(whole), np.uint64).reshape(len(passages), 2)
    entries["key"][:, 0], entries["check"][:, 0] = halves.T
    if near and passages:
        signatures = minhash_signatures([passage["text"] for passage in passages])
        guards = [_digest(passage["title"], *EXACT.findall(passage["text"]))[:8] for passage in passages]
        entries["signature"][:, 1:] = signatures[:, None]
        entries["check"][:, 1:] = np.array([int.from_bytes(guard) for guard in guards], np.uint64)[:, None]
        entries["key"][:, 1:] = signatures[:, :KEYS].astype(np.uint64) * np.uint64(KEYS)
        entries["key"][:, 1:] += np.arange(KEYS, dtype=np.uint64)
    return entries.ravel()


def _digest(*texts: str) -> bytes:
    """Return a 128-bit hash of texts, apart from their white space."""
    return hashlib.blake2b("\x1f".join(" ".join(text.split()) for text in texts).encode(), digest_size=16).digest()


def minhash_signatures(texts: list[str]) -> np.ndarray:
    """Return the MinHash signature of each text, uint32, shape (texts, BANDS)."""
    shingles = []
    for text in texts:
        words = WORD.findall(text.lower())
        shingles.append([" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))])
    minima = RMinHash.digest_matrix_from_token_sets(shingles, BANDS * ROWS, SEED).to_rows()
    minima = np.array(minima, np.uint64).reshape(len(texts), BANDS, ROWS)
    odd = np.random.default_rng(SEED).integers(1 << 63, size=ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return ((minima * odd).sum(axis=2, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32)


def write_dedup_entries(path: str, entries: np.ndarray) -> None:
    """Write a part's entries as an Arrow file with one record batch per bucket."""
    buckets = entries["key"] % BUCKETS
    sink = io.BytesIO()
    kind = pa.binary(ENTRY.itemsize)
    with pa.ipc.new_file(sink, pa.schema([("entry", kind)])) as writer:
        for bucket in range(BUCKETS):
            chosen = entries[buckets == bucket]
            data = pa.Array.from_buffers(kind, len(chosen), [None, pa.py_buffer(chosen.tobytes())])
            writer.write_batch(pa.record_batch([data], names=["entry"]))
    storage.write_bytes(path, sink.getvalue())


def find_duplicate_articles(paths: list[str], bucket: int, removed: np.ndarray) -> Iterator[dict]:
    """Yield a row (schema `REPEATS`) for each passage of a bucket that repeats an earlier one, with the earlier id.

    Args:
        paths: files with the entries of every part, in corpus order.
        bucket: number of the bucket, from 0.
        removed: title hashes of removed articles, whose passages are ignored.
    """
    found, numbers = [], []
    for number, path in enumerate(paths):
        filesystem, inner = storage.resolve_storage(path)
        with filesystem.open_input_file(inner) as file:
            data = pa.ipc.open_file(file).get_batch(bucket).column(0)
            entries = np.frombuffer(data.buffers()[1] or b"", ENTRY, len(data))
        entries = entries[~np.isin(entries["title"], removed)]
        found.append(entries)
        numbers.append(np.full(len(entries), number))
    entries, parts = np.concatenate(found), np.concatenate(numbers)
    order = np.lexsort((entries["row"], parts, entries["check"], entries["key"]))
    keys, checks = entries["key"][order], entries["check"][order]
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]) | (checks[1:] != checks[:-1])]))
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        group = order[start:end]
        signatures = entries["signature"][group]
        kind = "near" if signatures.any() else "exact"
        for number in range(1, len(group)):
            earlier = signatures[: min(number, COMPARED)]
            near = (earlier == signatures[number]).sum(axis=1) >= EQUAL
            if near.any():
                row, repeated = entries[group[number]], entries[group[int(near.argmax())]]
                yield {
                    "part": int(parts[group[number]]),
                    "row": int(row["row"]),
                    "repeats": int(repeated["passage"]),
                    "kind": kind,
                }

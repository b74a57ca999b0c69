import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from sciqa import storage
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.corpus.articles import find_sources, read_articles
from sciqa.errors import InputError, find_input_error

LONG = " ".join(f"Sentence number {number} says that water boils at {number} degrees." for number in range(60))
ARTICLES = [
    {"title": "Water", "text": LONG, "url": "https://example.org/water"},
    {"title": "Ice", "text": "Ice is frozen water."},
    {"title": "Nothing", "text": "  "},
    {"title": "Steam", "text": "Steam is water vapour."},
]


def passages_of(output):
    return storage.read_table(storage.join(output, "passages")).to_pylist()


def build(tmp_path, corpus, name="run", **options):
    output = str(tmp_path / name)
    return output, build_passages(CorpusOptions(output=output, corpus=str(corpus), **options))


def test_long_articles_are_cut_between_sentences_and_empty_ones_counted(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    output, summary = build(tmp_path, tmp_path / "a.jsonl", passage_characters=300)
    rows = passages_of(output)
    water = [row["text"] for row in rows if row["title"] == "Water"]
    assert len(water) > 5
    assert all(len(text) <= 300 and text.startswith("Sentence") and text.endswith(".") for text in water)
    assert " ".join(water) == LONG
    assert {row["title"] for row in rows} == {"Water", "Ice", "Steam"}
    assert (summary.details["articles"], summary.details["skipped"]) == (4, 1)
    assert rows[0]["url"] == "https://example.org/water"


def test_jsonl_and_parquet_give_the_same_passages_at_any_shard_size(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    pq.write_table(pa.Table.from_pylist(ARTICLES), tmp_path / "a.parquet")
    first, _ = build(tmp_path, tmp_path / "a.jsonl", "one", passage_characters=300)
    second, summary = build(tmp_path, tmp_path / "a.parquet", "two", passage_characters=300, shard_passages=2)
    assert passages_of(first) == passages_of(second)
    assert len({row["passage_id"] for row in passages_of(first)}) == len(passages_of(first))
    assert len(summary.details["shards"]) > 5


def test_a_rerun_writes_nothing_and_a_changed_corpus_replaces_the_table(tmp_path, cluster):
    corpus = tmp_path / "a.jsonl"
    write_jsonl(corpus, ARTICLES)
    output, _ = build(tmp_path, corpus)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "passages").iterdir()}
    _, summary = build(tmp_path, corpus)
    assert "kept" in summary.made
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "passages").iterdir()}
    write_jsonl(corpus, ARTICLES[1:2])
    build(tmp_path, corpus)
    assert [row["title"] for row in passages_of(output)] == ["Ice"]


def test_manifest_has_the_checksum_of_every_shard(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    output, _ = build(tmp_path, tmp_path / "a.jsonl", shard_passages=1)
    for shard in storage.read_manifest(storage.join(output, "passages"), "corpus")["shards"]:
        data = (tmp_path / "run" / "passages" / f"{shard['name']}.parquet").read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]


def test_the_demo_corpus_is_whole():
    articles = list(read_articles("demo"))
    assert len(articles) == 10_033
    assert all(article["title"] and article["text"] for article in articles)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"title": "Ice"}\n', "row 2: no column 'text'"),
        (b'{"title": "Ice", "text": 5}\n', "row 2, column 'text': text expected, 5 found"),
        (b"not json\n", "row 2: not JSON"),
        (b'{"title": "\xff", "text": "x"}\n', "row 2, byte 12: not UTF-8"),
        (b"[1]\n", "row 2: an object"),
    ],
)
def test_bad_articles_are_named_and_leave_no_table(tmp_path, cluster, line, message):
    corpus = tmp_path / "a.jsonl"
    corpus.write_bytes(json.dumps(ARTICLES[1]).encode() + b"\n" + line)
    with pytest.raises(Exception, match="row 2") as error:
        build(tmp_path, corpus)
    assert message in str(find_input_error(error.value))
    assert not (tmp_path / "run" / "passages" / storage.MANIFEST).exists()


def test_bad_corpora_are_refused_before_work(tmp_path):
    pq.write_table(pa.table({"title": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "a.pdf").write_bytes(b"")
    for path, message in (("a.parquet", "no column 'text'"), ("a.pdf", r"\.jsonl or \.parquet"), ("b", "no such file")):
        with pytest.raises(InputError, match=message):
            find_sources(str(tmp_path / path))

import hashlib
import itertools
import json
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from sciqa import storage
from sciqa.corpus import CorpusOptions, build_passages, duplicates
from sciqa.corpus.articles import find_sources, read_articles
from sciqa.corpus.windows import Splitter, embedded_text, split_sentences
from sciqa.errors import InputError, find_input_error
from sciqa.hub import load_tokenizer

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
    return output, build_passages(CorpusOptions(output=output, corpus=(str(corpus),), **options))


def test_long_articles_are_cut_between_sentences_and_empty_ones_counted(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    output, summary = build(tmp_path, tmp_path / "a.jsonl", passage_tokens=64, passage_overlap=0)
    rows = passages_of(output)
    water = [row["text"] for row in rows if row["title"] == "Water"]
    assert len(water) > 5
    assert all(text.startswith("Sentence") and text.endswith(".") for text in water)
    assert " ".join(water) == LONG
    tokenizer = load_tokenizer("all-MiniLM-L6-v2")
    assert max(len(tokenizer.encode(embedded_text("Water", "", text)).ids) for text in water) <= 64
    assert {row["title"] for row in rows} == {"Water", "Ice", "Steam"}
    assert (summary.details["articles"], summary.details["skipped"]) == (3, {"no text": 1})
    assert rows[0]["url"] == "https://example.org/water"


def test_windows_overlap_by_whole_sentences_and_keep_room_for_their_headings():
    splitter = Splitter(load_tokenizer("all-MiniLM-L6-v2"), 64, 2)
    windows = [split_sentences(text) for text in splitter.split("Water", "Boiling", LONG)]
    assert [sentence.strip() for sentence in windows[0][-2:]] == [sentence.strip() for sentence in windows[1][:2]]
    assert all(len(set(after) - set(before)) > 0 for before, after in itertools.pairwise(windows))
    said = dict.fromkeys(sentence.strip() for window in windows for sentence in window)
    assert " ".join(said) == LONG
    lengths = [
        len(splitter.tokenizer.encode(embedded_text("Water", "Boiling", "".join(window))).ids) for window in windows
    ]
    assert max(lengths) <= 64


def test_a_sentence_longer_than_a_passage_is_cut_between_words():
    splitter = Splitter(load_tokenizer("all-MiniLM-L6-v2"), 48, 1)
    text = " ".join(f"oxidoreductase{number}" for number in range(60))
    parts = list(splitter.split("Enzymes", "", text))
    assert len(parts) > 5
    assert " ".join(parts) == text


def test_jsonl_and_parquet_give_the_same_passages_at_any_shard_size(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text() + "\n")  # a blank line is no row
    pq.write_table(pa.Table.from_pylist(ARTICLES), tmp_path / "a.parquet")
    first, _ = build(tmp_path, tmp_path / "a.jsonl", "one", passage_tokens=64)
    second, summary = build(tmp_path, tmp_path / "a.parquet", "two", passage_tokens=64, shard_passages=2)
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


def test_an_empty_corpus_is_refused(tmp_path, cluster):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match=r"a\.jsonl: empty; files with articles expected"):
        build(tmp_path, tmp_path / "a.jsonl")


def test_passages_longer_than_the_embedder_reads_are_refused(tmp_path):
    with pytest.raises(InputError, match="--passage-tokens: 300 given, but all-MiniLM-L6-v2 reads no more than 256"):
        build_passages(CorpusOptions(output=str(tmp_path), passage_tokens=300))


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
    (tmp_path / "a.doc").write_bytes(b"")
    for path, message in (("a.parquet", "no column 'text'"), ("a.doc", r"\.parquet, \.jsonl"), ("b", "no such file")):
        with pytest.raises(InputError, match=message):
            find_sources((str(tmp_path / path),))


def reworded(text, number):
    return text.replace("boils at 7 degrees", f"boils at {number} degrees")


def test_repeats_are_dropped_wherever_they_stand_however_the_corpus_is_split(tmp_path, cluster):
    others = list(islice(read_articles("demo"), 60))
    near = {"title": "Wine", "text": reworded(LONG, 8)}
    rows = [ARTICLES[0], *others, near, *others[:5], {"title": "Ice", "text": "Ice is not water that is frozen."}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    first, one = build(tmp_path, tmp_path / "a.jsonl", "one", passage_tokens=256)
    second, many = build(tmp_path, tmp_path / "a.jsonl", "many", passage_tokens=256, part_bytes=4000, shard_passages=9)
    assert passages_of(first) == passages_of(second)
    assert len(many.details["shards"]) > len(one.details["shards"])
    titles = [row["title"] for row in passages_of(first)]
    assert "Wine" not in titles
    assert titles.count("Ice") == 1
    assert (
        one.details["duplicates"]
        == many.details["duplicates"]
        == 5 + sum(row["title"] == "Water" for row in passages_of(first))
    )


def test_signatures_agree_as_often_as_texts_are_alike():
    rng = np.random.default_rng(0)
    words = rng.integers(10_000, size=(400, 120))
    changed = words.copy()
    changed[:200, 60] += 10_000  # one word of 120 changed: 115 of 121 triples stay
    changed[200:] += 10_000
    texts = [" ".join(map(str, row)) for row in words]
    others = [" ".join(map(str, row)) for row in changed]
    near = (duplicates.sign(texts) == duplicates.sign(others)).sum(axis=1) >= duplicates.EQUAL
    assert near[:200].mean() > 0.6
    assert not near[200:].any()


def test_a_later_corpus_and_removed_articles_leave_the_other_shards_alone(tmp_path, cluster):
    articles = list(islice(read_articles("demo"), 200))
    write_jsonl(tmp_path / "a.jsonl", articles[:150])
    write_jsonl(tmp_path / "b.jsonl", articles[150:])
    (tmp_path / "gone.txt").write_text(f"{articles[3]['title']}\n")
    settings = {"output": str(tmp_path / "run"), "shard_passages": 40}
    paths = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    settings["part_bytes"] = (tmp_path / "a.jsonl").stat().st_size
    before = build_passages(CorpusOptions(corpus=paths[:1], **settings)).details["shards"]
    after = build_passages(CorpusOptions(corpus=paths, **settings)).details["shards"]
    assert after[: len(before)] == before
    assert len(after) > len(before)
    removed = build_passages(CorpusOptions(corpus=paths, remove=str(tmp_path / "gone.txt"), **settings))
    assert removed.details["shards"][1:] == after[1:]
    assert removed.details["removed"] == after[0]["rows"] - removed.details["shards"][0]["rows"] > 0
    assert articles[3]["title"] not in {row["title"] for row in passages_of(settings["output"])}
    build_passages(CorpusOptions(corpus=paths[:1], **settings))
    assert len(passages_of(settings["output"])) == sum(shard["rows"] for shard in before)


def test_text_and_pdf_files_are_an_article_each(tmp_path, cluster):
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "Ice.txt").write_text("Ice is frozen water.")
    writer = PdfWriter()
    page = writer.add_blank_page(400, 400)
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = StreamObject()
    stream.set_data(b"BT /F1 12 Tf 20 300 Td (Steam is water va-) Tj 0 -14 Td (pour.) Tj ET")
    page[NameObject("/Contents")] = stream
    writer.write(folder / "Steam.pdf")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    output, summary = build(tmp_path, folder)
    assert {row["title"]: row["text"] for row in passages_of(output)} == {
        "Ice": "Ice is frozen water.",
        "Steam": "Steam is water vapour.",
    }
    assert summary.details["skipped"] == {"unreadable PDF": 1}

import hashlib
import itertools
import json
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import write_pdf

from sciqa.core import storage, tables
from sciqa.core.errors import HANDLING, InputError, QuestionError, find_input_error
from sciqa.core.model_files import find_model, model_file_tokenizer
from sciqa.corpus import dedup as duplicates
from sciqa.corpus import parts
from sciqa.corpus.articles import find_article_files, read_articles, split_articles
from sciqa.corpus.chunking import ChunkSplitter, split_sentences, titled_chunk
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.parts import part_path, split_part, write_part_duplicates, write_parts
from sciqa.corpus.passages import build_passages

LONG = " ".join(f"Sentence number {number} says that water boils at {number} degrees." for number in range(60))
ARTICLES = [
    {"title": "Water", "text": LONG, "url": "https://example.org/water"},
    {"title": "Ice", "text": "Ice is frozen water."},
    {"title": "Nothing", "text": "  "},
    {"title": "Steam", "text": "Steam is water vapour."},
]
TOKENIZER = find_model("all-MiniLM-L6-v2").tokenizer


def passages_of(output):
    return tables.read_table(storage.join_paths(output, "passages")).to_pylist()


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
    tokenizer = model_file_tokenizer("all-MiniLM-L6-v2")
    assert max(len(tokenizer.encode(titled_chunk("Water", "", text)).ids) for text in water) <= 64
    assert {row["title"] for row in rows} == {"Water", "Ice", "Steam"}
    assert (summary.details["articles"], summary.details["skipped"]) == (3, {"no text": 1})
    assert rows[0]["url"] == "https://example.org/water"


def test_windows_overlap_by_whole_sentences_and_keep_room_for_their_headings():
    splitter = ChunkSplitter(model_file_tokenizer("all-MiniLM-L6-v2"), 64, 2)
    windows = [split_sentences(text) for text in splitter.split("Water", "Boiling", LONG)]
    assert [sentence.strip() for sentence in windows[0][-2:]] == [sentence.strip() for sentence in windows[1][:2]]
    assert all(len(set(after) - set(before)) > 0 for before, after in itertools.pairwise(windows))
    said = dict.fromkeys(sentence.strip() for window in windows for sentence in window)
    assert " ".join(said) == LONG
    lengths = [
        len(splitter.tokenizer.encode(titled_chunk("Water", "Boiling", "".join(window))).ids) for window in windows
    ]
    assert max(lengths) <= 64


def test_headings_that_leave_no_room_for_a_text_are_cut():
    splitter = ChunkSplitter(model_file_tokenizer("all-MiniLM-L6-v2"), 64, 0)
    assert splitter.headings("Water", "Boiling") == ("Water", "Boiling")
    for title, section in (("word " * 500, "Boiling"), ("Water", "part, " * 500), ("x" * 5000, "y" * 5000)):
        cut = splitter.headings(title, section)
        assert title.startswith(cut[0])
        assert section.startswith(cut[1])
        assert cut[0]
        passages = list(splitter.split(*cut, "It boils when it is hot. " * 20))
        assert len(passages) > 1
        assert max(len(splitter.tokenizer.encode(titled_chunk(*cut, text)).ids) for text in passages) <= 64
    assert splitter.headings("Water", "part, " * 500)[0] == "Water"


@pytest.mark.parametrize("space", "\u00a0\u2009\u202f\u3000")
def test_a_wide_space_after_a_capital_letter_and_before_a_full_stop(space):
    text = f"He took vitamin K{space}. It\thelped{space}. Then\u00a0he rose."
    assert split_sentences(text) == [f"He took vitamin K{space}. ", f"It\thelped{space}. ", "Then\u00a0he rose."]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text("abcde", min_size=1, max_size=5), min_size=1, max_size=90),
    st.lists(st.sampled_from([" ", " ", ". ", "\n", ".\n\n", "\n\n", " \n", "; "]), min_size=1, max_size=9),
)
def test_passages_hold_every_word_of_a_text_by_itself_and_in_order(words, between):
    text = "".join(word + space for word, space in zip(words, itertools.cycle(between), strict=False))
    passages = list(ChunkSplitter(model_file_tokenizer("all-MiniLM-L6-v2"), 32, 0).split("", "", text))
    assert " ".join(passages).split() == text.split()


def test_tables_longer_than_a_passage_are_cut_between_lines():
    lines = [f"Metal {number}: melting point {number} degrees; mass {number} grams" for number in range(40)]
    passages = list(
        ChunkSplitter(model_file_tokenizer("all-MiniLM-L6-v2"), 64, 0).split("Metals", "", "\n".join(lines))
    )
    assert len(passages) > 5
    assert [line for passage in passages for line in passage.split("\n")] == lines


def test_a_sentence_longer_than_a_passage_is_cut_between_words():
    splitter = ChunkSplitter(model_file_tokenizer("all-MiniLM-L6-v2"), 48, 1)
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


def test_shards_that_a_killed_run_left_or_that_are_gone_are_written_again(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    options = CorpusOptions(output=str(tmp_path / "run"), corpus=(str(tmp_path / "a.jsonl"),))
    (pieces,) = split_articles(sources := find_article_files(options.corpus), options.part_bytes)
    part = {"number": 0, "pieces": pieces, "files": dict(sources), "key": "of the corpus"}
    row, folder = {"part": part}, options.passages
    split_part(row, options, TOKENIZER)
    buckets = {"part": {"number": 0, "buckets": list(range(duplicates.BUCKETS))}}
    write_part_duplicates(buckets, folder, [part_path(folder, 0, "entries.arrow")], np.array([], np.uint64))
    made, path = write_parts(row, folder, []), tmp_path / "run" / "passages" / "00000-00000.parquet"
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert write_parts(row, folder, []) == made
    assert path.stat().st_mtime_ns == written
    with monkeypatch.context() as killed:
        killed.setattr(storage, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_parts(row, folder, ["Ice"])
    assert path.read_bytes() != content
    assert write_parts(row, folder, []) == made
    assert path.read_bytes() == content
    path.unlink()
    assert write_parts(row, folder, []) == made
    assert path.read_bytes() == content


def test_manifest_has_the_checksum_of_every_shard(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    output, _ = build(tmp_path, tmp_path / "a.jsonl", shard_passages=1)
    for shard in tables.read_table_manifest(storage.join_paths(output, "passages"), "corpus")["shards"]:
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


def test_bad_input_of_a_worker_is_found_in_its_traceback():
    for kind in (InputError, QuestionError):
        said = f"Traceback\n{kind.__module__}.{kind.__name__}: question '1': too long\nmore"
        assert str(find_input_error(RuntimeError(said))) == "question '1': too long"


def test_bad_input_of_one_of_several_workers_is_found():
    bad = f"Traceback\n{InputError.__module__}.InputError: a.parquet: no such file"
    handled = f"Traceback\n{InputError.__module__}.InputError: handled\n\n{HANDLING}\n\nTraceback\nRuntimeError: closed"
    for said in (f"{bad}\n\n[Rank 1] {handled}", f"{handled}\n\n[Rank 1] {bad}\n"):
        assert str(find_input_error(RuntimeError(said))) == "a.parquet: no such file"
    assert find_input_error(RuntimeError(f"{handled}\n{handled}")) is None


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
    assert not (tmp_path / "run" / "_passages" / tables.MANIFEST).exists()


def test_bad_corpora_are_refused_before_work(tmp_path):
    pq.write_table(pa.table({"title": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "a.doc").write_bytes(b"")
    for path, message in (("a.parquet", "no column 'text'"), ("a.doc", r"\.parquet, \.jsonl"), ("b", "no such file")):
        with pytest.raises(InputError, match=message):
            find_article_files((str(tmp_path / path),))


LEAFLET = "{} tablets hold {} mg. They are readily soluble in water. " + "Take one with a glass of water. " * 8


def test_exact_repeats_are_dropped_wherever_they_stand_however_the_corpus_is_split(tmp_path, cluster):
    others = list(islice(read_articles("demo"), 60))
    differing = [
        {"title": "Wine", "text": LONG},
        {"title": "Wine", "text": LONG.replace("number 7 says", "number 8 says")},
        {"title": "Ice", "text": "Ice is not water that is frozen."},
        *({"title": "Ions", "text": f"{ion} stands for the charge."} for ion in ("Na+ > 5", "Na- < 5", "Na+ > 6")),
        *({"title": "Leaflet", "text": LEAFLET.format(name, dose)} for name in ("Aba", "Obo") for dose in range(10)),
        *({"title": salt, "text": "It is readily soluble in water."} for salt in ("NaCl", "KCl")),
        {"title": "KCl", "section": "Use", "text": "It is readily soluble in water."},
    ]
    again = [row | {"text": row["text"].replace(". ", ".\n\n ")} for row in others[:5]]
    write_jsonl(tmp_path / "a.jsonl", [ARTICLES[0], *others, *differing, *again])
    first, one = build(tmp_path, tmp_path / "a.jsonl", "one", passage_tokens=256)
    second, many = build(tmp_path, tmp_path / "a.jsonl", "many", passage_tokens=256, part_bytes=4000, shard_passages=9)
    assert passages_of(first) == passages_of(second)
    assert len(many.details["shards"]) > len(one.details["shards"])
    rows = passages_of(first)
    said = {(row["title"], row["section"], row["text"]) for row in rows}
    assert {(row["title"], row.get("section", ""), row["text"].strip()) for row in differing[2:]} <= said
    assert "".join(row["text"] for row in rows if row["title"] == "Wine").count("number 8 says") > 1
    assert not any("\n\n" in row["text"] for row in rows)
    ids = {row["passage_id"]: row for row in rows}
    repeats = [tables.read_table(f"{output}/_passages/repeats").to_pylist() for output in (first, second)]
    assert repeats[0] == repeats[1]
    # Passages of "Wine" repeat each other where they do not differ, none of "Water".
    assert {row["title"] for row in repeats[0]} == {"Wine"} | {row["title"] for row in others[:5]}
    for row in repeats[0]:
        kept = ids[row["repeats"]]
        assert row["kind"] == "exact"
        assert [row["title"], row["text"].split()] == [kept["title"], kept["text"].split()]
    assert one.details["duplicates"] == many.details["duplicates"] == len(repeats[0])


def test_near_duplicates_are_dropped_only_where_asked_and_where_numbers_signs_and_titles_agree(tmp_path, cluster):
    text = " ".join(LONG.split(". ")[number % 60] + "." for number in range(18))
    changes = [text, text.replace("number 7 says", "number 7 states"), text.replace("at 7 degrees", "at 8 degrees"),
               text.replace("at 7 degrees", "at −7 degrees"), text.replace("number 7 says", "number seven says"),
               text.replace("number 7 says", "number 7 never says")]  # fmt: skip
    rows = [{"title": "Water", "text": change} for change in changes] + [{"title": "Wine", "text": text}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    settings = {"passage_tokens": 256, "passage_overlap": 0}
    plain, _ = build(tmp_path, tmp_path / "a.jsonl", "plain", **settings)
    assert [row["text"] for row in passages_of(plain)] == [row["text"] for row in rows]
    near, made = build(tmp_path, tmp_path / "a.jsonl", "near", near_duplicates=True, **settings)
    kept = passages_of(near)
    assert [row["text"] for row in kept] == [row["text"] for number, row in enumerate(rows) if number != 1]
    (repeat,) = tables.read_table(f"{near}/_passages/repeats").to_pylist()
    assert (repeat["text"], repeat["repeats"], repeat["kind"]) == (changes[1], kept[0]["passage_id"], "near")
    assert "1 passages said before: _passages/repeats/" in made.made
    # The option belongs to what the table is made from.
    with pytest.raises(InputError, match=r"passages: made from other inputs \(near_duplicates: True there, False now"):
        build(tmp_path, tmp_path / "a.jsonl", "near", **settings)
    again, made = build(tmp_path, tmp_path / "a.jsonl", "near", overwrite=True, **settings)
    assert passages_of(again) == passages_of(plain)
    assert not (tmp_path / "near" / "_passages" / "repeats").exists()


def test_signatures_agree_as_often_as_texts_are_alike():
    rng = np.random.default_rng(0)
    words = rng.integers(10_000, size=(400, 120))
    changed = words.copy()
    changed[:200, 60] += 10_000  # one word of 120 changed: 115 of 121 triples stay
    changed[200:] += 10_000
    texts = [" ".join(map(str, row)) for row in words]
    others = [" ".join(map(str, row)) for row in changed]
    near = (duplicates.minhash_signatures(texts) == duplicates.minhash_signatures(others)).sum(
        axis=1
    ) >= duplicates.EQUAL
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


def test_articles_that_a_killed_run_left_out_stay_left_out(tmp_path, cluster, monkeypatch):
    articles = [{"title": title, "text": f"{title} is a metal."} for title in ("Iron", "Lead", "Zinc")]
    write_jsonl(tmp_path / "a.jsonl", articles)
    (tmp_path / "gone.txt").write_text("Lead\n")
    output, given = str(tmp_path / "run"), {"corpus": (str(tmp_path / "a.jsonl"),)}
    with monkeypatch.context() as patched:
        patched.setattr("sciqa.corpus.passages._run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_passages(CorpusOptions(output=output, remove=str(tmp_path / "gone.txt"), **given))
    assert build_passages(CorpusOptions(output=output)).details["removed"] == 1
    assert [row["title"] for row in passages_of(output)] == ["Iron", "Zinc"]
    assert build_passages(CorpusOptions(output=output, **given)).details["removed"] == 0


def test_text_and_pdf_files_are_an_article_each(tmp_path, cluster):
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "Ice.txt").write_text("Ice is frozen water.")
    write_pdf(folder / "Steam.pdf", "Steam is water va-", "pour.")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    output, summary = build(tmp_path, folder)
    assert {row["title"]: row["text"] for row in passages_of(output)} == {
        "Ice": "Ice is frozen water.",
        "Steam": "Steam is water vapour.",
    }
    assert summary.details["skipped"] == {"unreadable PDF": 1}


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, when):
    """Or that is another one on the node that reads it."""
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ARTICLES)
    options = CorpusOptions(output=str(tmp_path / "run"), corpus=(str(path),))
    ((_, state),) = find_article_files(options.corpus)
    piece = {"path": str(path), "start": 0, "end": None}
    row = {"part": {"number": 0, "pieces": [piece], "files": {str(path): state}, "key": "key"}}
    split_all = parts._split_all

    def changed(*given):
        yield from split_all(*given)
        write_jsonl(path, ARTICLES[1:])

    if when == "before":
        write_jsonl(path, ARTICLES[1:])
    else:
        monkeypatch.setattr(parts, "_split_all", changed)
    with pytest.raises(InputError, match=r"all-MiniLM-L6-v2: other files on .* than where the command was given"):
        split_part(row | {"part": row["part"] | {"files": {}}}, options, "0f")
    with pytest.raises(InputError, match=r"a\.jsonl: changed while the corpus was read, or not the same file on"):
        split_part(row, options, TOKENIZER)
    monkeypatch.undo()
    assert not storage.path_exists(part_path(options.passages, 0, "part.json"))
    write_jsonl(path, ARTICLES)
    row["part"]["files"] = dict(find_article_files(options.corpus))
    assert split_part(row, options, TOKENIZER)["done"]["articles"] == 3


def test_a_listing_of_object_storage_may_have_parts_of_a_second(monkeypatch):
    """Where the header of a single file, which a worker sees, has none."""
    header = [7, 1649623866 * 10**9]
    monkeypatch.setattr(storage, "stat_files", lambda path: [(path, header)])
    listed = [7, header[1] + 821_000_000]
    parts.check_corpus_files({"demo": [0, 0], "s3://bucket/a.jsonl": listed})
    for path, other in (("s3://bucket/a.jsonl", [7, header[1] + 10**9]), ("/a.jsonl", listed), ("file:///a", listed)):
        with pytest.raises(InputError, match="changed while the corpus was read"):
            parts.check_corpus_files({path: other})

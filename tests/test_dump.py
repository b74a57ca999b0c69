"""Ingestion of MediaWiki dumps: what is read and left out, in any number of pieces, and what is refused."""

import bz2
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from dump import write_dump

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.corpus import wikimedia as reader
from sciqa.corpus import wikitext
from sciqa.corpus.articles import ArticleCounts, find_article_files, read_articles, split_articles
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages

HEAD = b"<mediawiki><siteinfo><base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>\n"
PAGE = "<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>\n"


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """A dump of 240 articles, and what it holds."""
    path = tmp_path_factory.mktemp("dump") / "enwiki-pages-articles-multistream.xml.bz2"
    return path, write_dump(path, 240, pages_per_stream=20)


def write_pages(path, *pages, head=HEAD, tail=b"</mediawiki>"):
    text = "".join(PAGE.format(*page) for page in pages).encode()
    path.write_bytes(b"".join(bz2.compress(part) for part in (head, text, tail) if part))
    return str(path)


def build(output, corpus, **options):
    made = build_passages(CorpusOptions(output=str(output), corpus=(str(corpus),), **options)).details
    return tables.read_table(f"{output}/passages").to_pylist(), made


def read_all(path, part_bytes):
    """Read a corpus piece by piece, and return what was counted."""
    tally = ArticleCounts()
    for piece in itertools.chain(*split_articles(find_article_files((str(path),)), part_bytes)):
        for _ in read_articles(**piece, tally=tally):
            pass
    return tally


def last_stream(data):
    return [found.start() for found in reader.STREAM.finditer(data)][-1]


def test_every_page_is_taken_or_counted_with_its_reason(tmp_path, cluster, wiki):
    path, holds = wiki
    rows, made = build(tmp_path, path)
    assert made["articles"] == holds["articles"]
    assert made["skipped"] == {
        "disambiguation": holds["disambiguations"],
        "not an article": holds["other_namespaces"],
        "redirect": holds["redirects"],
    }
    assert made["articles"] + sum(made["skipped"].values()) == holds["pages"]
    assert len({row["title"] for row in rows}) == holds["articles"]
    assert any(row["section"] for row in rows)
    assert all(re.match(r"https://en\.wikipedia\.org/wiki/\S+$", row["url"]) for row in rows)
    assert not any(mark in row["text"] for row in rows for mark in ("[[", "{{", "<ref", "''"))


@pytest.mark.parametrize("part_bytes", [5_000, 37_001])
def test_a_dump_read_in_pieces_gives_the_same_passages(tmp_path, cluster, wiki, part_bytes):
    path, _ = wiki
    whole, one = build(tmp_path / "one", path, shard_passages=4000)
    pieces, many = build(tmp_path / "many", path, part_bytes=part_bytes, shard_passages=40)
    assert len(one["shards"]) == 1
    assert len(many["shards"]) >= 8
    assert whole == pieces
    assert (one["articles"], one["skipped"]) == (many["articles"], many["skipped"])


def test_pieces_meet_wherever_they_are_cut(wiki):
    path, holds = wiki
    size = path.stat().st_size
    streams = [found.start() for found in reader.STREAM.finditer(path.read_bytes())]
    for cut in (1, streams[3] - 1, streams[3], streams[3] + 1, streams[-1], size - 1):
        pages = [
            page.title for a, b in ((0, cut), (cut, size)) for page in reader.read_wikimedia_pages(str(path), a, b)
        ]
        assert len(pages) == holds["pages"], cut
        assert Counter(pages) == Counter(page.title for page in reader.read_wikimedia_pages(str(path)))


def test_one_stream_is_read_whole_by_its_first_piece(tmp_path):
    pages = HEAD + "".join(PAGE.format(f"Title {n}", "Ice is frozen water. " * 30) for n in range(50)).encode()
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(bz2.compress(pages + b"</mediawiki>"))
    assert read_all(path, part_bytes=100) == {"articles": 50}


def test_streams_that_begin_within_a_page_are_refused_with_what_to_do(tmp_path):
    pages = HEAD + "".join(PAGE.format(f"Title {n}", f"Ice {n}. " * 30) for n in range(50)).encode() + b"</mediawiki>"
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(pages[at : at + 3000]) for at in range(0, len(pages), 3000)))
    with pytest.raises(InputError, match=r"begins within a page, as those of pbzip2 do; unpack it"):
        read_all(path, part_bytes=300)


@pytest.mark.slow
def test_a_huge_page_and_broken_wikitext_are_counted_not_held(tmp_path, cluster):
    huge = "A sentence that fills a page. " * 1_700_000
    broken = "An '''article [[with {{broken|markup &lt;ref&gt; {| that never ends. " * 20
    path = write_pages(tmp_path / "a.xml.bz2", ("Huge", huge), ("Broken", broken), ("Ice", "Ice is frozen water."))
    rows, made = build(tmp_path / "run", path)
    assert made["skipped"] == {"too long": 1}
    assert made["articles"] == 2
    assert {row["title"] for row in rows} == {"Broken", "Ice"}


def test_a_page_that_the_parser_fails_on_is_counted(tmp_path, monkeypatch):
    def fail(text):
        raise ValueError(text)

    path = write_pages(tmp_path / "a.xml.bz2", ("Ice", "Ice is frozen water."))
    monkeypatch.setattr(wikitext, "read_wikitext_sections", fail)
    assert read_all(path, part_bytes=10_000) == {"unreadable wikitext": 1}


BOMB = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data[: last_stream(data)], "cut off before its last line"),
        (lambda data: b"not bz2" + data, "not a bz2 file"),
        (lambda data: bz2.compress(BOMB + HEAD + b"</mediawiki>"), "declares the XML entity 'a'"),
        (lambda data: data[: last_stream(data)] + bz2.compress(b"</page></mediawiki>"), "well-formed"),
        (lambda data: data[:4000] + bytes([data[4000] ^ 1]) + data[4001:], "damaged"),
    ],
    ids=["cut off mid-stream", "cut off between streams", "no bz2", "entity bomb", "not XML", "flipped bit"],
)
def test_bad_dumps_are_refused(tmp_path, wiki, change, message):
    path = tmp_path / "enwiki.xml.bz2"
    path.write_bytes(change(wiki[0].read_bytes()))
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        read_all(path, part_bytes=10_000)
    assert message in str(error.value)


@pytest.mark.slow
def test_a_run_killed_while_it_reads_keeps_the_parts_it_finished(tmp_path, cluster, wiki):
    path, _ = wiki
    arguments = ["--corpus", path, "--output", tmp_path / "run", "--part-bytes", "8000", "--num-cpus", "1"]
    command = [sys.executable, "-m", "sciqa", "corpus", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    parts = tmp_path / "run" / "_passages" / "parts"
    while process.poll() is None and len(list(parts.glob("*/part.json"))) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in parts.glob("*/part.json")}
    assert finished
    assert not (tmp_path / "run" / "_passages" / tables.MANIFEST).exists()
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    undisturbed = tmp_path / "other"
    build(undisturbed, path, part_bytes=8000)
    names = sorted(file.name for file in Path(undisturbed, "passages").glob("*.parquet"))
    assert names == sorted(file.name for file in Path(tmp_path, "run", "passages").glob("*.parquet"))
    for name in names:
        assert Path(undisturbed, "passages", name).read_bytes() == Path(tmp_path, "run/passages", name).read_bytes()

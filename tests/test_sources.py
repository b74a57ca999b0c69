"""Files of every kind that a corpus takes: what is read of them, and by what name the others are left out."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.corpus import pdf
from sciqa.corpus.articles import ArticleCounts, find_article_files, read_articles, split_articles
from sciqa.corpus.corpus_files import MARKS, decode_corpus_file
from sciqa.corpus.html_files import read_html
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages

ICE = "Ice is frozen water."
ROW = {"title": "Ice", "text": ICE}
JSONL = (json.dumps(ROW) + "\n").encode()
PAGE = (
    "<mediawiki>{}<page><title>Ice</title><id>1</id><revision><text>Ice is frozen water.</text></revision></page>"
    "<page><title>{}</title><id>2</id><revision><text>{}</text></revision></page></mediawiki>"
)
OWN = '<siteinfo><namespaces><namespace key="0" /><namespace key="4">Own &amp; us</namespace></namespaces></siteinfo>'
DUMP = PAGE.format("", "Talk:Ice", "Cold?").encode()
EXTRACTED = (
    b'<doc id="1" url="https://example.org/wiki?curid=1" title="Ice">\nIce\n\nIce is &lt;frozen&gt; water.\n\n</doc>\n'
    b'<doc id="2" url="https://example.org/wiki?curid=2" title="Quotes "x"">\nQuotes "x"\n\nThey are marks.\n\n</doc>\n'
)
#: A stream of a dump of which more than its head is read.
LONG = bz2.compress(DUMP[:-12] + b" " * 300_000)
PACKED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def read(path, tally=None):
    """Return title and text of the articles of a file or folder."""
    rows = [
        row
        for pieces in split_articles(find_article_files((str(path),)), 1 << 20)
        for piece in pieces
        for row in read_articles(**piece, tally=tally)
    ]
    return [(row["title"], row["text"]) for row in rows]


def parquet(*names):
    """The bytes of a Parquet file of one row of text, with these columns."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["Ice"])] * len(names), names=list(names)), buffer)
    return buffer.getvalue()


def flipped(data, at):
    """Bytes of which one is another."""
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def write_pdf(path, *lines, characters="", **encrypt):
    writer = PdfWriter()
    page = writer.add_blank_page(400, 400)
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    if characters:
        font[NameObject("/ToUnicode")] = StreamObject()
        font["/ToUnicode"].set_data(f"begincmap 1 beginbfchar {characters} endbfchar endcmap".encode())
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = StreamObject()
    stream.set_data(f"BT /F1 12 Tf 20 300 Td {' '.join(f'({line}) Tj 0 -14 Td' for line in lines)} ET".encode())
    page[NameObject("/Contents")] = stream
    if encrypt:
        writer.encrypt(**encrypt)
    writer.write(path)


@pytest.mark.parametrize("name", ["Ice.txt", "Ice.TXT", "Ice.md", "Ice.jsonl", "Ice.NDJSON", "Ice.csv", "Ice.tsv"])
@pytest.mark.parametrize("ending", ["", *PACKED, ".GZ"])
def test_files_are_read_by_their_names_in_any_case_and_compression(tmp_path, name, ending):
    data = {"csv": b"title,text\nIce,Ice is frozen water.\n", "tsv": b"text\ttitle\nIce is frozen water.\tIce\n"}
    data |= {"jsonl": JSONL, "ndjson": JSONL}
    data = data.get(name.rpartition(".")[2].lower(), ICE.encode())
    data = PACKED[ending.lower()](data) if ending else data
    (tmp_path / f"{name}{ending}").write_bytes(data)
    assert read(tmp_path) == [("Ice", ICE)]


@pytest.mark.parametrize(
    "name", ["a.xml", "a.XML.bz2", "a.xml.gz", "a-articles1.xml-p1p41242.bz2", "a-articles1.xml-p1p41242", "a.xml.zst"]
)
def test_dumps_are_read_by_all_their_names(tmp_path, name):
    ending = "." + name.lower().rpartition(".")[2]
    (tmp_path / name).write_bytes(PACKED[ending](DUMP) if ending in PACKED else DUMP)
    tally = ArticleCounts()
    assert read(tmp_path, tally) == [("Ice", ICE)]
    assert tally == {"articles": 1, "not an article": 1}


@pytest.mark.parametrize(
    ("head", "title", "taken"),
    [
        ("", "Alien: Resurrection", True),
        ("", "Help:Editing", False),
        ("", "User talk:Somebody", False),
        ("", "Benutzer:Jemand", False),
        (OWN, "Own &amp; us:A page", False),
        (OWN, "own &amp; us:A page", False),
        (OWN, "Book:A novel", True),
    ],
)
def test_pages_of_dumps_without_ns_are_told_by_their_titles(tmp_path, head, title, taken):
    (tmp_path / "a.xml").write_text(PAGE.format(head, title, "A text."))
    assert len(read(tmp_path)) == 1 + taken


def test_what_wikiextractor_wrote_is_read_in_both_its_forms(tmp_path):
    folder = tmp_path / "text" / "AA"
    folder.mkdir(parents=True)
    (folder / "wiki_00").write_bytes(EXTRACTED)
    (folder / "wiki_01.bz2").write_bytes(bz2.compress(JSONL + b'{"title": "AT&amp;T", "text": "p &lt; 1"}'))
    (folder / "together.txt").write_bytes(EXTRACTED)
    both = [("Ice", "Ice is <frozen> water."), ('Quotes "x"', "They are marks.")]
    assert sorted(read(tmp_path)) == sorted([*both, *both, ("Ice", ICE), ("AT&T", "p < 1")])
    (folder / "wiki_00").write_bytes(EXTRACTED[:-8])
    with pytest.raises(InputError, match=r"wiki_00: cut off before </doc> of 'Quotes \"x\"'"):
        read(tmp_path)


def test_every_other_file_of_a_folder_is_named_with_its_reason(tmp_path):
    names = {
        "a.zip": "archive", "a.docx": "convert it", "data.json": "no kind", "README": "no kind",
        "a.parquet.gz": "unpack", "rss.xml": "no dump", ".hidden.txt": "dot", "_parts/a.txt": "underscore",
        "md5sums.txt": "no articles",
        "enwiki-pages-articles-multistream-index1.txt-p1p9.bz2": "no articles",
    }  # fmt: skip
    (tmp_path / "_parts").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"<rss></rss>")
    (tmp_path / "Ice.txt").write_text(ICE)
    left_out = {}
    assert [path for path, _ in find_article_files((str(tmp_path),), left_out)] == [str(tmp_path / "Ice.txt")]
    assert set(left_out) == {str(tmp_path / name) for name in names}
    for name, reason in names.items():
        assert reason in left_out[str(tmp_path / name)], name
    for name in ("a.zip", "rss.xml", "data.json"):
        with pytest.raises(InputError, match=name):
            find_article_files((str(tmp_path / name),))
    (tmp_path / "Ice.txt").unlink()
    with pytest.raises(InputError, match=r"holds no file that is read; .*a\.docx|\.hidden"):
        find_article_files((str(tmp_path),))


def test_what_is_left_out_is_in_the_summary_and_in_a_table(tmp_path, cluster):
    folder = tmp_path / "papers"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [ROW, {"title": "Nothing", "text": " "}])
    (folder / "notes.doc").write_bytes(b"x")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    write_pdf(folder / "secret.PDF", "Secret", user_password="a", owner_password="b")
    write_pdf(folder / "scan.pdf")
    (tmp_path / "gone.txt").write_bytes(codecs.BOM_UTF8 + b"Steam\r\nnever there\r\n\r\n")
    options = {"output": str(tmp_path / "run"), "corpus": (str(folder),), "remove": str(tmp_path / "gone.txt")}
    for _ in range(2):  # the second run keeps all
        made = build_passages(CorpusOptions(**options))
        assert "1 files left out: " in made.made
        assert "notes.doc (no kind that is read)" in made.made
        assert "2 titles to remove are of no article here: Steam, never there" in made.made
    assert made.details["skipped"] == {"no text": 2, "unreadable PDF": 2}
    table = tables.read_table(f"{tmp_path}/run/_passages/left_out").to_pylist()
    reasons = {(row["path"].rpartition("/")[2], row["title"]): row["reason"] for row in table}
    assert set(reasons) == {
        ("notes.doc", ""), ("a.jsonl", "Nothing"), ("broken.pdf", ""), ("secret.PDF", ""), ("scan.pdf", "scan")
    }  # fmt: skip
    assert "FileNotDecryptedError" in reasons["secret.PDF", ""]
    (folder / "notes.doc").unlink()
    assert "files left out" not in build_passages(CorpusOptions(**options)).made
    assert "notes" not in str(tables.read_table(f"{tmp_path}/run/_passages/left_out").to_pylist())


def test_what_was_left_out_of_files_that_are_gone_is_not_told_of(tmp_path, cluster):
    paths = tuple(str(tmp_path / f"{name}.jsonl") for name in "ab")
    for name in "ab":
        own = [{"title": f"Own {name}", "text": f"Only in {name}."}, {"title": f"Nothing in {name}", "text": " "}]
        write_jsonl(tmp_path / f"{name}.jsonl", [ROW, ROW, *own])
    options = {"output": str(tmp_path / "run"), "part_bytes": (tmp_path / "a.jsonl").stat().st_size}
    both = build_passages(CorpusOptions(corpus=paths, **options)).details
    assert both["duplicates"] == 3
    build_passages(CorpusOptions(corpus=paths[:1], **options))
    beside = tmp_path / "run" / "_passages"
    assert [row["title"] for row in tables.read_table(f"{beside}/left_out").to_pylist()] == ["Nothing in a"]
    assert len(tables.read_table(f"{beside}/repeats").to_pylist()) == 1
    assert [path.name for path in (beside / "parts").iterdir()] == ["00000"]
    assert build_passages(CorpusOptions(corpus=paths, **options)).details == both
    titles = tables.read_table(f"{tmp_path}/run/passages")["title"].to_pylist()
    assert titles == ["Ice", "Own a", "Own b"]


def test_a_corpus_of_which_nothing_is_read_is_refused(tmp_path, cluster):
    write_jsonl(tmp_path / "a.jsonl", [{"title": "Nothing", "text": " "}])
    with pytest.raises(InputError, match=r"a\.jsonl: 0 passages .* left out: 1 no text"):
        build_passages(CorpusOptions(output=str(tmp_path / "run"), corpus=(str(tmp_path / "a.jsonl"),)))
    assert not (tmp_path / "run" / "_passages" / tables.MANIFEST).exists()


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\ufeff")), st.sampled_from(sorted(MARKS.items())))
def test_text_in_every_marked_encoding_is_read_without_its_mark(text, mark):
    assert decode_corpus_file(mark[0] + text.encode(mark[1]), "a.txt") == text


@pytest.mark.parametrize(
    "data", ["café".encode("latin-1"), "water".encode("utf-16-le"), codecs.BOM_UTF16_LE + b"\x00\xd8"]
)
def test_text_in_an_encoding_that_is_not_told_is_refused_by_name(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.txt.*convert it to UTF-8"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_of_text_are_read_with_their_quotes_and_lines(tmp_path, encoding):
    text = 'Said "so",\nin lines.'
    with (tmp_path / "a.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([["id", "title", "text"], ["1", "Ice", text], [], ["2", "Steam", "x" * 200_000]])
    assert read(tmp_path) == [("Ice", text), ("Steam", "x" * 200_000)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"title,text\nIce,a,b\n", "row 1: 2 fields expected, 3 found"),
        ("a.csv", b'title,text\nIce,a\nSteam,"never closed\n', "row 2: no row of a CSV"),
        ("a.csv", b"title;text\nIce;a\n", "no column 'title'; it has title;text"),
        ("a.csv", b"", "no column 'title'; it has none"),
        ("a.tsv", b"title\ttext\nIce\tcaf\xe9\n", "convert it to UTF-8"),
        ("a.jsonl", b'{"title": "Ice", "text": 0}\n', "row 1, column 'text': text expected, 0 found"),
        ("a.jsonl", JSONL + b'{"title": "Ice", "text": "\\ud800"}\n', "row 2, column 'text': half a character"),
        ("a.jsonl", JSONL + b'{"title": "Ice", "text": "a\\u0000b"}\n', "row 2, column 'text': a NUL character"),
        ("a.jsonl", JSONL + b'{"title": "Ice", "more": ' + b"[" * 100_000, "row 2: not JSON (maximum recursion"),
        ("a.csv", b"title,text,text\nIce,a,b\n", "column 'text' stands twice; leave one of them out"),
        ("a.parquet", parquet("title", "title", "text"), "column 'title' stands twice; leave one of them out"),
        ("a.jsonl", JSONL + b'{"title": "Ice", "text": "a", "text": "b"}\n', "row 2: not JSON ('text' stands twice"),
        ("a.parquet", flipped(parquet("title", "text"), 19), "a.parquet: cannot be read (Corrupt snappy"),
        ("a.parquet", flipped(parquet("title", "text"), 24), "cannot be read (In column 0: Invalid: Invalid UTF8"),
        ("wiki_00", EXTRACTED.replace(b"</doc>\n", b"", 1), "row 6: <doc> begins before </doc> of 'Ice'; extract"),
        ("wiki_00", EXTRACTED.replace(b"frozen", b"fro\xe9en"), "row 4, byte 15: not UTF-8; convert it to UTF-8"),
        ("a.xml.bz2", LONG + flipped(bz2.compress(DUMP[-12:]), 30), "its last bz2 stream is damaged"),
        ("a.jsonl.gz", gzip.compress(JSONL + b"[1]\n", mtime=0), "row 2: an object"),
        ("a.txt.gz", gzip.compress(b"Ice" * 999, mtime=0)[:-9], "a.txt.gz: cannot be read, damaged or cut off"),
        ("a.txt.zst", b"nothing", "a.txt.zst: cannot be read, damaged or cut off"),
        ("a.txt.xz", lzma.compress(b"Ice" * 999)[:-9], "a.txt.xz: cannot be read, damaged or cut off"),
        ("a.xml.gz", gzip.compress(DUMP[:-12], mtime=0), "cut off before its last line"),
    ],
)
def test_bad_tables_and_files_are_refused_by_name_and_row(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert message in str(error.value)
    assert name in str(error.value)


def test_a_text_too_long_to_hold_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("sciqa.corpus.articles.LARGEST", 100)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * 10_000))
    tally = ArticleCounts()
    assert read(tmp_path, tally) == []
    assert tally.named == [{"path": str(tmp_path / "a.txt.gz"), "title": "", "reason": "too long"}]


WEB = """<!doctype html><html><head><meta charset="{}"><title>Ice &amp; water</title><style>p {{}}</style></head><body>
<nav>Home</nav><script>var x = "script"</script><h1>Ice &amp; water</h1><p>Caf\u00e9 <b>ice</b> melts at 0&nbsp;°C,<br>
10<sup>-3</sup> m<sup class="reference">[1]</sup>.</p><h2>Uses</h2><ul><li>Cooling<li>Skating</ul><table>
<caption>Ices</caption><tr><th>Kind<th>Mass<tr><td>Dry<td>5&nbsp;kg<tr><td>Wet<td rowspan="2">6 kg<tr><td>Old</table>
<h3>Math</h3>
<p><math alttext="{{\\displaystyle E=mc^{{2}}}}"><mi>E</mi></math> holds.</p>
<footer>Imprint</footer></body></html>"""


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "windows-1252"])
def test_web_pages_become_sections_of_text(encoding):
    title, sections = read_html(WEB.format(encoding).encode("cp1252" if encoding != "utf-8" else "utf-8"), "a.html")
    assert title == "Ice & water"
    assert sections == [
        ("", "Café ice melts at 0 °C, 10^−3 m."),
        ("Uses", "Cooling\nSkating\nIces\nDry: Mass 5 kg\nWet: Mass 6 kg\nOld: Mass 6 kg"),
        ("Uses > Math", "E=mc^2 holds."),
    ]


def test_web_pages_are_articles_named_by_title_or_file(tmp_path):
    (tmp_path / "a.HTML").write_text("<title>Ice</title><p>Ice is frozen water.")
    (tmp_path / "Steam.htm").write_text("<p>Steam is gas.")
    (tmp_path / "headed.html").write_text("<title> </title><svg><title>Menu</title></svg><h1>Dew</h1><p>Dew is wet.")
    (tmp_path / "deep.html").write_text("<div>" * 5000 + "deep")
    tally = ArticleCounts()
    assert dict(read(tmp_path, tally)) == {"Ice": ICE, "Steam": "Steam is gas.", "Dew": "Dew is wet."} | (
        {} if tally["unreadable web page"] else {"deep": "deep"}
    )
    for encoding in ("klingon", "undefined", "unicode_escape"):
        (tmp_path / "a.HTML").write_bytes(f'<meta charset="{encoding}"><p>x'.encode())
        with pytest.raises(InputError, match=f"'{encoding}', which is not known"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("steam is va-\npour", "steam is vapour"),
        ("from 10-\n20 degrees", "from 10-20 degrees"),
        ("10^-\n19 C and 10−\n19", "10^-19 C and 10−19"),
        ("an X-\nray of Na-\nCl, mg-\nATP", "an X-ray of Na-Cl, mg-ATP"),
        ("a − \nb, 1990–\n2000", "a − b, 1990–2000"),
        ("ﬁne ﬂow eﬀect oﬃce, co\xad\noperate, soft\xadly", "fine flow effect office, cooperate, softly"),
        ("10⁻¹⁹ m² and ½", "10⁻¹⁹ m² and ½"),
    ],
)
def test_lines_of_a_pdf_are_joined_without_a_change_of_numbers(page, text):
    assert pdf.join_pdf_lines(page) == text


@settings(deadline=None)
@given(st.lists(st.text(string.ascii_letters + string.digits + "-.+", min_size=1, max_size=5), min_size=1, max_size=6))
def test_joining_lines_neither_drops_nor_moves_a_digit_or_sign(words):
    page = "\n".join(words)
    joined = pdf.join_pdf_lines(page)
    assert re.findall(r"\d+|[+.]", joined) == re.findall(r"\d+|[+.]", page)
    assert joined.replace(" ", "").replace("-", "") == "".join(words).replace("-", "")


def test_half_a_character_of_a_pdf_is_replaced(tmp_path):
    write_pdf(tmp_path / "Ice.pdf", "Ice X.", characters="<58> <D83D>")
    ((title, text),) = read(tmp_path)
    assert (title, text) == ("Ice", "Ice \ufffd.")


def test_a_path_that_cannot_be_looked_up_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"aaa: cannot be reached \("):
        read(tmp_path / ("a" * 300))


def test_a_pdf_without_end_or_of_too_much_memory_is_left_out(tmp_path, monkeypatch):
    write_pdf(tmp_path / "Steam.pdf", "Steam is water va-", "pour.")
    write_pdf(tmp_path / "slow.pdf", "slow")
    script = tmp_path / "reader.py"
    tally = ArticleCounts()
    assert dict(read(tmp_path / "Steam.pdf", tally)) == {"Steam": "Steam is water vapour."}
    script.write_text("import signal\nsignal.setitimer(signal.ITIMER_PROF, 0.2)\nwhile True: pass\n")
    monkeypatch.setattr(pdf, "__file__", str(script))
    assert read(tmp_path / "slow.pdf", tally) == []
    script.write_text("raise MemoryError")
    assert read(tmp_path / "slow.pdf", tally) == []
    assert [row["reason"] for row in tally.named] == [
        "unreadable PDF: a page takes more than 30 seconds of computing",
        "unreadable PDF: exit code 1",
    ]

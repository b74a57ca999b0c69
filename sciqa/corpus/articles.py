"""Read articles (title, section, text, url): demo corpus, MediaWiki dumps, tables, texts, web pages and PDFs."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TypedDict
from urllib.parse import quote

from pyarrow import fs

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.extras import Extra, require_extra
from sciqa.core.packaged import packaged_path
from sciqa.corpus import wikimedia as dump
from sciqa.corpus.corpus_files import (
    COMPRESSIONS,
    LARGEST,
    Source,
    decode_corpus_file,
    is_hidden_corpus_file,
    kind_of_corpus_file,
    list_corpus_files,
    open_corpus_file,
)
from sciqa.corpus.table_files import (
    check_table_file_columns,
    check_table_file_rows,
    read_csv_table_file,
    read_jsonl_table_file,
    read_parquet_table_file,
)

#: Extras that types of files need.
NEEDED: dict[str, Extra] = {"dump": "wikipedia", "html": "html", "pdf": "pdf"}
NO_DUMP = "no dump of MediaWiki, which begins with <mediawiki>"
#: Line that wikiextractor writes before an article.
DOCUMENT = re.compile(r'<doc id="[^"]*"(?: revid="[^"]*")? url="([^"]*)" title="(.*)">\s*')


class ArticleRange(TypedDict):
    """A range of a file, in bytes or, for Parquet, in row groups; `end` None means the end of the file.

    A record belongs to the range in which it begins.
    """

    path: str
    start: int
    end: int | None


class ArticleCounts(Counter):
    """Counts of `articles` read and, by reason, of articles left out; `named` lists those that a user could repair."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts or {})
        self.named: list[dict[str, str]] = []

    def leave_out(self, reason: str, path: str, title: str = "", details: str = "") -> None:
        """Count an article as left out, and add it to `named`."""
        self[reason] += 1
        self.named.append({"path": path, "title": title, "reason": f"{reason}: {details}" if details else reason})


def find_article_files(corpus: tuple[str, ...], left_out: dict[str, str] | None = None) -> list[tuple[str, list]]:
    """Return the files of a corpus in order, each with [size in bytes, modification time in ns].

    Args:
        corpus: `demo`, files, or folders; `corpus_files.KINDS` lists the file types. Tables (Parquet, JSONL, CSV, TSV)
            have columns `title` and `text`, and optionally `section` and `url`. A text, web page or PDF is one article;
            its title comes from its content, else from the file name.
        left_out: receives the path of each other file in a folder, with the reason why it is left out.

    Raises:
        InputError: a missing file, an unsupported file type, a table without one of the columns, or a truncated dump.
    """
    left_out = {} if left_out is None else left_out
    sources = []
    for path in corpus:
        if path == "demo":
            sources.append((path, [packaged_path("demo").stat().st_size, 0]))
        else:
            sources += _find_files(path, left_out)
    for path, _ in sources:
        _check(path)
    return sources


def _find_files(path: str, left_out: dict[str, str]) -> list[tuple[str, list]]:
    filesystem, inner = storage.resolve_storage(path)
    with storage.storage_errors(path, "reached"):
        info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{path}: no such file or folder")
    if info.type == fs.FileType.File:
        kind_of_corpus_file(path)
        return [(path, [info.size, info.mtime_ns])]
    found = []
    for file, about in list_corpus_files(path):
        try:
            kind, _ = kind_of_corpus_file(file)
        except InputError as error:
            left_out[file] = str(error).removeprefix(f"{file}: ")
            continue
        if is_hidden_corpus_file(file, path):
            left_out[file] = "its name, or that of its folder, begins with a dot or an underscore"
        elif kind == "dump" and not dump.is_wikimedia_dump(file):
            left_out[file] = NO_DUMP
        else:
            found.append((file, about))
    if not found:
        example = next((f"; {file}: {reason}" for file, reason in left_out.items() if file.startswith(path)), "")
        raise InputError(f"{path}: holds no file that is read{example}")
    return found


def _check(path: str) -> None:
    kind, compression = kind_of_corpus_file(path)
    if extra := NEEDED.get(kind):
        require_extra(extra, path)
    if kind in ("parquet", "csv", "tsv"):
        check_table_file_columns(path)
    elif kind == "dump":
        if compression == ".bz2":
            dump.check_whole_wikimedia_dump(path)
        if not dump.is_wikimedia_dump(path):
            raise InputError(f"{path}: {NO_DUMP}")


def split_articles(sources: list[tuple[str, list]], part_bytes: int) -> list[list[ArticleRange]]:
    """Split a corpus into parts of about `part_bytes`, one per task: pieces of large files, or several small files."""
    parts: list[list[ArticleRange]] = []
    room = 0
    for path, (size, _) in sources:
        for piece, length in _pieces(path, size, part_bytes):
            if not parts or length > room:
                parts.append([])
                room = part_bytes
            parts[-1].append(piece)
            room -= length
    return parts


def _pieces(path: str, size: int, part_bytes: int) -> Iterator[tuple[ArticleRange, int]]:
    kind, compression = kind_of_corpus_file(path)
    if kind == "parquet":
        about = tables.open_parquet(path).metadata
        sizes = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
        start = 0
        for end in range(1, len(sizes) + 1):
            if end == len(sizes) or sum(sizes[start : end + 1]) > part_bytes:
                yield ArticleRange(path=path, start=start, end=end), sum(sizes[start:end])
                start = end
    elif (kind, compression) in (("dump", ".bz2"), ("jsonl", "")):
        for start in range(0, size, part_bytes):
            end = start + part_bytes
            piece = ArticleRange(path=path, start=start, end=end if end < size else None)
            yield piece, min(part_bytes, size - start)
    else:
        yield ArticleRange(path=path, start=0, end=None), size


def read_articles(
    path: str, start: int = 0, end: int | None = None, tally: ArticleCounts | None = None
) -> Iterator[dict]:
    """Yield the sections of the articles in a file or piece, in order, with one article in memory at a time.

    Args:
        path: `demo`, or a file.
        start: first byte, or row group, of the piece.
        end: byte, or row group, after it; None for the end of the file.
        tally: receives the counts of articles read and left out.

    Raises:
        InputError: a row that is not an article, with file, row and column; a file that is damaged or not text.
    """
    tally = ArticleCounts() if tally is None else tally
    readers = {
        "demo": _read_demo,
        "dump": lambda: _read_dump(path, start, end, tally),
        "parquet": lambda: check_table_file_rows(path, read_parquet_table_file(path, start, end)),
        "jsonl": lambda: check_table_file_rows(path, read_jsonl_table_file(path, start, end)),
        "csv": lambda: check_table_file_rows(path, read_csv_table_file(path)),
        "tsv": lambda: check_table_file_rows(path, read_csv_table_file(path)),
        "extracted": lambda: _read_extracted(path),
        "text": lambda: _read_text(path, tally),
        "html": lambda: _read_html(path, tally),
        "pdf": lambda: _read_pdf(path, tally),
    }
    for sections in readers[kind_of_corpus_file(path)[0]]():
        title = sections[0]["title"] if sections else ""
        if not any(row["text"].strip() for row in sections):
            tally.leave_out("no text", path, title)
        elif not title.strip():
            tally.leave_out("no title", path)
        elif any(len(row["text"]) > dump.LONGEST_PAGE for row in sections):
            tally.leave_out("too long", path, title)
        else:
            tally["articles"] += 1
            yield from sections


def _read_dump(path: str, start: int, end: int | None, tally: ArticleCounts) -> Iterator[list[dict]]:
    from sciqa.corpus import wikitext

    site = dump.read_wikimedia_site(path)
    for page in dump.read_wikimedia_pages(path, start, end):
        if page.namespace != "0" and (page.namespace is not None or not site.holds_article(page.title)):
            tally["not an article"] += 1
        elif page.text is None:
            tally.leave_out("too long", path, page.title)
        elif page.redirect or wikitext.is_redirect(page.text):
            tally["redirect"] += 1
        elif wikitext.is_wikitext_disambiguation(page.text):
            tally["disambiguation"] += 1
        else:
            url = site.base and site.base + quote(page.title.replace(" ", "_"))
            try:
                sections = wikitext.read_wikitext_sections(page.text)
            except Exception as error:  # one bad page must not stop the other millions
                tally.leave_out("unreadable wikitext", path, page.title, type(error).__name__)
                continue
            sections = sections or [("", "")]
            yield [{"title": page.title, "section": name, "text": text, "url": url} for name, text in sections]


def _read_demo() -> Iterator[list[dict]]:
    articles = json.loads(packaged_path("demo").read_text(encoding="utf-8"))
    for article in articles.values():
        title = article["title"]
        url = f"https://en.wikipedia.org/wiki/{quote(title.replace(' ', '_'))}"
        yield [{"title": title, "section": "", "text": article["extract"], "url": url}]


def _stem(path: str) -> str:
    """Return the name of a file without the suffixes of its type and compression."""
    name = PurePosixPath(path)
    return (PurePosixPath(name.stem) if name.suffix.lower() in COMPRESSIONS else name).stem


def _read_whole(path: str, tally: ArticleCounts) -> bytes | None:
    """Return the bytes of a file that is one article, or None if it is larger than `LARGEST`."""
    with open_corpus_file(path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        tally.leave_out("too long", path)
        return None
    return data


def _read_text(path: str, tally: ArticleCounts) -> Iterator[list[dict]]:
    with open_corpus_file(path) as file:
        extracted = file.read(8) == b"<doc id="
    if extracted:
        yield from _read_extracted(path)
    elif (data := _read_whole(path, tally)) is not None:
        yield [{"title": _stem(path), "section": "", "text": decode_corpus_file(data, path), "url": path}]


def _read_html(path: str, tally: ArticleCounts) -> Iterator[list[dict]]:
    from sciqa.corpus.html_files import read_html

    if (data := _read_whole(path, tally)) is None:
        return
    try:
        title, sections = read_html(data, path)
    except RecursionError:
        tally.leave_out("unreadable web page", path, details="elements nested too deep")
        return
    title = title or _stem(path)
    yield [{"title": title, "section": name, "text": text, "url": path} for name, text in sections or [("", "")]]


def _read_pdf(path: str, tally: ArticleCounts) -> Iterator[list[dict]]:
    from sciqa.corpus.pdf import read_pdf

    with open_corpus_file(path) as file:
        data = file.read()
    try:
        title, text = read_pdf(data)
    except ValueError as error:
        tally.leave_out("unreadable PDF", path, details=str(error))
        return
    yield [{"title": title or _stem(path), "section": "", "text": text, "url": path}]


def _text_lines(path: str, file: Source) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file in UTF-8 with their numbers, from 1."""
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, row {number}, byte {error.start + 1}: not UTF-8; convert it to UTF-8") from error


def _read_extracted(path: str) -> Iterator[list[dict]]:
    """Yield the articles of a file that wikiextractor wrote, in <doc> elements or as JSON lines."""
    with open_corpus_file(path) as file:
        lines_of_json = file.read(1) == b"{"
    if lines_of_json:
        for (row,) in check_table_file_rows(path, read_jsonl_table_file(path)):
            yield [row | {name: html.unescape(row[name]) for name in ("title", "text")}]
        return
    article: dict | None = None
    with open_corpus_file(path) as file:
        for number, line in _text_lines(path, file):
            if found := DOCUMENT.fullmatch(line):
                if article:
                    raise InputError(
                        f"{path}, row {number}: <doc> begins before </doc> of {article['title']!r}; extract it again"
                    )
                article = {"title": html.unescape(found[2]), "section": "", "text": [], "url": html.unescape(found[1])}
            elif article is None and line.strip():
                raise InputError(f"{path}, row {number}: <doc id=…> expected, as wikiextractor writes it")
            elif article and line.strip() == "</doc>":
                lines = article["text"][article["text"][:1] == [f"{article['title']}\n"] :]
                yield [article | {"text": "".join(lines).strip()}]
                article = None
            elif article:
                article["text"].append(html.unescape(line))
    if article:
        raise InputError(f"{path}: cut off before </doc> of {article['title']!r}; extract it again")

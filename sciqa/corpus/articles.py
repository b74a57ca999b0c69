"""Articles (title, section, text, url) of the demo corpus, dumps of MediaWiki, Parquet, JSONL, text and PDF files."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TypedDict
from urllib.parse import quote

from sciqa import storage
from sciqa.corpus import dump
from sciqa.errors import InputError
from sciqa.hub import packaged_path

FIELDS = ("title", "section", "text", "url")
KINDS = ("xml.bz2", "xml", "parquet", "jsonl", "txt", "pdf")
DEMO_CREDIT = "Lead sections of English Wikipedia's vital articles, by their authors, CC BY-SA 4.0"


class Piece(TypedDict):
    """A file, or what begins in a range of its bytes (of its row groups, for Parquet); `end` is None at its end."""

    path: str
    start: int
    end: int | None


def find_sources(corpus: tuple[str, ...]) -> list[tuple[str, list]]:
    """Return the files of a corpus in order, each with its [size, what tells when it changes].

    Args:
        corpus: `demo`, and files or folders of the `KINDS`. Parquet and JSONL have columns `title` and `text`
            (`section` and `url` where there are any); a text or PDF file is one article, named like the file.

    Raises:
        InputError: no such file, a Parquet file without one of the columns, or a dump that was cut off.
    """
    sources = []
    for path in corpus:
        if path == "demo":
            sources.append((path, [packaged_path("demo").stat().st_size, 0]))
        else:
            sources += storage.stat_files(path, *KINDS)
    for path, _ in sources:
        if path.endswith(".parquet"):
            for column in ("title", "text"):
                if column not in (names := storage.open_parquet(path).schema_arrow.names):
                    raise InputError(f"{path}: no column {column!r}; it has {', '.join(names)}")
        elif path.endswith(".xml.bz2"):
            dump.check_whole(path)
        elif path != "demo" and not path.endswith(tuple(f".{kind}" for kind in KINDS)):
            raise InputError(f"{path}: a corpus is `demo`, or files ending in .{', .'.join(KINDS)}")
    return sources


def split_sources(sources: list[tuple[str, list]], part_bytes: int) -> list[list[Piece]]:
    """Return the parts of a corpus, each about as much as one task reads: pieces of large files, or small files."""
    parts: list[list[Piece]] = []
    room = 0
    for path, (size, _) in sources:
        for piece, length in _pieces(path, size, part_bytes):
            if not parts or length > room:
                parts.append([])
                room = part_bytes
            parts[-1].append(piece)
            room -= length
    return parts


def _pieces(path: str, size: int, part_bytes: int) -> Iterator[tuple[Piece, int]]:
    if path.endswith(".parquet"):
        about = storage.open_parquet(path).metadata
        sizes = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
        start = 0
        for end in range(1, len(sizes) + 1):
            if end == len(sizes) or sum(sizes[start : end + 1]) > part_bytes:
                yield Piece(path=path, start=start, end=end), sum(sizes[start:end])
                start = end
    elif path.endswith((".xml.bz2", ".jsonl")):
        for start in range(0, size, part_bytes):
            end = start + part_bytes if start + part_bytes < size else None
            yield Piece(path=path, start=start, end=end), min(part_bytes, size - start)
    else:
        yield Piece(path=path, start=0, end=None), size


def read_articles(path: str, start: int = 0, end: int | None = None, counts: Counter | None = None) -> Iterator[dict]:
    """Yield the articles of a file, or of a piece of it, section by section, in order, one held at a time.

    Args:
        path: `demo`, or a file of one of the `KINDS`.
        start: first byte, or row group, of the piece.
        end: byte, or row group, after it; None for the end of the file.
        counts: gets the number of `articles`, and of those left out by reason.

    Raises:
        InputError: a row that is no article, with its file, row and column.
    """
    counts = Counter() if counts is None else counts
    if path.endswith((".xml.bz2", ".xml")):
        articles = _read_dump(path, start, end, counts)
    elif path.endswith(".parquet"):
        articles = _checked(path, _read_parquet(path, start, end))
    elif path.endswith(".jsonl"):
        articles = _checked(path, _read_jsonl(path, start, end))
    elif path.endswith(".pdf"):
        articles = _read_pdf(path, counts)
    else:
        articles = _read_demo() if path == "demo" else _read_text(path)
    for sections in articles:
        if not any(row["text"].strip() for row in sections):
            counts["no text"] += 1
        elif any(len(row["text"]) > dump.LONGEST_PAGE for row in sections):
            counts["too long"] += 1
        else:
            counts["articles"] += 1
            yield from sections


def _read_dump(path: str, start: int, end: int | None, counts: Counter) -> Iterator[list[dict]]:
    from sciqa.corpus import wikitext

    site = dump.site_of(path)
    for page in dump.read_pages(path, start, end):
        if page.namespace != "0":
            counts["not an article"] += 1
        elif page.text is None:
            counts["too long"] += 1
        elif page.redirect or wikitext.is_redirect(page.text):
            counts["redirect"] += 1
        elif wikitext.is_disambiguation(page.text):
            counts["disambiguation"] += 1
        else:
            url = site and site + quote(page.title.replace(" ", "_"))
            try:
                sections = wikitext.read_sections(page.text)
            except Exception:  # whatever one page does to the parser, the other millions are read
                counts["unreadable wikitext"] += 1
                continue
            yield [{"title": page.title, "section": name, "text": text, "url": url} for name, text in sections]


def _read_demo() -> Iterator[list[dict]]:
    articles = json.loads(packaged_path("demo").read_text(encoding="utf-8"))
    for article in articles.values():
        title = article["title"]
        url = f"https://en.wikipedia.org/wiki/{quote(title.replace(' ', '_'))}"
        yield [{"title": title, "section": "", "text": article["extract"], "url": url}]


def _read_text(path: str) -> Iterator[list[dict]]:
    data = storage.read_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start + 1}: not UTF-8") from error
    yield [{"title": PurePosixPath(path).stem, "section": "", "text": text, "url": path}]


def _read_pdf(path: str, counts: Counter) -> Iterator[list[dict]]:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(storage.read_bytes(path)))
        title = (reader.metadata and reader.metadata.title) or PurePosixPath(path).stem
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError):
        counts["unreadable PDF"] += 1
        return
    text = "\n".join(pages).replace("-\n", "").replace("\n", " ")
    yield [{"title": str(title), "section": "", "text": text, "url": path}]


def _checked(path: str, rows: Iterator[tuple[int, dict]]) -> Iterator[list[dict]]:
    """Yield rows as articles, or raise `InputError` with the place of the first that is none."""
    for at, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{_place(path, at)}: an object with title and text expected, {row!r:.60} found")
        article = {field: row.get(field) or "" for field in FIELDS}
        for field, value in article.items():
            if not isinstance(value, str):
                raise InputError(f"{_place(path, at)}, column {field!r}: text expected, {value!r} found")
        for field in ("title", "text"):
            if field not in row:
                raise InputError(f"{_place(path, at)}: no column {field!r}; every article has a title and a text")
        yield [article]


def _place(path: str, at: int) -> str:
    """Name a row: of a Parquet file by its number from 0, of a JSONL file by its first byte."""
    if path.endswith(".jsonl"):
        filesystem, inner = storage.resolve(path)
        with filesystem.open_input_stream(inner) as file:
            at = file.read(at).count(b"\n")
    return f"{path}, row {at + 1}"


def _read_parquet(path: str, start: int, end: int | None) -> Iterator[tuple[int, dict]]:
    file = storage.open_parquet(path)
    columns = [name for name in file.schema_arrow.names if name in FIELDS]
    groups = range(start, file.num_row_groups if end is None else end)
    first = sum(file.metadata.row_group(number).num_rows for number in range(start))
    rows = (row for batch in file.iter_batches(256, groups, columns) for row in batch.to_pylist())
    return enumerate(rows, first)


def _read_jsonl(path: str, start: int, end: int | None) -> Iterator[tuple[int, dict]]:
    """Yield the lines that begin in a range of bytes."""
    filesystem, inner = storage.resolve(path)
    with io.BufferedReader(filesystem.open_input_file(inner)) as file:
        file.seek(max(0, start - 1))
        at = file.tell() + len(file.readline()) if start else 0
        while (end is None or at < end) and (line := file.readline()):
            if line.strip():
                yield at, _parse_line(path, at, line)
            at += len(line)


def _parse_line(path: str, at: int, line: bytes) -> object:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{_place(path, at)}, byte {error.start + 1}: not UTF-8") from error
    except ValueError as error:
        raise InputError(f"{_place(path, at)}: not JSON ({error}); one article a line expected") from error

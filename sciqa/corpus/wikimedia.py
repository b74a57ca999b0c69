"""Read pages from MediaWiki dumps (`pages-articles*.xml.bz2`), also from any part of a multistream file."""

import bz2
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.parsers import expat

import pyarrow as pa

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.corpus.corpus_files import kind_of_corpus_file, open_corpus_file

#: The beginning of every bz2 stream: its header and that of its first block. A multistream dump consists of many
#: streams of some hundred pages each; these ten bytes locate them without the index file.
STREAM = re.compile(rb"BZh[1-9]1AY&SY")
MAGIC_BYTES = 10
CHUNK = 1 << 18
#: Maximum characters of a page; longer ones are left out. MediaWiki itself accepts at most 2 MiB.
LONGEST_PAGE = 10_000_000

NAMESPACE = re.compile(rb'<namespace key="(-?\d+)"[^<>]*>([^<>]+)</namespace>')
#: Names of namespaces without articles, for dumps that list none: the names in MediaWiki, in some languages.
CORE = (
    "media special talk user wikipedia file image mediawiki template help category portal draft module book timedtext "
    "wiktionary wikibooks wikiquote wikisource wikiversity wikivoyage "
    "medium spezial diskussion benutzer datei bild vorlage hilfe kategorie spécial discussion utilisateur fichier "
    "modèle aide catégorie portail especial discusión usuario archivo plantilla ayuda categoría discussão usuário "
    "ficheiro predefinição ajuda categoria speciale discussione utente immagine aiuto portale overleg gebruiker "
    "bestand sjabloon categorie служебная обсуждение участник файл шаблон справка категория портал"
)
NAMESPACES = frozenset(CORE.split())
TALK = re.compile(r" talk$|^(?:discussion |обсуждение )")


@dataclass(frozen=True)
class WikimediaSite:
    """Information from the head of a dump: the base URL of its pages, and the namespaces without articles."""

    base: str = ""
    namespaces: frozenset[str] = NAMESPACES

    def holds_article(self, title: str) -> bool:
        """Return whether a title belongs to the article namespace."""
        prefix, colon, _ = title.partition(":")
        prefix = prefix.replace("_", " ").strip().lower()
        talk = self.namespaces is NAMESPACES and TALK.search(prefix)
        return not (colon and (talk or prefix in self.namespaces))


@dataclass
class WikimediaPage:
    """A page of a dump.

    `text` is None if it is longer than `LONGEST_PAGE`; `namespace` is None if the dump does not contain it.
    """

    title: str = ""
    namespace: str | None = None
    text: str | None = ""
    redirect: bool = False


def read_wikimedia_pages(path: str, start: int = 0, end: int | None = None) -> Iterator[WikimediaPage]:
    """Yield the pages of all bz2 streams that begin within a range of bytes.

    Args:
        path: a dump, `.xml.bz2` or `.xml`; the latter is read whole.
        start: first byte of the range.
        end: byte after the range, or None for the end of the file.

    Raises:
        InputError: a file that is truncated, is not a dump, or declares entities.
    """
    chunks = _streams(path, start, end) if kind_of_corpus_file(path)[1] == ".bz2" else _chunks(path)
    parser = _PageParser(path)
    if start:
        parser.feed(b"<mediawiki>")
        parser.remedy = "a bz2 stream begins within a page, as those of pbzip2 do; unpack it, or pack it with bzip2"
    empty = True
    for chunk in chunks:
        empty = False
        yield from parser.feed(chunk)
    if end is None and not parser.closed and not (empty and start):
        raise InputError(f"{path}: cut off before its last line, </mediawiki>; fetch it again")


def is_wikimedia_dump(path: str) -> bool:
    """Return whether a file begins like a dump."""
    return b"<mediawiki" in _head(path)


def read_wikimedia_site(path: str) -> WikimediaSite:
    """Read the site information from the head of a dump."""
    head = _head(path)
    base = re.search(rb"<base>(.*/).*</base>", head)
    named = (name.decode("utf-8", "replace") for key, name in NAMESPACE.findall(head) if key != b"0")
    names = frozenset(html.unescape(name).lower() for name in named)
    return WikimediaSite(base[1].decode() if base else "", names or NAMESPACES)


def _head(path: str) -> bytes:
    with open_corpus_file(path) as file:
        return file.read(CHUNK)


def check_whole_wikimedia_dump(path: str) -> None:
    """Raise `InputError` if a dump is not a bz2 file, or its last stream is truncated."""
    filesystem, inner = storage.resolve_storage(path)
    with storage.storage_errors(path, "read"), filesystem.open_input_file(inner) as file:
        if not STREAM.match(file.read(MAGIC_BYTES)):
            raise InputError(f"{path}: not a bz2 file; a dump pages-articles*.xml.bz2 expected")
        file.seek(max(0, file.size() - 16 * CHUNK))
        tail = file.read()
    streams = list(STREAM.finditer(tail))
    if streams:
        stream = bz2.BZ2Decompressor()
        try:
            last = stream.decompress(tail[streams[-1].start() :])
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: its last bz2 stream is damaged ({error}); fetch it again") from error
        if not stream.eof or not last.rstrip().endswith(b"</mediawiki>"):
            raise InputError(f"{path}: cut off before its last line, </mediawiki>; fetch it again")


def _chunks(path: str) -> Iterator[bytes]:
    with open_corpus_file(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _streams(path: str, start: int, end: int | None) -> Iterator[bytes]:
    """Yield the decompressed data of the streams that begin in a range; each is read to its own end."""
    filesystem, inner = storage.resolve_storage(path)
    with filesystem.open_input_file(inner) as file:
        yield from _streams_of(file, path, start, end or file.size())


def _streams_of(file: pa.NativeFile, path: str, start: int, end: int) -> Iterator[bytes]:
    position = _find_stream(file, start, end)
    file.seek(position)
    data = b""
    while position < end:
        stream = bz2.BZ2Decompressor()
        try:
            while not stream.eof:
                if stream.needs_input:
                    data = data or file.read(CHUNK)
                    if not data:
                        raise InputError(f"{path}: cut off in the bz2 stream at byte {position}; fetch it again")
                text = stream.decompress(data, max_length=CHUNK)
                data = b""
                if text:
                    yield text
        except (OSError, EOFError) as error:
            raise InputError(
                f"{path}: the bz2 stream at byte {position} is damaged ({error}); fetch it again"
            ) from error
        data = stream.unused_data or file.read(CHUNK)
        position = file.tell() - len(data)
        if not data:
            return


def _find_stream(file: pa.NativeFile, start: int, end: int) -> int:
    """Return the position of the first stream that begins at `start` or later, or `end` if there is none."""
    kept, at = b"", start
    file.seek(start)
    while at - len(kept) < end and (chunk := file.read(CHUNK)):
        found = STREAM.search(kept + chunk)
        if found:
            return at - len(kept) + found.start()
        at += len(chunk)
        kept = (kept + chunk)[-MAGIC_BYTES + 1 :]
    return end


class _PageParser:
    """Parses pages from XML fed in pieces; holds one page at a time, at most `LONGEST_PAGE` characters of it."""

    def __init__(self, path: str) -> None:
        self.path, self.closed = path, False
        self._pages: list[WikimediaPage] = []
        self._page, self._length = WikimediaPage(), 0
        self.remedy = "fetch it again"  # until a page begins
        self._parts: list[str] | None = None
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._take
        self._parser.EntityDeclHandler = self._refuse

    def feed(self, data: bytes) -> list[WikimediaPage]:
        """Parse a piece of XML, and return the pages that end in it."""
        self._pages = []
        try:
            self._parser.Parse(data)
        except expat.ExpatError as error:
            after = f" after the page {self._page.title!r}" if self._page.title else ""
            raise InputError(f"{self.path}: not well-formed XML{after} ({error}); {self.remedy}") from error
        return self._pages

    def _begin(self, tag: str, attributes: dict) -> None:
        if tag == "page":
            self._page = WikimediaPage()
            self.remedy = "fetch it again"
        elif tag == "redirect":
            self._page.redirect = True
        elif tag in ("title", "ns", "text"):
            self._parts, self._length = [], 0

    def _take(self, data: str) -> None:
        if self._parts is not None:
            self._length += len(data)
            if self._length <= LONGEST_PAGE:
                self._parts.append(data)

    def _end(self, tag: str) -> None:
        if tag in ("title", "ns", "text"):
            value = "".join(self._parts or ()) if self._length <= LONGEST_PAGE else None
            setattr(self._page, "namespace" if tag == "ns" else tag, value)
            self._parts = None
        elif tag == "page":
            self._pages.append(self._page)
        elif tag == "mediawiki":
            self.closed = True

    def _refuse(self, name: str, *_: object) -> None:
        raise InputError(f"{self.path}: declares the XML entity {name!r}, which no dump does; it is not read")

"""Files of a corpus: their types, compression and encoding, and why other files are left out."""

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from sciqa.core import storage
from sciqa.core.errors import InputError

#: File types by suffix in lower case, after the suffix of the compression is removed.
KINDS = {
    ".xml": "dump", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text", ".html": "html", ".htm": "html",
    ".xhtml": "html", ".pdf": "pdf",
}  # fmt: skip
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
EXPECTED = f"a corpus is `demo`, or files ending in {', '.join(KINDS)}, also in {', '.join(COMPRESSIONS)}"
#: Parts of dumps as Wikimedia names them (`…-pages-articles1.xml-p1p41242.bz2`), and the indexes and checksums beside.
DUMP_PART = re.compile(r"\.xml-p\d+p\d+$")
NOT_ARTICLES = re.compile(r"-multistream-index\d*\.txt(?:-p\d+p\d+)?$|(?:md5|sha\d+)sums(?:-[\w.-]+)?(?:\.txt)?$")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".epub", ".docx", ".odt")
#: File names of wikiextractor.
EXTRACTED = re.compile(r"wiki_\d+$")
#: Encodings by byte order mark, the longer marks first.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
#: Maximum bytes of a file that is one article, and maximum length of a CSV cell.
LARGEST = 40_000_000
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


def kind_of_corpus_file(path: str) -> tuple[str, str]:
    """Return the type of a file, and the suffix of its compression ("" if there is none).

    Raises:
        InputError: an unsupported file, with the reason.
    """
    if path == "demo":
        return "demo", ""
    name = PurePosixPath(path).name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    if NOT_ARTICLES.search(name):
        raise InputError(f"{path}: lists what lies beside it and holds no articles")
    if EXTRACTED.match(name):
        return "extracted", compression
    kind = "dump" if DUMP_PART.search(name) else KINDS.get(PurePosixPath(name).suffix)
    if kind == "parquet" and compression:
        raise InputError(f"{path}: Parquet within {compression}, which cannot be read in pieces; unpack it")
    if kind is None:
        what = "an archive or document; unpack it or convert it" if name.endswith(ARCHIVES) else "no kind that is read"
        raise InputError(f"{path}: {what}; {EXPECTED}")
    return kind, compression


def list_corpus_files(folder: str) -> list[tuple[str, list]]:
    """Return all files below a folder, sorted, each with [size in bytes, modification time in ns]."""
    filesystem, inner = storage.resolve_storage(folder)
    with storage.storage_errors(folder, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    return sorted(
        (storage.join_paths(folder, entry.path[len(inner) :].lstrip("/")), [entry.size, entry.mtime_ns])
        for entry in entries
        if entry.type != fs.FileType.Directory
    )


def is_hidden_corpus_file(path: str, folder: str) -> bool:
    """Return whether the name of a file, or of a folder on its path, begins with a dot or an underscore."""
    return any(part.startswith((".", "_")) for part in path.removeprefix(folder).split("/"))


Source = BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
#: Functions that open a stream, by the suffix of its compression.
OPENERS: dict[str, Callable[[pa.NativeFile], Source]] = {
    "": BufferedReader, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open,
    ".zst": lambda raw: BufferedReader(pa.CompressedInputStream(raw, "zstd")),
}  # fmt: skip


@contextmanager
def open_corpus_file(path: str) -> Iterator[Source]:
    """Open a file for sequential reading, decompressed.

    Raises:
        InputError: the file is missing, damaged or truncated; also raised while reading within the `with` block.
    """
    _, compression = kind_of_corpus_file(path)
    filesystem, inner = storage.resolve_storage(path)
    try:
        with filesystem.open_input_stream(inner, compression=None) as raw:
            yield OPENERS[compression](raw)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except BROKEN as error:
        raise InputError(f"{path}: cannot be read, damaged or cut off ({error}); fetch or write it again") from error


def find_corpus_file_encoding(head: bytes, encoding: str = "utf-8") -> tuple[bytes, str]:
    """Return the byte order mark that a file begins with (b"" if none) and the encoding, by the mark or the default."""
    mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
    return mark, MARKS.get(mark, encoding)


def decode_corpus_file(data: bytes, path: str, encoding: str = "utf-8") -> str:
    """Return a file's text without its byte order mark, which overrides the encoding; lines end in newlines.

    Raises:
        InputError: bytes that are invalid in the encoding, or zero bytes.
    """
    mark, encoding = find_corpus_file_encoding(data, encoding)
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at, name = error.start + 1 + len(mark), encoding.upper()
        raise InputError(f"{path}, byte {at}: not {name}; convert it to UTF-8, as with iconv") from error
    if "\x00" in text:
        raise InputError(f"{path}: holds bytes 0, so it is no text in {encoding.upper()}; convert it to UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")

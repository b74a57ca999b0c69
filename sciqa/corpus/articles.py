"""Articles (title, section, text, url) from the packaged demo corpus, JSONL and Parquet files."""

import io
import json
from collections.abc import Iterator
from urllib.parse import quote

from sciqa import storage
from sciqa.errors import InputError
from sciqa.hub import packaged_path

FIELDS = ("title", "section", "text", "url")
DEMO_CREDIT = "Lead sections of English Wikipedia's vital articles, by their authors, CC BY-SA 4.0"


def find_sources(corpus: str) -> list[tuple[str, list]]:
    """Return the files of a corpus, each with what tells when it changes.

    Args:
        corpus: `demo`, or a JSONL or Parquet file or folder with columns `title` and `text`
            (`section` and `url` where there are any).

    Raises:
        InputError: no such file, or a Parquet file without one of the columns.
    """
    if corpus == "demo":
        return [("demo", [packaged_path("demo").stat().st_size])]
    sources = storage.stat_files(corpus, "jsonl", "parquet")
    for path, _ in sources:
        if path.endswith(".parquet"):
            for column in ("title", "text"):
                if column not in (names := storage.open_parquet(path).schema_arrow.names):
                    raise InputError(f"{path}: no column {column!r}; it has {', '.join(names)}")
        elif not path.endswith(".jsonl"):
            raise InputError(f"{path}: a corpus is `demo`, or files ending in .jsonl or .parquet")
    return sources


def read_articles(source: str) -> Iterator[dict[str, str]]:
    """Yield a source's articles, in order, without holding more than a part of it.

    Raises:
        InputError: a row that is no article, with its file, row and column.
    """
    if source == "demo":
        rows = _read_demo()
    elif source.endswith(".parquet"):
        rows = _read_parquet(source)
    else:
        rows = _read_jsonl(source)
    for number, row in enumerate(rows, 1):
        article = {field: row.get(field) or "" for field in FIELDS}
        for field, value in article.items():
            if not isinstance(value, str):
                raise InputError(f"{source}, row {number}, column {field!r}: text expected, {value!r} found")
        if "text" not in row or "title" not in row:
            missing = "text" if "text" not in row else "title"
            raise InputError(f"{source}, row {number}: no column {missing!r}; every article has a title and a text")
        yield article


def _read_demo() -> Iterator[dict]:
    articles = json.loads(packaged_path("demo").read_text(encoding="utf-8"))
    for article in articles.values():
        title = article["title"]
        yield {
            "title": title,
            "section": "",
            "text": article["extract"],
            "url": f"https://en.wikipedia.org/wiki/{quote(title.replace(' ', '_'))}",
        }


def _read_parquet(path: str) -> Iterator[dict]:
    file = storage.open_parquet(path)
    columns = [name for name in file.schema_arrow.names if name in FIELDS]
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        yield from batch.to_pylist()


def _read_jsonl(path: str) -> Iterator[dict]:
    filesystem, inner = storage.resolve(path)
    with filesystem.open_input_stream(inner) as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, row {number}, byte {error.start + 1}: not UTF-8") from error
            except ValueError as error:
                raise InputError(f"{path}, row {number}: not JSON ({error}); one article a line expected") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number}: an object with title and text expected, {row!r:.60} found")
            yield row

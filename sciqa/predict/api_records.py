"""Answers of a server, kept as they come: each is a file until the run is done, then all of them are one table.

They lie in the records of the answers table. A run that is stopped, or whose workers die, asks nothing again that has
been answered and kept, whatever its shards.
"""

from collections import Counter

import pyarrow as pa

from sciqa.core import hashes, storage, tables
from sciqa.core.console import console
from sciqa.exam.chain_table import USAGE

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "id")),
        *((name, pa.int64()) for name in ("rotation", "sample")),
        *((name, pa.string()) for name in ("letter", "text")),
        ("logprobs", pa.map_(pa.string(), pa.float64())),
        *((name, pa.int64()) for name in ("tokens_in", "tokens_out")),
        ("finished", pa.bool_()),
        ("model", pa.string()),
    ]
)


def record_files_folder(answers: str) -> str:
    """Return the folder of the records that are still files, by the folder of the answers table."""
    return tables.table_records_path(answers, "requests")


def api_record_path(answers: str) -> str:
    """Return the path of the table of all records, by the folder of the answers table."""
    return tables.table_records_path(answers, "requests.parquet")


class RequestRecords:
    """The records of an answers table, which is given by its folder."""

    def __init__(self, answers: str) -> None:
        self.folder, self.rows = record_files_folder(answers), _read_table(answers)

    def get(self, key: str) -> dict | None:
        """Return the record of a request that has been answered, by this worker or another, or None."""
        if key in self.rows:
            return self.rows[key]
        return storage.read_json(self._path(key)) if storage.path_exists(self._path(key)) else None

    def put(self, key: str, record: dict) -> None:
        """Keep the record of a request; when this returns, a killed run does not ask it again."""
        storage.write_json(self._path(key), record | {"key": key})

    def _path(self, key: str) -> str:
        return storage.join_paths(self.folder, f"{key}.json")


def collect_records(answers: str) -> dict[str, dict[str, int]]:
    """Turn the files of records into rows of their table; return the sums of `USAGE` by the id of the question.

    The answers table, given by its folder, may be unfinished; without records, the result is empty.
    """
    folder, rows = record_files_folder(answers), _read_table(answers)
    if files := [storage.join_paths(folder, name) for name in storage.list_names(folder)]:
        rows |= {row["key"]: row for row in storage.map_storage(storage.read_json, files)}
        ordered = sorted(rows.values(), key=lambda row: (row["id"], row["rotation"], row["sample"], row["key"]))
        written = [row | {"logprobs": list(row["logprobs"].items())} for row in ordered]
        tables.write_table(api_record_path(answers), pa.Table.from_pylist(written, schema=SCHEMA))
        storage.delete_path(folder)
        _say_models(answers, rows)
    sums: dict[str, dict[str, int]] = {}
    for row in rows.values():
        of = sums.setdefault(row["id"], dict.fromkeys(USAGE, 0))
        figures = (row["letter"] is None, row.get("finished") is False, row["tokens_in"], row["tokens_out"])
        for name, figure in zip(USAGE, figures, strict=True):
            of[name] += int(figure)
    return sums


def _say_models(answers: str, rows: dict[str, dict]) -> None:
    """Tell the user if more than one model answered, as when a name comes to mean a newer version."""
    models = Counter(model for row in rows.values() if (model := row.get("model")))
    if len(models) > 1:
        several = ", ".join(f"{model} ({number:,})" for model, number in sorted(models.items()))
        console.print(f"{api_record_path(answers)}: answers of several models: {several}", markup=False, soft_wrap=True)


def _read_table(answers: str) -> dict[str, dict]:
    """Return the records in the table by their keys; none without a table."""
    path = api_record_path(answers)
    rows = tables.read_table(path).to_pylist() if storage.path_exists(path) else []
    return {row["key"]: row | {"logprobs": dict(row["logprobs"] or ())} for row in rows}


def record_key(question: str, rotation: int, sample: int, request: dict) -> str:
    """Return the key of a request's record, a hash of all that its answer follows from."""
    return hashes.fingerprint([question, rotation, sample, request])


def sum_record_usage(rows: list[dict]) -> dict[str, int]:
    """Return the sums of `USAGE` over rows of which some have them; nothing if none has."""
    asked = [row for row in rows if USAGE[0] in row]
    return {name: sum(row[name] for row in asked) for name in USAGE} if asked else {}


def record_token_cost(price: tuple[float, float] | None, figures: dict) -> float | None:
    """Return what the tokens of `figures` cost, or None without a price; prices are per million tokens."""
    if price is None or figures.get("tokens_in") is None:
        return None
    return (price[0] * figures["tokens_in"] + price[1] * figures["tokens_out"]) / 1e6


def record_usage_summary(price: tuple[float, float] | None, figures: dict, writer: str = "the server") -> str:
    """Return tokens, cost, and answers cut off or without a letter in words, for the summary; empty without any."""
    if figures.get("tokens_in") is None:
        return ""
    said = f"; {figures['tokens_in']:,} tokens read and {figures['tokens_out']:,} written by {writer}"
    if (cost := record_token_cost(price, figures)) is not None:
        said += f", which cost {cost:,.4f} at --price"
    if unfinished := figures.get("unfinished"):
        said += f"; {unfinished:,} of its answers cut by --max-tokens"
    if "no_letter" in figures:
        said += f"; {figures['no_letter']:,} of its answers without a letter"
    return said

"""The table of chains beside an answers table: what a model wrote before each answer, and how much of it."""

from collections.abc import Sequence

import pyarrow as pa

from sciqa.core import storage, tables

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int64()),
        *((name, pa.string()) for name in ("text", "letter")),
        *((name, pa.int64()) for name in ("prompt_tokens", "tokens")),
        ("finished", pa.bool_()),
    ]
)
#: Figures that the answers to a question sum up to: those without a letter, those that were cut off, and the tokens
#: that were read and written.
USAGE = ("no_letter", "unfinished", "tokens_in", "tokens_out")


def chain_table_folder(answers: str) -> str:
    """Return the folder of the table of chains, by the folder of the answers table."""
    return tables.table_records_path(answers, "chains")


def write_chain_rows(answers: str, part: int, rows: Sequence[dict]) -> None:
    """Write rows of `SCHEMA` as a shard of the table of chains, numbered as the shard of answers that they lead to."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    tables.write_table(tables.table_part_path(chain_table_folder(answers), part), table)


def read_chain_table(
    answers: str, columns: list[str] | None = None, questions: float = float("inf")
) -> dict[str, list[dict]]:
    """Return the chains of each question, by its id, in the order of their samples; empty without any.

    Args:
        answers: folder of the answers table.
        columns: columns to read besides `id`; by default all.
        questions: read no further shard when there are this many questions.
    """
    found: dict[str, list[dict]] = {}
    for name in sorted(storage.list_names(chain_table_folder(answers))):
        if len(found) >= questions:
            break
        path = storage.join_paths(chain_table_folder(answers), name)
        for row in tables.read_table(path, columns and ["id", *columns]).to_pylist():
            found.setdefault(row["id"], []).append(row)
    return found


def chain_table_usage(answers: str) -> dict[str, dict[str, int]]:
    """Return the sums of `USAGE` by the id of the question; empty without chains."""
    return {
        name: {
            "no_letter": sum(row["letter"] is None for row in rows),
            "unfinished": sum(not row["finished"] for row in rows),
            "tokens_in": sum(row["prompt_tokens"] for row in rows),
            "tokens_out": sum(row["tokens"] for row in rows),
        }
        for name, rows in read_chain_table(answers, ["letter", "finished", "prompt_tokens", "tokens"]).items()
    }

"""Tables with one row per question of an exam, read together with its questions, whatever their shard size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from sciqa.core import tables
from sciqa.core.errors import InputError

if TYPE_CHECKING:
    from sciqa.exam.open_exam import Exam


@dataclass(frozen=True)
class QuestionTable:
    """A finished table of contexts or answers; its shard size may differ from that of the table it is read for.

    Attributes:
        folder: folder of the table.
        rows: rows per shard, except the last shard.
    """

    folder: str
    rows: int

    def read(self, questions: Sequence[dict], first: int, columns: list[str] | None = None) -> list[dict]:
        """Return the rows of consecutive questions of an exam, in its order; see `read_slice`."""
        if not questions:
            return []
        return self.read_slice([question["id"] for question in questions], first, columns).to_pylist()

    def read_slice(self, ids: list[str], first: int, columns: list[str] | None = None) -> pa.Table:
        """Return the rows of at least one question as a table.

        Args:
            ids: ids of consecutive questions of the exam.
            first: number of the first one in the exam, from 0.
            columns: columns to read besides `id`; by default all.

        Raises:
            InputError: the table's rows at these numbers belong to other questions.
        """
        last = first + len(ids)
        columns = columns and ["id", *columns]
        found = []
        for part in range(first // self.rows, -(-last // self.rows)):
            start = part * self.rows
            path = tables.table_part_path(self.folder, part)
            found.append(tables.read_table_slice(path, max(first - start, 0), min(last - start, self.rows), columns))
        return self._checked(pa.concat_tables(found), ids, first)

    def read_all(self, exam: "Exam", columns: list[str] | None = None) -> pa.Table:
        """Return the rows of all questions of an exam, in its order; see `read_slice`."""
        columns = columns and ["id", *columns]
        paths = [tables.table_part_path(self.folder, part) for part in range(-(-exam.questions // self.rows))]
        table = pa.concat_tables([tables.open_parquet(path).read(columns) for path in paths])
        return self._checked(table, exam.read_ids(), 0)

    def _checked(self, table: pa.Table, expected: list[str], first: int) -> pa.Table:
        """Return rows if their ids are those of questions, of which the first has the number `first` in the exam."""
        found = table["id"].to_pylist()
        if found == expected:
            return table
        pairs = zip(found, expected, strict=False)
        at = next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(found), len(expected)))
        there = f"the row of question {found[at]!r}" if at < len(found) else "no row"
        wanted = f"that of question {expected[at]!r}" if at < len(expected) else "none"
        raise InputError(
            f"{self.folder}, row {first + at + 1}: {there} where {wanted} is expected; "
            "its shards are of another exam; delete the folder and run the step that makes it again"
        )

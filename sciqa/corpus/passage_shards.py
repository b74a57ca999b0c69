"""Read shards of the passages table, each compared with the manifest's record of it."""

import pyarrow as pa

from sciqa.core import hashes, tables
from sciqa.core.errors import InputError


def read_passage_shard(path: str, content: str) -> pa.Table:
    """Return a shard of passages, whose rows have the hash `content` in the manifest.

    Raises:
        InputError: the shard is missing, or holds other rows.
    """
    table = tables.read_table(path)
    if hashes.rows_hash(tables.table_rows(table)) != content:
        raise InputError(
            f"{path}: not the passages that the manifest names; delete this file, then run `sciqa corpus` with the "
            "same --corpus, which writes it anew"
        )
    return table

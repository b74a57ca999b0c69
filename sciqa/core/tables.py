"""Tables of Parquet shards: read and write them, begin, resume and finish them, recognise them by their inputs."""

import io
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.core.lock import check_lock_held

#: Files in the records of a table: the inputs that determine its content, and the manifest, which is written last.
INPUTS, MANIFEST = "inputs.json", "manifest.json"
#: Advice on an existing table that is in the way.
REMEDY = "pass another --output (or --name, for answers), or --overwrite to replace it"
#: Message about a table whose `format` is not that of this version.
OTHERWISE = "made by another version of sciqa, which computes this otherwise"


def table_part_name(part: int) -> str:
    """Return the file name of a shard, by its number."""
    return f"{part:05d}.parquet"


def table_part_path(folder: str, part: int) -> str:
    """Return the path of a shard in a table with numbered shards."""
    return storage.join_paths(folder, table_part_name(part))


class BegunTable(NamedTuple):
    """State of a table's folder that is open for writing.

    Attributes:
        names: names of the shards that it already holds.
        rows: rows per shard, if all shards have the same number.
        whole: whether the table is complete.
    """

    names: set[str]
    rows: int | None
    whole: bool


def table_records_path(folder: str, *names: str) -> str:
    """Return a path in the folder `_NAME` beside a table's folder `NAME`, which holds the table's metadata.

    The table's own folder holds only shards, so that any program that reads Parquet can open it.
    """
    parent, _, name = folder.rstrip("/").rpartition("/")
    return storage.join_paths(parent, f"_{name}", *names)


def differing_table_inputs(begun: dict, inputs: dict, defaults: dict) -> dict[str, tuple]:
    """Return the differences between two tables' inputs: (there, now) by name, or by `outer: inner` if nested.

    A missing name counts as the option's default, so that options added later change nothing. `begun` are the stored
    inputs, as read from JSON, and `inputs` the current ones.
    """
    inputs = json.loads(json.dumps(inputs))
    defaults = json.loads(json.dumps(defaults, default=str))
    changed: dict[str, tuple] = {}
    for name in sorted(begun.keys() | inputs.keys()):
        there, now = (each.get(name, defaults.get(name)) for each in (begun, inputs))
        if isinstance(there, dict) and isinstance(now, dict):
            within = differing_table_inputs(there, now, defaults)
            changed |= {f"{name}: {inner}": pair for inner, pair in within.items()}
        elif there != now:
            changed[name] = there, now
    return changed


def begin_table(
    folder: str, inputs: dict, defaults: dict | None = None, rows: int | None = None, overwrite: bool = False
) -> BegunTable:
    """Open a table's folder for writing; a table never mixes two runs.

    Args:
        folder: folder of the table's shards.
        inputs: everything that determines the table's content, and `format`, the version of the computation.
        defaults: defaults of the options among the inputs, by name; see `differing_table_inputs`.
        rows: wanted rows per shard; a table that has shards keeps their number of rows.
        overwrite: empty a folder that was begun from other inputs, or by a version of the program that computes
            differently.

    Raises:
        InputError: the folder has to be emptied and `overwrite` is off, it holds files that no step has made, or it
            was finished and has gained files.
    """
    held = set(storage.list_names(folder))
    if storage.path_exists(table_records_path(folder, INPUTS)):
        begun = storage.read_json(table_records_path(folder, INPUTS))
        made = held or set(storage.list_names(table_records_path(folder))) - {INPUTS}
        if not (changed := differing_table_inputs(begun["inputs"], inputs, defaults or {})):
            if made or begun.get("rows") == rows:
                whole = is_finished_table(folder)
                if not whole:  # else a manifest of earlier files would vouch for those that are written now
                    _check_not_more(folder, held)
                    storage.delete_path(table_records_path(folder, MANIFEST))
                return BegunTable(held, begun.get("rows"), whole)
        elif made and not overwrite:
            said = OTHERWISE if set(changed) == {"format"} else _said_changes(changed)
            raise InputError(f"{folder}: {said}; {REMEDY}")
        delete_table(folder)
    elif "_manifest.json" in held or "_inputs.json" in held:
        if not overwrite:
            raise InputError(f"{folder}: {OTHERWISE}; {REMEDY}")
        delete_table(folder)
    else:
        for each in (folder, table_records_path(folder)):
            if storage.list_names(each):
                raise InputError(f"{each}: holds files that no step of sciqa made; pass another folder")
    storage.write_json(table_records_path(folder, INPUTS), {"inputs": inputs, "rows": rows})
    return BegunTable(set(), rows, False)


def _check_not_more(folder: str, held: set[str]) -> None:
    """Raise `InputError` if a finished table has gained shards, as copies that other programs make."""
    path = table_records_path(folder, MANIFEST)
    files = storage.read_json(path)["files"] if storage.path_exists(path) else len(held)
    if len(held) > files and all(name.endswith(".parquet") for name in held):
        odd = sorted(name for name in held if not re.fullmatch(r"\d+(-\d+)?\.parquet", name))
        raise InputError(
            f"{folder}: holds {len(held):,} files, of which {files:,} were written; delete what no step has made"
            + f", such as {odd[0]}" * bool(odd)
        )


def delete_table(folder: str) -> None:
    """Delete a table, then its records: without records, `begin_table` would take its files for foreign ones."""
    storage.delete_path(folder)
    storage.delete_path(table_records_path(folder))


def _said_changes(changed: dict[str, tuple]) -> str:
    """Return in words the differences between a table's inputs, as `differing_table_inputs` returns them."""
    if (name := "format") not in changed:
        name = next(iter(changed))
    there, now = changed[name]
    more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"made from other inputs ({name}: {there!s:.60} there, {now!s:.60} now{more})"


def finish_table(folder: str, manifest: dict) -> None:
    """Mark a table as complete: the manifest is written last, so its presence means that nothing is missing.

    Raises:
        InputError: another process has taken over the lock of the table meanwhile.
    """
    check_lock_held(folder)
    storage.write_json(table_records_path(folder, MANIFEST), manifest | {"files": len(storage.list_names(folder))})


def finished_tables(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each finished table in a folder, in the order of their names."""
    for name in storage.list_folders(folder):
        if is_finished_table(path := storage.join_paths(folder, name)):
            yield name, path


def is_finished_table(folder: str) -> bool:
    """Whether a table, or a trained model, exists and is complete; a table that has lost or gained shards is not.

    Files of other kinds, as those of a model, are not counted: a training deletes its checkpoints in the end.
    """
    path = table_records_path(folder, MANIFEST)
    if not storage.path_exists(path):  # the folder may be a file
        return False
    names = storage.list_names(folder)
    if all(name.endswith(".parquet") for name in names):
        return bool(names) and storage.read_json(path)["files"] == len(names)
    return True


def read_table_manifest(folder: str, step: str, version: int | None = None) -> dict:
    """Return the manifest of a complete table, or raise `InputError` that names the step to run.

    `version` is the `format` that the table must have; by default any.
    """
    if not is_finished_table(folder):
        if storage.path_exists(storage.join_paths(folder, "_manifest.json")):
            raise InputError(f"{folder}: {OTHERWISE}; run `sciqa {step} --overwrite`")
        raise InputError(f"{folder}: not there, or not finished; run `sciqa {step}` with the same --output first")
    manifest = storage.read_json(table_records_path(folder, MANIFEST))
    if version is not None and manifest.get("format") != version:
        raise InputError(f"{folder}: {OTHERWISE}; run `sciqa {step} --overwrite`")
    return manifest


def write_table(path: str, table: pa.Table, row_group_size: int | None = None) -> str:
    """Write a table as one zstd Parquet file, completely or not at all; return its sha256."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    return storage.write_bytes(path, buffer.getvalue())


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file; raise `InputError` if it is missing or not valid."""
    filesystem, inner = storage.resolve_storage(path)
    try:
        return pq.ParquetFile(inner, filesystem=filesystem, pre_buffer=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({error}); write or fetch it again") from error


def read_table_rows(path: str, first: int, last: int, columns: list[str] | None = None) -> list[dict]:
    """Return the rows of a Parquet file from number `first` up to but not including `last`, across row groups."""
    return read_table_slice(path, first, last, columns).to_pylist()


def read_table_slice(path: str, first: int, last: int, columns: list[str] | None = None) -> pa.Table:
    """Return `read_table_rows` as a table."""
    file = open_parquet(path)
    starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
    groups = [n for n in range(file.num_row_groups) if starts[n] < last and first < starts[n + 1]]
    with storage.storage_errors(path, "read"):
        table = file.read_row_groups(groups, columns)
    return table.slice(first - int(starts[groups[0]]), last - first) if groups else table


def table_rows(table: pa.Table) -> Iterator[dict]:
    """Yield the rows of a table, of which few are Python objects at a time."""
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def read_table(path: str, columns: list[str] | None = None, filters: list[tuple] | None = None) -> pa.Table:
    """Read one Parquet file, or all Parquet files of a folder in the order of their names.

    With filters, as `pyarrow.parquet.read_table` takes them, only row groups with rows that may match are read.
    """
    files = storage.list_files(path, "parquet")
    filesystem, _ = storage.resolve_storage(path)
    with storage.storage_errors(path, "read"):
        if filters is None:
            return pa.concat_tables([open_parquet(file).read(columns) for file in files])
        how = {"columns": columns, "filters": filters, "filesystem": filesystem, "partitioning": None}
        return pa.concat_tables([pq.read_table(storage.resolve_storage(file)[1], **how) for file in files])

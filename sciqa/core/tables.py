"""Tables in shards: begun, gone on with, finished, and known again by what they follow from."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from typing import NamedTuple

from sciqa.core import storage
from sciqa.core.errors import InputError

#: What a table follows from, and the list of what it holds, which is written last; in its `records`.
INPUTS, MANIFEST = "inputs.json", "manifest.json"
#: What can be done about a table that is in the way.
REMEDY = "pass another --output (or --name, for answers), or --overwrite to replace it"
#: What is said of a table whose `format` is not the program's.
OTHERWISE = "made by another version of sciqa, which computes this otherwise"


def part_name(part: int) -> str:
    """Return the name of the file of a shard, by its number."""
    return f"{part:05d}.parquet"


def part_path(folder: str, part: int) -> str:
    """Return where a shard is of a table whose shards are numbered."""
    return storage.join(folder, part_name(part))


def fingerprint(value: object) -> str:
    """Return a short hash of anything JSON holds, the same in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def rows_hash(rows: Iterable[dict]) -> str:
    """Return a hash of rows in their order; the order of their columns and empty cells do not count."""
    digest = hashlib.sha256()
    for row in rows:
        given = {name: value for name, value in row.items() if value is not None}
        digest.update(json.dumps(given, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


class Begun(NamedTuple):
    """A table's folder that is open for writing.

    Attributes:
        names: of the shards that it already holds.
        rows: in each of its shards, where they are of even size.
        whole: whether nothing is missing.
    """

    names: set[str]
    rows: int | None
    whole: bool


def records(folder: str, *names: str) -> str:
    """Return a path in the folder beside a table's, `_NAME` beside `NAME`, which holds what is known of the table.

    The table's own folder holds its shards alone, so that it opens in any program that reads Parquet.
    """
    parent, _, name = folder.rstrip("/").rpartition("/")
    return storage.join(parent, f"_{name}", *names)


def defaults_of(*kinds: type) -> dict:
    """Return the default of every option of some dataclasses, by its name."""
    return {field.name: field.default for kind in kinds for field in fields(kind)}


def differing(begun: dict, inputs: dict, defaults: dict) -> dict[str, tuple]:
    """Return in what two tables' inputs differ: (there, now) by name, of nested ones `outer: inner`.

    A name that one of them lacks counts as the option's default, so that options which came later change nothing.

    Args:
        begun: inputs as JSON gave them back.
        inputs: those of now.
        defaults: of the options, by name.
    """
    inputs = json.loads(json.dumps(inputs))
    defaults = json.loads(json.dumps(defaults, default=str))
    changed = {}
    for name in sorted(begun.keys() | inputs.keys()):
        there, now = (each.get(name, defaults.get(name)) for each in (begun, inputs))
        if isinstance(there, dict) and isinstance(now, dict):
            changed |= {f"{name}: {inner}": pair for inner, pair in differing(there, now, defaults).items()}
        elif there != now:
            changed[name] = there, now
    return changed


def begin(
    folder: str, inputs: dict, defaults: dict | None = None, rows: int | None = None, overwrite: bool = False
) -> Begun:
    """Open a table's folder for writing; a table never mixes two runs.

    Args:
        folder: where the table's parts go.
        inputs: all that the table's content follows from, and `format`, of what the program computes.
        defaults: of the options among the inputs, by name; see `differing`.
        rows: wanted in each part; a table that has parts goes on with the rows that those have.
        overwrite: empty a folder that was begun from other inputs, or by a version of the program that computes
            otherwise.

    Raises:
        InputError: the folder was begun so, or holds what no step of this program has begun.
    """
    held = set(storage.names(folder))
    if storage.exists(records(folder, INPUTS)):
        begun = storage.read_json(records(folder, INPUTS))
        if not (changed := differing(begun["inputs"], inputs, defaults or {})):
            if held or begun.get("rows") == rows:
                path = records(folder, MANIFEST)
                whole = storage.exists(path) and storage.read_json(path)["files"] == len(held)
                return Begun(held, begun.get("rows"), whole)
        elif not overwrite:
            said = OTHERWISE if set(changed) == {"format"} else _said_changes(changed)
            raise InputError(f"{folder}: {said}; {REMEDY}")
        clear(folder)
    elif "_manifest.json" in held or "_inputs.json" in held:
        if not overwrite:
            raise InputError(f"{folder}: {OTHERWISE}; {REMEDY}")
        clear(folder)
    elif held:
        raise InputError(f"{folder}: holds files that no step of sciqa made; pass another folder")
    storage.write_json(records(folder, INPUTS), {"inputs": inputs, "rows": rows})
    return Begun(set(), rows, False)


def clear(folder: str) -> None:
    """Delete a table with its records; these go last, since without them its files would be anybody's."""
    storage.delete(folder)
    storage.delete(records(folder))


def _said_changes(changed: dict[str, tuple]) -> str:
    """Return in words in what a table's inputs differ, as `differing` gave it."""
    if (name := "format") not in changed:
        name = next(iter(changed))
    there, now = changed[name]
    more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"made from other inputs ({name}: {there!s:.60} there, {now!s:.60} now{more})"


def finish(folder: str, manifest: dict) -> None:
    """Mark a table as whole: its manifest is written last, so that a manifest means that nothing is missing."""
    storage.write_json(records(folder, MANIFEST), manifest | {"files": len(set(storage.names(folder)))})


def is_finished(folder: str) -> bool:
    """Whether a table, or a model that was trained, is there and whole."""
    return storage.exists(records(folder, MANIFEST)) and any(True for _ in storage.names(folder))


def read_manifest(folder: str, step: str, version: int | None = None) -> dict:
    """Return the manifest of a whole table, or raise `InputError` that names the step that makes it.

    Args:
        folder: of the table.
        step: that makes it.
        version: the `format` that the table must have, where that matters.
    """
    if not is_finished(folder):
        if storage.exists(storage.join(folder, "_manifest.json")):
            raise InputError(f"{folder}: {OTHERWISE}; run `sciqa {step} --overwrite`")
        raise InputError(f"{folder}: not there, or not finished; run `sciqa {step}` with the same --output first")
    manifest = storage.read_json(records(folder, MANIFEST))
    if version is not None and manifest.get("format") != version:
        raise InputError(f"{folder}: {OTHERWISE}; run `sciqa {step} --overwrite`")
    return manifest

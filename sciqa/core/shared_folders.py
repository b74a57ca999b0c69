"""Check that all nodes of a cluster see the folders of a run."""

import contextlib
import hashlib
import uuid
from pathlib import Path

import ray
from pyarrow import fs
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.options import OutputOptions
from sciqa.core.tables import MANIFEST

#: Options that name folders of tables, which workers read or write.
FOLDERS = ("output", "passages", "index", "contexts", "train_contexts", "validation_contexts")


def check_shared_folders(options: OutputOptions, others: list[dict]) -> None:
    """Raise `InputError` if a folder of the options is one of this machine that other nodes do not see.

    `others` are the other nodes, as Ray describes them.
    """
    for name in FOLDERS if others else ():
        folder = getattr(options, name, None)
        if not folder or (name != "output" and folder.startswith(f"{options.output}/")):
            continue
        filesystem, inner = storage.resolve_storage(folder)
        if isinstance(filesystem, fs.LocalFileSystem):
            _check_seen(name, Path(inner), others)


def _check_seen(name: str, folder: Path, others: list[dict]) -> None:
    """Raise `InputError` if other nodes do not see the folder that an option names, by a file that is made in it.

    Of a folder that is not there yet, the nearest folder above it that is there has to be seen. Of a finished index or
    table each node may have a copy, so its manifest is compared; and a folder that cannot be written, as a mount for
    input alone, has to exist on all nodes.
    """
    if name == "output":
        storage.check_storage_writable(str(folder))
    finished = folder / MANIFEST, Path(tables.table_records_path(str(folder), MANIFEST))
    if manifest := next((path for path in finished if path.exists()), None):
        blind = find_blind_nodes(manifest, others)
    else:
        there = next(each for each in (folder, *folder.parents) if each.is_dir())
        marker = there / f".shared-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            marker.touch()
        try:
            blind = find_blind_nodes(marker if marker.exists() else there, others)
        finally:
            marker.unlink(missing_ok=True)
    if blind:
        raise InputError(
            f"--{name.replace('_', '-')} {folder}: a folder of this machine, which the nodes {', '.join(blind)} do not "
            "see as it is here; pass a folder that all nodes mount, or a URI such as s3://bucket/run"
        )


def find_blind_nodes(path: Path, nodes: list[dict]) -> list[str]:
    """Return the addresses of the nodes on which a path does not exist, or is a file with other contents, sorted."""

    def look(path: str) -> object:  # nested, so that it is pickled whole: a node may have no sciqa yet
        there = Path(path)
        try:
            return hashlib.sha256(there.read_bytes()).digest() if there.is_file() else there.exists()
        except OSError as error:  # of another user
            return type(error).__name__

    here, sees = look(str(path)), ray.remote(num_cpus=0)(look)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [sees.options(scheduling_strategy=place).remote(str(path)) for place in places]
    return sorted({node["NodeManagerAddress"] for node, seen in zip(nodes, asked, strict=True) if _differs(seen, here)})


def _differs(answer: ray.ObjectRef, here: object) -> bool:
    """Whether a node answers otherwise than this one; a node that has left meanwhile does not count."""
    try:
        return ray.get(answer) != here
    except ray.exceptions.RayTaskError:
        return True
    except ray.exceptions.RayError:
        return False

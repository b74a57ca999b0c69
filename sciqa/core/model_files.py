"""Find the files of a model by its name: packaged, a local folder, a GGUF file, or a hub id."""

import fnmatch
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from sciqa.core import hashes, storage
from sciqa.core.cache import cached_folder
from sciqa.core.errors import InputError
from sciqa.core.hashes import find_hashed_weights, hash_other_files, hash_weights
from sciqa.core.packaged import PACKAGED, check_packaged_name, packaged_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Json = TypeVar("Json", dict, list)
Family = Literal["causal", "multiple-choice", "seq2seq"]
#: Files of an adapter, as peft names them, and this program's own record beside an adapter or a fine-tuned model.
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ABOUT_TRAINED = "adapter_config.json", "adapter_model.safetensors", "sciqa.json"
#: Pickled weights can run code when they are loaded, so they are never fetched.
NEVER_FETCHED = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.ot", "openvino/*", "*.py"]
#: Types of models whose positions begin behind the number of the padding token: the places up to it are never used.
BEHIND_PADDING = ["camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta"]
BEHIND_PADDING += ["roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"]
#: Types of models with a table of learned positions, which no setting makes longer.
LEARNED_POSITIONS = [*BEHIND_PADDING, "albert", "bert", "distilbert", "electra"]
#: Names of the file with the settings of a model's first module, in the order in which sentence-transformers looks.
SETTINGS = [f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert")]
SETTINGS += ["sentence_xlm-roberta_config.json", "sentence_xlnet_config.json"]
#: Names of a model's prompts for each kind of text, in the order of preference of sentence-transformers.
PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class ModelFiles:
    """A model's files on this machine.

    Attributes:
        folder: folder of configuration, tokenizer and weights.
        gguf_file: name of the GGUF file in the folder, or None if the weights are safetensors.
        weights: paths of the weight files that are loaded.
    """

    folder: str
    gguf_file: str | None
    weights: tuple[Path, ...]

    @property
    def revision(self) -> str:
        """Hash of all files the model is loaded from: weights, configurations, tokenizer, chat template, pooling.

        Weights are read once per machine; weights in the hub's cache are never read.
        """
        return hashes.fingerprint({"weights": self.weights_hash, "others": self.others})

    @property
    def weights_hash(self) -> str:
        """Hash of the weight files' contents alone."""
        return hash_weights(self.weights)

    @property
    def others(self) -> dict[str, str]:
        """Hashes of the files the model is loaded from besides its weights, by path in its folder."""
        return hash_other_files(Path(self.folder), self.gguf_file is not None)

    @property
    def tokenizer(self) -> str:
        """Hash of the files that `model_file_tokenizer` reads."""
        return self.others.get("tokenizer.json") or self.revision


def local_model_path(name: str, default: str | None = None) -> str:
    """Return the absolute path of a local file or folder; any other name is returned unchanged.

    Workers do not share the driver's working folder.

    Raises:
        InputError: the name of a packaged model, other than the option's default, which a file or folder here has too.
    """
    if name in PACKAGED:
        check_packaged_name(name, name == default)
        return name
    if name.startswith("file://"):
        return storage.resolve_storage(name)[1]
    return str(Path(name).absolute()) if Path(name).exists() else name


def find_model(name: str, recorded: str | None = None) -> ModelFiles:
    """Find a model's files. If the name is a hub id, they are downloaded once.

    Args:
        name: a packaged name, a folder or a `.gguf` file (local, or a URI such as `s3://bucket/model`, which is copied
            into the machine's cache), or a hub id such as `microsoft/deberta-v3-large`.
        recorded: revision that the command has recorded; a worker finds another one where its node has other files.

    Raises:
        InputError: there is no such model, it has no safetensors weights, or it is another one than recorded.
    """
    files = _find_files(name)
    if recorded:
        hashes.check_same_hash(name, files.revision, recorded)
    return files


def _find_files(name: str) -> ModelFiles:
    path = local_model_copy(name)
    if path.suffix == ".gguf" and path.is_file():
        return ModelFiles(str(path.parent), path.name, (path,))
    if not path.is_dir():
        path = _fetch(name)
    weights = find_hashed_weights(path)
    if not weights:
        raise InputError(
            f"{name}: no weights in {path} (model.safetensors, or the files that model.safetensors.index.json names); "
            "other formats are not loaded"
        )
    return ModelFiles(str(path), None, tuple(weights))


def model_config_files(name: str) -> tuple[Path, str | None]:
    """Return the folder of a model's configuration, and the name of its GGUF file if it has one.

    Weights need not be there; of a hub id, only the configuration is downloaded.

    Raises:
        InputError: there is no such model, or it has no configuration.
    """
    path = local_model_copy(name, ("*/config.json", "*.gguf"))
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if not path.is_dir():
        path = _fetch(name, "config.json")
    _read_config(name, path)
    return path, None


def model_file_bytes(name: str) -> int:
    """Return the bytes of a model's weight files; of a GGUF file, four times its size (4-bit weights in 16 bits)."""
    files = find_model(name)
    if files.gguf_file:
        return 4 * Path(files.folder, files.gguf_file).stat().st_size
    return sum(path.stat().st_size for path in files.weights if path.exists())


def model_file_tokenizer(name: str) -> "Tokenizer":
    """Return a model's fast tokenizer, without truncation or padding; it needs no PyTorch if tokenizer.json exists."""
    from tokenizers import Tokenizer

    folder = Path(find_model(name).folder)
    file = folder / _first_module(name).get("path", "") / "tokenizer.json"
    try:
        if file.exists():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # the package tokenizers raises no narrower class
        raise InputError(f"{name}: no tokenizer in it that can be loaded ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_model_file(name: str, file: str) -> dict:
    """Return the object in a JSON file of a model's folder, {} if there is no such file."""
    return _read_json(name, Path(find_model(name).folder) / file, dict)


def read_model_file_modules(name: str) -> list[dict]:
    """Return the modules of a sentence-transformers model, [] if it does not list them."""
    return _read_json(name, Path(find_model(name).folder) / "modules.json", list)


def _first_module(name: str) -> dict:
    return next(iter(read_model_file_modules(name)), {})


def has_static_model_files(name: str) -> bool:
    """Whether a sentence-transformers model is static: it looks up a vector for each token, and has no network."""
    return _first_module(name).get("type", "").endswith(".StaticEmbedding")


def model_file_sequence_length(name: str) -> int | None:
    """Return the maximum number of tokens that a sentence-transformers model reads; None if it does not say.

    As in sentence-transformers, that is its own setting, or else the least of its tokenizer's and its positions; but no
    more than it has learned positions.
    """
    if has_static_model_files(name):
        return None
    folder = Path(_first_module(name).get("path", ""))
    own = next(filter(None, (read_model_file(name, str(folder / file)) for file in SETTINGS)), {})
    given = own.get("tokenizer_args", own.get("processor_kwargs")) or {}
    about = read_model_file(name, str(folder / "config.json"))
    positions = about.get("max_position_embeddings")
    if positions and about.get("model_type") in BEHIND_PADDING:
        positions -= 1 + (about.get("pad_token_id") or 0)
    if said := given.get("model_max_length") or own.get("max_seq_length"):
        return min(said, positions or said) if about.get("model_type") in LEARNED_POSITIONS else said
    said = read_model_file(name, str(folder / "tokenizer_config.json")).get("model_max_length")
    return min((limit for limit in (said, positions) if isinstance(limit, int) and 0 < limit < 1 << 30), default=None)


def model_file_prompt(name: str, kind: Literal["query", "passage"]) -> str:
    """Return the prompt for texts of a kind in a sentence-transformers model's configuration, empty if it has none."""
    prompts = read_model_file(name, "config_sentence_transformers.json").get("prompts") or {}
    return next((prompts[each] for each in PROMPTS[kind] if prompts.get(each)), "")


def model_file_dimension(name: str) -> int | None:
    """Return the dimension of a sentence-transformers model's vectors; None if its modules do not say."""
    for module in reversed(read_model_file_modules(name)):
        about = read_model_file(name, str(Path(module["path"], "config.json")))
        for key in ("out_features", "word_embedding_dimension", "embedding_dimension"):
            if key in about:
                return about[key]
    return None


def model_file_family(name: str) -> Family:
    """Return the family of a model, from its configuration.

    Raises:
        InputError: there is no such model, or it is of a kind that cannot rank options.
    """
    files = find_model(name)
    return model_folder_family(name, Path(files.folder), files.gguf_file)


def model_folder_family(name: str, folder: Path, gguf_file: str | None) -> Family:
    """Return the family of a model, from the configuration in a folder; see `model_file_family`."""
    if gguf_file:
        return "causal"
    about = _read_config(name, folder)
    kinds, kind = about.get("architectures") or [], about.get("model_type")
    if any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        return "causal"
    from transformers.models.auto import modeling_auto as auto

    if about.get("is_encoder_decoder") and kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    if kind in auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES:
        return "multiple-choice"
    raise InputError(
        f"{name}: {' '.join(kinds) or kind} in its config.json; a causal, multiple-choice or seq2seq model expected"
    )


def model_files_have_head(name: str) -> bool:
    """Whether a multiple-choice model's checkpoint has the head that scores options; a plain encoder has none."""
    about = _read_config(name, Path(find_model(name).folder))
    return any(kind.endswith("ForMultipleChoice") for kind in about.get("architectures") or [])


def _read_config(name: str, folder: Path) -> dict:
    if not (about := _read_json(name, folder / "config.json", dict)):
        raise InputError(f"{name}: no config.json in {folder}")
    return about


def _read_json(name: str, path: Path, kind: type[Json]) -> Json:
    try:
        read = json.loads(path.read_text(encoding="utf-8")) if path.exists() else kind()
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {path} cannot be read ({error})") from error
    if not isinstance(read, kind):
        raise InputError(f"{name}: {path}: a JSON {'object' if kind is dict else 'list'} expected")
    return read


def model_files_name(name: str) -> str:
    """Return the name of a model or adapter for a table's name: the last part of a path, or the whole hub id."""
    on_storage = "://" in name or Path(name).is_absolute()
    return name.rstrip("/").rpartition("/")[2] if on_storage else name.replace("/", "--")


def local_model_copy(name: str, only: tuple[str, ...] = ("*",)) -> Path:
    """Return the path on this machine of a packaged model, a local path or a URI; a hub id leads to no file."""
    if name in PACKAGED:
        return packaged_path(name)
    return _copy(name, only) if "://" in name else Path(name)


def _copy(address: str, only: tuple[str, ...]) -> Path:
    """Return a copy in the machine's cache of a file or folder on other storage, which is listed each time.

    A changed source is copied anew.
    """
    never = [f"*/{pattern}" for pattern in NEVER_FETCHED]
    address = address.rstrip("/")
    name = address.rpartition("/")[2]
    files = [
        (path, state)
        for path, state in storage.stat_files(address)
        if any(fnmatch.fnmatch(path, pattern) for pattern in only)
        and not any(fnmatch.fnmatch(path.removeprefix(address) or f"/{name}", pattern) for pattern in never)
    ]
    parent = address.rpartition("/")[0] if [path for path, _ in files] == [address] else address

    def build(aside: Path) -> None:
        for path, _ in files:
            storage.copy_files(path, str(aside / path.removeprefix(parent + "/")))

    folder = cached_folder(f"copy-{hashes.fingerprint([address, files])}", build)
    return folder if parent == address else folder / address.removeprefix(parent + "/")


@functools.cache
def _fetch(name: str, only: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=only, ignore_patterns=NEVER_FETCHED))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name}: neither a folder, a .gguf file, a packaged model ({', '.join(PACKAGED)}), "
            f"nor a hub model that could be fetched ({type(error).__name__})"
        ) from error

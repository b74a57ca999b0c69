"""Check, once per machine and before first use, whether OpenVINO gives an embedding model's own vectors."""

import contextlib
import json
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sciqa.core import hashes
from sciqa.core.cache import cached_folder
from sciqa.core.device import device_half_precision
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model
from sciqa.retrieval.embedder import Embedder, Kind, OpenVinoEmbedder, TorchEmbedder

#: Version of what is kept in the cache; raise it with every change of the results of tracing or checking.
PROOF_FORMAT = 1
#: Minimum cosine of a vector to the model's own in float32, by the precision it was computed in.
LEAST = {"bf16": 0.99, "f32": 0.9999, "bfloat16": 0.99}
#: Maximum tokens of a text that is compared; longer texts are not given to a traced model.
PROVEN_TOKENS = 512
SENTENCE = "Green plants make sugar from light, water and carbon dioxide, and set oxygen free."
#: Texts that are compared: a word, upper and lower case, several scripts, white space, a sentence, strings that look
#: like special tokens, a paragraph.
TEXTS = (
    "Water",
    "NaCl IS Table Salt, h2o is not",
    "Die Café-Größe Σ(x²) ≈ 3,5 µm — 光合作用 фотосинтез 😀",
    "  leading and trailing\twhite space \n",
    SENTENCE,
    "[SEP] </s> <pad> [MASK] <|im_end|>",
    " ".join([SENTENCE] * 4),
)
KINDS: tuple[Kind, ...] = ("query", "passage")


@dataclass(frozen=True)
class OpenVinoCheckBatch:
    """Texts to compare, the batch sizes to compute them with, and their prefix and kind."""

    texts: tuple[str, ...]
    sizes: tuple[int, ...]
    prefix: str
    kind: Kind | None


#: Batches to compare, each with the model's own vectors of its texts, shape (texts, dimension).
Checks = list[tuple[OpenVinoCheckBatch, np.ndarray]]


def check_openvino(model: str, threads: int) -> tuple[Path, dict]:
    """Return the cache folder with a model's trace, and a record that tells which backend computes its vectors.

    Vectors of the traced model, in batches of several sizes and up to the longest text that the model reads or
    `PROVEN_TOKENS`, are compared with those that sentence-transformers computes in float32 one text at a time. If they
    differ, or the model cannot be traced, the backend is PyTorch, and `reason` says why.

    Raises:
        InputError: no such model, one that gives no vectors, or one that was replaced meanwhile.
    """
    made_by = {package: version(package) for package in ("openvino", "torch", "transformers", "sentence-transformers")}
    revision = find_model(model).revision
    about = [PROOF_FORMAT, revision, made_by, _precisions()]

    def build(folder: Path) -> None:
        _prove(model, threads, folder)
        find_model(model, revision)  # files that were replaced meanwhile would be kept under the hash of others

    folder = cached_folder(f"embedder-{hashes.fingerprint(about)}", build)
    return folder, json.loads((folder / "embedder.json").read_text(encoding="utf-8"))


def _precisions() -> list[str]:
    """Return the precisions to try with OpenVINO on this processor, the fastest first."""
    import openvino as ov

    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["bf16", "f32"] if "BF16" in able else ["f32"]


def _prove(model: str, threads: int, folder: Path) -> None:
    own = TorchEmbedder(model, threads, "cpu", "float32")
    limit = own.longest
    batches = _batches(own, limit)
    truth = [_unit(own.raw([*each.texts], 1, each.prefix, each.kind)) for each in batches]
    del own
    about = _chosen(model, threads, folder, limit, list(zip(batches, truth, strict=True)))
    (folder / "embedder.json").write_text(json.dumps(about), encoding="utf-8")


def _chosen(model: str, threads: int, folder: Path, limit: int | None, checks: Checks) -> dict:
    """Choose the backend for a model's vectors; the trace stays in the folder only if OpenVINO is chosen."""
    if not all(np.isfinite(truth).all(axis=1).any() for _, truth in checks):
        return {"backend": "torch", "precision": "float32", "reason": "its own vectors are not finite or zero"}
    try:
        about = _traced(model, threads, folder, limit, checks)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # tracing runs third-party code, which can raise anything
        reason = " ".join(str(error).split())[:120]
        about = {"backend": "torch", "reason": f"it cannot be traced ({type(error).__name__}: {reason})"}
    if about["backend"] == "torch":
        for file in folder.iterdir():
            file.unlink()
        about["precision"] = _torch_precision(model, threads, checks)
    return about


def _traced(model: str, threads: int, folder: Path, limit: int | None, checks: Checks) -> dict:
    """Trace a model and check the trace; return how to use it, or that PyTorch is to be used."""
    about = _trace(model, threads, folder, limit)
    for precision in _precisions():
        about["precision"] = precision
        cosine = _least_cosine(OpenVinoEmbedder(model, threads, folder, about), checks)
        if cosine >= LEAST[precision]:
            return about
    return {"backend": "torch", "reason": f"traced, its vectors differ from the model's own (cosine {cosine:.2f})"}


def _batches(own: TorchEmbedder, limit: int | None) -> list[OpenVinoCheckBatch]:
    """Return the batches to compare; one has a text as long as the model reads, or of `PROVEN_TOKENS`."""
    sentences = [f"{number}. {SENTENCE}" for number in range(PROVEN_TOKENS)]
    many = PROVEN_TOKENS // 8
    if limit is None or limit > PROVEN_TOKENS:
        with contextlib.suppress(AttributeError, TypeError, KeyError):  # other kinds of tokenizers
            while len(own.module.tokenizer(" ".join(sentences[:many]))["input_ids"]) > PROVEN_TOKENS:
                many -= 1
    batches = [OpenVinoCheckBatch(TEXTS, (len(TEXTS) + 1, 2, 1), "", None)]
    batches += [OpenVinoCheckBatch(TEXTS[::3], (len(TEXTS),), f"{kind}: ", kind) for kind in KINDS]
    return [*batches, OpenVinoCheckBatch((" ".join(sentences[:many]), TEXTS[0]), (3,), "", None)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _least_cosine(embedder: Embedder, checks: Checks) -> float:
    """Return the smallest cosine of a vector to the model's own, NaN if a vector is not finite."""
    least = np.float32(1)
    for batch, expected in checks:
        there = np.isfinite(expected).all(axis=1)
        for size in batch.sizes:
            # An empty text, which is padding alone, must not change the other vectors of its batch.
            texts = [*batch.texts, ""] if size > 1 else [*batch.texts]
            found = _unit(embedder.raw(texts, size, batch.prefix, batch.kind))[: len(batch.texts)]
            if found.shape != expected.shape:
                raise ValueError(f"vectors of {found.shape[1]} dimensions where the model has {expected.shape[1]}")
            least = np.minimum(least, (found * expected).sum(axis=1)[there].min())
    return float(least)


def _torch_precision(model: str, threads: int, checks: Checks) -> str:
    """Return the fastest precision of PyTorch that gives the model's vectors."""
    precision = str(device_half_precision("cpu")).removeprefix("torch.")
    with contextlib.suppress(InputError):
        if precision in LEAST:
            halved = TorchEmbedder(model, threads, "cpu", precision)
            if _least_cosine(halved, checks) >= LEAST[precision]:
                return precision
    return "float32"


def _trace(name: str, threads: int, folder: Path, limit: int | None) -> dict:
    """Write a model, including pooling, in OpenVINO's format, with its fast tokenizer; return how to use them.

    The trace uses the eager attention of transformers: with PyTorch's own, padding rows give NaN in OpenVINO.
    """
    import openvino as ov
    import torch

    model = TorchEmbedder(name, threads, "cpu", "float32", "eager").module
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("no fast tokenizer")

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]

    example = model.preprocess(["one", "one more of these"])
    inputs = {"input_ids": example["input_ids"], "attention_mask": example["attention_mask"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = ov.convert_model(Forward(), example_input=inputs)
    ov.save_model(traced, folder / "model.xml", compress_to_fp16=False)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return {
        "backend": "openvino",
        "dimension": model.get_embedding_dimension(),
        "max_tokens": limit,
        "proven_tokens": min(limit or PROVEN_TOKENS, PROVEN_TOKENS),
        "pad_id": tokenizer.pad_token_id,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }

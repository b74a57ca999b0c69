"""Embed text with any sentence-transformers model: half precision on a GPU, OpenVINO on a CPU."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sciqa.core.device import Device, device_half_precision
from sciqa.core.errors import InputError, QuestionError
from sciqa.core.model_files import find_model, model_files_name

Backend = Literal["auto", "torch", "openvino"]
Kind = Literal["query", "passage"]
#: Names of the kinds of text in sentence-transformers, for models that treat them differently.
TASKS = {"query": "query", "passage": "document"}


class Embedder(ABC):
    """Turns text into vectors.

    Attributes:
        model: name of the model.
        computing: backend and precision, in words.
        longest: most tokens of a text that are read, the rest is cut off; None if there is no limit.
        revision: hash of the model's files that the command has recorded, if it has.
        notes: messages for the user on how vectors are computed.
        batch_size: texts that are computed at once.
    """

    model: str
    computing: str
    longest: int | None = None
    revision: str | None = None
    batch_size = 16

    def __init__(self) -> None:
        self.notes: list[str] = []

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int | None = None,
        *,
        prefix: str = "",
        kind: Kind | None = None,
        names: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Return unit vectors, float32, shape (texts, dimension); texts of similar length share a batch.

        Args:
            texts: texts to embed.
            batch_size: texts that are computed at once, by default a number that suits the device.
            prefix: put before each text; prompts in the model's configuration are not added.
            kind: kind of the texts, for models that treat queries and passages differently.
            names: label of each text for error messages; by default its beginning.

        Raises:
            InputError: the model's vector of a text is zero or not finite; `QuestionError` if that of a query is zero.
        """
        vectors = self.raw(list(texts), batch_size or self.batch_size, prefix, kind)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        good = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > np.finfo(np.float32).tiny)
        if not good.all():
            number = int(np.argmin(good))
            text = names[number] if names else f"the text {texts[number][:60]!r}"
            zero = bool(np.isfinite(lengths[number, 0]))
            asked = zero and kind == "query"  # a text without a token, say; a client is not told the model's folder
            raise (QuestionError if asked else InputError)(
                f"{model_files_name(self.model) if asked else self.model}: its vector of {text} is "
                f"{'zero' if zero else 'not finite'}, computed by {self.computing} ({(~good).sum()} of {len(texts)} "
                "such); check the text and the model's weights, or compute otherwise (--embed-backend, --accelerator)"
            )
        return vectors / lengths

    @abstractmethod
    def raw(self, texts: list[str], batch_size: int, prefix: str = "", kind: Kind | None = None) -> np.ndarray:
        """Return vectors as the model gives them, float32, shape (texts, dimension); see `encode`."""


def embed_one_by_one(
    embedder: Embedder, texts: list[str], prefix: str = "", kind: Kind | None = None, names: Sequence[str] | None = None
) -> np.ndarray:
    """Embed texts by `Embedder.encode`, each in a batch of its own.

    Padding and the shape of a batch change the rounding of vectors, by up to 0.001 of a cosine in bfloat16. The vector
    of a text alone does not depend on other texts.
    """
    return embedder.encode(texts, batch_size=1, prefix=prefix, kind=kind, names=names)


class TorchEmbedder(Embedder):
    """Embedder that runs the model in PyTorch, through sentence-transformers.

    Args:
        model: name of the model.
        threads: CPU threads.
        device: device to compute on.
        precision: PyTorch type of weights and computation; by default 16 bits if the device supports them.
        attention: attention implementation in transformers, by default the fastest.
    """

    batch_size = 32

    def __init__(
        self, model: str, threads: int, device: Device, precision: str | None = None, attention: str | None = None
    ) -> None:
        import torch

        from sciqa.retrieval.embedder_checkpoint import load_embedder_checkpoint

        super().__init__()
        torch.set_num_threads(threads)
        dtype = getattr(torch, precision) if precision else device_half_precision(device)
        self.model, self.computing = model, f"PyTorch in {str(dtype).removeprefix('torch.')} on {device}"
        self.module = load_embedder_checkpoint(model, "SentenceTransformer", device, dtype, attention)
        self.module.default_prompt_name = None
        longest = self.module.max_seq_length
        self.longest = longest if longest and longest < 1 << 30 else None

    def raw(self, texts: list[str], batch_size: int, prefix: str = "", kind: Kind | None = None) -> np.ndarray:
        """See `Embedder.raw`."""
        if not texts:
            return np.zeros((0, self.module.get_embedding_dimension() or 0), np.float32)
        settings: dict[str, Any] = {"task": TASKS[kind]} if kind else {}
        try:
            vectors = self.module.encode(
                texts, prompt=prefix, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True, **settings
            )
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{self.model}: sentence-transformers cannot embed texts with it, {self.computing} "
                f"({type(error).__name__}: {reason})"
            ) from error
        return vectors.float().cpu().numpy()  # a norm computed in 16 bits is off by up to 0.4 %


class OpenVinoEmbedder(Embedder):
    """Embedder that runs the model compiled for the CPU by OpenVINO, in bfloat16 if the processor supports it.

    It embeds about three times as many passages per second as PyTorch in float32 (`benchmarks/embedding.py`), with a
    cosine to it above 0.99. The traced model is kept in the machine's cache, so that a worker starts without PyTorch
    and sentence-transformers.

    Args:
        model: name of the model.
        threads: CPU threads.
        folder: folder with the traced model and its tokenizer.
        about: settings of the traced model, from `sciqa.retrieval.openvino_check.check_openvino`.
    """

    def __init__(self, model: str, threads: int, folder: Path, about: dict) -> None:
        import openvino as ov
        from tokenizers import Tokenizer

        super().__init__()
        self.model, self.threads, self.about = model, threads, about
        self.computing, self.longest = f"OpenVINO in {about['precision']}", about["max_tokens"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        if about["max_tokens"]:
            self.tokenizer.enable_truncation(about["max_tokens"], direction=about["truncation_side"])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # with pinning, all workers of a machine would share its first cores
            "INFERENCE_PRECISION_HINT": about["precision"],
        }
        self.compiled = ov.Core().compile_model(folder / "model.xml", "CPU", settings)
        self.for_longer: TorchEmbedder | None = None

    def raw(self, texts: list[str], batch_size: int, prefix: str = "", kind: Kind | None = None) -> np.ndarray:
        """See `Embedder.raw`."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch([prefix + text for text in texts])]
        lengths = np.array([len(ids) for ids in tokens], int)
        vectors = np.zeros((len(texts), self.about["dimension"]), np.float32)  # a text without tokens keeps zeros
        order = np.argsort(-lengths, kind="stable")
        order = order[(lengths[order] > 0) & (lengths[order] <= self.about["proven_tokens"])]
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self._forward([tokens[row] for row in rows])
        if len(longer := np.flatnonzero(lengths > self.about["proven_tokens"])):
            vectors[longer] = self._longer([texts[row] for row in longer], batch_size, prefix, kind)
        return vectors

    def _forward(self, tokens: list[list[int]]) -> np.ndarray:
        ids = np.full((len(tokens), max(map(len, tokens))), self.about["pad_id"], np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(tokens):
            place = slice(-len(row), None) if self.about["padding_side"] == "left" else slice(len(row))
            ids[number, place], mask[number, place] = row, 1
        return self.compiled([ids, mask])[0]

    def _longer(self, texts: list[str], batch_size: int, prefix: str, kind: Kind | None) -> np.ndarray:
        """Return the vectors of texts longer than those that the traced model was checked with."""
        if self.for_longer is None:
            loaded = TorchEmbedder(self.model, self.threads, "cpu", "float32")
            find_model(self.model, self.revision)  # its files may have been replaced since the trace was loaded
            self.for_longer = loaded
            self.notes.append(
                f"texts of more than {self.about['proven_tokens']} tokens are embedded by PyTorch, not OpenVINO"
            )
        return self.for_longer.raw(texts, batch_size, prefix, kind)

"""Text to vectors with any sentence-transformers model: half precision on a GPU, OpenVINO on a CPU."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from sciqa.cache import cached_folder
from sciqa.device import Device, check_device, half_precision
from sciqa.errors import InputError
from sciqa.hub import find_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: Of the traced models in the machine's cache; raised with every change of what tracing makes.
TRACE_FORMAT = 2

Backend = Literal["auto", "torch", "openvino"]


class Embedder(Protocol):
    """Turns text into vectors."""

    def encode(self, texts: list[str], batch_size: int = ...) -> np.ndarray:
        """Return unit vectors, float32, shape (texts, dimension); texts of like length share a batch."""


def load_embedder(model: str, threads: int, backend: Backend = "openvino", device: Device = "cpu") -> Embedder:
    """Return a sentence-transformers model.

    Args:
        model: name as `sciqa.hub.find_model` takes it.
        threads: CPU threads of this worker.
        backend: `torch`, or `openvino`, which computes on the CPU.
        device: what torch computes on.
    """
    return TorchEmbedder(model, threads, device) if backend == "torch" else OpenVinoEmbedder(model, threads)


def embed_alone(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """Return `Embedder.encode` of texts, at least one, each in a batch of its own.

    Padding and the shape of a batch change how vectors are rounded, by up to 0.001 of a cosine in bfloat16; a vector of
    a text by itself is the same whatever else is asked.

    Raises:
        InputError: a vector is not of finite numbers.
    """
    vectors = embedder.encode(texts, batch_size=1)
    for text, whole in zip(texts, np.isfinite(vectors).all(axis=1), strict=True):
        if not whole:
            raise InputError(
                f"{text[:60]!r}: the embedder gives a vector that is not of finite numbers; pass another "
                "--embed-backend, or another --embedder"
            )
    return vectors


class TorchEmbedder:
    """The model as sentence-transformers runs it, in 16 bits where the hardware has them."""

    def __init__(self, model: str, threads: int, device: Device) -> None:
        import torch

        torch.set_num_threads(threads)
        check_device(device)
        self.model = _load(model, device, half_precision(device))

    def encode(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """See `Embedder.encode`."""
        vectors = self.model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        return _unit(vectors.float().cpu().numpy())  # a norm taken in 16 bits is off by up to 0.4 %


class OpenVinoEmbedder:
    """The model compiled for the CPU, in bfloat16 where the processor has it.

    About three times the passages a second of plain float32 PyTorch (`benchmarks/embedding.py`); cosine to it
    above 0.99. The traced model is kept in the machine's cache, so that a worker needs neither PyTorch nor
    sentence-transformers to start.
    """

    def __init__(self, model: str, threads: int) -> None:
        import openvino as ov
        from tokenizers import Tokenizer

        name = f"openvino-{TRACE_FORMAT}-{find_model(model).revision}"
        folder = cached_folder(name, lambda folder: _trace(model, folder))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        about = json.loads((folder / "embedder.json").read_text())
        self.dimension, self.pad_id = about["dimension"], about["pad_id"]
        self.tokenizer.enable_truncation(about["max_tokens"])
        self.tokenizer.no_padding()
        core = ov.Core()
        bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # pinned, the workers of one machine would all share its first cores
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        }
        self.compiled = core.compile_model(folder / "model.xml", "CPU", settings)

    def encode(self, texts: list[str], batch_size: int = 16) -> np.ndarray:
        """See `Embedder.encode`."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = np.argsort([-len(ids) for ids in tokens], kind="stable")
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            width = len(tokens[rows[0]])
            ids = np.full((len(rows), width), self.pad_id, np.int64)
            mask = np.zeros_like(ids)
            for number, row in enumerate(rows):
                ids[number, : len(tokens[row])] = tokens[row]
                mask[number, : len(tokens[row])] = 1
            vectors[rows] = self.compiled([ids, mask])[0]
        return _unit(vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _load(model: str, device: str, dtype: object) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    settings = {"dtype": dtype, "use_safetensors": True}
    return SentenceTransformer(find_model(model).folder, device=device, trust_remote_code=False, model_kwargs=settings)


def _trace(name: str, folder: Path) -> None:
    """Write a sentence-transformers model, pooling included, as OpenVINO reads it, with its fast tokenizer."""
    import openvino as ov
    import torch

    model = _load(name, "cpu", torch.float32)
    if not getattr(model.tokenizer, "is_fast", False):
        raise InputError(f"{name}: has no fast tokenizer (tokenizer.json); pass --embed-backend torch")

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]

    example = model.tokenizer(["one", "one more"], padding=True, return_tensors="pt")
    inputs = {"input_ids": example["input_ids"], "attention_mask": example["attention_mask"]}
    ov.save_model(ov.convert_model(Forward(), example_input=inputs), folder / "model.xml", compress_to_fp16=False)
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "dimension": model.get_embedding_dimension(),
        "max_tokens": model.max_seq_length,
        "pad_id": model.tokenizer.pad_token_id,
    }
    (folder / "embedder.json").write_text(json.dumps(about))

"""Models that rank found passages again: cross-encoders, which score pairs of question and passage, and embedders."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np

from sciqa.core.device import Device, check_device
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, read_model_file, read_model_file_modules
from sciqa.retrieval.embedder import Embedder
from sciqa.retrieval.query_limit import AROUND, QueryLimit

EXPECTED = (
    "a cross-encoder expected (a model with a head for sequence classification that gives one score), or an embedder "
    "as sentence-transformers saves it"
)


def note_reranked_by_beginning(embedder: Embedder, prefix: str, texts: Iterable[str]) -> None:
    """Add a note to an embedder that reranks if it reads only the beginning of one of the texts of passages."""
    limit = QueryLimit(embedder, prefix)
    if (note := _note(embedder.model, limit.tokens)) not in embedder.notes and not all(map(limit.fits, texts)):
        embedder.notes.append(note)


def _note(name: str, limit: int | None) -> str:
    return f"{name} reads no more than {limit} tokens: longer passages are judged by their beginning"


def is_embedding_reranker(name: str) -> bool:
    """Whether a model gives vectors of single texts (a bi-encoder), by its configuration alone."""
    kind = read_model_file(name, "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
    return bool(read_model_file_modules(name)) and kind == "SentenceTransformer"


def check_reranker(name: str) -> None:
    """Raise `InputError` if a model is neither an embedder nor a cross-encoder with one score, by its configuration."""
    if is_embedding_reranker(name):
        return
    about = read_model_file(name, "config.json")
    if read_model_file(name, "config_sentence_transformers.json").get("model_type") == "CrossEncoder":
        return  # it may score by other modules than a head; loading checks its weights
    kinds = about.get("architectures") or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        what = " ".join(kinds) or about.get("model_type") or "no architecture"
        raise InputError(f"--rerank {name}: {what} in its config.json, which has no head that scores pairs; {EXPECTED}")
    labels = len(about.get("id2label") or "") or about.get("num_labels", 2)
    if labels != 1:
        raise InputError(f"--rerank {name}: its head gives {labels} numbers for a pair (id2label); {EXPECTED}")


class Reranker:
    """A cross-encoder that runs through sentence-transformers.

    Raises:
        InputError: not a cross-encoder with one score, files that lack some weights, such as those of its head, or
            another model than the `revision` on record.
    """

    def __init__(self, name: str, device: Device, revision: str | None = None) -> None:
        from sciqa.retrieval.embedder_checkpoint import load_embedder_checkpoint

        check_device(device)
        find_model(name, revision)
        check_reranker(name)
        self.name = name
        self.notes: list[str] = []
        self.module = load_embedder_checkpoint(name, "CrossEncoder", device, "float32" if device == "cpu" else "auto")
        find_model(name, revision)  # its files may have been replaced meanwhile
        if self.module.num_labels != 1:
            raise InputError(f"--rerank {name}: gives {self.module.num_labels} numbers for a pair; {EXPECTED}")

    def _reads_whole(self, pairs: list[tuple[str, str]]) -> bool:
        """Whether the model reads all of each pair; only long ones are measured, as no token has less than a byte."""
        limit = self.module.max_seq_length
        if not limit:
            return True
        long = [pair for pair in pairs if len("".join(pair).encode(errors="replace")) + AROUND > limit]
        asked, texts = map(list, zip(*long, strict=True)) if long else ([], [])
        return not long or max(map(len, self.module.tokenizer(asked, texts)["input_ids"])) <= limit

    def score(self, pairs: list[tuple[str, str]], names: Sequence[str]) -> np.ndarray:
        """Return the scores of pairs of question and passage, shape (pairs,); messages call a pair by its name.

        They are those of `CrossEncoder.predict`, but that the activation is computed in float64: in float32 a sigmoid
        gives 1 for all large scores.

        Raises:
            InputError: a pair whose score is not a finite number.
        """
        import torch

        if not pairs:
            return np.empty(0)
        try:
            if not self.notes and not self._reads_whole(pairs):
                self.notes.append(_note(self.name, self.module.max_seq_length))
            plain, activation = torch.nn.Identity(), cast("torch.nn.Module", self.module.activation_fn)
            logits = self.module.predict(pairs, activation_fn=plain, show_progress_bar=False, convert_to_tensor=True)
            scores = activation(logits.double()).cpu().numpy()
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"--rerank {self.name}: cannot score pairs ({type(error).__name__}: {reason})") from error
        if scores.shape != (len(pairs),):
            raise InputError(f"--rerank {self.name}: scores of shape {scores.shape} for {len(pairs)} pairs; {EXPECTED}")
        good = np.isfinite(scores)
        if not good.all():
            raise InputError(
                f"--rerank {self.name}: its score of {names[int(np.argmin(good))]} is not a finite number "
                f"({(~good).sum()} of {len(pairs)} such); check the model's weights"
            )
        return scores

"""Static embedders: the vector of a text is the mean of its tokens' vectors, looked up in a table; no network."""

from itertools import chain
from typing import Any

import numpy as np

from sciqa.core.errors import InputError
from sciqa.retrieval.embedder import Kind, TorchEmbedder
from sciqa.retrieval.openvino_check import TEXTS

#: Maximum difference between a number of a vector and sentence-transformers' own; the order of sums changes rounding.
TOLERANCE = 1e-5


class StaticEmbedder(TorchEmbedder):
    """Embedder that runs a sentence-transformers model whose first module is a `StaticEmbedding`, on the CPU.

    Tokenizing takes most of the time, so tokens are found without their places in the text, and batches are large. If
    that does not give sentence-transformers' own vectors of a few texts, every text is embedded by
    `SentenceTransformer.encode` instead, and a note says so.

    Raises:
        InputError: no such model, or one whose table has fewer rows than its tokenizer has tokens.
    """

    batch_size = 1024

    def __init__(self, model: str, threads: int) -> None:
        super().__init__(model, threads, "cpu", "float32")
        self.module.float()  # the type of the file's table is kept by sentence-transformers
        self.computing = "PyTorch in float32 on cpu, from a table of word vectors"
        table: Any = self.module[0]
        self.tokenizer: Any = table.tokenizer
        self.tokenizer.no_truncation()  # a mean of any number of vectors can be computed
        self.longest = None
        if self.tokenizer.get_vocab_size() > table.num_embeddings:
            raise InputError(
                f"{model}: {table.num_embeddings:,} vectors for the {self.tokenizer.get_vocab_size():,} tokens of its "
                "tokenizer; fetch or save it again"
            )
        self.direct = np.allclose(self._direct([*TEXTS]), super().raw([*TEXTS], len(TEXTS)), 0, TOLERANCE)
        if not self.direct:
            self.notes.append(f"{model} is computed by SentenceTransformer.encode: looked up directly, vectors differ")

    def raw(self, texts: list[str], batch_size: int, prefix: str = "", kind: Kind | None = None) -> np.ndarray:
        """See `Embedder.raw`."""
        if not texts or not self.direct:
            return super().raw(texts, batch_size, prefix, kind)
        starts = range(0, len(texts), batch_size)
        return np.concatenate([self._direct([prefix + text for text in texts[s : s + batch_size]]) for s in starts])

    def _direct(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of a batch of texts, through the model's modules; zeros for a text without tokens."""
        import torch

        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.array([0, *map(len, tokens)])
        ids = np.fromiter(chain.from_iterable(tokens), np.int64, lengths.sum())
        features = {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(lengths[:-1].cumsum())}
        with torch.inference_mode():
            return self.module(features)["sentence_embedding"].numpy()

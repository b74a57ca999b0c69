"""Options of embedding, indexing and retrieval."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core import cluster, storage
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.extras import missing_of_extra, require_extra
from sciqa.core.model_files import find_model, local_model_path, model_file_prompt
from sciqa.core.options import (
    DeviceOptions,
    Options,
    OutputOptions,
    RunOptions,
    SeedOptions,
    WriteOptions,
    check_name_option,
)
from sciqa.corpus.options import EmbeddingModelOptions, PassagesOptions
from sciqa.exam.options import ExamOptions, ExamQuestionOptions
from sciqa.retrieval.embedder import Backend

#: Versions of the vectors, and of the other files of a shard. Raise one with every change of what the program computes
#: for it, so that files of earlier versions are not kept.
VECTORS_FORMAT, INDEX_FORMAT = 3, 4
CACHE_BYTES = 50_000_000_000
#: Texts that a question is looked up by: its `prompt`; the prompt with all options (`whole`); the `mean` of the vectors
#: of these two (the first finds the subject, the second the fact); the prompt with each option, one ranking per option.
Query = Literal["prompt", "whole", "mean", "options"]


@dataclass(kw_only=True)
class EmbedOptions(EmbeddingModelOptions, DeviceOptions):
    """How the embedding model is run."""

    embed_backend: Backend = "auto"
    """`auto` uses OpenVINO on a CPU if it is installed (`sciqa[openvino]`), otherwise PyTorch."""
    query_prefix: str | None = None
    """Text before every query; by default the prompt for queries in the model's configuration."""
    passage_prefix: str | None = None
    """Text before every passage; by default the prompt for passages or documents in the model's configuration. It
    is the same for an index and for all that reads it."""

    def __post_init__(self) -> None:
        """Check that the backend is installed."""
        super().__post_init__()
        if self.embed_backend == "openvino":
            require_extra("openvino", "--embed-backend openvino")

    def embed_arguments(self, workers: int) -> dict:
        """Return the arguments of `load_embedder` for each of `workers` workers of the connected cluster."""
        return self.embed_on(cluster.cluster_device(self), cluster.cluster_threads_per_worker(workers))

    def embed_on(self, device: Device, threads: int) -> dict:
        """Return the arguments of `load_embedder` for a device and a number of CPU threads."""
        backend = self.embed_backend
        if backend == "auto":
            backend = "torch" if device == "cuda" or missing_of_extra("openvino") else "openvino"
        about = {"model": self.embedder, "revision": find_model(self.embedder).revision}
        return about | {"threads": threads, "backend": backend, "device": device}

    def prefix(self, kind: Literal["query", "passage"]) -> str:
        """Return the text that is put before every text of a kind."""
        given = self.query_prefix if kind == "query" else self.passage_prefix
        return model_file_prompt(self.embedder, kind) if given is None else given


@dataclass(kw_only=True)
class IndexFolderOptions(EmbedOptions, OutputOptions):
    """Where the index is, and the embedding model that it is built with."""

    index: str = ""
    """Folder of the index; by default OUTPUT/index."""
    verify: bool = False
    """Read every file of the index first and compare its sha256, not only its size."""
    cache_bytes: int = CACHE_BYTES
    """Most bytes of the files of indexes on object storage that a machine's cache holds; the least recently used go."""

    def __post_init__(self) -> None:
        """Fill the default folder and check the number."""
        super().__post_init__()
        self.fill_folder("index", "index")
        self.at_least(0, "cache_bytes")


@dataclass(kw_only=True)
class StoredVectorsOptions(Options):
    """How an index stores vectors."""

    factory: str = "Flat"
    """FAISS factory string of every shard. Flat is exact; IVF1024,Flat, OPQ48,IVF1024,PQ48, HNSW32 and others are
    approximate, so their candidates are scored again with the stored vectors."""
    vector_type: Literal["float32", "float16"] = "float32"
    """Type of the stored vectors."""


@dataclass(kw_only=True)
class IndexOptions(StoredVectorsOptions, IndexFolderOptions, PassagesOptions, RunOptions):
    """Options of the `index` step."""

    metric: Literal["inner-product", "l2"] = "inner-product"
    """Similarity measure; vectors have length 1, so both give the same ranking."""
    train_vectors: int = 100_000
    """Maximum vectors to train a factory on, once for all shards, if it needs training."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(1, "train_vectors")

    def embedding(self) -> dict:
        """Return everything that determines a shard's vectors, except its passages."""
        return {
            "format": VECTORS_FORMAT,
            "revision": find_model(self.embedder).revision,
            "prefix": self.prefix("passage"),
            "vector_type": self.vector_type,
        }

    def building(self, embedding: dict) -> dict:
        """Return everything that determines a trained FAISS index, except the passages: `embedding` and more.

        `terms` tells how BM25 splits texts, where that differs from `sciqa.retrieval.bm25.TERMS`.
        """
        from sciqa.retrieval.bm25 import TERMS, bm25_terms_hash  # spares the command line the import of SciPy

        building = {"index_format": INDEX_FORMAT, "factory": self.factory, "metric": self.metric}
        if self.factory != "Flat":
            building["train_vectors"] = self.train_vectors
        if (terms := bm25_terms_hash()) != TERMS:
            building["terms"] = terms
        return embedding | building


@dataclass(kw_only=True)
class SearchOptions(IndexFolderOptions):
    """How passages are found."""

    dense: tuple[Query, ...] = ("mean",)
    """Queries by vector: `prompt`, `whole` (with all options), their `mean`, `options` (with each option)."""
    words: tuple[Literal["prompt", "whole", "options"], ...] = ("options",)
    """Queries by words (BM25). Several rankings are fused by reciprocal rank."""
    depth: int = 50
    """Number of passages of each ranking that are fused."""
    candidates: int = 100
    """Number of passages that are scored again with the stored vectors, if the index is not Flat."""
    search_parameters: str | None = None
    """FAISS parameters of the search, such as nprobe=32 or efSearch=64."""
    rerank: str | None = None
    """Model (packaged, folder or hub id) that reranks the best passages: a cross-encoder, which scores pairs of
    question and passage, or an embedder, by the cosine of their vectors."""
    rerank_passages: int = 20
    """Number of passages that are reranked, at least --top-k."""
    top_k: int = 5
    """Number of passages kept for each question, best first."""
    context_tokens: int | None = None
    """Build the context from sentences of the passages that have at most this many tokens of the embedder's tokenizer
    together; their headings and the exam's own context are not counted."""

    def __post_init__(self) -> None:
        """Make the path of a local reranker absolute and check the numbers."""
        super().__post_init__()
        self.rerank = self.rerank and local_model_path(self.rerank)
        self.at_least(1, "top_k", "depth", "candidates", "rerank_passages", "context_tokens")
        if self.rerank and self.rerank_passages < self.top_k:
            raise InputError(
                f"--rerank-passages: {self.rerank_passages} given, at least --top-k ({self.top_k}) expected, as only "
                "reranked passages are kept; raise it, or lower --top-k"
            )
        if not self.dense and not self.words:
            raise InputError("--dense: none given and no --words, at least one query of either expected")

    def check_context(self, passages: int) -> None:
        """Raise `InputError` unless as many passages are kept as the context takes."""
        if not 1 <= passages <= self.top_k:
            raise InputError(f"--context-passages: {passages} given, 1 to --top-k ({self.top_k}) expected")


@dataclass(kw_only=True)
class ContextSizeOptions(Options):
    """The size of a context."""

    context_passages: int = 1
    """Number of the kept passages that form the context for the reader."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        self.at_least(1, "context_passages")


@dataclass(kw_only=True)
class ContextOptions(ContextSizeOptions):
    """The form of a context."""

    context_sentences: int | None = None
    """Build the context from this many sentences of these passages instead, those nearest to the question."""
    context_order: Literal["text", "nearest"] = "text"
    """Order of the sentences: as in the passages, or the nearest first."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        self.at_least(1, "context_sentences")


@dataclass(kw_only=True)
class FindOptions(ContextOptions, SearchOptions, ExamQuestionOptions, RunOptions):
    """How the contexts of questions are found on a cluster."""

    def __post_init__(self) -> None:
        """Check that as many passages are kept as the context takes."""
        super().__post_init__()
        self.check_context(self.context_passages)

    def finding(self) -> dict:
        """Return the options that determine the contexts, besides index and questions."""
        groups = (SearchOptions, ContextSizeOptions, ContextOptions)
        return {name: getattr(self, name) for group in groups for name in group.__annotations__}


@dataclass(kw_only=True)
class ContextsFolderOptions(OutputOptions):
    """Where the contexts are."""

    contexts: str = ""
    """Folder of the contexts table; by default OUTPUT/contexts."""

    def __post_init__(self) -> None:
        """Fill the default folder."""
        super().__post_init__()
        self.fill_folder("contexts", "contexts")


@dataclass(kw_only=True)
class RetrieveOptions(ContextsFolderOptions, IndexOptions, FindOptions, ExamOptions):
    """Options of the `retrieve` step."""

    evidence: bool = True
    """Also find for each option the sentence of the context that decides on it, and the clause in it."""


@dataclass(kw_only=True)
class EvaluateOptions(RetrieveOptions):
    """Options of the `retrieve` step and its evaluation."""

    evaluate: bool = False
    """Only measure retrieval: write a table with recall, MRR and nDCG of every kind of query, against the exam's column
    `title` (gold article) or `passage_id`."""


@dataclass(kw_only=True)
class EmbedderOptions(SeedOptions, PassagesOptions, WriteOptions):
    """Options of the `embedder` step."""

    method: Literal["distil", "skip-gram", "cbow"] = "distil"
    """`distil` takes the vectors of its tokens from a sentence-transformers model (model2vec); `skip-gram` and `cbow`
    train vectors of words on the passages of the run (word2vec, by gensim)."""
    name: str | None = None
    """Name of the folder OUTPUT/embedders/NAME; by default the method."""
    vector_size: int = 256
    """Dimension of the vectors; when distilling, at most that of the teacher."""
    sif: float = 1e-4
    """A token of probability p weighs sif / (sif + p); smaller values give frequent tokens less weight."""
    teacher: str = "all-MiniLM-L6-v2"
    """Model to distil: the packaged one, a local folder or a hub id."""
    window: int = 5
    """Maximum distance of two words that are trained together."""
    min_count: int = 2
    """Words that occur less often in the passages get no vector."""
    sample: float = 1e-3
    """Words of a higher share of all words are skipped at random in training, the more the more frequent they are."""
    epochs: int = 20
    """Passes over the passages."""
    threads: int = 1
    """Threads that train; with more than one, every run gives other vectors."""

    def __post_init__(self) -> None:
        """Fill the defaults and check the values."""
        super().__post_init__()
        self.name = self.method if self.name is None else self.name
        check_name_option(self.name)
        self.teacher = local_model_path(self.teacher, EmbedderOptions.teacher)
        self.at_least(1, "vector_size", "window", "min_count", "epochs", "threads")
        if not 0 < self.sif < 1:
            raise InputError(f"--sif: {self.sif} given, more than 0 and less than 1 expected")
        if not 0 <= self.sample < 1:
            raise InputError(f"--sample: {self.sample} given, from 0 to less than 1 expected")

    @property
    def folder(self) -> str:
        """Folder of the embedder."""
        return storage.join_paths(self.output, "embedders", str(self.name))

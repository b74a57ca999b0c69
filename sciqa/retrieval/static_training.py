"""The `embedder` step: makes a static embedder, a table of one vector per token, distilled or trained on passages."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sciqa.core import hashes, storage, tables
from sciqa.core.console import quiet_console
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model, has_static_model_files
from sciqa.core.options import defaults_of
from sciqa.core.progress import progress_lines
from sciqa.core.summary import Summary
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.passage_shards import read_passage_shard
from sciqa.corpus.passages import PASSAGES_FORMAT
from sciqa.retrieval.options import EmbedderOptions

if TYPE_CHECKING:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

#: Version of what this module computes. Raise it with every change, so that embedders of earlier versions are not kept.
EMBEDDER_FORMAT = 1
#: Pooling in sentence-transformers, and what model2vec calls it.
POOLING = {"mean": "mean", "cls": "first", "lasttoken": "last"}
#: Token of words that are not in the vocabulary. Its vector is the mean of all others times a factor, so that it only
#: counts in a text without any known word, whose vector must not be zero.
UNKNOWN, UNKNOWN_LENGTH = "[UNK]", 1e-3
WEIGHTS = "model.safetensors"
#: Options that a method does not use.
UNUSED = {
    "distil": ("passages", "window", "min_count", "sample", "epochs", "seed", "threads"),
    "skip-gram": ("teacher",),
    "cbow": ("teacher",),
}


def make_embedder(options: EmbedderOptions) -> Summary:
    """Write a static embedder as sentence-transformers saves it (safetensors) to `OUTPUT/embedders/NAME`.

    An embedder that was made from the same inputs is kept; one that a killed run left unfinished is made anew.

    Raises:
        InputError: a package, the passages or the teacher are missing or cannot be used, or a folder of that name was
            made from other inputs.
    """
    started = time.monotonic()
    require_extra("static", f"--method {options.method}")
    inputs, make = (_distilling if options.method == "distil" else _training)(options)
    storage.check_storage_writable(storage.join_paths(options.output, "embedders"))
    with lock(options.folder):
        defaults = defaults_of(EmbedderOptions)
        begun = tables.begin_table(options.folder, inputs, defaults, overwrite=options.overwrite)
        whole = begun.whole and storage.path_exists(storage.join_paths(options.folder, WEIGHTS))
        if whole:
            manifest = tables.read_table_manifest(options.folder, "embedder")
        else:
            quiet_console("gensim", "model2vec", "skeletoken", "sentence_transformers")
            try:
                with progress_lines("embedder", _saying(options)):
                    module = make()
            except InputError:
                tables.delete_table(options.folder)  # a retry would fail in the same way
                raise
            _write(module, options.folder)
            tokens, dimension = module.embedding.weight.shape
            manifest = {"format": EMBEDDER_FORMAT, "inputs": inputs, "tokens": tokens, "dimension": dimension}
            tables.finish_table(options.folder, manifest)
    made = f"{manifest['tokens']:,} tokens with vectors of {manifest['dimension']} dimensions, {options.method}"
    return Summary("embedder", options.folder, made + ", kept" * whole, time.monotonic() - started, manifest)


def _inputs(options: EmbedderOptions) -> dict:
    """Return the options that the vectors follow from."""
    unused = ("output", "overwrite", "name", "teacher", "passages", *UNUSED[options.method])
    used = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in unused}
    return used | {"format": EMBEDDER_FORMAT}


def _saying(options: EmbedderOptions) -> str:
    if options.method == "distil":
        return f"distilling {options.teacher}"
    return f"training {options.method} vectors on {options.passages}"


def _write(module: "StaticEmbedding", folder: str) -> None:
    """Write a model's files; the weights go last, and what has no weights is no model."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as aside:
        SentenceTransformer(modules=[module], device="cpu").save(aside, create_model_card=False)
        for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == WEIGHTS):
            storage.write_bytes(storage.join_paths(folder, file.name), file.read_bytes())


def _distilling(options: EmbedderOptions) -> tuple[dict, Callable[[], "StaticEmbedding"]]:
    """Return what a distilled embedder follows from, and the function that makes it."""
    if has_static_model_files(options.teacher):
        raise InputError(f"--teacher {options.teacher}: static itself; a model with a network expected")
    return _inputs(options) | {"teacher": find_model(options.teacher).revision}, lambda: distil_static_embedder(options)


def distil_static_embedder(options: EmbedderOptions) -> "StaticEmbedding":
    """Return a table of the vectors that a model gives each of its tokens, as the whole text.

    They are reduced to their first principal components, and weighted by the probability of a token, which is taken
    from its place in the vocabulary by Zipf's law (model2vec, Tulkens and van Dongen 2024).

    Raises:
        InputError: a teacher that is not an encoder with pooling alone, or that lacks weights.
    """
    from model2vec.distill import distill_from_model
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding

    from sciqa.models.weights import UNLOADABLE
    from sciqa.retrieval.embedder_checkpoint import load_embedder_checkpoint

    first, *others = load_embedder_checkpoint(options.teacher, "SentenceTransformer", "cpu", "float32")
    pooling = [module.pooling_mode for module in others if isinstance(module, Pooling)]
    strange = [type(each).__name__ for each in others if not isinstance(each, Pooling | Normalize)]
    if not isinstance(first, Transformer) or strange or len(pooling) != 1 or pooling[0] not in POOLING:
        names = " ".join([type(first).__name__, *map(str, pooling), *strange])
        raise InputError(
            f"--teacher {options.teacher}: {names} cannot be distilled; a transformer with pooling of one kind "
            f"({', '.join(POOLING)}) and no other modules expected"
        )
    try:
        made = distill_from_model(
            first.model,
            first.tokenizer,
            device="cpu",
            pca_dims=options.vector_size,
            sif_coefficient=options.sif,
            quantize_to="float32",
            pooling=POOLING[pooling[0]],
        )
    except UNLOADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"--teacher {options.teacher}: cannot be distilled ({type(error).__name__}: {reason})"
        ) from error
    rows = made.embedding if made.weights is None else made.embedding * made.weights[:, None]
    made.tokenizer.no_truncation()
    return StaticEmbedding(made.tokenizer, np.ascontiguousarray(rows, np.float32))


def _training(options: EmbedderOptions) -> tuple[dict, Callable[[], "StaticEmbedding"]]:
    """Return what a trained embedder follows from, and the function that makes it."""
    passages = options.passages
    shards = tables.read_table_manifest(passages, "corpus", PASSAGES_FORMAT)["shards"]
    inputs = _inputs(options) | {"passages": hashes.fingerprint([shard["content"] for shard in shards])}
    return inputs, lambda: train_static_embedder(options, _texts(passages, shards))


def _texts(passages: str, shards: list[dict]) -> Iterator[str]:
    for shard in shards:
        table = read_passage_shard(storage.join_paths(passages, f"{shard['name']}.parquet"), shard["content"])
        for row in tables.table_rows(table.select(["title", "section", "text"])):
            yield titled_chunk(**row)


def train_static_embedder(options: EmbedderOptions, texts: Iterator[str]) -> "StaticEmbedding":
    """Return a table of word vectors trained on texts by word2vec (Mikolov et al. 2013), with negative sampling.

    The mean of all vectors is subtracted from each (Mu and Viswanath 2018), and each gets the length sif / (sif + p),
    for a word of probability p (Arora, Liang and Ma 2017), so that rare words count most in the mean of a text.

    Raises:
        InputError: no word is frequent enough.
    """
    from gensim.models import Word2Vec
    from gensim.models.word2vec import LineSentence
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = static_training_tokenizer({UNKNOWN: 0})
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as lines:
        for text in texts:
            lines.write(" ".join(static_training_words(tokenizer, text)) + "\n")
        lines.flush()
        settings = {name: getattr(options, name) for name in ("vector_size", "window", "min_count", "sample", "seed")}
        settings |= {"sg": int(options.method == "skip-gram"), "workers": options.threads, "epochs": options.epochs}
        try:
            vectors = Word2Vec(LineSentence(lines.name), **settings).wv
        except RuntimeError as error:
            raise InputError(
                f"{options.passages}: no word occurs --min-count ({options.min_count}) times; pass a smaller one, or "
                "give `sciqa corpus` more articles"
            ) from error
    counts = np.array([vectors.get_vecattr(word, "count") for word in vectors.index_to_key])
    weights = options.sif / (options.sif + counts / counts.sum())
    rows = vectors.vectors - vectors.vectors.mean(axis=0)
    rows *= (weights / np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float32).tiny))[:, None]
    rows = np.concatenate([UNKNOWN_LENGTH * rows.mean(axis=0, keepdims=True), rows])
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, *vectors.index_to_key])}
    return StaticEmbedding(static_training_tokenizer(vocabulary), rows.astype(np.float32))


def static_training_tokenizer(vocabulary: dict[str, int]) -> "Tokenizer":
    """Return a tokenizer into lower-case words and groups of other signs, by their numbers in a vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def static_training_words(tokenizer: "Tokenizer", text: str) -> list[str]:
    """Return the words of a text as a tokenizer splits it, whether they are in its vocabulary or not."""
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]

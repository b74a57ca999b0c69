"""What a corpus becomes: passages, bytes of its index, operations to embed it."""

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from sciqa.core.errors import InputError
from sciqa.core.hub import config_files, load_tokenizer, read_about, vector_size
from sciqa.corpus.articles import read_articles, split_sources
from sciqa.corpus.chunking import Splitter, embedded_text
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import check_corpus
from sciqa.retrieval.options import IndexOptions
from sciqa.retrieval.shards import empty_index

if TYPE_CHECKING:
    from torch import nn

#: English Wikipedia, as the README counts it: 40 million passages of 256 tokens at most in 6.9 million articles, each
#: passage of twice the text that the demo corpus has in one (480 characters, 107 tokens).
PASSAGES_PER_ARTICLE, ARTICLE_CHARACTERS, ARTICLE_TOKENS = 40 / 6.9, 960, 214
#: Bytes on storage for each character of a passage, measured on the demo corpus (README): BM25's files 590 bytes, the
#: passages, held twice, 280 bytes each time, for 480 characters.
WORD_BYTES, PASSAGE_BYTES = 590 / 480, 2 * 280 / 480
#: Measured on a core of AMD EPYC with AVX512-BF16 (README). `corpus` reads the 105 GB of XML that become 40 million
#: passages at 1.8 MB a second, `index` embeds 44 passages of 107 tokens a second (all-MiniLM-L6-v2), and SmolLM2-135M
#: trains on 110 tokens and answers 1.8 questions of 170 tokens a second; these three as operations a second.
PASSAGES_PER_CORE_SECOND = 1.8 * 40e6 / 105e3
CORE_FLOPS = {"index": 1.1e11, "finetune": 6e10, "predict": 7e10}
#: Bytes of a part, and parts, spread evenly over the corpus, that are read to know what the rest becomes; and sections
#: of these that are cut into passages.
SAMPLED_BYTES, SAMPLED_PARTS, SAMPLED_SECTIONS = 500_000, 6, 600
#: Number of lists in a FAISS factory string.
LISTS = re.compile(r"IVF(\d+)([kM]?)")


@dataclass(kw_only=True)
class VolumeOptions:
    """A corpus and its index; every option means the same as in the steps."""

    corpus: tuple[str, ...] = ("demo",)
    """`demo`, and files or folders, of which a sample is read."""
    articles: int | None = None
    """Plan for so many articles of English Wikipedia instead, of which there are 6.9 million."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-transformers model, whose tokens are counted everywhere: the packaged one, a folder or a hub id."""
    passage_tokens: int = 256
    """Most tokens of a passage."""
    shard_passages: int = 1024
    """Passages in a shard, each with its own FAISS file."""
    factory: str = "Flat"
    """FAISS factory string of every shard."""
    vector_type: Literal["float32", "float16"] = "float32"
    """Type of the stored vectors."""

    def __post_init__(self) -> None:
        """Check the numbers, as the steps do."""
        if self.articles is not None and self.articles < 1:
            raise InputError(f"--articles: {self.articles} given, at least 1 expected")
        self.steps_options(CorpusOptions)
        self.steps_options(IndexOptions)

    def steps_options(self, kind: type) -> object:
        """Return them as the options of a step, which checks them."""
        names = {field.name for field in fields(VolumeOptions)} & {field.name for field in fields(kind)}
        return kind(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Volume:
    """A corpus as passages.

    Attributes:
        passages: how many, repeats among them.
        characters: of a passage's text, on average.
        tokens: of a passage with its headings, on average.
    """

    passages: int
    characters: float
    tokens: float


def corpus_volume(options: VolumeOptions) -> Volume:
    """Return what the corpus becomes: parts of it are read and cut as `sciqa corpus` does, the rest taken to be alike.

    Raises:
        InputError: a corpus that cannot be read.
    """
    if options.articles:
        return Volume(round(options.articles * PASSAGES_PER_ARTICLE), ARTICLE_CHARACTERS, ARTICLE_TOKENS)
    corpus = options.steps_options(CorpusOptions)
    parts = split_sources(check_corpus(corpus), SAMPLED_BYTES)
    chosen = parts[:: math.ceil(len(parts) / SAMPLED_PARTS)] if parts else []
    sections = [section for part in chosen for piece in part for section in read_articles(**piece)]
    if not sections:
        raise InputError(f"{', '.join(options.corpus)}: no article in the parts that were tried; pass --articles")
    cut = sections[:: math.ceil(len(sections) / SAMPLED_SECTIONS)]
    tokenizer = load_tokenizer(options.embedder)
    splitter = Splitter(tokenizer, options.passage_tokens, corpus.passage_overlap)
    passages = [
        (section["title"], section["section"], text)
        for section in cut
        for text in splitter.split(section["title"], section["section"], section["text"])
    ]
    share = sum(len(section["text"]) for section in cut) / sum(len(section["text"]) for section in sections)
    return Volume(
        round(len(passages) * len(parts) / len(chosen) / share),
        float(np.mean([len(text) for *_, text in passages])),
        float(np.mean([len(each.ids) for each in tokenizer.encode_batch([embedded_text(*each) for each in passages])])),
    )


def index_row(options: VolumeOptions, volume: Volume) -> dict[str, float]:
    """Return a row of passages, and of gigabytes (10^9 bytes) of all that is stored of them."""
    dimension = vector_size(options.embedder) or read_about(options.embedder, "config.json")["hidden_size"]
    fixed, each = faiss_bytes(options.steps_options(IndexOptions), dimension)
    sizes = {
        "passages": PASSAGE_BYTES * volume.characters * volume.passages,
        "vectors": dimension * np.dtype(options.vector_type).itemsize * volume.passages,
        "FAISS": fixed * math.ceil(volume.passages / options.shard_passages) + each * volume.passages,
        "BM25": WORD_BYTES * volume.characters * volume.passages,
    }
    return {"number of passages": volume.passages, "tokens of each": volume.tokens} | {
        f"{name} GB": size / 1e9 for name, size in (sizes | {"total": sum(sizes.values())}).items()
    }


def faiss_bytes(options: IndexOptions, dimension: int) -> tuple[int, float]:
    """Return the bytes of a shard's FAISS file with no vector in it, and those that each vector adds.

    A small index of that kind with one list takes random vectors, and the centroids of the other lists are added.

    Raises:
        InputError: FAISS makes no index from the factory string.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    empty_index(options, dimension)
    lists = [int(number) * {"": 1, "k": 1 << 10, "M": 1 << 20}[unit] for number, unit in LISTS.findall(options.factory)]
    # A random rotation has the size of a learnt one.
    options.factory = re.sub(r"OPQ\d+(?:_(\d+))?", lambda found: f"RR{found[1] or ''}", options.factory)
    options.factory = LISTS.sub("IVF1", options.factory)
    index = inner = empty_index(options, dimension)
    vectors = np.random.default_rng(0).standard_normal((1024, dimension)).astype(np.float32)
    if isinstance(index, faiss.IndexPreTransform):
        inner, turned = faiss.downcast_index(index.index), vectors
        for number in range(index.chain.size()):
            transform = faiss.downcast_VectorTransform(index.chain.at(number))
            transform.train(turned)
            turned = transform.apply(turned)
    turned = vectors[:, : inner.d].copy()
    if hasattr(inner, "pq"):  # its tables have their size before they are trained
        if isinstance(inner, faiss.IndexIVF):
            inner.quantizer.add(turned[:1])
        inner.is_trained = True
    else:
        inner.train(turned)
    index.is_trained = True
    fixed = len(faiss.serialize_index(index))
    index.add(vectors)
    each = (len(faiss.serialize_index(index)) - fixed) / len(vectors)
    return fixed + 4 * inner.d * sum(number - 1 for number in lists), each


def embedder_model(options: VolumeOptions) -> "nn.Module":
    """Return the embedder without weights."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.from_pretrained(config_files(options.embedder)[0]))

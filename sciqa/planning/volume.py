"""Size estimates of a corpus: its number of passages and the bytes of its index."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sciqa.core.errors import InputError
from sciqa.core.model_files import model_config_files, model_file_dimension, model_file_tokenizer, read_model_file
from sciqa.corpus.articles import find_article_files, read_articles, split_articles
from sciqa.corpus.chunking import ChunkSplitter, titled_chunk
from sciqa.corpus.passages import check_passage_tokens
from sciqa.planning.options import VolumeOptions
from sciqa.retrieval.index_shards import empty_shards_index

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Size of English Wikipedia (docs/wikipedia.md): 40 million passages of at most 256 tokens in 6.9 million articles. A
#: passage has twice the text of one in the demo corpus (480 characters, 107 tokens).
PASSAGES_PER_ARTICLE, ARTICLE_CHARACTERS, ARTICLE_TOKENS = 40 / 6.9, 960, 214
#: Bytes stored per character of a passage, measured on the demo corpus (docs/wikipedia.md). Per 480 characters, BM25's
#: file takes 520 bytes and the passages 280 bytes, which are stored twice.
WORD_BYTES, PASSAGE_BYTES = 520 / 480, 2 * 280 / 480
#: Speeds of one AMD EPYC core with AVX512-BF16 (docs/wikipedia.md). `corpus` reads 1.8 MB per second of the 105 GB of
#: XML that become 40 million passages. `index` embeds 44 passages of 107 tokens per second (all-MiniLM-L6-v2).
#: SmolLM2-135M trains on 110 tokens per second and answers 1.8 questions of 170 tokens per second. `CORE_FLOPS` has
#: the last three as FLOPs per second.
PASSAGES_PER_CORE_SECOND = 1.8 * 40e6 / 105e3
CORE_FLOPS = {"index": 1.1e11, "finetune": 6e10, "predict": 7e10}
#: Sample of the corpus: bytes per part, most parts read, spread evenly over the corpus, and most sections of these
#: parts that are split into passages.
SAMPLED_BYTES, SAMPLED_PARTS, SAMPLED_SECTIONS = 500_000, 6, 600
#: Number of lists in a FAISS factory string.
LISTS = re.compile(r"IVF(\d+)([kM]?)")


@dataclass(frozen=True)
class Volume:
    """The size of a corpus in passages.

    Attributes:
        passages: number of passages, including duplicates.
        characters: average characters of a passage's text.
        tokens: average tokens of a passage with its headings.
    """

    passages: int
    characters: float
    tokens: float


def corpus_volume(options: VolumeOptions) -> Volume:
    """Return the size of the corpus, extrapolated from a sample that is split as by `sciqa corpus`.

    Raises:
        InputError: the corpus cannot be read, or the sample has no article.
    """
    if options.articles:
        return Volume(round(options.articles * PASSAGES_PER_ARTICLE), ARTICLE_CHARACTERS, ARTICLE_TOKENS)
    check_passage_tokens(options)
    parts = split_articles(find_article_files(options.corpus), SAMPLED_BYTES)
    chosen = parts[:: math.ceil(len(parts) / SAMPLED_PARTS)] if parts else []
    sections = [section for part in chosen for piece in part for section in read_articles(**piece)]
    if not sections:
        raise InputError(f"{', '.join(options.corpus)}: no article in the parts that were tried; pass --articles")
    cut = sections[:: math.ceil(len(sections) / SAMPLED_SECTIONS)]
    tokenizer = model_file_tokenizer(options.embedder)
    splitter = ChunkSplitter(tokenizer, options.passage_tokens, options.passage_overlap)
    headed = [(*splitter.headings(section["title"], section["section"]), section["text"]) for section in cut]
    passages = [
        (title, section, text) for title, section, whole in headed for text in splitter.split(title, section, whole)
    ]
    share = sum(len(section["text"]) for section in cut) / sum(len(section["text"]) for section in sections)
    return Volume(
        round(len(passages) * len(parts) / len(chosen) / share),
        float(np.mean([len(text) for *_, text in passages])),
        float(np.mean([len(each.ids) for each in tokenizer.encode_batch([titled_chunk(*each) for each in passages])])),
    )


def index_volume_row(options: VolumeOptions, volume: Volume) -> dict[str, float]:
    """Return a row with the number of passages and the size of each stored part in gigabytes (10^9 bytes)."""
    hidden = read_model_file(options.embedder, "config.json").get("hidden_size")
    if not (dimension := model_file_dimension(options.embedder) or hidden):
        raise InputError(f"{options.embedder}: neither its modules nor its config.json say how long its vectors are")
    fixed, each = faiss_volume_bytes(options.factory, dimension)
    sizes = {
        "passages": PASSAGE_BYTES * volume.characters * volume.passages,
        "vectors": dimension * np.dtype(options.vector_type).itemsize * volume.passages,
        "FAISS": fixed * math.ceil(volume.passages / options.shard_passages) + each * volume.passages,
        "BM25": WORD_BYTES * volume.characters * volume.passages,
    }
    return {"number of passages": volume.passages, "tokens of each": volume.tokens} | {
        f"{name} GB": size / 1e9 for name, size in (sizes | {"total": sum(sizes.values())}).items()
    }


def faiss_volume_bytes(factory: str, dimension: int) -> tuple[int, float]:
    """Return the bytes of a shard's FAISS file without vectors, and the bytes that each vector adds.

    Both are measured on a small index of that kind with one list and random vectors; then the bytes of the other lists'
    centroids are added.

    Raises:
        InputError: FAISS rejects the factory string.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    empty_shards_index(factory, dimension)
    lists = [int(number) * {"": 1, "k": 1 << 10, "M": 1 << 20}[unit] for number, unit in LISTS.findall(factory)]
    # A random rotation has the size of a learnt one and needs no training.
    factory = LISTS.sub("IVF1", re.sub(r"OPQ\d+(?:_(\d+))?", lambda found: f"RR{found[1] or ''}", factory))
    index = inner = empty_shards_index(factory, dimension)
    vectors = np.random.default_rng(0).standard_normal((1024, dimension)).astype(np.float32)
    if isinstance(index, faiss.IndexPreTransform):
        inner, turned = faiss.downcast_index(index.index), vectors
        chain = cast("Any", index.chain)  # a vector of C++, not a list
        for number in range(chain.size()):
            transform = faiss.downcast_VectorTransform(chain.at(number))
            transform.train(turned)
            turned = transform.apply(turned)
    turned = vectors[:, : inner.d].copy()
    if hasattr(inner, "pq"):  # its tables have their final size before training
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


def volume_embedder(options: VolumeOptions) -> "PreTrainedModel":
    """Return the embedder without weights, on PyTorch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModel

    folder, _ = model_config_files(options.embedder)
    try:
        with torch.device("meta"):
            return AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{options.embedder}: not the configuration of an embedder ({error})") from error

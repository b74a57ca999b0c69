"""Options of the `corpus` step, and groups of them that later steps have too."""

from dataclasses import dataclass

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.core.model_files import local_model_path
from sciqa.core.options import Options, OutputOptions, RunOptions
from sciqa.core.packaged import check_packaged_name


@dataclass(kw_only=True)
class EmbeddingModelOptions(Options):
    """The embedding model."""

    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-transformers model: the packaged one, a local folder or a hub id; its tokenizer counts the tokens of
    passages."""

    def __post_init__(self) -> None:
        """Make the path of a local model absolute."""
        super().__post_init__()
        self.embedder = local_model_path(self.embedder, EmbeddingModelOptions.embedder)


@dataclass(kw_only=True)
class PassagesOptions(OutputOptions):
    """Where the passages are."""

    passages: str = ""
    """Folder of the passages table; by default OUTPUT/passages."""

    def __post_init__(self) -> None:
        """Fill the default folder."""
        super().__post_init__()
        self.fill_folder("passages", "passages")


@dataclass(kw_only=True)
class ChunkingOptions(EmbeddingModelOptions):
    """How texts become passages."""

    passage_tokens: int = 256
    """Maximum tokens of a passage, including headings; longer texts are cut between sentences."""
    passage_overlap: int = 1
    """Sentences that a passage repeats from the previous one."""
    shard_passages: int = 1024
    """Passages per shard, the unit of work and of resuming."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(32, "passage_tokens")
        self.at_least(0, "passage_overlap")
        self.at_least(1, "shard_passages")


@dataclass(kw_only=True)
class CorpusOptions(ChunkingOptions, PassagesOptions, RunOptions):
    """Options of the `corpus` step: its sources, and how texts become passages."""

    corpus: tuple[str, ...] | None = None
    """`demo` (10,033 leads of English Wikipedia articles), files, or folders: MediaWiki dumps (.xml.bz2), tables with
    title and text (.parquet, .jsonl, .csv, .tsv), .txt, .md, .html, .pdf, wikiextractor output; also compressed (.gz,
    .bz2, .xz, .zst). Sources added at the end leave existing shards unchanged. By default, finished passages are used
    unchanged; if there are none, they are made from `demo`."""
    remove: str | None = None
    """Text file with the titles of articles to leave out, one per line."""
    near_duplicates: bool = False
    """Also leave out near duplicates among articles with the same title; exact repeats are always left out."""
    part_bytes: int = 8_000_000
    """Bytes of the corpus that one task reads."""

    def __post_init__(self) -> None:
        """Make local paths absolute and check the numbers."""
        super().__post_init__()
        self.corpus = None if self.corpus is None else check_corpus_option(self.corpus)
        self.at_least(1, "part_bytes")

    def cut(self) -> dict[str, int | bool]:
        """Return the options that determine how texts are split into passages and shards."""
        names = ("passage_tokens", "passage_overlap", "shard_passages", "near_duplicates")
        return {name: getattr(self, name) for name in names}


def check_corpus_option(corpus: tuple[str, ...], default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the sources of a corpus with absolute local paths; raise `InputError` if there are none.

    `demo`, as a source, is refused where a file or folder has that name, unless it is the option's default.
    """
    if not corpus:
        raise InputError("--corpus: no source given, `demo`, files or folders expected; leave it out for its default")
    if "demo" in corpus:
        check_packaged_name("demo", corpus == default)
    return tuple(path if path == "demo" else storage.absolute_path(path) for path in corpus)

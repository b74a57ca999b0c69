"""Answer single questions with an index, an embedder and a reader that are loaded once, in one process without Ray."""

import copy
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from sciqa.ask.options import AskAnswerOptions, AskOptions
from sciqa.core import storage
from sciqa.core.adapter_files import adapter_hash
from sciqa.core.device import Device
from sciqa.core.errors import QuestionError
from sciqa.core.hashes import fingerprint
from sciqa.core.imports import quick_imports
from sciqa.core.model_files import find_model, model_file_family, model_files_name
from sciqa.corpus.chunking import titled_chunk
from sciqa.exam.answer_options import answer_options_of
from sciqa.models.prompt_template import check_template_context
from sciqa.predict.predict import check_predict_reader
from sciqa.predict.scored_answers import has_tied_scored_answers, scored_answer_row
from sciqa.retrieval.contexts import FindContexts, check_find_contexts
from sciqa.retrieval.evidence import find_evidence
from sciqa.retrieval.index import (
    check_index_prefix,
    check_index_unchanged,
    index_identity,
    read_index_manifest,
)
from sciqa.retrieval.search import LocalSearch

if TYPE_CHECKING:  # spares the command line the import of PyTorch
    from sciqa.ask.generate_answer import GeneratedAnswer
    from sciqa.models.scorer import EncodedForScorer


class AnswererRanking(NamedTuple):
    """The options of one question, ranked.

    Attributes:
        letters: letters of the options, likeliest first.
        ranking: pairs of option and probability, in that order.
        tied: whether a tie affects the first three.
        cut: whether the context was cut to fit the model.
        kept: number of characters of a context that are left of it if it was cut, where that is known.
    """

    letters: list[str]
    ranking: list[tuple[str, float]]
    tied: bool
    cut: bool
    kept: int | None


def check_answerer(options: AskAnswerOptions, question: dict) -> dict:
    """Check index and reader without loading them; return the manifest of the index.

    The question is a row of the exam table, on which the template is tried.

    Raises:
        InputError: the index is missing or made with another embedder or prefix of passages, or the reader is missing
            or not a reader.
    """
    manifest = read_index_manifest(options.index)
    check_index_unchanged(options, manifest)
    check_find_contexts(options)
    check_index_prefix(options, manifest)
    style = check_predict_reader(options, question)
    if options.template or answer_options_of(question):  # an answer in words has a template of its own
        check_template_context(style, "another --adapter or --model")
    return manifest


def check_answerer_model(model: str) -> None:
    """Raise `QuestionError` if a model is an encoder, which ranks options and writes no words."""
    if model_file_family(model) == "multiple-choice":
        raise QuestionError(
            f"--model {model_files_name(model)}: an encoder, which writes no words; "
            "give --options to rank, or another --model (causal, or encoder-decoder such as T5)"
        )


def answerer_name(options: AskAnswerOptions) -> str:
    """Return the name of the model that answers, followed by that of its adapter if it has one."""
    return "+".join(model_files_name(name) for name in (options.model, options.adapter) if name)


def answerer_identity(options: AskAnswerOptions, manifest: dict) -> str:
    """Return a hash of what answers follow from: the index of a manifest; models, template and examples as they are.

    Raises:
        InputError: one of them is missing.
    """
    models = [find_model(name).revision for name in (options.embedder, options.model, options.rerank) if name]
    adapter = adapter_hash(options.adapter) if options.adapter else None
    return fingerprint([index_identity(manifest), models, adapter, options.style(), options.shots_identity()])


class Answerer:
    """Index, embedder and reader; its methods may be called by one thread at a time.

    The manifest is the result of `check_answerer`, and `threads` a number of CPU threads.
    """

    def __init__(self, options: AskAnswerOptions, manifest: dict, device: Device, threads: int) -> None:
        with quick_imports():
            from sciqa.predict.readers import ModelReader

        how = options.search_parameters, options.candidates, options.cache_bytes
        self.index = LocalSearch(options.index, manifest, *how)
        embed = options.embed_on(device, threads)
        self.finder = FindContexts(None, options, self.index, embed, options.context_form(ranks=True))
        self.reader = ModelReader(**options.reader_arguments(device, threads))

    @property
    def notes(self) -> list[str]:
        """Messages for the user on how embedder and reader are computed."""
        return [*self.finder.notes, *self.reader.notes]

    def open_files(self) -> None:
        """Open the files of the index that are otherwise opened when a hit first asks for them."""
        index = self.index
        storage.map_storage(lambda shard: (shard.passages, index.exact or shard.vectors), index.group.shards)

    def find(self, options: AskOptions) -> dict:
        """Return the question's row of the contexts table, plus `read`: the passages that form its context."""
        finder = copy.copy(self.finder)
        finder.context = options.context_form(ranks=bool(options.options))
        (found,) = finder.find([options.as_row()])
        return found

    def rank(self, options: AskOptions, found: dict) -> AnswererRanking:
        """Rank the options of a question, given what `find` returned for it.

        Raises:
            InputError: the question does not fit the model, or a score is not a finite number.
        """
        question = options.as_row()
        (scored,) = self.reader.score([question], [(found,)])
        row = scored_answer_row(question, scored, options.model)
        probabilities = dict(zip(answer_options_of(question), row["probabilities"], strict=True))
        ranking = [(question[letter], probabilities[letter]) for letter in row["ranking"]]
        kept = self._kept(question, found) if row["context_cut"] else None
        return AnswererRanking(row["ranking"], ranking, has_tied_scored_answers(row), row["context_cut"], kept)

    def _kept(self, question: dict, found: dict) -> int | None:
        """Return how many characters of a context that is cut the model reads, at most, in any turn of the options."""
        from sciqa.predict.readers import encode_for_reader

        reader = self.reader
        _, turns = encode_for_reader(reader.scorer, [question], [(found,)], reader.rotations, reader.chooser)
        kept = [turn.kept for turn in turns if turn.kept is not None]
        return max(kept) if len(kept) == len(turns) else None

    def evidence(self, options: AskOptions, found: dict, kept: int | None = None) -> list[dict] | None:
        """Return the evidence for each option in the context; see `sciqa.retrieval.evidence.find_evidence`.

        Of a context that was cut, only the passages that begin in its first `kept` characters count.
        """
        return find_evidence([options.as_row()], [_passages_before(found, kept)], self.finder.embed)[0]

    def encode(self, options: AskOptions, found: dict, earlier: Sequence[dict] = ()) -> "EncodedForScorer":
        """Return the prompt of an answer in words; see `sciqa.ask.generate_answer.encode_for_generated_answer`."""
        from sciqa.ask.generate_answer import encode_for_generated_answer

        return encode_for_generated_answer(options, options.as_row(), found, self.reader.scorer, earlier)

    def write(
        self, options: AskOptions, found: dict, prompt: "EncodedForScorer", show: Callable[[str], None] | None = None
    ) -> "GeneratedAnswer":
        """Write an answer in words; see `sciqa.ask.generate_answer.generate_answer`."""
        from sciqa.ask.generate_answer import generate_answer

        return generate_answer(options, prompt, found["passages"], self.reader.scorer, self.finder, show)


def passages_answerer_read(found: dict, kept: int | None = None) -> list[int]:
    """Return the numbers, from 1, of the passages found that the context consists of.

    Of a context that was cut, only the first `kept` characters count.
    """
    read = {passage["passage_id"] for passage in _passages_before(found, kept)}
    return [number for number, passage in enumerate(found["passages"], 1) if passage["passage_id"] in read]


def _passages_before(found: dict, kept: int | None) -> list[dict]:
    """Return the passages of a context that begin in its first `kept` characters, all of them if that is None."""
    lengths = [len(titled_chunk(each["title"], each["section"], each["text"])) + 1 for each in found["read"]]
    starts = accumulate(lengths, initial=0)  # each passage is followed by the end of its line
    return [each for each, start in zip(found["read"], starts, strict=False) if kept is None or start < kept]

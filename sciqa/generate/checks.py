"""Filters by a reader: can a question be answered with its passage, and can it without."""

import string

import numpy as np

from sciqa.core import storage
from sciqa.core.adapter_files import read_adapter_record
from sciqa.core.model_files import ADAPTER_CONFIG, find_model, model_file_family
from sciqa.exam.answer_options import answer_options_of, rotate_answer_options
from sciqa.generate.options import GenerateOptions
from sciqa.predict.options import PredictOptions
from sciqa.predict.readers import READERS, Reader
from sciqa.predict.scored_answers import ScoredAnswer, check_scored_answer
from sciqa.predict.scorer_reader import ScorerReader


def checker_options(options: GenerateOptions) -> PredictOptions:
    """Return the options of the reader that checks questions: a model, or an adapter of the model that writes.

    A local model ranks letters, unless it was fine-tuned for another form; a server's ranks letters as in `predict`.
    """
    local = options.engine != "openai"
    assert options.checker is not None  # asked for
    adapted = local and storage.path_exists(storage.join_paths(options.checker, ADAPTER_CONFIG))
    folder = options.checker if adapted or not local else find_model(options.checker).folder
    trained = local and read_adapter_record(folder).get("style")
    names = ("output", "base_url", "api_key_env", "concurrency", "timeout", "engine", "precision", "accelerator")
    given = {name: getattr(options, name) for name in names}
    given |= {"model": options.model, "adapter": options.checker} if adapted else {"model": options.checker}
    own = trained or (local and model_file_family(given["model"]) == "multiple-choice")
    return PredictOptions(**given, completion="auto" if own else "letter", name="checker")


class QuestionChecker:
    """A reader that answers candidates with their passages and without.

    Args:
        kind: key of the reader in `sciqa.predict.readers.READERS`.
        arguments: its constructor arguments.
    """

    def __init__(self, kind: str, arguments: dict) -> None:
        self.reader: Reader = READERS[kind](**arguments)
        self.notes: list[str] = getattr(self.reader, "notes", [])
        style = self.reader.scorer.style if isinstance(self.reader, ScorerReader) else None
        #: Whether the order of the options can change an answer: not if each is scored without the others.
        self.rotates = style is None or style.completion == "letter" or style.template is not None

    def faults(self, questions: list[dict], contexts: list[str]) -> list[str | None]:
        """Return the fault of each question, or None.

        A reader that guesses is right for some order of the options, so a question counts as known without its passage
        only if it is answered in every rotation. The contexts are the texts of the passages.

        Raises:
            InputError: a score is not a finite number.
        """
        right = self._right(questions, [({"context": context, "passages": []},) for context in contexts])
        faults = [None if all(each) else "inconsistent" if each[0] else "unanswerable" for each in right]
        left = [number for number, fault in enumerate(faults) if fault is None]
        known = self._right([questions[number] for number in left], [()] * len(left))
        for number, each in zip(left, known, strict=True):
            faults[number] = "known-without" if all(each) else None
        return faults

    def _right(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[list[bool]]:
        """Return whether the right option is ranked first, by question, read with what is found, and by rotation."""
        if not questions:
            return []
        turns = [
            (rotate_answer_options(question, by), rows)
            for question, rows in zip(questions, found, strict=True)
            for by in self._rotations(question)
        ]
        scored = iter(self.reader.score([question for question, _ in turns], [rows for _, rows in turns]))
        right = iter([_ranked_first(next(scored), question) for question, _ in turns])
        return [[next(right) for _ in self._rotations(question)] for question in questions]

    def _rotations(self, question: dict) -> range:
        return range(len(answer_options_of(question)) if self.rotates else 1)


def _ranked_first(scored: ScoredAnswer, question: dict) -> bool:
    check_scored_answer(question, scored, "--checker")
    scores = np.asarray(scored.scores)
    return scores.argmax() == string.ascii_uppercase.index(question["answer"]) and (scores == scores.max()).sum() == 1

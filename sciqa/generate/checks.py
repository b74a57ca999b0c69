"""Filters by a reader: can a question be answered with its passage, and can it without."""

import string

import numpy as np

from sciqa.core.adapter_files import read_trained_record
from sciqa.core.model_files import find_model
from sciqa.exam.questions import options_of, rotate_options
from sciqa.generate.options import GenerateOptions
from sciqa.predict.options import PredictOptions
from sciqa.predict.readers import READERS, Reader

#: What a reader takes for a question with its passage, and for one without.
Found = tuple[dict, ...]


def checker_options(options: GenerateOptions) -> PredictOptions:
    """Return the options of the reader that checks questions.

    A local model ranks letters, unless it was fine-tuned for another form; a server's ranks letters as in `predict`.
    """
    local = options.engine != "openai"
    assert options.checker is not None  # asked for
    trained = local and read_trained_record(find_model(options.checker).folder).get("style")
    names = ("output", "base_url", "api_key_env", "concurrency", "timeout", "engine", "precision", "accelerator")
    given = {name: getattr(options, name) for name in names}
    return PredictOptions(**given, model=options.checker, completion="auto" if trained else "letter", name="checker")


class QuestionChecker:
    """A reader that answers candidates with their passages and without.

    Args:
        kind: key of the reader in `sciqa.predict.readers.READERS`.
        arguments: its constructor arguments.
    """

    def __init__(self, kind: str, arguments: dict) -> None:
        self.reader: Reader = READERS[kind](**arguments)
        self.notes: list[str] = getattr(self.reader, "notes", [])

    def faults(self, questions: list[dict], contexts: list[str]) -> list[str | None]:
        """Return the fault of each question, or None.

        A reader that guesses is right for some order of the options, so a question counts as known without its passage
        only if it is answered in every rotation.

        Args:
            questions: rows of the exam table.
            contexts: the text of each question's passage.
        """
        with_passage: list[Found] = [({"context": context, "passages": []},) for context in contexts]
        right = self._right(questions, with_passage)
        faults: list[str | None] = [None] * len(questions)
        for number, each in enumerate(right):
            if not all(each):
                faults[number] = "inconsistent" if each[0] else "unanswerable"
        left = [number for number, fault in enumerate(faults) if fault is None]
        known = self._right([questions[number] for number in left], [()] * len(left))
        for number, each in zip(left, known, strict=True):
            faults[number] = "known-without" if all(each) else None
        return faults

    def _right(self, questions: list[dict], found: list[Found]) -> list[list[bool]]:
        """Return for each question whether the right option is ranked first, in each rotation of the options."""
        if not questions:
            return []
        turns = [
            (rotate_options(question, by), rows)
            for question, rows in zip(questions, found, strict=True)
            for by in range(len(options_of(question)))
        ]
        scored = iter(self.reader.score([question for question, _ in turns], [rows for _, rows in turns]))
        right = iter([_ranked_first(next(scored).scores, question["answer"]) for question, _ in turns])
        return [[next(right) for _ in options_of(question)] for question in questions]


def _ranked_first(scores: np.ndarray, answer: str) -> bool:
    return scores.argmax() == string.ascii_uppercase.index(answer) and (scores == scores.max()).sum() == 1

"""What is left to answer, and what answers it."""

from dataclasses import dataclass

from sciqa.exam.table import QuestionTable


@dataclass(frozen=True)
class Work:
    """What the workers of a reader are told.

    Attributes:
        parts: numbers of the shards to answer, each by itself or, of a streamed model, those of a pass together.
        workers: how many workers there are.
        kind: of the reader, in `sciqa.predict.readers.READERS`.
        arguments: of that.
        by: what scores options, for messages.
        sources: the tables that it takes, besides the exam.
        weights: bytes of the weights that each worker loads.
        about: what is said of it at the end.
        seconds_before: time that the answers took which this work starts from, as those of a cascade.
    """

    parts: list
    workers: int
    kind: str
    arguments: dict
    by: str
    sources: tuple[QuestionTable, ...] = ()
    weights: int = 0
    about: str = ""
    seconds_before: float = 0.0

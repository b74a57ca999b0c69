"""Description of the remaining work of the `predict` step: shards to answer, and the reader that answers them."""

from dataclasses import dataclass

from sciqa.exam.question_table import QuestionTable


@dataclass(frozen=True)
class ReaderWork:
    """Configuration of the workers of a reader.

    Attributes:
        parts: numbers of the shards to answer; for a streamed model, a list of shard numbers per pass.
        workers: number of workers.
        kind: key of the reader in `sciqa.predict.readers.READERS`.
        arguments: constructor arguments of the reader.
        by: name of the model or reader that scores the options, for messages.
        sources: tables that the reader takes besides the exam.
        weights: bytes of the weights that each worker loads.
        about: note for the final summary.
        seconds_before: seconds that earlier answers took, where a blend or cascade builds on them.
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

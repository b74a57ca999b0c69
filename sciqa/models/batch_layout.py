"""Batches of rows of similar length, and the layout of a batch that a model supports."""

from dataclasses import dataclass


def batch_by_tokens(rows: list[list[int]], lengths: list[int], budget: int) -> list[list[int]]:
    """Group rows of similar length, given by their question indices, into batches; return those of each batch.

    A batch has at most `budget` padded tokens; a longer row is a batch of its own.
    """
    batches: list[list[list[int]]] = []
    longest = 0
    for number in sorted(range(len(rows)), key=lambda number: -lengths[number]):
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = lengths[number]
        batches[-1].append(rows[number])
    return [[number for row in batch for number in row] for batch in batches]


@dataclass(frozen=True)
class BatchLayout:
    """Batch layout that the test found for a model.

    Attributes:
        layout: fastest layout that does not change the model's scores.
        note: message to the user if it is not the fastest of all layouts.
    """

    layout: str
    note: str | None = None

"""Result of the test which batch layouts a model supports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLayout:
    """Batch layout that the test found for a model.

    Attributes:
        layout: fastest layout that does not change the model's scores.
        note: message to the user if it is not the fastest of all layouts.
    """

    layout: str
    note: str | None = None

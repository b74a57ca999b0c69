"""The summary that every step returns."""

from dataclasses import dataclass, field


@dataclass
class Summary:
    """The result of a step.

    Attributes:
        stage: name of the step.
        path: path of its table.
        made: the main counts, in words.
        seconds: wall time.
        details: figures for the caller.
    """

    stage: str
    path: str
    made: str
    seconds: float
    details: dict = field(default_factory=dict)

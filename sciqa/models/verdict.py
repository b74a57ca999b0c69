"""How a model's batches can be computed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What was found out about a model.

    Attributes:
        layout: the quickest one that scores as the model does.
        note: said to a user where that is not the quickest of all.
    """

    layout: str
    note: str | None = None

"""The summary that every step returns, and how it says a figure with its interval."""

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


def summary_interval_text(row: dict, name: str, form: str = ".3f") -> str:
    """Return the column `name` of a row with its interval, the columns `NAME_low` and `NAME_high`, in brackets."""
    return f"{row[name]:{form}} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"

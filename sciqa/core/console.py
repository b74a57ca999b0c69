"""The terminal: where progress, and what a user should know, are written, and how much of what others write."""

import logging
import os
import warnings

from rich.console import Console

console = Console(stderr=True)
#: Environment variable that `--verbose` sets, for this process and its workers.
VERBOSE = "SCIQA_VERBOSE"


def verbose() -> bool:
    """Whether warnings and logs of Ray, its workers and of libraries are let through."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


def quiet(*loggers: str) -> None:
    """Keep back what libraries log below an error, and warn of for their developers, unless more is wanted."""
    if verbose():
        return
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)

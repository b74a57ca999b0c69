"""The terminal: the console for progress and messages, and how much output of Ray and libraries is shown."""

import functools
import logging
import os
import warnings

from rich.console import Console

console = Console(stderr=True)
#: Environment variable that `--verbose` sets, for this process and its workers.
VERBOSE = "SCIQA_VERBOSE"


def is_console_verbose() -> bool:
    """Whether warnings and logs of Ray, its workers and libraries are shown."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


@functools.cache
def print_once(note: str) -> None:
    """Print a note once per process, however many steps come upon it."""
    console.print(note, markup=False, soft_wrap=True)


def quiet_console(*loggers: str) -> None:
    """Hide log messages of libraries below errors, and warnings for their developers, unless `is_console_verbose`."""
    if is_console_verbose():
        return
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)

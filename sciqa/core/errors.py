"""Errors that a user can resolve."""

import re

#: What Python writes in a traceback between an exception that was being handled, and the one raised meanwhile.
HANDLING = "During handling of the above exception, another exception occurred:"


class InputError(Exception):
    """Bad input. The message of one line says which file, row and column, what is expected and what to do.

    The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class QuestionError(InputError):
    """Bad input in a question itself, such as its length. A server tells it to the client whose question it is."""


class LostWorkersError(Exception):
    """The end of a run because its workers died. The message of one line says how they died and what to do.

    The command line prints it and exits with code 1.
    """


def find_input_error(error: BaseException) -> InputError | None:
    """Return the `InputError` behind an error, in this process or a worker; None for any other error.

    Ray Data passes a worker's exception on as text inside its own exception, so it is found there by its name. One
    that the worker was handling when it failed by another error is not the reason of the failure.
    """
    pattern = rf"{re.escape(__name__)}\.(?:Input|Question)Error: (.+)$(?!\s*{re.escape(HANDLING)})"
    found = re.findall(pattern, str(error), re.MULTILINE)
    if found:  # of a task, with its traceback before it
        return InputError(found[-1])
    return error if isinstance(error, InputError) else None

"""The error that a person can mend."""

import re


class InputError(Exception):
    """Bad input: says which file, row and column, what was expected and what to do, on one line.

    The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class LostWorkersError(Exception):
    """A run ended because its workers died: says how and what to do, on one line.

    The command line prints it and exits with code 1.
    """


def find_input_error(error: BaseException) -> InputError | None:
    """Return the `InputError` that an error is, or was in the worker where it was raised; None for any other.

    Ray Data passes a worker's exception on as text within its own, so there it is found by its name.
    """
    if isinstance(error, InputError):
        return error
    found = re.search(rf"{re.escape(f'{__name__}.{InputError.__name__}')}: (.+)", str(error))
    return InputError(found[1]) if found else None

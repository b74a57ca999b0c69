"""The error that a person can mend."""


class InputError(Exception):
    """Bad input: says which file, row and column, what was expected and what to do.

    The command line prints it on one line and exits with code 2.
    """

    def __reduce__(self) -> tuple:
        """Keep the message whole on the way from a worker to the driver."""
        return (type(self), self.args)


def find_input_error(error: BaseException) -> InputError | None:
    """Return the `InputError` inside an error that Ray wrapped on its way from a worker, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InputError):
            return InputError(getattr(error, "cause", error).args[0])
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None

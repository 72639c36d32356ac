"""The one family of errors that a caller can mend: bad input or a missing part of the environment."""


class UserError(Exception):
    """Bad input or environment; the message is one line that says what, where and how to mend it.

    The command line prints the message and leaves with exit code 2. Concrete kinds live beside what raises them.
    """


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: run `pip install 'mattecompress[{extra}]'`")


class InternalError(Exception):
    """The work ran and a check of our own failed: a defect, not the caller's. The command line leaves with exit code 1."""

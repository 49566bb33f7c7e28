"""The one exception that a user is meant to read."""


class DatapoolError(Exception):
    """Something that the user can put right.

    The message is one line: which file or key, what is there, what should be, what to do now. Stages and the
    command line print it after ``error:`` and end with exit code 1; nothing was changed.
    """

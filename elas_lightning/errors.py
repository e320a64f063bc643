"""The one exception that stands for a mistake of the user's rather than of ours."""


class UserError(ValueError):
    """Wrong input, said in one line: what is wrong, what is allowed, what to do.

    The commands print it as ``error: …`` and exit with code 2, without a traceback.
    """

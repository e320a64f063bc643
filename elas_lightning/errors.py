"""What stands for a mistake of the user's, or of the machine's, rather than of ours."""

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of an OSError


class UserError(ValueError):
    """Wrong input, said in one line: what is wrong, what is allowed, what to do.

    The commands print it as ``error: …`` and exit with code 2, without a traceback.
    """

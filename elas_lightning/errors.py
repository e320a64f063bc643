"""What stands for a mistake of the user's, or of the machine's, rather than of ours."""

import errno

# Of an OSError: where there is no room, no right to write, or no folder.
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)


class UserError(ValueError):
    """Wrong input, said in one line: what is wrong, what is allowed, what to do.

    The commands print it as ``error: …`` and exit with code 2, without a traceback.
    """

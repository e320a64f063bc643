"""What stands for a mistake of the user's, or of the machine's, rather than of ours."""

import errno
import os

# Of an OSError: where there is no room, no right to write, or no folder.
_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (*_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)


class UserError(ValueError):
    """Wrong input, said in one line: what is wrong, what is allowed, what to do.

    The commands print it as ``error: …`` and exit with code 2, without a traceback.
    """


def is_full_disk(error: BaseException | None) -> bool:
    """Whether it is for want of room on a disk that an exception, or one that it comes of, was raised."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if getattr(error, "sqlite_errorname", None) == "SQLITE_FULL":
            return True
        error = error.__cause__ or error.__context__
    return False


def no_room(place: object) -> OSError:
    """What the system would say of a file for which there is no room."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def not_usable(error: OSError) -> str:
    """What to say of a file that the system does not let us write."""
    what = f"{error.filename or 'a file'} cannot be used ({error.strerror})"
    return f"{what}: make room or see to its rights, then the same command goes on"

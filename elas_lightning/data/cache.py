"""A cache folder that several processes may fill at once; an entry is whole or absent, never half there."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from elas_lightning.errors import UserError
from elas_lightning.files import cache_folder


def cache_root(cache_dir: str | None = None) -> Path:
    """The folder that holds everything this project derives and can derive again.

    Args:
        cache_dir: the user's choice; else ``$ELAS_CACHE_DIR``, else ``$XDG_CACHE_HOME/elas-lightning``, else
            ``~/.cache/elas-lightning`` (``cache_folder``).

    Raises:
        UserError: the folder cannot be made.
    """
    root = (cache_folder() if cache_dir is None else Path(cache_dir).expanduser()).absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir: cannot make the folder {root} ({error.strerror}); name one you may write to, "
            "there or in $ELAS_CACHE_DIR"
        ) from error
    return root


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, building it first if it is not there.

    The builder writes into a folder beside the target, which gets its final name only when the builder is
    done, so a process killed half-way leaves nothing that looks finished; the lock spares a second process
    the same work.

    Args:
        target: folder to make.
        build: fills the empty folder it is given.

    Raises:
        UserError: the cache cannot be written to.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                try:
                    build(unfinished)
                    unfinished.chmod(0o755)  # mkdtemp's 0700 would shut out the others who share the cache
                    unfinished.rename(target)
                except BaseException:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    raise
    except OSError as error:
        raise UserError(
            f"data.cache_dir: {target} cannot be made ({error.strerror or error}); name a folder with room that you "
            "may write to, there or in $ELAS_CACHE_DIR"
        ) from error
    return target

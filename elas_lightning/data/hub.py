"""The Hugging Face hub as something that fails now and then: wait and ask again, then say so in one line."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from zlib import error as ZlibError

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from elas_lightning.errors import UserError

Answer = TypeVar("Answer")

# For reads in the midst of a run, which the client gives up at once; half a minute outlasts the usual hiccup.
BACK_OFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)

_MISSING = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError)
# A connection cut in mid-file reads as a short gzip stream; the Xet client's faults are RuntimeErrors.
_PASSING = (OSError, HTTPError, EOFError, ZlibError, RuntimeError)

_log = logging.getLogger(__name__)


def with_retries(
    ask: Callable[[], Answer], what: str, advice: str, waits: tuple[float, ...] = BACK_OFF_SECONDS
) -> Answer:
    """Call ``ask`` until it answers.

    Args:
        ask: talks to the hub; may be called again after any failure.
        what: the thing asked for, for messages.
        advice: what the user can do without the hub.
        waits: seconds before each further attempt.

    Raises:
        UserError: the thing does not exist, or the hub could not be reached after several attempts.
    """
    for delay in (*waits, None):
        try:
            return ask()
        except _MISSING as error:
            raise UserError(f"the hub has no {what} ({type(error).__name__}); check its name and revision") from error
        except _PASSING as error:
            said = str(error).strip().splitlines() or ["no details"]
            cause = f"{type(error).__name__}: {said[0]}"
            if delay is None or isinstance(error, OfflineModeIsEnabled):
                raise UserError(f"cannot reach the hub for {what} ({cause}); {advice}") from error
            _log.warning("%s failed (%s); asking again in %g s", what, cause, delay)
            time.sleep(delay)
    raise AssertionError("unreachable: the last attempt answers or raises")


def fetch(repository: str, filename: str, revision: str | None, advice: str) -> Path:
    """Download one file of a model repository, or take it from the hub client's own cache.

    Args:
        repository: ``owner/name``.
        filename: path inside it.
        revision: commit or branch; None for the default branch.
        advice: what the user can do without the hub.

    Raises:
        UserError: as ``with_retries``.
    """
    what = f"{repository}/{filename}" + (f" at {revision}" if revision else "")
    # No waits of our own: a download has the client's, five of them in 23 seconds.
    return Path(with_retries(lambda: hf_hub_download(repository, filename, revision=revision), what, advice, waits=()))

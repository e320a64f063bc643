"""One worker of a crew: ``python -m elas_lightning.sweep.member``, told by a line on stdin what to do.

It says nothing but what goes wrong; the crew's process sees in the study what there is to tell.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from elas_lightning.errors import NOT_WRITABLE, UserError, not_usable
from elas_lightning.sweep.crew import BUDGET_SPENT, DONE, REFUSED
from elas_lightning.sweep.isolated import ORPHAN_SECONDS
from elas_lightning.sweep.run import Request, rejoin_study
from elas_lightning.sweep.worker import Budget, BudgetSpent, Timing, Worker
from elas_lightning.training.interruption import Interrupted


def work(job: dict[str, Any]) -> int:
    """Do a job as :func:`elas_lightning.sweep.run.describe` wrote it; the exit code."""
    requests = [Request(**{**part, "timing": Timing(**part["timing"])}) for part in job["parts"]]
    studies = [
        rejoin_study(request, retry_below) for request, retry_below in zip(requests, job["retry_below"], strict=True)
    ]
    try:
        left = None if job["ends"] is None else max(0.0, job["ends"] - time.time()) / 60
        Worker(studies, Budget(left), requests[0].timing).work()
    except BudgetSpent:
        return BUDGET_SPENT
    return DONE


def main() -> int:
    """Read the job and do it."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        job = json.loads(stdin.readline())
    threading.Thread(target=_end_with_the_crew, daemon=True).start()
    try:
        return work(job)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"error: {not_usable(error)}", file=sys.stderr)
        return REFUSED
    except Interrupted as stop:
        return 128 + stop.signal_number


def _end_with_the_crew() -> None:
    os.read(0, 1)  # nothing more is ever sent: it ends with the crew's process
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

"""A worker's process for tests of the crew: what it does is in its job, and it writes down that it was there."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

job = json.loads(os.fdopen(0, "rb", buffering=0, closefd=False).readline())
folder = Path(job["folder"])
with (folder / "starts.txt").open("a") as file:
    file.write(f"{os.environ.get('OMP_NUM_THREADS')} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
does = job["does"]
if does == "refuse":
    print("error: there is no corpus", file=sys.stderr)
    sys.exit(2)
if does == "spend":
    sys.exit(3)
if does == "die once":
    with suppress(FileExistsError):  # of several that start together, one is the first
        (folder / "died").touch(exist_ok=False)
        does = "die"
if does == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if does == "wait":

    def leave(number: int, frame: object) -> None:
        (folder / f"left-{os.getpid()}.txt").write_text(str(number))
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    (folder / f"waits-{os.getpid()}.txt").touch()
    if os.read(0, 1) == b"":  # the crew is gone
        leave(0, None)
    time.sleep(60)

"""Records of ``ffn.py`` as what ``backend: auto`` chooses from: the same cases as ``tune.py`` measures, nothing run.

Seconds there are of the whole feed-forward network, its outermost factors included. These are the same for all paths of
a case, so the order of the paths is theirs, and differences are as large as a user sees them. Replays of CUDA graphs
are left out: launches are part of what a user waits for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn import contenders

from elas_lightning.errors import UserError

DIRECTIONS = {"forward": "forward", "forward_backward": "training"}
# How a record names a way of running, and whether a compiler made it.
MODES = {"eager": False, "compiled": True}
WHAT = "whole FFN, outermost factors included"


def read(path: Path) -> dict[str, Any]:
    """A record of ``ffn.py`` made on a GPU.

    Raises:
        UserError: It is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--from {path} cannot be read ({error}): name a record of `elas bench ffn`") from None
    benchmark = record.get("benchmark") if isinstance(record, dict) else None
    if benchmark != "ffn":
        raise UserError(f"--from {path} is of benchmark {benchmark!r}: name a record of `elas bench ffn`")
    if record.get("device_type") != "cuda":
        raise UserError(f"--from {path} is not of a GPU: measure there with `elas bench --tune`")
    return record  # type: ignore[no-any-return]


def cases_of(path: Path, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a record says of two paths or more, as cases of what ``auto`` reads.

    Raises:
        UserError: It lacks a field, or names a contender or shape that is unknown.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    try:
        for case in record["cases"]:
            known = contenders(case["shape"], None)
            for row in case["measured"]:
                config = known[row["contender"]]
                if row["mode"] not in MODES or config.ffn_rank is None or config.ffn != "relu2":
                    continue
                about = {
                    "rank": config.ffn_rank,
                    "tokens": case["tokens"],
                    "dtype": record["dtype"],
                    "sparsity": "2:4" if config.sparsity.placement else None,
                    "direction": DIRECTIONS[row["kind"]],
                    "compiled": MODES[row["mode"]],
                    "d_ff": config.ffn_width,
                }
                entry = found.setdefault(tuple(about.values()), {**about, "seconds": {}})
                entry["seconds"][f"{config.backend} {config.ffn_storage}"] = row["seconds"]["median"]
    except (KeyError, TypeError) as error:
        raise UserError(f"--from {path} is not of this version ({error!r}): measure again") from None
    yield from (case for case in found.values() if len(case["seconds"]) > 1)


def convert(paths: list[Path]) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The device that records are of, what a file says about them, and their cases.

    Raises:
        UserError: They are no such records, of several devices, of the same case, or none says anything of two paths.
    """
    records = {path: read(path) for path in paths}
    devices = sorted({record["device"] for record in records.values()})
    if len(devices) > 1:
        raise UserError(f"--from names records of {' and '.join(devices)}: convert those of one device at a time")
    cases: dict[str, dict[str, Any]] = {}
    for path, record in records.items():
        for case in cases_of(path, record):
            identity = ", ".join(f"{key} {value}" for key, value in case.items() if key != "seconds")
            if identity in cases:
                raise UserError(f"--from {path} has a case that another record has, too ({identity}): name one")
            cases[identity] = case
    if not cases:
        raise UserError(
            f"--from {' '.join(map(str, paths))} has no two paths of one case, eager or compiled: "
            "there is nothing to choose from"
        )
    sources = [
        {"file": path.name, "command": record["command"], "versions": record["versions"]}
        for path, record in records.items()
    ]
    return devices[0], {"measured": WHAT, "sources": sources}, list(cases.values())

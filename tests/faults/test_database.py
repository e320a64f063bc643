"""Four workers on PostgreSQL or MariaDB, SIGKILLs at random, two restarts of the server: all trials complete once."""

import threading
import time
from pathlib import Path

import pytest
from killed_sweep import (
    Crew,
    check_complete,
    check_made_once,
    finish,
    kill_at_random,
    make_project,
    open_cheap,
    unbroken,
)
from mariadb import MariaDB
from postgres import Postgres


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_kills_and_two_restarts_of_the_server(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, request: pytest.FixtureRequest
) -> None:
    server: Postgres | MariaDB = request.getfixturevalue(kind)
    kills = request.config.getoption("--kills") or 20
    root = make_project(overlay, tmp_path, points=28)
    monkeypatch.chdir(root)
    url, began = server.create("kills"), time.monotonic()

    def restart_twice() -> None:
        for _ in range(2):
            time.sleep(4)
            server.stop()
            time.sleep(2)
            server.start()

    crew, restarts = Crew(root, "kills", url, workers=4), threading.Thread(target=restart_twice)
    restarts.start()
    try:
        hit = kill_at_random(crew, kills, seed=0, between=(0.2, 0.8))
        restarts.join()
        finish(crew, 300)
    finally:
        restarts.join()
        crew.stop()
    study = open_cheap("kills", url)
    found = check_complete(study)
    check_made_once(study.plan.folder, 56)
    trials = study.study.get_trials(deepcopy=False)
    print(
        f"{dict(hit)} killed, 2 restarts, {time.monotonic() - began:.0f} s: {len(found['points'])} points complete "
        f"once, {len(found['runs'])} runs made once, {len(trials)} trials"
    )
    assert sum(hit.values()) == kills
    assert found == unbroken(root)

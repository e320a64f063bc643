"""Where a study lives."""

from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage at ``url``, or SQLite in ``folder``."""
    if url is not None and url.startswith("journal:///"):
        return JournalStorage(JournalFileBackend(url.removeprefix("journal:///")))
    return RDBStorage(
        url or f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )

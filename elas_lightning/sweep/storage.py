"""Where a study lives: a file beside the results, a journal on a shared folder, a database server, or a proxy of one.

| URL | for |
|---|---|
| none | SQLite in the sweep's folder: workers on one machine |
| ``sqlite:////absolute/path`` | the same elsewhere; never on a network file system, whose locks SQLite cannot trust |
| ``journal:///absolute/path`` | a file on a folder that some machines share (NFS), no server needed |
| ``postgresql://user@host/database``, ``mysql://…`` | many machines |
| ``grpc://host:port`` | hundreds of workers: a proxy (:func:`serve`) that asks the database for all of them |

Whatever is opened is wrapped in :class:`~elas_lightning.sweep.patience.PatientStorage`.
"""

import json
import logging
import os
import random
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import get_lock_file  # holds the lock for a with block
from sqlalchemy import event, exc

from elas_lightning.errors import UserError, is_full_disk, no_room
from elas_lightning.sweep.patience import PatientStorage, reason_of

STUDY_NAME = "study.db"  # in the sweep's folder, where no URL is given
BUSY_SECONDS = 60.0  # how long a writer waits for another on SQLite
OPENING_SECONDS = 10  # how long a server may take to answer the first call
KNOWN = "journal:///path, postgresql://user@host/database, mysql://user@host/database, grpc://host:port"
_EVERYWHERE = "0.0.0.0"  # where the proxy listens
# What a server says that starts or stops, and a table that another process made at the same moment.
_PASSING = r"already exists|[Dd]uplicate|UNIQUE|starting up|shutting down"
_REFUSALS = {
    r"password|[Aa]ccess denied|authentication|no pg_hba.conf": "the server refuses this user or password",
    r"database .* does not exist|Unknown database": "the server has no such database: create it (createdb NAME)",
    r"role .* does not exist": "the server has no such user",
    r"not a database|unable to open|readonly|malformed": "the file cannot be used as a database",
}
# Each process has one thread that works and one whose heart beats. A server has a hundred connections or so, and
# a worker that trains for hours should not hold more than one of them.
_POOL = {"pool_size": 1, "max_overflow": 3, "pool_pre_ping": True}
# By a URL's scheme, what the extras install: without a name SQLAlchemy takes other ones.
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}


class Unreachable(UserError):
    """Nobody answers at a storage's address: a wrong one, or a server that is down."""


def redact(text: str) -> str:
    """A URL, or a command with one, without its password."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*passw\w*=)[^&\s]*", r"\1***", text)


def for_dashboard(url: str) -> str | None:
    """What ``optuna-dashboard`` takes for a storage; ``None`` for a proxy, which it cannot ask."""
    scheme, _, rest = redact(url).partition("://")
    if scheme == "journal":
        return unquote(rest)
    return None if scheme == "grpc" else f"{_DRIVERS.get(scheme, scheme)}://{rest}"


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open a study's storage; tables are made where there are none.

    Args:
        url: One of the module's table; ``None`` for ``folder/study.db``.
        folder: The sweep's folder, which exists.

    Raises:
        UserError: The URL is none that is known, the driver is not installed, the server cannot be reached, it refuses
            the user, or the database does not exist. No message has the password.
    """
    if url is None:
        url = f"sqlite:///{(folder / STUDY_NAME).resolve()}"
    shown = f"storage {redact(url)}"
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _OPENERS:
        raise UserError(f"{shown}: give {KNOWN}, or none for SQLite in the sweep's folder")
    return PatientStorage(_OPENERS[scheme](url, shown), shown)


def serve(url: str, port: int) -> None:
    """Answer ``grpc://host:port`` for a database until stopped, so that hundreds of workers share a few connections.

    Args:
        url: Of a database (Optuna's proxy does not take journals).
        port: To listen on, at all addresses. Whoever reaches it can write to the study: keep it inside the cluster.

    Raises:
        UserError: As :func:`open_storage`, or the port is taken.
    """
    if url.startswith(("journal:", "grpc:")):
        raise UserError(f"storage {redact(url)}: the proxy serves a database: postgresql://… or mysql://…")
    storage = open_storage(url, Path())
    # After a restart of the proxy its cache must know the trials that are under way, or their parameters are refused.
    for study in storage.get_all_studies():
        storage.get_all_trials(study._study_id, deepcopy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            optuna.storages.run_grpc_proxy_server(storage, host=_EVERYWHERE, port=port)
        except ImportError as error:
            raise UserError("the proxy needs grpcio: pip install 'elas-lightning[grpc]'") from error
        except RuntimeError as error:
            raise UserError(f"port {port} of {_EVERYWHERE} cannot be listened on: {reason_of(error)}") from error


def _sqlite(url: str, shown: str) -> BaseStorage:
    storage = _tables(url, shown, {"connect_args": {"timeout": BUSY_SECONDS}})

    # SQLite has no row locks. A claim reads a trial's state and then writes it; two processes that read before either
    # has written would both have claimed it. So a transaction takes the file's write lock before it reads.
    @event.listens_for(storage.engine, "connect")
    def manual(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def immediate(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # what was opened before the two listeners
    return optuna.storages.get_storage(storage)


def _postgresql(url: str, shown: str) -> BaseStorage:
    arguments = {
        "connect_timeout": OPENING_SECONDS,
        "application_name": "elas",
        "prepare_threshold": None,  # poolers such as pgbouncer keep no prepared statements
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    return _server(url, shown, arguments)


def _mysql(url: str, shown: str) -> BaseStorage:
    arguments = {"connect_timeout": OPENING_SECONDS, "read_timeout": 60, "write_timeout": 60}
    return _server(url, shown, arguments)


def _server(url: str, shown: str, arguments: dict[str, Any]) -> BaseStorage:
    scheme, _, rest = url.partition("://")
    tables = _tables(f"{_DRIVERS[scheme]}://{rest}", shown, {**_POOL, "connect_args": arguments})
    return optuna.storages.get_storage(tables)


def _tables(url: str, shown: str, engine: dict[str, Any]) -> RDBStorage:
    """The storage of a database, with its tables made; several processes may be doing so at once."""
    # It tells of every lost connection, with the whole statement; patience says it once.
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
    for attempt in range(10):
        try:
            return RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=dict(engine))
        except ImportError as error:
            extra = "mysql" if url.startswith("mysql") else "postgresql"
            raise UserError(f"{shown}: its driver is missing: pip install 'elas-lightning[{extra}]'") from error
        except (exc.ArgumentError, ValueError) as error:
            raise UserError(f"{shown}: this is no URL: {reason_of(error)}; give {KNOWN}") from error
        except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if is_full_disk(error):
                raise no_room(shown) from error
            reason = reason_of(error)
            if attempt < 9 and re.search(_PASSING, reason):
                time.sleep(random.uniform(0.1, 0.5) * (attempt + 1))
                continue
            advice = _advice(reason)
            kind = UserError if advice else Unreachable
            advice = advice or "no connection: is the server running, and is this its address?"
            raise kind(f"{shown}: {advice} ({_scrubbed(reason, url)})") from error
        except RuntimeError as error:  # tables of another Optuna
            raise UserError(f"{shown}: {reason_of(error)}") from error
    raise AssertionError("the last attempt returns or raises")


def _advice(reason: str) -> str | None:
    """What a refusal means; ``None`` where nobody was there to refuse."""
    return next((advice for said, advice in _REFUSALS.items() if re.search(said, reason)), None)


def _scrubbed(reason: str, url: str) -> str:
    password = urlsplit(url).password
    if not password:
        return reason
    # of a password with an @ that is not written as %40, a driver takes the rest for the host
    parts = [password, unquote(password), *re.split("[@/]", password)]
    for part in sorted(filter(None, parts), key=len, reverse=True):
        reason = reason.replace(part, "***")
    return reason


class _Journal(JournalFileBackend):
    """Optuna's journal, healed: the half line of a writer that was killed, or of a full disk, is cut off by the next.

    Left there, it would join with the next entry into a line that nobody can read.
    """

    def __init__(self, path: Path) -> None:
        # A symbolic link is made in one step on every version of NFS; flock is local to each client on many.
        self._guard = JournalFileSymlinkLock(str(path))
        self._path = path
        super().__init__(str(path), self._guard)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, whole or not at all."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._guard), self._path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(max(0, end - 1))
                if file.read(1) != b"\n":
                    end = _end_of_last_line(file, end)
            file.truncate(end)
            file.seek(end)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def _end_of_last_line(file: Any, end: int) -> int:
    """Where the last whole line ends; a line is much shorter than what is read back here."""
    start = max(0, end - 1_000_000)
    file.seek(start)
    return start + file.read(end - start).rfind(b"\n") + 1


def _journal(url: str, shown: str) -> BaseStorage:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc or not path.is_absolute():
        raise UserError(f"{shown}: give an absolute path after three slashes: journal:///shared/study.journal")
    if not path.parent.is_dir():
        raise UserError(f"{shown}: {path.parent} is no folder: make it, or mount it, first")
    try:
        return JournalStorage(_Journal(path))
    except OSError as error:
        raise UserError(f"{shown}: the file cannot be opened: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown}: the file is not an Optuna journal; give another path") from error


def _grpc(url: str, shown: str) -> BaseStorage:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError(f"{shown}: give host and port: grpc://host:13000")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            proxy = GrpcStorageProxy(host=host, port=port)
            proxy.wait_server_ready(timeout=OPENING_SECONDS)
        except ImportError as error:
            raise UserError(f"{shown}: it needs grpcio: pip install 'elas-lightning[grpc]'") from error
        except ConnectionError as error:
            raise Unreachable(
                f"{shown}: no proxy answers there; start one with `elas sweep serve --storage URL --port {port}`"
            ) from error
    return proxy


_OPENERS: dict[str, Callable[[str, str], BaseStorage]] = {
    "sqlite": _sqlite,
    "journal": _journal,
    "postgresql": _postgresql,
    "postgres": _postgresql,
    "mysql": _mysql,
    "grpc": _grpc,
}

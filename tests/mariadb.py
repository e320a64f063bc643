"""A real MariaDB for tests, from the machine: what ``mysql://`` leads to; restarted at will."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

STARTING_SECONDS = 30.0
PASSWORD = "se:cr@t"


def has_mariadb() -> bool:
    """Whether the machine has a server and what makes its tables."""
    return all(map(shutil.which, ("mariadbd", "mariadb-install-db")))


class MariaDB:
    """A server on a port of this machine, with a user and a password."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="elas-mariadb-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        server = shutil.which("mariadbd")
        assert server is not None
        base = Path(server).resolve().parents[1]
        common = ["--no-defaults", f"--basedir={base}", f"--datadir={self.folder / 'data'}"]
        if os.getuid() == 0:
            common.append("--user=root")  # it wants to be told
        self._command = [
            server,
            *common,
            f"--socket={self.folder / 'socket'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--init-file={self.folder / 'user.sql'}",
        ]
        (self.folder / "user.sql").write_text(
            f"CREATE USER IF NOT EXISTS elas@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON *.* TO elas@'127.0.0.1';\n"
        )
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(install, check=True, capture_output=True)
        self._server: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"mysql://elas:se%3Acr%40t@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except OSError as error:
                if time.monotonic() > end or self._server.poll() is not None:
                    raise RuntimeError(f"no server: {(self.folder / 'log').read_text()}") from error
                time.sleep(0.1)

    def stop(self) -> None:
        """Cut every connection."""
        if self._server is not None:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()

    def create(self, database: str) -> str:
        """Make an empty database; gives its URL."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{database}`")
        return self.url(database)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _connect(self):  # type: ignore[no-untyped-def]  # pymysql is typed by no one
        import pymysql

        try:
            return pymysql.connect(host="127.0.0.1", port=self.port, user="elas", password=PASSWORD)
        except pymysql.err.OperationalError as error:
            raise OSError(str(error)) from error

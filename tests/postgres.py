"""A real PostgreSQL server for a session of tests: a cluster of its own, on a free port, thrown away in the end."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "p@ss:w/rd%"
"""With the characters that have a meaning in an address."""


def binaries() -> Path | None:
    """The folder of the server's programs, which Debian keeps out of the PATH; ``None`` where there is none."""
    found = shutil.which("pg_ctl")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))[::-1]
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


class PostgresServer:
    """A cluster in a temporary folder; PostgreSQL refuses to run as root, so it runs as ``postgres`` there."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ("-U", "audit", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync")
        self._run("initdb", "-D", str(self.folder / "data"), *options)
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            # Nothing here has to survive the machine; that processes die at any moment is tried all the same.
            settings.write(f"\nfsync = off\nport = {self.port}\nlisten_addresses = '127.0.0.1'\n")
            settings.write(f"unix_socket_directories = '{self.folder}'\n")
        self.start()

    def url(self, password: str = PASSWORD) -> str:
        """The address of the database that the cluster begins with."""
        quoted = "".join(f"%{ord(one):02x}" if one in "@:/%" else one for one in password)
        return f"postgresql+psycopg://audit:{quoted}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "start")

    def kill(self) -> None:
        """Ends every process of it without a farewell, as a crash does."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        """Ends it for good."""
        self.kill()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        user = self._user if os.geteuid() == 0 else None
        with (self.folder / "commands.log").open("ab") as log:  # a pipe would stay open as long as the server runs
            finished = subprocess.run(
                command, cwd=self.folder, user=user, group=user, extra_groups=[] if user else None,
                stdout=log, stderr=log, timeout=120,
            )  # fmt: skip
        assert finished.returncode == 0, (self.folder / "commands.log").read_text()


def new_namespace() -> str:
    """A name for one test's tables."""
    return f"test_{secrets.token_hex(6)}"

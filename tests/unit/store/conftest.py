"""Both databases: SQLite in a file, and a private PostgreSQL cluster where its binaries are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from rock.store.database import Database, database_url

Opener = Callable[[], AbstractAsyncContextManager[Database]]


def _postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    return found[-1].parent if found else None


def _as_ordinary_user() -> dict[str, int]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid}
    pytest.skip("PostgreSQL cannot run as root and there is no ordinary user to be")


class Cluster:
    """A PostgreSQL of its own, reachable by a unix socket only."""

    def __init__(self) -> None:
        binaries = _postgres_binaries()
        if binaries is None:
            pytest.skip("PostgreSQL's server is not installed ('apt-get install postgresql')")
        self._binaries, self._who = binaries, _as_ordinary_user()
        self._top = Path(tempfile.mkdtemp(prefix="rkpg"))
        self._data = self._top / "data"
        if self._who:
            os.chown(self._top, self._who["user"], self._who["group"])
        self._top.chmod(0o755)
        self._run("initdb", "-D", str(self._data), "-U", "rock", "--auth=trust", "-E", "UTF8", "--no-sync")
        self.url = URL.create("postgresql", username="rock", database="postgres", query={"host": str(self._top)})

    def start(self) -> None:
        options = f"-k {self._top} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self._top / "log"), "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._top, ignore_errors=True)

    def _run(self, program: str, *argv: str) -> None:
        command = [str(self._binaries / program), *argv]
        done = subprocess.run(  # type: ignore[call-overload]
            command, cwd=self._top, capture_output=True, text=True, timeout=120, check=False, **self._who
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[URL]:
    """For all tests that leave it running."""
    with _cluster() as cluster:
        yield cluster.url


@pytest.fixture
def postgres_cluster() -> Iterator[Cluster]:
    """To be stopped and started."""
    with _cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """``async with opened() as database``: the same database each time it is called within a test."""
    if request.param == "sqlite":
        url = database_url("", tmp_path)
    else:
        base: URL = request.getfixturevalue("postgres_url")
        name = f"t{os.urandom(6).hex()}"
        _create_database(base, name)
        url = database_url(base.set(database=name).render_as_string(hide_password=False), tmp_path)

    @asynccontextmanager
    async def open_() -> AsyncIterator[Database]:
        database = await Database.open(url)
        try:
            yield database
        finally:
            await database.close()

    return open_


def _create_database(base: URL, name: str) -> None:
    import psycopg

    where = {"user": base.username, "dbname": base.database, "host": base.query["host"]}
    with psycopg.connect(autocommit=True, **where) as connection:  # type: ignore[arg-type]
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]

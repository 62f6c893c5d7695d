"""Both databases: SQLite in a file, and a private PostgreSQL cluster where its binaries are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[URL]:
    """A cluster of its own, reachable by a unix socket only, gone afterwards."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed ('apt-get install postgresql')")
    who = _as_ordinary_user()
    top = Path(tempfile.mkdtemp(prefix="rkpg"))
    data = top / "data"
    if who:
        os.chown(top, who["user"], who["group"])
    top.chmod(0o755)

    def run(program: str, *argv: str) -> None:
        command = [str(binaries / program), *argv]
        done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=120, check=False, **who)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "-D", str(data), "-U", "rock", "--auth=trust", "-E", "UTF8", "--no-sync")
    options = f"-k {top} -c listen_addresses='' -c fsync=off"
    run("pg_ctl", "-D", str(data), "-o", options, "-l", str(top / "log"), "-w", "start")
    try:
        yield URL.create("postgresql", username="rock", database="postgres", query={"host": str(top)})
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(top, ignore_errors=True)


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

"""`Sandbox` and what it hands out, for code without an event loop. Nothing is implemented here twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Self

from rock.domain.errors import RockError
from rock.sdk._blocking import Facade, blocking, blocking_giving, giving, iterating
from rock.sdk.forwarding import Forward
from rock.sdk.jobs import Job
from rock.sdk.sandbox import Sandbox, Shell
from rock.wire.models import LeaseView


class ShellSync(Facade[Shell]):
    """`Shell` without ``await``."""

    @property
    def opened(self) -> bool:
        return self._inner.opened

    run = blocking(Shell.run)
    interrupt = blocking(Shell.interrupt)
    close = blocking(Shell.close)


class JobSync(Facade[Job]):
    """`Job` without ``await``."""

    @property
    def pid(self) -> int:
        return self._inner.pid

    @property
    def exit_code(self) -> int | None:
        return self._inner.exit_code

    @property
    def errors(self) -> str:
        return self._inner.errors

    @property
    def lost_bytes(self) -> int:
        return self._inner.lost_bytes

    read = blocking(Job.read)
    output = iterating(Job.output)
    wait = blocking(Job.wait)
    write = blocking(Job.write)
    signal = blocking(Job.signal)
    resize = blocking(Job.resize)
    close = blocking(Job.close)


class ForwardSync(Facade[Forward]):
    """`Forward` without ``await``."""

    def __enter__(self) -> Self:
        self.open()
        return self

    @property
    def local_port(self) -> int:
        return self._inner.local_port

    @property
    def refused(self) -> RockError | None:
        return self._inner.refused

    open = blocking(Forward.open)
    close = blocking(Forward.close)


class SandboxSync(Facade[Sandbox]):
    """`Sandbox` without ``await``; its methods' texts hold here too."""

    def __enter__(self) -> Self:
        self.open()
        return self

    @property
    def lease(self) -> LeaseView:
        return self._inner.lease

    @property
    def id(self) -> str:
        return self._inner.id

    open = blocking(Sandbox.open)
    close = blocking(Sandbox.close)
    run = blocking(Sandbox.run)
    exec = blocking(Sandbox.exec)
    read_file = blocking(Sandbox.read_file)
    write_file = blocking(Sandbox.write_file)
    upload = blocking(Sandbox.upload)
    download = blocking(Sandbox.download)
    list_files = blocking(Sandbox.list_files)
    shell = giving(Sandbox.shell, ShellSync)
    start = blocking_giving(Sandbox.start, JobSync)
    download_tar = iterating(Sandbox.download_tar)
    watch = iterating(Sandbox.watch)
    forward = giving(Sandbox.forward, ForwardSync)
    usage = blocking(Sandbox.usage)
    pause = blocking(Sandbox.pause)
    resume = blocking(Sandbox.resume)
    snapshot = blocking(Sandbox.snapshot)
    fork = blocking_giving(Sandbox.fork, lambda loop, forks: [SandboxSync(loop, inner) for inner in forks])

    def upload_tar(self, archive: Iterable[bytes], path: str) -> int:
        """As `Sandbox.upload_tar`, of an ordinary iterable; what it iterates over may block."""
        return self._loop.run(self._inner.upload_tar(_drawn_from(iter(archive)), path))


async def _drawn_from(items: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item

"""An event loop whose time jumps to the next timer when nothing is ready, and whose network lies in memory.

Invariants: the same program with the same seed does the same things in the same order; no thread, descriptor or second
of real time is used; bytes of a connection arrive in order or not at all. A wait that nothing will ever end raises
:class:`Stuck` instead of hanging. What runs here is asyncio's own code (tasks, streams, locks, time-outs); only the
bottom is replaced: the clock, the selector, the executor (its functions run inline, a moment later), and sockets.

Tasks and connections belong to a *process*, the one of the task that made them (:func:`in_process`): killing one ends
all of its connections and tasks at once, as ``kill -9`` would, and nothing that it then still does reaches anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")
_MAX_IDLE_ROUNDS = 200_000
"""Rounds of the loop within one instant; more is a loop that waits for nothing."""


class Stuck(AssertionError):
    """Everybody waits, and no timer or message will ever wake anyone."""


@contextlib.contextmanager
def in_process(name: str) -> Iterator[None]:
    """What is started in here belongs to the process."""
    token = _PROCESS.set(name)
    try:
        yield
    finally:
        _PROCESS.reset(token)


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._now = 1000.0
        self._rounds = 0
        self._selector = self  # BaseEventLoop asks it how long to wait
        self._clock_resolution = 1e-9
        self._owners: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()
        self.rng = random.Random(seed)
        self.network = Network(self)
        self.set_task_factory(self._make_task)
        self.broken: list[BaseException] = []
        """What callbacks raised, a protocol's ``data_received`` for one: asyncio would log it and go on."""
        self.set_exception_handler(self._noted)

    def _noted(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # asyncio's streams ask the handler of a connection that was cancelled for its exception (Python 3.11)
        if "handle" in context and error is not None and not isinstance(error, asyncio.CancelledError):
            self.broken.append(error)

    # --- time

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("everybody waits for somebody else, for ever")
        if timeout > 0:
            self._now += timeout
            self._rounds = 0
        self._rounds += 1
        if self._rounds > _MAX_IDLE_ROUNDS:
            raise Stuck("the loop turns without end and time stands still")
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass  # call_soon_threadsafe comes from this thread only

    # --- threads

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Like a thread: it takes a moment, and runs even if nobody waits for it any more."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - handed to whoever waits, as an executor does
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self.moment(), run)
        return future

    def moment(self) -> float:
        """A little while, never the same, so that things race."""
        return self.rng.uniform(0.00005, 0.002)

    # --- processes

    def _make_task(self, loop: Any, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=loop, **options)
        context = options.get("context")
        self._owners[task] = _PROCESS.get() if context is None else context.get(_PROCESS, "")
        return task

    def kill(self, process: str) -> None:
        """First its connections, so that no last words of its tasks get out; then its tasks."""
        self.network.kill(process)
        for task in asyncio.all_tasks(self):
            if self._owners.get(task) == process:
                task.cancel()

    # --- sockets

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return await self.network.connect(f"{host}:{port}", protocol_factory)

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return await self.network.connect(str(path), protocol_factory)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return self.network.listen(protocol_factory, str(host), port or self.network.free_port())

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return self.network.listen(protocol_factory, str(path), 0)


class Network:
    """Who listens where, and every connection. A host that is cut off hears and says nothing until it is healed; then
    what was sent meanwhile arrives, unless the connection was given up."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._listening: dict[str, Listener] = {}
        self._ends: set[End] = set()
        self._dead: set[str] = set()
        self._cut: dict[str, asyncio.Future[None]] = {}
        self._port = 20_000

    def free_port(self) -> int:
        self._port += 1
        return self._port

    def listen(self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        address = f"{host}:{port}" if port else host
        if address in self._listening:
            raise OSError(98, f"{address} is in use")
        listener = Listener(self, address, (host, port), protocol_factory, contextvars.copy_context())
        self._listening[address] = listener
        return listener

    def forget(self, listener: Listener) -> None:
        if self._listening.get(listener.address) is listener:
            del self._listening[listener.address]

    async def connect(self, address: str, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> tuple[End, Any]:
        ours = _PROCESS.get()
        await asyncio.sleep(self._loop.moment())
        host = address.partition(":")[0]
        while host in self._cut:
            await asyncio.shield(self._cut[host])
        listener = self._listening.get(address)
        if ours in self._dead or listener is None or listener.process in self._dead:
            raise ConnectionRefusedError(111, f"nobody listens at {address}")
        near, far = End(self, host, ours), End(self, host, listener.process)
        near.peer, far.peer = far, near
        self._ends |= {near, far}
        far.begin(listener.protocol_factory(), listener.context)
        near.begin(protocol_factory(), contextvars.copy_context())
        return near, near.protocol

    def kill(self, process: str) -> None:
        self._dead.add(process)
        for listener in [one for one in self._listening.values() if one.process == process]:
            listener.close()
        for end in [one for one in self._ends if one.process == process]:
            end.vanish()

    def is_dead(self, process: str) -> bool:
        return process in self._dead

    def cut(self, host: str) -> None:
        self._cut.setdefault(host, self._loop.create_future())

    def heal(self, host: str) -> None:
        if (until := self._cut.pop(host, None)) is not None:
            until.set_result(None)
            for end in list(self._ends):
                if end.host == host:
                    end.flush()

    def reaches(self, host: str) -> bool:
        return host not in self._cut

    def schedule(self, at: float, action: Callable[..., None], *args: Any, context: Any = None) -> None:
        self._loop.call_at(at, action, *args, context=context)

    def next_arrival(self, after: float) -> float:
        return max(self._loop.time() + self._loop.moment() / 4, after + 1e-7)

    def drop(self, end: End) -> None:
        self._ends.discard(end)

    def ends(self) -> int:
        return len(self._ends)


class Listener(asyncio.AbstractServer):
    """What ``create_server`` returns."""

    def __init__(
        self,
        network: Network,
        address: str,
        name: tuple[str, int],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        context: contextvars.Context,
    ) -> None:
        self._network = network
        self._name = name
        self.address = address
        self.protocol_factory = protocol_factory
        self.context = context
        self.process = context.get(_PROCESS, "")
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._network.forget(self)

    async def wait_closed(self) -> None:
        pass


class End(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, host: str, process: str) -> None:
        super().__init__()
        self._network = network
        self.host = host
        self.process = process
        self.peer: End = self
        self.protocol: Any = None
        self._context = contextvars.Context()
        self._outbox: list[bytes | None] = []
        self._arrives_at = 0.0
        self._closing = False
        self._ended = False
        self._reading = True
        self._inbox: list[bytes] = []

    def begin(self, protocol: asyncio.BaseProtocol, context: contextvars.Context) -> None:
        self.protocol, self._context = protocol, context
        context.run(protocol.connection_made, self)

    # --- what protocols and streams use

    def write(self, data: Any) -> None:
        if data and not self._closing and not self._network.is_dead(self.process):
            self._send(bytes(data))

    def get_write_buffer_size(self) -> int:
        return sum(len(data or b"") for data in self._outbox)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(None)
            self._network.schedule(self._network.next_arrival(0.0), self._end)

    def abort(self) -> None:
        self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        inbox, self._inbox = self._inbox, []
        for data in inbox:
            self._arrive(data)

    def can_write_eof(self) -> bool:
        return False

    # --- the wire

    def vanish(self) -> None:
        """Its process is dead: it hears no more, and the kernel tells the other side."""
        self._closing = self._ended = True
        self._network.drop(self)
        self._send(None)

    def _send(self, data: bytes | None) -> None:
        self._outbox.append(data)
        if self._network.reaches(self.host):
            self.flush()

    def flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        for data in outbox:
            self._arrives_at = self._network.next_arrival(self._arrives_at)
            self._network.schedule(self._arrives_at, self.peer._arrive, data)

    def _arrive(self, data: bytes | None) -> None:
        if self._ended:
            return
        if data is None:
            self._closing = True
            self._end()
        elif not self._reading:
            self._inbox.append(data)
        else:
            self._context.run(self.protocol.data_received, data)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._network.drop(self)
            self._context.run(self.protocol.connection_lost, None)


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Run ``main(loop)`` to its end in virtual time. Every other task is ended then, too."""
    loop = VirtualLoop(seed)
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main(loop))
        if loop.broken:
            raise loop.broken[0]
        return result
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            with contextlib.suppress(Stuck):
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

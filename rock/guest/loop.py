"""One thread, one selector: readers, buffered writers, timers, and children to reap.

Chosen by measurement: a reply through asyncio costs about twice what it costs here, and threads pay for each hand-over.
Only ``call_threadsafe`` may be called from another thread.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any


class Timer:
    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Any) -> None:
        self.at = at
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    """``own_signals``: install a SIGCHLD wake-up (main thread only); else children are polled every 5 ms."""

    def __init__(self, own_signals: bool) -> None:
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[Any, Any] = {}
        self._timers: list[Any] = []
        self._children: dict[Any, Any] = {}
        self._soon: list[Any] = []
        self._stopping = False
        self._own_signals = own_signals
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self.add_reader(self._wake_r, self._woken)
        if own_signals:
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    # --- what to wait for ---------------------------------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Any) -> None:
        self._register(fd, 0, callback)

    def remove_reader(self, fd: int) -> None:
        self._register(fd, 0, None)

    def set_writer(self, fd: int, callback: Any) -> None:
        self._register(fd, 1, callback)

    def forget(self, fd: int) -> None:
        """Watch ``fd`` for nothing any more; call it before closing it."""
        self._register(fd, 0, None)
        self._register(fd, 1, None)

    def call_later(self, delay_s: float, callback: Any) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, callback: Any) -> None:
        """``callback(code)`` once the child is reaped; code as in subprocess: negative for a signal."""
        self._children[pid] = callback
        if self._own_signals:  # it may have ended before we asked, and its signal be gone
            self._soon.append(self._reap)

    def call_threadsafe(self, callback: Any) -> None:
        self._soon.append(callback)
        try:
            os.write(self._wake_w, b"x")
        except BlockingIOError:
            pass  # full of wake-ups already

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._stopping = False
        while not self._stopping:
            self.run_once()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        if self._own_signals:
            signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def run_once(self, limit_s: Any = None) -> None:
        for key, mask in self._selector.select(self._wait_s(limit_s)):
            callbacks = self._callbacks.get(key.fd)
            if callbacks and mask & selectors.EVENT_READ and callbacks[0]:
                callbacks[0]()
            callbacks = self._callbacks.get(key.fd)  # the reader may have closed it
            if callbacks and mask & selectors.EVENT_WRITE and callbacks[1]:
                callbacks[1]()
        if self._soon:
            soon, self._soon = self._soon, []
            for callback in soon:
                callback()
        if self._children and not self._own_signals:
            self._reap()
        self._run_timers()

    def _wait_s(self, limit_s: Any) -> Any:
        waits = [] if limit_s is None else [limit_s]
        if self._soon:
            return 0
        if self._timers:
            waits.append(max(0.0, self._timers[0].at - time.monotonic()))
        if self._children and not self._own_signals:
            waits.append(0.005)
        return min(waits) if waits else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and (self._timers[0].at <= now or self._timers[0].callback is None):
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()

    def _register(self, fd: int, index: int, callback: Any) -> None:
        callbacks = self._callbacks.get(fd)
        known = callbacks is not None
        if callbacks is None:
            callbacks = [None, None]
        callbacks[index] = callback
        mask = (selectors.EVENT_READ if callbacks[0] else 0) | (selectors.EVENT_WRITE if callbacks[1] else 0)
        if mask == 0:
            if known:
                del self._callbacks[fd]
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, mask)
        else:
            self._callbacks[fd] = callbacks
            self._selector.register(fd, mask)

    def _woken(self) -> None:
        try:
            os.read(self._wake_r, 4096)
        except BlockingIOError:
            pass
        if self._own_signals:
            self._reap()

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                found, status = pid, 0
            if found == pid:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self._children.pop(pid)(code)
        if self._own_signals and os.getpid() == 1:
            _reap_strangers()


def _reap_strangers() -> None:
    """As process 1 we inherit every orphan of the sandbox; without this they would stay as zombies."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != "1":
            try:
                with open("/proc/%s/stat" % entry, "rb") as stat:
                    state, parent = stat.read().rpartition(b")")[2].split()[:2]
                if state == b"Z" and parent == b"1":
                    os.waitpid(int(entry), os.WNOHANG)
            except (OSError, ValueError):
                continue


class Writer:
    """Writes to a non-blocking descriptor at once where it can, and the rest when there is room."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._pending = bytearray()
        self._closed = False

    @property
    def pending_bytes(self) -> int:
        return len(self._pending)

    def write(self, data: bytes) -> None:
        if self._closed:
            return
        if self._pending:
            self._pending += data
            return
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._closed = True  # the reader's side will see the end and clean up
            return
        if sent < len(data):
            self._pending += memoryview(data)[sent:]
            self._loop.set_writer(self._fd, self._flush)

    def close(self) -> None:
        self._closed = True
        self._pending.clear()

    def _flush(self) -> None:
        try:
            sent = os.write(self._fd, memoryview(self._pending)[: 1 << 20])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            sent = 0
        del self._pending[:sent]
        if not self._pending:
            self._loop.set_writer(self._fd, None)

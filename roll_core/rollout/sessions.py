"""Where episodes are played: in the platform's sandboxes, or in processes of this machine.

The trainer sees only the two Protocols here. :class:`SdkSessions` is the real thing. :class:`LocalSessions` plays the
same environment classes without the platform, for tuning a recipe offline and for tests: no isolation, no recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rock.domain import errors
from roll_core.engines.settling import Mailbox

if TYPE_CHECKING:
    from rock.sdk import EnvView, Rock

log = logging.getLogger(__name__)

_ASKED_AT_ONCE = 256
"""What one request may name."""

StepTuple = tuple[Any, float, bool, bool, dict[str, Any]]


class Session(Protocol):
    """One environment held for one episode; the shape of ``rock.sdk.EnvSession``."""

    @property
    def sandbox_id(self) -> str: ...

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...

    async def step(self, action: Any) -> StepTuple: ...

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any: ...


def recoveries_of(session: Session) -> int:
    """How often its sandbox was lost and replaced so far. A session that cannot replace it need not say so."""
    return len(getattr(session, "recoveries", ()))


class SessionFactory(Protocol):
    def open(self, task: str, seed: int) -> AbstractAsyncContextManager[Session]:
        """A fresh environment; leaving the context gives it back. Raises errors of ``rock.domain.errors``."""
        ...

    async def tasks(self, split: str) -> Sequence[str]: ...

    async def digest(self) -> str:
        """Names the content of the environment: equal digests give equal episodes."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class LooksAhead(Protocol):
    """A factory that may prepare for what it is asked for next."""

    def coming(self, tasks: Sequence[str]) -> None:
        """These tasks are opened soon. Never waits and never fails."""
        ...


def look_ahead(sessions: SessionFactory, tasks: Sequence[str]) -> None:
    if isinstance(sessions, LooksAhead):
        sessions.coming(tasks)


def lease_time_s(episode_s: float, env: EnvView, episodes_per_sandbox: int) -> float:
    """How long a lease for episodes of at most ``episode_s`` is needed: the platform takes it back then, though the
    trainer may still beat for it, and refuses at once what is less than the environment declares.

    0, no limit, where a sandbox is kept for several episodes: it waits between them for as long as the learner takes.
    """
    if episodes_per_sandbox > 1:
        return 0.0
    return max(episode_s, env.episode_s) + env.scoring_s + env.cleanup_s


class SdkSessions:
    """Leases from a running platform. A sandbox that is lost is replaced under the episode, where the environment can
    be replayed; a reset that is unusually slow is raced by a second sandbox."""

    def __init__(
        self,
        rock: Rock,
        env: str,
        *,
        run_id: str,
        wait_s: float,
        ttl_s: float,
        reset_s: float,
        step_s: float,
        recovery_s: float,
        needs_s: float = 0.0,
    ) -> None:
        """``needs_s``: how long a lease is held at most, see :func:`lease_time_s`; 0 for no limit."""
        self._rock = rock
        self._env = env
        self._run_id = run_id
        self._wait_s = wait_s
        self._ttl_s = ttl_s
        self._reset_s = reset_s
        self._step_s = step_s
        self._recovery_s = recovery_s
        self._needs_s = needs_s
        self._coming: tuple[str, ...] = ()
        self._asking: asyncio.Task[None] | None = None
        self._own_images: bool | None = None
        """Whether tasks of the environment, or its judge's, have images of their own; None until the first question."""

    def open(self, task: str, seed: int) -> AbstractAsyncContextManager[Session]:
        return self._rock.env(
            self._env,
            task=task,
            seed=seed,
            run_id=self._run_id,
            wait_s=self._wait_s,
            ttl_s=self._ttl_s,
            needs_s=self._needs_s,
            reset_timeout_s=self._reset_s,
            step_timeout_s=self._step_s,
            recovery_timeout_s=self._recovery_s,
            hedge_reset="auto",
        )

    async def tasks(self, split: str) -> Sequence[str]:
        return (await self._rock.tasks(self._env, split)).tasks

    async def digest(self) -> str:
        for env in await self._rock.envs():
            if env.name == self._env:
                return env.bundle_digest
        raise errors.NotFound(
            f"the platform knows no environment {self._env!r}", hint="`rock env list` shows those it knows"
        )

    def coming(self, tasks: Sequence[str]) -> None:
        """The platform makes their images meanwhile, where they have images of their own. One request at a time; what
        comes while it is under way is left to the next one."""
        if self._own_images is not False and (self._asking is None or self._asking.done()):
            new = [task for task in tasks if task not in self._coming][:_ASKED_AT_ONCE]
            if new:
                self._coming = tuple(tasks)
                self._asking = asyncio.get_running_loop().create_task(self._prefetch(new), name="prefetch")

    async def _prefetch(self, tasks: Sequence[str]) -> None:
        try:
            if self._own_images is None:
                self._own_images = await self._have_images()
            if self._own_images:
                await self._rock.prefetch(self._env, tasks)
        except errors.RockError as error:  # a lease will fetch them, or say what is wrong
            log.info("images of %d tasks were not asked for ahead: %s", len(tasks), error)

    async def _have_images(self) -> bool:
        envs = {env.name: env for env in await self._rock.envs()}
        played = envs.get(self._env)
        judge = envs.get(played.judge) if played is not None else None
        return any(env.task_images for env in (played, judge) if env is not None)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])


# --- without the platform --------------------------------------------------------------------------------------------

_instances: dict[int, Any] = {}  # environments living in this worker process (or, without workers, in this process)


def _prepare_worker(environ: Mapping[str, str], python_path: Sequence[str]) -> None:
    os.environ.update(environ)
    sys.path[:0] = [p for p in python_path if p not in sys.path]


def _invoke(entry: str, key: int, method: str, args: tuple[Any, ...]) -> Any:
    if method == "forget":
        env = _instances.pop(key, None)
        if env is not None:
            env.close()
        return None
    if key not in _instances:
        module, _, name = entry.partition(":")
        _instances[key] = getattr(importlib.import_module(module), name)()
    return getattr(_instances[key], method)(*args)


class LocalSessions:
    """Environments in ``workers`` processes of this machine; 0 plays them in a thread of this process.

    ``bundle`` is a directory with ``tasks.json`` and ``data/``, as an environment's ``prepare`` writes it.
    """

    def __init__(
        self,
        entry: str,
        *,
        bundle: Path | None = None,
        tasks: Mapping[str, Sequence[str]] | None = None,
        workers: int = 0,
    ) -> None:
        self._entry = entry
        self._tasks = dict(tasks or {})
        if bundle is not None and not tasks:
            self._tasks = json.loads((bundle / "tasks.json").read_text())
        self._bundle = bundle
        environ = {"ROCK_ENV_DATA": str(bundle / "data")} if bundle else {}
        paths = [str(bundle / d) for d in ("src", "site") if (bundle / d).is_dir()] if bundle else []
        self._workers = _workers(workers, environ, [*paths, os.getcwd()])
        self._load = [0] * len(self._workers)
        self._keys = count()

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[Session]:
        worker = self._load.index(min(self._load))
        self._load[worker] += 1
        session = _LocalSession(self._workers[worker], self._entry, next(self._keys), task, seed)
        try:
            yield session
        finally:
            self._load[worker] -= 1
            with contextlib.suppress(RuntimeError):  # the worker may be shut down already
                self._workers[worker].submit(_invoke, self._entry, session.key, "forget", ())

    async def tasks(self, split: str) -> Sequence[str]:
        if split not in self._tasks:
            raise errors.NotFound(
                f"no split {split!r}; there are {sorted(self._tasks)}", hint="set env.train_split or env.eval_split"
            )
        return self._tasks[split]

    async def digest(self) -> str:
        return f"local-{self._bundle.resolve().name}" if self._bundle else "local"

    async def close(self) -> None:
        """What still runs is given up: an environment that hangs would hold up the end of the trainer's process."""
        for worker in self._workers:
            worker.shutdown()


class _Worker(Protocol):
    def submit(self, fn: Callable[..., Any], /, *args: Any) -> object:
        """Nobody waits for it. Raises RuntimeError after the shutdown."""
        ...

    async def call(self, fn: Callable[..., Any], /, *args: Any) -> Any: ...

    def shutdown(self) -> None: ...


_Waiter = tuple[Mailbox, asyncio.Future[Any]]
_Job = tuple[_Waiter | None, Callable[..., Any], tuple[Any, ...]]


class _DaemonThread:
    """One thread that plays; the process may end while it works.

    Not an executor: its futures are locks, and each answer would wake the event loop by itself.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._shut = False
        self._mailbox: Mailbox | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        self._put(None, fn, args)

    async def call(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        self._put((self._mailbox, future), fn, args)
        return await future

    def _put(self, waiter: _Waiter | None, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new calls after shutdown")
        self._jobs.put((waiter, fn, args))

    def shutdown(self) -> None:
        self._shut = True
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            waiter, fn, args = job
            if waiter is not None and waiter[1].cancelled():
                continue
            try:
                outcome = fn(*args)
            except StopIteration as error:  # the one exception that no future takes
                outcome = RuntimeError(repr(error))
            except BaseException as error:  # noqa: BLE001 - handed over to whoever waits
                outcome = error
            if waiter is not None:
                mailbox, future = waiter
                mailbox.put(future, outcome)


class _Process:
    """One process that plays: an environment's object lives in the process that made it."""

    def __init__(self, environ: Mapping[str, str], python_path: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_prepare_worker, initargs=(environ, python_path)
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> object:
        return self._pool.submit(fn, *args)

    async def call(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, fn, *args)

    def shutdown(self) -> None:
        """The interpreter joins a pool's processes before it exits, for ever if one hangs: they are killed."""
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _workers(count: int, environ: Mapping[str, str], python_path: Sequence[str]) -> Sequence[_Worker]:
    if count == 0:
        _prepare_worker(environ, python_path)
        return [_DaemonThread("local-env")]
    return [_Process(environ, python_path) for _ in range(count)]


class _LocalSession:
    def __init__(self, worker: _Worker, entry: str, key: int, task: str, seed: int) -> None:
        self._worker = worker
        self._entry = entry
        self.key = key
        self._task = task
        self._seed = seed

    @property
    def sandbox_id(self) -> str:
        return f"local-{self.key}"

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        chosen_task, chosen_seed = self._task if task is None else task, self._seed if seed is None else seed
        observation, info = await self._call("reset", chosen_task, chosen_seed, options or {})
        return observation, info

    async def step(self, action: Any) -> StepTuple:
        observation, reward, terminated, truncated, info = await self._call("step", action)
        return observation, float(reward), terminated, truncated, info

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any:
        async with asyncio.timeout(timeout_s):
            return await self._call("call", method, args)

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._worker.call(_invoke, self._entry, self.key, method, args)
        except BrokenExecutor as error:
            raise errors.SandboxLost(f"the process that played {self._entry} has died") from error
        except errors.RockError:
            raise
        except Exception as error:  # whatever an environment raises is its own fault
            raise errors.EnvironmentError(f"{self._entry}.{method} raised {error!r}") from error

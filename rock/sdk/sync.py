"""The same client for code without an event loop: `Rock` on a loop in a thread of its own.

Nothing is implemented here twice: each method hands its arguments to the asynchronous one and waits
(`rock.sdk._blocking`). Ctrl-C cancels what is under way, so leases are released all the same.
"""

from __future__ import annotations

from typing import Self

from rock.sdk._blocking import Facade, blocking, blocking_giving, giving, iterating
from rock.sdk._loop_thread import _LoopThread
from rock.sdk.client import DEFAULT_TIMEOUT_S, Rock
from rock.sdk.session import EnvSession
from rock.sdk.sync_sandbox import SandboxSync
from rock.wire.models import LeaseView, RecoveryReport


class EnvSessionSync(Facade[EnvSession]):
    """`EnvSession` without ``await``; its methods' texts hold here too."""

    def __enter__(self) -> Self:
        self.open()
        return self

    @property
    def task(self) -> str:
        return self._inner.task

    @property
    def seed(self) -> int:
        return self._inner.seed

    @property
    def recoveries(self) -> list[RecoveryReport]:
        return self._inner.recoveries

    @property
    def lease(self) -> LeaseView:
        return self._inner.lease

    @property
    def sandbox_id(self) -> str:
        return self._inner.sandbox_id

    open = blocking(EnvSession.open)
    close = blocking(EnvSession.close)
    fork = blocking_giving(EnvSession.fork, lambda loop, forks: [EnvSessionSync(loop, inner) for inner in forks])
    reset = blocking(EnvSession.reset)
    step = blocking(EnvSession.step)
    call = blocking(EnvSession.call)


class RockSync(Facade[Rock]):
    """`Rock` without ``await``: the same methods, arguments and errors; see there. One object may serve many threads.

    >>> from rock.sdk import RockSync
    >>> with RockSync() as rock, rock.env("alfworld", seed=1) as env:   # doctest: +SKIP
    ...     observation, info = env.reset()
    ...     observation, reward, terminated, truncated, info = env.step("look")
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_s: float | None = None,
    ) -> None:
        inner = Rock(url, key, timeout_s=timeout_s, retry_s=retry_s)  # which may refuse, before there is a thread
        super().__init__(_LoopThread(), inner)

    @property
    def url(self) -> str:
        return self._inner.url

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent; the object cannot be used afterwards."""
        if not self._loop.stopped:
            self._loop.run(self._inner.close())
            self._loop.stop()

    env = giving(Rock.env, EnvSessionSync)
    sandbox = giving(Rock.sandbox, SandboxSync)

    health = blocking(Rock.health)
    nodes = blocking(Rock.nodes)
    cordon = blocking(Rock.cordon)
    uncordon = blocking(Rock.uncordon)
    drain = blocking(Rock.drain)
    sandboxes = blocking(Rock.sandboxes)
    sandbox_view = blocking(Rock.sandbox_view)
    sandbox_stats = blocking(Rock.sandbox_stats)
    remove_sandbox = blocking(Rock.remove_sandbox)
    restart_sandbox = blocking(Rock.restart_sandbox)
    logs = blocking(Rock.logs)
    exec = blocking(Rock.exec)

    leases = blocking(Rock.leases)
    create_lease = blocking(Rock.create_lease)
    release_lease = blocking(Rock.release_lease)

    envs = blocking(Rock.envs)
    env_view = blocking(Rock.env_view)
    tasks = blocking(Rock.tasks)
    prefetch = blocking(Rock.prefetch)

    quarantine = blocking(Rock.quarantine)
    clear_quarantine = blocking(Rock.clear_quarantine)
    report_task_failure = blocking(Rock.report_task_failure)

    events = blocking(Rock.events)
    follow = iterating(Rock.follow)

    create_run = blocking(Rock.create_run)
    update_run = blocking(Rock.update_run)
    runs = blocking(Rock.runs)
    run = blocking(Rock.run)
    report_metrics = blocking(Rock.report_metrics)
    metrics = blocking(Rock.metrics)
    report_episodes = blocking(Rock.report_episodes)
    episodes = blocking(Rock.episodes)
    episode = blocking(Rock.episode)
    latencies = blocking(Rock.latencies)
    ledger = blocking(Rock.ledger)
    report_rhythms = blocking(Rock.report_rhythms)
    rhythms = blocking(Rock.rhythms)
    rhythm = blocking(Rock.rhythm)

    create_key = blocking(Rock.create_key)
    keys = blocking(Rock.keys)
    revoke_key = blocking(Rock.revoke_key)

    shutdown = blocking(Rock.shutdown)

"""The same client for code without an event loop: thin calls of `Rock` on a loop in a thread of its own.

Nothing is implemented here twice: each method hands its arguments to the asynchronous one and waits. A test compares
the two signature by signature. Ctrl-C cancels what is under way, so leases are released all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from rock.domain.outcome import LedgerState
from rock.domain.sandbox import SandboxState
from rock.sdk._loop_thread import _LoopThread
from rock.sdk.client import DEFAULT_TIMEOUT_S, Rock
from rock.sdk.forwarding import Forward
from rock.sdk.hedging import Hedge
from rock.sdk.jobs import Job
from rock.sdk.sandbox import Sandbox, Shell
from rock.sdk.session import EnvSession, Reset, Step
from rock.sdk.sync_sandbox import ForwardSync, JobSync, SandboxSync, ShellSync
from rock.wire.models import (
    EnvView,
    EpisodePage,
    EpisodeRecord,
    EventView,
    ExecRequest,
    ExecResult,
    Health,
    KeyView,
    LatencyView,
    LeaseRequest,
    LeaseView,
    LedgerView,
    Limits,
    LogView,
    MetricPoint,
    NodeView,
    QuarantineView,
    Recovery,
    RecoveryReport,
    RestartView,
    RunCreate,
    RunUpdate,
    RunView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
    Scope,
    TaskList,
)
from rock.wire.rhythm import EpisodeRhythm, RhythmView


class EnvSessionSync:
    """`EnvSession` without ``await``; its methods' texts hold here too."""

    def __init__(self, loop: _LoopThread, inner: EnvSession) -> None:
        self._loop = loop
        self._inner = inner

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def open(self) -> None:
        self._loop.run(self._inner.open())

    def close(self) -> None:
        self._loop.run(self._inner.close())

    def fork(self, count: int = 1) -> list[EnvSessionSync]:
        return [EnvSessionSync(self._loop, inner) for inner in self._loop.run(self._inner.fork(count))]

    def reset(
        self,
        task: str | None = None,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Reset:
        return self._loop.run(self._inner.reset(task, seed, options, timeout_s=timeout_s))

    def step(self, action: Any, *, timeout_s: float | None = None) -> Step:
        return self._loop.run(self._inner.step(action, timeout_s=timeout_s))

    def call(self, method: str, /, *, timeout_s: float | None = None, recover: bool = True, **args: Any) -> Any:
        return self._loop.run(self._inner.call(method, timeout_s=timeout_s, recover=recover, **args))


class RockSync:
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
        self._inner = Rock(url, key, timeout_s=timeout_s, retry_s=retry_s)
        self._loop = _LoopThread()

    @property
    def url(self) -> str:
        return self._inner.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent; the object cannot be used afterwards."""
        if not self._loop.stopped:
            self._loop.run(self._inner.close())
            self._loop.stop()

    def env(
        self,
        name: str,
        *,
        task: str = "",
        seed: int = 0,
        run_id: str = "",
        options: Mapping[str, Any] | None = None,
        wait_s: float = 60.0,
        ttl_s: float = 60.0,
        needs_s: float = 0.0,
        reset_timeout_s: float = 60.0,
        step_timeout_s: float = 30.0,
        recovery_timeout_s: float = 60.0,
        recovery: Recovery | None = None,
        snapshot_every: int | None = None,
        hedge_reset: Hedge = False,
        labels: Mapping[str, str] | None = None,
    ) -> EnvSessionSync:
        return EnvSessionSync(
            self._loop,
            self._inner.env(
                name,
                task=task,
                seed=seed,
                run_id=run_id,
                options=options,
                wait_s=wait_s,
                ttl_s=ttl_s,
                needs_s=needs_s,
                reset_timeout_s=reset_timeout_s,
                step_timeout_s=step_timeout_s,
                recovery_timeout_s=recovery_timeout_s,
                recovery=recovery,
                snapshot_every=snapshot_every,
                hedge_reset=hedge_reset,
                labels=labels,
            ),
        )

    def sandbox(
        self,
        image: str = "",
        *,
        spec: SandboxSpec | None = None,
        limits: Limits | None = None,
        environ: Mapping[str, str] | None = None,
        run_id: str = "",
        wait_s: float = 60.0,
        ttl_s: float = 60.0,
        needs_s: float = 0.0,
        labels: Mapping[str, str] | None = None,
    ) -> SandboxSync:
        return SandboxSync(
            self._loop,
            self._inner.sandbox(
                image,
                spec=spec,
                limits=limits,
                environ=environ,
                run_id=run_id,
                wait_s=wait_s,
                ttl_s=ttl_s,
                needs_s=needs_s,
                labels=labels,
            ),
        )

    def health(self) -> Health:
        return self._loop.run(self._inner.health())

    def nodes(self) -> list[NodeView]:
        return self._loop.run(self._inner.nodes())

    def cordon(self, name: str, reason: str = "") -> NodeView:
        return self._loop.run(self._inner.cordon(name, reason))

    def uncordon(self, name: str) -> NodeView:
        return self._loop.run(self._inner.uncordon(name))

    def drain(self, name: str, reason: str = "") -> NodeView:
        return self._loop.run(self._inner.drain(name, reason))

    def sandboxes(self, *, state: SandboxState | str | None = None, run_id: str | None = None) -> list[SandboxView]:
        return self._loop.run(self._inner.sandboxes(state=state, run_id=run_id))

    def sandbox_view(self, sandbox_id: str) -> SandboxView:
        return self._loop.run(self._inner.sandbox_view(sandbox_id))

    def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        return self._loop.run(self._inner.sandbox_stats(sandbox_id))

    def remove_sandbox(self, sandbox_id: str) -> None:
        self._loop.run(self._inner.remove_sandbox(sandbox_id))

    def restart_sandbox(
        self, sandbox_id: str, *, force: bool = False, reason: str = "", wait_s: float = 0.0
    ) -> RestartView:
        return self._loop.run(self._inner.restart_sandbox(sandbox_id, force=force, reason=reason, wait_s=wait_s))

    def logs(self, sandbox_id: str, *, lines: int = 200) -> LogView:
        return self._loop.run(self._inner.logs(sandbox_id, lines=lines))

    def exec(self, sandbox_id: str, request: ExecRequest | Sequence[str]) -> ExecResult:
        return self._loop.run(self._inner.exec(sandbox_id, request))

    def leases(self) -> list[LeaseView]:
        return self._loop.run(self._inner.leases())

    def create_lease(self, request: LeaseRequest) -> LeaseView:
        return self._loop.run(self._inner.create_lease(request))

    def release_lease(self, lease_id: str) -> None:
        self._loop.run(self._inner.release_lease(lease_id))

    def envs(self) -> list[EnvView]:
        return self._loop.run(self._inner.envs())

    def env_view(self, name: str) -> EnvView:
        return self._loop.run(self._inner.env_view(name))

    def tasks(self, env: str, split: str = "train") -> TaskList:
        return self._loop.run(self._inner.tasks(env, split))

    def quarantine(self) -> list[QuarantineView]:
        return self._loop.run(self._inner.quarantine())

    def clear_quarantine(self, subject: str) -> None:
        self._loop.run(self._inner.clear_quarantine(subject))

    def report_task_failure(self, env: str, task: str, reason: str, *, elapsed_s: float = 0.0) -> QuarantineView | None:
        return self._loop.run(self._inner.report_task_failure(env, task, reason, elapsed_s=elapsed_s))

    def events(
        self, *, limit: int = 100, kind: str | None = None, run_id: str | None = None, after: int | None = None
    ) -> list[EventView]:
        return self._loop.run(self._inner.events(limit=limit, kind=kind, run_id=run_id, after=after))

    def follow(self, kinds: Sequence[str] = (), *, run_id: str = "", after: int | None = None) -> Iterator[EventView]:
        following = self._inner.follow(kinds, run_id=run_id, after=after)

        async def take() -> EventView | None:
            return await anext(following, None)

        while (event := self._loop.run(take())) is not None:
            yield event

    def create_run(self, run: RunCreate) -> RunView:
        return self._loop.run(self._inner.create_run(run))

    def update_run(self, run_id: str, update: RunUpdate) -> RunView:
        return self._loop.run(self._inner.update_run(run_id, update))

    def runs(self) -> list[RunView]:
        return self._loop.run(self._inner.runs())

    def run(self, run_id: str) -> RunView:
        return self._loop.run(self._inner.run(run_id))

    def report_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        self._loop.run(self._inner.report_metrics(run_id, points))

    def metrics(self, run_id: str, *, since_step: int = 0) -> list[MetricPoint]:
        return self._loop.run(self._inner.metrics(run_id, since_step=since_step))

    def report_episodes(self, run_id: str, episodes: Sequence[EpisodeRecord]) -> None:
        self._loop.run(self._inner.report_episodes(run_id, episodes))

    def episodes(
        self,
        run_id: str,
        *,
        phase: str | None = None,
        outcome: str | None = None,
        ledger: LedgerState | str | None = None,
        success: bool | None = None,
        reward_min: float | None = None,
        reward_max: float | None = None,
        group: str | None = None,
        task: str | None = None,
        text: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> EpisodePage:
        return self._loop.run(
            self._inner.episodes(
                run_id,
                phase=phase,
                outcome=outcome,
                ledger=ledger,
                success=success,
                reward_min=reward_min,
                reward_max=reward_max,
                group=group,
                task=task,
                text=text,
                limit=limit,
                offset=offset,
            )
        )

    def episode(self, run_id: str, episode_id: str) -> EpisodeRecord:
        return self._loop.run(self._inner.episode(run_id, episode_id))

    def latencies(self, run_id: str) -> list[LatencyView]:
        return self._loop.run(self._inner.latencies(run_id))

    def ledger(self, run_id: str) -> LedgerView:
        return self._loop.run(self._inner.ledger(run_id))

    def report_rhythms(self, run_id: str, rhythms: Sequence[EpisodeRhythm]) -> None:
        self._loop.run(self._inner.report_rhythms(run_id, rhythms))

    def rhythms(self, run_id: str) -> list[RhythmView]:
        return self._loop.run(self._inner.rhythms(run_id))

    def rhythm(self, run_id: str, episode_id: str) -> EpisodeRhythm:
        return self._loop.run(self._inner.rhythm(run_id, episode_id))

    def create_key(self, name: str, *, scope: Scope = "run", max_leases: int = 0, max_requests: int = 0) -> KeyView:
        return self._loop.run(
            self._inner.create_key(name, scope=scope, max_leases=max_leases, max_requests=max_requests)
        )

    def keys(self) -> list[KeyView]:
        return self._loop.run(self._inner.keys())

    def revoke_key(self, key_id: str) -> None:
        self._loop.run(self._inner.revoke_key(key_id))

    def shutdown(self) -> None:
        self._loop.run(self._inner.shutdown())


def _inherit_texts() -> None:
    """Give the methods the docstrings of those they call, for ``help()`` and editors."""
    pairs = [(RockSync, Rock), (EnvSessionSync, EnvSession), (SandboxSync, Sandbox)]
    pairs += [(ShellSync, Shell), (JobSync, Job), (ForwardSync, Forward)]
    for sync, original in pairs:
        for name, method in vars(sync).items():
            if callable(method) and not name.startswith("_") and method.__doc__ is None:
                method.__doc__ = getattr(original, name).__doc__


_inherit_texts()

"""``/metrics`` for Prometheus: what is, is read when asked; what happens, is counted where it happens.

Every family is described in docs/platform.md; a test compares the two. Answers whatever the database does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rock.api.rules import VERSION
from rock.control.control import Control
from rock.control.measures import REQUEST_BUCKETS_S, Counters, Histogram
from rock.domain.errors import RockError
from rock.domain.nodes import NodeStanding
from rock.domain.sandbox import SandboxState
from rock.wire.models import LedgerView, NodeView, QuarantineView, RunView

_RUNS_FRESH_S = 15.0
_RUNS_SHOWN = 10
_NAMES_SHOWN = 256
"""Of one run: about twice what the trainer reports. Each is a series that Prometheus keeps for weeks."""
_STEPS_BACK = 8
"""What is not measured at every step, evaluation above all, is shown for so many."""
_AT_WORK = frozenset({"starting", "warm_start", "evaluating", "training"})


class RequestMeasures:
    """How long requests take, by route and class of status; filled by the guard."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, str], Histogram] = {}
        self.under_way = 0

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        """``path``: as the route is written; empty for what is no route."""
        route = path.removeprefix(VERSION) or "none"
        key = (method, route, f"{status // 100}xx")
        histogram = self.seconds.get(key)
        if histogram is None:
            histogram = self.seconds[key] = Histogram(REQUEST_BUCKETS_S)
        histogram.observe(seconds)


class _Snapshot:
    """A collector over what was just read: the library wants one, and collecting must not wait."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


@dataclass(frozen=True, slots=True)
class _Running:
    """A run at work."""

    view: RunView
    ledger: LedgerView
    numbers: Mapping[str, float]


class MetricsPage:
    """``/metrics`` of one application."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.requests = RequestMeasures()
        self._runs: tuple[float, list[_Running]] = (float("-inf"), [])

    async def response(self) -> Response:
        control = self._control
        registry = CollectorRegistry(auto_describe=False)
        running = await self._running()
        metrics = [
            *_node_metrics(await control.node_views()),
            *_lease_metrics(control.leases.counters, len(control.leases)),
            *_storage_metrics(control),
            *_ledger_metrics([run.ledger for run in running]),
            *_run_metrics(running),
            _quarantine_metric(await control.quarantine.views()),
            *self._request_metrics(),
        ]
        registry.register(_Snapshot(metrics))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def _running(self) -> list[_Running]:
        """The newest runs at work. Counting episodes costs a scan of an index, so not at every scrape."""
        now = time.monotonic()
        if now - self._runs[0] >= _RUNS_FRESH_S:
            runs = self._control.runs
            try:
                at_work = [run for run in await runs.runs() if run.status in _AT_WORK][:_RUNS_SHOWN]
                found = [
                    _Running(run, await runs.ledger(run.id), await runs.newest_metrics(run.id, _STEPS_BACK))
                    for run in at_work
                ]
            except RockError:  # storage's own metrics say so
                found = []
            self._runs = (now, found)
        return self._runs[1]

    def _request_metrics(self) -> list[Metric]:
        seconds = HistogramMetricFamily(
            "rock_request_seconds", "Requests to the API.", labels=["method", "route", "status"]
        )
        for labels, histogram in self.requests.seconds.items():
            seconds.add_metric(list(labels), histogram.buckets(), histogram.sum)
        following = GaugeMetricFamily(
            "rock_event_followers", "Clients that follow events.", value=len(self._control.history.followers)
        )
        under_way = GaugeMetricFamily("rock_requests_under_way", "Requests under way.", value=self.requests.under_way)
        return [seconds, under_way, following]


def _node_metrics(nodes: Sequence[NodeView]) -> list[Metric]:
    sandboxes = GaugeMetricFamily("rock_sandboxes", "Sandboxes by state.", labels=["node", "state"])
    healthy = GaugeMetricFamily("rock_node_healthy", "1 if the node's runtime answers.", labels=["node", "runtime"])
    standing = GaugeMetricFamily("rock_node_standing", "1 for what control makes of it.", labels=["node", "standing"])
    capacity = GaugeMetricFamily("rock_node_capacity", "Sandboxes the node may hold.", labels=["node"])
    claims = CounterMetricFamily("rock_claims", "Sandboxes handed out.", labels=["node"])
    failures = CounterMetricFamily("rock_sandbox_failures", "Sandboxes that failed.", labels=["node"])
    pools = GaugeMetricFamily("rock_pool", "Warm pools.", labels=["node", "image", "digest", "what"])
    for node in nodes:
        for state in SandboxState:
            sandboxes.add_metric([node.name, state.value], node.sandboxes.get(state, 0))
        for each in NodeStanding:
            standing.add_metric([node.name, each.value], float(node.standing is each))
        healthy.add_metric([node.name, node.runtime], float(node.healthy))
        capacity.add_metric([node.name], node.capacity)
        claims.add_metric([node.name], node.claims)
        failures.add_metric([node.name], node.failures)
        for pool in node.pools:
            for what in ("target", "level", "ready", "starting", "waiting"):
                pools.add_metric([node.name, pool.image, pool.digest, what], getattr(pool, what))
    return [sandboxes, healthy, standing, capacity, claims, failures, pools]


def _lease_metrics(counters: Counters, living: int) -> list[Metric]:
    leases = GaugeMetricFamily("rock_leases", "Living leases.", value=living)
    ended = CounterMetricFamily("rock_leases_ended", "Leases that ended, by how.", labels=["how"])
    ended.add_metric(["released"], counters.released)
    ended.add_metric(["expired"], counters.expired)
    ended.add_metric(["lost"], counters.lost)
    granted = CounterMetricFamily("rock_leases_granted", "Leases granted.", value=counters.granted)
    refused = CounterMetricFamily("rock_leases_refused", "Lease requests that failed.", value=counters.refused)
    recovered = CounterMetricFamily("rock_recoveries", "Lost sandboxes that were replaced, by cause.", labels=["cause"])
    for cause, count in counters.by_cause.items():
        recovered.add_metric([cause], count)
    claim = HistogramMetricFamily("rock_claim_seconds", "From the request for a lease to its sandbox.")
    claim.add_metric([], counters.claim_seconds.buckets(), counters.claim_seconds.sum)
    return [leases, granted, ended, refused, recovered, claim]


def _storage_metrics(control: Control) -> list[Metric]:
    history = control.history
    return [
        GaugeMetricFamily("rock_database_up", "1 if it could be written last time.", value=float(not control.trouble)),
        GaugeMetricFamily("rock_history_waiting", "Events and views that wait to be stored.", value=len(history)),
        CounterMetricFamily("rock_events_dropped", "Events that were never stored.", value=history.dropped),
    ]


def _ledger_metrics(ledgers: Sequence[LedgerView]) -> list[Metric]:
    conserved = GaugeMetricFamily("rock_ledger_conserved", "1 if every episode is booked once.", labels=["run"])
    episodes = GaugeMetricFamily("rock_ledger_episodes", "Episodes of runs at work.", labels=["run", "account"])
    for ledger in ledgers:
        conserved.add_metric([ledger.run_id], float(ledger.conserved))
        for account, count in ledger.accounts.items():
            episodes.add_metric([ledger.run_id, account.value], count)
    return [conserved, episodes]


def _run_metrics(running: Sequence[_Running]) -> list[Metric]:
    step = GaugeMetricFamily("rock_run_step", "Training steps of runs at work.", labels=["run"])
    numbers = GaugeMetricFamily("rock_run_metric", "Newest metrics of runs at work.", labels=["run", "name"])
    for run in running:
        step.add_metric([run.view.id], run.view.step)
        for name in sorted(run.numbers)[:_NAMES_SHOWN]:
            numbers.add_metric([run.view.id, name], run.numbers[name])
    return [step, numbers]


def _quarantine_metric(views: Sequence[QuarantineView]) -> Metric:
    quarantine = GaugeMetricFamily(
        "rock_quarantine", "What is refused because it fails again and again.", labels=["kind"]
    )
    counts = Counter(view.kind for view in views)
    for kind in ("image", "task"):
        quarantine.add_metric([kind], counts[kind])
    return quarantine

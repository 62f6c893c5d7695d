"""``/metrics`` for Prometheus: gauges are read from the fleet when asked, so nothing has to be kept in step."""

from __future__ import annotations

from fastapi import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rock.control.control import Control
from rock.control.leases import Counters
from rock.domain.sandbox import SandboxState
from rock.wire.models import NodeView


class _Snapshot:
    """A collector over what was just read: the library wants one, and collecting must not wait."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


async def metrics_response(control: Control) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    metrics = [
        *_node_metrics(await control.node_views()),
        *_lease_metrics(control.leases.counters, len(control.leases)),
    ]
    registry.register(_Snapshot(metrics))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _node_metrics(nodes: list[NodeView]) -> list[Metric]:
    sandboxes = GaugeMetricFamily("rock_sandboxes", "Sandboxes by state.", labels=["node", "state"])
    healthy = GaugeMetricFamily("rock_node_healthy", "1 if the node's runtime answers.", labels=["node", "runtime"])
    capacity = GaugeMetricFamily("rock_node_capacity", "Sandboxes the node may hold.", labels=["node"])
    claims = CounterMetricFamily("rock_claims", "Sandboxes handed out.", labels=["node"])
    failures = CounterMetricFamily("rock_sandbox_failures", "Sandboxes that failed.", labels=["node"])
    pools = GaugeMetricFamily("rock_pool", "Warm pools.", labels=["node", "image", "digest", "what"])
    for node in nodes:
        for state in SandboxState:
            sandboxes.add_metric([node.name, state.value], node.sandboxes.get(state, 0))
        healthy.add_metric([node.name, node.runtime], float(node.healthy))
        capacity.add_metric([node.name], node.capacity)
        claims.add_metric([node.name], node.claims)
        failures.add_metric([node.name], node.failures)
        for pool in node.pools:
            for what in ("target", "level", "ready", "starting", "waiting"):
                pools.add_metric([node.name, pool.image, pool.digest, what], getattr(pool, what))
    return [sandboxes, healthy, capacity, claims, failures, pools]


def _lease_metrics(counters: Counters, living: int) -> list[Metric]:
    leases = GaugeMetricFamily("rock_leases", "Living leases.", value=living)
    ended = CounterMetricFamily("rock_leases_ended", "Leases that ended, by how.", labels=["how"])
    ended.add_metric(["released"], counters.released)
    ended.add_metric(["expired"], counters.expired)
    ended.add_metric(["lost"], counters.lost)
    granted = CounterMetricFamily("rock_leases_granted", "Leases granted.", value=counters.granted)
    refused = CounterMetricFamily("rock_leases_refused", "Lease requests that failed.", value=counters.refused)
    return [leases, granted, ended, refused]

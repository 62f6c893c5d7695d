"""Histograms of what episodes spent their time on, kept with every report so that nobody scans episodes.

Invariant: an episode is counted once, when it is first reported as ended.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from rock.domain.latency import bucket_of, quantile
from rock.store.tables import LatencyRow
from rock.store.upsert import upsert
from rock.wire.models import EpisodeRecord, LatencyView

_QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}


def durations(episode: EpisodeRecord) -> Iterable[tuple[str, float]]:
    """What is measured, and seconds; what was not reached is left out."""
    whole = {"open": episode.open_s, "reset": episode.reset_s}
    yield from ((what, seconds) for what, seconds in whole.items() if seconds > 0)
    for turn in episode.turns:
        yield from ((w, s) for w, s in (("generate", turn.generate_s), ("step", turn.env_s)) if s > 0)


async def count(connection: AsyncConnection, run_id: str, ended: Iterable[EpisodeRecord]) -> None:
    """Within the transaction of the report."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for episode in ended:
        counts.update((episode.env, what, bucket_of(s)) for what, s in durations(episode) if not math.isnan(s))
    rows = [
        {"run_id": run_id, "env": env, "what": what, "bucket": bucket, "count": n}
        for (env, what, bucket), n in sorted(counts.items())
    ]
    await upsert(connection, LatencyRow, rows, add=("count",))


async def views(connection: AsyncConnection, run_id: str) -> list[LatencyView]:
    query = select(LatencyRow.env, LatencyRow.what, LatencyRow.bucket, LatencyRow.count)
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for env, what, bucket, n in (await connection.execute(query.where(LatencyRow.run_id == run_id))).all():
        found[env, what][bucket] = n
    return [
        LatencyView(
            env=env,
            what=what,
            count=sum(counts.values()),
            **{name: quantile(counts, share) for name, share in _QUANTILES.items()},
        )
        for (env, what), counts in sorted(found.items())
    ]

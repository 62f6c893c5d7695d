"""Repository of the fleet: sandboxes' last known views, leases, events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, func, insert, select, update

from rock.domain.sandbox import LIVING, SandboxState
from rock.store.database import Database, whole, whole_to_the_end
from rock.store.tables import EventRow, LeaseRow, QuarantineRow, SandboxRow
from rock.store.upsert import upsert
from rock.wire.models import EventView, QuarantineView, Recovery, SandboxSpec, SandboxView, SnapshotView

# History is for people; a run of millions of sandboxes must not fill the disk with it.
KEEP_EVENTS = 100_000
KEEP_SANDBOXES = 50_000
KEEP_LEASES = 10_000


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease as it is stored: with the hash of its token, never the token."""

    id: str
    sandbox_id: str
    node: str
    epoch: int
    token_sha256: str
    ttl_s: float
    run_id: str
    env: str
    spec: SandboxSpec
    labels: dict[str, str]
    created_at: datetime
    recovery: Recovery = "none"
    recoveries: int = 0
    key_id: str = ""
    needs_s: float = 0.0
    image: str = ""
    """What a sandbox of it is made of that is as new; the spec's own image may be a snapshot. Empty: the spec's."""
    snapshot: SnapshotView | None = None
    """What the next sandbox is made of, if this one is lost."""

    @property
    def fresh_spec(self) -> SandboxSpec:
        """Of a sandbox without any history."""
        return self.spec.model_copy(update={"image": self.image}) if self.image else self.spec


class FleetStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    # --- sandboxes

    @whole
    async def save_sandboxes(self, views: Sequence[SandboxView]) -> None:
        async with self._db.write() as connection:
            await upsert(connection, SandboxRow, [_sandbox_values(view) for view in views])

    @whole
    async def sandbox(self, sandbox_id: str) -> SandboxView | None:
        async with self._db.read() as connection:
            found = await connection.scalar(select(SandboxRow.view).where(SandboxRow.id == sandbox_id))
        return None if found is None else SandboxView.model_validate(found)

    @whole
    async def past_sandboxes(
        self, *, state: SandboxState | None = None, run_id: str = "", limit: int = 500
    ) -> list[SandboxView]:
        """Those that are no more, newest first. ``FAILED`` means that they failed, even though they are gone by now."""
        query = select(SandboxRow.view).order_by(SandboxRow.changed_at.desc()).limit(limit)
        if state is SandboxState.FAILED:
            query = query.where(SandboxRow.failed.is_(True))
        elif state is not None:
            query = query.where(SandboxRow.state == state.value)
        if run_id:
            query = query.where(SandboxRow.run_id == run_id)
        async with self._db.read() as connection:
            return [SandboxView.model_validate(view) for view in (await connection.scalars(query)).all()]

    @whole
    async def close_unfinished_sandboxes(self, known: Sequence[str], at: datetime) -> None:
        """Rows that say *living* though no node knows them (the process was killed) become *gone*."""
        async with self._db.write() as connection:
            query = select(SandboxRow.view).where(SandboxRow.state.in_([s.value for s in LIVING]))
            views = [SandboxView.model_validate(v) for v in (await connection.scalars(query)).all()]
            alive = set(known)
            gone = [
                v.model_copy(update={"state": SandboxState.GONE, "changed_at": at}) for v in views if v.id not in alive
            ]
            await upsert(connection, SandboxRow, [_sandbox_values(view) for view in gone])

    # --- leases

    @whole
    async def add_lease(self, lease: StoredLease) -> None:
        values = {
            "id": lease.id,
            "sandbox_id": lease.sandbox_id,
            "node": lease.node,
            "epoch": lease.epoch,
            "token_sha256": lease.token_sha256,
            "ttl_s": lease.ttl_s,
            "run_id": lease.run_id,
            "env": lease.env,
            "spec": lease.spec.model_dump(mode="json"),
            "labels": lease.labels,
            "created_at": lease.created_at,
            "ended_at": None,
            "end_reason": "",
            "recovery": lease.recovery,
            "recoveries": lease.recoveries,
            "key_id": lease.key_id,
            "needs_s": lease.needs_s,
            "image": lease.image,
            "snapshot": _snapshot_values(lease.snapshot),
        }
        async with self._db.write() as connection:
            await connection.execute(insert(LeaseRow).values(values))

    @whole
    async def rebind_lease(self, lease: StoredLease) -> None:
        """The lease has another sandbox now, under a higher epoch. A row that is past that epoch is left alone."""
        async with self._db.write() as connection:
            await connection.execute(
                update(LeaseRow)
                .where(LeaseRow.id == lease.id, LeaseRow.epoch < lease.epoch, LeaseRow.ended_at.is_(None))
                .values(
                    sandbox_id=lease.sandbox_id,
                    node=lease.node,
                    epoch=lease.epoch,
                    recoveries=lease.recoveries,
                    spec=lease.spec.model_dump(mode="json"),
                    snapshot=_snapshot_values(lease.snapshot),
                )
            )

    @whole
    async def save_snapshot(self, lease: StoredLease) -> None:
        """The lease has another snapshot now, or none."""
        async with self._db.write() as connection:
            await connection.execute(
                update(LeaseRow).where(LeaseRow.id == lease.id).values(snapshot=_snapshot_values(lease.snapshot))
            )

    @whole
    async def end_leases(self, reasons: dict[str, str], at: datetime) -> None:
        async with self._db.write() as connection:
            for lease_id, reason in reasons.items():
                await connection.execute(
                    update(LeaseRow)
                    .where(LeaseRow.id == lease_id, LeaseRow.ended_at.is_(None))
                    .values(ended_at=at, end_reason=reason)
                )

    @whole
    async def living_leases(self) -> list[StoredLease]:
        async with self._db.read() as connection:
            rows = (await connection.execute(select(LeaseRow.__table__).where(LeaseRow.ended_at.is_(None)))).all()
        return [
            StoredLease(
                row.id,
                row.sandbox_id,
                row.node,
                row.epoch,
                row.token_sha256,
                row.ttl_s,
                row.run_id,
                row.env,
                SandboxSpec.model_validate(row.spec),
                row.labels,
                row.created_at,
                row.recovery,
                row.recoveries,
                row.key_id,
                row.needs_s,
                row.image,
                SnapshotView.model_validate(row.snapshot) if row.snapshot else None,
            )
            for row in rows
        ]

    # --- quarantine

    @whole
    async def save_quarantine(self, views: Sequence[QuarantineView], gone: Sequence[tuple[str, str]]) -> None:
        """``gone``: kind and subject of what is no longer in quarantine."""
        async with self._db.write() as connection:
            await upsert(connection, QuarantineRow, [view.model_dump(exclude={"retry_at"}) for view in views])
            for kind, subject in gone:
                await connection.execute(
                    delete(QuarantineRow).where(QuarantineRow.kind == kind, QuarantineRow.subject == subject)
                )

    @whole
    async def quarantined(self) -> list[QuarantineView]:
        async with self._db.read() as connection:
            rows = (await connection.execute(select(QuarantineRow.__table__))).all()
        return [QuarantineView(**row._mapping) for row in rows]

    # --- events

    async def ready(self) -> None:
        """Whether a database that was in trouble still is. Costs nothing when it was well. Raises StorageError."""
        if self._db.trouble:
            await self._db.check()

    @whole_to_the_end
    async def add_events(self, events: Sequence[EventView]) -> list[EventView]:
        """Returns them with their ids, which grow in the order given."""
        if not events:
            return []
        values = [event.model_dump(exclude={"id"}) for event in events]
        async with self._db.write() as connection:
            query = insert(EventRow).returning(EventRow.id, sort_by_parameter_order=True)
            ids = (await connection.scalars(query, values)).all()
        return [event.model_copy(update={"id": id_}) for event, id_ in zip(events, ids, strict=True)]

    @whole
    async def events(
        self, *, limit: int = 100, kinds: Sequence[str] = (), run_id: str = "", after: int | None = None
    ) -> list[EventView]:
        """The newest first; with ``after``, those with a greater id, oldest first (for following along)."""
        query = select(EventRow.__table__)
        query = (
            query.order_by(EventRow.id.desc())
            if after is None
            else query.where(EventRow.id > after).order_by(EventRow.id)
        )
        if kinds:
            query = query.where(EventRow.kind.in_(kinds))
        if run_id:
            query = query.where(EventRow.run_id == run_id)
        async with self._db.read() as connection:
            rows = (await connection.execute(query.limit(limit))).all()
        return [EventView(**row._mapping) for row in rows]

    @whole
    async def last_event_id(self) -> int:
        async with self._db.read() as connection:
            return int(await connection.scalar(select(func.max(EventRow.id))) or 0)

    # --- housekeeping

    @whole
    async def trim(self) -> None:
        """Forget the oldest history beyond what is kept."""
        async with self._db.write() as connection:
            newest = await connection.scalar(select(func.max(EventRow.id))) or 0
            await connection.execute(delete(EventRow).where(EventRow.id <= newest - KEEP_EVENTS))
            sandbox_edge = await connection.scalar(
                select(SandboxRow.changed_at)
                .where(SandboxRow.state == SandboxState.GONE.value)
                .order_by(SandboxRow.changed_at.desc())
                .offset(KEEP_SANDBOXES)
                .limit(1)
            )
            if sandbox_edge is not None:
                await connection.execute(
                    delete(SandboxRow).where(
                        SandboxRow.state == SandboxState.GONE.value, SandboxRow.changed_at <= sandbox_edge
                    )
                )
            lease_edge = await connection.scalar(
                select(LeaseRow.ended_at)
                .where(LeaseRow.ended_at.is_not(None))
                .order_by(LeaseRow.ended_at.desc())
                .offset(KEEP_LEASES)
                .limit(1)
            )
            if lease_edge is not None:
                await connection.execute(delete(LeaseRow).where(LeaseRow.ended_at <= lease_edge))


def _sandbox_values(view: SandboxView) -> dict[str, object]:
    return {
        "id": view.id,
        "state": view.state.value,
        "failed": view.evidence is not None,
        "run_id": view.run_id,
        "created_at": view.created_at,
        "changed_at": view.changed_at,
        "view": view.model_dump(mode="json"),
    }


def _snapshot_values(snapshot: SnapshotView | None) -> dict[str, object] | None:
    return snapshot.model_dump(mode="json") if snapshot is not None else None


def utc_now() -> datetime:
    return datetime.now(UTC)

"""The tables. Changing one means a new file in ``migrations/versions``; a test compares the two.

Listing columns and heavy payloads (turns of an episode) are kept apart, so that a page of episodes reads narrow rows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """UTC on every database. SQLite keeps no time zone, so naive times come back as what they are: UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite only counts an INTEGER PRIMARY KEY up by itself.
AutoId = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )


class SandboxRow(Base):
    """Last known view of every sandbox, the evidence of its failure included."""

    __tablename__ = "sandboxes"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    failed: Mapped[bool] = mapped_column(Boolean)
    run_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    view: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (
        Index("ix_sandboxes_failed_changed_at", "failed", "changed_at"),
        Index("ix_sandboxes_state_changed_at", "state", "changed_at"),
        Index("ix_sandboxes_run_id_changed_at", "run_id", "changed_at"),
    )


class LeaseRow(Base):
    """Every living lease, and the ended ones for a while. The token is stored as its SHA-256 only."""

    __tablename__ = "leases"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sandbox_id: Mapped[str] = mapped_column(String(64))
    node: Mapped[str] = mapped_column(String(255))
    epoch: Mapped[int] = mapped_column(Integer)
    token_sha256: Mapped[str] = mapped_column(String(64))
    ttl_s: Mapped[float] = mapped_column(Float)
    run_id: Mapped[str] = mapped_column(String(64))
    env: Mapped[str] = mapped_column(String(255))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    labels: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    end_reason: Mapped[str] = mapped_column(Text)
    recovery: Mapped[str] = mapped_column(String(16), server_default="none")
    recoveries: Mapped[int] = mapped_column(Integer, server_default="0")
    key_id: Mapped[str] = mapped_column(String(64), server_default="")
    needs_s: Mapped[float] = mapped_column(Float, server_default="0")
    image: Mapped[str] = mapped_column(String(255), server_default="")
    snapshot: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    __table_args__ = (Index("ix_leases_ended_at", "ended_at"),)


class KeyRow(Base):
    """API keys. The secret is stored as its SHA-256 only; a revoked key stays, for the record."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(16))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    max_leases: Mapped[int] = mapped_column(Integer)
    max_requests: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    __table_args__ = (Index("ix_keys_secret_sha256", "secret_sha256", unique=True),)


class QuarantineRow(Base):
    __tablename__ = "quarantine"
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    failures: Mapped[int] = mapped_column(Integer)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    node: Mapped[str] = mapped_column(String(255))


class NodeRow(Base):
    """What an operator said of a node, kept over restarts: cordoned or draining."""

    __tablename__ = "nodes"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    standing: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(UtcDateTime)


class EventRow(Base):
    __tablename__ = "events"
    id: Mapped[int] = mapped_column(AutoId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(255))
    detail: Mapped[str] = mapped_column(Text)
    node: Mapped[str] = mapped_column(String(255))
    run_id: Mapped[str] = mapped_column(String(64))
    __table_args__ = (
        Index("ix_events_kind_id", "kind", "id"),
        Index("ix_events_run_id_id", "run_id", "id"),
    )


class RunRow(Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    total_steps: Mapped[int] = mapped_column(Integer)
    step: Mapped[int] = mapped_column(Integer)
    resumed_from: Mapped[str] = mapped_column(String(64))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    __table_args__ = (Index("ix_runs_created_at", "created_at"),)


class MetricRow(Base):
    __tablename__ = "metrics"
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    numbers: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),)


class EpisodeRow(Base):
    """What a page of episodes shows. Its turns are in :class:`TurnsRow`."""

    __tablename__ = "episodes"
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    group_id: Mapped[str] = mapped_column(String(64))
    env: Mapped[str] = mapped_column(String(255))
    task: Mapped[str] = mapped_column(Text)
    seed: Mapped[int] = mapped_column(BigInteger)
    split: Mapped[str] = mapped_column(String(64))
    phase: Mapped[str] = mapped_column(String(16))
    step: Mapped[int] = mapped_column(Integer)
    policy_version: Mapped[int] = mapped_column(Integer)
    ledger: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    reward: Mapped[float | None] = mapped_column(Float)
    success: Mapped[bool | None] = mapped_column(Boolean)
    sandbox_id: Mapped[str] = mapped_column(String(64))
    turn_count: Mapped[int] = mapped_column(Integer)
    generated_tokens: Mapped[int] = mapped_column(BigInteger)
    sandbox_s: Mapped[float] = mapped_column(Float)
    recoveries: Mapped[int] = mapped_column(Integer, server_default="0")
    open_s: Mapped[float] = mapped_column(Float, server_default="0")
    reset_s: Mapped[float] = mapped_column(Float, server_default="0")
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    __table_args__ = (
        ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        Index("ix_episodes_run_id_ended_at_id", "run_id", "ended_at", "id"),
        Index("ix_episodes_run_id_phase_ended_at_id", "run_id", "phase", "ended_at", "id"),
        Index("ix_episodes_run_id_outcome_ended_at_id", "run_id", "outcome", "ended_at", "id"),
        Index("ix_episodes_run_id_ledger_ended_at_id", "run_id", "ledger", "ended_at", "id"),
        Index("ix_episodes_run_id_success_ended_at_id", "run_id", "success", "ended_at", "id"),
    )


class TurnsRow(Base):
    __tablename__ = "episode_turns"
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    episode_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    turns: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "episode_id"], ["episodes.run_id", "episodes.id"], ondelete="CASCADE"),
    )


class RhythmRow(Base):
    """Attention rhythm of one episode; ``summary`` is what a list shows of it."""

    __tablename__ = "rhythms"
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    episode_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(Integer)
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    record: Mapped[dict[str, Any]] = mapped_column(JSON)
    __table_args__ = (
        ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        Index("ix_rhythms_run_id_step", "run_id", "step"),
    )


class LatencyRow(Base):
    """Histograms of what episodes spent their time on; ``bucket`` as in :mod:`rock.domain.latency`."""

    __tablename__ = "latencies"
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    env: Mapped[str] = mapped_column(String(255), primary_key=True)
    what: Mapped[str] = mapped_column(String(16), primary_key=True)
    bucket: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),)


class LedgerRow(Base):
    """The ledger's sums, kept with every report in the same transaction; small, so that nobody scans episodes.

    Sandbox time is kept in whole microseconds: sums of added and taken-away floats would drift.
    """

    __tablename__ = "ledger"
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    phase: Mapped[str] = mapped_column(String(16), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(16), primary_key=True)
    account: Mapped[str] = mapped_column(String(16), primary_key=True)
    episodes: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    sandbox_us: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),)

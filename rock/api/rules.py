"""What a key must be good for to use each route, and which errors the route may answer with: one table for both.

Invariant: a route that is not in the table needs the highest scope, so that forgetting one here opens nothing; a test
compares the table with the routes.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from rock.control.keys import OWNER, Caller
from rock.domain.errors import (
    CapacityExceeded,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    ImageBuildFailed,
    ImageNotFound,
    LeaseExpired,
    NotFound,
    PlatformUnavailable,
    Quarantined,
    QuotaExceeded,
    Recovering,
    RockError,
    RuntimeUnavailable,
    SandboxLost,
    StaleEpoch,
    StorageError,
    TaskQuarantined,
)
from rock.wire.models import Scope

VERSION = "/v1"
CALLER = "rock.caller"
"""Where in the ASGI scope the guard leaves who asks."""


@dataclass(frozen=True, slots=True)
class Rule:
    scope: Scope
    errors: tuple[type[RockError], ...] = ()
    """Beside those that any route may answer with."""


_LEASE_ERRORS = (
    CapacityExceeded,
    Conflict,
    ImageBuildFailed,
    ImageNotFound,
    PlatformUnavailable,
    Quarantined,
    QuotaExceeded,
    RuntimeUnavailable,
    StorageError,
    TaskQuarantined,
)
_GONE = (NotFound, LeaseExpired, SandboxLost)
_RUN = (NotFound, StorageError)

# Without the version: FastAPI's releases differ in whether a route knows the prefix it was included with.
RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/health"): Rule("read"),
    ("GET", "/nodes"): Rule("read"),
    ("POST", "/nodes/{name}/cordon"): Rule("admin", (NotFound, Conflict, StorageError)),
    ("POST", "/nodes/{name}/uncordon"): Rule("admin", (NotFound, Conflict, StorageError)),
    ("POST", "/nodes/{name}/drain"): Rule("admin", (NotFound, Conflict, StorageError)),
    ("GET", "/quarantine"): Rule("read"),
    ("DELETE", "/quarantine/{subject}"): Rule("admin", (NotFound,)),
    ("GET", "/events"): Rule("read", (StorageError,)),
    ("GET", "/events/stream"): Rule("read", (StorageError,)),
    ("POST", "/shutdown"): Rule("admin"),
    ("GET", "/keys"): Rule("admin"),
    ("POST", "/keys"): Rule("admin", (Conflict, StorageError)),
    ("DELETE", "/keys/{key_id}"): Rule("admin", (NotFound, Conflict, StorageError)),
    ("GET", "/sandboxes"): Rule("read", (StorageError,)),
    ("GET", "/sandboxes/{sandbox_id}"): Rule("read", (NotFound, StorageError)),
    ("DELETE", "/sandboxes/{sandbox_id}"): Rule("run", (NotFound, StorageError)),
    ("POST", "/sandboxes/{sandbox_id}/restart"): Rule("admin", (NotFound, Conflict, PlatformUnavailable, StorageError)),
    ("POST", "/sandboxes/{sandbox_id}/exec"): Rule("run", (NotFound, Conflict, SandboxLost, DeadlineExceeded)),
    ("GET", "/sandboxes/{sandbox_id}/stats"): Rule("read", (NotFound, RuntimeUnavailable)),
    ("GET", "/sandboxes/{sandbox_id}/logs"): Rule("read", (NotFound, StorageError)),
    ("POST", "/leases"): Rule("run", _LEASE_ERRORS),
    ("GET", "/leases"): Rule("read"),
    ("DELETE", "/leases"): Rule("run"),
    ("POST", "/leases/{lease_id}/heartbeat"): Rule("run", _GONE),
    ("POST", "/leases/{lease_id}/recover"): Rule("run", (*_GONE, StaleEpoch, Recovering, *_LEASE_ERRORS)),
    ("POST", "/leases/{lease_id}/recovered"): Rule("run", _GONE),
    ("POST", "/leases/{lease_id}/snapshot"): Rule(
        "run",
        (*_GONE, StaleEpoch, Conflict, StorageError, DeadlineExceeded, PlatformUnavailable, RuntimeUnavailable),
    ),
    ("DELETE", "/leases/{lease_id}/snapshot"): Rule("run"),
    ("POST", "/quarantine/tasks"): Rule("run"),
    ("DELETE", "/leases/{lease_id}"): Rule("run", (NotFound,)),
    ("GET", "/envs"): Rule("read"),
    ("GET", "/envs/{name}"): Rule("read", (NotFound,)),
    ("GET", "/envs/{name}/tasks"): Rule("read", (NotFound, ImageNotFound)),
    ("POST", "/envs/{name}/prefetch"): Rule("run", (NotFound, ImageNotFound)),
    ("POST", "/runs"): Rule("run", _RUN),
    ("GET", "/runs"): Rule("read", (StorageError,)),
    ("GET", "/runs/{run_id}"): Rule("read", _RUN),
    ("PATCH", "/runs/{run_id}"): Rule("run", _RUN),
    ("POST", "/runs/{run_id}/metrics"): Rule("run", _RUN),
    ("GET", "/runs/{run_id}/metrics"): Rule("read", _RUN),
    ("POST", "/runs/{run_id}/episodes"): Rule("run", _RUN),
    ("GET", "/runs/{run_id}/episodes"): Rule("read", _RUN),
    ("GET", "/runs/{run_id}/episodes/{episode_id}"): Rule("read", _RUN),
    ("GET", "/runs/{run_id}/ledger"): Rule("read", _RUN),
    ("GET", "/runs/{run_id}/latencies"): Rule("read", _RUN),
    ("POST", "/runs/{run_id}/rhythm"): Rule("run", _RUN),
    ("GET", "/runs/{run_id}/rhythm"): Rule("read", _RUN),
    ("GET", "/runs/{run_id}/rhythm/{episode_id}"): Rule("read", _RUN),
    ("GET", "/metrics"): Rule("read"),
}
_UNKNOWN = Rule("admin")


def rule_of(method: str, path: str) -> Rule:
    """``path``: as the route is written, with its parameters' names."""
    return RULES.get((method, path.removeprefix(VERSION).replace(":path}", "}")), _UNKNOWN)


async def permit(request: Request) -> None:
    """A dependency of every route. Raises Forbidden."""
    caller: Caller = request.scope.get(CALLER, OWNER)
    needed = rule_of(request.method, request.scope["route"].path).scope
    if not caller.may(needed):
        raise Forbidden(
            f"key {caller.name!r} has scope {caller.scope!r}, and {request.method} {request.url.path} needs {needed!r}",
            hint=f"Use a key of scope {needed!r}: an admin makes one with `rock key create NAME --scope {needed}`.",
        )

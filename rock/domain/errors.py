"""One vocabulary of errors for the whole platform.

Every error says whose fault it was, what was found and expected, and what to do about it. The same class is raised
by the node, travels over the API as ``application/problem+json`` (or over the data plane as an error frame) and is
raised again by the SDK: ``to_problem`` and ``from_problem`` are inverse to each other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Whose fault an error is; decides who should act and whether an episode counts."""

    CALLER = "caller"  # the request is wrong: the same call will fail again
    AGENT = "agent"  # the policy acted outside the rules; the episode goes on and counts
    ENVIRONMENT = "environment"  # the task's own code failed; the episode is void
    PLATFORM = "platform"  # a sandbox, a node or the control plane failed; the episode is void


class RockError(Exception):
    """Base of all. ``message``: what was found and expected, naming the value. ``hint``: what to do next."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.PLATFORM
    http_status: ClassVar[int] = 500
    request_id: str = ""
    """Of the request that met it, where it came over the API: the platform's log names it in every line of that one."""

    def __init__(self, message: str, *, hint: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def to_problem(self) -> dict[str, object]:
        """The error as an RFC 9457 problem document."""
        return {
            "type": f"urn:rock:{self.code}",
            "title": type(self).__name__,
            "status": self.http_status,
            "detail": self.message,
            "hint": self.hint,
            "cause": self.cause,
            "fault": self.fault.value,
        }


class InvalidRequest(RockError):
    """A parameter is missing, malformed or out of range."""

    code, fault, http_status = "invalid-request", Fault.CALLER, 422


class NotFound(RockError):
    """No such sandbox, lease, environment, task, run or file."""

    code, fault, http_status = "not-found", Fault.CALLER, 404


class Conflict(RockError):
    """The request contradicts the present state (a name taken, a port in use, a platform already running)."""

    code, fault, http_status = "conflict", Fault.CALLER, 409


class Unauthorized(RockError):
    """The key is missing, unknown, or lacks the scope."""

    code, fault, http_status = "unauthorized", Fault.CALLER, 401


class Forbidden(RockError):
    """The key is good, but its scope does not allow this."""

    code, fault, http_status = "forbidden", Fault.CALLER, 403


class QuotaExceeded(RockError):
    """The key holds as many leases, or has as many requests under way, as it may."""

    code, fault, http_status = "quota-exceeded", Fault.CALLER, 429


class Quarantined(RockError):
    """The image or the task failed again and again; it is refused until somebody clears it."""

    code, fault, http_status = "quarantined", Fault.ENVIRONMENT, 409


class TaskQuarantined(Quarantined):
    """The same of one task alone, or of the image that it alone is played in: leave it out."""

    code = "task-quarantined"


class ImageNotFound(RockError):
    """The image is neither local nor to be pulled, or the environment has not been built."""

    code, fault, http_status = "image-not-found", Fault.CALLER, 404


class ImageBuildFailed(RockError):
    """Building an image or an environment's bundle failed; ``cause`` holds the last lines of output."""

    code, fault, http_status = "image-build-failed", Fault.ENVIRONMENT, 500


class InvalidAction(RockError):
    """The agent's action cannot be given to the environment at all (wrong type, episode over, not yet reset)."""

    code, fault, http_status = "invalid-action", Fault.AGENT, 422


class EnvironmentError(RockError):  # noqa: A001 - the field's word; the builtin is an alias of OSError nobody uses
    """The environment's own code raised. The episode is void; ``cause`` holds the traceback's last lines."""

    code, fault, http_status = "environment-error", Fault.ENVIRONMENT, 500


class SandboxLost(RockError):
    """The sandbox, its guest or its env process is gone or silent; what it held is gone with it."""

    code, fault, http_status = "sandbox-lost", Fault.PLATFORM, 503


class Diverged(SandboxLost):
    """A replacement was found, but replaying the episode led to another state: the episode is void."""

    code, fault, http_status = "diverged", Fault.ENVIRONMENT, 409


class LeaseExpired(RockError):
    """The lease ended: its time-to-live passed without a heartbeat, or it was released."""

    code, fault, http_status = "lease-expired", Fault.CALLER, 410


class StaleEpoch(RockError):
    """The caller speaks for an older epoch of the lease; another sandbox has taken its place."""

    code, fault, http_status = "stale-epoch", Fault.CALLER, 409


class Recovering(RockError):
    """The lease's sandbox is lost and its replacement is being made: ask `recover` and wait."""

    code, fault, http_status = "recovering", Fault.PLATFORM, 503


class DeadlineExceeded(RockError):
    """An operation did not finish in its time. The message names the operation and the time it had."""

    code, fault, http_status = "deadline-exceeded", Fault.PLATFORM, 504


class CapacityExceeded(RockError):
    """The platform is full: no sandbox could be provided within the time asked for."""

    code, fault, http_status = "capacity-exceeded", Fault.PLATFORM, 503


class RuntimeUnavailable(RockError):
    """The runtime (Docker, bubblewrap) is not installed, not running, or not permitted."""

    code, fault, http_status = "runtime-unavailable", Fault.PLATFORM, 503


class PlatformUnavailable(RockError):
    """No platform answers at the address."""

    code, fault, http_status = "platform-unavailable", Fault.PLATFORM, 503


class StorageError(RockError):
    """The database or the disk refuses: full, locked, read-only or missing."""

    code, fault, http_status = "storage-error", Fault.PLATFORM, 507


def _all_subclasses(cls: type[RockError]) -> list[type[RockError]]:
    return [cls, *(s for child in cls.__subclasses__() for s in _all_subclasses(child))]


BY_CODE: dict[str, type[RockError]] = {c.code: c for c in _all_subclasses(RockError)}


def from_problem(problem: dict[str, object]) -> RockError:
    """The inverse of :meth:`RockError.to_problem`; an unknown type becomes a plain :class:`RockError`."""
    code = str(problem.get("type", "")).removeprefix("urn:rock:")
    cls = BY_CODE.get(code, RockError)
    error = cls(
        str(problem.get("detail") or problem.get("title") or "unknown error"),
        hint=str(problem.get("hint") or ""),
        cause=str(problem.get("cause") or ""),
    )
    error.request_id = str(problem.get("request_id") or "")
    return error

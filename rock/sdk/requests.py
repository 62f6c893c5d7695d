"""Requests made of what a caller gives, and the words for what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from rock.domain.errors import InvalidRequest
from rock.wire.models import LeaseRequest, Limits, Recovery, SandboxSpec


def lease_request(
    image: str = "",
    *,
    env: str = "",
    task: str = "",
    spec: SandboxSpec | None = None,
    limits: Limits | None = None,
    environ: Mapping[str, str] | None = None,
    run_id: str = "",
    wait_s: float = 60.0,
    ttl_s: float = 60.0,
    needs_s: float = 0.0,
    labels: Mapping[str, str] | None = None,
    recovery: Recovery | None = None,
) -> LeaseRequest:
    """The request for an environment, or for a plain sandbox of ``image`` or ``spec``; see :class:`Rock`.

    Raises: InvalidRequest (caller) naming the value that is out of range.
    """
    try:
        if spec is None and (limits is not None or environ):
            spec = SandboxSpec(image=image, limits=limits or Limits(), environ=dict(environ or {}))
        return LeaseRequest(
            env=env,
            task=task,
            image=image or (spec.image if spec else ""),
            spec=spec,
            run_id=run_id,
            wait_s=wait_s,
            ttl_s=ttl_s,
            needs_s=needs_s,
            labels=dict(labels or {}),
            recovery=recovery,
        )
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError) -> InvalidRequest:
    """The first thing that is wrong, with the value."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    return InvalidRequest(f"{name}={first['input']!r}: {first['msg']}.")

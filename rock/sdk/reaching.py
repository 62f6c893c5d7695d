"""The ways to a leased sandbox, and the words for its loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from rock.domain.errors import RockError, SandboxLost
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseView, SandboxView

logger = logging.getLogger(__name__)


async def reach(lease: LeaseView) -> GuestClient:
    """Connect to the guest's own socket if it is on this machine, else through the node's gateway.

    Raises: what the gateway answers (LeaseExpired, StaleEpoch, Unauthorized, SandboxLost), or SandboxLost.
    """
    endpoint = lease.endpoint
    if endpoint.socket_path and os.path.exists(endpoint.socket_path):  # noqa: ASYNC240 - a stat of a local file
        return await GuestClient.connect_unix(endpoint.socket_path)
    if endpoint.gateway_port:
        hello = {"lease": lease.id, "token": lease.token, "epoch": lease.epoch}
        return await GuestClient.connect_tcp(endpoint.gateway_host, endpoint.gateway_port, hello)
    raise SandboxLost(
        f"its socket {endpoint.socket_path or '(none)'} is not on this machine and the node has no gateway",
        hint="Run the client on the node's machine, or start the platform with a gateway.",
    )


def loss_of(lease: LeaseView, seen: SandboxView | None, found: RockError) -> SandboxLost:
    """The loss as its holder is told: by the evidence in ``seen`` if there is any, else by what it ``found``."""
    evidence = seen.evidence if seen is not None else None
    if evidence is not None:
        facts = [evidence.cause, evidence.detail]
        if evidence.exit_code is not None:
            facts.append(f"exit code {evidence.exit_code}")
        if evidence.oom_killed:
            facts.append("killed for its memory")
        return SandboxLost(
            f"Sandbox {lease.sandbox_id} on node {lease.endpoint.node} was lost: {', '.join(f for f in facts if f)}.",
            hint="The episode is void; take a new lease and play it again.",
            cause="\n".join(evidence.last_output),
        )
    if isinstance(found, SandboxLost):
        return SandboxLost(
            f"Sandbox {lease.sandbox_id} on node {lease.endpoint.node} was lost: {found.message}.",
            hint="The episode is void; take a new lease and play it again.",
            cause=found.cause,
        )
    return SandboxLost(
        f"Lease {lease.id} on sandbox {lease.sandbox_id} is lost: {found.message}",
        hint=found.hint or "The episode is void; take a new lease and play it again.",
        cause=found.code,
    )


def again(error: RockError) -> RockError:
    """A new exception of the same content, so that tracebacks of many callers don't pile up on one object."""
    copy = type(error)(error.message, hint=error.hint, cause=error.cause)
    copy.__cause__ = error.__cause__
    return copy


async def outlast(task: asyncio.Task[Any], limit_s: float) -> tuple[bool, bool]:
    """Wait for ``task`` at most ``limit_s``, through cancellations of the caller; then cancel it.

    Returns (finished in time, caller was cancelled meanwhile). The task's own error is the caller's to read.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    cancelled = False
    while not task.done() and (left_s := deadline - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left_s)
        except asyncio.CancelledError:
            cancelled = True
    finished = task.done()
    if not finished:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=0.5)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("ended with an error after a cancellation: %s", error)
    return finished, cancelled

"""Questions to all nodes at once; one that does not answer hides nothing of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rock.domain.errors import DeadlineExceeded, NotFound, PlatformUnavailable
from rock.wire.handle import NodeHandle
from rock.wire.models import SandboxView


async def all_sandboxes(nodes: Sequence[NodeHandle]) -> list[SandboxView]:
    answers = await asyncio.gather(*(node.sandboxes() for node in nodes), return_exceptions=True)
    return [view for answer in answers for view in _unless_silent(answer)]


async def find_sandbox(nodes: Sequence[NodeHandle], sandbox_id: str) -> tuple[NodeHandle, SandboxView]:
    """Raises NotFound when no node that answers has it."""
    answers = await asyncio.gather(*(node.sandbox(sandbox_id) for node in nodes), return_exceptions=True)
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, SandboxView):
            return node, answer
        if not isinstance(answer, NotFound | PlatformUnavailable | DeadlineExceeded):
            raise answer
    raise NotFound(f"no living sandbox {sandbox_id!r}", hint="`rock ps` lists them.")


def _unless_silent(answer: Sequence[SandboxView] | BaseException) -> Sequence[SandboxView]:
    if isinstance(answer, PlatformUnavailable | DeadlineExceeded):
        return ()
    if isinstance(answer, BaseException):
        raise answer
    return answer

"""Routes of the quarantine: what is refused, why, and how it is let back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from rock.control.control import Control
from rock.wire.models import QuarantineView, TaskFailure

Subject = Annotated[str, Path(description="A pool's digest, or `environment/task`.", max_length=255)]


def quarantine_router(control: Control) -> APIRouter:
    router = APIRouter(tags=["quarantine"])

    @router.get("/quarantine", summary="The images and tasks that are refused, and why")
    async def quarantine() -> list[QuarantineView]:
        """The youngest first. What lies past its `retry_at` is on trial: tried once more, and back if it fails."""
        return await control.quarantine.views()

    @router.post("/quarantine/tasks", summary="Report that an environment failed at a task")
    async def report(failure: TaskFailure) -> QuarantineView | None:
        """The third failure within an hour puts the task in quarantine. The answer is its quarantine if it is in it by
        now, else null."""
        return await control.quarantine.report(failure)

    @router.delete("/quarantine/{subject:path}", status_code=204, summary="Try it again")
    async def clear(subject: Subject) -> None:
        """On every node, from the next claim on."""
        await control.quarantine.clear(subject)

    return router

"""A task that cannot be reset is reported by its sessions, refused in the end, listed and cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rock.control import quarantine
from rock.sdk import EnvironmentError, Fault, NotFound, Quarantined  # noqa: A004

Serving = Callable[..., Any]
# A digit to str.isdigit and none to int, so the toy environment's own code raises.
BROKEN = "²"


def test_the_third_failure_in_a_row_says_that_the_task_is_in_quarantine(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "REPORT_SLACK_S", 0.0)

    async def main() -> None:
        async with serving() as served, served.client() as rock:
            for expected in (EnvironmentError, EnvironmentError, Quarantined, Quarantined):
                async with rock.env("toy", task=BROKEN) as env:
                    with pytest.raises(expected) as caught:
                        await env.reset()
                    assert caught.value.fault is Fault.ENVIRONMENT
            assert "rock quarantine clear toy/²" in caught.value.hint
            [view] = await rock.quarantine()
            assert (view.kind, view.subject) == ("task", f"toy/{BROKEN}")
            async with rock.env("toy", task="3") as env:
                await env.reset()
            await rock.clear_quarantine(view.subject)
            assert await rock.quarantine() == []
            with pytest.raises(NotFound):
                await rock.clear_quarantine(view.subject)

    asyncio.run(main())


def test_resets_that_fail_side_by_side_count_once(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:

            async def one() -> None:
                async with rock.env("toy", task=BROKEN) as env:
                    await together.wait()
                    with pytest.raises(EnvironmentError):
                        await env.reset()

            together = asyncio.Barrier(6)
            await asyncio.gather(*(one() for _ in range(6)))
            assert await rock.quarantine() == []

    asyncio.run(main())

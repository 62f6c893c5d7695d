"""Images that cannot live: refused at once with the reason, others unaffected, tried again after a while, cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rock.domain.backoff import BackoffPolicy
from rock.domain.errors import CapacityExceeded, Quarantined
from rock.domain.quarantine import QuarantinePolicy
from rock.domain.sandbox import SandboxState
from rock.wire.models import SandboxSpec

BAD = SandboxSpec(image="bad")
GOOD = SandboxSpec(image="good")
Make = Callable[..., Any]
QUICK = {"backoff": BackoffPolicy(0.01, 0.02)}


def kinds(w: Any) -> list[str]:
    return [event.kind for event in w.events if event.kind.startswith("quarantine.")]


async def condemn(w: Any) -> Quarantined:
    """Claim until the image that dies at once is in quarantine; the error that the waiting claim was told."""
    w.runtime.faults.dies_at_start = True
    w.runtime.faults.exit_code = 7
    w.runtime.faults.applies_to = lambda spec: spec.image == "bad"
    with pytest.raises(Quarantined) as caught:
        await w.claim(BAD, wait_s=30)
    return caught.value


def test_an_image_that_dies_at_once_is_refused_with_its_last_evidence_and_others_are_not(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            error = await condemn(w)
            assert "image 'bad' is in quarantine on node n1: 4 sandboxes in a row failed" in error.message
            assert "exit code 7" in error.message
            assert f"rock quarantine clear {BAD.digest}" in error.hint
            starts = w.runtime.starts
            began = asyncio.get_running_loop().time()
            with pytest.raises(Quarantined):
                await w.claim(BAD, wait_s=30)
            assert asyncio.get_running_loop().time() - began < 1
            assert (await w.claim(GOOD)).spec == GOOD
            assert w.runtime.starts == starts + 1
            [view] = await w.node.quarantine()
            assert (view.kind, view.subject, view.name, view.failures) == ("image", BAD.digest, "image 'bad'", 4)
            assert (await w.node.view()).quarantined == (BAD.digest,)
            assert kinds(w) == ["quarantine.added"]

    asyncio.run(main())


def test_once_cleared_it_works_again(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            await condemn(w)
            w.runtime.faults.dies_at_start = False
            assert not await w.node.clear_quarantine(GOOD.digest)
            assert await w.node.clear_quarantine(BAD.digest)
            assert (await w.claim(BAD)).state is SandboxState.LEASED
            assert not await w.node.clear_quarantine(BAD.digest)
            assert kinds(w) == ["quarantine.added", "quarantine.cleared"]

    asyncio.run(main())


def test_after_a_while_it_is_tried_once_more_and_lives_or_goes_back(world: Make) -> None:
    async def main() -> None:
        policy = QuarantinePolicy(retry_after_s=0.5, retry_cap_s=60)
        async with world(**QUICK, quarantine=policy, quick_death_s=0.2) as w:
            await condemn(w)
            starts = w.runtime.starts
            await w.until(lambda: not w.node._fleet.quarantine.refuses(BAD.digest))
            with pytest.raises(Quarantined):
                await w.claim(BAD, wait_s=30)
            assert w.runtime.starts == starts + 1, "one trial"
            w.runtime.faults.dies_at_start = False
            await w.until(lambda: not w.node._fleet.quarantine.refuses(BAD.digest))
            assert await w.claim(BAD)

            async def cleared() -> bool:
                return not await w.node.quarantine()

            await w.until(cleared)
            assert kinds(w)[-1] == "quarantine.cleared"

    asyncio.run(main())


def test_a_warm_pool_of_a_bad_image_stops_starting(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            w.runtime.faults.dies_at_start = True
            await w.node.set_pool(BAD, 3)
            await w.until(lambda: kinds(w), within_s=30)
            starts = w.runtime.starts
            await w.node.set_pool(GOOD, 0)  # any change makes it plan anew
            await asyncio.sleep(0.2)
            assert w.runtime.starts == starts

    asyncio.run(main())


def test_sandboxes_that_die_young_by_themselves_count_and_those_that_were_killed_do_not(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            for _ in range(6):
                await w.runtime.kill((await w.claim(GOOD)).id, 137)
            await w.until(lambda: w.node._fleet.failures == 6)
            for n in range(4):
                await w.runtime.kill((await w.claim(BAD)).id, 1)
                await w.until(lambda n=n: w.node._fleet.failures == 7 + n)
            assert [view.name for view in await w.node.quarantine()] == ["image 'bad'"]

    asyncio.run(main())


def test_one_that_is_given_back_well_ends_the_row(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            for n in range(8):
                view = await w.claim(BAD)
                if n % 3 == 2:
                    await w.node.release(view.id, reason="done")
                else:
                    await w.runtime.kill(view.id, 1)
                    await w.until(lambda sandbox=view.id: w.states(sandbox)[-1] in {"failed", "gone"})
            assert await w.node.quarantine() == []

    asyncio.run(main())


def test_a_runtime_that_is_down_condemns_no_image(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            w.runtime.faults.start_error = "the daemon is gone"
            waiting = asyncio.create_task(w.claim(GOOD, wait_s=30))
            await w.until(lambda: w.runtime.starts > 9, within_s=30)
            w.runtime.faults.start_error = ""
            assert (await waiting).spec == GOOD
            assert await w.node.quarantine() == []

    asyncio.run(main())


def test_starts_that_fail_side_by_side_condemn_no_image(world: Make) -> None:
    async def main() -> None:
        async with world(backoff=BackoffPolicy(5, 5), max_starting=8) as w:
            w.runtime.faults.dies_at_start = True
            claims = [asyncio.create_task(w.claim(BAD, wait_s=2.5)) for _ in range(8)]
            results = await asyncio.gather(*claims, return_exceptions=True)
            assert w.runtime.starts >= 8
            assert all(isinstance(result, CapacityExceeded) for result in results)
            assert await w.node.quarantine() == []

    asyncio.run(main())


def test_a_node_that_is_killed_and_started_again_refuses_what_it_refused(world: Make, short_dir: Path) -> None:
    note = short_dir / "run" / "quarantine.json"

    async def main() -> None:
        async with world(**QUICK) as w:
            await condemn(w)
            await w.until(note.exists)
            left = note.read_bytes()
        note.parent.mkdir()
        note.write_bytes(left)  # a node that ends in order takes it along; one that is killed does not
        async with world(**QUICK) as again:
            starts = again.runtime.starts
            with pytest.raises(Quarantined, match="exit code 7"):
                await again.claim(BAD, wait_s=30)
            assert again.runtime.starts == starts
            assert await again.node.clear_quarantine(BAD.digest)
            await again.until(lambda: note.read_bytes() == b"[]")
        note.parent.mkdir()
        note.write_bytes(b"nonsense")
        async with world(**QUICK) as third:
            assert (await third.claim(BAD)).spec == BAD

    asyncio.run(main())


def test_what_was_refused_before_a_restart_still_is(world: Make) -> None:
    async def main() -> None:
        async with world(**QUICK) as w:
            await condemn(w)
            views = await w.node.quarantine()
        async with world(**QUICK) as again:
            await again.node.restore_quarantine(views)
            with pytest.raises(Quarantined, match="exit code 7"):
                await again.claim(BAD, wait_s=30)
            assert (await again.claim(GOOD)).spec == GOOD

    asyncio.run(main())

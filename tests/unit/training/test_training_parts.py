"""The smaller parts of training: intervals, batches, the watchdog, the learner's thread, reports, demonstrations."""

from __future__ import annotations

import asyncio
import ctypes
import random
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.errors import PlatformUnavailable
from rock.domain.outcome import Completed, LedgerState, Truncated
from roll_core.config.algorithm import Algorithm
from roll_core.errors import LearnerFailed, NoProgress, PlatformOutage
from roll_core.models import train_tokenizer
from roll_core.rollout.prompting import TextRules, TranscriptPrompter
from roll_core.rollout.work import Booking
from roll_core.training.batches import make_batch
from roll_core.training.credit_flow import advantages
from roll_core.training.demonstrations import Demonstration, DemoStep, _slip
from roll_core.training.imitation import to_sample
from roll_core.training.metrics import Rate, RolloutMeter, staleness
from roll_core.training.reporting import SdkReporter, episode_record
from roll_core.training.watchdog import Watch, within
from roll_core.training.worker import Worker
from roll_core.types import Generation, Group, Trajectory, Turn


def trajectory(reward: float = 1.0, version: int = 0, name: str = "ep-1") -> Trajectory:
    turns = (
        Turn((1, 2), Generation((3, 4), (-0.1, -0.2), (version, version), "stop"), "see", " a\n", "a"),
        Turn((5,), Generation((6,), (-0.3,), (version + 1,), "stop"), "see", " b\n", "b", reward=reward),
    )
    return Trajectory(name, "g", "e", "t", 0, version, turns, Completed(reward, reward > 0))


def advantages_of(groups: list[Group], advantage: str, **changes: float) -> torch.Tensor:
    return advantages(Algorithm(advantage=advantage, **changes), make_batch(groups), groups, None)


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_interval_contains_the_rate(successes: int, n: int) -> None:
    rate = Rate.of(min(successes, n), n)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1


def test_wilson_interval_has_the_published_values() -> None:
    rate = Rate.of(8, 10)  # Wilson 1927; checked against statsmodels' proportion_confint
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.4902, 0.9433)


def test_only_sampled_tokens_train() -> None:
    groups = [Group("g", "t", (trajectory(1.0), trajectory(0.0)))]
    batch = make_batch(groups)
    assert batch.tokens_BT[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.mask_BT[0].tolist() == [0, 0, 1, 1, 0, 1]
    assert batch.versions_BT[0].tolist() == [-1, -1, 0, 0, -1, 1]
    torch.testing.assert_close(batch.behaviour_logprobs_BT[0], torch.tensor([0, 0, -0.1, -0.2, 0, -0.3]))
    assert advantages_of(groups, "dr_grpo").tolist() == [[0, 0, 0.5, 0.5, 0, 0.5], [0, 0, -0.5, -0.5, 0, -0.5]]


def test_shorter_rows_are_padded_outside_the_mask() -> None:
    short = Trajectory("ep-2", "g", "e", "t", 0, 0, trajectory().turns[:1], Truncated("turns"))
    batch = make_batch([Group("g", "t", (trajectory(), short))])
    assert batch.attention_BT[1].tolist() == [1, 1, 1, 1, 0, 0]
    assert batch.mask_BT[1, 4:].sum() == 0


def test_staleness_is_told_per_sample_and_per_token() -> None:
    values = staleness([Group("g", "t", (trajectory(version=1), trajectory(version=3)))], version=3)
    assert (values["staleness/mean"], values["staleness/max"]) == (1.0, 2.0)


def test_the_staleness_histogram_sums_to_one_and_its_last_bucket_is_open() -> None:
    members = tuple(trajectory(version=v) for v in (9, 9, 8, 5, 1))
    values = staleness([Group("g", "t", members)], version=9)
    shares = {name: value for name, value in values.items() if name.startswith("staleness/at_")}
    assert shares == {
        "staleness/at_0": 0.4,
        "staleness/at_1": 0.2,
        "staleness/at_2": 0.0,
        "staleness/at_3": 0.0,
        "staleness/at_4_up": 0.4,
    }


def test_a_wait_that_shows_progress_may_take_longer_than_its_deadline() -> None:
    async def main() -> None:
        watch = Watch("a game", 0.3, lambda: "It sleeps.")

        async def slow(steps: int) -> int:
            for _ in range(steps):
                await asyncio.to_thread(time.sleep, 0.05)
                watch.progressed()
            return steps

        assert await watch.over(slow(12)) == 12
        with pytest.raises(NoProgress, match=r"Nothing came of a game for 0\.3 s\. It sleeps\."):
            await watch.over(asyncio.Event().wait())

    asyncio.run(main())


def test_void_episodes_count_in_the_void_rate_only() -> None:
    from rock.domain.outcome import Void, VoidCause

    meter = RolloutMeter()
    meter.add(trajectory(1.0))
    meter.add(Trajectory("ep-2", "g", "e", "t", 0, 0, (), Void(VoidCause.SANDBOX_LOST)))
    values = meter.values()
    assert (values["rollout/success"], values["rollout/void_rate"]) == (1.0, 0.5)


def test_a_wait_without_end_is_named() -> None:
    async def main() -> None:
        with pytest.raises(NoProgress, match=r"Nothing came of the engine for 0\.01 s\. It sleeps\."):
            await within("the engine", asyncio.Event().wait(), 0.01, lambda: "It sleeps.")

    asyncio.run(main())


def test_the_worker_keeps_the_loop_free_and_passes_errors_on() -> None:
    async def main() -> None:
        worker, gate = Worker("test"), threading.Event()
        waiting = asyncio.ensure_future(worker.run(gate.wait, 10))
        await asyncio.sleep(0)
        gate.set()  # only possible because the loop was not blocked
        assert await waiting
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 / 0)
        await worker.close()

    asyncio.run(main())


def test_closing_a_worker_waits_for_the_part_it_is_at_and_no_other() -> None:
    """Else the interpreter ends under torch, and the process aborts."""

    async def main() -> None:
        worker, begun, gate = Worker("closing"), threading.Event(), threading.Event()
        parts: list[int] = []

        def work() -> None:
            for part in range(3):
                worker.go_on()
                begun.set()
                gate.wait(10)
                parts.append(part)

        waiting = asyncio.ensure_future(worker.run(work))
        await asyncio.to_thread(begun.wait, 10)
        waiting.cancel()
        closing = asyncio.ensure_future(worker.close())
        await asyncio.sleep(0)  # it has begun to close
        assert not parts
        gate.set()
        await closing
        assert parts == [0]
        assert not any(t.name == "closing" for t in threading.enumerate())

    asyncio.run(main())


def end_thread(name: str) -> None:
    """Raises SystemExit in the thread, wherever it is."""
    thread = next(t for t in threading.enumerate() if t.name == name)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("busy", [True, False], ids=["while it works", "while it waits"])
def test_who_waits_for_a_thread_that_ends_hears_of_it(busy: bool) -> None:
    async def main() -> None:
        worker, begun = Worker(f"doomed-{busy}"), threading.Event()

        def spin() -> None:
            begun.set()
            while True:
                time.sleep(0.001)

        if busy:
            waiting = [asyncio.ensure_future(worker.run(spin))]
            await asyncio.to_thread(begun.wait, 10)
            end_thread(f"doomed-{busy}")
        else:
            end_thread(f"doomed-{busy}")
            waiting = [asyncio.ensure_future(worker.run(lambda: 1)) for _ in range(3)]
        for future in waiting[:1] if busy else waiting[1:]:
            with pytest.raises(LearnerFailed, match="ended"):
                await asyncio.wait_for(future, 10)
        for future in waiting:
            future.cancel()
        await worker.close()

    asyncio.run(main())


def test_a_reporter_that_ends_by_itself_is_noticed(monkeypatch) -> None:
    async def main() -> None:
        platform = FlakyPlatform()

        async def broken(run_id, points) -> None:
            raise KeyError("a bug")

        platform.report_metrics = broken
        reporter = SdkReporter(platform, "run-1", outage_s=60)
        reporter.metrics(1, {"a/b": 1.0})
        while not reporter._task.done():  # noqa: ASYNC110 - its end is what the test is about
            await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(PlatformOutage, match="ended by itself: KeyError"):
                reporter.check()
        with pytest.raises(PlatformOutage, match="ended by itself"):
            await reporter.close()

    asyncio.run(main())


class FlakyPlatform:
    """The three calls that reporting makes; away until told otherwise."""

    url = "http://platform"

    def __init__(self) -> None:
        self.away = True
        self.calls = 0
        self.episodes: list[str] = []
        self.steps: list[int] = []
        self.called = asyncio.Event()

    async def report_metrics(self, run_id, points) -> None:
        self._arrive()
        self.steps += [p.step for p in points]

    async def report_episodes(self, run_id, episodes) -> None:
        self._arrive()
        self.episodes += [e.id for e in episodes]

    async def update_run(self, run_id, update) -> None:
        self._arrive()

    def _arrive(self) -> None:
        self.calls += 1
        self.called.set()
        if self.away:
            raise PlatformUnavailable("No platform answers.")


def test_reports_wait_for_a_platform_that_comes_back(monkeypatch) -> None:
    monkeypatch.setattr("roll_core.training.reporting._RETRY_S", 0.001)

    async def main() -> None:
        platform = FlakyPlatform()
        reporter = SdkReporter(platform, "run-1", outage_s=60)
        for step in range(100):
            reporter.metrics(step, {"a/b": 1.0})
            booking = Booking(f"ep-{step}", LedgerState.TRAINED, step, trajectory(name=f"ep-{step}"))
            reporter.episode(booking, phase="train", split="train")
        await platform.called.wait()
        reporter.check()
        platform.away = False
        await reporter.close()
        assert platform.steps == list(range(100))
        assert platform.episodes == [f"ep-{step}" for step in range(100)]

    asyncio.run(main())


def test_a_platform_that_stays_away_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr("roll_core.training.reporting._RETRY_S", 0.001)

    async def main() -> None:
        clock = iter(range(0, 10_000, 50))
        reporter = SdkReporter(FlakyPlatform(), "run-1", outage_s=120, clock=lambda: next(clock))
        reporter.metrics(1, {"a/b": 1.0})
        await reporter.close()
        with pytest.raises(PlatformOutage, match="could not be reported"):
            reporter.check()

    asyncio.run(main())


def test_a_record_says_what_the_episode_was() -> None:
    record = episode_record(trajectory(), Booking("ep-1", LedgerState.TRAINED, 4, None), phase="train", split="train")
    assert (record.outcome, record.reward, record.success, record.step) == ("completed", 1.0, True, 4)
    assert [t.action for t in record.turns] == ["a", "b"]
    cancelled = Trajectory("ep-2", "g", "e", "t", 0, 0, (), Truncated("cancelled"))
    record = episode_record(cancelled, Booking("ep-2", LedgerState.STALE, 4, None), phase="train", split="train")
    assert (record.outcome, record.reward, record.success) == ("cancelled", None, None)


def test_negative_advantages_can_weigh_less() -> None:
    groups = [Group("g", "t", (trajectory(1.0), trajectory(0.0)))]
    full, half = (advantages_of(groups, "dr_grpo", negative_weight=w) for w in (1.0, 0.5))
    assert torch.equal(half[0], full[0])
    assert torch.equal(half[1], full[1] / 2)


def test_the_penalty_of_invalid_actions_moves_credit_to_the_other_turns_and_adds_none() -> None:
    won, lost = trajectory(1.0), trajectory(0.0)
    turns = (won.turns[0], replace(won.turns[1], valid=False))
    groups = [Group("g", "t", (replace(won, turns=turns), lost))]
    plain = advantages_of(groups, "dr_grpo")
    fined = advantages_of(groups, "dr_grpo", invalid_action_penalty=0.25)
    invalid = torch.tensor(groups[0].members[0].invalid_mask()).bool()
    assert invalid.sum() == len(turns[1].generation.token_ids)
    mask = torch.tensor([*groups[0].members[0].response_mask(), *lost.response_mask()]).bool()
    change = (fined - plain)[0][: len(invalid)]
    baseline = 0.25 * invalid.sum() / mask.sum()
    assert torch.allclose(change[invalid], baseline - 0.25)
    assert torch.allclose((fined - plain).sum(), torch.tensor(0.0), atol=1e-6)
    others = torch.tensor(lost.response_mask()).bool()
    assert torch.allclose((fined - plain)[1][: len(others)][others], baseline)


def test_slips_are_seen_but_not_imitated_and_observations_weigh_what_is_asked() -> None:
    tokenizer = train_tokenizer(["go to fridge 1\nyou see mug\n> take mug"] * 3, 300)
    prompter = TranscriptPrompter(tokenizer, TextRules())
    steps = (DemoStep("you see mug", "go to fridge 1", slip=True), DemoStep("you see mug", "take mug"))
    sample = to_sample(Demonstration("t", 0, steps), prompter, max_tokens=1000, observation_weight=0.25)
    assert tokenizer.decode(sample.tokens) == "you see mug\n> go to fridge 1\nyou see mug\n> take mug\n"
    by_weight = {w: [t for t, m in zip(sample.tokens, sample.mask, strict=True) if m == w] for w in (0.0, 1.0)}
    assert tokenizer.decode(by_weight[1.0]) == " take mug\n"
    assert tokenizer.decode(by_weight[0.0][1:]) == " go to fridge 1\n"  # the first token has nothing before it
    assert set(sample.mask) == {0.0, 0.25, 1.0}


def test_a_slip_does_nothing_now_so_the_plan_still_holds() -> None:
    plan = ["open door", "go out"]
    rng = random.Random(0)
    for _ in range(50):
        assert _slip(plan, {"admissible_commands": ["open door"]}, 0.8, rng) in {None, "go out"}
    assert _slip(plan, {"admissible_commands": plan}, 0.8, rng) is None
    assert _slip(plan, {}, 0.8, rng) is None
    assert _slip(plan, {"admissible_commands": []}, 0.0, rng) is None


def test_a_demonstration_is_the_sequence_that_an_episode_would_be() -> None:
    tokenizer = train_tokenizer(["go to fridge 1\nyou see mug\n> take mug"] * 3, 300)
    prompter = TranscriptPrompter(tokenizer, TextRules())
    demonstration = Demonstration("t", 0, (DemoStep("you see mug", "take mug"), DemoStep("ok", "go to fridge 1")))
    sample = to_sample(demonstration, prompter, max_tokens=1000)
    assert tokenizer.decode(sample.tokens) == "you see mug\n> take mug\nok\n> go to fridge 1\n"
    imitated = [t for t, m in zip(sample.tokens, sample.mask, strict=True) if m]
    assert tokenizer.decode(imitated) == " take mug\n go to fridge 1\n"
    assert to_sample(demonstration, prompter, max_tokens=3).tokens == sample.tokens[:3]

"""Reports an invented run through the real SDK, so that the browser tests have something to see.

The numbers are made up and named so (``browser-test``): they show that the page draws what the platform stores, and
nothing about training. Never use it for a screenshot of a result.

    python tests/browser/seed_run.py --url http://127.0.0.1:7625 [--steps 120]
"""

from __future__ import annotations

import argparse
import math
import random
from datetime import UTC, datetime, timedelta

from rock.sdk import (
    EpisodeRecord,
    EpisodeRhythm,
    LedgerState,
    MetricPoint,
    RhythmCoupling,
    RhythmHead,
    RockSync,
    RunCreate,
    RunUpdate,
    TurnRecord,
)

NAME = "browser-test"
TASKS = ("pick_and_place-Mug-Desk-301", "pick_heat_then_place-Potato-Fridge-7", "look_at_obj-Book-DeskLamp-312")
VOID_EVERY, STALE_EVERY, FILTERED_EVERY = 41, 23, 9
STEP_S = 4.0

FIRST_OBSERVATION = """You are in the middle of a room. Looking quickly around you, you see a bed 1, a desk 2, a desk 1,
a drawer 6, a drawer 5, a shelf 3 and a garbagecan 1.

Your task is to: put a mug in desk.

Admissible: go to bed 1, go to desk 1, go to desk 2, go to drawer 5, go to drawer 6, go to shelf 3, inventory, look"""
SHELF = "You arrive at shelf 3. On the shelf 3, you see a mug 2 and a <b>book</b> 1."
SCRIPT = (
    (FIRST_OBSERVATION, "<think>A mug is often on a shelf.</think>", "go to shelf 3"),
    (SHELF, "", "take mug 2 from shelf 3"),
    ("You pick up the mug 2 from the shelf 3.", "", "go to desk 1"),
    ("You arrive at desk 1. On the desk 1, you see a pen 1.", "", "move mug 2 to desk 1"),
)


def metrics(steps: int, start: datetime, rng: random.Random) -> list[MetricPoint]:
    points = []
    for step in range(1, steps + 1):
        progress = 1 - math.exp(-step / (steps / 2.2))
        success = min(1.0, max(0.0, 0.22 + 0.42 * progress + rng.gauss(0, 0.05)))
        values = {
            "rollout/success": success,
            "rollout/reward": success - 0.05,
            "rollout/void_rate": max(0.0, rng.gauss(0.012, 0.012)),
            "rollout/tokens_per_s": rng.gauss(1900, 120),
            "staleness/mean": abs(rng.gauss(0.9, 0.25)),
            "staleness/max": float(rng.choice((1, 2, 2, 2, 3))),
            "staleness/token_mean": abs(rng.gauss(0.6, 0.2)),
            "staleness/at_0": 0.4,
            "staleness/at_1": 0.45,
            "staleness/at_2": 0.15,
            "engine/busy": rng.uniform(0.7, 0.95),
            "time/step_s": STEP_S,
            "time/batch_wait_s": 2.1,
            "roofline/workers": 2.0,
            "roofline/ideal_step_s": 1.6 + rng.gauss(0, 0.05),
            "roofline/efficiency": 0.4 + 0.2 * progress,
            "bubble/total": 0.5,
            "bubble/tail": 0.2,
            "bubble/environment": 0.12,
            "bubble/train_wait": 0.08,
            "bubble/sync": 0.04,
            "bubble/redundancy": 0.06,
            "mismatch/k3": abs(rng.gauss(2e-4, 4e-5)),
            "mismatch/k3_at_0": abs(rng.gauss(5e-5, 1e-5)),
            "mismatch/ess": 0.97 - abs(rng.gauss(0, 0.01)),
            "mismatch/clipped": abs(rng.gauss(0.01, 0.004)),
            "alerts/firing": float(step > steps - 3),
            "learner/loss": rng.gauss(0.0, 0.02),
            "learner/entropy": 0.9 - 0.5 * progress + rng.gauss(0, 0.02),
            "learner/grad_norm": abs(rng.gauss(0.4, 0.1)),
            "learner/clip_fraction": abs(rng.gauss(0.05, 0.02)),
            "learner/kl": abs(rng.gauss(0.002, 0.001)),
        }
        if step % 40 == 0:
            rate = 0.2 + 0.4 * progress
            values |= {"eval/success": rate, "eval/low": rate - 0.06, "eval/high": rate + 0.06}
        if step == 1:
            values |= {"warm_start/loss": 0.41, "warm_start/demonstrations": 300.0}
        points.append(MetricPoint(step=step, at=start + timedelta(seconds=STEP_S * step), values=values))
    return points


def episode(i: int, steps: int, count: int, start: datetime, rng: random.Random) -> EpisodeRecord:
    step = 1 + i * steps // count
    began = start + timedelta(seconds=STEP_S * (step - 1))
    void = i % VOID_EVERY == 7
    success = not void and rng.random() < 0.22 + 0.4 * step / steps
    ledger = LedgerState.TRAINED
    if void:
        ledger = LedgerState.VOID
    elif i % STALE_EVERY == 3:
        ledger = LedgerState.STALE
    elif i % FILTERED_EVERY == 2:
        ledger = LedgerState.FILTERED
    turns = turns_of(step, success, rng)[: 2 if void else None]
    return EpisodeRecord(
        id=f"ep-{i:010x}",
        group_id=f"g-{i // 8}",
        env="alfworld",
        task=TASKS[i % len(TASKS)],
        seed=i,
        step=step,
        policy_version=max(0, step - 1),
        ledger=ledger,
        outcome="void" if void else "completed" if success else "truncated",
        reason="sandbox_lost: container died (exit code 137)" if void else "" if success else "turn limit of 50",
        reward=None if void else float(success),
        success=None if void else success,
        sandbox_id=f"sb-{i:010x}",
        turns=turns,
        turn_count=len(turns),
        generated_tokens=sum(t.tokens for t in turns),
        sandbox_s=rng.uniform(1, 4),
        open_s=rng.uniform(0.002, 0.3),
        reset_s=rng.uniform(0.5, 9.0),
        started_at=began,
        ended_at=began + timedelta(seconds=rng.uniform(1, STEP_S)),
    )


def turns_of(step: int, success: bool, rng: random.Random) -> tuple[TurnRecord, ...]:
    return tuple(
        TurnRecord(
            observation=observation,
            response=f"{thought}<action>{action}</action>",
            action=action,
            reward=float(success and n == len(SCRIPT) - 1),
            tokens=rng.randint(9, 40),
            policy_version=step - 1 + (n > 1),
            mean_logprob=-abs(rng.gauss(0.35, 0.2)),
            generate_s=rng.uniform(0.05, 0.5),
            env_s=rng.uniform(0.001, 0.02),
        )
        for n, (observation, thought, action) in enumerate(SCRIPT)
    )


def rhythm(i: int, step: int) -> EpisodeRhythm:
    tokens = ("Your task: <b>mug</b>\n", "> ", "go", " to", " shelf", " 3", "\nYou arrive.\n", "> ", "take", " mug")
    own = (2, 3, 4, 5, 8, 9)
    waad = (6.0, 1.5, 1.0, 0.5, 5.0, 1.0)
    return EpisodeRhythm(
        episode_id=f"ep-{i:010x}",
        step=step,
        task=TASKS[i % len(TASKS)],
        success=True,
        strategy="coupled",
        coupling=RhythmCoupling(
            tokens=6, entropy=3.0, entropy_tokens=6, peaks=1, peak_entropy=0.76, anchors=1, followed=1, expected=0.8
        ),
        tokens=tokens,
        own=own,
        waad=waad,
        fai=(0.01, 0.08, 0.05, 0.02, 0.03, 0.0),
        change=(4.5, 0.5, 0.5, 0.0, 4.0, 0.0),
        gamma=(1.2, 1.3, 1.5, 1.0, 1.0, 1.0),
        advantage=(0.6, 0.65, 0.75, 0.5, 0.5, 0.5),
        entropy=(0.76, 0.4, 0.4, 0.4, 0.6, 0.44),
        anchor=(False, True, True, False, False, False),
        preplan=(True, False, False, False, False, False),
        heads=(
            RhythmHead(layer=1, head=0, span=2.5, kind="local"),
            RhythmHead(layer=1, head=1, span=40.0, kind="global"),
        ),
    )


def seed(rock: RockSync, *, steps: int = 120, of_steps: int = 200, episodes: int = 600) -> str:
    """Report the run; returns its id. Ends now, so that the page sees a trainer that spoke a moment ago."""
    rng = random.Random(7)
    start = datetime.now(UTC) - timedelta(seconds=STEP_S * steps)
    before = rock.create_run(RunCreate(name=NAME, recipe={"env": "alfworld", "alpha": 1, "seed": 7}, total_steps=9))
    rock.report_metrics(before.id, metrics(40, start - timedelta(hours=1), rng))
    rock.update_run(before.id, RunUpdate(status="stopped"))
    run = rock.create_run(RunCreate(name=NAME, recipe={"env": "alfworld", "alpha": 2, "seed": 7}, total_steps=of_steps))
    rock.report_metrics(run.id, metrics(steps, start, rng))
    rock.report_episodes(run.id, [episode(i, steps, episodes, start, rng) for i in range(episodes)])
    rock.report_rhythms(run.id, [rhythm(395, steps), rhythm(390, steps - 1)])
    detail = "alert void-rate firing: rollout/void_rate 7% over 10 steps, above 5%"
    rock.update_run(run.id, RunUpdate(status="training", detail=detail))
    return run.id


def finish(rock: RockSync, run_id: str) -> None:
    summary = {
        "success_before": {"rate": 0.24, "low": 0.185, "high": 0.304, "n": 200},
        "success_after": {"rate": 0.61, "low": 0.541, "high": 0.675, "n": 200},
    }
    rock.update_run(run_id, RunUpdate(status="completed", summary=summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default=None)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--finish", action="store_true", help="end the run with measured rates")
    args = parser.parse_args()
    with RockSync(args.url) as rock:
        run_id = seed(rock, steps=args.steps)
        if args.finish:
            finish(rock, run_id)
        print(run_id)


if __name__ == "__main__":
    main()

"""Reinforcement learning on bugs in repositories through ``rock train`` itself, and what its books say afterwards.

The recipe is ``swebench-qwen3``, cut down to a model of random weights on the CPU. Two arms: ``tiny``, the model's own
words, and ``expert``, whose engine answers the prompt with the reference solution. Everything else is the same: run,
sandboxes, judge, learner, ledger.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from envs.swebench.judge.rows import Row
from rock.domain.outcome import LedgerState
from rock.sdk import EpisodeRecord, Rock
from roll_core.engines.base import SamplingParams
from roll_core.engines.torch_engine import TorchEngine
from roll_core.models import CausalLM, ModelConfig, Tokenizer
from roll_core.models.checkpoint import save_hf
from roll_core.models.tokenizer import train_tokenizer
from roll_core.rollout.machine import MachineState
from roll_core.rollout.prompting import transcript_action
from roll_core.training import assembly, cli
from roll_core.training.checkpoint import load_state
from roll_core.training.run import RunDirectory
from roll_core.types import Generation

RECIPE = "swebench-qwen3"
STEPS, EVALUATED = 2, 2
_CONTEXT = 8192
_CUT_DOWN = (
    "prompt.format=transcript",
    "engine.device=cpu", "engine.dtype=float32", "engine.slots=4", "learner.device=cpu",
    "env.options={max_steps: 3, command_s: 20, max_output_bytes: 400}",
    "rollout.concurrency=2", "rollout.group_size=2", "rollout.groups_per_batch=2",
    "rollout.max_turns=4", "rollout.max_tokens_per_turn=16",
    # Every reward of an arm is the same: a step must be taken all the same.
    "algorithm.filter_zero_variance=false",
    f"model.max_context={_CONTEXT}", f"evaluation.tasks={EVALUATED}", f"training.steps={STEPS}",
    "training.threads=1", "checkpoint.every_steps=1",
)  # fmt: skip


class Expert(TorchEngine):
    """Reads in the prompt which bug it is, and answers with its reference solution; the second turn submits."""

    def __init__(self, rows: Sequence[Row], *args: Any, tokenizer: Tokenizer, **settings: Any) -> None:
        super().__init__(*args, tokenizer=tokenizer, **settings)
        self._words = tokenizer
        self._solutions: dict[str, list[str]] = {}
        for row in rows:
            self._solutions.setdefault(row.problem_statement.strip(), []).append(applied(row))

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        prompt, turn = self._words.decode(prompt_ids), int(request_id.rpartition("/")[2])
        # Two bugs may be noticed by the same checks: only one solution applies.
        solution = next(" || ".join(some) for said, some in self._solutions.items() if said in prompt)
        ids = tuple(self._words.encode(transcript_action("submit" if turn else solution)))
        return Generation(ids, (0.0,) * len(ids), (self.stats().version,) * len(ids), "stop")


def applied(row: Row) -> str:
    """The command that applies the reference solution, on one line: a line break ends an action."""
    patch = base64.b64encode(f"{row.patch.rstrip(chr(10))}\n".encode()).decode()
    return f'(python3 -c \'import base64; print(base64.b64decode("{patch}").decode(), end="")\' | git apply -)'


def tiny_checkpoint(folder: Path, rows: Sequence[Row]) -> Path:
    """Random weights, and a tokenizer of the bugs' own words."""
    words = train_tokenizer((row.problem_statement for row in rows), 512)
    shape = ModelConfig(
        vocab=words.vocab_size, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=64,
        max_context=_CONTEXT,
    )  # fmt: skip
    save_hf(CausalLM(shape, seed=0), folder, words)
    return folder


def train_arms(url: str, rows: Sequence[Row], place: Path) -> dict[str, Any]:
    """Both arms on the platform at ``url``; what the books of each say, by arm. Blocks for minutes."""
    start = tiny_checkpoint(place / "tiny", rows)
    return {
        "tiny": _arm(url, "tiny", start, place, TorchEngine),
        "expert": _arm(url, "expert", start, place, partial(Expert, rows)),
    }


def sound(arms: dict[str, Any]) -> bool:
    """Whether every episode of both is accounted for, and the expert won all of its own."""
    whole = all(arm["conserved"] and arm["ledgers_agree"] and not arm["unaccounted"] for arm in arms.values())
    return whole and set(arms["expert"]["success"].values()) == {1.0}


def _arm(url: str, name: str, start: Path, place: Path, engine: Any) -> dict[str, Any]:
    runs = place / f"runs-{name}"
    settings = [*_CUT_DOWN, f"model.path={json.dumps(str(start))}", f"checkpoint.directory={json.dumps(str(runs))}"]
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr), mock.patch.object(assembly, "TorchEngine", engine):
        cli.train(RECIPE, settings, name=name, url=url)
    (path,) = runs.iterdir()
    latest = RunDirectory(path).checkpoints(1).latest()
    assert latest is not None
    run_id = RunDirectory(path).identity().run_id
    books = asyncio.run(_books(url, run_id, load_state(latest).machine))
    return books | {"steps": STEPS, "elapsed_s": round(time.monotonic() - began, 1)}


async def _books(url: str, run_id: str, trainer: MachineState) -> dict[str, Any]:
    async with Rock(url) as rock:
        ledger = await rock.ledger(run_id)
        episodes = (await rock.episodes(run_id, limit=1000)).episodes
    return {
        "dispatched": ledger.dispatched,
        "accounts": {state.value: count for state, count in ledger.accounts.items() if count},
        "tokens": sum(ledger.tokens.values()),
        "sandbox_s": round(sum(ledger.sandbox_s.values()), 1),
        "conserved": ledger.conserved and not ledger.accounts.get(LedgerState.IN_FLIGHT, 0),
        "unaccounted": _unaccounted(episodes, trainer.next_episode),
        "ledgers_agree": _agree(episodes, trainer),
        "success": {phase: _success(episodes, phase) for phase in ("train", "eval")},
        "void": {one.id: one.reason for one in episodes if one.outcome == "void"},
    }


def _number(episode: EpisodeRecord) -> int:
    return int(episode.id.rpartition("-")[2])


def _unaccounted(episodes: Sequence[EpisodeRecord], dispatched: int) -> list[int]:
    """Episodes are numbered as they are dispatched: those that the platform has no record of. ``dispatched``: before
    the last evaluation, whose episodes come behind, one for each task and one more for each void."""
    last = [one for one in episodes if _number(one) >= dispatched]
    expected = dispatched + EVALUATED + sum(one.outcome == "void" for one in last)
    return sorted(set(range(expected)).symmetric_difference(map(_number, episodes)))


def _agree(episodes: Sequence[EpisodeRecord], trainer: MachineState) -> bool:
    """Whether platform and trainer charged the same accounts with the same episodes, tokens and seconds."""
    ended = [one for one in episodes if _number(one) < trainer.next_episode]
    for state, account in trainer.ledger.accounts.items():
        told = [one for one in ended if one.ledger is state]
        spent = (len(told), sum(one.generated_tokens for one in told))
        seconds = sum(one.sandbox_s for one in told)
        if spent != (account.episodes, account.tokens) or abs(seconds - account.sandbox_s) > 1e-3:
            return False
    return not trainer.ledger.in_flight


def _success(episodes: Sequence[EpisodeRecord], phase: str) -> float:
    told = [one.success for one in episodes if one.phase == phase and one.success is not None]
    return sum(told) / max(1, len(told))

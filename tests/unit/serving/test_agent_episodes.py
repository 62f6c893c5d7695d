"""Episodes that a program plays: every way they can end, what they hold, and that nothing of a program is left."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import httpx
import psutil
import pytest

from rock.domain import errors
from rock.domain.outcome import Completed, Truncated, Void, VoidCause
from roll_core.engines.base import SamplingParams
from roll_core.errors import EngineDead, NoProgress, RecipeError
from roll_core.rollout.episode import EpisodeLimits
from roll_core.rollout.work import EpisodeSpec
from roll_core.serving.agent import AgentPlayer, Endpoint
from roll_core.serving.app import make_app
from roll_core.serving.doors import EpisodeKeys
from roll_core.serving.programs import AgentTask, Command, Coroutine
from roll_core.serving.server import serving

from .conftest import END, TOKENIZER, Parrot

SPEC = EpisodeSpec("ep-1", "g-1", "task", 3, 5, 2)


class Room:
    """An environment that is won by the third ``hello``; ``fails`` is raised by a step instead."""

    sandbox_id = "sb-1"

    def __init__(self, fails: Exception | None = None, *, unknown: bool = False) -> None:
        self.actions: list[str] = []
        self.closed = 0
        self._fails = fails
        self._unknown = unknown

    @asynccontextmanager
    async def open(self, task, seed):
        try:
            yield self
        finally:
            self.closed += 1

    async def reset(self, task, seed, options):
        return f"room of {task}", {"doors": 1}

    async def step(self, action):
        if self._fails is not None:
            raise self._fails
        self.actions.append(action)
        won = self.actions.count("hello") == 3 or action == "submit"
        info = {"is_action_valid": not self._unknown, **({"success": True} if won else {})}
        return f"seen {len(self.actions)}", 0.5, won, False, info


async def ask(task: AgentTask, *texts: str, key: str = "", **more) -> httpx.Response:
    """Texts are by turns the user's and the policy's."""
    roles = ("user", "assistant")
    body = {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key or task.api_key}"}) as client:
        return await client.post(f"{task.base_url}/chat/completions", json=body)


class Function:
    """A program that is a function of a test."""

    def __init__(self, function) -> None:
        self._function = function

    async def play(self, task: AgentTask) -> str:
        return await self._function(task) or ""


async def honest(task: AgentTask) -> None:
    said = [str(task.observation)]
    while True:
        answer = (await ask(task, *said)).raise_for_status().json()["choices"][0]["message"]["content"]
        step = await task.step(answer)
        if step["over"]:
            return
        said += [answer, step["observation"]]


def play(renderer, program, room=None, engine=None, *, finish=None, during=None, **limits):
    """The trajectory; with ``during``, what it leaves when it is cancelled as soon as that returns."""

    async def main():
        keys = EpisodeKeys()
        bounds = {
            "max_turns": 5, "max_tokens_per_turn": 40, "max_context_tokens": 500, "open_s": 5.0, "reset_s": 5.0,
            "step_s": 5.0, "generate_s": 5.0, "episode_s": 30.0,
        }  # fmt: skip
        async with serving(make_app(keys, TOKENIZER, "policy"), "127.0.0.1", 0) as address:
            player = AgentPlayer(
                "e", {}, room or Room(), engine or Parrot(), None,
                SamplingParams(max_tokens=40, stop_token_ids=(TOKENIZER.id_of(END),)),
                EpisodeLimits(**(bounds | limits)),
                endpoint=Endpoint(f"{address}/v1", keys, renderer, "policy"),
                program=program if hasattr(program, "play") else Function(program), grace_s=0.2, finish=finish,
            )  # fmt: skip
            episode = player.episode(SPEC)
            playing = asyncio.ensure_future(episode.play())
            if during is None:
                return await playing
            await during()
            playing.cancel()
            await asyncio.wait({playing})
            assert playing.cancelled()
            return episode.so_far(Truncated("cancelled"))

    return asyncio.run(main())


def test_an_episode_that_is_won_has_its_turns_rewards_and_tokens(renderer) -> None:
    room, engine = Room(), Parrot()
    trajectory = play(renderer, honest, room, engine)
    assert trajectory.outcome == Completed(1.5, True)
    assert [(t.observation, t.action, t.reward, t.valid) for t in trajectory.turns] == [
        ("room of task", "hello", 0.5, True), ("seen 1", "hello", 0.5, True), ("seen 2", "hello", 0.5, True),
    ]  # fmt: skip
    assert TOKENIZER.decode(trajectory.token_ids()[: len(trajectory.turns[0].context_ids)]).endswith("assistant\n")
    assert TOKENIZER.decode(trajectory.token_ids()).count("hello<|im_end|>") == 3
    assert len({p.seed for p in engine.params}) == 3, "each answer has its own random stream"
    assert (room.closed, engine.released, trajectory.side_tokens) == (1, ["ep-1"], 0)


def test_what_a_program_left_behind_is_charged_and_not_trained(renderer) -> None:
    async def twice(task: AgentTask) -> None:
        await ask(task, "a summary, please")
        await honest(task)

    trajectory = play(renderer, twice)
    assert trajectory.outcome == Completed(1.5, True)
    assert len(trajectory.turns) == 3
    one = len(TOKENIZER.encode("hello")) + 1
    assert (trajectory.side_tokens, trajectory.spent_tokens) == (one, 4 * one)


async def one_answer(task: AgentTask) -> str:
    await ask(task, "a")
    return ""


async def crash_after(task: AgentTask) -> str:
    await one_answer(task)
    return "exit status 1"


async def crash_when_won(task: AgentTask) -> str:
    await honest(task)
    return "exit status 1"


async def silent(task: AgentTask) -> None:
    return


async def stuck(task: AgentTask) -> None:
    said = ["a"]
    while (answer := await ask(task, *said)).status_code == 200:
        said += [answer.json()["choices"][0]["message"]["content"], "again"]
    assert answer.status_code == 400


async def ignoring(task: AgentTask) -> None:
    while True:
        await ask(task, "a")


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        (one_answer, Truncated("agent", 0.0)),
        (crash_after, Void(VoidCause.ENVIRONMENT_ERROR, "agent: exit status 1")),
        (crash_when_won, Completed(1.5, True)),
        (silent, Void(VoidCause.ENVIRONMENT_ERROR, "agent: it ended without an answer of the policy")),
        (stuck, Truncated("turns", 0.0)),
        (ignoring, Truncated("turns", 0.0)),
    ],
)
def test_how_a_program_ends_decides_how_the_episode_does(renderer, program, outcome) -> None:
    assert play(renderer, program).outcome == outcome


def test_limits_of_context_and_of_invalid_turns_truncate(renderer) -> None:
    assert play(renderer, stuck, max_context_tokens=120, max_turns=50).outcome == Truncated("context", 0.0)
    assert play(renderer, honest, Room(unknown=True), max_invalid_turns=2).outcome == Truncated("stuck", 1.0)


def test_the_last_action_of_the_recipe_submits_what_the_program_left(renderer) -> None:
    room = Room()
    assert play(renderer, one_answer, room, finish="submit").outcome == Completed(0.5, True)
    assert room.actions == ["submit"]
    crashed = play(renderer, crash_after, room := Room(), finish="submit")
    assert isinstance(crashed.outcome, Void)
    assert room.actions == []


def test_a_lost_sandbox_voids_the_episode_whatever_the_program_makes_of_it(renderer) -> None:
    async def shrugging(task: AgentTask) -> None:
        await one_answer(task)
        with pytest.raises(errors.SandboxLost):
            await task.step("hello")

    outcome = play(renderer, shrugging, Room(errors.SandboxLost("it is gone"))).outcome
    assert isinstance(outcome, Void)
    assert outcome.cause is VoidCause.SANDBOX_LOST


def test_an_engine_that_dies_or_hangs_stops_the_run(renderer) -> None:
    with pytest.raises(EngineDead):
        play(renderer, one_answer, engine=Parrot([EngineDead("it died")]))
    with pytest.raises(NoProgress, match="generate_s"):
        play(renderer, ignoring, engine=Parrot([None]), generate_s=0.05)


def test_a_program_that_takes_too_long_is_ended_and_the_episode_void(renderer) -> None:
    async def endless(task: AgentTask) -> None:
        await one_answer(task)
        await asyncio.Event().wait()

    outcome = play(renderer, endless, episode_s=0.5).outcome
    assert outcome == Void(VoidCause.DEADLINE, "agent exceeded 0.5 s per episode")


def test_a_cancelled_episode_ends_its_answer_and_knows_what_it_cost(renderer) -> None:
    engine = Parrot(["hello", None])

    async def two_answers(task: AgentTask) -> None:
        await one_answer(task)
        engine.asked.clear()
        await ask(task, "a", "hello", "b")

    async def second_asked() -> None:
        while len(engine.prompts) < 2:
            await engine.asked.wait()
            await asyncio.sleep(0)

    room = Room()
    trajectory = play(renderer, two_answers, room, engine, during=second_asked)
    assert (len(trajectory.turns), trajectory.side_tokens) == (1, 2)
    assert (engine.aborted, room.closed) == (["ep-1/1"], 1)


# --- programs of their own -------------------------------------------------------------------------------------------

LEAVES_A_CHILD = """
import os, subprocess, sys, httpx
key = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
body = {"model": os.environ["OPENAI_MODEL"], "messages": [{"role": "user", "content": os.environ["ROCK_TASK"]}]}
httpx.post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json=body, headers=key).raise_for_status()
child = subprocess.Popen(["sleep", "3600"])
print(os.getcwd(), os.getpid(), child.pid, *sorted(k for k in os.environ if k.startswith("SECRET")))
if sys.argv[1] == "hang":
    sys.stdout.flush()
    open(sys.argv[2], "w").write(f"{os.getpid()} {child.pid}")
    child.wait()
sys.exit(3)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_command_that_crashes_tells_its_last_words_and_leaves_nothing(renderer, monkeypatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TRAINER", "x")
    command = Command([sys.executable, "-c", LEAVES_A_CHILD, "crash"], {"SECRET_GIVEN": "y"})
    outcome = play(renderer, command).outcome
    assert isinstance(outcome, Void)
    status, _, words = outcome.detail.partition(", last words: ")
    assert status == "agent: exit status 3"
    folder, _, child, *secrets = words.split()
    assert secrets == ["SECRET_GIVEN"]
    assert not os.path.exists(folder)
    assert not alive(int(child))


def test_a_cancelled_episode_ends_its_command_and_all_that_it_started(renderer, tmp_path) -> None:
    mark = tmp_path / "pids"

    async def started() -> None:
        while not (mark.exists() and mark.read_text()):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)

    command = Command([sys.executable, "-c", LEAVES_A_CHILD, "hang", str(mark)], {})
    play(renderer, command, during=started)
    assert not any(alive(int(pid)) for pid in mark.read_text().split())


def test_programs_that_are_not_there_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="'no-such-program'"):
        Command(["no-such-program"], {})
    with pytest.raises(RecipeError, match="no_such_module"):
        Coroutine("no_such_module:play")


def test_a_coroutine_that_raises_has_crashed(renderer, monkeypatch) -> None:
    program = Coroutine("asyncio:sleep")  # called with a task where it takes seconds
    outcome = play(renderer, program).outcome
    assert isinstance(outcome, Void)
    assert "TypeError" in outcome.detail


TRAINER = """
import asyncio, sys
from roll_core.serving.programs import AgentTask, Command

program = Command(["sh", "-c", f"echo $$ > {sys.argv[1]}; sleep 3600"], {})
task = AgentTask("http://127.0.0.1:9/v1", "key", "policy", "ep-1", "task", 0, "", {}, None)
asyncio.run(program.play(task))
"""


def test_a_program_does_not_outlive_a_trainer_that_is_killed(tmp_path) -> None:
    mark = tmp_path / "pid"
    trainer = psutil.Popen([sys.executable, "-c", TRAINER, str(mark)], env={**os.environ, "TMPDIR": str(tmp_path)})
    while not (mark.exists() and mark.read_text().strip()):
        assert trainer.poll() is None
    program = psutil.Process(int(mark.read_text()))
    family = [program, *program.children()]
    trainer.kill()
    trainer.wait()
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left

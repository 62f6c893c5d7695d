"""The fast engine against TextWorld, Fast Downward and ALFWorld as shipped: the traces must be identical."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.alfworld.engine import Game
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.grammar import Each, Symbol, Text, Value
from envs.alfworld.shipped import ShippedPlay
from envs.alfworld.store import Store
from envs.alfworld.traces import compare
from envs.alfworld.twl2 import read_template

pytestmark = [
    pytest.mark.usefixtures("shipped_engine"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # TextWorld leaves game files open
]

TASKS = [f"train/{n:06d}" for n in range(6)] + [f"heldout_unseen/{n:04d}" for n in range(6)]


@pytest.mark.parametrize("task", TASKS)
def test_traces_are_identical(store: Store, task: str) -> None:
    texts = store.texts(task)
    play = Game(texts.domain, texts.grammar, texts.problem).start()
    result = compare(play, ShippedPlay.from_texts(texts), texts.plan, 20, task)
    assert result.difference == ""
    assert result.steps == 20


def _unusual(problem: str, change: str) -> str:
    """A problem with what our generator never makes."""
    receptacles = re.findall(r"^\(receptacleAtLocation (\S+) (\S+)\)$", problem, re.MULTILINE)
    things = re.findall(r"^\(inReceptacle (\S+) \S+\)$", problem, re.MULTILINE)
    closed = re.findall(r"^\(openable (\S+)\)$", problem, re.MULTILINE)
    if change == "the agent starts at a receptacle, two share its place":
        problem = re.sub(r"\(atLocation agent1 \S+\)", f"(atLocation agent1 {receptacles[0][1]})", problem)
        for name, place in receptacles[1:4]:
            problem = problem.replace(
                f"(receptacleAtLocation {name} {place})", f"(receptacleAtLocation {name} {receptacles[0][1]})"
            )
        return problem
    facts = {
        "open from the start": [f"(opened {name})" for name in closed],
        "hot, cool, clean and sliced from the start": [
            f"({state} {thing})" for i, thing in enumerate(things) for n, state in enumerate(_STATES) if i >> n & 1
        ],
        "objects in objects": [
            line
            for inner, outer in pairwise(things)
            for line in (f"(isReceptacleObject {outer})", f"(inReceptacleObject {inner} {outer})")
        ],
        "distances and comments": ["; a comment (", f"(= (distance {receptacles[0][1]} {receptacles[1][1]}) 7)"],
    }[change]
    return problem.replace("(:init\n", "(:init\n" + "\n".join(dict.fromkeys(facts)) + "\n")


_STATES = ("isHot", "isCool", "isClean", "isSliced")


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("train/000007", "the agent starts at a receptacle, two share its place"),
        ("train/000001", "open from the start"),
        ("train/000003", "hot, cool, clean and sliced from the start"),
        ("train/000002", "objects in objects"),
        ("train/000007", "distances and comments"),
    ],
)
def test_traces_are_identical_in_unusual_games(store: Store, task: str, change: str) -> None:
    texts = store.texts(task)
    texts = replace(texts, problem=_unusual(texts.problem, change))
    play = Game(texts.domain, texts.grammar, texts.problem).start()
    result = compare(play, ShippedPlay.from_texts(texts), texts.plan, 15, f"{task} {change}")
    assert result.difference == ""


def test_the_environment_plays_either_engine(bundle: Path) -> None:
    env = AlfworldEnv(bundle / "data")

    def episode(engine: str) -> list[object]:
        seen: list[object] = [env.reset("train/000005", 0, {"engine": engine})]
        return seen + [env.step(command) for command in ["look", "dance", *env.call("expert_plan", {})]]

    assert episode("fast") == episode("textworld")


@lru_cache(maxsize=1)
def _pair(data: Path) -> tuple[Game, ShippedPlay]:
    texts = Store(data, None).texts("train/000009")
    return Game(texts.domain, texts.grammar, texts.problem), ShippedPlay.from_texts(texts)


# Nothing that changes the state: the shipped engine is too slow to start anew for each example.
_ACTIONS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["look", "inventory", "help", " look", "look ", "LOOK", "go  to fridge 1", "examine", "use"]),
    st.builds(" ".join, st.lists(st.sampled_from(["take", "apple", "1", "from", "to", "examine"]), max_size=5)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(action=_ACTIONS)
def test_any_action_gets_the_shipped_answer(bundle: Path, action: str) -> None:
    game, oracle = _pair(bundle / "data")
    play = game.start()
    assert play.step(action) == oracle.step(action)
    assert play.admissible() == oracle.admissible()


def test_alfworlds_own_loader_plays_our_games(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    official = bundle / "official" / "json_2.1.1"
    config = {
        "dataset": {
            "data_path": str(official / "train"),
            "eval_id_data_path": str(official / "heldout_seen"),
            "eval_ood_data_path": str(official / "heldout_unseen"),
            "num_train_games": -1,
            "num_eval_games": -1,
        },
        "env": {
            "task_types": [1, 2, 3, 4, 5, 6],
            "goal_desc_human_anns_prob": 0,
            "domain_randomization": False,
            "expert_type": "planner",
        },
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }
    loader = AlfredTWEnv(config, train_eval="eval_out_of_distribution")
    assert loader.num_games == 12
    batch = loader.init_env(batch_size=1)
    observations, infos = batch.reset()
    name = "official/" + str(Path(infos["extra.gamefile"][0]).parent.relative_to(official))
    monkeypatch.setenv("ALFWORLD_DATA", str(bundle / "official"))
    env = AlfworldEnv()
    observation, info = env.reset(name, 0, {})
    assert observation == observations[0]
    assert info["admissible_commands"] == infos["admissible_commands"][0]
    for command in env.call("expert_plan", {}):
        observations, scores, dones, infos = batch.step([command])
        observation, reward, terminated, _, info = env.step(command)
        assert (observation, reward, terminated) == (observations[0], scores[0], dones[0])
        assert info["admissible_commands"] == infos["admissible_commands"][0]
    assert terminated


def _shipped_nodes(text: str) -> str:
    """What TextWorld's parser makes of a right-hand side, in the notation of :func:`_our_nodes`."""
    from textworld.envs.pddl import textgen

    return "".join(_shipped_node(node) for node in textgen._parse_and_convert(text, rule_name="symbols"))


def _shipped_node(node: object) -> str:
    from textworld.envs.pddl import textgen

    if isinstance(node, textgen.ListSymbol):
        return f"[{_shipped_node(node.symbol)}]"
    if isinstance(node, textgen.ConditionalSymbol):
        return "{" + _shipped_node(node.expression) + ("|?" if node.given else "") + "}"
    if isinstance(node, textgen.EvalSymbol):
        return f"({node.expression})"
    if isinstance(node, textgen.NonterminalSymbol):
        return f"#{node.symbol}#"
    assert isinstance(node, textgen.TerminalSymbol)
    return str(node.symbol)


def _our_nodes(text: str) -> str:
    out = ""
    for node in read_template(text):
        if isinstance(node, Text):
            out += node.text
        elif isinstance(node, Symbol):
            out += f"#{node.name}#"
        elif isinstance(node, Each):
            inner = (
                f"#{node.expression.name}#" if isinstance(node.expression, Symbol) else f"({node.expression.source})"
            )
            inner = "{" + inner + ("|?" if node.query else "") + "}"
            out += f"[{inner}]" if node.as_list else inner
        else:
            assert isinstance(node, Value)
    return out


_PIECES = st.one_of(
    st.text(string.ascii_letters + " .,!'?:()\n\t/-", min_size=1, max_size=12),
    st.sampled_from(
        ["{r.name}", "[{o.name | p(o:object)}]", "#look.feedback#", '"', '"x"', "// note\n", "{o.name | p(o)}"]
    ),
    st.sampled_from(["\n", "\t", " ", "{", "]", "#", ";", "|", "<", '"']),
)


@settings(max_examples=200)
@given(text=st.lists(_PIECES, min_size=1, max_size=6).map("".join))
def test_templates_are_read_as_textworld_reads_them(text: str) -> None:
    from tatsu.exceptions import ParseException

    try:
        expected = _shipped_nodes(text)
    except ParseException:
        return  # the shipped engine cannot load such a game at all
    assert _our_nodes(text) == expected

"""Runs that credit by attention rhythm: what a step costs and tells, what is kept, and what people are shown of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rock.domain.outcome import Completed
from rock.sdk import EpisodeRhythm
from roll_core.algorithms.rhythm import Coupling
from roll_core.config import Recipe, load_recipe
from roll_core.errors import CheckpointError, RecordError
from roll_core.models import train_tokenizer
from roll_core.training import assembly, play
from roll_core.training.checkpoint import CheckpointStore, TrainerState
from roll_core.training.event_log import EventLog
from roll_core.training.reporting import RHYTHMS, FileReporter, Reporters, report_rhythms
from roll_core.training.rhythm_record import recorded, total
from roll_core.training.rhythm_source import find, records
from roll_core.training.rhythm_view import coloured, html, sentences, shades
from roll_core.training.roles import Roles
from roll_core.training.run import RunDirectory, RunIdentity
from roll_core.training.update import update
from roll_core.types import Generation, Group, Trajectory, Turn

torch.set_num_threads(1)
CREDIT = ["algorithm.credit=[rhythm]", "rhythm.horizon=[1,20]"]
WORDS = train_tokenizer(["go to shelf 1", "> take mug", "you see a <b>mug</b>"], 300)


def a_recipe(*overrides: str) -> Recipe:
    small = [
        "model.hidden=32", "model.layers=3", "model.heads=4", "model.kv_heads=2", "model.head_dim=8",
        "model.intermediate=32", "rollout.group_size=2", "training.threads=1", "learner.optimizer=adamw",
    ]  # fmt: skip
    return load_recipe("alfworld-tiny", [*small, *CREDIT, *overrides])


def an_episode(number: int, reward: float) -> Trajectory:
    def turn(context: str, said: str) -> Turn:
        ids = tuple(WORDS.encode(said))
        sampled = Generation(ids, (-0.5,) * len(ids), (0,) * len(ids), "stop")
        return Turn(tuple(WORDS.encode(context)), sampled, context, said, said)

    turns = (turn("you see a <b>mug</b>\n> ", "go to shelf 1"), turn("\nyou see\n> ", "take mug"))
    outcome = Completed(reward, reward > 0)
    return Trajectory(f"ep-{number}", "g-1", "toy", "mug", number, 0, turns, outcome)


GROUPS = (Group("g-1", "mug", (an_episode(1, 1.0), an_episode(2, 0.0))),)


def a_step(recipe: Recipe) -> tuple[Roles, dict[str, float], list[EpisodeRhythm]]:
    roles = assembly.make_roles(recipe, assembly.make_model(recipe, WORDS))
    metrics = update(recipe, roles, GROUPS, 0.0)
    return roles, metrics, recorded(recipe, roles, GROUPS, step=1, version=0, tokenizer=WORDS)


def test_a_step_says_what_attention_cost_and_what_it_gave():
    _, metrics, _ = a_step(a_recipe("algorithm.negative_weight=1.0"))
    assert metrics["rhythm/time_s"] > 0
    assert 1 < metrics["rhythm/gamma_mean"] <= 1.7
    assert 0.3 < metrics["rhythm/amplified"] < 0.8
    assert 0 <= metrics["rhythm/followed"] <= 1
    assert 0 < metrics["rhythm/followed_by_chance"] <= 1


@pytest.mark.parametrize("strategy", ["local_chunk", "global_anchor", "coupled", "random", "entropy", "bottom"])
def test_a_record_holds_the_factor_and_the_advantage_that_were_trained_with(strategy):
    recipe = a_recipe(f"rhythm.strategy={strategy}", "rhythm.record=9", "algorithm.negative_weight=1.0")
    _, _, told = a_step(recipe)
    assert [r.episode_id for r in told] == ["ep-1", "ep-2"]
    for record, sign in zip(told, (1, -1), strict=True):
        assert record.strategy == strategy
        plain = {round(a / g, 4) for a, g in zip(record.advantage, record.gamma, strict=True)}
        assert len(plain) == 1, "GRPO gives one advantage to all tokens of a response; γ makes the difference"
        assert plain.pop() * sign > 0
        assert max(record.gamma) > 1
        assert "".join(record.tokens[i] for i in record.own) == "go to shelf 1take mug"
        assert "<b>" in "".join(record.tokens)
        assert {h.layer for h in record.heads} == {1, 2}
        assert {h.kind for h in record.heads} == {"", "local", "global"}
        assert all(0 < e < 6 for e in record.entropy)


def test_an_amplification_of_one_trains_the_very_same_weights_as_no_rhythm():
    off = a_recipe("algorithm.credit=[]")
    on = a_recipe("rhythm.amplification=1.0")
    weights = [a_step(r)[0].weights().tensors for r in (off, on)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    changed = a_step(a_recipe())[0].weights().tensors
    assert any(not torch.equal(weights[0][n], changed[n]) for n in changed)


def test_without_rhythm_nobody_reads_attention_and_nothing_is_told():
    roles, metrics, told = a_step(a_recipe("algorithm.credit=[]"))
    assert roles.actor_attn is None
    assert told == []
    assert not any(name.startswith("rhythm/") for name in metrics)


def test_episodes_of_an_earlier_step_are_not_told_twice():
    recipe = a_recipe()
    roles, _, told = a_step(recipe)
    assert told
    other = (replace(GROUPS[0], members=(an_episode(7, 1.0), an_episode(8, 0.0))),)
    assert recorded(recipe, roles, other, step=2, version=1, tokenizer=WORDS) == []


# --- kept and found again ---------------------------------------------------------------------------------------------


def a_run(path: Path, *, log: bool = True) -> tuple[RunDirectory, list[EpisodeRhythm]]:
    recipe = a_recipe("rhythm.record=1")
    directory = RunDirectory(path)
    directory.create(recipe, RunIdentity("run-1"))
    WORDS.save(directory.tokenizer)
    roles = assembly.make_roles(recipe, assembly.make_model(recipe, WORDS))
    machine = play.make_machine(recipe, ["mug"], "ep-").state()
    CheckpointStore(path / "checkpoints", 2).save(TrainerState(0, machine, 0.0), roles.save)
    if log:
        events = EventLog(path, 1 << 20)
        for member in GROUPS[0].members:
            events.ended(member)
        events.close()
    update(recipe, roles, GROUPS, 0.0)
    told = recorded(recipe, roles, GROUPS, step=1, version=0, tokenizer=WORDS)
    return directory, told


async def _closed(reporter: FileReporter) -> None:
    await reporter.close()


def keep(directory: RunDirectory, told: list[EpisodeRhythm]) -> None:

    reporter = FileReporter(directory.path)
    report_rhythms(Reporters(reporter), told)
    asyncio.run(_closed(reporter))


def test_what_a_run_recorded_is_read_back_and_the_last_record_of_an_episode_counts(tmp_path):
    directory, told = a_run(tmp_path)
    assert records(directory.path) == []
    keep(directory, told)
    keep(directory, [told[0].model_copy(update={"step": 9})])
    assert [(r.episode_id, r.step) for r in records(directory.path)] == [(told[0].episode_id, 9)]


def test_an_episode_that_was_not_recorded_is_read_again_with_the_checkpoint_before_it(tmp_path):
    directory, told = a_run(tmp_path)
    found = find(directory, told[0].episode_id, maps=True)
    assert found.note == "recomputed by the weights of the checkpoint of step 0"
    same = ("tokens", "own", "waad", "fai", "change", "gamma", "entropy", "anchor", "preplan", "heads")
    for name in same:
        assert getattr(found.record, name) == pytest.approx(getattr(told[0], name), abs=2e-5) if name in (
            "waad", "fai", "change", "gamma", "entropy"
        ) else getattr(found.record, name) == getattr(told[0], name)  # fmt: skip
    assert found.record.advantage == ()
    assert found.maps is not None
    local, wide = found.maps
    assert len(local) == len(wide) == len(found.record.own)
    assert [sum(row) for row in (*local, *wide)] == pytest.approx([1.0] * (2 * len(local)), abs=1e-4)


def test_a_recorded_episode_without_a_log_is_shown_without_maps_and_says_why(tmp_path):
    directory, told = a_run(tmp_path, log=False)
    keep(directory, told)
    found = find(directory, told[0].episode_id, maps=True)
    assert found.maps is None
    assert "without maps" in found.note


def test_what_is_not_there_or_damaged_is_named(tmp_path):
    directory, told = a_run(tmp_path)
    with pytest.raises(RecordError, match="'ep-9'"):
        find(directory, "ep-9", maps=False)
    (tmp_path / RHYTHMS).write_text('{"episode_id": 7}\n')
    with pytest.raises(RecordError, match="damaged at byte 0"):
        records(directory.path)

    (tmp_path / RHYTHMS).unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        find(directory, told[0].episode_id, maps=False)


# --- shown -----------------------------------------------------------------------------------------------------------


def test_the_terminal_shows_every_word_and_marks_preplan_and_anchors():
    record = a_step(a_recipe())[2][0]
    shown = coloured(record, "fai").plain
    assert shown.count("*") == sum(record.anchor)
    assert shown.count("^") == sum(record.preplan)
    plain = shown.replace("*", "").replace("^", "").replace("⏎", "")
    assert plain == "".join(record.tokens)
    console = Console(record=True, width=200, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(coloured(record, "waad"))
    assert "48;2;" in console.export_text(styles=True)


def test_the_page_stands_alone_and_what_others_wrote_is_escaped():
    record = a_step(a_recipe())[2][0]
    grid = [[0.5, 0.5] for _ in record.own]
    page = html(record, (grid, grid), "a note")
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "<b>mug" not in page
    assert "&lt;b&gt;" in "".join(page.split("</i><i>"))
    assert "prefers-color-scheme:dark" in page
    assert "data:image" not in html(record, None)


def test_the_heat_map_is_a_picture_of_the_right_size():

    record = a_step(a_recipe())[2][0]
    page = html(record, ([[1.0, 0.0, 0.25]], [[0.0, 0.0, 0.0]]))
    data = base64.b64decode(page.split("base64,")[1].split('"')[0])
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (3, 1)
    size = struct.unpack(">I", data[33:37])[0]
    pixels = zlib.decompress(data[41 : 41 + size])
    assert pixels == bytes([0, 0xE0, 0x8A, 0x1E, 255, 255, 255, 240, 196, 142])


def test_shades_go_by_rank():
    assert shades([5.0, 1.0, 5.0, 3.0]) == [1.0, 0.0, 1.0, 0.5]
    assert shades([2.0, 2.0]) == [0.0, 0.0]


def test_statistics_of_several_episodes_add_up_and_stand_beside_the_papers():
    told = a_step(a_recipe("rhythm.record=2", "algorithm.negative_weight=1.0"))[2]
    together = total([r.coupling for r in told])
    assert together.tokens == sum(len(r.own) for r in told)
    said = " ".join(sentences(together))
    assert "paper +52 %" in said
    assert sentences(Coupling()) == ["0 tokens, 0 FAI peaks"]


def test_the_command_lists_what_was_recorded_and_draws_an_episode(tmp_path, monkeypatch):
    from typer import Typer
    from typer.testing import CliRunner

    from roll_core.training.rhythm_cli import rhythm

    app = Typer()
    app.command()(rhythm)
    directory, told = a_run(tmp_path / "run")
    keep(directory, told)
    runner = CliRunner()
    listed = runner.invoke(app, [str(directory.path), "--json"])
    assert listed.exit_code == 0, listed.output
    assert [e["episode_id"] for e in json.loads(listed.stdout)["episodes"]] == [told[0].episode_id]
    page = tmp_path / "page.html"
    drawn = runner.invoke(app, [str(directory.path), told[0].episode_id, "--html", str(page), "--json"])
    assert drawn.exit_code == 0, drawn.output
    assert EpisodeRhythm.model_validate_json(drawn.stdout) == told[0]
    assert page.read_text().count("data:image/png") == 2
    assert runner.invoke(app, [str(directory.path), "--html", str(page)]).exit_code == 2

"""The comparison of losses: intervals that hold, verdicts that follow from them, a picture that is one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import algorithms
from benchmarks._comparing import (
    BEHIND,
    MATCHES,
    UNDECIDED,
    Estimate,
    difference,
    forest_svg,
    mean_of,
    student_t,
    verdict,
)
from benchmarks.algorithms import FULL, Played, Scale, settings, summarise, table
from roll_core.algorithms import ADVANTAGES, POLICY_LOSSES
from roll_core.config import load_recipe
from roll_core.training.metrics import Rate

shares = st.floats(0, 1)


def played(loss: str, alpha: float, seed: int, successes: int) -> Played:
    return Played(
        loss, alpha, seed, Rate.of(120, 400), Rate.of(successes, 400), alpha, alpha, alpha, 0.0, 0.5, 1.0, 1.0
    )


def test_the_interval_of_a_mean_is_students() -> None:
    found = mean_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.high - found.mean == pytest.approx(2.776 * 2.5**0.5 / 5**0.5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@given(st.integers(1, 500))
def test_between_two_entries_of_the_table_the_wider_one_counts(degrees: int) -> None:
    assert student_t(degrees + 1) <= student_t(degrees)
    assert student_t(degrees) > 1.95


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        found = mean_of([rng.gauss(0.4, 0.05) for _ in range(5)])
        covered += found.low <= 0.4 <= found.high
    assert 0.93 < covered / 2000 < 0.97


def test_a_difference_is_taken_seed_by_seed() -> None:
    sync = [Rate.of(n, 400) for n in (100, 200, 300)]
    late = [Rate.of(n, 400) for n in (92, 188, 292)]
    gap = difference(late, sync)
    assert gap.mean == pytest.approx(-0.0233, abs=1e-4)
    assert gap.low > -0.05  # though the seeds lie 50 points apart
    with pytest.raises(ValueError, match="argument"):
        difference(late[:2], sync)


@given(st.integers(0, 400), st.integers(0, 400))
def test_with_one_seed_the_noise_of_the_evaluation_is_the_interval(a: int, b: int) -> None:
    gap = difference([Rate.of(a, 400)], [Rate.of(b, 400)])
    assert gap.low <= gap.mean <= gap.high
    assert 0.005 < gap.high - gap.low < 0.15


@given(shares, shares, st.floats(0.001, 0.2))
def test_a_verdict_follows_from_the_interval_and_the_margin(a: float, b: float, margin: float) -> None:
    low, high = sorted((a - 0.5, b - 0.5))
    found = verdict(Estimate((low + high) / 2, low, high, 5), margin)
    assert (found == MATCHES) == (low > -margin)
    if found == BEHIND:
        assert high < 0
        assert low <= -margin
    if found == UNDECIDED:
        assert low <= -margin
        assert high >= 0


@pytest.mark.parametrize("loss", sorted(POLICY_LOSSES))
def test_every_loss_is_an_arm_that_the_recipe_accepts(loss: str) -> None:
    assert loss in FULL.losses
    recipe = load_recipe(algorithms.RECIPE, settings(loss, 8.0, FULL, []))
    assert (recipe.algorithm.loss, recipe.rollout.alpha) == (loss, 8)
    assert recipe.algorithm.advantage in ADVANTAGES


def test_the_summary_compares_each_loss_with_itself_at_alpha_0() -> None:
    scale = Scale(("dapo", "tis"), (0.0, 8.0), seeds=3, steps=1, evaluation=400)
    done = [played("dapo", 0.0, s, 200 + s) for s in range(3)] + [played("dapo", 8.0, s, 198 + s) for s in range(3)]
    done += [played("tis", 0.0, s, 240 + s) for s in range(3)] + [played("tis", 8.0, s, 160 + 2 * s) for s in range(2)]
    found = summarise(done, scale, 0.05)
    assert found["complete"] is False
    assert found["losses"]["dapo"]["8"]["verdict"] == MATCHES
    assert found["losses"]["tis"]["8"]["verdict"] == BEHIND
    assert found["losses"]["tis"]["8"]["minus_sync"]["n"] == 2
    assert "verdict" not in found["losses"]["tis"]["0"]
    assert found["losses"]["dapo"]["8"]["lag"] == 8
    assert json.loads(json.dumps(found)) == found
    assert len(table(found).splitlines()) == 5


def test_kept_arms_are_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float, int]] = []

    def fake(loss: str, alpha: float, seed: int, scale: Scale, extra: list[str]) -> Played:
        calls.append((loss, alpha, seed))
        return played(loss, alpha, seed, 200)

    monkeypatch.setattr(algorithms, "play", fake)
    scale = Scale(("dapo",), (0.0, 2.0), seeds=2, steps=1, evaluation=400)
    first = algorithms.play_all(scale, [], tmp_path / "arms.jsonl")
    assert len(calls) == 4
    assert algorithms.play_all(scale, [], tmp_path / "arms.jsonl") == first
    assert len(calls) == 4


def test_a_loss_that_does_not_exist_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        algorithms.parser().parse_args(["--losses", "dapo,dappo"])
    assert "dappo: expected some of" in capsys.readouterr().err


@given(st.lists(st.tuples(shares, shares, shares).map(sorted), min_size=1, max_size=6), shares)
def test_the_picture_is_an_image_with_all_points_inside(estimates: list[list[float]], base: float) -> None:
    rows = {f"loss <{i}>": [Estimate(middle, low, high, 5), None] for i, (low, middle, high) in enumerate(estimates)}
    root = ElementTree.fromstring(forest_svg("t & t", "s", ["α = 0", "α = 2"], rows, base))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 + len(estimates)
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height

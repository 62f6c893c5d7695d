"""The pages as a person sees them: real Chromium, real dashboard process, real platform on the fake runtime."""

from __future__ import annotations

import re

import pytest

from dashboard.screenshots import MARKS, PATHS, wait_until_drawn

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

NARROW = {"width": 390, "height": 844}
WAIT_MS = 30_000


def go(visit, scene, name, query=""):
    visit.page.goto(f"{scene.address}/{PATHS[name]}{query}")
    wait_until_drawn(visit.page, MARKS[name])
    return visit.page


def no_trouble(visit, scene):
    assert visit.page.locator('[data-testid="stException"], [data-testid="stAlert"]').count() == 0
    assert visit.errors == []
    assert visit.hosts == {scene.address.removeprefix("http://")}, "the page must talk to its own server only"


def test_fleet_shows_nodes_sandboxes_and_why_one_failed(visit, scene):
    page = go(visit, scene, "fleet")
    page.wait_for_selector(f"text={scene.failed}", timeout=WAIT_MS)
    banner = page.locator(".rk-banner").first.inner_text()
    assert re.search(r"1 node up; 4 sandboxes alive; 4 at work, 0 ready; 1 failure in the last hour\.", banner)
    assert "4 leased" in page.locator(".rk-legend").inner_text()
    assert "4 of 16" in page.locator(".rk-card").inner_text()
    failure = page.locator(".rk-failure").first
    assert "oom" in failure.inner_text()
    failure.locator("summary").click()
    assert "killed for memory" in failure.inner_text()
    assert "toy-image" in failure.inner_text()
    no_trouble(visit, scene)


def test_a_filter_that_matches_nothing_says_so(visit, scene):
    page = go(visit, scene, "fleet")
    page.get_by_placeholder("Filter: id, image, node, run …").fill("no-such-sandbox")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=None of 4 sandboxes matches", timeout=WAIT_MS)
    no_trouble(visit, scene)


def test_run_says_how_it_goes_and_draws_the_curves(visit, scene):
    page = go(visit, scene, "run", f"?run={scene.run_id}")
    banner = page.locator(".rk-banner").first.inner_text()
    assert "browser-test is training: step 120 of 200." in banner
    assert re.search(r"10 of 400 episodes void \(2\.5%\), none trained on\.", banner)
    assert "1 incident" in banner
    assert "left at the present pace" in banner
    tiles = page.locator(".rk-tiles").inner_text()
    assert re.search(r"step\s+120\s+of 200, 4\.0 s each", tiles)
    legend = page.locator(".stPlotlyChart").first.locator(".legendtext").all_text_contents()
    assert {"success rate", "mean reward", "void rate", "held-out success"} <= set(legend)
    assert page.locator(".stPlotlyChart").count() == 14
    ledger = page.locator(".rk-ledger").inner_text()
    assert re.search(r"dispatched\s+400\s+100%", ledger)
    assert re.search(r"void\s+something broke; replaced, never trained on\s+10\s+2\.5%", ledger)
    no_trouble(visit, scene)


def test_an_episode_is_read_turn_by_turn_with_its_text_escaped(visit, scene):
    page = go(visit, scene, "episode", f"?run={scene.run_id}&episode=ep-{395:010x}")
    turns = page.locator(".rk-turn")
    assert turns.count() == 4
    first = turns.nth(0).inner_text()
    assert "Your task is to: put a mug in desk." in first
    assert "<think>A mug is often on a shelf.</think><action>go to shelf 3</action>" in first
    assert "<b>book</b>" in turns.nth(1).inner_text(), "text of the environment is never markup"
    assert re.search(r"\d+ tokens · policy v\d+ · mean log-prob -\d\.\d+ · generate .* · environment .*", first)
    assert f"sb-{395:010x}" in page.locator(".rk-facts").inner_text()
    no_trouble(visit, scene)


def test_the_rhythm_of_an_episode_is_drawn_on_its_words(visit, scene):
    page = go(visit, scene, "rhythm", f"?run={scene.run_id}&episode=ep-{390:010x}")
    tiles = page.locator(".rk-tiles").inner_text()
    assert re.search(r"entropy at WAAD peaks\s+\+52%", tiles)
    assert re.search(r"FAI peaks after a WAAD peak\s+\+25%", tiles)
    assert "ep-0000000186" in page.url
    waad, fai = page.locator(".rk-rhythm").nth(0), page.locator(".rk-rhythm").nth(1)
    assert "Your task: <b>mug</b>" in waad.inner_text(), "text of the environment is never markup"
    assert waad.locator(".rk-own").all_inner_texts() == fai.locator(".rk-own").all_inner_texts()
    assert waad.locator(".rk-preplan").all_inner_texts() == ["go"]
    assert fai.locator(".rk-anchor").all_text_contents() == [" to", " shelf"]
    title = waad.locator(".rk-own").first.get_attribute("title")
    assert title == "WAAD 6.000 · Δ 4.500 · FAI 0.0100 · γ 1.20 · entropy 0.760 · advantage +0.600 · preplan"
    alpha = "e => Number((getComputedStyle(e).backgroundColor.match(/[/] ([0-9.]+)/) || [0, 0])[1])"
    strengths = [waad.locator(".rk-own").nth(i).evaluate(alpha) for i in range(6)]
    assert strengths[0] == max(strengths) > strengths[3] == 0, "the furthest look has the strongest ground"
    assert "global" in page.locator(".rk-table").inner_text()
    no_trouble(visit, scene)


def test_the_row_that_is_clicked_is_the_episode_that_opens(visit, scene):
    page = go(visit, scene, "episode", f"?run={scene.run_id}")
    opened = page.get_by_role("heading", name=re.compile("^Episode ep-"))
    first = opened.inner_text()
    row_height, box_x = 35, 16
    page.locator(".stDataFrameGlideDataEditor").first.click(position={"x": box_x, "y": 2.5 * row_height})
    page.wait_for_function("() => location.search.includes('episode=')", timeout=WAIT_MS)
    wait_until_drawn(page, MARKS["episode"])
    clicked = re.search(r"episode=(ep-\w+)", page.url)
    assert clicked
    page.wait_for_selector(f"h2:has-text('{clicked.group(1)}')", timeout=WAIT_MS)
    assert opened.inner_text() != first
    no_trouble(visit, scene)


def test_void_episodes_are_found_and_say_that_they_count_for_nothing(visit, scene):
    page = go(visit, scene, "episode", f"?run={scene.run_id}")
    page.get_by_label("Result").click()
    page.get_by_role("option", name="void").click()
    page.wait_for_selector("text=1–10 of 10, latest first", timeout=WAIT_MS)
    page.wait_for_selector("text=Void: something broke", timeout=WAIT_MS)
    assert "container died (exit code 137)" in page.locator(".rk-banner").last.inner_text()
    no_trouble(visit, scene)


def test_episodes_are_found_by_cause_and_by_reward(visit, scene):
    page = go(visit, scene, "episode", f"?run={scene.run_id}")
    page.get_by_label("Cause").click()
    page.get_by_role("option", name="reset failed").click()
    page.wait_for_selector("text=Nothing found", timeout=WAIT_MS)
    page.get_by_label("Cause").click()
    page.get_by_role("option", name="sandbox lost").click()
    page.wait_for_selector("text=1–10 of 10, latest first", timeout=WAIT_MS)
    page.get_by_label("Reward from").fill("0")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing found", timeout=WAIT_MS)
    no_trouble(visit, scene)


def test_an_episode_shows_its_group_and_the_commands_that_play_it_again(visit, scene):
    page = go(visit, scene, "episode", f"?run={scene.run_id}&episode=ep-{395:010x}")
    assert "8 episodes of one task" in page.locator(".rk-heading", has_text="Its group g-49").inner_text()
    page.get_by_text("Play it again").click()
    code = page.locator(".stCode").inner_text()
    assert "rock env check alfworld --task look_at_obj-Book-DeskLamp-312 --seed 395 --steps 4" in code
    assert f"rock run replay {scene.run_id} --to 119" in code
    no_trouble(visit, scene)


@pytest.mark.parametrize("visit", [NARROW], indirect=True)
@pytest.mark.parametrize("name", ["morning", "fleet", "run", "compare", "incidents", "episode", "rhythm"])
def test_a_narrow_screen_scrolls_in_one_direction_only(visit, scene, name):
    page = go(visit, scene, name)
    too_wide = page.evaluate(
        """() => [...document.querySelectorAll('section, .stMainBlockContainer, .stMainBlockContainer *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.stDataFrame, pre'))
        .map(e => e.className || e.tagName)"""
    )
    assert too_wide == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    no_trouble(visit, scene)


def test_a_dead_platform_shows_since_when_and_its_return_is_noticed(visit, scene):
    page = go(visit, scene, "run", f"?run={scene.run_id}")
    scene.platform.kill()
    stale = page.wait_for_selector("text=Platform unreachable since", timeout=WAIT_MS).inner_text()
    assert re.search(r"since \d\d:\d\d:\d\d UTC\. What you see is the last data, of \d\d:\d\d:\d\d UTC\.", stale)
    assert "step 120 of 200" in page.locator(".rk-banner").nth(1).inner_text(), "the last data stays"
    page.get_by_role("link", name="Fleet").click()
    wait_until_drawn(page, MARKS["fleet"])
    assert page.locator("text=Platform unreachable since").count() == 1
    scene.platform.start()
    page.wait_for_selector("text=Platform unreachable since", state="detached", timeout=WAIT_MS)
    assert "live from" in page.locator(".rk-banner").first.inner_text()
    no_trouble(visit, scene)

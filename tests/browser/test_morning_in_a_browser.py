"""The morning page, incidents, comparison and the fleet's actions, in a real browser over a real platform."""

from __future__ import annotations

import re

import pytest

from dashboard.screenshots import MARKS, PATHS, wait_until_drawn
from rock.domain.nodes import NodeStanding
from rock.sdk import LeaseRequest, RockSync

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

WAIT_MS = 30_000


def go(visit, scene, name, query=""):
    visit.page.goto(f"{scene.address}/{PATHS[name]}{query}")
    wait_until_drawn(visit.page, MARKS[name])
    return visit.page


def no_trouble(visit, scene):
    assert visit.page.locator('[data-testid="stException"], [data-testid="stAlert"]').count() == 0
    assert visit.errors == []
    assert visit.hosts == {scene.address.removeprefix("http://")}, "the page must talk to its own server only"


def said_when_done(page, words):
    page.wait_for_selector(f'.rk-banner:has-text("{words}")', timeout=WAIT_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_morning_page_tells_the_night_from_a_sentence_down_to_what_changed(visit, scene, scheme):
    visit.page.emulate_media(color_scheme=scheme)
    page = go(visit, scene, "morning", f"?run={scene.run_id}&price=2.50+EUR")
    sentence = page.locator(".rk-banner").first.inner_text()
    assert "browser-test is training: step 120 of 200." in sentence
    assert re.search(r"1 incident: 1 lost\. Episodes lost: 0\.", sentence)
    alert = page.locator(".rk-banner.rk-bad").inner_text()
    assert "1 alert firing as of step 120: void-rate: rollout/void_rate 7% over 10 steps, above 5%" in alert
    waterfall = page.locator(".stPlotlyChart").nth(1).text_content()
    assert re.search(r"50% · 8\.0 min · 0\.33 EUR", waterfall), "2 workers for 120 steps of 4 s, half of it useful"
    assert re.search(r"20% · 3\.2 min · 0\.13 EUR", waterfall)
    latencies = page.locator(".rk-latencies").inner_text()
    assert re.search(r"alfworld\s+reset\s+400\s+.*5\.0 s\s+missed", latencies)
    assert re.search(r"alfworld\s+getting a sandbox\s+400\s+.*1\.0 s\s+met", latencies)
    changed = page.locator(".rk-facts").last.inner_text()
    assert "v117 → v120" in changed
    assert "differs in 1 key from run-" in changed
    assert re.search(r"alpha\s+1\s+→ 2", page.locator(".rk-changes").inner_text())
    ground = page.locator(".stApp").evaluate("e => getComputedStyle(e).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 19, 24)")
    no_trouble(visit, scene)


def test_an_incident_unfolds_to_its_evidence_and_leads_to_the_episodes(visit, scene):
    page = go(visit, scene, "morning", f"?run={scene.run_id}")
    incident = page.locator(".rk-incident").first
    row = incident.locator("summary").inner_text()
    assert scene.failed in row
    assert "oom" in row
    assert "lost" in row
    incident.locator("summary").click()
    evidence = incident.locator(".rk-evidence")
    evidence.wait_for(state="visible", timeout=WAIT_MS)
    said = evidence.inner_text()
    assert re.search(r"killed for memory\s+yes", said)
    assert "a lease lost its sandbox for good" in said
    evidence.get_by_role("link", name="Episodes of this sandbox").click()
    page.wait_for_url("**/episode?**", timeout=WAIT_MS)
    page.wait_for_selector("text=Nothing found", timeout=WAIT_MS)
    assert page.get_by_placeholder("Search: task, episode, reason, sandbox …").input_value() == scene.failed
    no_trouble(visit, scene)


def test_a_price_that_is_none_says_what_was_expected(visit, scene):
    page = go(visit, scene, "morning", f"?run={scene.run_id}&price=cheap")
    said_when_done(page, "A price of 'cheap'; expected a number and a unit, such as 2.50 EUR.")
    page.get_by_label("Price of a worker-hour", exact=True).fill("$4")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1.07 $ at 4 $ an hour", timeout=WAIT_MS)
    assert "price=%244" in page.url
    no_trouble(visit, scene)


def test_runs_are_compared_over_each_other_with_what_their_recipes_do_differently(visit, scene):
    page = go(visit, scene, "compare", "?metric=learner/entropy")
    page.wait_for_selector("text=learner/entropy, by step; bold: mean of 10 steps", timeout=WAIT_MS)
    names = page.locator(".stPlotlyChart .legendtext").all_text_contents()
    assert len(names) == 2
    assert all(name.startswith("browser-test ") for name in names)
    tiles = page.locator(".rk-tiles").inner_text()
    assert "to step 120" in tiles
    assert "to step 40" in tiles
    assert f"runs={scene.run_id}" in page.url
    no_trouble(visit, scene)


def test_incidents_are_drawn_in_time_and_filtered(visit, scene):
    page = go(visit, scene, "incidents", f"?run={scene.run_id}")
    assert page.locator(".rk-incident").count() == 1
    assert "lost" in page.locator(".stPlotlyChart .legendtext").all_text_contents()
    page.get_by_placeholder("Filter: cause, sandbox, node …").fill("no-such-cause")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No incident", timeout=WAIT_MS)
    no_trouble(visit, scene)


def fleet_page_of_a_sandbox(visit, scene, **request):
    """The fleet's page with a sandbox chosen that was leased for it; and that lease."""
    with RockSync(scene.platform.url) as rock:
        lease = rock.create_lease(LeaseRequest(image="toy-image", ttl_s=600, **request))
    page = go(visit, scene, "fleet")
    page.get_by_label("Sandbox", exact=True).click()
    page.keyboard.type(lease.sandbox_id)
    page.get_by_role("option", name=re.compile(lease.sandbox_id)).click()
    return page, lease


def dialog_of(page, button):
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.wait_for(timeout=WAIT_MS)
    return dialog


def node_stands(scene) -> NodeStanding:
    with RockSync(scene.platform.url) as rock:
        return rock.nodes()[0].standing


def test_nothing_is_changed_without_a_second_click_and_then_it_is(visit, scene):
    page = go(visit, scene, "fleet")
    page.get_by_label("Reason").fill("new memory")
    dialog = dialog_of(page, "Cordon …")
    assert "Node local gets no new leases; those it has go on." in dialog.inner_text()
    assert node_stands(scene) is NodeStanding.UP
    dialog.get_by_role("button", name="Leave it").click()
    dialog.wait_for(state="detached", timeout=WAIT_MS)
    assert node_stands(scene) is NodeStanding.UP
    page.get_by_role("button", name="Cordon …", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Cordon", exact=True).click()
    said_when_done(page, "local gets no new leases.")
    assert node_stands(scene) is NodeStanding.CORDONED
    page.wait_for_selector(".rk-card .rk-chip:has-text('cordoned')", timeout=WAIT_MS)
    page.get_by_role("button", name="Uncordon …", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Uncordon", exact=True).click()
    said_when_done(page, "local takes leases again.")
    assert node_stands(scene) is NodeStanding.UP
    no_trouble(visit, scene)


def test_a_sandboxs_output_is_read_and_it_is_removed(visit, scene):
    page, lease = fleet_page_of_a_sandbox(visit, scene)
    page.get_by_role("button", name="Output", exact=True).click()
    page.wait_for_selector(".rk-output", timeout=WAIT_MS)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached", timeout=WAIT_MS)
    dialog = dialog_of(page, "Remove …")
    assert "A lease holds it" in dialog.inner_text()
    dialog.get_by_role("button", name="Remove", exact=True).click()
    said_when_done(page, f"{lease.sandbox_id} is gone.")
    with RockSync(scene.platform.url) as rock:
        assert lease.sandbox_id not in {s.id for s in rock.sandboxes()}
    no_trouble(visit, scene)


def test_commands_are_run_in_a_sandbox_one_after_the_other(visit, scene):
    page, lease = fleet_page_of_a_sandbox(visit, scene)
    page.wait_for_selector(".rk-usage:has-text('memory')", timeout=WAIT_MS)
    dialog = dialog_of(page, "Shell …")
    line = dialog.get_by_label("Command")
    line.fill("cd /usr; echo $((6 * 7)) '<b>'; ls /no-such-place")
    line.press("Enter")
    shell = dialog.locator(".rk-shell")
    shell.get_by_text("42 <b>").wait_for(timeout=WAIT_MS)
    assert "/no-such-place" in shell.locator(".rk-ink-bad").first.inner_text()
    assert "exit code 2" in shell.inner_text()
    line.fill("pwd -P")
    line.press("Enter")
    page.wait_for_selector(".rk-shell:has-text('/usr$ pwd -P')", timeout=WAIT_MS)
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached", timeout=WAIT_MS)
    with RockSync(scene.platform.url) as rock:
        rock.remove_sandbox(lease.sandbox_id)
    no_trouble(visit, scene)


def test_a_restart_moves_the_lease_to_another_sandbox(visit, scene):
    page, lease = fleet_page_of_a_sandbox(visit, scene, recovery="replay")
    dialog = dialog_of(page, "Restart …")
    assert "its lease goes on in another" in dialog.inner_text()
    dialog.get_by_role("button", name="Restart", exact=True).click()
    said_when_done(page, f"{lease.sandbox_id} is gone; its lease goes on in")
    with RockSync(scene.platform.url) as rock:
        assert lease.sandbox_id not in {s.id for s in rock.sandboxes()}
        assert lease.id in {held.id for held in rock.leases()}
        rock.release_lease(lease.id)
    no_trouble(visit, scene)


def test_with_a_key_that_may_only_read_the_page_shows_no_action_and_says_why(visit, keyed):
    page = go(visit, keyed, "fleet")
    page.wait_for_selector("text=draining and removing need one of scope admin in $ROCK_KEY", timeout=WAIT_MS)
    page.get_by_role("button", name="Output", exact=True).wait_for(timeout=WAIT_MS)
    for name in ("Drain …", "Cordon …", "Uncordon …", "Shell …", "Restart …", "Remove …"):
        assert page.get_by_role("button", name=name, exact=True).count() == 0
    no_trouble(visit, keyed)


def test_what_the_platform_refuses_is_shown_in_its_words(visit, scene):
    page, lease = fleet_page_of_a_sandbox(visit, scene)
    dialog = dialog_of(page, "Remove …")
    scene.platform.kill()
    dialog.get_by_role("button", name="Remove", exact=True).click()
    said_when_done(page, f"Remove {lease.sandbox_id} was refused")
    scene.platform.start()


def test_the_morning_page_keeps_the_last_data_while_the_platform_is_down(visit, scene):
    page = go(visit, scene, "morning", f"?run={scene.run_id}")
    page.wait_for_selector(".rk-latencies", timeout=WAIT_MS)
    scene.platform.kill()
    stale = page.wait_for_selector("text=Platform unreachable since", timeout=WAIT_MS).inner_text()
    assert re.search(r"What you see is the last data, of \d\d:\d\d:\d\d UTC\.", stale)
    assert "step 120 of 200" in page.locator(".rk-banner").nth(1).inner_text()
    assert page.locator(".rk-latencies").count() == 1
    faded = page.locator(".rk-latencies").evaluate("e => getComputedStyle(e).opacity")
    assert float(faded) < 1
    assert page.locator('[data-testid="stException"]').count() == 0
    scene.platform.start()
    page.wait_for_selector("text=Platform unreachable since", state="detached", timeout=WAIT_MS)
    no_trouble(visit, scene)

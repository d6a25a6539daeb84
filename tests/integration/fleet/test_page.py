"""The operator's page in a real Chromium, against a real broker and service with simulated devices.

Screenshots are kept under build/screenshots as fleet-*.png.
"""

from __future__ import annotations

import os
import re
import signal

import pytest

from support.browser import SLOW_MS, VIEWS, Pages, changes, chromium, fits, needs_chromium, shoot, until
from support.watched import BAD, DEVICES, GOOD, NORTH, QUICK, SOUTH, WEST, hostile, watched

pytestmark = needs_chromium
IMG = '<img src=x onerror="window.ran=1">'
RAN = "[document.images.length, document.querySelectorAll('body script').length, window.ran]"
SCRIPT = f"</script><script>window.ran=1</script>{IMG}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with watched(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture(scope="module")
def stopped(fleet):
    """A roll-out of the bad draft to the north, as its gate left it."""
    fleet.settle(NORTH)
    wanted = {"name": "spring-bad", "target": BAD, "group": "north", "on_breach": "pause", **QUICK}
    fleet.as_("ann").send("POST", "/rollouts", wanted)
    fleet.as_("ann").send("POST", "/rollouts/spring-bad/submit", None)
    fleet.until("/rollouts/spring-bad", lambda row: row["state"] == "paused")
    return "spring-bad"


@pytest.fixture(scope="module")
def browser(fleet):
    with chromium() as opened:
        yield opened


@pytest.fixture
def pages(browser, fleet):
    """Opens pages; what any of them complains of fails the test."""
    made = Pages(browser, fleet.url)
    yield made
    made.close()
    assert made.complaints == []


@pytest.fixture
def enter(pages, fleet):
    """Signs a person in, at a place of the page."""

    def enter_(person="cleo", place="", view="light"):
        page = pages.open(view)
        page.set_default_timeout(SLOW_MS)
        page.fill("#token", fleet.tokens[person])
        page.keyboard.press("Enter")
        page.locator("#live.up").wait_for()
        go(page, place)
        return page

    return enter_


def go(page, place):
    page.evaluate("place => { location.hash = '#/' + place; }", place)
    page.locator("main .card").first.wait_for()


def figure(name):
    found = f"[...document.querySelectorAll('.figures div')].find(d => d.firstChild.textContent === '{name}')"
    return f"{found}.lastChild.firstChild.textContent"


def test_a_wrong_token_is_refused_in_words_and_signing_out_forgets_it(pages, fleet):
    page = pages.open()
    page.fill("#token", "orf_wrong")
    page.keyboard.press("Enter")
    page.locator("#error", has_text="nobody has this token").wait_for()
    page.fill("#token", fleet.tokens["cleo"])
    page.keyboard.press("Enter")
    page.locator("#out").click()
    page.locator("#token").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    assert [told for told in pages.complaints if "401" not in told] == []
    pages.complaints.clear()


def test_who_is_revoked_sees_nothing_more_at_once(pages, enter, fleet):
    """The stream ends, and the page goes back to the sign-in with the reason."""
    fleet.tokens["eve"] = fleet.service.send("PUT", "/tokens/eve", {"role": "viewer"})["token"]
    page = enter("eve")
    eve = fleet.stream("eve")
    assert next(eve).startswith(b"data: ")
    fleet.service.send("DELETE", "/tokens/eve", None)
    page.locator("#error", has_text="nobody has this token").wait_for()
    page.locator("#token").wait_for()
    for _ in eve:
        pass  # what was on its way; then it ends
    assert [told for told in pages.complaints if "401" not in told] == []
    pages.complaints.clear()


def test_the_glance_shows_the_fleet_and_follows_it(enter, fleet):
    """Online, versions, acceptance and steps saved as the API says them; a device that dies is gone without a click."""
    page = enter()
    told = fleet.service.ask("/overview")
    page.locator(".version", has_text="bundled").first.wait_for()
    assert f"/ {told['devices']}" in page.evaluate(figure("Online"))
    assert re.fullmatch(r"\d\d\.\d\s%", page.evaluate(figure("Acceptance")))
    before, after = (int(value.replace(",", "")) for value in changes(page, figure("Cloud steps saved")))
    assert 0 < before < after
    assert page.locator(".plot .saved").count() > 0
    changes(page, "document.querySelector('.plot svg').innerHTML")
    with fleet.devices("guest", 1) as guest:
        here = len(DEVICES) + 1
        until(page, f"{figure('Online')} === '{here} / {here}'")
        guest.kill()
        until(page, f"{figure('Online')} === '{here - 1} / {here}'")


def test_devices_are_found_by_name_presence_and_draft(enter, fleet):
    """One request for a word, however fast it is typed; the filter outlives what the stream brings."""
    page = enter(place="devices")
    here = fleet.service.ask("/overview")["devices"]
    page.get_by_text(f"{here} devices, 1 to {here}").wait_for()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "search=shop" in request.url else None)
    page.locator("#search").press_sequentially("shop-00007", delay=10)
    until(page, "document.querySelectorAll('tbody tr').length === 1")
    assert page.locator("tbody tr").inner_text().startswith("shop-00007")
    assert {re.search(r"search=([^&]*)", url)[1] for url in asked} == {"shop-00007"}
    page.locator("#search").fill("shop-")
    page.locator("#online").select_option("true")
    page.locator("#version").select_option("bundled")
    until(page, "document.querySelectorAll('tbody tr').length > 1")
    changes(page, "document.querySelector('tbody').textContent")
    assert page.locator("#version").input_value() == "bundled"
    page.locator("#search").fill("nobody")
    page.get_by_text("No device matches.").wait_for()


def test_a_device_shows_live_charts_and_does_as_it_is_told(enter):
    """Charts move by themselves; a half-typed value stays; a setting is desired, then reported; a ping is answered."""
    page = enter("ann", f"devices/{SOUTH[0]}")
    page.locator(".chart .line").first.wait_for()
    assert page.locator(".chart h3").all_inner_texts() == [
        "Acceptance", "p95 per token", "Tokens per cloud step", "Round trip"
    ]  # fmt: skip
    page.locator("[name=value]").press_sequentially("60")
    changes(page, "document.querySelector('.chart .line').getAttribute('d')")
    assert page.evaluate("document.activeElement.name") == "value"
    assert page.locator("[name=value]").input_value() == "60"
    page.keyboard.press("Enter")
    page.locator(".facts dd", has_text=re.compile(r"^(\d+) desired, \1 reported$")).wait_for()
    page.locator(".facts dd", has_text="telemetry_s 60").wait_for()
    page.get_by_role("button", name="Ping").click()
    page.locator(".answer", has_text=re.compile(r"Ping: answered in \d+ ms")).wait_for()
    shoot(page, "fleet-device-told", whole=True)


def test_viewers_may_look_and_nothing_else(enter, stopped):
    page = enter("cleo", f"rollouts/{stopped}")
    page.get_by_text("Stopped by the acceptance gate").wait_for()
    assert page.locator("main button").count() == 0
    go(page, "rollouts")
    page.get_by_text("A viewer's token makes no roll-outs.").wait_for()
    go(page, f"devices/{NORTH[0]}")
    page.locator(".chart").first.wait_for()
    assert page.locator("main button").count() == 0


def test_a_stopped_roll_out_says_why_and_goes_back_by_keyboard(enter, fleet):
    """The gate's reason, its stage and its evidence; rolling back asks first, and Escape means no."""
    fleet.settle(WEST)
    wanted = {"name": "again-bad", "target": BAD, "group": "west", "on_breach": "pause", **QUICK}
    fleet.as_("ann").send("POST", "/rollouts", wanted)
    page = enter("ann", "rollouts/again-bad")
    page.get_by_role("button", name="Submit").click()
    page.locator("#confirm [value=yes]").click()
    page.locator(".reason", has_text="Stopped by the acceptance gate: the acceptance rate is").wait_for()
    assert page.locator(".stages li").first.get_attribute("class") == "failed"
    gate = page.locator("[aria-label='Gate: acceptance']")
    assert "broken" in gate.inner_text()
    assert "0 of 2 in this stage" in page.locator("[aria-label='Gates: failures and silence']").inner_text()
    assert page.locator(".timeline").inner_text().count("gate acceptance") == 1
    members = fleet.service.ask("/rollouts/again-bad/devices")["devices"]
    canary = next(member["device"] for member in members if member["state"] == "committed")
    go(page, f"devices/{canary}")
    page.locator(".chart .mark").first.wait_for(state="attached")
    page.get_by_text("another draft since").first.wait_for()
    go(page, "rollouts/again-bad")
    page.locator("[data-key='do-Roll back']").focus()
    page.keyboard.press("Enter")
    page.locator("#confirm[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("#confirm:not([open])").wait_for(state="attached")
    assert fleet.service.ask("/rollouts/again-bad")["state"] == "paused"
    page.locator("[data-key='do-Roll back']").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "yes"
    page.keyboard.press("Enter")
    page.locator("h2 + .tag", has_text="rolled back").wait_for()
    page.locator(".stages .tag", has_text="reverted 2").wait_for()


def test_a_roll_out_is_made_agreed_to_paused_and_ended_through_the_page(enter, fleet):
    """An operator makes it, may not approve it; an approver does; each page follows what the other person did."""
    fleet.settle(SOUTH[1:])
    ann, ben = enter("ann", "rollouts"), enter("ben", "rollouts", "dark")
    ann.get_by_text("New roll-out").click()
    ann.locator("[name=name]").fill("spring-good")
    ann.locator("[name=target]").select_option(GOOD)
    ann.locator("[name=group]").select_option("south")
    for name, value in {"stages": "34, 100", "soak": "0", "rate": "6000", "control": "34", "approvals": "1",
                        "alpha": "0.05", "pairs": "100000", "baseline": "2"}.items():  # fmt: skip
        ann.locator(f"[name={name}]").fill(value)
    ann.keyboard.press("Enter")
    ann.get_by_role("button", name="Submit").click()
    ann.locator("#confirm [value=yes]").click()
    ann.get_by_text("An approver has to agree.").wait_for()
    assert ann.get_by_role("button", name="Approve").count() == 0
    ben.get_by_role("link", name="spring-good").click()
    ben.get_by_role("button", name="Approve").click()
    ben.locator("#confirm [value=yes]").click()
    ann.locator("h2 + .tag", has_text="running").wait_for()
    ann.locator(".stages .current .tag", has_text="committed 2").wait_for()
    ann.get_by_role("button", name="Pause").click()
    ben.locator("h2 + .tag", has_text="paused").wait_for()
    shoot(ben, "fleet-rollout-paused", whole=True)
    ann.get_by_role("button", name="Resume").click()
    ann.locator("#confirm [value=yes]").click()
    ben.locator("h2 + .tag", has_text="running").wait_for()
    ben.get_by_role("button", name="Abort").click()
    ben.locator("#confirm [value=yes]").click()
    ann.locator("h2 + .tag", has_text="aborted").wait_for()
    assert ann.locator(".timeline li").first.inner_text().endswith("aborted")


def test_nobody_is_offered_to_approve_their_own(enter, fleet):
    """The author who is an approver is told why not; another approver may."""
    wanted = {"name": "own", "target": GOOD, "group": "south", "approvals": 1, **QUICK}
    fleet.as_("dora").send("POST", "/rollouts", wanted)
    fleet.as_("dora").send("POST", "/rollouts/own/submit", None)
    page = enter("dora", "rollouts/own")
    page.get_by_text("You made this roll-out: another approver has to agree.").wait_for()
    assert page.get_by_role("button", name="Approve").count() == 0
    other = enter("ben", "rollouts/own")
    other.get_by_role("button", name="Deny").click()
    other.locator("#confirm [value=yes]").click()
    page.locator("h2 + .tag", has_text="denied").wait_for()


@pytest.fixture
def evil(fleet):
    """Everything that somebody may name or say is markup, in one roll-out with one device."""
    fleet.service.home.enrol("evil-1")
    fleet.say("evil-1", *hostile(SCRIPT[:90], "none"))
    fleet.until("/devices?search=evil-1", lambda told: told["total"] == 1 and told["devices"][0]["system"])
    fleet.service.send("PUT", f"/groups/{IMG}", {"members": ["evil-1"]})
    ann = fleet.as_("ann")
    ann.send(
        "POST", "/rollouts", {"name": IMG, "target": GOOD, "group": IMG, "attempts": 1, "on_breach": "pause", **QUICK}
    )
    ann.send("POST", f"/rollouts/{IMG}/submit", None)
    fleet.until(f"/rollouts/{IMG}", lambda row: "dispatched" in row["counts"])
    fleet.say("evil-1", *hostile(SCRIPT[:90], IMG))
    fleet.until(f"/rollouts/{IMG}", lambda row: row["troubled"])
    return "evil-1"


def test_names_and_messages_are_shown_as_text_and_never_run(enter, fleet, evil):
    """Labels, drafts, systems, groups, roll-outs, refusals and messages that are markup stay words in every view."""
    page = enter("ann")
    views = {"": SCRIPT[:90], "devices": SCRIPT[:90], f"devices/{evil}": SCRIPT[:90], "rollouts": IMG,
             f"rollouts/{IMG.replace('/', '%2F')}": SCRIPT[:64], "audit": SCRIPT[:64]}  # fmt: skip
    for place, words in views.items():
        go(page, place)
        page.locator("main", has_text=words).wait_for()
        assert page.evaluate(RAN) == [0, 0, None]
    go(page, "rollouts")
    page.get_by_text("New roll-out").click()
    page.locator("option", has_text=IMG).wait_for(state="attached")
    go(page, f"rollouts/{IMG}")
    page.get_by_role("button", name=re.compile("Abort|Roll back")).first.click()
    page.locator("#confirm-text", has_text=IMG).wait_for()
    assert page.evaluate(RAN) == [0, 0, None]
    fleet.service.send("POST", f"/rollouts/{IMG}/abort", None)


def test_a_service_that_falls_silent_is_said_to_be_away_until_it_is_back(enter, fleet):
    """Nothing ends the connection, as when a laptop changes its network: silence itself is noticed."""
    page = enter()
    os.kill(fleet.service.pid, signal.SIGSTOP)
    try:
        page.locator("#live.down", has_text="not connected").wait_for()
    finally:
        os.kill(fleet.service.pid, signal.SIGCONT)
    page.locator("#live.up").wait_for()
    changes(page, figure("Cloud steps saved"))


@pytest.mark.parametrize("place", ["devices/%E0%A4%A", "rollouts/%", "%zz", "nowhere", "devices/a/b/c", "audit/%00"])
def test_a_mangled_address_is_answered_and_the_page_goes_on(pages, enter, place):
    page = enter()
    page.evaluate("place => { location.hash = '#/' + place; }", place)
    if place.startswith(("devices/%", "rollouts/%", "devices/a")):
        page.locator("#error", has_text="no ").wait_for()
    go(page, "")
    page.locator(".figures").wait_for()
    assert page.locator("#error").is_hidden()
    assert [told for told in pages.complaints if "status of 400" not in told] == []
    pages.complaints.clear()


def test_the_policy_stops_what_is_not_the_pages_own(pages, enter):
    """No script in the markup, no other host, no image from elsewhere, no base: the browser names each rule."""
    page = enter()
    broken = page.evaluate("""async () => {
      const broken = [];
      addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.ran = 1";
      const image = document.createElement("img");
      image.src = "http://127.0.0.2:9/x.png";
      const base = document.createElement("base");
      base.href = "http://127.0.0.2:9/";
      document.body.append(script, image);
      document.head.append(base);
      await fetch("http://127.0.0.2:9/").catch(() => {});
      await new Promise((done) => setTimeout(done, 100));
      return [...broken.sort(), window.ran || "did not run"];
    }""")
    assert broken == ["base-uri", "connect-src", "img-src", "script-src-elem", "did not run"]
    pages.complaints.clear()


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_fits_the_screen(enter, stopped, view):
    """On a desk in both themes and on a phone: nothing lies beside the screen. Pictures of all are kept."""
    page = enter("ben", view=view)
    places = {"glance": "", "devices": "devices", "device": f"devices/{NORTH[0]}", "rollouts": "rollouts",
              "rollout": f"rollouts/{stopped}", "audit": "audit"}  # fmt: skip
    for name, place in places.items():
        go(page, place)
        page.locator("main .card td, main .chart .line, main .stages").first.wait_for()
        if name == "rollouts":
            page.get_by_text("New roll-out").click()
            page.locator("[name=target] option").first.wait_for(state="attached")
        assert fits(page), name
        shoot(page, f"fleet-{name}-{view}", whole=view == "phone" or name != "devices")


def test_the_page_is_walked_by_keyboard_and_keeps_its_theme(enter):
    """Skip link first; links of the header in order; focus stays where it is while the figures change."""
    page = enter(place="audit")
    page.reload()
    page.locator("main .card").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("[document.activeElement.id, location.hash]") == ["view", "#/audit"]
    page.locator(".skip").focus()
    for expected in ("Glance", "Devices"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == expected
    page.keyboard.press("Enter")
    page.locator("[data-key='device-shop-00003']").focus()
    changes(page, "document.querySelector('tbody').textContent")
    assert page.evaluate("document.activeElement.dataset.key") == "device-shop-00003"
    page.keyboard.press("Enter")
    page.locator("h2", has_text="shop-00003").wait_for()
    page.click("#theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("h2", has_text="shop-00003").wait_for()

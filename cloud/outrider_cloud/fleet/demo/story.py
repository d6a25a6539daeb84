"""What happens in the demo, and what has to come of it. Each act ends with checks; one that fails fails the demo.

1. All devices are online.
2. Settings and commands reach them.
3. A good draft goes out in stages while the real device answers: no request is lost, no text changes.
4. A bad draft, valid by every signature and self-test, is stopped by the acceptance gate at its first stage, and every
   device that got it goes back.
5. The devices that were never told of the bad draft never had it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.demo.asker import Asker
from outrider_cloud.fleet.demo.setting import BAD, DEVICE, FIRST, GOOD, Draft, Stage, until

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_STAGE = 0.2  # of the devices
_BASELINE = 12  # windows of the draft before that a device must have shown
_ENDED = {"succeeded", "rolled_back", "aborted", "denied"}
_MOST_S = 300.0


@dataclass(frozen=True, slots=True)
class Check:
    """Something that has to be so."""

    what: str
    passed: bool
    found: str = ""


@dataclass(slots=True)
class Story:
    """The acts; `say` is told what happens (a line), `checked` what came of it.

    Attributes:
        measured: Figures of this run.
    """

    stage: Stage
    devices: int
    telemetry_s: float
    say: Callable[[str], None]
    checked: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def play(self) -> None:
        """All of it, with somebody asking the device from the beginning to the end."""
        asker = Asker(self.stage.endpoint)
        self.arrive()
        asker.start()
        try:
            self.operate()
            good = self._published(GOOD)
            self.good(good, asker)
            self.bad(self._published(BAD), good)
        finally:
            asker.end()
        self.expect("no request was lost", not asker.lost, f"{len(asker.answers)} answers" + _first(asker.lost))
        self.expect("the text never changed, whichever draft was at work", asker.texts == 1, f"{asker.texts} at most")

    def arrive(self) -> None:
        """Everybody enrols and connects."""
        total = self.devices + 1
        there = until(self.stage, lambda: self._get("/overview")["online"] == total, 120)
        self.expect(f"{total} devices are online", there, f"{self._get('/overview')['online']} of {total}")

    def operate(self) -> None:
        """Settings and commands."""
        self.say(f"$ outrider fleet device set telemetry_s={self.telemetry_s:g} probation_requests=5 probation_s=1")
        settings = {"telemetry_s": self.telemetry_s, "probation_requests": 5, "probation_s": 1.0}
        self._call("PATCH", "/config", settings)
        told = until(self.stage, self._configured, 60)
        self.expect("every device reports the new settings", told)
        self.say(f"$ outrider fleet command {DEVICE} ping")
        answer = self._call("POST", f"/devices/{DEVICE}/commands", {"name": "ping", "timeout_s": 30})
        self.expect(f"{DEVICE} answers a command", answer["code"] == "", answer["code"])
        self._baselines(FIRST)

    def good(self, target: str, asker: Asker) -> None:
        """A better draft: it has to get everywhere."""
        began, seen = time.monotonic(), dict[str, float]()
        row = self._roll(GOOD, target, seen)
        runs = self._get("/overview")["versions"]
        self.expect(
            f"{GOOD.name} was rolled out to everybody",
            row["state"] == "succeeded" and [v["target"] for v in runs] == [target], f"{row['state']} {row['reason']}",
        )  # fmt: skip
        self._baselines(GOOD)
        before, after = self._acceptance("")[0], self._acceptance(row["spec"]["sha256"])[0]
        self.expect(f"{DEVICE} guesses better with it", after > before, f"{before:.1%} before, {after:.1%} after")
        quiet, done = (began - 20.0, began), max(seen.values(), default=began)
        self.measured |= {
            "acceptance_first": before, "acceptance_good": after,
            "answer_s_before": asker.median_s(*quiet), "answer_s_after": asker.median_s(done, time.monotonic()),
            "slowdown_while_updating": asker.slowdown(quiet, (min(seen.values(), default=began) - 0.5, done)),
        }  # fmt: skip

    def bad(self, target: str, good: str) -> None:
        """A worse one: the first stage has to stop it."""
        row = self._roll(BAD, target, {})
        self.expect(
            f"{BAD.name} was stopped by the acceptance gate at its first stage and taken back",
            (row["state"], row["gate"], row["stage"]) == ("rolled_back", "acceptance", 0),
            f"{row['state']} {row['gate']}",
        )
        self.say(f"reason: {row['reason']}")
        back = until(self.stage, lambda: [v["target"] for v in self._get("/overview")["versions"]] == [good], 60)
        self.expect(f"every device runs {GOOD.name} again", back)
        told = sum(row["counts"].get(state, 0) for state in ("reverted", "committed", "active", "dispatched"))
        most = _FIRST_STAGE * (self.devices + 1)
        self.expect("only the first stage ever had it", 0 < told <= most, f"{told} devices")
        found, windows = self._acceptance(row["spec"]["sha256"])
        test = (row["evidence"] or {}).get("acceptance", {})
        self.measured |= {
            "acceptance_bad": found if windows else None, "bad_devices": told, "bad_pairs": test.get("pairs"),
            "bad_loss": test.get("mean_loss"),
        }  # fmt: skip

    def _published(self, draft: Draft) -> str:
        self.say(f"$ outrider edge golden {draft.name} > golden.json")
        self.say(f"$ outrider fleet model publish {draft.name} --version 1 --golden golden.json")
        return self.stage.publish(draft)

    def _roll(self, draft: Draft, target: str, seen: dict[str, float]) -> dict[str, Any]:
        """Start a roll-out and watch it to its end; `seen` gets when the real device was first in which state."""
        name = _named(draft, DEVICE, self.devices)
        self.say(f"$ outrider fleet rollout create {name} {target} --stages 20,50,100 --soak 3 --start")
        percents = (100 * _FIRST_STAGE, 50, 100)
        self._call("POST", "/rollouts", {
            "name": name, "target": target, "stages": [{"percent": percent, "soak_s": 3.0} for percent in percents],
            "control_percent": 20.0, "per_minute": 240.0, "timeout_s": 120.0,
            "gates": {"min_baseline": _BASELINE, "min_pairs": 60},
        })  # fmt: skip
        row = self._call("POST", f"/rollouts/{name}/submit")
        last: tuple[Any, ...] = ()

        def ended() -> bool:
            nonlocal row, last
            row = self._get(f"/rollouts/{name}")
            for part in self._get(f"/devices/{DEVICE}")["rollouts"]:
                if part["rollout"] == name and part["progress"]:
                    seen.setdefault(part["progress"], time.monotonic())
            now = (row["state"], row["stage"], row["stage_state"], row["waits_for"].strip("0123456789"))
            if now != last:
                self.say(_standing(row))
            last = now
            return row["state"] in _ENDED

        until(self.stage, ended, _MOST_S, 0.2)
        return row

    def _baselines(self, draft: Draft) -> None:
        """Wait until the devices have shown how good their draft is."""
        self.say(f"the devices show how well {draft.name} does: {_BASELINE} windows of {self.telemetry_s:g} s")
        wanted = _BASELINE + 3  # by when every other device has them, too
        until(self.stage, lambda: self._get(f"/devices/{DEVICE}")["baseline_windows"] >= wanted, 120)

    def _configured(self) -> bool:
        rows = self._get("/devices?limit=500")["devices"]
        mine = self._get(f"/devices/{DEVICE}")
        return all(r["applied_version"] >= 1 for r in rows) and mine["config"].get("telemetry_s") == self.telemetry_s

    def _acceptance(self, sha256: str) -> tuple[float, int]:
        """Of the real device with that draft: draft tokens taken of those tried, and in how many windows."""
        windows = self._get(f"/devices/{DEVICE}/telemetry?limit=5000")["windows"]
        mine = [window for window in windows if window["sha256"] == sha256]
        tried = sum(sum(window["tried"]) for window in mine)
        return sum(sum(window["taken"]) for window in mine) / max(1, tried), len(mine) if tried else 0

    def _get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)

    def _call(self, verb: str, path: str, body: object | None = None) -> dict[str, Any]:
        return self.stage.client.call(verb, path, body, timeout_s=60.0)

    def expect(self, what: str, passed: bool, found: str = "") -> None:
        """Something has to be so."""
        self.checks.append(Check(what, bool(passed), found))
        self.checked(self.checks[-1])


def _named(draft: Draft, device: str, others: int) -> str:
    """A roll-out's order is by lot, drawn from its name: the first name whose lot puts the device into stage one."""
    names = [device, *(f"sim-{i:05d}" for i in range(others))]
    from outrider_cloud.fleet.registry.members import place  # noqa: PLC0415 - the registry is slow to import

    for number in itertools.count(1):
        name = f"{draft.name}-take-{number}"
        if sorted(names, key=lambda other: place(name, other)).index(device) < _FIRST_STAGE * len(names) - 1:
            return name
    raise AssertionError("itertools.count does not end")


def _standing(row: dict[str, Any]) -> str:
    """One line about where a roll-out stands."""
    percent = row["stages"][row["stage"]]["percent"]
    counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in sorted(row["counts"].items()))
    waits = f"; waits for {row['waits_for']}" if row["waits_for"] else ""
    return f"{row['id']} {row['state'].replace('_', ' ')}, {percent:g} % {row['stage_state']}: {counts}{waits}"


def _first(lost: list[str]) -> str:
    return f", {len(lost)} lost: {lost[0]}" if lost else ""

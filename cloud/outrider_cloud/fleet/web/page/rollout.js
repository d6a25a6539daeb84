// Roll-outs: the list, one of them with its stages, its gates and what may be done about it, and the form for a new one.
import { clock, card, count, device, draw, el, facts, meter, number, rollout, share, table, tag, when } from "./parts.js";

const VERBS = {
  submit: { label: "Submit", states: ["draft"], look: "primary", ask: (n) => `Submit ${n}?` },
  pause: { label: "Pause", states: ["running"], look: "", ask: null },
  resume: { label: "Resume", states: ["paused"], look: "primary", ask: (n) => `Resume ${n}? A gate that was broken is looked at afresh.` },
  abort: { label: "Abort", states: ["draft", "awaiting_approval", "scheduled", "running", "paused"], look: "danger", ask: (n) => `Abort ${n}? Devices keep what they have; those still updating are told to stop.` },
  rollback: { label: "Roll back", states: ["running", "paused", "succeeded"], look: "danger", ask: (n) => `Roll back ${n}? Every device that got the draft goes back to the one before.` },
};

export const UNDER_WAY = ["scheduled", "running", "paused", "rolling_back", "awaiting_approval"];

export const listed = (rows, empty) => table(["Roll-out", "State", "Stage", "Devices", "Waits for, or why it stopped"], rows.map((row) => [
  rollout(row.id), tag(row.state), el("span", { class: "n" }, `${row.stage + 1} of ${row.spec.stages.length}`),
  el("span", { class: "n" }, count(Object.values(row.counts).reduce((a, b) => a + b, 0))), row.reason || waits(row),
]), empty);

function waits(row) {
  if (row.state === "awaiting_approval") return agreement(row);
  return UNDER_WAY.includes(row.state) ? row.waits_for : "";
}

const agreement = (row) => `${row.approvers.length} of ${row.spec.approvals} approvals${row.approvers.length ? `: ${row.approvers.join(", ")}` : ""}`;

// What keeps this person from agreeing; empty where nothing does, null where there is nothing to agree to.
function hindrance(row, me) {
  const between = row.state === "running" && row.waits_for.includes("approval");
  if (row.state !== "awaiting_approval" && !between) return null;
  if (me.role !== "approver") return "An approver has to agree.";
  if (row.author === me.name && row.spec.approvals) return "You made this roll-out: another approver has to agree.";
  return !between && row.approvers.includes(me.name) ? "You have agreed; another approver has to, too." : "";
}

function actions(row, { act, session }) {
  const path = `/api/rollouts/${encodeURIComponent(row.id)}`, hindered = hindrance(row, session.me), made = [];
  const button = (label, look, go) => el("button", { type: "button", class: look, "data-key": `do-${label}`, onclick: go }, label);
  if (hindered === "") {
    made.push(button("Approve", "primary", () => act(`${path}/approval/decision`, { deny: false }, `Approve ${row.id}?`)));
    if (row.state === "awaiting_approval") made.push(button("Deny", "danger", () => act(`${path}/approval/decision`, { deny: true }, `Deny ${row.id}?`)));
  }
  if (session.me.role !== "viewer") {
    for (const [verb, { label, states, look, ask }] of Object.entries(VERBS)) {
      if (states.includes(row.state)) made.push(button(label, look, () => act(`${path}/${verb}`, undefined, ask && ask(row.id))));
    }
  }
  return [hindered ? el("p", { class: "soft" }, hindered) : null, el("div", { class: "row" }, made)];
}

function stage(row, part, index) {
  const ended = row.state === "succeeded" || index < row.stage;
  const state = ended ? "passed" : index === row.stage ? row.stage_state : "pending";
  const look = state === "passed" || state === "failed" ? state : index === row.stage && row.stage_state !== "pending" ? "current" : "";
  const devices = Object.values(part.counts).reduce((a, b) => a + b, 0), done = part.counts.committed || 0;
  return el("li", { class: look, "aria-current": index === row.stage ? "step" : null },
    el("p", { class: "row" }, el("b", {}, `${part.percent} %`), el("span", { class: "soft" }, `stage ${index + 1}`), tag(state)),
    meter(devices ? done / devices : 0, `${done} of ${devices} devices committed`),
    el("div", { class: "row" }, Object.entries(part.counts).map(([name, n]) => tag(name, n))),
    el("p", { class: "soft" }, `soak ${count(part.soak_s)} s${part.approval ? ", then an approval" : ""}`));
}

function gate(name, test, on) {
  if (!on) return card(`Gate: ${name}`, el("p", { class: "soft" }, "Switched off."));
  if (!test) return card(`Gate: ${name}`, el("p", { class: "soft" }, "No evidence yet: canary and control are compared from the first windows on."));
  const limit = Math.log(1 / test.alpha), far = Math.max(0, test.log_wealth) / limit;
  return card(`Gate: ${name}`, el("div", { class: "stack" },
    el("p", {}, el("span", { class: `tag ${test.alarmed ? "bad" : "good"}` }, test.alarmed ? "broken" : "no alarm")),
    meter(far, `evidence against the draft: ${share(Math.min(1, far))} of what stops it`, test.alarmed),
    el("p", { class: "soft" }, `evidence ${number(test.log_wealth, 2)} of the ${number(limit, 2)} that stop it (log-wealth; false alarms at most ${share(test.alpha)})`),
    facts([["Pairs of windows", count(test.pairs)], ["Mean loss", share(test.mean_loss)], ["Tolerated", share(test.margin)], ["p-value", test.p_value.toPrecision(2)]])));
}

// As `rollout/gates.py` counts them: of the devices of this stage that ended one way or the other.
function losses(row, gates) {
  const of = (name) => row.stages[row.stage].counts[name] || 0, failed = of("failed") + of("rejected"), silent = of("timed_out");
  const ended = failed + silent + of("committed"), line = (name, lost, most) => el("div", { class: "stack" },
    el("p", { class: "row" }, el("span", {}, name), el("span", { class: "soft n" }, `${count(lost)} of ${count(ended)} in this stage; more than ${share(most)} stop it`)),
    meter(ended ? lost / ended / most : 0, `${name}: ${lost} of ${ended}`, ended > 0 && lost / ended > most));
  return card("Gates: failures and silence", el("div", { class: "stack" }, line("Failed or went back", failed, gates.max_failed), line("Silent", silent, gates.max_silent)));
}

export function oneRollout(id, app) {
  const node = el("div", { class: "stack" });
  return { node, async refresh() {
    const row = await app.ask(`/api/rollouts/${encodeURIComponent(id)}`), evidence = row.evidence || {}, gates = row.spec.gates || {};
    draw(node,
      el("div", { class: "row" }, el("h2", {}, row.id), tag(row.state)),
      ...actions(row, app),
      row.reason ? el("p", { class: "reason" }, row.gate ? `Stopped by the ${row.gate} gate: ${row.reason}.` : row.reason) : null,
      card("Stages", el("div", { class: "stack" },
        el("p", { class: "soft" }, `${row.spec.target} · by ${row.author} · ${when(row.created)}${waits(row) ? ` · waits for ${waits(row)}` : ""}`),
        el("ol", { class: "stages" }, row.stages.map((part, index) => stage(row, part, index))))),
      el("div", { class: "cards" },
        gate("acceptance", evidence.acceptance, gates.acceptance !== false), gate("latency", evidence.latency, gates.latency !== false), losses(row, gates),
        card("Troubled devices", table(["Device", "State", "What"], row.troubled.map((t) => [device(t.device), tag(t.state), [t.code, t.message].filter(Boolean).join(": ")]), "None."))),
      card("What happened", el("ol", { class: "timeline" }, row.events.map((e) => el("li", {}, el("time", { title: when(e.at) }, clock(e.at)), e.what)))));
  } };
}

export function rollouts(app) {
  const list = el("div");
  const node = el("div", { class: "stack" }, el("section", { class: "card stack", "aria-label": "Roll-outs" }, el("h2", {}, "Roll-outs"), list), newRollout(app));
  return { node, async refresh() { draw(list, listed((await app.ask("/api/rollouts")).rollouts, "None yet.")); } };
}

function newRollout({ ask, act, session, complain }) {
  if (session.me.role === "viewer") return el("p", { class: "soft" }, "A viewer's token makes no roll-outs.");
  const target = el("select", { name: "target", required: true }), group = el("select", { name: "group" });
  const field = (label, name, value, more = {}) => el("label", {}, label, el("input", { name, value, required: true, ...more }));
  const form = el("form", { class: "grid", onsubmit: async (event) => {
    event.preventDefault();
    const said = Object.fromEntries(new FormData(form)), soak = Number(said.soak);
    const stages = said.stages.split(",").map((percent) => ({ percent: Number(percent), soak_s: soak }));
    const made = await act("/api/rollouts", {
      name: said.name, target: said.target, group: said.group, stages, per_minute: Number(said.rate), approvals: Number(said.approvals),
      control_percent: Number(said.control), on_breach: said.breach,
      gates: { acceptance_margin: Number(said.margin) / 100, alpha: Number(said.alpha), min_pairs: Number(said.pairs), min_baseline: Number(said.baseline) },
    });
    if (made) location.hash = `#/rollouts/${encodeURIComponent(made.id)}`;
  } },
  field("Name", "name", "", { maxlength: 64 }), el("label", {}, "Published pack", target), el("label", {}, "Group", group),
  field("Stages, in percent", "stages", "5, 25, 100", { pattern: "[0-9., ]+" }), field("Soak per stage, seconds", "soak", 600, { type: "number", min: 0 }),
  field("Devices per minute", "rate", 60, { type: "number", min: 1 }), field("Control group, in percent", "control", 10, { type: "number", min: 0, max: 50 }),
  field("Approvals to start", "approvals", 0, { type: "number", min: 0 }),
  el("label", {}, "When a gate breaks", el("select", { name: "breach" }, el("option", { value: "rollback" }, "roll back"), el("option", { value: "pause" }, "pause"))),
  field("Tolerated loss of acceptance, points", "margin", 2, { type: "number", min: 0, step: "0.1" }), field("False alarms at most", "alpha", 0.01, { type: "number", min: 0.0001, max: 0.5, step: "any" }),
  field("Pairs of windows before a stage may pass", "pairs", 40, { type: "number", min: 0 }), field("Windows of the old draft before a device takes part", "baseline", 20, { type: "number", min: 0 }),
  el("div", { class: "wide" }, el("button", { class: "primary", type: "submit" }, "Make the roll-out")));
  const holder = el("details", { class: "card", ontoggle: async () => {
    if (!holder.open || target.options.length) return;
    try {
      const [{ models }, { groups }] = await Promise.all([ask("/api/models"), ask("/api/groups")]);
      target.replaceChildren(...models.map((m) => el("option", { value: m.target }, m.target)));
      group.replaceChildren(el("option", { value: "" }, "every device of the pack's class"), ...groups.map((g) => el("option", { value: g.name }, g.name)));
      if (!models.length) complain({ message: "no pack is published", hint: "outrider fleet model publish" });
    } catch (error) { complain(error); }
  } }, el("summary", {}, "New roll-out"), form);
  return holder;
}

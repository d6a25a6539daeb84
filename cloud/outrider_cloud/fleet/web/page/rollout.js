// A roll-out: its stages, its gates, what happened, and what may be done about it.
import { card, count, device, el, meter, number, share, table, tag, when } from "./parts.js";

const VERBS = {
  submit: { label: "Submit", states: ["draft"], look: "primary", ask: (n) => `Submit ${n}?` },
  pause: { label: "Pause", states: ["running"], look: "", ask: null },
  resume: { label: "Resume", states: ["paused"], look: "primary", ask: (n) => `Resume ${n}? A gate that was broken is looked at afresh.` },
  abort: { label: "Abort", states: ["draft", "awaiting_approval", "scheduled", "running", "paused"], look: "danger", ask: (n) => `Abort ${n}? Devices keep what they have; those still updating are told to stop.` },
  rollback: { label: "Roll back", states: ["running", "paused", "succeeded"], look: "danger", ask: (n) => `Roll back ${n}? Every device that got the draft goes back to the one before.` },
};

function buttons(row, { act, session }) {
  const path = `/api/rollouts/${encodeURIComponent(row.id)}`, role = session.me.role, made = [];
  const button = (label, look, go) => el("button", { type: "button", class: look, "data-key": `do-${label}`, onclick: go }, label);
  const waits = row.state === "running" && row.waits_for.includes("approval");
  if (role === "approver" && (row.state === "awaiting_approval" || waits)) {
    made.push(button("Approve", "primary", () => act(`${path}/approval/decision`, { deny: false }, `Approve ${row.id}?`)));
    if (!waits) made.push(button("Deny", "danger", () => act(`${path}/approval/decision`, { deny: true }, `Deny ${row.id}?`)));
  }
  if (role !== "viewer") {
    for (const [verb, { label, states, look, ask }] of Object.entries(VERBS)) {
      if (states.includes(row.state)) made.push(button(label, look, () => act(`${path}/${verb}`, undefined, ask && ask(row.id))));
    }
  }
  return el("div", { class: "row" }, made);
}

function stage(row, part, index) {
  const ended = row.state === "succeeded" || index < row.stage;
  const state = ended ? "passed" : index === row.stage ? row.stage_state : "pending";
  const look = state === "passed" || state === "failed" ? state : index === row.stage && row.stage_state !== "pending" ? "current" : "";
  return el("li", { class: look, "aria-current": index === row.stage ? "step" : null },
    el("p", {}, el("b", {}, `${part.percent} %`), ` stage ${index + 1}`), tag(state),
    el("p", { class: "soft" }, `soak ${count(part.soak_s)} s${part.approval ? ", then an approval" : ""}`),
    el("div", { class: "row" }, Object.entries(part.counts).map(([name, n]) => tag(name, n))));
}

function gate(name, test, on) {
  if (!on) return card(`Gate: ${name}`, el("p", { class: "soft" }, "Switched off."));
  if (!test) return card(`Gate: ${name}`, el("p", { class: "soft" }, "No evidence yet."));
  const limit = Math.log(1 / test.alpha), far = Math.max(0, test.log_wealth) / limit;
  return card(`Gate: ${name}`, el("div", { class: "stack" },
    el("div", {}, el("span", { class: `tag ${test.alarmed ? "bad" : "good"}` }, test.alarmed ? "broken" : "no alarm")),
    meter(far, `evidence against the draft: ${share(Math.min(1, far))} of what stops it`, test.alarmed),
    el("p", { class: "soft" }, `log-wealth ${number(test.log_wealth, 2)} of ${number(limit, 2)} that stop it (false alarms at most ${share(test.alpha)})`),
    el("dl", { class: "facts" }, [["Pairs of windows", count(test.pairs)], ["Mean loss", share(test.mean_loss)], ["Tolerated", share(test.margin)], ["p-value", test.p_value.toPrecision(2)]]
      .flatMap(([label, value]) => [el("dt", {}, label), el("dd", { class: "n" }, value)]))));
}

export function oneRollout(id, app) {
  const node = el("div", { class: "stack" });
  return { node, async refresh() {
    const row = await app.ask(`/api/rollouts/${encodeURIComponent(id)}`), evidence = row.evidence || {}, gates = row.spec.gates || {};
    node.replaceChildren(...[
      el("div", { class: "row" }, el("h2", {}, row.id), tag(row.state), buttons(row, app)),
      row.reason ? el("p", { class: "reason" }, row.gate ? `Stopped by the ${row.gate} gate: ${row.reason}.` : row.reason) : null,
      card("Stages", el("p", { class: "soft" }, `${row.spec.target} · by ${row.author} · ${when(row.created)}${row.waits_for ? ` · waits for ${row.waits_for}` : ""}`),
        el("ol", { class: "stages" }, row.stages.map((part, index) => stage(row, part, index)))),
      el("div", { class: "cards" }, gate("acceptance", evidence.acceptance, gates.acceptance !== false), gate("latency", evidence.latency, gates.latency !== false)),
      el("div", { class: "cards" },
        card("What happened", el("ol", { class: "timeline" }, row.events.map((e) => el("li", {}, el("time", {}, when(e.at)), e.what)))),
        card("Troubled devices", table(["Device", "State", "What"], row.troubled.map((t) => [device(t.device), tag(t.state), [t.code, t.message].filter(Boolean).join(": ")]), "None."))),
    ].filter(Boolean));
  } };
}

export function newRollout({ ask, act, session, complain }) {
  if (session.me.role === "viewer") return el("p", { class: "soft" }, "A viewer's token makes no roll-outs.");
  const target = el("select", { name: "target", required: true });
  const field = (label, name, value, more = {}) => el("label", {}, label, el("input", { name, value, required: true, ...more }));
  const form = el("form", { class: "grid", onsubmit: async (event) => {
    event.preventDefault();
    const said = Object.fromEntries(new FormData(form)), soak = Number(said.soak);
    const stages = said.stages.split(",").map((percent) => ({ percent: Number(percent), soak_s: soak }));
    const made = await act("/api/rollouts", {
      name: said.name, target: said.target, stages, per_minute: Number(said.rate), approvals: Number(said.approvals), on_breach: said.breach,
      gates: { acceptance_margin: Number(said.margin) / 100, alpha: Number(said.alpha) },
    });
    if (made) location.hash = `#/rollouts/${encodeURIComponent(made.id)}`;
  } },
  field("Name", "name", "", { maxlength: 64 }), el("label", {}, "Published pack", target),
  field("Stages, in percent", "stages", "5, 25, 100", { pattern: "[0-9., ]+" }), field("Soak per stage, seconds", "soak", 600, { type: "number", min: 0 }),
  field("Devices per minute", "rate", 60, { type: "number", min: 1 }), field("Approvals to start", "approvals", 0, { type: "number", min: 0 }),
  field("Tolerated loss of acceptance, points", "margin", 2, { type: "number", min: 0, step: "0.1" }), field("False alarms at most", "alpha", 0.01, { type: "number", min: 0.0001, max: 0.5, step: "any" }),
  el("label", {}, "When a gate breaks", el("select", { name: "breach" }, el("option", { value: "rollback" }, "roll back"), el("option", { value: "pause" }, "pause"))),
  el("div", { class: "wide" }, el("button", { class: "primary", type: "submit" }, "Make the roll-out")));
  const holder = el("details", { class: "card", ontoggle: async () => {
    if (!holder.open || target.options.length) return;
    try {
      const { models } = await ask("/api/models");
      target.replaceChildren(...models.map((m) => el("option", { value: m.target }, m.target)));
      if (!models.length) complain({ message: "no pack is published", hint: "outrider fleet model publish" });
    } catch (error) { complain(error); }
  } }, el("summary", {}, "New roll-out"), form);
  return holder;
}

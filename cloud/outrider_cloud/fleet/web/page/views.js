// One function per view: it gives the node to show, and `refresh`, which asks the API and draws anew.
import { bars, line } from "./charts.js";
import { devices, oneDevice } from "./devices.js";
import { ago, card, count, draw, el, meter, number, said, share, table, when } from "./parts.js";
import { listed, oneRollout, rollouts, UNDER_WAY } from "./rollout.js";

const MINUTES = 60;

export function route([name, id], app) {
  if (name === "devices") return id ? oneDevice(id, app) : devices(app);
  if (name === "rollouts") return id ? oneRollout(id, app) : rollouts(app);
  if (name === "audit") return audit(app);
  return glance(app);
}

const figures = (rows) => el("dl", { class: "figures card" }, rows.map(([name, value, note]) =>
  el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, note) : null))));

const version = (v) => el("p", { class: "version" }, el("span", {}, v.target || "no draft reported"),
  el("span", { class: "n" }, `${share(v.acceptance)} · ${count(v.devices)} device${v.devices === 1 ? "" : "s"}`), meter(v.acceptance, `acceptance ${share(v.acceptance)}`));

const happened = (row) => el("li", {}, ago(row.at), el("b", {}, row.subject), ` ${said(row.detail) || row.action} `, el("span", { class: "soft" }, row.actor));

function glance({ ask, overview }) {
  const node = el("div", { class: "stack" });
  return { node, async refresh() {
    const [seen, all, past, log] = await Promise.all([overview(), ask("/api/rollouts"), ask(`/api/history?minutes=${MINUTES}`), ask("/api/audit?limit=12")]);
    const minutes = past.minutes.map((m) => [m.minute, m.cloud_steps, m.tokens]);
    draw(node,
      figures([
        ["Online", `${count(seen.online)} / ${count(seen.devices)}`, "devices"],
        ["Acceptance", share(seen.acceptance), "mean over devices"],
        ["Tokens", count(seen.tokens), `${count(seen.recent.tokens)} in the last hour`],
        ["Cloud steps saved", count(seen.tokens - seen.cloud_steps), `${count(seen.recent.tokens - seen.recent.cloud_steps)} in the last hour`],
        ["Tokens per step", seen.cloud_steps ? number(seen.tokens / seen.cloud_steps, 2) : "–", `${count(seen.requests)} requests`],
      ]),
      card("Roll-outs under way", listed(all.rollouts.filter((row) => UNDER_WAY.includes(row.state)), "None. Every device runs what it is to run.")),
      el("div", { class: "cards" },
        bars("Tokens by the minute", seen.at, minutes, MINUTES, ["saved a cloud step", "took one"]),
        line("Tokens per cloud step", minutes.map(([minute, steps, tokens]) => [60 * minute, steps ? tokens / steps : null]), (v) => v.toFixed(2))),
      card("Draft versions, by acceptance", el("div", { class: "versions" }, seen.versions.map(version))),
      card("Recent activity", el("ol", { class: "timeline" }, log.audit.map(happened))));
  } };
}

function audit({ ask }) {
  const body = el("div", { class: "stack" });
  let before = null;
  const node = el("section", { class: "card stack", "aria-label": "Audit log" }, el("h2", {}, "Audit log"), body);
  const self = { node, async refresh() {
    const found = (await ask(`/api/audit?limit=100${before ? `&before=${before}` : ""}`)).audit;
    draw(body,
      table(["When", "Who", "What", "Subject", "Detail"], found.map((row) => [el("span", { class: "n" }, when(row.at)), row.actor, row.action, row.subject, said(row.detail)]), "Nothing yet."),
      el("p", { class: "row" },
        el("button", { type: "button", "data-key": "newest", disabled: !before, onclick: () => { before = null; self.refresh(); } }, "Newest"),
        el("button", { type: "button", "data-key": "older", disabled: found.length < 100, onclick: () => { before = found.at(-1).id; self.refresh(); } }, "Older")));
  } };
  return self;
}

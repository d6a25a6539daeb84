// One function per view: it gives the node to show, and `refresh`, which asks the API and draws anew.
import { card, chart, count, device, el, meter, number, rollout, share, table, tag, when } from "./parts.js";
import { newRollout, oneRollout } from "./rollout.js";

export function route([name, id], app) {
  if (name === "devices") return id ? oneDevice(id, app) : devices(app);
  if (name === "rollouts") return id ? oneRollout(id, app) : rollouts(app);
  if (name === "audit") return audit(app);
  return glance(app);
}

const figures = (rows) => el("dl", { class: "figures card" }, rows.map(([name, value, note]) =>
  el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, note) : null))));

const listed = (rows) => table(["Roll-out", "State", "Stage", "Devices", "Waits for, or why it stopped"], rows.map((row) => [
  rollout(row.id), tag(row.state), el("span", { class: "n" }, `${row.stage + 1} of ${row.spec.stages.length}`),
  el("span", { class: "n" }, count(Object.values(row.counts).reduce((a, b) => a + b, 0))), row.reason || row.waits_for || "",
]), "None.");

const lines = (rows) => table(["When", "Who", "What", "Subject", "Detail"], rows.map((row) => [
  el("span", { class: "n" }, when(row.at)), row.actor, row.action, row.subject, Object.keys(row.detail).length ? JSON.stringify(row.detail) : "",
]), "Nothing yet.");

function glance({ ask, session }) {
  const node = el("div", { class: "stack" });
  return { node, async refresh() {
    const [seen, all, log] = await Promise.all([ask("/api/overview"), ask("/api/rollouts"), ask("/api/audit?limit=12")]);
    session.overview = seen;
    const running = all.rollouts.filter((row) => ["scheduled", "running", "paused", "rolling_back", "awaiting_approval"].includes(row.state));
    node.replaceChildren(
      figures([
        ["Online", `${count(seen.online)} / ${count(seen.devices)}`, "devices"],
        ["Acceptance", share(seen.acceptance), "mean over devices"],
        ["Tokens", count(seen.tokens), `${count(seen.recent.tokens)} in the last hour`],
        ["Cloud steps saved", count(seen.tokens - seen.cloud_steps), `${count(seen.recent.tokens - seen.recent.cloud_steps)} in the last hour`],
        ["Tokens per step", seen.cloud_steps ? number(seen.tokens / seen.cloud_steps, 2) : "–", `${count(seen.requests)} requests`],
      ]),
      el("div", { class: "cards" },
        card("Draft versions, by acceptance", ...seen.versions.map((v) => el("p", { class: "version" },
          el("span", {}, v.target || "no draft reported"), el("span", { class: "n" }, `${share(v.acceptance)} · ${count(v.devices)} devices`),
          meter(v.acceptance, `acceptance ${share(v.acceptance)}`)))),
        card("Roll-outs under way", listed(running))),
      card("Recent activity", lines(log.audit)));
  } };
}

function devices({ ask, refresh }) {
  const search = el("input", { id: "search", type: "search", oninput: () => { offset = 0; refresh(); } });
  const online = el("select", { id: "online", onchange: () => { offset = 0; refresh(); } }, el("option", { value: "" }, "all"), el("option", { value: "true" }, "online"), el("option", { value: "false" }, "offline"));
  const version = el("select", { id: "version", onchange: () => { offset = 0; refresh(); } }, el("option", { value: "" }, "any"));
  const body = el("div");
  let offset = 0, known = "";
  const node = el("section", { class: "card stack", "aria-label": "Devices" }, el("h2", {}, "Devices"),
    el("div", { class: "filters" }, el("label", {}, "Search by name or class", search), el("label", {}, "Presence", online), el("label", {}, "Draft", version)), body);
  return { node, async refresh() {
    const asked = new URLSearchParams({ search: search.value, version: version.value, offset, limit: 50 });
    if (online.value) asked.set("online", online.value);
    const [found, seen] = await Promise.all([ask(`/api/devices?${asked}`), ask("/api/overview")]);
    const targets = seen.versions.map((v) => v.target).filter(Boolean);
    if (known !== targets.join("\n")) {
      known = targets.join("\n");
      const chosen = version.value;
      version.replaceChildren(el("option", { value: "" }, "any"), ...targets.map((t) => el("option", { value: t }, t)));
      version.value = targets.includes(chosen) ? chosen : "";
    }
    const move = (by) => () => { offset += by; refresh(); };
    body.replaceChildren(
      table(["Device", "Presence", "Class", "Draft", "Acceptance", "p95", "Seen"], found.devices.map((d) => [
        device(d.id), el("span", { class: d.online ? "dot up n" : "dot n" }, d.online ? "online" : "offline"), d.device_class, d.active_target,
        el("span", { class: "n" }, share(d.acceptance)), el("span", { class: "n" }, number(d.p95_ms, 0, " ms")), el("span", { class: "n" }, when(d.seen)),
      ]), "No device matches."),
      el("p", { class: "row soft" }, `${count(found.total)} devices${found.devices.length ? `, ${offset + 1} to ${offset + found.devices.length}` : ""}`,
        el("button", { type: "button", "data-key": "before", disabled: offset === 0, onclick: move(-50) }, "Previous"),
        el("button", { type: "button", "data-key": "after", disabled: offset + 50 >= found.total, onclick: move(50) }, "Next")));
  } };
}

function oneDevice(id, { ask }) {
  const node = el("div", { class: "stack" }), path = `/api/devices/${encodeURIComponent(id)}`;
  return { node, async refresh() {
    const [d, told] = await Promise.all([ask(path), ask(`${path}/telemetry?limit=240`)]);
    const line = (title, pick, say) => chart(title, told.windows.map((w) => [w.at, pick(w)]), say);
    const wanted = d.desired, aim = wanted && wanted.assignment;
    const facts = (rows) => el("dl", { class: "facts" }, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    node.replaceChildren(
      el("div", { class: "row" }, el("h2", {}, d.id), el("span", { class: d.online ? "tag good" : "tag idle" }, d.online ? "online" : "offline")),
      d.refused ? el("p", { class: "reason" }, `The device refused its desired state: ${d.refused}`) : null,
      el("div", { class: "cards" },
        line("Acceptance", (w) => w.acceptance, share), line("p95 per token", (w) => w.p95_ms, (v) => `${v.toFixed(1)} ms`),
        line("Tokens per cloud step", (w) => (w.cloud_steps ? w.tokens / w.cloud_steps : null), (v) => v.toFixed(2)), line("Round trip", (w) => w.rtt_ms, (v) => `${v.toFixed(1)} ms`),
        card("Desired and reported", facts([
          ["Version", wanted ? `${wanted.version} desired, ${d.applied_version} reported` : "nothing desired yet"],
          ["Draft desired", aim ? `${aim.target} (${aim.rollout})` : "as it is"], ["Draft reported", d.active_target || "–"],
          ["Settings desired", JSON.stringify(wanted ? wanted.config : {})], ["Settings reported", JSON.stringify(d.config || {})],
        ])),
        card("Facts", facts([
          ["Class", d.device_class], ["Labels", Object.entries(d.labels).map(([k, v]) => `${k}=${v}`).join(", ") || "–"], ["Agent", d.agent], ["System", d.system],
          ["Processors", d.cpus || "–"], ["Memory", d.memory_bytes ? `${(d.memory_bytes / 2 ** 30).toFixed(1)} GiB` : "–"], ["Seen", when(d.seen)],
          ["Requests", count(d.requests)], ["Tokens", count(d.tokens)], ["Cloud steps saved", count(d.tokens - d.cloud_steps)], ["Telemetry lost", count(d.lost)],
        ].map(([name, value]) => [name, String(value)])))),
      card("Its roll-outs", table(["Roll-out", "State", "Progress", "When", "What went wrong"], d.rollouts.map((r) => [
        rollout(r.rollout), tag(r.state), r.progress, when(r.changed), [r.code, r.message].filter(Boolean).join(": ")]), "None.")));
    for (const child of [...node.childNodes]) if (child.nodeType === Node.TEXT_NODE) child.remove();
  } };
}

function rollouts(app) {
  const list = el("div");
  const node = el("div", { class: "stack" }, el("section", { class: "card stack" }, el("h2", {}, "Roll-outs"), list), newRollout(app));
  return { node, async refresh() { list.replaceChildren(listed((await app.ask("/api/rollouts")).rollouts)); } };
}

function audit({ ask }) {
  const body = el("div");
  let before = null;
  const node = el("section", { class: "card stack", "aria-label": "Audit log" }, el("h2", {}, "Audit log"), body);
  const self = { node, async refresh() {
    const found = (await ask(`/api/audit?limit=100${before ? `&before=${before}` : ""}`)).audit;
    body.replaceChildren(lines(found), el("p", { class: "row" },
      el("button", { type: "button", "data-key": "newest", disabled: !before, onclick: () => { before = null; self.refresh(); } }, "Newest"),
      el("button", { type: "button", "data-key": "older", disabled: found.length < 100, onclick: () => { before = found.at(-1).id; self.refresh(); } }, "Older")));
  } };
  return self;
}

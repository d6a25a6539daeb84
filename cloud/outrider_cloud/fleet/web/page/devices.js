// The list of devices, and one device: charts of its windows, what it is to be and is, and what it may be told.
import { line } from "./charts.js";
import { ago, card, count, device, draw, el, facts, number, presence, rollout, share, table, tag, when } from "./parts.js";

const PAGE = 50, WINDOWS = 240, TYPED_MS = 250;

export function devices({ ask, refresh, overview }) {
  const anew = () => { offset = 0; refresh(); };
  const typed = () => { clearTimeout(waiting); waiting = setTimeout(anew, TYPED_MS); };
  const search = el("input", { id: "search", type: "search", oninput: typed });
  const online = el("select", { id: "online", onchange: anew }, el("option", { value: "" }, "all"), el("option", { value: "true" }, "online"), el("option", { value: "false" }, "offline"));
  const version = el("select", { id: "version", onchange: anew }, el("option", { value: "" }, "any"));
  const body = el("div", { class: "stack" });
  let offset = 0, waiting = 0;
  const node = el("section", { class: "card stack", "aria-label": "Devices" }, el("h2", {}, "Devices"),
    el("div", { class: "filters" }, el("label", {}, "Search by name or class", search), el("label", {}, "Presence", online), el("label", {}, "Draft", version)), body);
  return { node, async refresh() {
    const asked = new URLSearchParams({ search: search.value, version: version.value, offset, limit: PAGE });
    if (online.value) asked.set("online", online.value);
    const [found, seen] = await Promise.all([ask(`/api/devices?${asked}`), overview()]);
    const targets = [...new Set([...seen.versions.map((v) => v.target), version.value])].filter(Boolean);
    const chosen = version.value;
    draw(version, el("option", { value: "" }, "any"), targets.map((target) => el("option", { value: target, "data-key": target }, target)));
    version.value = chosen;
    const move = (by) => () => { offset = Math.max(0, offset + by); refresh(); };
    draw(body,
      table(["Device", "Presence", "Class", "Draft", "Acceptance", "p95", "Seen"], found.devices.map((d) => [
        device(d.id), presence(d.online), d.device_class, d.active_target,
        el("span", { class: "n" }, share(d.acceptance)), el("span", { class: "n" }, number(d.p95_ms, 0, " ms")), ago(d.seen),
      ]), "No device matches.", "devices"),
      el("p", { class: "row soft" }, `${count(found.total)} device${found.total === 1 ? "" : "s"}${found.devices.length ? `, ${count(offset + 1)} to ${count(offset + found.devices.length)}` : ""}`,
        el("button", { type: "button", "data-key": "before", disabled: offset === 0, onclick: move(-PAGE) }, "Previous"),
        el("button", { type: "button", "data-key": "after", disabled: offset + PAGE >= found.total, onclick: move(PAGE) }, "Next")));
  } };
}

export function oneDevice(id, app) {
  const path = `/api/devices/${encodeURIComponent(id)}`, told = el("div", { class: "stack" });
  const node = el("div", { class: "stack" }, told, app.session.me.role === "viewer" ? null : orders(path, app));
  let windows = [];
  return { node, async refresh() {
    const since = windows.length ? windows.at(-1).at : 0;
    const [d, more] = await Promise.all([app.ask(path), app.ask(`${path}/telemetry?limit=${WINDOWS}&since=${since}`)]);
    windows = [...windows, ...more.windows.filter((w) => w.at > since)].slice(-WINDOWS);
    const switches = windows.flatMap((w, i) => (i && w.sha256 !== windows[i - 1].sha256 ? [[w.at, `another draft since ${when(w.at).slice(11)}`]] : []));
    const chart = (title, pick, say) => line(title, windows.map((w) => [w.at, pick(w)]), say, switches);
    const wanted = d.desired, aim = wanted && wanted.assignment;
    draw(told,
      el("div", { class: "row" }, el("h2", {}, d.id), el("span", { class: d.online ? "tag good" : "tag idle" }, d.online ? "online" : "offline"), el("span", { class: "soft" }, "seen ", ago(d.seen))),
      d.refused ? el("p", { class: "reason" }, `The device refused its desired state: ${d.refused}`) : null,
      el("div", { class: "cards" },
        chart("Acceptance", (w) => w.acceptance, share), chart("p95 per token", (w) => w.p95_ms, (v) => `${v.toFixed(1)} ms`),
        chart("Tokens per cloud step", (w) => (w.cloud_steps ? w.tokens / w.cloud_steps : null), (v) => v.toFixed(2)), chart("Round trip", (w) => w.rtt_ms, (v) => `${v.toFixed(1)} ms`),
        card("Desired and reported", facts([
          ["Version", wanted ? `${wanted.version} desired, ${d.applied_version} reported` : "nothing desired yet"],
          ["Draft desired", aim ? `${aim.target} (${aim.rollout})` : "as it is"], ["Draft reported", d.active_target || "–"],
          ["Settings desired", settings(wanted && wanted.config)], ["Settings reported", settings(d.config)],
        ])),
        card("Facts", facts([
          ["Class", d.device_class], ["Labels", Object.entries(d.labels).map(([k, v]) => `${k}=${v}`).join(", ") || "–"], ["Agent", d.agent], ["System", d.system],
          ["Processors", String(d.cpus || "–")], ["Memory", d.memory_bytes ? `${(d.memory_bytes / 2 ** 30).toFixed(1)} GiB` : "–"],
          ["Requests", count(d.requests)], ["Tokens", count(d.tokens)], ["Cloud steps saved", count(d.tokens - d.cloud_steps)], ["Telemetry lost", count(d.lost)],
        ]))),
      card("Its roll-outs", table(["Roll-out", "State", "Progress", "When", "What went wrong"], d.rollouts.map((r) => [
        rollout(r.rollout), tag(r.state), r.progress, when(r.changed), [r.code, r.message].filter(Boolean).join(": ")]), "None.")));
  } };
}

const settings = (config) => Object.entries(config || {}).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ") || "as they come";

const COMMANDS = [["ping", "Ping"], ["flush", "Send telemetry now"], ["report", "Report again"], ["collect-logs", "Collect logs"], ["restart-draft", "Restart the draft"]];
const SETTINGS = [["telemetry_s", "Telemetry every, seconds"], ["bandwidth_bytes_s", "Download at most, bytes per second"], ["probation_requests", "Probation, answers"], ["probation_s", "Probation, seconds"], ["log_lines", "Log lines kept"]];

// What an operator may tell one device. Drawn once: a half-typed value outlives what the device reports meanwhile.
function orders(path, { ask, refresh, complain }) {
  const answer = el("pre", { class: "answer", role: "status" });
  const tell = async (name, label) => {
    answer.textContent = `${label} …`;
    const began = performance.now();
    try {
      const found = await ask(`${path}/commands`, { method: "POST", body: { name } });
      const took = `${Math.round(performance.now() - began)} ms`;
      answer.textContent = found.code ? `${label}: ${found.code} ${found.message}` : `${label}: answered in ${took}\n${found.output.log || ""}`.trim();
    } catch (error) { answer.textContent = `${label}: ${error.message}`; }
  };
  const name = el("select", { name: "setting" }, SETTINGS.map(([key, label]) => el("option", { value: key }, label)));
  const value = el("input", { name: "value", type: "number", min: 0, step: "any", required: true });
  const form = el("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    try {
      const made = await ask(`${path}/config`, { method: "PATCH", body: { [name.value]: Number(value.value) } });
      answer.textContent = `${name.value} ${value.value}: desired as version ${made.version}`;
      value.value = "";
      await refresh();
    } catch (error) { complain(error); }
  } }, el("label", {}, "Setting", name), el("label", {}, "Value", value), el("button", { type: "submit" }, "Change"));
  return card("Tell the device", el("div", { class: "stack" },
    el("div", { class: "row" }, COMMANDS.map(([key, label]) => el("button", { type: "button", onclick: () => tell(key, label) }, label))), form, answer));
}

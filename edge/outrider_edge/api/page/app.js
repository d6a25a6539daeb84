// The playground: asks the daemon it came from, and shows what the stream's `outrider` field tells.
import { Replay } from "./replay.js";

const $ = (id) => document.getElementById(id);
const NAMES = {
  accepted: "accepted draft", correction: "correction", bonus: "bonus", cloud: "cloud ahead",
  "cloud-lookup": "cloud lookup", "cloud-draft": "cloud draft", unverified: "unverified",
};
const EXAMPLES = ["Turn off the kitchen light.", "Is the office fan on?", "Set the hallway light to red at 40 percent, please."];
const SYSTEM = `You are 'Al', a helpful AI Assistant that controls the devices in a house.
Devices:
light.kitchen 'Kitchen Light' = on
light.hallway 'Hallway Light' = off
fan.office 'Office Fan' = off
cover.bedroom 'Bedroom Blinds' = open`;

const messages = [];
const replay = new Replay($);
let running = null;
let rtt = null;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- theme, status, legend, strip ------------------------------------------------------------------------------

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("outrider-theme", name); } catch { /* private windows have no storage */ }
}
let stored = null;
try { stored = localStorage.getItem("outrider-theme"); } catch { /* as above */ }
theme(stored || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

function headers() {
  const key = field("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function whereabouts(words, state) {
  $("where").textContent = words;
  $("where").className = `pill ${state}`;
}

async function status() {
  try {
    const answer = await fetch("/outrider/status", { headers: headers() });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error.message);
    rtt = body.rtt_ms;
    if (body.cloud_reachable) whereabouts(`${body.draft} → ${body.model}`, "up");
    else whereabouts(`${body.draft}, cloud is away`, "down");
  } catch (error) {
    whereabouts(String(error.message || error), "down");
  }
  strip();
}

function legend(counts = {}) {
  $("legend").replaceChildren(...Object.entries(NAMES)
    .filter(([origin]) => counts[origin] || !origin.startsWith("cloud-"))
    .map(([origin, name]) => element("li", {}, element("i", { class: origin }), name, element("b", {}, String(counts[origin] || "")))));
}

const bytes = (count) => (count < 10000 ? `${count} B` : `${(count / 1024).toFixed(1)} kB`);
let latest = [];
function strip(...figures) {
  if (figures.length) latest = figures;
  const [totals, count = 0, trips = 0, seconds = 0] = latest;
  const rows = [
    ["Tokens per step", totals && totals.cloud_steps ? (count / totals.cloud_steps).toFixed(2) : "–"],
    ["Steps saved", totals ? totals.saved_cloud_steps : "–"],
    ["Drafts accepted", totals && totals.drafted ? `${totals.accepted}/${totals.drafted}` : "–"],
    ["Round trips", totals ? trips : "–"],
    ["Bytes up", totals ? bytes(totals.bytes_up) : "–"],
    ["Bytes down", totals ? bytes(totals.bytes_down) : "–"],
    ["RTT", rtt == null ? "–" : `${rtt.toFixed(1)} ms`],
    ["Tokens", totals ? count : "–"],
    ["Tokens/s", seconds > 0 && count ? (count / seconds).toFixed(0) : "–"],
  ];
  $("strip").replaceChildren(...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

// ---- tokens ----------------------------------------------------------------------------------------------------

function show(token, answer) {
  // One stop of the Tab key for all tokens of an answer; arrows walk from one to the next.
  const tabindex = answer.querySelector(".t[tabindex='0']") ? "-1" : "0";
  const fresh = answer.childElementCount < 300 ? "new" : "";  // a long answer does without its fading in, which costs frames
  const span = element("span", { class: `t ${fresh} ${token.origin}`, tabindex, "aria-describedby": "tip" }, token.text);
  span.detail = token;
  answer.append(span);
  return span;
}

const percent = (logprob) => (Math.exp(logprob) < 0.0005 ? "< 0.1 %" : `${(100 * Math.exp(logprob)).toFixed(1)} %`);

function tip(span) {
  const token = span.detail;
  const lines = [element("strong", {}, NAMES[token.origin] || token.origin)];
  if (token.margin != null) lines.push(element("div", {}, `draft margin ${token.margin.toFixed(2)}${token.source === "lookup" ? " (run of a lookup)" : ""}`));
  if (token.logprob != null) lines.push(element("div", {}, `log-probability ${token.logprob.toFixed(3)} (${percent(token.logprob)})`));
  if (token.top && token.top.length) {
    lines.push(element("table", {}, ...token.top.map(([text, p]) =>
      element("tr", {}, element("td", {}, JSON.stringify(text)), element("td", {}, percent(p))))));
  }
  $("tip").replaceChildren(...lines);
  $("tip").hidden = false;
  const at = span.getBoundingClientRect(), box = $("tip").getBoundingClientRect();
  $("tip").style.left = `${Math.max(8, Math.min(at.left, innerWidth - box.width - 8))}px`;
  $("tip").style.top = `${at.bottom + box.height + 8 < innerHeight ? at.bottom + 6 : at.top - box.height - 6}px`;
}
for (const kind of ["mouseover", "focusin"]) {
  $("log").addEventListener(kind, (event) => { if (event.target.detail) tip(event.target); });
}
$("log").addEventListener("focusin", ({ target }) => {
  if (!target.detail) return;
  target.parentElement.querySelectorAll(".t[tabindex='0']").forEach((one) => { one.tabIndex = -1; });
  target.tabIndex = 0;
});
for (const kind of ["mouseout", "focusout"]) $("log").addEventListener(kind, () => { $("tip").hidden = true; });
document.addEventListener("keydown", (event) => {
  const here = document.activeElement;
  if (event.key === "Escape") { $("tip").hidden = true; running?.abort(); }
  if (!here?.detail) return;
  const all = [...here.parentElement.querySelectorAll(".t")], at = all.indexOf(here);
  const next = { ArrowRight: all[at + 1], ArrowLeft: all[at - 1], Home: all[0], End: all.at(-1) }[event.key];
  if (!next) return;
  next.focus();
  event.preventDefault();
});

// ---- asking ----------------------------------------------------------------------------------------------------

const field = (name) => document.querySelector(`[name=${name}]`);
function body() {
  const number = (name) => Number(field(name).value);
  const system = field("system").value.trim();
  const ours = { details: true, pace: field("pace").value, smooth: field("smooth").checked, local_only: field("local_only").checked };
  for (const name of ["drafter", "offline"]) if (field(name).value) ours[name] = field(name).value;
  return {
    model: "outrider", stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: number("top_logprobs"),
    temperature: number("temperature"), top_p: number("top_p"), top_k: number("top_k"), seed: number("seed"), max_tokens: number("max_tokens"),
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages], outrider: ours,
  };
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      yield JSON.parse(part.slice(6));
    }
  }
}

async function ask(words) {
  messages.push({ role: "user", content: words });
  $("hello")?.remove();
  const answer = element("div", { class: "message assistant waiting", "aria-busy": "true" });
  $("log").append(element("div", { class: "message user" }, words), answer);
  $("log").scrollTop = $("log").scrollHeight;
  following = true;
  $("fresh").disabled = true;
  running = new AbortController();
  $("send").textContent = "Stop";
  const state = { counts: {}, count: 0, trips: 0, totals: null, alone: [], started: performance.now(), text: "" };
  replay.begin();
  try {
    const reply = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body()), signal: running.signal });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    let since = performance.now();
    for await (const chunk of events(reply)) {
      take(chunk, state, answer);
      if (performance.now() - since < BUSY_MS) continue;
      await pause();  // for keys, clicks and frames
      since = performance.now();
    }
  } catch (error) {
    if (error.name !== "AbortError") answer.append(element("span", { class: "note bad", role: "alert" }, error.message));
    else answer.append(element("span", { class: "note" }, "stopped"));
  }
  drawn?.();
  answer.classList.remove("waiting");
  answer.removeAttribute("aria-busy");
  if (state.note) answer.append(element("span", { class: "note" }, state.note));
  $("fresh").disabled = false;
  if (state.text) messages.push({ role: "assistant", content: state.text });
  else messages.pop();
  running = null;
  $("send").textContent = "Send";
  replay.end();  // takes room from the talk
  if (following) $("log").scrollTop = $("log").scrollHeight;
  $("words").focus();
  status();
}

// One line below the answer says how the way to the cloud is; it goes when the cloud is back.
function link(detail, state, answer) {
  const looking = detail.reconnecting && !state.away ? "Looking for the cloud again." : "";
  const words = detail.offline ? "The cloud is away. What the device writes alone is underlined until it is confirmed." : looking;
  if (detail.online || detail.tokens) { state.away?.remove(); state.away = null; }
  if (words) {
    state.away?.remove();
    state.away = element("span", { class: "note bad", role: "status", title: detail.offline || detail.reconnecting }, words);
  }
  if (state.away) answer.append(state.away);
  if (detail.offline) whereabouts("cloud is away", "down");
}

// What a frame has to show is drawn once in it, however many chunks it brought.
let drawn = null;
function paint(state) {
  if (!drawn) requestAnimationFrame(() => drawn?.());
  drawn = () => {
    drawn = null;
    legend({ ...state.counts, unverified: (state.counts.unverified || 0) + state.alone.length });
    strip(state.totals, state.count, state.trips, (performance.now() - state.started) / 1000);
    if (following) $("log").scrollTop = $("log").scrollHeight;
  };
}

// Who scrolls up to read stays there while the answer goes on.
let following = true, reached = 0;
$("log").onscroll = ({ target }) => {
  if (target.scrollTop < reached - 1) following = false;
  if (target.scrollHeight - target.scrollTop - target.clientHeight < 60) following = true;
  reached = target.scrollTop;
};

const BUSY_MS = 12;
const pause = () => new Promise((done) => { setTimeout(done); });

function take(chunk, state, answer) {
  if (chunk.error) throw new Error(chunk.error.message);
  const detail = chunk.outrider || {};
  if (detail.totals) state.totals = detail.totals;
  if (detail.prompt_tokens) replay.prompt(detail.prompt_tokens);
  if (detail.drafted) replay.drafted(detail.drafted);
  for (const text of detail.unverified || []) state.alone.push(show({ text, origin: "unverified" }, answer));
  if (detail.retracted) state.alone.splice(-detail.retracted).forEach((span) => span.remove());
  const tokens = detail.tokens || [];
  tokens.forEach((token) => {
    state.alone.shift()?.remove();
    Object.assign(token, replay.margin(state.count));
    const span = show(token, answer);
    if (state.alone.length) answer.insertBefore(span, state.alone[0]);
    state.counts[token.origin] = (state.counts[token.origin] || 0) + 1;
    state.text += token.text;
    state.count += 1;
  });
  if (tokens.length) {
    state.trips += 1;
    replay.committed(tokens);
  }
  if (chunk.timings) {
    state.totals = chunk.timings;
    state.away?.remove();
  } else link(detail, state, answer);
  if (chunk.unverified) state.note = "No target has confirmed this text: the draft model answered alone.";
  paint(state);
}

const hello = $("hello");
$("fresh").onclick = () => {
  messages.length = 0;
  $("log").replaceChildren(hello);
  replay.begin();
  latest = [];
  legend();
  strip();
  $("fresh").disabled = true;
  $("words").focus();
};
$("options").onsubmit = (event) => event.preventDefault();
$("ask").onsubmit = (event) => {
  event.preventDefault();
  if (running) { running.abort(); return; }
  const words = $("words").value.trim();
  if (!words) return;
  $("words").value = "";
  ask(words);
};
$("words").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("ask").requestSubmit(); }
};
$("examples").append(...EXAMPLES.map((words) => {
  const button = element("button", { type: "button" }, words);
  button.onclick = () => ask(words);
  return button;
}));
field("system").value = SYSTEM;
field("key").onchange = status;
if (matchMedia("(max-width: 60rem)").matches) $("controls").open = false;
legend();
strip();
status();

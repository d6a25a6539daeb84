// Session, routes and the live stream; the views themselves are in views.js.
import { el } from "./parts.js";
import { route } from "./views.js";

const $ = (id) => document.getElementById(id);
const KEY = "outrider-fleet-token", SILENCE_MS = 12000, ANSWER_MS = 30000;
const session = { me: null, overview: null };
let view = null, stream = null;

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("outrider-theme", name); } catch { /* private windows have no storage */ }
}
let stored = null;
try { stored = localStorage.getItem("outrider-theme"); } catch { /* as above */ }
document.documentElement.dataset.theme = stored || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

function complain(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? [error.message, error.hint].filter(Boolean).join(" · ") : "";
}

async function ask(path, { method = "GET", body, signal, raw } = {}) {
  const token = sessionStorage.getItem(KEY), headers = { authorization: `Bearer ${token}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal: signal || AbortSignal.timeout(ANSWER_MS), body: body === undefined ? undefined : JSON.stringify(body) });
  if (answer.ok) return raw ? answer : answer.json();
  const why = (await answer.json().catch(() => ({}))).error || { message: `HTTP ${answer.status}` };
  if (answer.status === 401 && token === sessionStorage.getItem(KEY)) signOut(why); // several are refused at once
  throw Object.assign(new Error(why.message), { hint: why.hint, status: answer.status });
}

async function act(path, body, question) {
  if (question && !(await confirmed(question))) return null;
  try {
    const done = await ask(path, { method: "POST", body });
    complain(null);
    await refresh();
    return done;
  } catch (error) {
    complain(error);
    return null;
  }
}

function confirmed(question) {
  $("confirm-text").textContent = question;
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  return new Promise((done) => { $("confirm").onclose = () => done($("confirm").returnValue === "yes"); });
}

function signOut(error) {
  sessionStorage.removeItem(KEY);
  session.me = session.overview = null;
  view = null;
  if (stream) {
    stream.over = true;
    stream.attempt.abort();
  }
  stream = null;
  $("nav").hidden = $("out").hidden = true;
  told("", "");
  complain(error);
  const token = el("input", { id: "token", type: "password", autocomplete: "off", required: true });
  $("view").replaceChildren(el("form", { class: "card stack sign", onsubmit: (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, token.value.trim());
    signIn();
  } }, el("h2", {}, "Sign in"), el("label", { for: "token" }, "Token"), token,
  el("p", { class: "soft" }, "Kept in this tab until you close it."), el("button", { class: "primary", type: "submit" }, "Sign in")));
  token.focus();
}

async function signIn() {
  try {
    session.me = await ask("/api/me");
  } catch (error) {
    if (error.status !== 401) complain(error);
    return;
  }
  $("nav").hidden = $("out").hidden = false;
  $("out").title = `${session.me.name} (${session.me.role})`;
  complain(null);
  await open(); // before the stream: what it brings at once is what the view has just asked for
  if (session.me) watch();
}

function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; } // typed by hand, such as %E0%A4
}

// The stream brings it with every change; before its first word it is asked for.
async function overview() {
  session.overview = session.overview || await ask("/api/overview");
  return session.overview;
}

async function open() {
  if (!session.me) return;
  complain(null);
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  for (const link of $("nav").children) {
    if (link.getAttribute("href") === `#/${parts[0]}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view = route(parts, { ask, act, session, refresh, complain, overview });
  $("view").replaceChildren(view.node);
  await refresh();
}

// One at a time for each view; what is asked for meanwhile is done once, afterwards. A view that was left draws into nothing.
async function refresh() {
  const mine = view;
  if (!mine) return;
  if (mine.busy) { mine.again = true; return; }
  mine.busy = true;
  do {
    mine.again = false;
    await drawn(mine);
  } while (mine.again && mine === view);
  mine.busy = false;
}

async function drawn(mine) {
  const held = document.activeElement && document.activeElement.dataset.key;
  try {
    await mine.refresh();
    if (mine.failed && mine === view) complain(null);
    mine.failed = false;
  } catch (error) {
    mine.failed = true;
    if (mine === view && error.status !== 401) complain(error);
  }
  if (held && document.activeElement === document.body) {
    const found = [...document.querySelectorAll("[data-key]")].find((node) => node.dataset.key === held);
    if (found) found.focus({ preventScroll: true });
  }
}

// The stream of changes, begun anew whenever it ends or falls silent; the service speaks at least every five seconds.
async function watch() {
  const mine = { over: false, attempt: null };
  stream = mine;
  while (!mine.over) {
    mine.attempt = new AbortController();
    try { await follow(mine); } catch { /* told below, and tried again */ }
    if (mine.over) return;
    told("not connected", "down");
    await pause(2000);
  }
}

async function follow(mine) {
  const within = async (asked) => {
    const late = setTimeout(() => mine.attempt.abort(), SILENCE_MS);
    try { return await asked; } finally { clearTimeout(late); }
  };
  const answer = await within(ask("/api/live", { signal: mine.attempt.signal, raw: true }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await within(reader.read());
    if (done) return;
    const lines = (text + value).split("\n\n");
    text = lines.pop();
    if (!lines.length) continue;
    session.overview = JSON.parse(lines.at(-1).replace(/^data: /, ""));
    told("live", "up");
    if (!document.hidden) await Promise.all([within(refresh()), pause(1000)]);
  }
}

function told(words, look) {
  $("live").textContent = words;
  $("live").className = `pill ${look}`;
}

const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });
addEventListener("hashchange", open);
document.querySelector(".skip").onclick = (event) => { event.preventDefault(); $("view").focus(); }; // the hash is the view's
$("out").onclick = () => signOut(null);
if (sessionStorage.getItem(KEY)) signIn();
else signOut(null);

// Pieces that every view is made of. Text always goes in as text, never as markup.
const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit", "ontoggle"];

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made[name] = value;
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.flat());
  return made;
}

// Draws `children` into `node`, keeping every element that stayed the same kind of thing: what is focused, selected,
// scrolled or hovered stays so while the figures change. A `data-key` says which thing an element is.
export function draw(node, ...children) {
  const wanted = children.flat().filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : document.createTextNode(child)));
  const present = [...node.childNodes];
  wanted.forEach((child, place) => {
    const old = present[place];
    if (!old) node.append(child);
    else if (old !== child) become(old, child);
  });
  for (const extra of present.slice(wanted.length)) extra.remove();
}

function become(old, made) {
  if (old.nodeName !== made.nodeName || (old.dataset && old.dataset.key !== made.dataset.key)) return old.replaceWith(made);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return undefined;
  }
  for (const { name } of [...old.attributes]) if (!made.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of HANDLERS) old[name] = made[name];
  return draw(old, ...made.childNodes);
}

export const card = (title, ...children) => el("section", { class: "card", "aria-label": title }, el("h3", {}, title), ...children);
export const share = (value) => (value == null ? "–" : `${(100 * value).toFixed(1)}\u00a0%`);
export const count = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
export const number = (value, digits, unit = "") => (value == null ? "–" : `${value.toFixed(digits)}${unit}`);
export const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString("sv") : "–");
export const clock = (seconds) => (Date.now() / 1000 - seconds < 43200 ? new Date(seconds * 1000).toLocaleTimeString("sv") : when(seconds));
export const device = (id) => el("a", { href: `#/devices/${encodeURIComponent(id)}`, "data-key": `device-${id}` }, id);
export const rollout = (id) => el("a", { href: `#/rollouts/${encodeURIComponent(id)}`, "data-key": `rollout-${id}` }, id);
export const presence = (online) => el("span", { class: online ? "dot up n" : "dot n" }, online ? "online" : "offline");

export function ago(seconds) {
  if (!seconds) return "–";
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const [size, unit] = past < 90 ? [1, "s"] : past < 5400 ? [60, "min"] : past < 129600 ? [3600, "h"] : [86400, "days"];
  return el("time", { class: "n", title: when(seconds), datetime: new Date(seconds * 1000).toISOString() }, past < 3 ? "just now" : `${Math.round(past / size)} ${unit} ago`);
}

const LOOK = {
  succeeded: "good", committed: "good", passed: "good", failed: "bad", rejected: "bad", timed_out: "bad", rolled_back: "bad",
  rolling_back: "bad", denied: "bad", aborted: "bad", paused: "warn", awaiting_approval: "warn", reverting: "warn", reverted: "warn",
  draft: "idle", waiting: "idle", control: "idle", pending: "idle",
};
export const tag = (state, many) => el("span", { class: `tag ${LOOK[state] || ""}` }, `${state.replaceAll("_", " ")}${many === undefined ? "" : ` ${many}`}`);

export function meter(value, label, bad = false) {
  const width = 100 * Math.max(0, Math.min(1, value || 0));
  return svg("svg", { class: "meter", viewBox: "0 0 100 3", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("rect", { class: "track", width: 100, height: 3 }), svg("rect", { class: bad ? "fill bad" : "fill", width, height: 3 }));
}

// On a phone each row becomes a block whose cells name themselves; `look` may arrange them otherwise.
export const table = (heads, rows, empty, look = null) => rows.length
  ? el("table", { class: look }, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, place) => el("td", { "data-head": heads[place] }, cell))))))
  : el("p", { class: "soft" }, empty);

export const facts = (rows) => el("dl", { class: "facts" }, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "n" }, value)]));

export const said = (detail) => Object.entries(detail).map(([name, value]) =>
  (name === "what" ? value : `${name.replaceAll("_", " ")} ${typeof value === "string" ? value : JSON.stringify(value)}`)).join(", ");

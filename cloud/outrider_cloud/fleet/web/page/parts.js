// Pieces that every view is made of. Text always goes in as text, never as markup.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made[name] = value;
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const card = (title, ...children) => el("section", { class: "card", "aria-label": title }, el("h3", {}, title), ...children);
export const share = (value) => (value == null ? "–" : `${(100 * value).toFixed(1)} %`);
export const count = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
export const number = (value, digits, unit = "") => (value == null ? "–" : `${value.toFixed(digits)}${unit}`);
export const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString("sv") : "–");
export const device = (id) => el("a", { href: `#/devices/${encodeURIComponent(id)}`, "data-key": `device-${id}` }, id);
export const rollout = (id) => el("a", { href: `#/rollouts/${encodeURIComponent(id)}`, "data-key": `rollout-${id}` }, id);

const LOOK = {
  succeeded: "good", committed: "good", passed: "good", failed: "bad", rejected: "bad", timed_out: "bad", rolled_back: "bad",
  rolling_back: "bad", denied: "bad", aborted: "bad", paused: "warn", awaiting_approval: "warn", reverting: "warn", reverted: "warn",
  draft: "idle", waiting: "idle", control: "idle", pending: "idle",
};
export const tag = (state, number_) => el("span", { class: `tag ${LOOK[state] || ""}` }, `${state.replaceAll("_", " ")}${number_ === undefined ? "" : ` ${number_}`}`);

export function meter(value, label, bad = false) {
  const width = 100 * Math.max(0, Math.min(1, value || 0));
  return svg("svg", { viewBox: "0 0 100 3", preserveAspectRatio: "none", height: 8, role: "img", "aria-label": label },
    svg("rect", { class: "track", width: 100, height: 3 }), svg("rect", { class: bad ? "fill bad" : "fill", width, height: 3 }));
}

export function chart(title, points, told) {
  const known = points.filter(([, y]) => y !== null && Number.isFinite(y));
  if (!known.length) return card(title, el("p", { class: "soft" }, "Nothing reported yet."));
  const ys = known.map(([, y]) => y), xs = known.map(([x]) => x);
  const low = Math.min(...ys), high = Math.max(...ys), first = xs[0], span = xs.at(-1) - first || 1;
  const path = known.map(([x, y], i) => `${i ? "L" : "M"}${((100 * (x - first)) / span).toFixed(2)} ${(38 - (36 * (y - low)) / (high - low || 1)).toFixed(2)}`).join("");
  const made = card(title, el("p", { class: "now" }, told(ys.at(-1))),
    svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": `${title}: now ${told(ys.at(-1))}, from ${told(low)} to ${told(high)}` },
      svg("path", { class: "axis", d: "M0 39.5H100M0 20H100M0 .5H100" }), svg("path", { d: path })),
    el("p", { class: "soft ends" }, el("span", {}, when(first)), el("span", {}, `${told(low)} to ${told(high)}`)));
  made.classList.add("chart");
  return made;
}

export const table = (heads, rows, empty) => rows.length
  ? el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell)))))))
  : el("p", { class: "soft" }, empty);

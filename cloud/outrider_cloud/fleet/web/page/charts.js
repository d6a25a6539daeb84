// Charts as SVG: a line over time, and bars by the minute. Figures beside them are text, so nothing hangs on the drawing.
import { card, clock, count, el, svg } from "./parts.js";

const TOP = 2, FLOOR = 38; // of a box of 100 x 40

// `points` are [seconds, value or null]; `marks` are [seconds, what happened then].
export function line(title, points, told, marks = []) {
  const known = points.filter(([, y]) => y !== null && Number.isFinite(y));
  if (!known.length) return chart(card(title, el("p", { class: "soft" }, "Nothing reported yet.")));
  const ys = known.map(([, y]) => y), low = Math.min(...ys), high = Math.max(...ys);
  const first = known[0][0], last = known.at(-1)[0], span = last - first || 1;
  const x = (at) => ((100 * (at - first)) / span).toFixed(2), y = (value) => (FLOOR - ((FLOOR - TOP) * (value - low)) / (high - low || 1)).toFixed(2);
  const path = known.map(([at, value], i) => `${i ? "L" : "M"}${x(at)} ${y(value)}`).join("");
  const seen = marks.filter(([at]) => at > first && at <= last);
  return chart(card(title, el("p", { class: "now" }, told(ys.at(-1))),
    plot(`${title}: now ${told(ys.at(-1))}, from ${told(low)} to ${told(high)}`, [told(high), told(low)],
      svg("path", { class: "axis", d: `M0 ${TOP}H100M0 20H100M0 ${FLOOR}H100` }),
      seen.map(([at]) => svg("path", { class: "mark", d: `M${x(at)} 0V40` })),
      svg("path", { class: "line", d: path })),
    el("p", { class: "soft ends" }, el("span", {}, clock(first)),
      el("span", {}, seen.length ? `┆ ${seen.at(-1)[1]}` : ""), el("span", {}, clock(last)))));
}

// `rows` are [minute since 1970, part, whole], the last `minutes` minutes of them are shown.
export function bars(title, now, rows, minutes, words) {
  const end = Math.floor(now / 60), shown = rows.filter(([minute]) => minute > end - minutes && minute <= end);
  const high = Math.max(1, ...shown.map(([, , whole]) => whole)), wide = 100 / minutes;
  const bar = (look, minute, low, top) => svg("rect", {
    class: look, x: (wide * (minute - end + minutes - 1) + wide * 0.1).toFixed(2), width: (wide * 0.8).toFixed(2),
    y: (FLOOR - ((FLOOR - TOP) * top) / high).toFixed(2), height: (((FLOOR - TOP) * (top - low)) / high).toFixed(2),
  });
  const newest = shown.length ? shown.at(-1) : [end, 0, 0];
  return chart(card(title,
    el("p", { class: "legend soft" }, el("span", { class: "swatch saved" }, words[0]), el("span", { class: "swatch paid" }, words[1])),
    plot(`${title}: ${count(newest[2])} in the newest minute, of them ${count(newest[2] - newest[1])} ${words[0]}; most ${count(high)}`, [count(high), "0"],
      svg("path", { class: "axis", d: `M0 ${TOP}H100M0 20H100M0 ${FLOOR}H100` }),
      shown.flatMap(([minute, part, whole]) => [bar("paid", minute, 0, part), bar("saved", minute, part, whole)])),
    el("p", { class: "soft ends" }, el("span", {}, `${minutes} minutes ago`), el("span", {}, "this minute"))));
}

const plot = (label, ends, ...shapes) => el("div", { class: "plot" },
  svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...shapes),
  el("div", { class: "scale soft", "aria-hidden": "true" }, ends.map((end) => el("span", {}, end))));

function chart(made) {
  made.classList.add("chart");
  return made;
}

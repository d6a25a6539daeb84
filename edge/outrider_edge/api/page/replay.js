// Plays an answer again, message by message, with the draft tree drawn as it stood.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 32, BOX = 24, GAP = 18, COLUMNS = 14, MOST_LANES = 6;
const CHARACTER = 7.3, PADDING = 14;  // of the monospaced letters in a box

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}

const visible = (text) => text.replace(/ /g, "·").replace(/\n/g, "⏎");
const short = (text) => (visible(text).length > 12 ? `${visible(text).slice(0, 11)}…` : visible(text));
const width = (text) => Math.max(2, [...short(text)].length) * CHARACTER + PADDING;

export class Replay {
  constructor($) {
    this.$ = $;
    $("step").oninput = () => this.draw(Number($("step").value));
    $("play").onclick = () => this.toggle();
    this.begin();
  }

  begin() {
    this.pause();
    this.steps = [];
    this.tokens = [];
    this.first = 0;
    this.nodes = [];
    this.batch = 0;
    this.$("step").disabled = this.$("play").disabled = true;
    this.$("tree").replaceChildren();
    this.$("sofar").replaceChildren();
    this.$("caption").textContent = "After an answer: step through what was drafted and what the cloud made of it.";
  }

  prompt(count) { this.first = count; }

  // Nodes: [number, parent, position, token id, text, margin, source]; numbers start over when the stream does.
  drafted(nodes) {
    const own = new Map();
    if (nodes[0][0] === 0) this.batch += 1;
    for (const [number, parent, position, id, text, margin, source] of nodes) {
      const above = parent == null ? null : own.get(parent) || this.find(parent);
      const node = { number, above, position, id, text, margin, source, batch: this.batch, step: this.steps.length };
      own.set(number, node);
      this.nodes.push(node);
    }
    this.steps.push({ kind: "drafted", count: nodes.length, known: this.tokens.length });
  }

  find(number) {
    return this.nodes.findLast((node) => node.batch === this.batch && node.number === number) || null;
  }

  margin(index) {
    const node = this.nodes.findLast((one) => one.position === this.first + index && one.margin != null);
    return node ? { margin: node.margin, source: node.source } : {};
  }

  committed(tokens) {
    this.tokens.push(...tokens);
    this.steps.push({ kind: "committed", tokens, known: this.tokens.length });
  }

  end() {
    if (!this.steps.length) return;
    const slider = this.$("step");
    slider.max = this.steps.length - 1;
    slider.value = slider.max;
    slider.disabled = this.$("play").disabled = false;
    this.draw(this.steps.length - 1);
  }

  toggle() {
    if (this.timer) { this.pause(); return; }
    const slider = this.$("step");
    if (Number(slider.value) === Number(slider.max)) slider.value = 0;
    this.draw(Number(slider.value));
    this.$("play").textContent = "⏸";
    this.$("play").setAttribute("aria-label", "Pause");
    this.timer = setInterval(() => {
      if (Number(slider.value) >= Number(slider.max)) { this.pause(); return; }
      slider.value = Number(slider.value) + 1;
      this.draw(Number(slider.value));
    }, 700);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.$("play").textContent = "▶";
    this.$("play").setAttribute("aria-label", "Play");
  }

  draw(index) {
    const step = this.steps[index];
    if (!step) return;
    this.$("caption").textContent = `Step ${index + 1} of ${this.steps.length}. ${this.words(step)}`;
    this.$("step").setAttribute("aria-valuetext", this.$("caption").textContent);
    const sofar = this.$("sofar");
    sofar.replaceChildren(...this.tokens.slice(0, step.known).map((token) => {
      const span = document.createElement("span");
      span.className = token.origin;
      span.textContent = token.text;
      return span;
    }));
    sofar.scrollTop = sofar.scrollHeight;
    this.tree(index, step);
  }

  words(step) {
    if (step.kind === "drafted") return `The device sent ${step.count} drafted ${step.count === 1 ? "token" : "tokens"}.`;
    const counts = {};
    for (const token of step.tokens) counts[token.origin] = (counts[token.origin] || 0) + 1;
    const parts = Object.entries(counts).map(([origin, count]) => `${count} ${origin}`);
    const before = step.known - step.tokens.length;
    const fell = this.nodes.filter((node) => node.step < this.steps.indexOf(step)
      && this.state(node, before) !== "dead" && this.state(node, step.known) === "dead").length;
    return `The cloud committed ${step.tokens.length}: ${parts.join(", ")}.${fell ? ` ${fell} drafted ${fell === 1 ? "token" : "tokens"} fell.` : ""}`;
  }

  state(node, known) {
    for (let one = node; one; one = one.above) {
      const at = one.position - this.first;
      if (at < known && this.tokens[at] && this.tokens[at].id !== one.id) return "dead";
    }
    return node.position - this.first < known ? "kept" : "open";
  }

  // What is drawn at a step: drafted nodes from `base` on, and what the target chose where nobody had drafted it.
  shown(index, step) {
    const before = this.steps.slice(0, index).findLast((one) => one.kind === "committed");
    const known = step.kind === "committed" ? step.known - step.tokens.length : step.known;
    const base = this.first + (step.kind === "committed" ? (before ? before.known : 0) : known);
    // Drafts of a stream that broke are gone with it.
    const batch = this.nodes.findLast((node) => node.step <= index)?.batch;
    const nodes = this.nodes.filter((node) => node.step <= index && node.batch === batch && node.position >= base && node.position < base + COLUMNS
      && (this.state(node, known) !== "dead" || node.step === index));
    const drawn = nodes.map((node) => ({ node, kind: this.state(node, step.known), fresh: node.step === index }));
    if (step.kind === "committed") {
      let above = null;
      step.tokens.forEach((token, i) => {
        const position = this.first + known + i;
        const kept = drawn.find((one) => one.node.position === position && one.kind === "kept");
        if (!kept && position < base + COLUMNS) {
          above = { position, text: token.text, above };
          drawn.push({ node: above, kind: `chosen ${token.origin}`, fresh: false });
        } else above = kept ? kept.node : null;
      });
    }
    return { base, drawn };
  }

  // A lane for each node, children beside their parents as far as there is room; those without one are left out.
  lanes(drawn) {
    const lanes = new Map(), taken = new Map();
    for (const { node } of drawn) {
      const used = taken.get(node.position) || new Set();
      let lane = lanes.get(node.above) || 0;
      while (used.has(lane)) lane += 1;
      if (lane >= MOST_LANES) continue;
      lanes.set(node, lane);
      taken.set(node.position, used.add(lane));
    }
    return lanes;
  }

  tree(index, step) {
    const { base, drawn } = this.shown(index, step);
    const lanes = this.lanes(drawn);
    const last = base > this.first ? this.tokens[base - this.first - 1].text : "prompt";
    const widths = [width(last)];
    for (const { node } of drawn) {
      const column = node.position - base + 1;
      widths[column] = Math.max(widths[column] || 0, width(node.text));
    }
    const starts = [2];
    for (let i = 0; i < widths.length; i += 1) starts.push(starts[i] + (widths[i] || 0) + GAP);
    const place = (node) => [starts[node.position - base + 1], lanes.get(node) * HEIGHT + 2];
    const svg = shape("svg", { width: starts.at(-1), height: (Math.max(0, ...lanes.values()) + 1) * HEIGHT + 4, role: "img" });
    svg.append(shape("title", {}, `${drawn.length} tokens. ${this.words(step)}`));
    for (const { node, kind } of drawn) {
      if (!lanes.has(node) || (!lanes.has(node.above) && node.position !== base)) continue;
      const [x, y] = place(node), column = node.position - base;
      const [fromX, fromY] = lanes.has(node.above) ? place(node.above) : [2, 2];
      const start = fromX + widths[column], middle = BOX / 2, bend = GAP / 2;
      svg.append(shape("path", {
        class: `edge ${kind}`, d: `M${start} ${fromY + middle} C${start + bend} ${fromY + middle} ${x - bend} ${y + middle} ${x} ${y + middle}`,
      }));
    }
    svg.append(this.box(2, 2, widths[0], last, "log"));
    let edge = 0;
    for (const { node, kind, fresh } of drawn) {
      if (!lanes.has(node)) continue;
      const [x, y] = place(node), wide = widths[node.position - base + 1];
      const group = this.box(x, y, wide, node.text, kind + (fresh ? " fresh" : ""));
      const how = node.id == null ? "chosen by the target" : node.margin == null ? "second best" : `margin ${node.margin.toFixed(2)}`;
      group.append(shape("title", {}, `${visible(node.text)}: ${how}, ${kind.split(" ")[0]}`));
      svg.append(group);
      if (fresh || kind !== "open") edge = Math.max(edge, x + wide);
    }
    const tree = this.$("tree");
    tree.replaceChildren(svg);
    tree.scrollLeft = Math.max(0, edge - tree.clientWidth + GAP);
  }

  box(x, y, wide, text, kind) {
    const group = shape("g", { class: kind, transform: `translate(${x} ${y})` });
    group.append(shape("rect", { width: wide, height: BOX, rx: 6 }));
    group.append(shape("text", { x: wide / 2, y: 16, "text-anchor": "middle" }, short(text)));
    return group;
  }
}

// Plays an answer again, message by message, with the draft tree drawn as it stood. Whatever a step needs is found by its
// place, never by going through all nodes: an answer may have tens of thousands of them.
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
    this.numbered = new Map();  // of the stream that is open
    this.placed = new Map();  // position in the text -> nodes there
    this.margins = new Map();  // position -> the latest node there that has a margin
    this.told = 0;  // tokens in #sofar
    this.$("step").disabled = this.$("play").disabled = true;
    this.$("tree").replaceChildren();
    this.$("sofar").replaceChildren();
    this.$("caption").textContent = "After an answer: step through what was drafted and what the cloud made of it.";
  }

  prompt(count) { this.first = count; }

  // Nodes: [number, parent, position, token id, text, margin, source]; numbers start over when the stream does.
  drafted(nodes) {
    if (nodes[0][0] === 0) {
      this.batch += 1;
      this.numbered.clear();
    }
    for (const [number, parent, position, id, text, margin, source] of nodes) {
      const above = parent == null ? null : this.numbered.get(parent) || null;
      const node = { above, position, id, text, margin, source, batch: this.batch, step: this.steps.length, order: this.nodes.length };
      this.numbered.set(number, node);
      this.nodes.push(node);
      if (!this.placed.has(position)) this.placed.set(position, []);
      this.placed.get(position).push(node);
      if (margin != null) this.margins.set(position, node);
    }
    this.steps.push({ kind: "drafted", count: nodes.length, known: this.tokens.length, batch: this.batch });
  }

  margin(index) {
    const node = this.margins.get(this.first + index);
    return node ? { margin: node.margin, source: node.source } : {};
  }

  committed(tokens) {
    this.tokens.push(...tokens);
    this.steps.push({ kind: "committed", tokens, known: this.tokens.length, batch: this.batch, fell: 0 });
  }

  // A node falls with the first committed token that its path disagrees with: with the token of that number, from 1 on.
  settle() {
    const commits = [];
    this.steps.forEach((step, index) => {
      if (step.kind === "committed") step.tokens.forEach(() => commits.push(index));
    });
    for (const node of this.nodes) {
      const at = node.position - this.first, token = this.tokens[at];
      node.falls = Math.min(token && token.id !== node.id ? at + 1 : Infinity, node.above ? node.above.falls : Infinity);
      const index = commits[node.falls - 1];
      if (index != null && node.step < index) this.steps[index].fell += 1;
    }
  }

  end() {
    if (!this.steps.length) return;
    this.settle();
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
    for (; this.told > step.known; this.told -= 1) sofar.lastChild.remove();
    sofar.append(...this.tokens.slice(this.told, step.known).map((token) => {
      const span = document.createElement("span");
      span.className = token.origin;
      span.textContent = token.text;
      return span;
    }));
    this.told = step.known;
    sofar.scrollTop = sofar.scrollHeight;
    this.tree(index, step);
  }

  words(step) {
    if (step.kind === "drafted") return `The device sent ${step.count} drafted ${step.count === 1 ? "token" : "tokens"}.`;
    const counts = {};
    for (const token of step.tokens) counts[token.origin] = (counts[token.origin] || 0) + 1;
    const parts = Object.entries(counts).map(([origin, count]) => `${count} ${origin}`);
    const fell = step.fell;
    return `The cloud committed ${step.tokens.length}: ${parts.join(", ")}.${fell ? ` ${fell} drafted ${fell === 1 ? "token" : "tokens"} fell.` : ""}`;
  }

  state(node, known) {
    if (node.falls <= known) return "dead";
    return node.position - this.first < known ? "kept" : "open";
  }

  // What is drawn at a step: drafted nodes from `base` on, and what the target chose where nobody had drafted it.
  shown(index, step) {
    let before = null;
    for (let i = index - 1; i >= 0 && !before; i -= 1) if (this.steps[i].kind === "committed") before = this.steps[i];
    const known = step.kind === "committed" ? step.known - step.tokens.length : step.known;
    const base = this.first + (step.kind === "committed" ? (before ? before.known : 0) : known);
    // Drafts of a stream that broke are gone with it.
    const near = Array.from({ length: COLUMNS }, (_, i) => this.placed.get(base + i) || []).flat();
    const nodes = near.filter((node) => node.step <= index && node.batch === step.batch
      && (this.state(node, known) !== "dead" || node.step === index)).sort((a, b) => a.order - b.order);
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

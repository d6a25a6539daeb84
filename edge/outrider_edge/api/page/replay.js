// Plays an answer again, message by message, with the draft tree drawn as it stood.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 92, HEIGHT = 34, COLUMNS = 12, MOST_LANES = 7;

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}

const visible = (text) => text.replace(/ /g, "·").replace(/\n/g, "⏎");
const short = (text) => (visible(text).length > 10 ? `${visible(text).slice(0, 9)}…` : visible(text));

export class Replay {
  constructor($) {
    this.$ = $;
    $("step").oninput = () => this.draw(Number($("step").value));
    $("play").onclick = () => this.toggle();
    this.begin();
  }

  begin() {
    clearInterval(this.timer);
    this.timer = null;
    this.steps = [];
    this.tokens = [];
    this.first = 0;
    this.nodes = [];
    this.batch = 0;
    this.$("step").disabled = this.$("play").disabled = true;
    this.$("tree").replaceChildren();
    this.$("sofar").replaceChildren();
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
  }

  draw(index) {
    const step = this.steps[index];
    if (!step) return;
    this.$("caption").textContent = `Step ${index + 1} of ${this.steps.length}. ${this.words(step)}`;
    this.$("sofar").replaceChildren(...this.tokens.slice(0, step.known).map((token) => {
      const span = document.createElement("span");
      span.className = token.origin;
      span.textContent = token.text;
      return span;
    }));
    this.tree(index, step);
  }

  words(step) {
    if (step.kind === "drafted") return `The device sent ${step.count} drafted ${step.count === 1 ? "token" : "tokens"}.`;
    const counts = {};
    for (const token of step.tokens) counts[token.origin] = (counts[token.origin] || 0) + 1;
    const parts = Object.entries(counts).map(([origin, count]) => `${count} ${origin}`);
    return `The cloud committed ${step.tokens.length}: ${parts.join(", ")}.`;
  }

  state(node, known) {
    for (let one = node; one; one = one.above) {
      const at = one.position - this.first;
      if (at < known && this.tokens[at] && this.tokens[at].id !== one.id) return "dead";
    }
    return node.position - this.first < known ? "kept" : "open";
  }

  tree(index, step) {
    const before = this.steps.slice(0, index).findLast((one) => one.kind === "committed");
    const fresh = step.kind === "committed" ? step.known - step.tokens.length : step.known;
    const base = this.first + Math.max(0, step.kind === "committed" ? (before ? before.known : 0) : fresh);
    const nodes = this.nodes.filter((node) => node.step <= index && node.position >= base && node.position < base + COLUMNS
      && (this.state(node, fresh) !== "dead" || node.step === index));
    const lanes = new Map(), taken = new Map();
    let deepest = 0;
    for (const node of nodes) {
      let lane = node.above && lanes.has(node.above) ? lanes.get(node.above) : 0;
      while ((taken.get(node.position) || new Set()).has(lane)) lane += 1;
      if (lane >= MOST_LANES) continue;
      lanes.set(node, lane);
      if (!taken.has(node.position)) taken.set(node.position, new Set());
      taken.get(node.position).add(lane);
      deepest = Math.max(deepest, lane);
    }
    const columns = Math.max(1, ...nodes.map((node) => node.position - base + 1));
    const svg = shape("svg", { width: (columns + 1) * WIDTH + 8, height: (deepest + 1) * HEIGHT + 8, role: "img" });
    svg.append(shape("title", {}, `${nodes.length} drafted tokens, ${this.words(step)}`));
    const at = (node) => [(node.position - base + 1) * WIDTH + 4, lanes.get(node) * HEIGHT + 4];
    for (const [node] of lanes) {
      const [x, y] = at(node);
      const [fromX, fromY] = node.above && lanes.has(node.above) ? at(node.above) : [4, 4];
      if (!(node.above && lanes.has(node.above)) && node.position !== base) continue;
      const kept = this.state(node, step.known) === "kept" ? " kept" : "";
      const middle = HEIGHT / 2 - 3;
      svg.append(shape("path", { class: `edge${kept}`, d: `M${fromX + WIDTH - 12} ${fromY + middle} L${x - 6} ${y + middle} L${x} ${y + middle}` }));
    }
    const last = base > this.first ? this.tokens[base - this.first - 1].text : "prompt";
    svg.append(this.box(4, 4, last, "log"));
    for (const [node] of lanes) {
      const kind = this.state(node, step.known) + (node.step === index ? " fresh" : "");
      const group = this.box(...at(node), node.text, kind);
      const how = node.margin == null ? "second best" : `margin ${node.margin.toFixed(2)}`;
      group.append(shape("title", {}, `${visible(node.text)}: ${how}, ${kind.split(" ")[0]}`));
      svg.append(group);
    }
    this.$("tree").replaceChildren(svg);
  }

  box(x, y, text, kind) {
    const group = shape("g", { class: kind, transform: `translate(${x} ${y})` });
    group.append(shape("rect", { width: WIDTH - 12, height: HEIGHT - 8, rx: 6 }));
    group.append(shape("text", { x: (WIDTH - 12) / 2, y: 17, "text-anchor": "middle" }, short(text)));
    return group;
  }
}

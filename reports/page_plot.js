// Accuracy against a cost that the reader chooses, with the frontier of what the filter shows.
const SVG = "http://www.w3.org/2000/svg";
const UNITS = {
  time: [[86400, "days"], [3600, "hours"], [60, "minutes"], [1, "seconds"]],
  flops: [[1e18, "exaFLOPs"], [1e15, "petaFLOPs"], [1e12, "teraFLOPs"], [1e9, "gigaFLOPs"], [1e6, "megaFLOPs"], [1, "FLOPs"]],
  energy: [[1e6, "GJ"], [1e3, "MJ"], [1, "kJ"]],
  memory: [[1024, "GiB"], [1, "MiB"]],
  host: [[1024, "GiB"], [1, "MiB"]],
};
const MARKERS = { none: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", teacher: "M-4.5,-4.5h9v9h-9z", self: "M0,-5.5l5.5,9.5h-11z" };

const pairNow = () => data.pairs[state.pair - 1];
const adds = () => data.quantities[state.x]?.teacher; // whether a teacher's training adds to this cost
const minus = (text) => text.replace("-", "−");
const points = (value) => minus((value > 0 ? "+" : "") + value.toFixed(2));

// A method's own cost and the one with the teacher's training as it is counted; null where it is not known.
function costs(method, key = state.x, price = state.price) {
  const [own, teacher] = method.costs[key];
  if (own === null) return { own: null, total: null };
  if (price === "own" || !data.quantities[key].teacher) return { own, total: own };
  const students = price === "shared" && method.needs === "teacher" ? Number(state.share) : 1;
  return { own, total: teacher === null ? null : own + teacher / students };
}

// No other method is more accurate at the same or a lower cost.
function frontier(dots) {
  const sorted = dots.filter((dot) => dot.known && dot.on).sort((a, b) => a.total - b.total || b.top1 - a.top1);
  let best = -Infinity;
  return sorted.filter((dot) => dot.top1 > best && ((best = dot.top1), true));
}

function draw(tag, attributes, parent, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Round values from low to high, about so many.
function ticks(low, high, count, log) {
  if (log && Math.log10(high / low) < 2.2) {
    const powers = Array.from({ length: 40 }, (_, index) => 10 ** (index - 20));
    const steps = powers.flatMap((power) => (Math.log10(high / low) < 1.1 ? [1, 1.5, 2, 3, 4, 5, 7] : [1, 2, 5]).map((f) => f * power));
    return steps.filter((step) => step >= low * 0.999 && step <= high * 1.001);
  }
  if (log) return Array.from({ length: 60 }, (_, index) => 10 ** (index - 30)).filter((step) => step >= low && step <= high);
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

// From values to pixels; the costs of all prices lie within, so that points move and the axis does not.
function scales(methods, width, height, unit) {
  const costly = methods.flatMap((method) => PRICES.map((price) => costs(method, state.x, price).total)).filter((v) => v !== null);
  let [low, high] = [Math.min(...costly) / unit, Math.max(...costly) / unit];
  const log = high > 4 * low && low > 0;
  const pad = log ? 1 : (high - low) * 0.08 || high * 0.1 || 1;
  if (log) [low, high] = [low / (high / low) ** 0.06, high * (high / low) ** 0.06];
  else [low, high] = [low - pad, high + pad];
  const value = log ? Math.log10 : (v) => v;
  const accuracies = methods.map((method) => method.top1).sort((a, b) => a - b);
  const middle = (accuracies[accuracies.length >> 1] + accuracies[(accuracies.length - 1) >> 1]) / 2;
  const best = accuracies[accuracies.length - 1];
  const floor = middle - Math.max(2 * (best - middle), 1); // what falls far behind must not crush the others
  const near = methods.filter((method) => method.top1 >= floor);
  let bottom = Math.min(...near.map((method) => method.top1 - (method.half ?? 0)));
  let top = Math.max(...near.map((method) => method.top1 + (method.half ?? 0)));
  if (near.length < methods.length) bottom = Math.min(bottom, floor);
  const room = (top - bottom) * 0.06 || 1;
  [bottom, top] = [bottom - room, top + room];
  const [left, right, upper, lower] = [44, width - 14, 30, height - 26];
  const x = (v) => left + ((value(v) - value(low)) / (value(high) - value(low))) * (right - left);
  const y = (v) => lower - ((v - bottom) / (top - bottom)) * (lower - upper);
  const xTicks = ticks(low, high, width < 420 ? 4 : 6, log);
  return { x, y, floor, left, right, upper, lower, xTicks, yTicks: ticks(bottom, top, 5, false) };
}

const plain = (value) => String(Number(value.toPrecision(6)));

function drawAxes(svg, scale) {
  for (const tick of scale.yTicks) {
    draw("line", { class: "grid", x1: scale.left, x2: scale.right, y1: scale.y(tick), y2: scale.y(tick) }, svg);
    draw("text", { class: "tick", x: scale.left - 8, y: scale.y(tick) + 4, "text-anchor": "end" }, svg, plain(tick));
  }
  let free = -Infinity;
  for (const tick of scale.xTicks) {
    const half = plain(tick).length * 3.6;
    draw("line", { class: "grid", x1: scale.x(tick), x2: scale.x(tick), y1: scale.upper, y2: scale.lower }, svg);
    if (scale.x(tick) - half < free) continue;
    free = scale.x(tick) + half + 6;
    draw("text", { class: "tick", x: scale.x(tick), y: scale.lower + 18, "text-anchor": "middle" }, svg, plain(tick));
  }
  draw("line", { class: "axis", x1: scale.left, x2: scale.right, y1: scale.lower, y2: scale.lower }, svg);
  draw("text", { class: "tick", x: 0, y: 12 }, svg, "Top-1 accuracy, %");
}

function drawDot(svg, dot, scale) {
  const look = `dot ${dot.method.needs}${dot.on ? "" : " off"}${dot.known ? "" : " unknown"}`;
  const group = draw("g", { class: look, tabindex: 0, role: "img", "aria-label": facts(dot.method).join(". ") }, svg);
  group.dataset.label = dot.method.label;
  if (dot.method.color && dot.on) group.style.setProperty("--own", dot.method.color);
  if (dot.ownX < dot.px - 1) {
    draw("line", { class: "way", x1: dot.ownX, x2: dot.px, y1: dot.py, y2: dot.py }, group);
    draw("path", { class: "own", d: MARKERS[dot.method.needs], transform: `translate(${dot.ownX},${dot.py})` }, group);
  }
  if (dot.low) draw("path", { class: "below", d: `M${dot.px},${dot.py + 8}v9m-3.5,-4.5l3.5,4.5l3.5,-4.5` }, group);
  else if (dot.method.half) {
    const [from, to] = [scale.y(dot.top1 - dot.method.half), scale.y(dot.top1 + dot.method.half)];
    draw("path", { class: "spread", d: `M${dot.px},${from}V${to}m-3,0h6m-6,${from - to}h6` }, group);
  }
  draw("path", { class: "mark", d: MARKERS[dot.method.needs], transform: `translate(${dot.px},${dot.py})` }, group);
  group.addEventListener("pointerenter", () => hint(group, facts(dot.method)));
  group.addEventListener("focus", () => hint(group, facts(dot.method)));
  group.addEventListener("pointerleave", unhint);
  group.addEventListener("blur", unhint);
  return group;
}

// Names stand beside their points where there is room; returns the points that go without.
function drawNames(svg, dots, scale) {
  const taken = dots.map((dot) => [dot.px - 6, dot.py - 6, dot.px + 6, dot.py + 6]);
  const free = (box) => taken.every((b) => box[2] < b[0] || box[0] > b[2] || box[3] < b[1] || box[1] > b[3]);
  const nameless = [];
  const shifts = [0, 13, -13, 26, -26, 39, -39];
  for (const dot of dots.filter((dot) => dot.on).sort((a, b) => a.py - b.py)) {
    const more = dot.low ? ` (${dot.top1.toFixed(1)} %)` : "";
    const lines = dot.method.lines.map((line, index) => (index === dot.method.lines.length - 1 ? line + more : line));
    const text = draw("text", { class: "label" }, svg);
    lines.forEach((line, index) => draw("tspan", { x: 0, dy: index ? 13 : 0 }, text, line));
    const wide = Math.max(...[...text.children].map((line) => line.getComputedTextLength()));
    const place = shifts.flatMap((dy) => [[9, dy], [-9 - wide, dy]]).find(([dx, dy]) => {
      const box = [dot.px + dx, dot.py + dy - 7, dot.px + dx + wide, dot.py + dy + 13 * lines.length - 6];
      const inside = box[0] > scale.left && box[2] < scale.right + 12 && box[1] > scale.upper - 14 && box[3] < scale.lower;
      return inside && free(box) && taken.push(box);
    });
    if (!place) {
      nameless.push(dot);
      text.remove();
      continue;
    }
    const [dx, dy] = place;
    text.setAttribute("transform", `translate(${dot.px + dx},${dot.py + dy + 4})`);
    if (Math.abs(dy) > 13) draw("line", { class: "thread", x1: dot.px, y1: dot.py, x2: dot.px + (dx > 0 ? dx : -9), y2: dot.py + dy }, svg);
  }
  return nameless;
}

function plot() {
  const methods = pairNow().methods.filter((method) => costs(method).own !== null);
  const lacking = pairNow().methods.filter((method) => costs(method).own === null).map((method) => method.label);
  one("plot").replaceChildren();
  if (!methods.length) {
    one("frontier").textContent = "Nothing is drawn: no method of this pair has this cost.";
    return;
  }
  const width = Math.max(280, one("plot").clientWidth);
  const height = Math.round(Math.min(430, Math.max(300, width * 0.72)) + 10 * Math.max(0, methods.length - 12));
  const most = Math.max(...methods.flatMap((method) => PRICES.map((price) => costs(method, state.x, price).total ?? 0)));
  const [unit, unitName] = UNITS[state.x].find(([size]) => most >= 2 * size) ?? UNITS[state.x].at(-1);
  const scale = scales(methods, width, height, unit);
  const dots = methods.map((method) => {
    const { own, total } = costs(method);
    const low = method.top1 < scale.floor;
    const at = { ownX: scale.x(own / unit), px: scale.x((total ?? own) / unit), py: scale.y(low ? scale.floor : method.top1) };
    return { method, total, top1: method.top1, low, known: total !== null, on: shown(method.label), ...at };
  });
  const best = frontier(dots);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Accuracy against cost" }, one("plot"));
  drawAxes(svg, scale);
  if (best.length > 1) {
    const path = best.map((dot, index) => (index ? `H${dot.px}V${dot.py}` : `M${dot.px},${dot.py}`)).join("");
    draw("path", { class: "frontier", d: path }, svg);
  }
  for (const dot of [...dots].sort((a, b) => a.on - b.on)) drawDot(svg, dot, scale);
  const nameless = drawNames(svg, dots, scale);
  const way = { own: "the teacher's training not counted", whole: "the teacher's training in full", shared: `the teacher shared by ${state.share}` };
  const title = document.createElement("p");
  title.className = "axis-title";
  title.textContent = `${data.quantities[state.x].name}${adds() ? `, ${way[state.price]}` : ""}, ${unitName}`;
  one("plot").append(title);
  caption(best, dots, nameless, lacking);
}

function caption(best, dots, nameless, lacking) {
  const names = (list) => list.map((dot) => dot.method.label).join(", ");
  const unknown = dots.filter((dot) => !dot.known);
  const off = dots.filter((dot) => !dot.on);
  const parts = [`Frontier of the means, cheapest first: ${names(best) || "none of the points"}.`];
  if (state.price !== "own" && adds() && dots.some((dot) => dot.known && dot.ownX < dot.px - 1)) parts.push("Hollow: without the teacher's training.");
  if (nameless.length) parts.push(`Points without room for a name, best first: ${names(nameless)}.`);
  if (off.length) parts.push(`Grey, left out by the filter: ${names(off)}.`);
  if (unknown.length) parts.push(`Hollow and on no frontier, the teacher's cost being unknown: ${names(unknown)}.`);
  if (lacking.length) parts.push(`Not drawn for want of this cost: ${lacking.join(", ")}.`);
  one("frontier").textContent = parts.join(" ");
}

// What is known of a method, a line each: value, interval, number of seeds, costs.
function facts(method) {
  const lines = [method.label, `Top-1 ${method.top1.toFixed(2)}${method.half === null ? "" : ` ± ${method.half.toFixed(2)}`} %, n = ${method.n}`];
  if (method.gain !== null) lines.push(gainText(method, `n = ${method.n_paired}`));
  if (method.ratio !== null) {
    const interval = method.ratio_low === null ? "" : ` [${times(method.ratio_low)}, ${times(method.ratio_high)}]`;
    lines.push(`Costs ${times(method.ratio)}${interval} of none`);
  }
  for (const key of Object.keys(data.quantities)) {
    const { own } = costs(method, key);
    if (own === null || (key !== state.x && key !== "time")) continue;
    const whole = costs(method, key, "whole").total;
    const more = !data.quantities[key].teacher || method.needs === "none" ? "" : `, with its teacher ${whole === null ? "unknown" : amount(whole, key)}`;
    lines.push(`${data.quantities[key].name} ${amount(own, key)}${more}`);
  }
  return lines;
}

function gainText({ sign, gain, low, high, claim }, count) {
  return `Gain ${sign} ${points(gain)}${low === null ? "" : ` [${points(low)}, ${points(high)}]`}, ${[count, claim].filter(Boolean).join(", ")}`;
}

function amount(value, key) {
  if (key === "time") return seconds(value);
  const [size, unit] = UNITS[key].find(([size]) => value >= size) ?? UNITS[key].at(-1);
  return `${Number((value / size).toPrecision(4))} ${unit}`;
}

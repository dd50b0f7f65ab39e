"use strict";
// Everything that is shown comes from one JSON element; text is only ever set as text.
const data = JSON.parse(document.getElementById("data").textContent);
const report = data.report;
const color = (place) => `var(--s${place})`;
const sample = data.sample;
const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") made.style.cssText = value;
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function us(value) {
  if (value === undefined || value === null) return "–";
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} s`;
  if (value >= 1e3) return `${(value / 1e3).toFixed(value >= 1e4 ? 1 : 2)} ms`;
  return `${value.toFixed(value >= 100 ? 0 : 1)} µs`;
}

function figures() {
  const whole = report.whole_us || {};
  const items = [
    ["interrupts", report.interrupts.toLocaleString("en")],
    ["per second", report.per_second.toLocaleString("en")],
    ["whole, p50", us(whole.p50)],
    ["whole, p99", us(whole.p99)],
    ["whole, longest", us(whole.max)],
    ["VMM wake-ups", report.wakeups_per_interrupt ?? "–"],
    ["lost events", report.lost_events, report.lost_events > 0],
  ];
  byId("figures").append(
    ...items.map(([name, value, bad]) =>
      element("div", {}, element("dt", {}, name), element("dd", bad ? { class: "bad" } : {}, String(value)))
    )
  );
}

// All stages share one logarithmic axis of whole decades, so that their histograms can be compared.
const edges = Object.values(data.histograms).flatMap((buckets) => [buckets[0][0], buckets[buckets.length - 1][0]]);
const decades = edges.length
  ? [Math.floor(Math.log10(Math.min(...edges)) - 0.1), Math.ceil(Math.log10(Math.max(...edges)))]
  : [0, 1];
const PER_DECADE = 10;

function shape(name, properties) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  return made;
}

function histogram(buckets, place) {
  const columns = (decades[1] - decades[0]) * PER_DECADE;
  const svg = shape("svg", { class: "histogram", viewBox: `0 0 ${columns} 10`, preserveAspectRatio: "none", role: "img" });
  const title = shape("title", {});
  title.textContent = `from ${us(buckets[0][0] / 10 ** (1 / PER_DECADE))} to ${us(buckets[buckets.length - 1][0])}`;
  svg.append(title);
  for (let line = 1; line < decades[1] - decades[0]; line += 1) {
    svg.append(shape("line", { x1: line * PER_DECADE, x2: line * PER_DECADE, y1: 0, y2: 10 }));
  }
  const most = Math.log1p(Math.max(...buckets.map((bucket) => bucket[1])));
  for (const [edge, count] of buckets) {
    const height = (10 * Math.log1p(count)) / most;
    const x = (Math.log10(edge) - decades[0]) * PER_DECADE - 1;
    const bar = shape("rect", { x: x + 0.06, width: 0.88, y: 10 - height, height });
    bar.style.fill = color(place);
    svg.append(bar);
  }
  return svg;
}

function axis() {
  const marks = element("div", { class: "axis" });
  const count = decades[1] - decades[0];
  const every = Math.ceil(count / 4);
  for (const line of new Set([...Array(count).keys()].filter((at) => at % every === 0).concat(count))) {
    const text = us(10 ** (decades[0] + line)).replace(/\.0+(?= )/, "");
    const side = line === 0 ? "first" : line === count ? "last" : "";
    marks.append(element("span", { class: side, style: `left:${(100 * line) / count}%` }, text));
  }
  return marks;
}

function row(cells, name = "td") {
  return element("tr", {}, ...cells.map((cell) => (cell instanceof HTMLTableCellElement ? cell : element(name, {}, cell))));
}

function left(text) {
  return element("th", { class: "text" }, text);
}

// Key in the data, heading, class; a narrow window leaves the second rank out.
const TIMES = [["p50", "p50", ""], ["p90", "p90", "second"], ["p99", "p99", ""], ["p999", "p99.9", "second"], ["max", "max", ""]];

function stages() {
  const body = element("tbody");
  for (const stage of report.stages) {
    const place = data.chain.indexOf(stage.stage);
    const dot = element("span", { class: "dot", style: `background:${color(place)}` });
    const times = TIMES.map(([name, , rank]) => element("td", { class: rank }, us(stage.us[name])));
    const share = `${(100 * stage.share).toFixed(1)} %`;
    const first = element("td", {}, dot, stage.stage);
    const drawn = element("td", { class: "drawn" }, histogram(data.histograms[stage.stage], place));
    body.append(row([first, ...times, share, drawn]));
  }
  const names = TIMES.map(([, name, rank]) => element("th", { class: rank }, name));
  const head = element("thead", {}, row(["stage", ...names, "share", element("th", { class: "drawn" }, axis())], "th"));
  byId("stages").append(element("div", { class: "scroll" }, element("table", {}, head, body)));
  const firsts = new Set(sample.map((span) => data.chain[span[2][0][0]]));
  const unseen = data.chain.filter((name) => !firsts.has(name) && !report.stages.some((stage) => stage.stage === name));
  const words = firsts.size ? `The clock of an interrupt starts at ${[...firsts].join(" or ")}. ` : "";
  byId("stages").append(element("p", { class: "quiet" }, `${words}No tracepoint showed: ${unseen.join(", ")}.`));
}

// A sampled interrupt is [number, start in ns, [[stage, us], …] in the order of time, oddities].
const duration = (span) => span[2][span[2].length - 1][1];

function bar(span, longest) {
  const parts = element("div");
  for (let index = 1; index < span[2].length; index += 1) {
    const [place, at] = span[2][index];
    const length = at - span[2][index - 1][1];
    const part = element("span", { style: `background:${color(place)};width:${(100 * length) / longest}%` });
    part.title = `${data.chain[place]}: ${us(length)}`;
    parts.append(part);
  }
  const when = element("span", { class: "quiet" }, ` at ${((span[1] - origin) / 1e9).toFixed(3)} s`);
  return element("div", { class: "bar" }, element("div", {}, `no. ${span[0]}: ${us(duration(span))}`, when), parts);
}

function legend(spans) {
  const places = new Set(spans.flatMap((span) => span[2].slice(1).map((item) => item[0])));
  const items = [...places].sort((a, b) => a - b).map((place) =>
    element("span", {}, element("span", { class: "dot", style: `background:${color(place)}` }), data.chain[place])
  );
  return element("div", { class: "legend" }, ...items);
}

function slowest() {
  const spans = report.slowest.map((span) => [
    span.n, span.t_ns, Object.entries(span.us).map(([name, at]) => [data.chain.indexOf(name), at]), span.oddities,
  ]);
  if (!spans.length) return;
  const longest = Math.max(...spans.map(duration)) || 1;
  byId("slowest").append(legend(spans), ...spans.map((span) => element("details", {}, element("summary", {}, bar(span, longest)), steps(span))));
}

function anomalies() {
  const counts = Object.entries(report.anomaly_counts);
  if (!counts.length) {
    byId("anomalies").append(element("p", {}, "None."));
    return;
  }
  byId("anomalies").append(element("p", {}, counts.map(([name, count]) => `${count} × ${name}`).join(", ")));
  const body = element("tbody");
  const shown = report.anomalies.slice(0, 200);
  for (const item of shown) {
    const at = `${((item.t_ns - origin) / 1e9).toFixed(6)} s`;
    body.append(row([at, element("td", { class: "kind" }, item.kind), element("td", { class: "text" }, item.detail)]));
  }
  const head = element("thead", {}, row(["after the first interrupt", left("kind"), left("what")], "th"));
  byId("anomalies").append(element("div", { class: "scroll" }, element("table", {}, head, body)));
}

// The timeline: time to the right, duration upwards on a log scale, one dot an interrupt.
const origin = sample.length ? sample[0][1] : 0;
const view = { from: 0, to: 1, picked: null };
const canvas = byId("timeline");

function whole() {
  if (!sample.length) return [0, 1];
  const last = sample[sample.length - 1];
  return [0, last[1] - origin + duration(last) * 1000 || 1];
}

function scale() {
  const longest = Math.max(1, ...sample.map(duration));
  const shortest = Math.max(0.05, Math.min(...sample.map(duration)));
  return [Math.log10(shortest) - 0.1, Math.log10(longest) + 0.1];
}
const [low, high] = sample.length ? scale() : [0, 1];
const margin = { left: 58, right: 10, top: 10, bottom: 24 };

function place(span, width, height) {
  const across = (span[1] - origin - view.from) / (view.to - view.from);
  const up = (Math.log10(Math.max(duration(span), 0.05)) - low) / (high - low);
  return [
    margin.left + across * (width - margin.left - margin.right),
    height - margin.bottom - up * (height - margin.top - margin.bottom),
  ];
}

// The next 1, 2 or 5 times a power of ten.
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least * 0.999);
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const paint = (name) => style.getPropertyValue(name).trim();
  pen.scale(ratio, ratio);
  pen.font = "12px system-ui, sans-serif";
  pen.lineWidth = 1;
  const marks = [];
  for (let power = Math.floor(low); power <= Math.floor(high); power += 1) {
    // Lines at 1, 2 and 5 while they have room, else at powers of ten.
    for (const digit of high - low < 2.5 ? [1, 2, 5] : [1]) marks.push(power + Math.log10(digit));
  }
  for (const mark of marks.filter((value) => value >= low && value <= high)) {
    const y = height - margin.bottom - ((mark - low) / (high - low)) * (height - margin.top - margin.bottom);
    pen.strokeStyle = paint("--line");
    pen.beginPath();
    pen.moveTo(margin.left, y);
    pen.lineTo(width - margin.right, y);
    pen.stroke();
    pen.fillStyle = paint("--quiet");
    pen.textAlign = "right";
    pen.fillText(us(10 ** mark), margin.left - 6, y + 4);
  }
  const step = roundStep((view.to - view.from) / Math.max(2, Math.floor(width / 110)));
  const digits = Math.max(0, 9 - Math.floor(Math.log10(step) + 1e-9));
  pen.textAlign = "center";
  for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
    const x = margin.left + ((width - margin.left - margin.right) * (at - view.from)) / (view.to - view.from);
    const text = `${(at / 1e9).toFixed(digits)} s`;
    const half = pen.measureText(text).width / 2;
    pen.fillText(text, Math.min(Math.max(x, half + 2), width - half - 4), height - 7);
    pen.strokeStyle = paint("--line");
    pen.beginPath();
    pen.moveTo(x, height - margin.bottom);
    pen.lineTo(x, height - margin.bottom + 5);
    pen.stroke();
  }
  const last = data.chain.length - 1;
  for (const span of sample) {
    const at = span[1] - origin;
    if (at < view.from || at > view.to) continue;
    const [x, y] = place(span, width, height);
    let worst = [last, -1];
    for (let index = 1; index < span[2].length; index += 1) {
      const length = span[2][index][1] - span[2][index - 1][1];
      if (length > worst[1]) worst = [span[2][index][0], length];
    }
    pen.fillStyle = paint(`--s${worst[0]}`);
    const size = span === view.picked ? 5 : span[3].length || sample.length < 400 ? 3.4 : 2;
    pen.beginPath();
    pen.arc(x, y, size, 0, 2 * Math.PI);
    pen.fill();
    if (span[3].length || span === view.picked) {
      pen.strokeStyle = paint(span[3].length ? "--bad" : "--ink");
      pen.stroke();
    }
  }
}

function zoom(factor, around) {
  const [start, end] = whole();
  const middle = around ?? (view.from + view.to) / 2;
  const span = Math.min(end - start, Math.max(2000, (view.to - view.from) * factor));
  const part = (middle - view.from) / (view.to - view.from);
  view.from = Math.min(Math.max(start, middle - span * part), end - span);
  view.to = view.from + span;
  draw();
}

function move(by) {
  const [start, end] = whole();
  const span = view.to - view.from;
  view.from = Math.min(Math.max(start, view.from + by), end - span);
  view.to = view.from + span;
  draw();
}

function moment(event) {
  const across = (event.offsetX - margin.left) / (canvas.clientWidth - margin.left - margin.right);
  return view.from + across * (view.to - view.from);
}

function pick(event) {
  let best = null;
  let distance = 14;
  for (const span of sample) {
    const [x, y] = place(span, canvas.clientWidth, canvas.clientHeight);
    const away = Math.hypot(x - event.offsetX, y - event.offsetY);
    if (away < distance) [best, distance] = [span, away];
  }
  view.picked = best;
  byId("picked").replaceChildren(...(best ? [legend([best]), bar(best, duration(best) || 1), steps(best)] : []));
  draw();
}

function steps(span) {
  const said = span[2].slice(1).map(([at, moment], index) => `${data.chain[at]} ${us(moment - span[2][index][1])}`);
  const odd = span[3].length ? ` (${span[3].join(", ")})` : "";
  const from = `${((span[1] - origin) / 1e9).toFixed(6)} s, from ${data.chain[span[2][0][0]]}: `;
  return element("p", { class: "quiet" }, `${from}${said.join(", then ")}${odd}`);
}

function timeline() {
  const sampled = data.every > 1 ? `One interrupt of ${data.every} is shown, ${sample.length} in all.` : "Every interrupt is shown.";
  byId("sampled").textContent = `${sampled} The colour is the stage that took longest; a ring marks an anomaly.`;
  [view.from, view.to] = whole();
  let dragged = null;
  let moved = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.3 : 1 / 1.3, moment(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    dragged = event.offsetX;
    moved = 0;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged === null) return;
    const by = dragged - event.offsetX;
    moved += Math.abs(by);
    dragged = event.offsetX;
    move((by / (canvas.clientWidth - margin.left - margin.right)) * (view.to - view.from));
  });
  canvas.addEventListener("pointerup", (event) => {
    dragged = null;
    if (moved < 4) pick(event);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = (view.to - view.from) / 10;
    const keys = { "+": () => zoom(0.7), "-": () => zoom(1.4), ArrowLeft: () => move(-step), ArrowRight: () => move(step) };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  byId("in").addEventListener("click", () => zoom(0.5));
  byId("out").addEventListener("click", () => zoom(2));
  byId("all").addEventListener("click", () => { [view.from, view.to] = whole(); draw(); });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

function heading() {
  document.title = `${data.title}: vfio-intx trace`;
  byId("title").textContent = data.title;
  byId("evidence").textContent = report.evidence ? report.evidence.text
    : report.handled ? `vfio's handler ran ${report.handled} times on the host, and nothing of it was seen to reach a guest.`
    : "No interrupt was seen.";
  const cost = report.cost;
  byId("cost").textContent =
    `Recorded for ${report.seconds} s (${report.ended}). Tracing read ${cost.events.toLocaleString("en")} events and used ` +
    `${cost.cpu_s} s of CPU (${(100 * cost.cpu_share).toFixed(1)} % of one core). ${data.where}`;
}

heading();
figures();
stages();
timeline();
slowest();
anomalies();

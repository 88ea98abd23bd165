/* Charts, bars and words. */
"use strict";

const thin = "\u202f";
const number = v => v === 0 ? "0" : Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6 ? v.toExponential(1) : Math.abs(v) < 1000 ? String(Number(v.toPrecision(3))) : v.toFixed(0);
const milliseconds = s => s < 1e-3 ? `${Number((s * 1000).toPrecision(2))} ms` : s < 1 ? `${number(s * 1000)} ms` : `${number(s)} s`;
const count = n => String(n).replace(/\B(?=(\d{3})+$)/g, thin);
const percent = v => `${Math.round(v * 100)}%`;
function age(seconds) {
  const whole = Math.floor(seconds);
  for (const [unit, size, small, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]])
    if (whole >= size) return `${Math.floor(whole / size)} ${unit} ${Math.floor(whole % size / part)} ${small}`;
  return `${whole} s`;
}
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const WINDOW = 300; // seconds
const HEIGHT = 132;

/* Step time and age of one stream over the last minutes; `data` is [times, steps, ages, deadlines] in ms. */
class Chart {
  constructor(place, deadline) {
    this.place = place;
    this.deadline = deadline;
    this.data = [[], [], [], []];
    this.usual = 1; // seconds from one entry to the next
    this.build();
    new ResizeObserver(() => this.fit()).observe(place);
  }
  build() {
    this.plot?.destroy();
    const soft = colour("soft"), line = colour("line");
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const series = [{}, { label: "step", stroke: colour("ours"), width: 2, points: this.dots("ours") },
      { label: "age", stroke: colour("same"), width: 2, points: this.dots("same") },
      { label: "deadline", stroke: colour("soft"), width: 1, dash: [4, 4], points: { show: false } }];
    this.plot = new uPlot({
      width: Math.max(120, this.place.clientWidth), height: HEIGHT, series,
      legend: { show: false }, cursor: { show: false }, padding: [6, 16, 0, 0],
      scales: { x: { time: false, range: () => [-this.span(), 0] },
                y: { range: () => [0, this.high()] } },
      axes: [{ ...axis, size: 22, values: (_, marks) => marks.map(m => m === 0 ? "now" : m % 60 ? `${m} s` : `${m / 60} min`), splits: () => this.marks() },
             { ...axis, size: 46, values: (_, marks) => marks.map(number), space: 28 }],
    }, this.relative(), this.place);
  }
  relative() {
    const now = this.now ?? 0;
    return [this.data[0].map(t => t - now), this.data[1], this.data[2], this.data[3]];
  }
  /* The deadline is shown where it is near. */
  high() {
    const most = this.data[2].reduce((a, b) => Math.max(a, b ?? 0), 0), limit = (this.deadline ?? 0) * 1000;
    return Math.max(1, 1.15 * (limit < 4 * most ? Math.max(most, limit) : most));
  }
  /* Frames that come seldom are seen as dots. */
  dots(name) { return { show: () => this.data[0].length < 30, size: 4, fill: colour(name), width: 0 }; }
  /* A minute at least, so that the first seconds are seen too. */
  span() { return this.data[0].length ? Math.min(WINDOW, Math.max(60, (this.now ?? 0) - this.data[0][0])) : 60; }
  marks() {
    const span = this.span(), step = span <= 60 ? 15 : span <= 120 ? 30 : 60;
    return Array.from({ length: Math.floor(span / step) + 1 }, (_, n) => -n * step).reverse();
  }
  fit() {
    const width = Math.max(120, this.place.clientWidth);
    if (width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }
  /* entries: [second, frames, longest step, oldest output]; a second that is there is replaced. */
  add(entries, now) {
    const [times, steps, ages, deadlines] = this.data;
    for (const [second, , step, old] of entries) {
      if (times.length && second < times[times.length - 1]) continue;
      const gap = times.length ? second - times[times.length - 1] : 0;
      if (gap > Math.max(3, 4 * this.usual) && steps[steps.length - 1] !== null) {
        times.push(times[times.length - 1] + 1); steps.push(null); ages.push(null); deadlines.push(this.deadline);
      }
      if (gap) this.usual = gap;
      if (times[times.length - 1] !== second) { times.push(second); steps.push(0); ages.push(0); deadlines.push(0); }
      const last = times.length - 1;
      steps[last] = step * 1000; ages[last] = old * 1000; deadlines[last] = this.deadline === null ? null : this.deadline * 1000;
    }
    while (times.length && times[0] < now - WINDOW) this.data.forEach(column => column.shift());
    this.now = now;
  }
  draw() { this.plot.setData(this.relative()); }
}

/* A list of numbers as bars around zero. */
function bars(canvas, values, kept) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 200, height = canvas.clientHeight || 100;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const known = values.filter(v => v !== null);
  kept.most = Math.max(kept.most ?? 1e-9, ...known.map(Math.abs));
  const low = known.some(v => v < 0), zero = low ? height / 2 : height - 2, scale = (low ? height / 2 - 3 : height - 8) / kept.most;
  const step = width / Math.max(1, values.length), wide = Math.max(1, Math.min(36, step * 0.7));
  pen.fillStyle = colour("line");
  pen.fillRect(0, zero, width, 1);
  pen.fillStyle = colour(canvas.classList.contains("output") ? "same" : "ours");
  values.forEach((v, n) => {
    if (v === null) return;
    const tall = Math.max(1, Math.abs(v) * scale);
    pen.fillRect(n * step + (step - wide) / 2, v >= 0 ? zero - tall : zero, wide, tall);
  });
}

/* A small line of what was. */
function spark(canvas, values) {
  const ratio = window.devicePixelRatio || 1, width = 90, height = 20;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const pen = canvas.getContext("2d"), most = Math.max(...values, 1e-12), least = Math.min(...values, most);
  const span = most - least || most;
  pen.scale(ratio, ratio);
  pen.strokeStyle = colour("ours"); pen.lineWidth = 1.5; pen.lineJoin = "round";
  pen.beginPath();
  values.forEach((v, n) => pen.lineTo(width * (n + 60 - values.length) / 59, height - 2 - (height - 4) * (v - least) / span));
  pen.stroke();
}

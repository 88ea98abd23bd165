/* What both pages use: small things, charts, pictures. */

/* ---- small things ---- */

function make(tag, attributes, ...children) {
  const svg = tag === "svg" || tag === "path";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const figure = value => value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toPrecision(3);
const bytes = count => count < 1e6 ? `${(count / 1024).toPrecision(3)} KiB` : `${(count / 1e6).toFixed(2)} MB`;

/* ---- charts: the drawing stretches with the page, the text beside it does not ---- */

/* Round numbers from low to high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(k => k * unit).find(s => s >= rough * 0.99);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(6)));
  return found;
}

/* Lines over 0..count-1; null leaves a gap. `names(t)` labels the axis; `seek(t)` is called when someone points at t. */
function chart({ title, unit = "", count, lines, low = 0, high, rules = [], names = String, places, seek, small = false }) {
  const last = Math.max(1, count - 1);
  let from = 0, span = last, current = 0;
  const y = value => 1000 * (1 - (value - low) / (high - low));
  const path = values => {
    let d = "", pen = "M";
    values.forEach((v, t) => { if (v === null) pen = "M"; else { d += `${pen}${t} ${y(v).toFixed(1)}`; pen = "L"; } });
    return d;
  };
  const marks = ticks(low, high, small ? 3 : 4);
  const drawn = lines.map(line => make("path", { class: line.style, d: path(line.values) }));
  const svg = make("svg", { preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${lines.map(l => l.name).join(", ")}` },
    make("path", { class: "grid", d: marks.map(v => `M0 ${y(v)}H${last}`).join("") }),
    ...rules.map(rule => make("path", { class: "rule", d: `M0 ${y(rule.value)}H${last}` })), ...drawn);
  const now = make("span", { class: "now" });
  const plot = make("div", { class: "plot" }, svg, now,
    ...marks.map(v => make("span", { class: "y", style: `top:${y(v) / 10}%` }, String(v))),
    ...rules.map(rule => make("span", { class: "rule", style: `top:${y(rule.value) / 10}%` }, rule.name)));
  let labels = [];
  const left = t => `${100 * (t - from) / span}%`;
  const look = (first, width) => {
    from = first; span = width;
    svg.setAttribute("viewBox", `${from} 0 ${span} 1000`);
    labels.forEach(label => label.remove());
    labels = (places ?? ticks(from, from + span, 5)).map(t => make("span", { class: "x", style: `left:${left(t)}` }, names(t)));
    plot.append(...labels);
    now.style.left = left(current);
  };
  look(0, last);
  const told = lines.map(() => make("output", {}));
  const key = make("div", { class: "key" }, ...lines.map((line, n) =>
    make("span", {}, make("i", { style: `border-color:var(--${line.style})` }), line.name, told[n])));
  const mark = t => {
    current = t;
    now.style.left = left(t);
    told.forEach((output, n) => { const v = lines[n].values[t] ?? null; output.textContent = v === null ? "–" : figure(v); });
  };
  const set = (n, values) => { lines[n].values = values; drawn[n].setAttribute("d", path(values)); };
  if (seek) {
    plot.classList.add("seek");
    const at = event => {
      const box = plot.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      seek(Math.round(from + span * Math.min(1, Math.max(0, share))));
    };
    plot.onpointerdown = event => { plot.setPointerCapture(event.pointerId); at(event); };
    plot.onpointermove = event => { if (event.buttons) at(event); };
  }
  mark(0);
  const head = make(small ? "h4" : "h3", {}, title, ...(unit ? [make("small", { class: "soft" }, ` ${unit}`)] : []));
  return { node: make("div", {}, head, key, plot), svg, y, mark, set, look };
}
const top = (...series) => Math.max(...series.flat().filter(v => v !== null), 1e-9) * 1.06;

/* ---- pictures ---- */

/* Bytes of every frame of a sprite: [frame] -> Uint8Array(height * width). */
async function frames(sprite, [height, width], count) {
  const image = new Image();
  image.src = sprite.src;
  await image.decode();
  const sheet = make("canvas", { width: image.width, height: image.height });
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return Array.from({ length: count }, (_, t) => {
    const pixels = context.getImageData((t % sprite.columns) * width, Math.floor(t / sprite.columns) * height, width, height).data;
    return Uint8Array.from({ length: height * width }, (_, p) => pixels[4 * p]);
  });
}
const rgba = (r, g, b, a = 255) => (a << 24 | b << 16 | g << 8 | r) >>> 0; // as a little-endian Uint32 holds it
const hex = text => [1, 3, 5].map(k => parseInt(text.slice(k, k + 2), 16));
function blend(stops, share) {
  const place = share * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(place));
  return stops[k].map((from, c) => Math.round(from + (place - k) * (stops[k + 1][c] - from)));
}
const INK = ["#0b0e13", "#123a63", "#2f86c6", "#9fd4ee", "#ffffff"].map(hex);
function paint(canvas, colour) {
  const context = canvas.getContext("2d"), picture = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let p = 0; p < pixels.length; p++) pixels[p] = colour(p);
  context.putImageData(picture, 0, 0);
}

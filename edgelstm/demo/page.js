const { report, views } = JSON.parse(document.getElementById("data").textContent);
const wanted = new URLSearchParams(location.hash.slice(1)); // #frame=120&lead=5: open there, without playing
const still = matchMedia("(prefers-reduced-motion: reduce)").matches || wanted.has("frame");

/* ---- the player: one frame and one lead time for everything in a section ---- */

function player({ name, count, leads, rate, noun, strip }) {
  const button = make("button", { type: "button" }, "Play");
  const slider = make("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": `${name}: ${noun}` });
  const told = make("output", {});
  const bar = make("div", { class: "player", role: "group", "aria-label": `${name}: playback` }, button, slider, told);
  const listeners = [];
  let frame = 0, lead = 0, playing = false, byHand = false, before = 0;
  const show = () => {
    slider.value = frame;
    told.textContent = `${noun} ${frame} of ${count - 1}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    listeners.forEach(listen => listen(frame, lead));
  };
  const tick = time => {
    if (!playing) return;
    if (time - before >= 1000 / rate) {
      before = time;
      frame = (frame + 1) % count;
      show();
    }
    requestAnimationFrame(tick);
  };
  const play = on => {
    if (on && !playing) requestAnimationFrame(tick);
    playing = on;
    button.textContent = on ? "Pause" : "Play";
  };
  const go = t => { frame = Math.min(count - 1, Math.max(0, t)); show(); };
  const seek = t => { byHand = true; play(false); go(t); };
  const pick = k => { lead = Math.min(leads.length - 1, Math.max(0, k)); strip.inputs[lead].checked = true; show(); };
  button.onclick = () => { byHand = true; play(!playing); };
  /* Alone it plays only while it is seen, and not once somebody took over. */
  const seen = visible => { if (!byHand) play(visible); };
  slider.oninput = () => seek(Number(slider.value));
  strip.inputs.forEach((input, k) => { input.onchange = () => pick(k); });
  return { bar, go, seek, pick, seen, listen: listener => listeners.push(listener) };
}

/* The choice of lead time: a row of radio buttons, each with the pictures of its lead where there are any. */
function leadStrip(view, id, pictures) {
  const inputs = view.leads.map(lead => make("input", { type: "radio", name: `lead-${id}`, "aria-label": lead.name }));
  const labels = view.leads.map((lead, k) => make("label", {}, ...(pictures ? pictures[k] : []), make("span", {}, lead.short), inputs[k]));
  const node = make("fieldset", { class: pictures ? "strip" : "strip plain" }, make("legend", {}, view.strip),
    ...(pictures ? [make("div", { class: "rows", "aria-hidden": "true" }, make("span", {}, "what came"), make("span", {}, "predicted"), make("span", {}, "ahead"))] : []),
    make("div", { class: "leads" }, ...labels));
  return { node, inputs };
}

const OVER = hex("#ff8a3c"), UNDER = hex("#4aa8ff");
const RAIN = [[0.1, "#b7d9f2"], [0.5, "#7db8e8"], [1, "#3d8bd4"], [2, "#1f5fae"], [5, "#5a3fa8"], [10, "#a5319c"], [20, "#e0425f"], [50, "#f9b233"]];

/* What a byte of a picture stands for, its colour, and the colour of a difference. */
function scale(view) {
  const rain = view.palette === "rain", missing = rain ? 255 : -1;
  const value = Float32Array.from({ length: 256 }, (_, v) => rain ? Math.expm1(v / view.levels / view.log1p_scale) : v / view.levels);
  const colours = Uint32Array.from({ length: 256 }, (_, v) => {
    if (!rain) return rgba(...blend(INK, Math.min(1, v / view.levels)));
    if (v === missing) return rgba(128, 136, 146, 110);
    const bin = RAIN.filter(([from]) => value[v] >= from).pop();
    return bin ? rgba(...hex(bin[1])) : 0;
  });
  const full = rain ? 5 : 0.6; // the difference that gets the full colour
  const difference = (said, came) => {
    if (came === missing) return colours[missing];
    const off = value[said] - value[came];
    return rgba(...(off > 0 ? OVER : UNDER), Math.round(255 * Math.min(1, Math.abs(off) / full)));
  };
  return { colours, difference, full };
}
function pictureLegend(view, full) {
  const parts = [];
  if (view.palette === "rain") {
    parts.push(make("div", { class: "swatches", role: "img", "aria-label": "Colours of the rain rate" },
      ...RAIN.map(([from, colour]) => make("div", {}, make("i", { style: `background:${colour}` }), make("span", {}, String(from)))), "\u00a0mm/h"));
    parts.push(make("span", {}, "grey: no data"));
  }
  const tell = (colour, text) => make("span", { class: "swatches" }, make("i", { style: `background:rgb(${colour})` }), `\u00a0${text}`);
  const amount = view.palette === "rain" ? `full colour from ${full} mm/h` : `full colour from ${full}`;
  parts.push(tell(OVER, "predicted too much"), tell(UNDER, `too little (${amount})`));
  return make("div", { class: "legend" }, ...parts);
}

async function images(view, id, count) {
  const [height, width] = view.size;
  const canvas = label => make("canvas", { width, height, role: "img", "aria-label": label });
  const heads = ["goes in", "what came", "predicted", "difference"];
  const panels = heads.map(head => ({ canvas: canvas(head), text: make("span", {}) }));
  const grid = make("div", { class: "panels" }, ...panels.map((p, n) => make("figure", {}, p.canvas, make("figcaption", {}, make("b", {}, heads[n]), p.text))));
  const small = view.leads.map(lead => [canvas(`what came, ${lead.name}`), canvas(`predicted, ${lead.name}`)]);
  const strip = leadStrip(view, id, small);
  const control = player({ name: view.title, count, leads: view.leads, rate: view.rate, noun: "frame", strip });
  const [truth, ...forecasts] = await Promise.all([view.truth, ...view.forecasts].map(s => frames(s, view.size, count)));
  const { colours, difference, full } = scale(view);
  const draw = (target, source) => paint(target, source ? p => colours[source[p]] : () => 0);
  control.listen((t, k) => {
    const then = t + view.leads[k].lead, came = truth[then], said = forecasts[k][t];
    draw(panels[0].canvas, truth[t]);
    draw(panels[1].canvas, came);
    draw(panels[2].canvas, said);
    paint(panels[3].canvas, came ? p => difference(said[p], came[p]) : () => 0);
    small.forEach(([above, below], n) => { draw(above, truth[t + view.leads[n].lead]); draw(below, forecasts[n][t]); });
    const at = came ? view.frame_names[then] : "after the end of the stream";
    [view.frame_names[t], at, `${view.leads[k].name}, from this input and the state`, came ? "predicted minus what came" : "not known"]
      .forEach((text, n) => { panels[n].text.textContent = text; });
  });
  return { control, nodes: [grid, pictureLegend(view, full), strip.node, control.bar], wrap: view.palette };
}

/* ---- signals ---- */

async function series(view, id, count) {
  const strip = leadStrip(view, id, null);
  const control = player({ name: view.title, count, leads: view.leads, rate: view.rate, noun: "sample", strip });
  const close = make("input", { type: "checkbox" });
  control.bar.append(make("label", { class: "check" }, close, "close up"));
  /* A prediction is drawn at the time it is for. */
  const said = (k, c) => view.truth.map((_, t) => t < view.leads[k].lead ? null : view.forecasts[k][t - view.leads[k].lead][c]);
  const charts = view.channels.map((title, c) => {
    const measured = view.truth.map(row => row[c]);
    const all = measured.concat(...view.forecasts.map(rows => rows.map(row => row[c])));
    const low = Math.min(...all), high = Math.max(...all), room = 0.06 * (high - low);
    return chart({ title, small: true, count, low: low - room, high: high + room, seek: control.seek,
                   lines: [{ name: "measured", style: "truth", values: measured }, { name: "predicted", style: "ours", values: said(0, c) }] });
  });
  const fans = charts.map(one => one.svg.appendChild(make("path", { class: "fan" })));
  let now = 0, shown = 0;
  const zoom = () => {
    const width = close.checked ? Math.min(50, count - 1) : count - 1;
    const from = Math.max(0, Math.min(count - 1 - width, now - Math.round(0.7 * width)));
    charts.forEach(one => one.look(from, width));
  };
  close.onchange = zoom;
  control.listen((t, k) => {
    now = t;
    if (close.checked) zoom();
    charts.forEach((one, c) => {
      if (k !== shown) one.set(1, said(k, c));
      one.mark(t);
      const ahead = view.leads.map((lead, n) => `L${t + lead.lead} ${one.y(view.forecasts[n][t][c]).toFixed(1)}`).join("");
      fans[c].setAttribute("d", `M${t} ${one.y(view.truth[t][c]).toFixed(1)}${ahead}`);
    });
    shown = k;
  });
  const key = make("div", { class: "key" }, ...[["truth", "measured"], ["ours", "predicted, drawn at the time it is for"], ["same", "everything predicted at the moment of the upright line"]]
    .map(([style, text]) => make("span", {}, make("i", { style: `border-color:var(--${style})` }), text)));
  return { control, nodes: [strip.node, control.bar, key, make("div", { class: "charts channels" }, ...charts.map(one => one.node))], wrap: "signal" };
}

/* ---- the figures of an example ---- */

function facts(example) {
  const states = Object.values(example.states).reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0);
  return make("dl", { class: "facts" }, ...[
    ["time per frame, median", `${figure(example.p50_ms)} ms`, `99% within ${figure(example.p99_ms)} ms, ${example.frames} frames`],
    ["error against repeating the last frame", `${Math.round(100 * (example.mae / example.mae_persistence - 1))}%`.replace("-", "−"), `MAE ${figure(example.mae)}, not ${figure(example.mae_persistence)}, mean of all leads`],
    ["difference from PyTorch", figure(example.recorded_error), `worst relative, ${example.recorded_steps} recorded outputs and the last states`],
    ["model", bytes(example.model_bytes), `${example.parameters.toLocaleString("en")} parameters`],
    ["state carried", bytes(4 * states), `${Object.keys(example.states).length} tensors, ${states.toLocaleString("en")} numbers`],
  ].map(([name, value, note]) => make("div", {}, make("dt", {}, name), make("dd", {}, value), make("small", {}, note))));
}

function table(view, example) {
  const csi = example.leads[0].csi !== undefined;
  const head = ["ahead", "MAE", "MAE, last frame repeated", ...(csi ? ["CSI, 1 mm/h", "CSI, last frame repeated"] : [])];
  const rows = example.leads.map((l, k) => make("tr", {}, ...[
    [view.leads[k].ahead], [figure(l.mae), l.mae < l.mae_persistence], [figure(l.mae_persistence)],
    ...(csi ? [[l.csi.toFixed(3), l.csi > l.csi_persistence], [l.csi_persistence.toFixed(3)]] : []),
  ].map(([text, better]) => make("td", better ? { class: "better" } : {}, text))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map(t => make("th", { scope: "col" }, t)))), make("tbody", {}, ...rows)));
}

function details(view, example) {
  const rows = [
    ["run", "exported from model.safetensors without PyTorch; compared; streamed frame by frame, one stream, batch 1, state carried from zero"],
    ["graph", `${example.file}: ONNX, operators ${Object.entries(example.operators).map(([op, n]) => `${n} ${op}`).join(", ")}`],
    ["input", Object.entries(example.inputs).map(([n, s]) => `${n} [${s.join(" × ")}]`).join(", ")],
    ["output", Object.entries(example.outputs).map(([n, s]) => `${n} [${s.join(" × ")}]`).join(", ")],
    ["states", Object.entries(example.states).map(([n, s]) => `${n} [${s.join(" × ")}]`).join(", ")],
    ["against its source", `worst relative error of any output or state ${figure(example.export_error)} over ${example.export_frames} frames (an export above 1e-5 is refused); the source is computed with NumPy`],
    ["against PyTorch", `worst relative error ${figure(example.recorded_error)} (limit 1e-5), recorded when the weights were trained`],
    ["time", `of a step alone, in ms: median ${figure(example.p50_ms)}, 99% within ${figure(example.p99_ms)}, longest ${figure(Math.max(...example.milliseconds))}`],
    ["score", example.scored],
    ...(example.gaps.length ? [["gaps", example.gaps.join("; ")]] : []),
    ["SHA-256", example.sha256],
  ];
  return make("details", {}, make("summary", {}, "What was run, and how"),
    make("table", {}, make("tbody", {}, ...rows.map(([name, text]) => make("tr", {}, make("td", {}, name), make("td", {}, text))))));
}

async function section(view, example, id) {
  const count = example.frames, names = t => view.times?.[t] ?? String(t);
  const { control, nodes, wrap } = view.kind === "images" ? await images(view, id, count) : await series(view, id, count);
  const both = (ours, same) => [{ name: "the network", style: "ours", values: ours }, { name: "last frame repeated", style: "same", values: same }];
  const errors = chart({ title: "Error over time", unit: `MAE, ${example.unit}, at the lead time chosen`, count, names, seek: control.seek,
                         high: top(...view.errors.model, ...view.errors.persistence), lines: both(view.errors.model[0], view.errors.persistence[0]) });
  const times = chart({ title: "Time per frame", unit: "ms", count, names, seek: control.seek, high: Math.max(1.5 * example.p99_ms, 2 * example.p50_ms),
                        rules: [["99%", example.p99_ms], ["median", example.p50_ms]].map(([name, value]) => ({ name: `${name} ${figure(value)}`, value })),
                        lines: [{ name: "this frame", style: "ours", values: example.milliseconds }] });
  const leads = example.leads.map((_, k) => k);
  const byLead = (title, unit, ours, same, high) => chart({ title, unit, count: leads.length, places: leads, names: k => view.leads[k].short, high, seek: control.pick,
                                                             lines: both(example.leads.map(l => l[ours]), example.leads.map(l => l[same])) });
  const error = byLead("Error by lead time", `MAE, ${example.unit}`, "mae", "mae_persistence", top(example.leads.flatMap(l => [l.mae, l.mae_persistence])));
  const lines = [error, ...(example.leads[0].csi === undefined ? [] : [byLead("Hits by lead time", "CSI of 1 mm/h: 1 is perfect", "csi", "csi_persistence", 1)])];
  let shown = 0;
  control.listen((t, k) => {
    if (k !== shown) { errors.set(0, view.errors.model[k]); errors.set(1, view.errors.persistence[k]); shown = k; }
    [errors, times].forEach(one => one.mark(t));
    lines.forEach(one => one.mark(k));
  });
  const node = make("section", { "aria-label": view.title, class: wrap }, make("h2", {}, view.title), make("p", { class: "soft" }, view.intro), facts(example), ...nodes,
    make("div", { class: "charts" }, errors.node, times.node, ...lines.map(one => one.node), table(view, example)), details(view, example));
  return { node, control };
}

async function build() {
  const m = report.machine;
  document.getElementById("machine").append(...[m.processor, `${m.threads} thread${m.threads === 1 ? "" : "s"}`, `ONNX Runtime ${m.onnxruntime}`, `Python ${m.python}`, `edgelstm ${report.edgelstm}`, report.created]
    .map(text => make("li", {}, text)));
  const built = await Promise.all(views.map((view, n) => section(view, report.examples[n], n)));
  document.getElementById("examples").append(...built.map(one => one.node));
  built.forEach(({ node, control }, n) => {
    const view = views[n], lead = wanted.has("lead") ? view.leads.findIndex(l => l.lead === Number(wanted.get("lead"))) : view.start;
    control.pick(lead);
    control.go(Number(wanted.get("frame") ?? 20));
    if (!still && view.kind === "images") new IntersectionObserver(([entry]) => control.seen(entry.isIntersecting), { threshold: 0.4 }).observe(node.querySelector(".panels"));
  });
  document.getElementById("foot").append("Again: ", make("code", {}, report.command), ". The models stand beside this page; try ", make("code", {}, `edgelstm inspect ${report.examples[0].file}`), ". All figures: report.json.");
  document.body.dataset.ready = "yes";
}
build();

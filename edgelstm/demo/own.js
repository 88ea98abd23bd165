const data = JSON.parse(document.getElementById("data").textContent);
const wanted = new URLSearchParams(location.hash.slice(1)); // #frame=120: open there, without playing

/* ---- one frame for everything on the page ---- */

const listeners = [];
let now = 0, playing = false, before = 0;
const slider = make("input", { type: "range", min: 0, max: data.frames - 1, value: 0, "aria-label": "frame" });
const told = make("output", {});
const button = make("button", { type: "button" }, "Play");
function go(t) {
  now = Math.min(data.frames - 1, Math.max(0, t));
  slider.value = now;
  told.textContent = `frame ${now} of ${data.frames - 1}: ${data.names[now]}`;
  listeners.forEach(listen => listen(now));
}
function play(on) {
  if (on && !playing) requestAnimationFrame(tick);
  playing = on;
  button.textContent = on ? "Pause" : "Play";
}
function tick(time) {
  if (!playing) return;
  if (time - before >= 100) { before = time; go((now + 1) % data.frames); }
  requestAnimationFrame(tick);
}
const seek = t => { play(false); go(t); };
button.onclick = () => play(!playing);
slider.oninput = () => seek(Number(slider.value));
const player = () => make("div", { class: "player", role: "group", "aria-label": "playback" }, button, slider, told);

/* ---- pictures: what goes in, what comes out, what came ---- */

async function colourFrames(sprite, [height, width], count) {
  const image = new Image();
  image.src = sprite.src;
  await image.decode();
  return (context, t) => context.drawImage(image, (t % sprite.columns) * width, Math.floor(t / sprite.columns) * height, width, height, 0, 0, width, height);
}
const ramp = Uint32Array.from({ length: 256 }, (_, v) => v === 255 ? rgba(128, 136, 146, 110) : rgba(...blend(INK, v / 254)));
async function picture(panel) {
  const [height, width] = panel.size;
  const canvas = make("canvas", { width, height, role: "img", "aria-label": panel.title });
  const text = make("span", {});
  if (panel.colour) {
    const draw = await colourFrames(panel.sprite, panel.size, data.frames);
    listeners.push(t => { draw(canvas.getContext("2d"), t); text.textContent = data.names[t]; });
  } else {
    const all = await frames(panel.sprite ?? data.pictures[panel.of].sprite, panel.size, data.frames);
    listeners.push(t => {
      // Behind a gap the frame so many places on is not the one so much later.
      const at = t + panel.shift, apart = data.gaps.some(g => g > t && g <= at), shown = apart ? undefined : all[at];
      paint(canvas, shown ? p => ramp[shown[p]] : () => 0);
      text.textContent = shown ? data.names[at] : apart ? "frames are missing before it" : "after the end";
    });
  }
  return make("figure", {}, canvas, make("figcaption", {}, make("b", {}, panel.title), text));
}
async function pictures() {
  const figures = await Promise.all(data.pictures.map(picture));
  const legends = data.scales.map(s => make("div", { class: "ramp" }, `${s.name} ${figure(s.low)}`, make("i", {}), `${figure(s.high)} ${s.unit} and more`));
  return make("section", {}, make("h2", {}, "Frames"), make("div", { class: "panels" }, ...figures), ...legends);
}

/* ---- lines ---- */

const STYLES = ["ours", "same", "truth"];
const flat = lines => lines.flatMap(line => line.values).filter(v => v !== null);
function lines(title, unit, given) {
  const values = flat(given);
  if (!values.length) return null;
  const low = Math.min(...values), high = Math.max(...values), room = 0.06 * (high - low) || 0.5;
  const one = chart({ title, unit, count: data.frames, low: low - room, high: high + room, seek, small: true,
                      lines: given.map((line, n) => ({ ...line, style: STYLES[n % 3] })) });
  listeners.push(one.mark);
  return one.node;
}
function charts(title, intro, groups) {
  const nodes = groups.map(group => lines(group.title, group.unit ?? "", group.lines)).filter(node => node !== null);
  return make("section", {}, make("h2", {}, title), make("p", { class: "soft" }, intro), make("div", { class: "charts channels" }, ...nodes));
}
function times() {
  const one = chart({ title: "Time a frame", unit: "ms", count: data.frames, seek, high: Math.max(1.5 * data.p99, 2 * data.p50),
                      rules: [["99%", data.p99], ["median", data.p50]].map(([name, value]) => ({ name: `${name} ${figure(value)}`, value })),
                      lines: [{ name: "this frame", style: "ours", values: data.milliseconds }] });
  listeners.push(one.mark);
  return make("section", {}, make("h2", {}, "Time"), make("div", { class: "charts" }, one.node));
}
function scores() {
  const head = ["ahead", `MAE ${data.unit}`, "MAE, last frame repeated", `CSI of ${figure(data.scores[0].threshold)} ${data.unit}`, "CSI, last frame repeated"];
  const text = value => value === null ? "–" : figure(value);
  const rows = data.scores.map(s => make("tr", {}, ...[[s.ahead], [text(s.mae), s.mae < s.mae_persistence], [text(s.mae_persistence)], [text(s.csi), s.csi > s.csi_persistence], [text(s.csi_persistence)]]
    .map(([value, better]) => make("td", better ? { class: "better" } : {}, value))));
  return make("section", {}, make("h2", {}, "Against what came"), make("p", { class: "soft" }, data.scored),
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map(t => make("th", { scope: "col" }, t)))), make("tbody", {}, ...rows))));
}
function facts() {
  return make("section", {}, make("dl", { class: "facts" }, ...data.facts.map(([name, value, note]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value), make("small", {}, note)))), player());
}

async function build() {
  document.title = `edgelstm: ${data.title}`;
  document.getElementById("title").textContent = data.title;
  document.getElementById("intro").textContent = data.intro;
  document.getElementById("machine").append(...data.machine.map(text => make("li", {}, text)));
  const parts = [facts()];
  if (data.pictures.length) parts.push(await pictures());
  if (data.signals.length) parts.push(charts("Signals", "What goes in and what comes out, element by element.", data.signals));
  if (data.scores.length) parts.push(scores());
  if (data.states.length) parts.push(charts("States", "What the model remembers: the smallest, the mean and the largest value of each state after every frame. A state that grows without end loses precision.", data.states));
  parts.push(times());
  document.getElementById("parts").append(...parts);
  document.getElementById("foot").append("Again: ", make("code", {}, data.command), ".");
  go(Number(wanted.get("frame") ?? Math.min(20, data.frames - 1)));
  document.body.dataset.ready = "yes";
}
build();

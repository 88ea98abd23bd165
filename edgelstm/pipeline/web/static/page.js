/* Keeps the page up to date: a message every second, pictures of the streams that are in view, buttons. */
"use strict";

const streams = document.getElementById("streams"), said = document.getElementById("said");
const cards = new Map();
const byField = (node, name) => node.querySelector(`[data-f="${name}"]`);
const put = (node, text) => { if (node && node.textContent !== text) node.textContent = text; };
const sum = (counts, kind) => Object.entries(counts).reduce((n, [key, value]) => key.startsWith(kind + ":") ? n + value : n, 0);
const KINDS = ["dropped", "left_out", "unpaired", "reset", "guard", "rolled_back", "undelivered", "unfilled"];

function say(text, bad = false) {
  said.textContent = text;
  said.classList.toggle("bad", bad);
  said.classList.add("on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => said.classList.remove("on"), bad ? 8000 : 3000);
}

async function call(method, path, body) {
  const given = { method, headers: {} };
  if (body !== undefined) { given.headers["content-type"] = "application/json"; given.body = JSON.stringify(body); }
  const answer = await fetch(path, given);
  const made = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(made.error ?? `${answer.status} ${answer.statusText}`);
  return made;
}

/* ---- one stream ---- */

const inView = new IntersectionObserver(entries => entries.forEach(entry => {
  const card = cards.get(entry.target.dataset.stream);
  if (card) card.seen = entry.isIntersecting;
}), { rootMargin: "100px" });

class Card {
  constructor(node, stream) {
    this.node = node;
    this.seen = true;
    this.loading = false;
    this.norms = new Map();
    this.scales = { frame: {}, output: {} };
    this.shows = stream.shows ?? "";
    this.chart = new Chart(node.querySelector(".chart"), stream.deadline);
    node.addEventListener("click", event => this.pressed(event));
    inView.observe(node);
  }

  update(stream, view) {
    this.stream = stream;
    const { node } = this, { counts } = stream;
    node.dataset.status = stream.status;
    put(byField(node, "status"), stream.status);
    put(byField(node, "why"), stream.why ?? `${stream.model} · ${stream.source}`);
    const alarms = Object.entries(stream.alarms), bells = byField(node, "alarms");
    if (bells.children.length !== alarms.length) bells.replaceChildren(...alarms.map(([name]) => make("span", {}, name)));
    alarms.forEach(([name, fired], n) => { put(bells.children[n], fired ? `${name} has fired` : name); bells.children[n].className = fired ? "fired" : ""; });
    put(byField(node, "rate"), number(stream.rate));
    put(byField(node, "step"), milliseconds(stream.step));
    put(byField(node, "age"), milliseconds(stream.age));
    put(byField(node, "queue"), stream.room ? `${stream.queue} of ${stream.room}` : String(stream.queue));
    put(byField(node, "stepped"), count(counts.stepped ?? 0));
    for (const [field, kind] of [["dropped", "dropped"], ["resets", "reset"], ["guard", "guard"]]) {
      const n = sum(counts, kind), place = byField(node, field);
      put(place, count(n));
      place.classList.toggle("warn", field === "guard" && n > 0);
    }
    put(byField(node, "reconnects"), count(stream.reconnects));
    put(byField(node, "overdue"), count(stream.overdue));
    put(byField(node, "deadline"), milliseconds(stream.deadline ?? 0));
    for (const part of node.querySelectorAll("[data-limit]")) part.hidden = stream.deadline === null;
    byField(node, "overdue").classList.toggle("warn", stream.overdue > 0);
    put(byField(node, "reasons"), Object.entries(counts).filter(([key]) => KINDS.includes(key.split(":")[0]) && key.includes(":"))
      .map(([key, n]) => `${key.split(":")[0].replace("_", " ")} ${key.slice(key.indexOf(":") + 1)} ${count(n)}`).join(" · "));
    const pause = node.querySelector('[data-do="pause"], [data-do="resume"]'), paused = stream.status === "paused";
    pause.dataset.do = paused ? "resume" : "pause";
    put(pause, paused ? "Go on" : "Pause");
    pause.classList.toggle("quiet", !paused);
    const over = ["ended", "failed"].includes(stream.status);
    for (const button of node.querySelectorAll('[data-do="pause"], [data-do="reset"]')) button.disabled = over;
    this.chart.deadline = stream.deadline;
    this.chart.add(stream.history ?? (stream.latest ? [stream.latest] : []), stream.clock);
    if (this.seen && !document.hidden) this.chart.draw();
    if (stream.states) this.states(stream.states);
    if (stream.frame) { put(byField(node, "frame-name"), stream.frame.name); put(byField(node, "output-name"), stream.output); }
    this.look();
  }

  states(found) {
    const place = byField(this.node, "states");
    let rows = place.querySelectorAll("tr");
    if (rows.length !== found.length) {
      const table = make("table", { class: "states" }, ...found.map(() => make("tr", {}, make("th", { scope: "row" }), make("td"), make("td"), make("td", { class: "soft" }))));
      place.replaceChildren(found.length > 6 ? make("details", {}, make("summary", {}, `${found.length} states`), table) : table);
      rows = place.querySelectorAll("tr");
    }
    found.forEach((state, n) => {
      const [name, norm, meter, words] = rows[n].children;
      put(name, state.name);
      put(norm, number(state.rms));
      const was = this.norms.get(state.name) ?? [];
      was.push(state.rms);
      if (was.length > 60) was.shift();
      this.norms.set(state.name, was);
      let line = rows[n].querySelector("canvas");
      if (!line) {
        line = make("canvas", { class: "spark", role: "img", "aria-label": `norm of ${state.name}, the last minute` });
        rows[n].append(make("td", {}, line));
      }
      spark(line, was);
      rows[n].classList.toggle("warn", state.bad > 0 || (state.share ?? 0) > 1);
      if (state.share === null) return put(words, state.bad ? `${state.bad} not finite` : `${number(state.least)} to ${number(state.most)}`);
      if (!meter.firstChild) meter.append(make("meter", { min: 0, max: 1.25, high: 0.9, optimum: 0.1 }));
      meter.firstChild.value = Math.min(1.25, state.share);
      put(words, `${percent(state.share)} of range`);
    });
  }

  /* Pictures are asked for only while somebody can see them, and one at a time. */
  async look() {
    const { stream, node } = this;
    if (!stream?.frame || !this.seen || document.hidden) return;
    if (stream.shows === "numbers") {
      const outputs = Object.entries(stream.numbers ?? {}).filter(([name]) => name !== "@frame");
      bars(node.querySelector("canvas.frame"), stream.numbers?.["@frame"] ?? [], this.scales.frame);
      bars(node.querySelector("canvas.output"), outputs.flatMap(([, values]) => values), this.scales.output);
      return;
    }
    if (this.loading || this.shown === stream.frame.index && stream.rate < 1.5) return;
    this.loading = true;
    this.shown = stream.frame.index;
    try {
      await Promise.all([...node.querySelectorAll("img[data-src]")].map(async place => {
        const picture = new Image();
        picture.src = `${place.dataset.src}?${Date.now()}`;
        await picture.decode();
        place.src = picture.src;
        place.classList.toggle("small", picture.naturalWidth < 200);
        place.style.aspectRatio = Math.min(2, Math.max(0.75, picture.naturalWidth / picture.naturalHeight));
      }));
    } catch { /* gone meanwhile: the next message says so */ }
    this.loading = false;
    if (stream.rate >= 1.5) { clearTimeout(this.next); this.next = setTimeout(() => this.look(), 250); }
  }

  async pressed(event) {
    const button = event.target.closest("button[data-do]");
    if (!button) return;
    const what = button.dataset.do, name = this.node.dataset.stream, section = this.node.dataset.section;
    try {
      if (what === "remove") {
        if (!await ask(`Remove ${section}?`, "Its source is read no more and its sinks are closed.")) return;
        await call("DELETE", `/api/streams/${encodeURIComponent(section)}`);
        say(`${section} is removed`);
      } else if (what === "swap") {
        const file = await ask(`Swap ${button.dataset.model}?`, "Another file takes the model's place between two frames.", true);
        if (!file) return;
        const { differs } = await call("POST", `/api/models/${encodeURIComponent(button.dataset.model)}/swap`, { path: file });
        say(`${button.dataset.model} is swapped${differs ? `; its first step differs by ${percent(differs)}` : ""}`);
      } else {
        await call("POST", `/api/streams/${encodeURIComponent(name)}/${what}`);
        say(`${name}: ${{ pause: "paused", resume: "goes on", reset: "the state began anew" }[what]}`);
      }
    } catch (error) { say(error.message, true); }
  }

  gone() { inView.unobserve(this.node); clearTimeout(this.next); this.chart.plot.destroy(); this.node.remove(); }
}

/* ---- dialogs ---- */

function ask(question, words, file = false) {
  const dialog = document.getElementById("asking"), field = dialog.querySelector("label");
  dialog.querySelector("h2").textContent = question;
  dialog.querySelector("p").textContent = words;
  field.hidden = !file;
  dialog.returnValue = "";
  dialog.showModal();
  if (file) field.querySelector("input").focus();
  return new Promise(done => dialog.addEventListener("close", () => {
    done(dialog.returnValue === "ok" && (file ? field.querySelector("input").value : true));
  }, { once: true }));
}

const adding = document.getElementById("adding");
document.getElementById("add").addEventListener("click", () => { adding.querySelector(".error").textContent = ""; adding.showModal(); });
adding.querySelector("form").addEventListener("submit", async event => {
  if (event.submitter?.value !== "ok") return;
  event.preventDefault();
  const { name, ...given } = Object.fromEntries([...new FormData(event.target)].filter(([, value]) => value));
  try {
    await call("POST", `/api/streams/${encodeURIComponent(name)}`, given);
    adding.close();
    event.target.reset();
    say(`${name} is added`);
  } catch (error) { adding.querySelector(".error").textContent = error.message; }
});
document.getElementById("reload").addEventListener("click", async () => {
  try {
    const { failed } = await call("POST", "/api/reload");
    const wrong = Object.entries(failed);
    say(wrong.length ? wrong.map(([what, why]) => `${what}: ${why}`).join("; ") : "read again", wrong.length > 0);
  } catch (error) { say(error.message, true); }
});

/* ---- all of it ---- */

async function cardOf(stream) {
  let card = cards.get(stream.name);
  if (card && card.shows !== (stream.shows ?? "") && stream.shows) { card.gone(); cards.delete(stream.name); card = undefined; }
  if (card) return card;
  let node = streams.querySelector(`[data-stream="${CSS.escape(stream.name)}"]`);
  if (!node) {
    const answer = await fetch(`/card?name=${encodeURIComponent(stream.name)}`);
    if (!answer.ok) return undefined;
    const made = make("template");
    made.innerHTML = await answer.text();
    node = made.content.firstElementChild;
    streams.append(node);
  }
  card = new Card(node, stream);
  cards.set(stream.name, card);
  return card;
}

async function show(view) {
  const names = new Set(view.streams.map(stream => stream.name));
  for (const [name, card] of [...cards]) if (!names.has(name)) { card.gone(); cards.delete(name); }
  for (const stream of view.streams) (await cardOf(stream))?.update(stream, view);
  document.getElementById("none").hidden = view.streams.length > 0;
  put(document.getElementById("uptime"), age(view.uptime));
  const all = (name, value, warn = false) => {
    const place = document.querySelector(`[data-all="${name}"]`);
    put(place, value);
    place.classList.toggle("warn", warn);
  };
  const total = pick => view.streams.reduce((n, stream) => n + pick(stream), 0);
  const running = total(s => s.status === "running"), bad = view.streams.some(s => ["lost", "failed", "silent"].includes(s.status));
  all("running", `${running} of ${view.streams.length}`, bad);
  all("rate", number(total(s => s.rate)));
  all("stepped", count(total(s => s.counts.stepped ?? 0)));
  all("dropped", count(total(s => sum(s.counts, "dropped"))));
  all("overdue", count(total(s => s.overdue)), total(s => s.overdue) > 0);
  for (const [kind, unit] of [["power", "W"], ["temperature", "°C"]]) board(kind, unit, view.board?.[kind]);
  if (view.log?.length) lines(view.log);
  const fired = view.streams.filter(s => Object.values(s.alarms).some(Boolean)).length;
  document.title = `${fired ? `(${fired}) ` : ""}${document.title.replace(/^\(\d+\) /, "")}`;
}

/* The board's hottest zone and its largest rail, where it says them. */
function board(kind, unit, found) {
  if (!found || !Object.keys(found).length) return;
  let place = document.querySelector(`[data-all="${kind}"]`);
  if (!place) {
    place = make("dd", { "data-all": kind });
    document.getElementById("facts").append(make("div", {}, make("dt", {}, kind === "power" ? "Power" : "Hottest"), place));
  }
  put(place, `${number(Math.max(...Object.values(found)))} ${unit}`);
}

const log = document.getElementById("log");
function lines(found) {
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 30;
  log.append(...found.map(line => make("li", { class: line.level }, make("time", {}, line.time.slice(11, 19)), ` ${line.message}`)));
  while (log.children.length > 200) log.firstElementChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

const link = document.getElementById("link"), pulse = document.getElementById("pulse");
const first = JSON.parse(document.getElementById("first").textContent);
let queue = show(first);
const events = new EventSource("/api/events");
events.onmessage = message => {
  link.textContent = "live";
  document.body.classList.remove("stale");
  pulse.className = "dot on";
  setTimeout(() => pulse.classList.remove("on"), 400);
  const view = JSON.parse(message.data);
  if (view.version !== first.version) location.reload(); // another release answers: its page fits it
  queue = queue.then(() => show(view));
};
events.onerror = () => {
  link.textContent = "no answer, trying again";
  pulse.className = "dot off";
  document.body.classList.add("stale"); // nothing that is old looks as if it were live
  if (events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000); // refused: perhaps it asks to log in
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const card of cards.values()) { card.chart.build(); card.chart.draw(); } });

"use strict";
// The review page. Every action becomes an event with an id of its own, goes to the outbox (localStorage) and from there
// to the server until the server has answered for it; nothing is dropped by a reload or by a server that is down.

const $ = (id) => document.getElementById(id);
const RUBRIC_KEYS = ["z", "x", "c", "v", "b"];
const AHEAD = 4; // items loaded beyond the current one
const TYPING_PAUSE = 400; // ms without a key before typed text is sent
const state = { session: null, current: null, upcoming: [], trail: [], at: -1, decisions: [], active: 0, since: 0 };
const items = new Map(); // by trace id, with what this page has changed in them

// --- talking to the server ---------------------------------------------------------------------------------------

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("review-token", given);
  history.replaceState(null, "", location.pathname);
}
const token = given || sessionStorage.getItem("review-token") || "";
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

class Refused extends Error {
  constructor(why, status) {
    super(why);
    this.status = status;
  }
}
const PASSING = (status) => status >= 500 || status === 408 || status === 429; // worth another try as it is
const UNSTORABLE = [400, 404, 413, 415, 422]; // about what was sent: sent again, it would be refused again

async function request(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const reply = await fetch(path, options); // a TypeError while the server is down
  if (PASSING(reply.status)) throw new TypeError(`status ${reply.status}`);
  if (!reply.ok) throw new Refused((await reply.json().catch(() => ({}))).error || `status ${reply.status}`, reply.status);
  return reply;
}

async function patiently(work) {
  for (let pause = 300; ; pause = Math.min(pause * 2, 4000)) {
    try {
      const result = await work();
      online(true);
      return result;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      online(false);
      await sleep(pause);
    }
  }
}

const read = (path) => patiently(async () => (await request(path)).json());

// --- the outbox --------------------------------------------------------------------------------------------------

const outbox = {
  key: "",
  connected: true,
  sending: false,
  inFlight: new Set(),
  timer: 0,
  list() { return JSON.parse(localStorage.getItem(this.key) || "[]"); },
  keep(events) { localStorage.setItem(this.key, JSON.stringify(events)); },
};

function record(kind, trace, value, extra = {}) {
  const typed = kind === "note" || kind === "edit";
  let events = outbox.list();
  if (typed) {
    events = events.filter((e) => e.kind !== kind || e.trace !== trace || outbox.inFlight.has(e.id));
  }
  const event = { id: newId(), trace, kind, value, ...extra };
  outbox.keep([...events, event]);
  clearTimeout(outbox.timer);
  outbox.timer = setTimeout(flush, typed ? TYPING_PAUSE : 0);
  showSaved();
  return event.id;
}

async function flush() {
  if (outbox.sending) return;
  outbox.sending = true;
  try {
    for (let events = outbox.list(); events.length; events = outbox.list()) await send(events.slice(0, 100));
  } catch (error) {
    say(error.message);
  } finally {
    outbox.sending = false;
    showSaved();
  }
}

async function send(events) {
  outbox.inFlight = new Set(events.map((e) => e.id));
  let answer;
  try {
    answer = await patiently(async () => (await request("/api/events", { events })).json());
  } catch (error) {
    if (!UNSTORABLE.includes(error.status)) throw error;
    return sendSingly(events, error);
  } finally {
    outbox.inFlight.clear();
  }
  forget(answer.results.map((r) => r.id));
  showProgress(answer.progress);
  showSaved();
  for (const result of answer.results) if (result.result === "refused") refused(events.find((e) => e.id === result.id), result.why);
}

// One event that cannot be stored must not hold the others back, nor be sent for ever: it is named and let go.
async function sendSingly(events, error) {
  if (events.length > 1) {
    for (const event of events) await send([event]);
    return;
  }
  forget([events[0].id]);
  refused(events[0], error.message);
}

function forget(ids) {
  const gone = new Set(ids);
  outbox.keep(outbox.list().filter((e) => !gone.has(e.id)));
}

function refused(event, why) {
  say(`Not saved (${event.kind}): ${why}`);
  if (event.kind !== "verdict") return;
  state.decisions = state.decisions.filter((d) => d.id !== event.id);
  const item = items.get(event.trace);
  if (item) item.draft.verdict = null;
  visit(event.trace);
}

function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// --- moving between traces ---------------------------------------------------------------------------------------

const pendingTraces = () => outbox.list().map((e) => e.trace);
const same = (item, other) => item && other && item.id === other.id;

async function refill(count = AHEAD - state.upcoming.length) {
  const held = [state.current, ...state.upcoming].filter(Boolean).map((item) => item.id);
  const holding = [...new Set([...held, ...pendingTraces()])].join(",");
  const answer = await read(`/api/queue?count=${Math.max(0, count)}&holding=${encodeURIComponent(holding)}`);
  showProgress(answer.progress);
  for (const item of answer.items) {
    if (state.upcoming.some((other) => same(item, other)) || same(item, state.current)) continue;
    items.set(item.id, item);
    state.upcoming.push(item);
    loadImages(item);
  }
}

let refilling = null;
function refillSoon() {
  if (!refilling && state.upcoming.length < AHEAD - 1) refilling = refill().finally(() => { refilling = null; });
  return refilling;
}

async function advance() {
  const last = items.get(state.trail[state.trail.length - 1]);
  const waiting = last && !last.draft.verdict && !last.put_off && !same(last, state.current);
  if (waiting) return show(last);
  if (!state.upcoming.length) {
    leave();
    await (refilling || refill());
  }
  const next = state.upcoming.shift();
  if (!next) return nothingLeft();
  show(next);
  refillSoon();
}

async function visit(id) {
  if (!items.has(id)) {
    leave();
    items.set(id, await read(`/api/item?trace=${encodeURIComponent(id)}`));
  }
  show(items.get(id));
}

function step(by) {
  const at = (state.current ? state.at : state.trail.length) + by;
  if (at < 0) return say("This is the first one.");
  if (at < state.trail.length) return visit(state.trail[at]);
  const current = state.current;
  if (current && !current.draft.verdict && !current.put_off) return say("Decide, or put it off with s.");
  return advance();
}

function leave() {
  state.current = null;
  $("main").setAttribute("aria-busy", "true");
}

function show(item) {
  state.current = item;
  state.upcoming = state.upcoming.filter((other) => !same(item, other));
  state.at = state.trail.indexOf(item.id);
  if (state.at < 0) state.at = state.trail.push(item.id) - 1;
  state.active = 0;
  state.since = performance.now();
  item.put_off = false;
  record("opened", item.id, {});
  draw(item);
}

function seconds() {
  const running = document.hidden ? 0 : performance.now() - state.since;
  return Math.round((state.active + running) / 10) / 100;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) state.active += performance.now() - state.since;
  state.since = performance.now();
  if (document.hidden) flush();
});

// --- what a reviewer does ----------------------------------------------------------------------------------------

const edited = (item) => item.draft.text !== null && item.draft.text.trim() !== item.trace.trim();

async function accept() {
  const item = state.current;
  if (edited(item)) {
    if (outbox.connected) await check(item);
    if (state.current !== item) return;
    if (item.problems.length) return say(`The edited trace does not pass: ${item.problems[0]}`);
  }
  decide(item, "accept");
}

function reject() {
  if (!state.current.draft.reasons.length) return say("Mark a reason first: keys 1 to 9.");
  decide(state.current, "reject");
}

function decide(item, kind) {
  const id = record("verdict", item.id, { kind }, { seconds: seconds() });
  item.draft.verdict = { kind: kind === "accept" && edited(item) ? "edit" : kind, id };
  state.decisions.push({ trace: item.id, id });
  advance();
}

function undo() {
  const last = state.decisions.pop();
  if (!last) return say("There is no verdict to undo.");
  record("undo", last.trace, { verdict: last.id });
  const item = items.get(last.trace);
  if (item) item.draft.verdict = null;
  visit(last.trace);
}

function putOff() {
  state.current.put_off = true;
  record("skip", state.current.id, {});
  advance();
}

function toggleReason(index) {
  const { draft, id } = state.current;
  const reason = state.session.reasons[index];
  if (!reason) return;
  const on = !draft.reasons.includes(reason.code);
  draft.reasons = on ? [...draft.reasons, reason.code] : draft.reasons.filter((code) => code !== reason.code);
  record("reason", id, { code: reason.code, on });
  drawReasons();
}

function toggleRubric(index) {
  const { draft, rubric, id } = state.current;
  if (!rubric[index]) return;
  const code = rubric[index].code;
  const met = { undefined: true, true: false, false: null }[draft.rubric[code]];
  if (met === null) delete draft.rubric[code];
  else draft.rubric[code] = met;
  record("rubric", id, { criterion: code, met });
  drawRubric();
}

function turnPage(by) { // of the case, which does not have the focus; Space scrolls the trace, which has it
  const box = $("case").scrollHeight > $("case").clientHeight ? $("case") : $("main");
  box.scrollBy({ top: by * 0.8 * box.clientHeight });
}

function toggleEditor() {
  const open = $("editor-box").hidden;
  showEditor(open);
  if (open) $("editor").focus();
  else $("trace-heading").focus({ preventScroll: true });
}

let checking = 0;
function typed(text) {
  const item = state.current;
  item.draft.text = text === item.trace ? null : text;
  record("edit", item.id, { text: item.draft.text });
  drawTrace();
  clearTimeout(checking);
  checking = setTimeout(() => check(item), TYPING_PAUSE);
}

async function check(item) {
  clearTimeout(checking);
  const text = item.draft.text ?? item.trace;
  try {
    const answer = await (await request("/api/check", { trace: item.id, text })).json();
    item.problems = answer.problems;
    if (same(item, state.current)) drawCheck();
  } catch (error) {
    if (!(error instanceof TypeError)) say(error.message);
  }
}

// --- drawing -----------------------------------------------------------------------------------------------------

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function draw(item) {
  $("main").hidden = $("bar").hidden = false;
  $("empty").hidden = $("message").hidden = true;
  $("main").removeAttribute("aria-busy");
  $("main").dataset.trace = item.id;
  $("question").textContent = item.question;
  $("specialty").textContent = [item.specialty, ...item.flags].filter(Boolean).join(" · ");
  $("options").replaceChildren(...item.options.map((option) => drawOption(option, item.answer)));
  $("explanation-box").hidden = !item.explanation;
  $("explanation-box").open = false;
  $("explanation").textContent = item.explanation;
  $("paradigm").textContent = item.paradigm.title;
  $("definition").textContent = item.paradigm.definition;
  $("origin").textContent = item.teacher ? `${item.teacher}${item.judge === null ? "" : `, judge ${item.judge}`}` : "";
  $("note").value = item.draft.note;
  $("editor").value = item.draft.text ?? item.trace;
  showEditor(edited(item));
  drawVerdict(item);
  drawTrace();
  drawCheck();
  drawReasons();
  drawRubric();
  drawReviews(item);
  viewer.open(item);
  for (const section of document.querySelectorAll("main, main > section")) section.scrollTop = 0;
  $("trace-heading").focus({ preventScroll: true });
}

function drawOption(option, answer) {
  const line = element("li");
  line.append(element("span", option.letter, { class: "letter" }), element("span", option.text));
  if (option.letter === answer) {
    line.className = "answer";
    line.append(element("span", "✓ answer of the trace", { class: "mark" }));
  }
  return line;
}

function drawVerdict(item) {
  const verdict = item.draft.verdict;
  $("verdict-badge").hidden = !verdict;
  if (verdict) $("verdict-badge").textContent = { accept: "accepted", edit: "accepted with edit", reject: "rejected" }[verdict.kind];
}

function drawTrace() {
  const item = state.current;
  const parts = edited(item) ? difference(item.trace, item.draft.text) : [["same", item.trace]];
  const lines = [];
  let line = null;
  const start = (number) => {
    line = element("span", "", { class: "text" });
    const row = element("li");
    if (number) row.append(element("span", number, { class: "number" }));
    row.append(line);
    lines.push(row);
  };
  for (const [kind, text] of parts) {
    for (const piece of text.split(/(\(\d+\)\s*)/)) {
      if (/^\(\d+\)\s*$/.test(piece) && kind !== "del") start(piece.trim());
      else if (piece) {
        if (!line) start("");
        line.append(kind === "same" ? piece : element(kind, piece));
      }
    }
  }
  $("trace").replaceChildren(...lines);
}

function difference(before, after) {
  const [a, b] = [before, after].map((text) => text.match(/\s*\S+/g) || []);
  if (a.length * b.length > 1e6) return [["del", before], ["ins", after]];
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const parts = [];
  const put = (kind, text) => {
    const last = parts[parts.length - 1];
    if (last && last[0] === kind) last[1] += text;
    else parts.push([kind, text]);
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { put("same", a[i++]); j++; }
    else if (j === b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) put("del", a[i++]);
    else put("ins", b[j++]);
  }
  return parts;
}

function drawCheck() {
  const { problems } = state.current;
  $("check").className = problems.length ? "check fails" : "check";
  const passes = `✓ ${state.current.paradigm.title}: structure found, the parser reads ${state.current.answer}`;
  $("check").textContent = problems.length ? `✗ ${problems.join(" ")}` : passes;
}

function drawReasons() {
  state.session.reasons.forEach((reason, index) => {
    $("reasons").children[index].setAttribute("aria-pressed", state.current.draft.reasons.includes(reason.code));
  });
}

function drawRubric() {
  const { rubric, draft } = state.current;
  const lines = rubric.map((criterion, index) => {
    const met = draft.rubric[criterion.code];
    const word = { undefined: "–", true: "✓ met", false: "✗ not met" }[met];
    const button = element("button", "", { type: "button", class: { undefined: "", true: "met", false: "unmet" }[met] });
    button.append(element("kbd", RUBRIC_KEYS[index]), element("span", word, { class: "state" }), element("span", criterion.text));
    button.addEventListener("click", () => toggleRubric(index));
    const line = element("li");
    line.append(button);
    return line;
  });
  $("rubric").replaceChildren(...lines);
}

function drawReviews(item) {
  $("reviews-box").hidden = !item.reviews || !item.reviews.length;
  $("reviews").replaceChildren(...(item.reviews || []).map((review, index) => drawReview(item, review, index)));
}

function drawReview(item, review, index) {
  const box = element("article");
  const head = element("div");
  const verdict = { accept: "accepts", edit: "accepts with an edit", reject: "rejects" }[review.kind];
  head.append(element("strong", `${review.name || `Reviewer ${index + 1}`} ${verdict}`), element("span", review.reasons.join(", ")));
  box.append(head);
  const unmet = item.rubric.filter((criterion) => review.rubric[criterion.code] === false).map((c) => c.text);
  if (unmet.length) box.append(element("p", `Not met: ${unmet.join("; ")}`));
  if (review.note) box.append(element("p", `“${review.note}”`));
  if (review.text) {
    const text = element("p");
    for (const [kind, part] of difference(item.trace, review.text)) text.append(kind === "same" ? part : element(kind, part));
    const use = element("button", "Take over this text", { type: "button" });
    use.addEventListener("click", () => {
      $("editor").value = review.text;
      showEditor(true);
      typed(review.text);
    });
    box.append(text, use);
  }
  return box;
}

function showEditor(open) {
  $("editor-box").hidden = !open;
  $("edit-button").setAttribute("aria-expanded", open);
}

function showProgress(progress) {
  if (!progress) return;
  const { verdicts, required, mine, conflict, eta } = progress;
  $("progress").max = Math.max(1, required);
  $("progress").value = verdicts;
  const parts = [`${verdicts} of ${required} verdicts`, `${mine} by you`];
  if (conflict) parts.push(`${conflict} to adjudicate`);
  if (eta !== null && verdicts < required) parts.push(`about ${duration(eta)} left`);
  $("progress-text").textContent = parts.join(" · ");
}

function duration(seconds) {
  const minutes = Math.ceil(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function online(connected) {
  outbox.connected = connected;
  showSaved();
}

function showSaved() {
  const unsent = outbox.key ? outbox.list().length : 0;
  const offline = !outbox.connected;
  const text = offline ? `Server away, ${unsent} unsent` : unsent ? "Saving …" : "Saved";
  if ($("saved").textContent === text) return;
  $("saved").textContent = text;
  $("saved").className = `saved${offline ? " offline" : unsent ? " waiting" : ""}`;
}

let silence = 0;
function say(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  clearTimeout(silence);
  silence = setTimeout(() => { $("message").hidden = true; }, 6000);
}

function stop(title, text) {
  $("main").hidden = $("bar").hidden = true;
  $("empty").hidden = false;
  $("empty-actions").hidden = !state.session;
  $("help-button").hidden = !state.session;
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
  $("empty-title").focus();
}

function nothingLeft() {
  leave();
  const adjudicator = state.session.role === "adjudicator";
  const text = adjudicator ? "Traces on which reviewers differ appear here by themselves." : "Traces that come free appear here by themselves.";
  stop(adjudicator ? "Nothing to adjudicate" : "Nothing waits for you", text);
}

// --- images ------------------------------------------------------------------------------------------------------

const NEAR = 3; // images loaded before and behind the one that is shown
const STACK = 8; // from so many on they are slices of one volume: a slider, the wheel turns, zoom and window stay
const HELD = 40; // encoded files that are kept; what is decoded of them is drawn on the one canvas and let go at once
const pictures = new Map(); // "trace/index/window" -> promise of a file, and of the window that it shows

function picture(id, index, window = "") {
  const key = `${id}/${index}/${window}`;
  if (!pictures.has(key)) {
    const path = `/api/image?trace=${encodeURIComponent(id)}&index=${index}${window && `&window=${window}`}`;
    pictures.set(key, patiently(async () => {
      const reply = await request(path);
      return { file: await reply.blob(), window: reply.headers.get("X-Window") };
    }));
    if (pictures.size > HELD) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(key);
}

function loadImages(item, around = 0, window = "") { // those next to come: a volume has hundreds
  const last = Math.min(item.images - 1, around + NEAR);
  for (let index = Math.max(0, around - NEAR); index <= last; index++) picture(item.id, index, window).catch(() => {});
}

const viewer = {
  item: null, index: 0, scale: 1, x: 0, y: 0, pointers: new Map(),
  wish: "", // window that was asked for, "centre,width"; "": as the file has it
  grey: null, // [centre, width] that is shown or was asked for; null for plain pictures, which the browser shades
  stale: false, drawing: "", // what is being drawn: a case's picture, or a volume; "" between two
  open(item) {
    this.item = item;
    $("viewer").hidden = !item.images;
    if (!item.images) return;
    const count = item.images > 1 && !this.stacked() ? item.images : 0;
    const films = Array.from({ length: count }, (_, index) => {
      const button = element("button", String(index + 1), { type: "button", "aria-label": `Image ${index + 1} of ${item.images}` });
      button.addEventListener("click", () => this.turn(index));
      return button;
    });
    $("films").replaceChildren(...films);
    $("slices").hidden = !this.stacked();
    $("slice").max = item.images;
    this.reset();
    this.turn(this.stacked() ? Math.floor(item.images / 2) : 0);
  },
  stacked() { return this.item.images >= STACK; },
  turn(index) {
    const item = this.item;
    if (!item || index < 0 || index >= item.images) return undefined;
    this.index = index;
    $("stage").setAttribute("aria-label", `Image ${index + 1} of ${item.images} of the case`);
    if (this.stacked()) {
      $("slice").value = index + 1;
      $("slice-number").textContent = `${index + 1} / ${item.images}`;
    } else {
      this.reset();
      [...$("films").children].forEach((button, i) => button.setAttribute("aria-pressed", i === index));
      $("image").width = 0; // nothing of the one before
    }
    return this.draw();
  },
  async draw() { // one at a time, then the newest wish: a drag or a held key asks for no more than can be shown
    if (!this.item?.images) return;
    this.stale = true;
    const what = this.stacked() ? this.item.id : `${this.item.id}/${this.index}`;
    if (this.drawing === what) return;
    this.drawing = what; // another case does not wait for a picture that does not come while the server is away
    while (this.stale && this.drawing === what) {
      this.stale = false;
      await this.paint(this.item, this.index, this.wish).catch((error) => say(error.message));
    }
    if (this.drawing !== what) return;
    this.drawing = "";
    loadImages(this.item, this.index, this.wish);
  },
  async paint(item, index, wish) {
    const { file, window } = await picture(item.id, index, wish);
    const decoded = await createImageBitmap(file, { colorSpaceConversion: "none" }); // as the decoder: no profiles
    const canvas = $("image");
    if (same(item, this.item) && (this.stacked() || index === this.index)) {
      if (canvas.width !== decoded.width) canvas.width = decoded.width;
      if (canvas.height !== decoded.height) canvas.height = decoded.height;
      canvas.getContext("2d", { alpha: false, willReadFrequently: true }).drawImage(decoded, 0, 0);
      Object.assign(canvas.dataset, { shown: index + 1, window: window || "" });
      if (wish === this.wish) this.showGrey(window && window.split(",").map(Number));
    }
    decoded.close();
  },
  reset() {
    Object.assign(this, { scale: 1, x: 0, y: 0, wish: "", grey: null });
    $("brightness").value = $("contrast").value = 100;
    this.apply();
  },
  showGrey(values) { // fields of window and level, or sliders where there are no values beyond what is shown
    this.grey = values;
    for (const label of document.querySelectorAll(".grey")) label.hidden = !values;
    for (const label of document.querySelectorAll(".plain")) label.hidden = Boolean(values);
    ["level", "width"].forEach((id, i) => {
      if (values && document.activeElement !== $(id)) $(id).value = Number(values[i].toPrecision(6));
    });
  },
  ask(centre, width) { // the server's decoder renders the slice under this window
    if (!Number.isFinite(centre) || !(width > 0)) return undefined;
    const values = [centre, width].map((value) => Number(value.toPrecision(6)));
    this.wish = values.join(",");
    this.showGrey(values);
    return this.draw();
  },
  shade(brighter, steeper) { // in percent
    if (this.grey) {
      const [centre, width] = this.grey;
      const one = width > 1 ? 1 : 0; // DICOM's linear function goes from black to white in width - 1
      const span = width - one || 1;
      return this.ask(centre - (span * brighter) / 200, one + span * Math.exp(-steeper / 100));
    }
    $("brightness").value = Number($("brightness").value) + brighter;
    $("contrast").value = Number($("contrast").value) + steeper;
    return this.apply();
  },
  zoom(factor, x = 0, y = 0) { // about a point, in pixels from the centre of the stage
    const scale = Math.min(16, Math.max(1, this.scale * factor));
    this.x = x - (x - this.x) * (scale / this.scale);
    this.y = y - (y - this.y) * (scale / this.scale);
    this.scale = scale;
    this.apply();
  },
  pan(x, y) {
    this.x += x;
    this.y += y;
    this.apply();
  },
  apply() {
    const { clientWidth: width, clientHeight: height } = $("stage");
    const [roomX, roomY] = [width, height].map((size) => (size * (this.scale - 1)) / 2);
    this.x = Math.min(roomX, Math.max(-roomX, this.x));
    this.y = Math.min(roomY, Math.max(-roomY, this.y));
    $("image").style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    $("image").style.filter = `brightness(${$("brightness").value}%) contrast(${$("contrast").value}%)`;
    $("zoom").textContent = `${Math.round(this.scale * 100)} %`;
  },
  point(event) {
    const box = $("stage").getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  },
  move(event) {
    if (!this.pointers.has(event.pointerId)) return;
    const before = [...this.pointers.values()];
    const old = this.pointers.get(event.pointerId);
    const now = this.point(event);
    this.pointers.set(event.pointerId, now);
    const [right, down] = [now[0] - old[0], now[1] - old[1]];
    // as radiologists drag: to the right for a wider window, down for a higher level
    if (before.length === 1 && (event.shiftKey || event.buttons === 2)) return void this.shade(-down / 2, -right / 2);
    if (before.length === 1) return this.pan(right, down);
    const other = before.find((point) => point !== old);
    const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    this.zoom(spread(now) / spread(old), (old[0] + other[0]) / 2, (old[1] + other[1]) / 2);
    this.pan((now[0] - old[0]) / 2, (now[1] - old[1]) / 2); // what was between the fingers stays between them
  },
};

function listenToStage() {
  const stage = $("stage");
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (viewer.stacked() && !event.ctrlKey) return void viewer.turn(viewer.index + Math.sign(event.deltaY));
    viewer.zoom(Math.exp(-event.deltaY / 300), ...viewer.point(event));
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    viewer.pointers.set(event.pointerId, viewer.point(event));
  });
  stage.addEventListener("pointermove", (event) => viewer.move(event));
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => viewer.pointers.delete(event.pointerId));
  }
  // A finger that is lifted in motion would begin a fling, and a browser takes the next tap, wherever it falls, as its end.
  stage.addEventListener("touchmove", (event) => event.preventDefault(), { passive: false });
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  $("slice").addEventListener("input", () => viewer.turn(Number($("slice").value) - 1));
  stage.addEventListener("dblclick", (event) => viewer.zoom(viewer.scale > 1 ? 0 : 3, ...viewer.point(event)));
  for (const slider of ["brightness", "contrast"]) $(slider).addEventListener("input", () => viewer.apply());
  for (const id of ["level", "width"]) {
    $(id).addEventListener("input", () => viewer.ask($("level").valueAsNumber, $("width").valueAsNumber));
  }
}

// --- keys --------------------------------------------------------------------------------------------------------

const ANYWHERE = { k: () => step(-1), u: undo, "?": () => $("help").showModal() };
const ON_TRACE = {
  a: accept, r: reject, s: putOff, e: toggleEditor, n: () => $("note").focus(), j: () => step(1),
  PageDown: () => turnPage(1), PageUp: () => turnPage(-1),
  "+": () => viewer.zoom(1.25), "=": () => viewer.zoom(1.25), "-": () => viewer.zoom(0.8), 0: () => { viewer.reset(); return viewer.draw(); },
  "[": () => viewer.shade(-10, 0), "]": () => viewer.shade(10, 0),
  "{": () => viewer.shade(0, -10), "}": () => viewer.shade(0, 10),
  ",": () => viewer.turn(viewer.index - 1), ".": () => viewer.turn(viewer.index + 1),
  ArrowLeft: () => viewer.pan(40, 0), ArrowRight: () => viewer.pan(-40, 0),
  ArrowUp: () => viewer.pan(0, 40), ArrowDown: () => viewer.pan(0, -40),
};
RUBRIC_KEYS.forEach((key, index) => { ON_TRACE[key] = () => toggleRubric(index); });
for (let digit = 1; digit <= 9; digit++) ON_TRACE[digit] = () => toggleReason(digit - 1);
const REPEATING = new Set([",", ".", "PageDown", "PageUp", "+", "=", "-", "[", "]", "{", "}", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);

function act(key) {
  const action = ANYWHERE[key] || (state.current && ON_TRACE[key]);
  if (action) Promise.resolve(action()).catch((error) => say(error.message));
  return Boolean(action);
}

function onKey(event) {
  if (!state.session || $("help").open) return;
  const { target, key } = event;
  if (target === $("editor") || target === $("note") || target.type === "number") {
    const done = target === $("editor") && key === "Enter" && (event.ctrlKey || event.metaKey);
    if (key === "Escape" || done || (target !== $("editor") && key === "Enter")) {
      event.preventDefault();
      $("trace-heading").focus({ preventScroll: true });
      if (done) act("a");
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || (event.repeat && !REPEATING.has(key))) return;
  const arrow = key.startsWith("Arrow");
  if (arrow && (target.type === "range" || $("viewer").hidden || (viewer.scale === 1 && target !== $("stage")))) return;
  if (act(key)) event.preventDefault();
}

function listen() {
  document.addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll("[data-key]")) button.addEventListener("click", () => act(button.dataset.key));
  $("editor").addEventListener("input", () => typed($("editor").value));
  $("revert").addEventListener("click", () => {
    $("editor").value = state.current.trace;
    typed(state.current.trace);
    $("editor").focus();
  });
  $("note").addEventListener("input", () => {
    state.current.draft.note = $("note").value;
    record("note", state.current.id, { text: $("note").value });
  });
  state.session.reasons.forEach((reason, index) => {
    const button = element("button", "", { type: "button", "aria-pressed": "false" });
    button.append(element("kbd", String(index + 1)), ` ${reason.text}`);
    button.addEventListener("click", () => state.current && toggleReason(index));
    $("reasons").append(button);
  });
  listenToStage();
}

// --- start -------------------------------------------------------------------------------------------------------

async function stayInTouch() {
  for (;;) {
    await sleep(state.current ? 60000 : 8000); // keeps what is loaded ours, and looks for work where there is none
    await refill().catch((error) => say(error.message));
    if (!state.current && state.upcoming.length && !$("empty").hidden) advance();
  }
}

async function start() {
  try {
    state.session = await read("/api/session");
  } catch (error) {
    return stop("No entry", `The server says: ${error.message}.`);
  }
  const { name, role, review } = state.session;
  outbox.key = `review:${review}:${role}:${name}`;
  $("who").textContent = role === "adjudicator" ? `${name}, adjudicating` : name;
  document.title = `Trace review: ${name}`;
  listen();
  await flush();
  const past = await read("/api/history");
  state.trail = past.map((entry) => entry.id);
  state.decisions = past.filter((entry) => entry.verdict).map((entry) => ({ trace: entry.id, id: entry.verdict }));
  await refill();
  await advance();
  stayInTouch();
}

start();

// The page of a model. The model itself is in the worker: ask(name, given) gives its answer.
const RECORD = 10;  // candidates on display
const LONGEST = 4000;  // tokens; then it pauses
const FRAME = 33;  // milliseconds from drawing to drawing when it writes as fast as it can
const PARTS = 300;  // parts of a text that are cut in one go
let model, tokenizer;  // what the file says about the model
let view = "write";

// === the worker ======================================================================================================

// It starts while the browser still reads the weights, which are the end of the page.
const worker = new Worker(URL.createObjectURL(new Blob([byId("gpt").textContent, byId("worker").textContent], {type: "text/javascript"})));
worker.onmessage = receive;
const waiting = new Map();  // id -> {resolve, reject, progress}
let requests = 0;

function ask(name, given, progress = () => {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++requests, {resolve, reject, progress});
    worker.postMessage({id: requests, name, given});
  });
}

function receive({data}) {
  const request = waiting.get(data.id);
  if ("progress" in data) return request.progress(data.progress);
  waiting.delete(data.id);
  if ("error" in data) request.reject(new Error(data.error));
  else request.resolve(data.result);
}

function fail(message) {
  byId("alert").textContent = message;
  byId("alert").hidden = false;
}

// === tokens as text ==================================================================================================

const VISIBLE = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍"};
const known = new Map();

// As model/tokenization/display.py shows a token: visible white space, and hex for bytes that are no whole characters.
function textOf(id) {
  if (!known.has(id)) known.set(id, readable(tokenizer.tokenBytes(id)));
  return known.get(id);
}

function readable(bytes) {
  try {
    const text = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes);
    return Array.from(text, (c) => VISIBLE[c] ?? (/[\p{C}\p{Z}]/u.test(c) ? escaped(c) : c)).join("");
  } catch {
    return Array.from(bytes, (byte) => `<${byte.toString(16).padStart(2, "0")}>`).join("");
  }
}

function escaped(c) {
  const code = c.codePointAt(0), hex = code.toString(16);
  return code < 0x100 ? "\\x" + hex.padStart(2, "0") : code < 0x10000 ? "\\u" + hex.padStart(4, "0") : "\\U" + hex.padStart(8, "0");
}

function level(bits) {  // as surprise_level() in model/tokenization/display.py
  return [1, 2, 4, 8, 12].filter((border) => bits >= border).length;
}

// The text that each token adds, one after the other. A character whose bytes are in several tokens comes with the last.
class TextStream {
  decoder = new TextDecoder("utf-8", {ignoreBOM: true});
  take = (id) => this.decoder.decode(tokenizer.tokenBytes(id), {stream: true});
}

// A text in parts, such as tokens: an element for each line, so that the browser lays out again only lines that change,
// and in it an element for each part of that line.
class TextInParts {
  parts = [];
  lines = [];  // {first, texts}: the first part in it, and what it has of that part and the following ones

  constructor(box) {
    this.box = box;
  }

  // Show these parts instead, and return the first one whose element may be new and has no class yet.
  show(parts) {
    const [same] = equalEnds(this.parts, parts);
    this.lines = same ? this.lines.filter(({first}) => first < same) : [{first: 0, texts: []}];
    const redone = this.lines.length - 1, {first, texts} = this.lines[redone];
    this.lines[redone] = {first, texts: texts.slice(0, same - first)};
    for (let i = same; i < parts.length; i++) parts[i].split("\n").forEach((text, k) => {
      if (k) this.lines.push({first: i, texts: []});
      this.lines.at(-1).texts.push(text);
    });
    this.parts = parts;
    for (const line of this.lines.slice(redone)) line.key = JSON.stringify(line.texts);
    update(this.box, "div", this.lines.map(({key}) => key), (line, i) => {
      const {texts} = this.lines[i];
      update(line, "span", texts, (span, k) => {
        span.textContent = texts[k];
        span.className = "";
      });
    });
    return first;
  }

  // Give the elements of the parts from `first` to `end` the classes that classOf(part) says.
  mark(first, end, classOf) {
    this.lines.forEach(({first: own, texts}, i) => {
      if (own >= end || own + texts.length <= first) return;
      const spans = this.box.children[i].children;
      for (let part = Math.max(first, own); part < Math.min(end, own + texts.length); part++) {
        const span = spans[part - own], name = classOf(part);
        if (span.className !== name) span.className = name;
      }
    });
  }

  partOf(span) {  // the number of the part that an element shows
    const line = Array.prototype.indexOf.call(this.box.children, span.parentNode);
    return line < 0 ? -1 : this.lines[line].first + Array.prototype.indexOf.call(span.parentNode.children, span);
  }
}

// How many of two lists are equal at the start, and how many of the others at the end
function equalEnds(a, b) {
  const n = Math.min(a.length, b.length);
  let head = 0, tail = 0;
  while (head < n && a[head] === b[head]) head++;
  while (tail < n - head && a.at(-1 - tail) === b.at(-1 - tail)) tail++;
  return [head, tail];
}

// Give a box one child for each key. Children at both ends whose keys are the same stay as they are; fill(child, i) is
// called for the others.
function update(box, tag, keys, fill) {
  const old = box.keys ?? [], [head, tail] = equalEnds(old, keys);
  for (let i = keys.length; i < old.length; i++) box.children[head].remove();
  const after = box.children[head] ?? null;
  for (let i = old.length; i < keys.length; i++) box.insertBefore(document.createElement(tag), after);
  for (let i = head; i < keys.length - tail; i++) fill(box.children[i], i);
  box.keys = keys;
}

// === write ===========================================================================================================

let promptIds = [], steps = [], upcoming = null;  // the steps taken, and the one that would come next
let asked = 0;  // how many steps were asked for: only the last one counts
let texts;  // the TextStream of the steps
let shown = 0;  // the step on display; steps.length is the one that would come next
let marked = 0;  // the step that is marked in the text
let drawn = null;  // {step, at}: the one whose candidates are drawn, and how many tokens come before it
let playing = null;  // while it writes: an object that stands for this play()
let seed = "0", ended = false, paper;

const written = () => [...promptIds, ...steps.map(({token}) => token)];
const sampling = () => Object.fromEntries(Object.keys(model.sampling).map((name) => [name, Number(byId(name).value)]));
const endsText = (id) => tokenizer.kind !== "none" && id === tokenizer.end_of_text_id;

// Compute the step that would come next, with the settings of now. False if something newer came in between.
async function prepare() {
  const mine = ++asked;
  upcoming = null;
  const step = promptIds.length && await ask("step", {ids: written(), prompt: promptIds.length, seed, sampling: sampling(), show: RECORD});
  if (!step || mine !== asked) return false;
  upcoming = step;
  return true;
}

function append(step) {
  asked++;  // what comes now would come after other tokens
  upcoming = null;
  ended = endsText(step.token);
  steps.push({...step, text: ended ? "end of the document" : texts.take(step.token)});
}

function cut(count) {  // keep so many steps
  steps.length = count;
  ended = false;
  if (drawn?.at > count) drawn = null;
  texts = new TextStream();
  for (const {token} of steps) texts.take(token);
}

function drawPaper() {
  const first = paper.show([byId("prompt").value, ...steps.map(({text}) => text)]);
  for (const [from, end] of [[first, steps.length + 1], [marked + 1, marked + 2], [shown + 1, shown + 2]]) {
    paper.mark(from, end, (part) => {
      if (!part) return "given";
      const {token, p} = steps[part - 1];
      return (endsText(token) ? "end" : "l" + level(-Math.log2(p))) + (part - 1 === shown ? " here" : "");
    });
  }
  marked = shown;
}

async function startOver() {
  playing = null;
  const text = byId("prompt").value;
  let ids, note = "";
  try {
    ids = await ask("encode", {text});
  } catch (error) {
    byId("prompt-note").textContent = error.message;
    return;
  }
  const {block_size} = model.architecture;
  if (ids.length > block_size) note = `The prompt has ${ids.length.toLocaleString("en")} tokens. The model sees ${block_size}: the last ${block_size} count.`;
  if (ids.includes(tokenizer.unknown_id)) note += " Some of its characters were never seen in training.";
  if (tokenizer.kind === "bpe" && text.endsWith(" ")) note += " It ends with a space, which a BPE token usually includes: better leave it out.";
  byId("prompt-note").textContent = note.trim();
  promptIds = ids.slice(-block_size);
  if (!promptIds.length) promptIds = [tokenizer.end_of_text_id];
  drawn = null;
  cut(0);
  await preview();
}

async function preview() {  // the next step, while it does not write
  shown = steps.length;
  if (await prepare()) showStep();
}

async function play() {
  if (playing || ended || !promptIds.length) return pause();
  const mine = playing = {}, start = performance.now(), before = steps.length;
  let due = start, frame = start;  // when the next token is due, and when was the last drawing
  showStep();
  while (playing === mine && !ended && steps.length < LONGEST) {
    if (!upcoming && !await prepare()) continue;
    if (playing !== mine) break;
    append(upcoming);
    shown = steps.length - 1;
    const rate = Number(byId("speed").value), next = rate || ended ? null : prepare();  // computed while this one is drawn
    const now = performance.now(), seconds = (now - start) / 1000;
    byId("pace").textContent = seconds > 0.5 ? `${Math.round((steps.length - before) / seconds)} tokens per second` : "";
    if (rate || now - frame > FRAME) {
      showStep();
      frame = now;
    }
    due = rate ? Math.max(now, due + 1000 / rate) : now;
    if (rate) await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
    await next;
  }
  if (playing && playing !== mine) return;  // another one has begun meanwhile
  pause();
}

function pause() {
  playing = null;
  showStep();
}

async function one() {
  playing = null;
  if (ended || (!upcoming && !await prepare())) return;
  append(upcoming);
  await preview();
}

async function back(count) {
  playing = null;
  cut(Math.max(0, count));
  await preview();
}

async function branch(id) {  // go on with another candidate of the step that is drawn
  if (!drawn) return;  // the text has changed since
  playing = null;
  const {step, at} = drawn, i = step.ids.indexOf(id);
  cut(at);
  append({...step, token: id, rank: i + 1, p: step.modelP[i], chosenByHand: true});
  await preview();
}

// --- drawing a step --------------------------------------------------------------------------------------------------

function showStep() {
  const step = shown === steps.length ? upcoming : steps[shown], taken = shown < steps.length;
  byId("play").textContent = playing ? "❚❚ Pause" : "▶ Write";
  byId("step-words").setAttribute("aria-live", playing ? "off" : "polite");  // nobody can listen so fast
  byId("play").disabled = byId("one").disabled = ended && !playing;
  byId("restart").disabled = false;
  byId("back").disabled = !steps.length;
  const moment = byId("moment");
  moment.disabled = !steps.length;
  moment.max = steps.length;
  moment.value = shown;
  byId("moment-shown").textContent = taken ? `${shown + 1} of ${steps.length}` : steps.length ? `next after ${steps.length}` : "";
  drawPaper();
  byId("step-title").textContent = taken ? `Token ${shown + 1}` : "What comes next?";
  if (step) drawStep(step, taken);
  if (playing) byId("paper").scrollTop = byId("paper").scrollHeight;
  if (!playing && view === "look") look();
}

function drawStep(step, taken) {
  drawn = {step, at: shown};
  const words = byId("step-words"), bits = -Math.log2(step.p), left = step.kept[2];
  words.replaceChildren();
  add(words, "span", taken ? "It chose " : "It would choose ");
  add(words, "code", textOf(step.token), {class: "chip"});
  add(words, "span", `, rank ${step.rank.toLocaleString("en")}, a surprise of ${bits.toFixed(2)} bits. ${left.toLocaleString("en")} of `
    + `${step.vocab_size.toLocaleString("en")} tokens could be drawn; the model's own entropy is ${step.entropy.toFixed(2)} bits.`);
  const line = byId("line"), segments = [];
  let before = 0;
  step.ids.forEach((id, i) => {
    const width = step.ends[i] - before;
    before = step.ends[i];
    if (width >= 0.004) segments.push([width > 0.06 ? textOf(id) : "", `0 0 ${100 * width}%`, id === step.token ? "chosen" : ""]);
  });
  if (before < 0.996) segments.push([before < 0.9 ? "others" : "", "1", "others"]);
  update(line, "b", segments.map(String), (segment, i) => {
    [segment.textContent, segment.style.flex, segment.className] = segments[i];
  });
  line.style.setProperty("--number", `${100 * step.randomNumber}%`);
  byId("line-words").textContent = step.chosenByHand ? "You chose this one yourself."
    : `Laid end to end, the probabilities make a line from 0 to 1. The random number ${step.randomNumber.toFixed(4)} falls on ${textOf(step.token)}.`;
  const longest = Math.max(step.sampledP[0], ...step.modelP);
  const ranks = Array.from(step.ids.keys()).filter((i) => i < RECORD || step.ids[i] === step.token);
  update(byId("candidates"), "li", ranks.map((i) => String([step.ids[i], step.sampledP[i], step.modelP[i], longest, i < left, step.token])),
    (item, k) => fillCandidate(item.firstChild ?? makeCandidate(item), step, ranks[k], longest));
}

function makeCandidate(item) {
  const button = add(item, "button");
  add(button, "code");
  const bars = add(button, "span", "", {class: "bars"});
  for (const tag of ["i", "u"]) add(bars, tag);
  for (const text of ["", ""]) add(button, "span", text, {class: "number"});
  return button;
}

function fillCandidate(button, step, i, longest) {
  const id = step.ids[i], chosen = id === step.token, out = i >= step.kept[2], [code, bars, ...numbers] = button.children;
  button.className = `candidate${chosen ? " chosen" : ""}${out ? " out" : ""}`;
  button.dataset.id = id;
  button.setAttribute("aria-label",
    `${textOf(id)}, drawn with ${percent(step.sampledP[i])}, model ${percent(step.modelP[i])}${chosen ? ", chosen" : ""}`);
  code.textContent = textOf(id);
  [step.sampledP[i], step.modelP[i]].forEach((p, k) => {
    bars.children[k].style.width = `${100 * p / longest}%`;
    numbers[k].textContent = percent(p);
  });
}

function setUpWriting() {
  paper = new TextInParts(byId("paper"));
  for (const [name, value] of Object.entries(model.sampling)) {
    const input = byId(name), output = byId(name + "-shown");
    if (name === "top_k") input.max = Math.min(200, model.architecture.vocab_size);
    input.value = value;
    const tell = () => { output.textContent = name === "top_k" ? (Number(input.value) || "all") : Number(input.value).toFixed(2); };
    tell();
    input.addEventListener("input", () => {
      tell();
      settingsChanged();
    });
  }
  byId("seed").value = seed = String(model.seed);
  byId("seed").addEventListener("input", ({target}) => {
    const valid = /^-?\d{1,20}$/.test(target.value);
    target.setAttribute("aria-invalid", !valid);
    if (!valid) return;
    seed = target.value;
    settingsChanged();
  });
  byId("prompt").value = model.prompt;
  byId("prompt").addEventListener("input", startOver);
  byId("play").addEventListener("click", play);
  byId("one").addEventListener("click", one);
  byId("back").addEventListener("click", () => back(steps.length - 1));
  byId("restart").addEventListener("click", startOver);
  byId("moment").addEventListener("input", ({target}) => {
    playing = null;
    shown = Math.min(Number(target.value), steps.length);
    if (shown === steps.length && !upcoming) preview();
    else showStep();
  });
  byId("coloured").addEventListener("change", ({target}) => byId("paper").classList.toggle("coloured", target.checked));
  byId("paper").addEventListener("click", ({target}) => {
    const part = paper.partOf(target);
    if (part < 1) return;
    playing = null;
    shown = part - 1;
    showStep();
  });
  byId("candidates").addEventListener("click", ({target}) => {
    const button = target.closest("button");
    if (button) branch(Number(button.dataset.id)).then(() => byId("candidates").querySelector("button")?.focus());
  });
}

function settingsChanged() {
  if (!playing) return preview();
  asked++;  // a step that was computed with the old ones does not count
  upcoming = null;
}

// === read ============================================================================================================

let readIds = [], readRows = [], parts = [];  // of each token: its row of scores and its text
let reads = 0;  // how often the text has changed: what is about an earlier one is not drawn
let coloured, cursorRow, cursorAt;  // the text as it is drawn; the row on display, and its token

// The text of each token of a text: together they are the text.
function partsOf(text, ids) {
  if (tokenizer.kind === "char") return Array.from(text);
  if (tokenizer.kind === "none") return text.match(/\s*\S+(\s+$)?/g) ?? [];
  const texts = new TextStream(), found = ids.map(texts.take);
  if (found.length) found[found.length - 1] += texts.decoder.decode();
  return found;
}

// Show these parts of the text. At both ends, what is the same stays, coloured as it is. Many new parts come some at a
// time, so that typing need not wait for them.
function showParts(next) {
  const [head, tail] = equalEnds(coloured.parts, next), end = head + PARTS, rest = next.slice(end, next.length - tail).join("");
  coloured.show(rest ? [...next.slice(0, end), rest, ...next.slice(next.length - tail)] : next);
  if (rest) requestAnimationFrame(() => next === parts && showParts(next));
  else colourParts(0, readRows.length);
}

function colourParts(first, end) {
  if (coloured.parts !== parts) return;  // not all of them are there
  coloured.mark(first, Math.min(end, readIds.length), (i) => readRows[i] ? "l" + level(readRows[i].bits) + (i === cursorAt ? " here" : "") : "");
}

async function read() {
  const mine = ++reads, text = byId("given").value;
  const before = coloured.parts;
  let head = 0, tail = 0, at = 0, end = text.length;
  while (head < before.length && text.startsWith(before[head], at)) at += before[head++].length;
  while (tail < before.length - head && end - before.at(-1 - tail).length >= at && text.endsWith(before.at(-1 - tail), end)) end -= before.at(-1 - tail++).length;
  parts = [...before.slice(0, head), ...at < end ? [text.slice(at, end)] : [], ...before.slice(before.length - tail)];
  coloured.show(parts);  // at once: what is new is plain until the model has read it
  try {
    await ask("score", {text, show: RECORD}, (sent) => {
      if (sent.ids) {
        readRows.length = Math.min(readRows.length, equalEnds(readIds, sent.ids)[0]);  // as the worker has it
        readIds = sent.ids;
        if (mine === reads) showParts(parts = partsOf(text, sent.ids));
        return;
      }
      readRows = readRows.slice(0, sent.first).concat(sent.rows);
      if (mine !== reads) return;
      colourParts(sent.first, readRows.length);
      tellReading();
      if (cursorRow === undefined || !readRows.includes(cursorRow)) atCursor();
    });
  } catch (error) {
    byId("read-words").textContent = error.message;
  }
}

function tellReading() {
  const done = Math.min(readRows.length, readIds.length), bytes = new TextEncoder().encode(parts.slice(0, done).join("")).length;
  let bits = 0;
  for (let i = 0; i < done; i++) bits += readRows[i].bits;
  const count = `${readIds.length.toLocaleString("en")} token${readIds.length === 1 ? "" : "s"}`;
  const perByte = tokenizer.kind === "none" ? `${(bits / Math.max(1, done)).toFixed(3)} bits per token` : `${(bits / Math.max(1, bytes)).toFixed(3)} bits per byte`;
  byId("read-words").setAttribute("aria-live", done < readIds.length ? "off" : "polite");
  byId("read-words").textContent = !readIds.length ? "The model has read nothing yet."
    : done < readIds.length ? `${count}, ${done.toLocaleString("en")} of them read, ${perByte} so far`
    : `${count}, ${bytes.toLocaleString("en")} bytes, ${bits.toFixed(1)} bits: ${perByte}`;
}

function atCursor() {  // the token before which the cursor is
  const given = byId("given"), cursor = given.selectionStart;
  let at = 0, i = 0;
  while (i < parts.length && at + parts[i].length <= cursor) at += parts[i++].length;
  const row = cursorRow = readRows[i], list = byId("expected"), was = cursorAt;
  cursorAt = i;
  for (const one of [was, i]) colourParts(one, one + 1);
  list.replaceChildren();
  byId("cursor-words").replaceChildren();
  if (!row) return;
  if (i < readIds.length) {
    add(byId("cursor-words"), "span", "The next token is ");
    add(byId("cursor-words"), "code", textOf(readIds[i]), {class: "chip"});
    add(byId("cursor-words"), "span", `, rank ${row.rank.toLocaleString("en")}, a surprise of ${row.bits.toFixed(2)} bits. The model expected:`);
  } else add(byId("cursor-words"), "span", "At the end of the text, the model expects:");
  row.ids.forEach((id, k) => {
    const item = add(list, "li", "", {class: `candidate${id === readIds[i] ? " chosen" : ""}`});
    add(item, "code", textOf(id));
    add(add(item, "span", "", {class: "bars"}), "i", "", {style: `width: ${100 * row.p[k] / row.p[0]}%`});
    add(item, "span");
    add(item, "span", percent(row.p[k]), {class: "number"});
  });
}

function setUpReading() {
  coloured = new TextInParts(byId("coloured-text"));
  const ranges = ["below 1", "1 to 2", "2 to 4", "4 to 8", "8 to 12", "12 and more"];
  ranges.forEach((range, i) => add(add(byId("legend"), "li"), "span", range, {class: "l" + i}));
  byId("given").addEventListener("input", read);
  for (const name of ["keyup", "click", "select"]) byId("given").addEventListener(name, atCursor);
  byId("read-example").addEventListener("click", () => {
    const text = byId("prompt").value + steps.filter(({token}) => !endsText(token)).map((step) => step.text).join("");
    byId("given").value = text.slice(0, byId("given").maxLength);
    read();
  });
}

// === look ============================================================================================================

let looked = {key: ""}, lookAt = 0, moveTo = () => {};  // the tokens on display and what is known of them

function lookIds() {  // the tokens that the model sees, at the end of the text
  const {block_size} = model.architecture;
  if (byId("source").value === "read") return [tokenizer.end_of_text_id, ...readIds].slice(-block_size);
  return written().slice(windowStart(promptIds.length, promptIds.length + steps.length, block_size));
}

async function look() {
  const ids = lookIds(), key = ids.join();
  byId("look-one").hidden = byId("source").value === "read";
  byId("look-one").disabled = ended;
  if (key === looked.key) return;
  const now = looked = {key, ids, attention: null, lens: []};
  byId("look-state").textContent = "reading…";
  const {n_layer: L, n_head: H} = model.architecture, T = ids.length;
  lookAt = T - 1;
  await ask("trace", {ids, show: 5}, async (sent) => {
    if (now !== looked) return;
    if (sent.attention) {
      now.attention = sent.attention.flat();
      [row, column] = [T - 1, T - 1];
      showPass({T, L, H, ids, textOf, choose: chooseToken,
        weight: (h, i, j) => j > i ? 0 : now.attention[h][i * (i + 1) / 2 + j],
        lens: (l, i) => now.lens[i] && {...now.lens[i][l], nextP: 2 ** -now.lens[i][l].bits}});
      const frame = async () => {  // so that nothing waits for all of it
        await new Promise(requestAnimationFrame);
        return now === looked;
      };
      if (!await frame()) return;
      drawTokens();
      chooseToken(lookAt);
      now.drawn = true;
      for (const _ of makeLens()) if (!await frame()) return;
      markLens(lookAt);
    } else {
      sent.rows.forEach((found, k) => { now.lens[sent.first + k] = found; });
      if (!now.drawn) return;
      fillLens(sent.first, sent.first + sent.rows.length);
      if (now.lens[lookAt]) markLens(lookAt);
    }
  });
  if (now === looked) byId("look-state").textContent = "";
}

function drawTokens() {
  const box = byId("tokens"), {ids} = looked;
  box.replaceChildren();
  const elements = ids.map((id, i) => add(box, "span", textOf(id),
    {class: "token" + (i % 2 ? " odd" : ""), role: "option", "aria-label": `${i + 1}: ${textOf(id)}`}));
  moveTo = walk(elements, chooseToken);
}

async function chooseToken(i) {
  const {ids, attention} = looked, now = looked, T = ids.length;
  if (!attention) return;
  lookAt = row = column = i;
  byId("tokens").childNodes.forEach((token, k) => token.setAttribute("aria-selected", k === i));
  moveTo(i);
  showRow();
  markLens(i);
  const found = await ask("attribute", {position: i, actual: ids[i + 1], show: 5});
  if (now !== looked || lookAt !== i) return;
  const select = byId("towards"), chosen = byId("chosen");
  select.replaceChildren();
  found.ids.forEach((id, k) => add(select, "option", `${textOf(id)} (${k < 5 ? percent(found.p[k]) : "actual next token"})`, {value: k}));
  select.onchange = () => showComponents(found.components, Number(select.value));
  select.onchange();
  chosen.replaceChildren();
  add(chosen, "span", `Token ${i + 1} of ${T}, `);
  add(chosen, "code", textOf(ids[i]));
  add(chosen, "span", ". After it the model expects ");
  add(chosen, "code", textOf(found.ids[0]));
  add(chosen, "span", ` with ${percent(found.p[0])}${i + 1 < T ? "; the actual next token is " : "."}`);
  if (i + 1 < T) add(chosen, "code", textOf(ids[i + 1]));
}

// === know ============================================================================================================

function know() {
  drawCurve();  // it takes the width that it has
  if (byId("about").firstChild) return;
  const {architecture: a, parameters, training} = model, number = (value) => value.toLocaleString("en");
  const total = Object.values(parameters).reduce((sum, count) => sum + count, 0);
  const kinds = {char: "single characters", bpe: "byte pairs (BPE)", none: "bare ids, whose text is unknown"};
  add(byId("about"), "p", `A transformer that predicts the next token: ${a.n_layer} layers of ${a.n_head} heads, ${a.n_embd} channels, `
    + `${number(total)} parameters. It reads ${kinds[tokenizer.kind]}, of which it knows ${number(a.vocab_size)}, and sees the last ${a.block_size} of them.`);
  const fill = (id, rows) => rows.forEach(([name, text]) => {
    const tr = add(byId(id).querySelector("tbody"), "tr");
    add(tr, "th", name, {scope: "row"});
    add(tr, "td", text);
  });
  for (const [name, count] of Object.entries(parameters)) {
    const tr = add(byId("parameters").querySelector("tbody"), "tr");
    add(tr, "th", name, {scope: "row"});
    add(tr, "td", number(count), {class: "number"});
    add(add(tr, "td"), "span", "", {class: "bar", style: `width: ${24 * count / total}rem`});
  }
  const facts = training.data ?? {};
  fill("training", [
    ["steps", number(training.steps)],
    ["tokens seen", training.tokens_seen && number(training.tokens_seen)],
    ["validation loss", training.val_loss && `${training.val_loss.toFixed(4)} nats per token`],
    ["bits per byte", training.val_bits_per_byte && training.val_bits_per_byte.toFixed(3)],
    ["data", facts.source && `${facts.source}${facts.documents ? `, ${number(facts.documents)} documents` : ""}`
      + (facts.utf8_bytes ? `, ${number(facts.utf8_bytes)} bytes` : "")],
    ["initial weights", training.init_from || undefined],
  ].filter(([, text]) => text));
  const precisions = {float32: "float32, as they were trained", float16: "float16: rounded to about three digits",
    int8: "int8: each one of 255 values of its row"};
  fill("file", [["weights", precisions[model.precision]], ["size of the weights", `${(model.bytes / 1e6).toFixed(2)} MB`],
    ["made from", model.name], ["SHA-256", byId("data").dataset.sha256]]);
}

function drawCurve() {
  const box = byId("curve");
  box.replaceChildren();
  if (!model.curve) return;
  chart(box, {title: "Loss in nats per token, by step", logY: true, series: [
    {name: "training", colour: "var(--line0)", points: model.curve.training},
    {name: "validation", colour: "var(--line1)", dots: true, points: model.curve.validation}]});
}

// === tabs and the start ==============================================================================================

function openTab(name) {
  view = name;
  for (const tab of byId("tabs").children) {
    const own = tab.id === "tab-" + name;
    tab.setAttribute("aria-selected", own);
    tab.tabIndex = own ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !own;
  }
  if (name === "read" && !readRows.length) read();  // what it expects before any text
  if (name === "look") look();
  if (name === "know") know();
}

function setUpTabs() {
  const tabs = Array.from(byId("tabs").children), names = tabs.map((tab) => tab.id.slice(4));
  walk(tabs, (i) => openTab(names[i]));
  openTab("write");
  byId("source").addEventListener("change", look);
  byId("look-one").addEventListener("click", one);
}

async function start() {
  const text = byId("data")?.textContent, base64 = byId("weights")?.textContent;
  try {
    if (!text || !base64) throw new Error("it ends too early");
    const opened = ask("open", {text, base64, expected: byId("data").dataset.sha256});
    opened.catch(() => {});
    model = JSON.parse(text);
    tokenizer = new Tokenizer(model.kind, model.tokenizer, model.architecture.vocab_size);
    document.title = `My GPT: ${model.name}`;
    setUpTabs();
    setUpWriting();
    setUpReading();
    tellReading();
    await opened;
  } catch (error) {
    byId("tabs").hidden = document.querySelector("main").hidden = true;
    return fail(`This page is damaged and cannot be used: ${error.message}. Get a fresh copy of it.`);
  }
  addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    fail(event.reason.message);
  });
  await startOver();
  document.documentElement.dataset.ready = Math.round(performance.now());  // milliseconds to the first token
  know();
}

addEventListener("DOMContentLoaded", start);

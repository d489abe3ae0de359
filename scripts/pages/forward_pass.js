// The drawing of one forward pass, shared by inspect_model.html and my_gpt.html; forward_pass.html has its elements. A
// page shows a pass with showPass(pass), where
//
//   pass.T, L, H, ids           tokens, layers, heads, and the ids of the tokens
//   pass.textOf(id)             the visible text of a token
//   pass.weight(h, i, j)        how much token i takes from token j in head h, of all L H heads
//   pass.lens(l, i)             {ids, p}, the likeliest next tokens after layer l - 1 (0: the embedding), and {rank, nextP}
//                               of the actual one; undefined while it is not known
//   pass.choose(i)              called when a token is chosen
const layerName = (l) => l === 0 ? "embedding" : `layer ${l - 1}`;
let pass = {T: 0}, head = 0, row = 0, column = 0;  // the enlarged head, its row and column

function showPass(next) {
  const pictures = next.L !== pass.L || next.H !== pass.H;
  pass = next;
  [row, column] = [Math.min(row, pass.T - 1), Math.min(column, pass.T - 1)];
  if (pictures) makePictures();
  describePictures();
  paintAll();
}

// === attention =======================================================================================================

let pictures = [], patterns = [], rowsAbove;

function makePictures() {
  const box = byId("heads");
  box.replaceChildren();
  box.style.setProperty("--n-head", pass.H);
  pictures = [];
  for (let layer = 0; layer < pass.L; layer++) {
    add(box, "span", `layer ${layer}`, {class: "faint"});
    for (let h = 0; h < pass.H; h++) {
      const button = add(box, "button", "", {type: "button", "aria-pressed": "false"});
      add(button, "canvas", "", {"aria-hidden": "true"});
      add(button, "span");
      pictures.push(button);
    }
  }
  walk(pictures, (h) => {
    head = h;
    showHead();
  }, () => pass.H);
}

// Where a head looks: the mean fraction that goes to the previous token, to the token itself and to the first token, over
// all rows but the first, as model/interpretation/heads.py computes it.
function attentionPattern(h) {
  const sums = [0, 0, 0], n = Math.max(1, pass.T - 1);
  for (let i = 1; i < pass.T; i++) [i - 1, i, 0].forEach((j, k) => { sums[k] += pass.weight(h, i, j) / n; });
  return sums;
}

function describePictures() {
  patterns = pictures.map((_, h) => attentionPattern(h));
  pictures.forEach((button, h) => {
    const [previous, itself, first] = patterns[h];
    button.setAttribute("aria-label", `Layer ${Math.floor(h / pass.H)}, head ${h % pass.H}: ${percent(previous)} to the previous token, `
      + `${percent(itself)} to itself, ${percent(first)} to the first token`);
    button.querySelector("span").textContent =
      `prev ${Math.round(100 * previous)}% · self ${Math.round(100 * itself)}% · first ${Math.round(100 * first)}%`;
  });
}

// What one sees, in two sentences.
function describeHead(h) {
  const [previous, itself, first] = patterns[h], rest = 1 - previous - itself - first;
  const habits = [[previous, "looks at the token before: it joins neighbours"], [itself, "looks at the token itself: it passes on what is there"],
    [first, "rests on the first token: it found nothing to do for most tokens"], [rest, "spreads over the earlier text: it gathers context"]];
  const [share, habit] = habits.sort(([a], [b]) => b - a)[0];
  const best = Array.from({length: row + 1}, (_, j) => j).sort((a, b) => pass.weight(h, row, b) - pass.weight(h, row, a))[0];
  return `${share > 0.45 ? "Mostly" : "More than anything else"}, this head ${habit} (${percent(share)}). `
    + `At ${pass.textOf(pass.ids[row])} it takes most, ${percent(pass.weight(h, row, best))}, from `
    + `${best === row ? "the token itself" : `${pass.textOf(pass.ids[best])}, ${row - best} back`}.`;
}

function mix(p) {  // the colour that shade() gives, as [red, green, blue] for a canvas
  const [from, to] = ["page", "heat"].map((name) => colour(name).match(/\w\w/g).map((two) => parseInt(two, 16)));
  return from.map((value, i) => Math.round(value + (to[i] - value) * p));
}

const pixel = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;  // of a canvas, on a little-endian machine
let palette;

function paint(canvas, h) {  // one pixel per pair of tokens; the square root makes small weights visible
  const T = pass.T, context = canvas.getContext("2d");
  canvas.width = canvas.height = T;
  const image = context.createImageData(T, T), pixels = new Uint32Array(image.data.buffer).fill(rowsAbove);
  for (let i = 0; i < T; i++) for (let j = 0; j <= i; j++) pixels[i * T + j] = palette[Math.round(255 * pass.weight(h, i, j))];
  context.putImageData(image, 0, 0);
}

function paintAll() {
  if (!pass.T) return;
  palette = Array.from({length: 256}, (_, i) => pixel(mix(Math.sqrt(i / 255))));
  rowsAbove = pixel(mix(0).map((value, i) => Math.round(value + (parseInt(colour("border").match(/\w\w/g)[i], 16) - value) * 0.35)));
  pictures.forEach((button, h) => paint(button.querySelector("canvas"), h));
  showHead();
}

function showHead() {
  pictures.forEach((button, h) => button.setAttribute("aria-pressed", h === head));
  const large = byId("large");
  paint(large, head);
  large.setAttribute("aria-label", `Attention of layer ${Math.floor(head / pass.H)}, head ${head % pass.H}: ${pass.T} by ${pass.T} tokens`);
  showRow();
}

// As many labels as there is room for, and that of the row and column under the pointer.
function label(box, side, here) {
  box.replaceChildren();
  const every = Math.ceil(pass.T / 20), cut = (text) => text.length > 8 ? text.slice(0, 7) + "…" : text;
  const put = (i, attributes) => add(box, "span", cut(pass.textOf(pass.ids[i])), {style: `${side}: ${100 * (i + 0.5) / pass.T}%`, ...attributes});
  for (let i = 0; i < pass.T; i += every) if (i !== here) put(i, {});
  put(here, {class: "here"});
}

function showRow() {
  column = Math.min(column, row);
  const {ids, textOf} = pass, weight = (j) => pass.weight(head, row, j);
  label(byId("rows"), "top", row);
  label(byId("columns"), "left", column);
  byId("cell").textContent = `${textOf(ids[row])} takes ${percent(weight(column))} from ${textOf(ids[column])}.`;
  byId("row-title").textContent = `L${Math.floor(head / pass.H)}H${head % pass.H}: where token ${row + 1} looks`;
  byId("head-words").textContent = describeHead(head);
  const strip = byId("row"), top = byId("row-top");
  strip.replaceChildren();
  top.replaceChildren();
  for (let j = 0; j <= row; j++) {
    const span = add(strip, "span", textOf(ids[j]), {class: "token", title: percent(weight(j))});
    shade(span, weight(j));
    if (j === row) span.style.outline = "2px solid var(--mark)";
  }
  const best = Array.from({length: row + 1}, (_, j) => j).sort((a, b) => weight(b) - weight(a));
  for (const j of best.slice(0, 5)) {
    const li = add(top, "li");
    add(li, "code", textOf(ids[j]));
    add(li, "span", ` ${percent(weight(j))}, ${j === row ? "itself" : row - j + " back"}`);
  }
}

const within = (i) => Math.min(pass.T - 1, Math.max(0, i));
const pointAt = ({offsetX, offsetY, target}) => {
  row = within(Math.floor(pass.T * offsetY / target.clientHeight));
  column = within(Math.floor(pass.T * offsetX / target.clientWidth));
  showRow();
};
for (const name of ["pointermove", "pointerdown"]) byId("large").addEventListener(name, pointAt);  // a finger only goes down
byId("large").addEventListener("keydown", (event) => {
  const T = pass.T;
  const move = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1], Home: [-T, 0], End: [T, 0]}[event.key];
  if (move) {
    event.preventDefault();
    row = within(row + move[0]);
    column = within(column + move[1]);
    showRow();
  }
});
redraw.push(paintAll);

// === what each component adds ========================================================================================

// `all` is a list of {name, size, adds, promotes}, `k` says which of `adds`; the sum goes below.
function showComponents(all, k) {
  const body = byId("components").querySelector("tbody"), values = all.map(({adds}) => adds[k]);
  body.replaceChildren();
  const largest = Math.max(...values.map(Math.abs), 1e-9);
  all.forEach(({name, size, promotes}, c) => {
    const tr = add(body, "tr"), value = values[c];
    add(tr, "td", name, {class: "mono"});
    const axis = add(add(tr, "td", "", {class: "signed"}), "div", "", {class: "axis"});
    const width = 50 * Math.abs(value) / largest;
    add(axis, "span", "", {class: value < 0 ? "bar minus" : "bar plus",
      style: `width: ${width}%; left: ${value < 0 ? 50 - width : 50}%`});
    add(tr, "td", (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2), {class: "number"});
    add(tr, "td", percent(size), {class: "number"});
    const td = add(tr, "td");
    for (const id of promotes) add(td, "code", pass.textOf(id), {class: "chip"});
  });
  const tr = add(body, "tr");
  add(tr, "td", "sum");
  add(tr, "td", "");
  add(tr, "td", values.reduce((a, b) => a + b, 0).toFixed(2), {class: "number", id: "sum"});
  const order = all.map((_, c) => c).sort((a, b) => values[b] - values[a]), [best, worst] = [order[0], order.at(-1)];
  byId("component-words").textContent = `${all[best].name} argues most for this token. `
    + (values[worst] < 0 ? `${all[worst].name} argues most against it.` : "Nothing argues against it.");
}

// === the logit lens ==================================================================================================

let cells = [];  // row after row, L + 1 in each

// Yields now and then, so that a page can draw what is there before it goes on.
function* makeLens() {
  const table = byId("lens"), heading = table.querySelector("thead"), body = table.querySelector("tbody");
  heading.replaceChildren();
  body.replaceChildren();
  const headings = add(heading, "tr");
  for (const title of ["after", ...Array.from({length: pass.L + 1}, (_, l) => layerName(l)), "actual next"]) {
    add(headings, "th", title, {scope: "col"});
  }
  cells = [];
  for (let i = 0; i < pass.T; i++) {
    const tr = add(body, "tr");
    add(add(tr, "td"), "code", pass.textOf(pass.ids[i]));
    for (let l = 0; l <= pass.L; l++) cells.push(add(tr, "td", "", {"data-cell": `${l} ${i}`}));
    add(add(tr, "td"), "code", i + 1 < pass.T ? pass.textOf(pass.ids[i + 1]) : "?");
    fillLens(i, i + 1);
    if (i % 16 === 15) yield;
  }
  walk(cells, (index) => {
    tellCell(cells[index]);
    pass.choose(Math.floor(index / (pass.L + 1)));
  }, () => pass.L + 1);
}

function fillLens(first, end) {  // the rows of these tokens, as far as they are known
  for (let index = first * (pass.L + 1); index < end * (pass.L + 1); index++) {
    const cell = cells[index], found = cell && lensOf(cell);
    if (!found || cell.firstChild) continue;
    add(cell, "code", pass.textOf(found.ids[0]));
    add(cell, "span", ` ${Math.round(100 * found.p[0])}%`);
    shade(cell, found.p[0]);
  }
}

const lensOf = (cell) => pass.lens(...cell.dataset.cell.split(" ").map(Number));

function markLens(at) {  // the row of the chosen token, and what one sees in it
  byId("lens").querySelectorAll("tbody tr").forEach((tr, i) => tr.classList.toggle("here", i === at));
  const rows = Array.from({length: pass.L + 1}, (_, l) => pass.lens(l, at));
  if (!rows.every(Boolean)) return;
  const last = rows.at(-1), first = rows.findIndex((_, l) => rows.slice(l).every(({ids}) => ids[0] === last.ids[0]));
  byId("lens-words").textContent = (first === 0 ? `The embedding alone would already predict ${pass.textOf(last.ids[0])}, and no layer changes that. `
    : `The embedding alone would predict ${pass.textOf(rows[0].ids[0])}; from ${layerName(first)} on, ${pass.textOf(last.ids[0])} is first. `)
    + `In the end the model gives it ${percent(last.p[0])}.`;
}

function tellCell(cell) {
  const [l, i] = cell.dataset.cell.split(" ").map(Number), detail = byId("lens-detail"), found = pass.lens(l, i);
  if (!found) return;
  detail.replaceChildren();
  add(detail, "span", `${l ? "After " + layerName(l) : "From the embedding alone"}, at token ${i + 1}: `);
  found.ids.forEach((id, k) => {
    add(detail, "code", pass.textOf(id));
    add(detail, "span", ` ${percent(found.p[k])}  `);
  });
  if (i + 1 < pass.T) {
    add(detail, "span", "· the actual next token, ");
    add(detail, "code", pass.textOf(pass.ids[i + 1]));
    add(detail, "span", `, has rank ${found.rank.toLocaleString("en")}, ${percent(found.nextP)}`);
  }
}
byId("lens").addEventListener("mouseover", (event) => {
  const cell = event.target.closest("td[data-cell]");
  if (cell) tellCell(cell);
});

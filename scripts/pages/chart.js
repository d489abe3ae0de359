// Charts of a training run, shared by plot_training.html and my_gpt.html.
const SVG = "http://www.w3.org/2000/svg";
const lineColour = (i) => `var(--line${i % 8})`;
const dashes = (i) => i < 8 ? "" : "6 3";  // from the ninth line on
const short = (value) => value === 0 ? "0" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : String(Number(value.toPrecision(3)));

// series: [{name, points: [[x, y], ...], colour, dash, dots}]; baselines: [[name, y], ...] as dashed lines. Point at
// the chart, or use the arrow keys, to read values below it.
function chart(parent, {title, text, formula, series, baselines = [], logX = false, logY = false, wide = false, id}) {
  const figure = add(parent, "figure", "", id ? {id} : {});
  add(figure, "figcaption", title);
  const W = Math.max(260, figure.clientWidth), Hgt = Math.min(wide ? 380 : 250, Math.round(0.7 * W));  // in pixels
  const left = 56, right = wide ? 76 : 12, top = 10, bottom = 26;
  const svg = figure.appendChild(document.createElementNS(SVG, "svg"));
  const draw = (tag, attributes, content) => {
    const element = svg.appendChild(document.createElementNS(SVG, tag));
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (content !== undefined) element.textContent = content;
    return element;
  };
  svg.setAttribute("viewBox", `0 0 ${W} ${Hgt}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("tabindex", 0);
  series = series.map((one) => ({...one, points: one.points.filter(([, y]) => y !== null && !Number.isNaN(y) && (!logY || y > 0))}))
    .filter((one) => one.points.length);
  const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const ys = series.flatMap((one) => one.points.map(([, y]) => y));
  svg.setAttribute("aria-label", ys.length ? `${title}: ${series.map((one) =>
    `${one.name} from ${short(one.points[0][1])} to ${short(one.points.at(-1)[1])}`).join("; ")}` : `${title}: nothing yet`);
  if (!ys.length) { draw("text", {x: W / 2, y: Hgt / 2, "text-anchor": "middle"}, "nothing yet"); return figure; }
  const inX = (x) => logX ? Math.log2(x + 1) : x, inY = (y) => logY ? Math.log(y) : y;
  const heights = [...ys, ...baselines.map(([, y]) => y)].map(inY);
  let low = Math.min(...heights), high = Math.max(...heights);
  if (!logY && low > 0 && low < 0.5 * high) low = 0;
  if (high === low) { high += 0.5; low -= 0.5; }
  const pad = 0.04 * (high - low), farX = inX(xs.at(-1)) || 1;
  low -= low === 0 && !logY ? 0 : pad; high += pad;
  const atX = (x) => left + (W - left - right) * inX(x) / farX;
  const atY = (y) => top + (Hgt - top - bottom) * (high - inY(y)) / (high - low);

  // --- axes ----------------------------------------------------------------------------------------------------------
  const ticks = (from, to, count) => {
    const raw = (to - from) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    return Array.from({length: Math.floor(to / step) - Math.ceil(from / step) + 1}, (_, i) => (Math.ceil(from / step) + i) * step);
  };
  let marks = logY ? [] : ticks(low, high, 5);
  if (logY) {
    const all = [];
    for (let e = Math.floor(low / Math.LN10); e <= high / Math.LN10; e++) for (let m = 1; m < 10; m++) all.push([m, m * 10 ** e]);
    const inside = all.filter(([, y]) => inY(y) >= low && inY(y) <= high);
    const allowed = inside.length > 9 ? inside.filter(([m]) => [1, 2, 5].includes(m)) : inside;
    marks = (allowed.length > 9 ? allowed.filter(([m]) => m === 1) : allowed).map(([, y]) => y);
    if (marks.length < 3) marks = ticks(Math.exp(low), Math.exp(high), 5);
  }
  for (const y of marks) {
    draw("line", {class: "grid", x1: left, x2: W - right, y1: atY(y), y2: atY(y)});
    draw("text", {x: left - 6, y: atY(y) + 4, "text-anchor": "end"}, short(y));
  }
  const steps = logX ? [0, ...Array.from({length: 24}, (_, i) => 2 ** i)].filter((x) => x <= xs.at(-1))
    : ticks(0, xs.at(-1), Math.min(6, W / 90));
  const apart = steps.filter((x, i) => i === 0 || i % Math.ceil(36 * steps.length / (W - left - right)) === 0);
  for (const x of apart) draw("text", {x: atX(x), y: Hgt - 8, "text-anchor": "middle"}, short(x));
  for (const [name, y] of baselines) {
    draw("line", {class: "baseline", x1: left, x2: W - right, y1: atY(y), y2: atY(y)});
  }
  const labels = baselines.map(([name, y]) => ({name, y: atY(y) + 4})).sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => {
    if (i) label.y = Math.max(label.y, labels[i - 1].y + 12);
    draw("text", {x: W - right + 6, y: label.y, class: "baseline-name", "stroke": "none"}, label.name);
  });

  // --- lines ---------------------------------------------------------------------------------------------------------
  for (const one of series) {
    const d = one.points.map(([x, y], i) => `${i ? "L" : "M"}${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`).join("");
    const dash = one.dots ? "stroke-dasharray: 1 5; stroke-linecap: round" : one.dash ? `stroke-dasharray: ${one.dash}` : "";
    // A line between a few evaluations would suggest values that nobody measured.
    if (!one.dots || one.points.length > 4) draw("path", {d, style: `stroke: ${one.colour}; ${dash}`});
    if (one.dots || one.points.length === 1) {
      for (const [x, y] of one.points) draw("circle", {cx: atX(x), cy: atY(y), r: 3.5, style: `fill: ${one.colour}`});
    }
  }

  // --- reading values --------------------------------------------------------------------------------------------------
  const cursor = draw("line", {class: "cursor", y1: top, y2: Hgt - bottom, visibility: "hidden"});
  const legend = add(figure, "ul", "", {class: "legend"});
  for (const one of series) {
    const li = add(legend, "li");
    add(li, "i", "", {style: `color: ${one.colour}`, class: one.dots ? "dots" : ""});
    add(li, "span", one.name);
  }
  const readout = add(figure, "div", "", {class: "readout", role: "status", "aria-live": "polite"});
  let index = xs.length - 1;
  const tell = (i) => {
    index = Math.max(0, Math.min(xs.length - 1, i));
    const x = xs[index];
    cursor.setAttribute("x1", atX(x));
    cursor.setAttribute("x2", atX(x));
    cursor.setAttribute("visibility", "visible");
    const said = series.map((one) => [one.name, one.points.find(([other]) => other === x)]).filter(([, point]) => point);
    readout.textContent = `step ${x.toLocaleString("en")}: ${said.map(([name, [, y]]) => `${name} ${short(y)}`).join(", ")}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * W;
    let nearest = 0;
    xs.forEach((other, i) => { if (Math.abs(atX(other) - x) < Math.abs(atX(xs[nearest]) - x)) nearest = i; });
    tell(nearest);
  });
  svg.addEventListener("keydown", (event) => {
    const move = {ArrowRight: 1, ArrowLeft: -1, Home: -xs.length, End: xs.length}[event.key];
    if (move) { event.preventDefault(); tell(index + move); }
  });
  if (text) add(figure, "p", text);
  if (formula) add(figure, "p", formula, {class: "formula"});
  return figure;
}

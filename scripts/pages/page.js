// Shared by all pages: unpack the data, build elements, move through them by keyboard.
const byId = (id) => document.getElementById(id);

const arrays = {Float32Array, Uint16Array, Uint32Array};
function unpack({type, data}) {  // little-endian, as on every machine with a browser
  return new arrays[type](Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer);
}

function add(parent, tag, text = "", attributes = {}) {  // as textContent, so that no text becomes markup
  const child = document.createElement(tag);
  child.textContent = text;
  for (const [name, value] of Object.entries(attributes)) child.setAttribute(name, value);
  return parent.appendChild(child);
}

function percent(p) {
  return p >= 0.9995 ? "100%" : p >= 0.0005 ? (100 * p).toFixed(1) + "%" : p > 0 ? "<0.1%" : "0%";
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function shade(element, p) {  // from the page's colour at 0 to full heat at 1, with legible letters
  element.style.background = `color-mix(in srgb, var(--heat) ${(100 * p).toFixed(2)}%, var(--page))`;
  element.classList.add(p > 0.7 ? "hot" : p > 0.53 ? "warm" : "cool");
}

const redraw = [];  // functions to call when the colours change
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", () => redraw.forEach((draw) => draw()));
}

// Make a list of elements reachable by Tab as one, and move through it with the arrow keys, Home and End. `step` is the
// number of elements that ArrowDown and ArrowUp move by. Returns a function that moves there without the focus.
function walk(elements, chosen, step = () => 1) {
  let current = 0;
  const go = (index, focus) => {
    elements[current].tabIndex = -1;
    current = Math.max(0, Math.min(elements.length - 1, index));
    elements[current].tabIndex = 0;
    if (focus) elements[current].focus();
  };
  const moves = {ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: step, ArrowUp: () => -step(),
    Home: () => -elements.length, End: () => elements.length};
  elements.forEach((element, index) => {
    element.tabIndex = index === 0 ? 0 : -1;
    element.addEventListener("keydown", (event) => {
      if (event.key in moves && !event.ctrlKey && !event.altKey && !event.metaKey) {
        event.preventDefault();
        go(index + moves[event.key](), true);
        chosen(current);
      }
    });
    element.addEventListener("click", () => {
      go(index, true);
      chosen(index);
    });
  });
  return (index) => go(index, false);
}

// The model's own thread; gpt.js comes before this. The page sends {id, name, given} and gets {id, result} or {id, error}
// back, and {id, progress} in between. While it reads a text, other requests get their turn every few milliseconds, and
// a newer request of the same name ends the older one, whose result is then null.
"use strict";
const SLICE = 25;  // milliseconds
let model, tokenizer, caches;
let numbers = {drawn: []};  // {seed, generator, drawn}
let scored = {ids: [], rows: [], sent: 0};  // the text that was scored last, and how many rows the page has
const newest = {};  // name of a request -> id of the newest one

function pause() {  // a message to ourselves comes after those that wait; setTimeout would take 4 ms
  return new Promise((resolve) => {
    const {port1, port2} = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}

async function sha256(text, bytes) {  // of both, one after the other
  if (!self.crypto?.subtle) return null;  // over plain http, browsers offer no hash
  const start = new TextEncoder().encode(text), both = new Uint8Array(start.length + bytes.length);
  both.set(start);
  both.set(bytes, start.length);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", both));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Make a cache hold these tokens, calling after() for each new one. Returns whether this is still worth it.
async function readTokens(ids, cache, isNewest, after = () => {}) {
  let start = performance.now();
  for (const _ of model.read(ids, cache)) {
    after();
    if (performance.now() - start > SLICE) {
      await pause();
      if (!isNewest()) return false;
      start = performance.now();
    }
  }
  return isNewest();
}

function checkNumbers(logits) {
  if (logits.some(Number.isNaN)) throw new Error("The model's logits are not numbers: its weights are too large to compute with.");
}

// The likeliest tokens of a distribution, and how the actual token fares: {ids, p, bits, rank}
function score(logits, actual, record) {
  checkNumbers(logits);
  const {p} = distribution(logits), ids = Array.from(mostLikely(p, record)), row = {ids, p: ids.map((id) => p[id])};
  if (actual === undefined) return row;
  let rank = 1;
  for (const other of p) if (other > p[actual]) rank++;
  return {...row, bits: -Math.log2(p[actual]), rank};
}

// Of which window of the text the prediction at a position counts: the first one, else one that it is in the newer half of
function scoringWindow(position, block) {
  const half = Math.max(1, block >> 1);
  return position < block ? 0 : (Math.floor((position - block) / half) + 1) * half;
}

const requests = {
  // Load the model. Throws if the file is not what was written.
  async open({text, base64, expected}) {
    const description = JSON.parse(text), bytes = decodeBase64(base64);
    const hash = sha256(text, bytes);  // computed beside the rest
    if (bytes.length !== description.bytes) throw new Error(`it has ${bytes.length} bytes of weights instead of ${description.bytes}`);
    model = new GPT(description.architecture, loadWeights(description.tensors, bytes));
    tokenizer = new Tokenizer(description.kind, description.tokenizer, description.architecture.vocab_size);
    if (![null, expected].includes(await hash)) throw new Error("its contents do not have the hash that they were written with");
    caches = {write: model.newCache(), read: model.newCache(), look: model.newCache()};
  },

  encode: async ({text}) => tokenizer.encode(text),

  // The next token after `ids`, of which the first `prompt` were given: what choose() returns, of which the page gets
  // the first `show` candidates. The number that decides is the one that generate.py would use.
  async step({ids, prompt, seed, sampling, show}, isNewest) {
    const cache = caches.write, start = windowStart(prompt, ids.length, model.architecture.block_size);
    if (!await readTokens(ids.slice(start), cache, isNewest)) return null;
    if (seed !== numbers.seed) numbers = {seed, generator: randomNumbers(seed), drawn: []};
    while (numbers.drawn.length <= ids.length - prompt) numbers.drawn.push(numbers.generator.next().value);
    const logits = model.logitLens(cache, cache.length - 1);
    checkNumbers(logits);
    const step = choose(findCandidates(logits, sampling, new Set(ids), show), numbers.drawn[ids.length - prompt], sampling);
    const count = Math.min(step.ids.length, Math.max(show, step.rank));
    for (const name of ["ids", "modelP", "sampledP", "ends"]) step[name] = step[name].slice(0, count);
    return step;
  },

  // Score each token of a text by the rules of scripts/surprise_map.py, and what may follow its end. Sends {ids}, then
  // {first, rows} again and again, for the rows from `first` on.
  async score({text, show}, isNewest, send) {
    await pause();  // a browser can report a pasted text line by line
    if (!isNewest()) return null;
    const ids = tokenizer.encode(text), given = [tokenizer.end_of_text_id, ...ids], cache = caches.read;
    let done = 0;
    while (done < scored.rows.length && done < ids.length && ids[done] === scored.ids[done]) done++;
    const rows = scored.rows.slice(0, done), {block_size} = model.architecture;
    scored = {ids, rows, sent: Math.min(scored.sent, done)};
    const mine = scored;
    const flush = () => {
      send({first: mine.sent, rows: rows.slice(mine.sent)});
      mine.sent = rows.length;
    };
    send({ids});
    let start, time = performance.now(), wait = SLICE;  // drawing takes time as well: the longer the text, the more seldom
    const take = () => {
      for (; done <= ids.length && done - start < cache.length; done++) {
        rows.push(score(model.logitLens(cache, done - start), ids[done], show));
      }
      if (performance.now() - time > wait) {
        flush();
        wait = Math.min(2 * wait, 20 * SLICE);
        time = performance.now();
      }
    };
    while (done <= ids.length) {
      start = scoringWindow(done, block_size);
      if (!await readTokens(given.slice(start, start + block_size), cache, isNewest, take)) return null;
      take();
    }
    flush();
  },

  // The attention of all heads over some tokens (at most block_size), [layer][head]: for each row t its t + 1 weights,
  // one row after the other. Then sends the logit lens, {first, rows}: a row has a score() for each layer.
  async trace({ids, show}, isNewest, send) {
    const cache = caches.look, {n_layer, n_head, block_size} = model.architecture;
    if (!await readTokens(ids, cache, isNewest)) return null;
    const attention = Array.from({length: n_layer}, (_, layer) => Array.from({length: n_head}, (_, head) => {
      const triangle = new Float32Array(ids.length * (ids.length + 1) / 2);
      for (let t = 0; t < ids.length; t++) {
        const at = (t * n_head + head) * block_size;
        triangle.set(cache.weights[layer].subarray(at, at + t + 1), t * (t + 1) / 2);
      }
      return triangle;
    }));
    send({attention});
    let rows = [], time = performance.now();
    for (let t = ids.length - 1; t >= 0; t--) {  // the newest token is the most interesting one
      rows.unshift(Array.from({length: n_layer + 1}, (_, layer) => score(model.logitLens(cache, t, layer), ids[t + 1], show)));
      if (t === 0 || performance.now() - time > SLICE) {
        send({first: t, rows});
        rows = [];
        await pause();
        if (!isNewest()) return null;
        time = performance.now();
      }
    }
  },

  // What each component adds to the logits of the likeliest tokens and of `actual` after a token that was traced:
  // {ids, p, components: [{name, size, adds, promotes}]}. The values of `adds` over all components sum to the logits.
  async attribute({position, actual, show}) {
    const cache = caches.look, {p} = distribution(model.logitLens(cache, position)), ids = Array.from(mostLikely(p, show));
    if (actual !== undefined && !ids.includes(actual)) ids.push(actual);
    const norm = (x) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));
    const whole = norm(cache.row(cache.residual.at(-1), position));
    return {
      ids,
      p: ids.map((id) => p[id]),
      components: components(model, cache, position).map(({name, output}) => {
        const adds = attribution(model, cache, position, output);
        return {name, size: norm(output) / whole, adds: ids.map((id) => adds[id]), promotes: Array.from(mostLikely(adds, 3))};
      }),
    };
  },
};

onmessage = async ({data: {id, name, given}}) => {
  newest[name] = id;
  try {
    const result = await requests[name](given, () => newest[name] === id, (progress) => postMessage({id, progress}));
    postMessage({id, result});
  } catch (error) {
    postMessage({id, error: error.message});
  }
};

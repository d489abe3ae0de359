// A GPT in JavaScript, in one file: it reads the weights, cuts a text into tokens, computes what comes next, and draws it.
//
// Classes and functions have the names and the order of the Python that they follow: model/layers.py, model/gpt.py,
// model/tokenization/tokenizer.py, model/generation/sampling.py, model/interpretation/forward_pass.py, where each is
// explained. tests/scripts/test_export_html.py compares them, number by number. Notation as there:
//
//   C  channels of the residual stream    H  attention heads    L  layers    S  tokens attended to
//   D  head size, C / H                   V  tokens in the vocabulary
//
// One token is computed at a time. Numbers are kept in fp32. Products with weights are in WebAssembly, at the end of this
// file; everything else is added up in double precision, as JavaScript does by itself.
"use strict";

// === weights =========================================================================================================

// The bytes of base64: four letters for three bytes.
function decodeBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);  // browsers since 2025
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// Half-precision numbers (sign, 5 bits of exponent, 10 of fraction) as fp32, which has 8 bits of exponent and 23 of
// fraction. With the bits in their places, only the exponent is 112 too low.
function halvesToFloats(halves, floats) {
  const bits = new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
  for (let i = 0; i < bits.length; i++) bits[i] = (halves[i] & 0x8000) << 16 | (halves[i] & 0x7fff) << 13;
  for (let i = 0; i < bits.length; i++) floats[i] *= 2 ** 112;
}

// The weights of a file by name, in fp32: {"head.weight": Float32Array, ...}, and the memory that they are in. `tensors`
// is a list of {name, dtype, shape, offset}, with the offset in bytes. An int8 tensor has a scale for each row before its
// rows. Little-endian throughout.
function loadWeights(tensors, bytes) {
  const memory = new Memory(tensors.map(({shape}) => shape)), weights = {memory};
  for (const {name, dtype, shape, offset} of tensors) {
    const [rows, columns] = [shape[0], shape[1] ?? 1], count = rows * columns, at = bytes.byteOffset + offset;
    const weight = weights[name] = memory.take(count);
    if (dtype === "float32") weight.set(new Float32Array(bytes.buffer, at, count));
    else if (dtype === "float16") halvesToFloats(new Uint16Array(bytes.buffer, at, count), weight);
    else {
      const scales = new Float32Array(bytes.buffer, at, rows), values = new Int8Array(bytes.buffer, at + 4 * rows, count);
      for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < columns; c++, i++) weight[i] = values[i] * scales[r];
    }
  }
  weights["head.weight"] ??= weights["embedding.weight"];  // tied
  return weights;
}

// === layers, as model/layers.py ======================================================================================

// y = W x: (inputs) -> (outputs). The next call overwrites y.
class Linear {
  constructor(weights, name, inputs) {
    this.weight = weights[name];  // (outputs, inputs), row after row
    this.memory = weights.memory;
    this.inputs = inputs;
    this.y = new Float32Array(this.weight.length / inputs);
  }

  forward(x) {
    const {memory, weight, inputs, y} = this;
    if (!memory.product || inputs % 8) return this.forwardPlain(x);  // WebAssembly takes eight at a time
    memory.x.set(x);
    memory.product(weight.byteOffset, 4 * inputs, memory.y.byteOffset, memory.y.byteOffset + 4 * y.length);
    y.set(memory.y.subarray(0, y.length));
    return y;
  }

  // The same without WebAssembly
  forwardPlain(x) {
    const {weight, inputs, y} = this;
    for (let o = 0, at = 0; o < y.length; o++) {
      let even = 0, odd = 0;  // no sum waits for the other; rotary positions need pairs, so the number of inputs is even
      for (let i = 0; i < inputs; i += 2, at += 2) {
        even += weight[at] * x[i];
        odd += weight[at + 1] * x[i + 1];
      }
      y[o] = even + odd;
    }
    return y;
  }
}

// Scale a vector to a root mean square of 1, then each channel by its weight: (n) -> (n), into y
class RMSNorm {
  constructor(weight, eps = 1e-6) {
    this.weight = weight;
    this.eps = eps;
  }

  forward(x, y = new Float32Array(x.length)) {
    const scale = this.scale(x);
    for (let i = 0; i < x.length; i++) y[i] = x[i] * scale * this.weight[i];
    return y;
  }

  scale(x) {
    let squares = 0;
    for (let i = 0; i < x.length; i++) squares += x[i] * x[i];
    return 1 / Math.sqrt(squares / x.length + this.eps);
  }
}

// Cosine and sine of the angle of each position and pair of channels: two arrays (length, D / 2)
function rotaryTable(length, headSize, base) {
  const half = headSize / 2, cos = new Float32Array(length * half), sin = new Float32Array(length * half);
  for (let t = 0; t < length; t++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(t * Math.fround(base ** (-2 * i / headSize)));
      cos[t * half + i] = Math.cos(angle);
      sin[t * half + i] = Math.sin(angle);
    }
  }
  return {cos, sin};
}

// Rotate each pair of channels, i and i + D / 2, by the angle of the position, in place: x (D)
function rotate(x, {cos, sin}, position) {
  const half = x.length / 2;
  for (let i = 0; i < half; i++) {
    const [a, b, c, s] = [x[i], x[i + half], cos[position * half + i], sin[position * half + i]];
    x[i] = a * c - b * s;
    x[i + half] = b * c + a * s;
  }
}

// The keys and values of the tokens so far, and all that a page wants to show of them: what each head and MLP computed.
class KeyValueCache {
  constructor({n_layer, n_head, n_embd, block_size}) {
    const each = (size) => Array.from({length: n_layer}, () => new Float32Array(block_size * size));
    this.ids = [];  // the tokens in it
    this.width = n_embd;
    this.keys = each(n_embd);  // of each layer (block_size, C), head after head
    this.values = each(n_embd);
    this.weights = each(n_head * block_size);  // attention weights (block_size, H, block_size): row t has t + 1 of them
    this.attended = each(n_embd);  // what the heads gathered (block_size, C), before the output projection
    this.fed = each(n_embd);  // what the MLP added (block_size, C)
    this.residual = Array.from({length: n_layer + 1}, () => new Float32Array(block_size * n_embd));
  }

  get length() {
    return this.ids.length;
  }

  // The row of the token at a position: (C)
  row(array, position) {
    return array.subarray(position * this.width, (position + 1) * this.width);
  }
}

// softmax(q K^T / sqrt(D)) over the first `length` keys, into `weights`: q (D), keys (S, C) from column `first` on
function attentionWeights(q, keys, first, width, length, weights) {
  const D = q.length;
  let highest = -Infinity, sum = 0;
  for (let t = 0; t < length; t++) {
    let even = 0, odd = 0;  // no sum waits for the other; rotary positions need pairs, so D is even
    for (let i = 0, at = t * width + first; i < D; i += 2, at += 2) {
      even += q[i] * keys[at];
      odd += q[i + 1] * keys[at + 1];
    }
    weights[t] = (even + odd) / Math.sqrt(D);
    highest = Math.max(highest, weights[t]);
  }
  for (let t = 0; t < length; t++) sum += weights[t] = Math.exp(weights[t] - highest);
  for (let t = 0; t < length; t++) weights[t] /= sum;
}

// The mean of the values, weighted, for the channels of one head: weights (S), values (S, C) from column `first` on, into y (D)
function weightedMean(weights, values, first, width, y) {
  for (let i = 0; i < y.length; i += 2) {
    let even = 0, odd = 0;
    for (let t = 0, at = first + i; t < weights.length; t++, at += width) {
      even += weights[t] * values[at];
      odd += weights[t] * values[at + 1];
    }
    y[i] = even;
    y[i + 1] = odd;
  }
}

// Causal self-attention: a token gathers values from itself and the tokens before it. (C) -> (C)
class Attention {
  constructor(weights, name, {n_embd, n_head, block_size}) {
    this.n_head = n_head;
    this.block_size = block_size;
    this.qkv = new Linear(weights, name + "qkv.weight", n_embd);
    this.query_norm = new RMSNorm(weights[name + "query_norm.weight"]);
    this.key_norm = new RMSNorm(weights[name + "key_norm.weight"]);
    this.output = new Linear(weights, name + "output.weight", n_embd);
  }

  forward(x, table, cache, layer) {
    const {width: C, length: position} = cache, H = this.n_head, D = C / H, S = position + 1;
    const keys = cache.keys[layer], values = cache.values[layer], attended = cache.row(cache.attended[layer], position);
    const qkv = this.qkv.forward(x);  // q, k and v (C each)
    cache.row(keys, position).set(qkv.subarray(C, 2 * C));
    cache.row(values, position).set(qkv.subarray(2 * C));
    for (let h = 0; h < H; h++) {
      const first = h * D, q = qkv.subarray(first, first + D), k = cache.row(keys, position).subarray(first, first + D);
      rotate(this.query_norm.forward(q, q), table, position);
      rotate(this.key_norm.forward(k, k), table, position);
      const at = (position * H + h) * this.block_size, p = cache.weights[layer].subarray(at, at + S);
      attentionWeights(q, keys, first, C, S, p);
      weightedMean(p, values, first, C, attended.subarray(first, first + D));
    }
    return this.output.forward(attended);
  }
}

// The feed-forward layer, W_down (silu(W_gate x) * (W_up x)): (C) -> (C)
class SwiGLU {
  constructor(weights, name, {n_embd}) {
    this.gate_up = new Linear(weights, name + "gate_up.weight", n_embd);
    this.down = new Linear(weights, name + "down.weight", this.gate_up.y.length / 2);
  }

  forward(x) {
    const gate_up = this.gate_up.forward(x), n = this.down.inputs, hidden = new Float32Array(n);
    for (let i = 0; i < n; i++) hidden[i] = gate_up[i] / (1 + Math.exp(-gate_up[i])) * gate_up[n + i];
    return this.down.forward(hidden);
  }
}

// x ──┬── norm ── attention ── + ──┬── norm ── SwiGLU ── + ── x
//     └────────────────────────┘   └──────────────────┘
class Block {
  constructor(weights, name, architecture) {
    this.attention_norm = new RMSNorm(weights[name + "attention_norm.weight"]);
    this.attention = new Attention(weights, name + "attention.", architecture);
    this.mlp_norm = new RMSNorm(weights[name + "mlp_norm.weight"]);
    this.mlp = new SwiGLU(weights, name + "mlp.", architecture);
  }

  // x (C) is changed in place
  forward(x, table, cache, layer) {
    addTo(x, this.attention.forward(this.attention_norm.forward(x), table, cache, layer));
    const fed = this.mlp.forward(this.mlp_norm.forward(x));
    cache.row(cache.fed[layer], cache.length).set(fed);
    addTo(x, fed);
  }
}

function addTo(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

// === the model, as model/gpt.py ======================================================================================

// token ── embedding ── block 0 ── ... ── block n_layer - 1 ── norm ── head ── logits (V)
class GPT {
  constructor(architecture, weights) {
    const {n_layer, n_head, n_embd, block_size, rotary_base} = this.architecture = architecture;
    this.embedding = weights["embedding.weight"];  // (V, C)
    this.blocks = Array.from({length: n_layer}, (_, layer) => new Block(weights, `blocks.${layer}.`, architecture));
    this.norm = new RMSNorm(weights["norm.weight"]);
    this.head = new Linear(weights, "head.weight", n_embd);
    this.table = rotaryTable(block_size, n_embd / n_head, rotary_base);
  }

  newCache() {
    return new KeyValueCache(this.architecture);
  }

  // Add a token to the cache. Its logits are logitLens() of the last layer, which not everybody wants.
  features(token, cache) {
    const position = cache.length, x = cache.row(this.embedding, token).slice();
    cache.row(cache.residual[0], position).set(x);
    this.blocks.forEach((block, layer) => {
      block.forward(x, this.table, cache, layer);
      cache.row(cache.residual[layer + 1], position).set(x);
    });
    cache.ids.push(token);
  }

  // The logits (V) after the token at a position of the cache, if the model ended after this layer. The next call
  // overwrites them.
  logitLens(cache, position, layer = this.blocks.length) {
    return this.head.forward(this.norm.forward(cache.row(cache.residual[layer], position)));
  }

  // Make the cache hold exactly these tokens, and compute only those that it does not have. Yields again and again,
  // so that the caller can do something in between.
  *read(ids, cache) {
    let same = 0;
    while (same < ids.length && ids[same] === cache.ids[same]) same++;
    cache.ids.length = same;
    while (cache.length < ids.length) {
      this.features(ids[cache.length], cache);
      yield;
    }
  }
}

// === tokenizers, as model/tokenization/tokenizer.py ==================================================================

// GPT-2's pattern, with Unicode's white space: JavaScript's \s differs in U+0085 and U+FEFF.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

// The visible letter that a BPE file writes for each of the 256 bytes: a space is "Ġ".
const BYTE_TO_LETTER = [];
for (let byte = 0, others = 0x100; byte < 256; byte++) {
  const printable = byte > 0x20 && byte < 0x7f || byte > 0xa0 && byte !== 0xad;
  BYTE_TO_LETTER.push(String.fromCodePoint(printable ? byte : others++));
}
const LETTER_TO_BYTE = new Map(BYTE_TO_LETTER.map((letter, byte) => [letter, byte]));

// `kind` is "char", "bpe" or "none" (bare ids), `json` the content of the tokenizer's file, if there is one.
class Tokenizer {
  constructor(kind, json, vocabSize) {
    this.kind = kind;
    this.vocab = new Map(Object.entries(json?.model.vocab ?? {}));
    this.strings = [];
    for (const [string, id] of this.vocab) this.strings[id] = string;
    this.vocab_size = vocabSize;
    this.end_of_text_id = this.vocab.get("<|endoftext|>") ?? 0;
    this.unknown_id = this.vocab.get("<|unk|>");
    this.rank = new Map((json?.model.merges ?? []).map((pair, rank) => [typeof pair === "string" ? pair : pair.join(" "), rank]));
    this.known = new Map();  // words with their ids
  }

  // The ids of a text. Half a surrogate pair, which is no text, is read as U+FFFD.
  encode(text) {
    text = text.replace(/\p{Surrogate}/gu, "\ufffd");
    if (this.kind === "none") return this.bareIds(text);
    if (this.kind === "char") {
      return Array.from(text, (character) => this.vocab.get(character) ?? this.unknown_id);
    }
    const ids = [];
    for (const [word] of text.matchAll(WORDS)) {
      if (!this.known.has(word)) this.known.set(word, this.merge(word));
      for (const id of this.known.get(word)) ids.push(id);
    }
    return ids;
  }

  bareIds(text) {
    const ids = text.split(/\p{White_Space}+/u).filter(Boolean);
    if (!ids.every((id) => /^\d{1,8}$/.test(id) && Number(id) < this.vocab_size)) {
      throw new RangeError(`This model has no tokenizer: its texts are ids from 0 to ${this.vocab_size - 1}, such as 17 4.`);
    }
    return ids.map(Number);
  }

  // Byte-pair encoding of a word: join the pair of neighbours that was learned first, everywhere, until none is known.
  merge(word) {
    let symbols = Array.from(new TextEncoder().encode(word), (byte) => BYTE_TO_LETTER[byte]);
    for (;;) {
      let best = Infinity, pair;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = this.rank.get(`${symbols[i]} ${symbols[i + 1]}`);
        if (rank < best) [best, pair] = [rank, i];
      }
      if (best === Infinity) return symbols.map((symbol) => this.vocab.get(symbol));
      const [first, second] = [symbols[pair], symbols[pair + 1]], joined = [];
      for (let i = 0; i < symbols.length; i++) {
        if (symbols[i] === first && symbols[i + 1] === second) joined.push(first + symbols[++i]);
        else joined.push(symbols[i]);
      }
      symbols = joined;
    }
  }

  // The bytes of text that a token stands for.
  tokenBytes(token) {
    if (this.kind === "none") return new TextEncoder().encode(`${token} `);
    const string = this.strings[token];
    if (this.kind === "char") return new TextEncoder().encode(string);
    const bytes = new Uint8Array(string.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = LETTER_TO_BYTE.get(string[i]);
    return bytes;
  }
}

// === sampling, as model/generation/sampling.py =======================================================================

// Make tokens that are already in the text less likely: (V) -> (V). `seen` is a Set of ids.
function penalise(logits, seen, penalty) {
  if (penalty === 1) return logits;
  const penalised = logits.slice();
  for (const id of seen) penalised[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  return penalised;
}

// The ids of the n highest of V numbers, from high to low; of equal ones, the lower id comes first.
function mostLikely(values, n) {
  if (n > 200) return Uint32Array.from(values, (_, id) => id).sort((a, b) => values[b] - values[a] || a - b).slice(0, n);
  const best = [];
  for (let id = 0; id < values.length; id++) {
    if (best.length === n && !(values[id] > values[best[n - 1]])) continue;
    let at = best.length;
    while (at > 0 && values[id] > values[best[at - 1]]) at--;
    best.splice(at, 0, id);
    if (best.length > n) best.pop();
  }
  return Uint32Array.from(best);
}

// Divide logits, sorted from high to low, by the temperature; 0 is greedy. The first is subtracted.
function applyTemperature(ordered, temperature) {
  if (temperature === 0) return Float64Array.from(ordered, (_, i) => i ? -Infinity : 0);
  return Float64Array.from(ordered, (logit) => (logit - ordered[0]) / Math.max(temperature, 1e-30));
}

// The distribution to draw from, for tempered logits from high to low, and how many candidates are left after top-k,
// after top-p and after min-p: {p (n), kept}
function samplingProbabilities(tempered, {top_k, top_p, min_p}) {
  const p = Float64Array.from(tempered, Math.exp);
  const keep = (count) => {
    p.fill(0, count);
    let sum = 0;
    for (const value of p) sum += value;
    for (let i = 0; i < count; i++) p[i] /= sum;
    return count;
  };
  const byK = keep(Math.min(top_k || p.length, p.length));
  let byP = byK;
  if (top_p < 1) {
    byP = 0;
    for (let before = 0; byP < byK && before < top_p; byP++) before += p[byP];
    keep(byP);
  }
  let byMin = byP;
  if (min_p > 0) {
    for (byMin = 0; byMin < byP && p[byMin] >= min_p * p[0];) byMin++;
    keep(byMin);
  }
  return {p, kept: [byK, byP, byMin]};
}

// Lay the probabilities end to end on [0, 1): the index whose interval holds the number, and where each one ends.
function draw(p, randomNumber) {
  const ends = new Float64Array(p.length);
  let sum = 0;
  for (let i = 0; i < p.length; i++) ends[i] = sum += p[i];
  for (let i = 0; i < p.length; i++) ends[i] /= sum;
  return {index: ends.findIndex((end) => randomNumber < end), ends};
}

// The tokens that can be drawn, and at least `record` of them, the likeliest first. `seen` has the tokens of the text.
function findCandidates(logits, sampling, seen, record = 0) {
  const penalised = penalise(logits, seen, sampling.repetition_penalty), own = distribution(logits);
  const n = sampling.top_k ? Math.min(Math.max(sampling.top_k, record), logits.length) : logits.length;
  const ids = mostLikely(penalised, n), pick = (array) => Float64Array.from(ids, (id) => array[id]);
  return {ids, penalised: pick(penalised), modelP: pick(own.p), entropy: own.entropy, vocab_size: logits.length};
}

// Choose the next token with a random number in [0, 1).
function choose({ids, penalised, modelP, entropy, vocab_size}, randomNumber, sampling) {
  const {p: sampledP, kept} = samplingProbabilities(applyTemperature(penalised, sampling.temperature), sampling);
  const {index, ends} = draw(sampledP, randomNumber);
  return {token: ids[index], rank: index + 1, p: modelP[index], entropy, randomNumber, ids, modelP, sampledP, ends, kept, vocab_size};
}

// The model's own distribution over all V tokens, and its entropy in bits.
function distribution(logits) {
  const V = logits.length, p = new Float64Array(V);
  let highest = -Infinity, total = 0, weighted = 0;
  for (let i = 0; i < V; i++) if (logits[i] > highest) highest = logits[i];
  for (let i = 0; i < V; i++) {
    total += p[i] = Math.exp(logits[i] - highest);
    if (p[i] > 0) weighted += p[i] * (logits[i] - highest);
  }
  for (let i = 0; i < V; i++) p[i] /= total;
  return {p, entropy: (Math.log(total) - weighted / total) / Math.LN2};
}

// The numbers in [0, 1) that torch.rand(dtype=torch.float64) gives for a seed: Mersenne Twister (Matsumoto and Nishimura
// 1998), two of its 32-bit numbers for the 53 bits of a double.
function* randomNumbers(seed) {
  const N = 624, M = 397, state = new Uint32Array(N);
  state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
  for (let i = 1; i < N; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ state[i - 1] >>> 30) + i;
  let next = N;
  const number = () => {
    if (next === N) {
      for (let i = 0; i < N; i++) {
        const y = state[i] & 0x80000000 | state[(i + 1) % N] & 0x7fffffff;
        state[i] = state[(i + M) % N] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }
    let y = state[next++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    return (y ^ y >>> 18) >>> 0;
  };
  for (;;) {
    const high = number() & 0x1fffff;
    yield (high * 2 ** 32 + number()) / 2 ** 53;
  }
}

// Where the text that the model sees starts, when it has been continued from `prompt` tokens (which fit a block) to
// `length` tokens. A full block forgets its older half.
function windowStart(prompt, length, blockSize) {
  let start = 0;
  for (let end = prompt + 1; end <= length; end++) {
    if (end - 1 - start === blockSize) start = end - Math.max(1, Math.floor(blockSize / 2));
  }
  return start;
}

// === interpretation, as model/interpretation/forward_pass.py =========================================================

// What each component added to the residual stream at a position: [{name, output (C)}, ...]; the sum is the residual
// after the last layer.
function components(model, cache, position) {
  const C = cache.width, found = [{name: "embedding", output: cache.row(cache.residual[0], position)}];
  model.blocks.forEach((block, layer) => {
    const H = block.attention.n_head, D = C / H, y = cache.row(cache.attended[layer], position);
    for (let h = 0; h < H; h++) {
      const alone = new Float32Array(C);
      alone.set(y.subarray(h * D, (h + 1) * D), h * D);
      found.push({name: `L${layer}H${h}`, output: block.attention.output.forward(alone).slice()});
    }
    found.push({name: `L${layer}MLP`, output: cache.row(cache.fed[layer], position)});
  });
  return found;
}

// What an output of a component adds to every logit (V). The final norm divides all of them by the same number.
function attribution(model, cache, position, output) {
  const scale = model.norm.scale(cache.row(cache.residual.at(-1), position));
  return model.head.forward(output.map((value, i) => value * scale * model.norm.weight[i]));
}

// === the product of a matrix and a vector ============================================================================

// Nearly all of the time goes into this product, so it alone is written for WebAssembly, whose instructions multiply and
// add four numbers in fp32 at once. The vector x is at address 0; addresses and sizes are in bytes:
//
//   product(w, inputs, y, end)   for each y before end: y = the sum of w[i] x[i], where w goes on from row to row
//
// Eight numbers are taken at a time, so a row has a multiple of 8. The function is put together here from the bytes of
// its instructions: each takes its operands from a stack and leaves its result there.
function productModule() {
  const [w, inputs, y, end, at, a, b] = [0, 1, 2, 3, 4, 5, 6];  // at: the address in x; a and b: four sums each
  const get = (variable) => [0x20, variable], set = (variable) => [0x21, variable], constant = (n) => [0x41, n];
  const loop = [0x03, 0x40], endOfLoop = 0x0b, repeatIfBelow = [0x49, 0x0d, 0], plus = 0x6a;  // of integers
  const float = {plus: 0x92, store: [0x38, 0, 0]};
  const four = {  // floats at once; 0xfd is the prefix of these instructions
    zeros: [0x41, 0, 0xfd, 0x11], load: (address, offset) => [get(address), 0xfd, 0x00, 0, offset],
    plus: [0xfd, 0xe4, 1], times: [0xfd, 0xe6, 1], lane: (i) => [get(a), 0xfd, 0x1f, i],
  };
  const addProduct = (sums, offset) => [get(sums), four.load(w, offset), four.load(at, offset), four.times, four.plus, set(sums)];
  const move = (address, bytes) => [get(address), constant(bytes), plus, set(address)];
  const body = [
    [2, 1, 0x7f, 2, 0x7b],  // variables that are no parameters: one integer, two times four floats
    loop,
      four.zeros, set(a), four.zeros, set(b), constant(0), set(at),
      loop,
        addProduct(a, 0), addProduct(b, 16),
        move(w, 32), move(at, 32),
        get(at), get(inputs), repeatIfBelow,
      endOfLoop,
      get(a), get(b), four.plus, set(a),
      get(y), four.lane(0), four.lane(1), float.plus, four.lane(2), float.plus, four.lane(3), float.plus, float.store,
      move(y, 4), get(y), get(end), repeatIfBelow,
    endOfLoop,
    0x0b,  // end of the function
  ].flat(Infinity);
  const size = (n) => n < 128 ? n : [n & 127 | 128, n >> 7], name = (text) => [text.length, ...new TextEncoder().encode(text)];
  const section = (id, ...content) => [id, size(content.flat(Infinity).length), content];
  return new Uint8Array([
    [0, ...new TextEncoder().encode("asm"), 1, 0, 0, 0],  // version 1
    section(1, 1, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 0),  // one type of function: four integers, no result
    section(2, 1, name("page"), name("memory"), 2, 0, 1),  // it gets a memory,
    section(3, 1, 0),  // has one function of type 0
    section(7, 1, name("product"), 0, 0),  // with this name
    section(10, 1, size(body.length), body),  // and this body
  ].flat(Infinity));
}

// Room for tensors of these shapes where WebAssembly reaches them. Where a browser has it, product() is the function above.
class Memory {
  constructor(shapes) {
    const longest = Math.max(...shapes.flat()), sizes = shapes.map(([rows, columns = 1]) => rows * columns);
    const pages = Math.ceil([longest, longest, ...sizes].reduce((sum, count) => sum + this.bytes(count), 0) / 2 ** 16);
    try {
      const memory = new WebAssembly.Memory({initial: pages});
      this.product = new WebAssembly.Instance(new WebAssembly.Module(productModule()), {page: {memory}}).exports.product;
      this.buffer = memory.buffer;
    } catch {
      this.buffer = new ArrayBuffer(pages * 2 ** 16);
    }
    this.used = 0;
    this.x = this.take(longest);
    this.y = this.take(longest);
  }

  bytes(count) {  // of so many floats, a multiple of 16, so that all start where four can be fetched at once
    return Math.ceil(count / 4) * 16;
  }

  take(count) {
    const floats = new Float32Array(this.buffer, this.used, count);
    this.used += this.bytes(count);
    return floats;
  }
}

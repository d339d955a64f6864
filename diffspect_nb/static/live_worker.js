// The small world's computations, in a thread of their own: projections, EM, the network and its gradient, both walks.
// The same arithmetic as diffspect_nb/live.py and the modules it uses; tests hold both to the same images.

// ---- the file: safetensors -------------------------------------------------------------------------------------------

function halfToFloat(h) {
  const e = (h >> 10) & 31, m = h & 1023, sign = h & 32768 ? -1 : 1;
  return sign * (e === 0 ? m * 2 ** -24 : e === 31 ? (m ? NaN : Infinity) : (1 + m / 1024) * 2 ** (e - 15));
}

function readTensors(buffer) { // name → array; floats as Float32Array, bytes and short integers as they are
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const found = { about: JSON.parse(head.__metadata__.about), shapes: {} };
  delete head.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(head)) {
    const bytes = buffer.slice(8 + length + from, 8 + length + to);
    found.shapes[name] = shape;
    if (dtype === "F32") found[name] = new Float32Array(bytes);
    else if (dtype === "F16") found[name] = Float32Array.from(new Uint16Array(bytes), halfToFloat);
    else if (dtype === "I16") found[name] = new Int16Array(bytes);
    else found[name] = new Uint8Array(bytes);
  }
  return found;
}

// ---- chance: numbers of a seed, a stream and a place, the same in Python -------------------------------------------------

function mix(x) {
  x = (x + 0x9e3779b9) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

const uniform = (key, i) => (mix(key ^ i) + 0.5) / 4294967296;
const keyOf = (seed, stream) => mix(mix(seed) ^ stream);

function normalField(seed, stream, n) { // standard normal, by Box and Muller
  const found = new Float32Array(n), key = keyOf(seed, stream);
  for (let i = 0; i < n; i++) {
    found[i] = Math.sqrt(-2 * Math.log(uniform(key, 2 * i))) * Math.cos(2 * Math.PI * uniform(key, 2 * i + 1));
  }
  return found;
}

function poissonCounts(seed, means) { // arrivals of a unit-rate process before each mean: fewer photons, the same ones
  const found = new Float32Array(means.length);
  for (let k = 0; k < means.length; k++) {
    const key = keyOf(seed, 0x10000 + k);
    for (let at = -Math.log(uniform(key, 0)), i = 1; at < means[k]; i++) { found[k] += 1; at -= Math.log(uniform(key, i)); }
  }
  return found;
}

// ---- the scanner: a sparse matrix, and EM with it --------------------------------------------------------------------

class System {
  constructor(views, bins, voxels) { Object.assign(this, { views, bins, voxels }); } // views: { start, voxel, value }
  static of(tensors) { // rows are bins (view, column), columns are pixels
    const { length, voxel, value } = tensors, [nViews, bins] = tensors.shapes.length, views = [];
    for (let v = 0, at = 0; v < nViews; v++) {
      const start = new Uint32Array(bins + 1);
      start[0] = at;
      for (let b = 0; b < bins; b++) start[b + 1] = at += length[v * bins + b];
      views.push({ start, voxel, value });
    }
    return new System(views, bins, tensors.shapes.activity.slice(-2).reduce((a, b) => a * b));
  }
  keep(indices) { return new System(indices.map((v) => this.views[v]), this.bins, this.voxels); }
  subsets(n) { // interleaved; each with the views it has
    this.parts ??= {};
    return (this.parts[n] ??= Array.from({ length: n }, (_, i) => {
      const indices = this.views.map((_, v) => v).filter((v) => v % n === i);
      return { indices, system: n === 1 ? this : this.keep(indices) };
    }));
  }
  forward(image) {
    const found = new Float32Array(this.views.length * this.bins);
    this.views.forEach(({ start, voxel, value }, v) => {
      for (let b = 0; b < this.bins; b++) {
        let sum = 0;
        for (let i = start[b]; i < start[b + 1]; i++) sum += value[i] * image[voxel[i]];
        found[v * this.bins + b] = sum;
      }
    });
    return found;
  }
  adjoint(counts) {
    const found = new Float64Array(this.voxels);
    this.views.forEach(({ start, voxel, value }, v) => {
      for (let b = 0; b < this.bins; b++) {
        const y = counts[v * this.bins + b];
        if (y !== 0) for (let i = start[b]; i < start[b + 1]; i++) found[voxel[i]] += value[i] * y;
      }
    });
    return Float32Array.from(found);
  }
  get sensitivity() { return (this.seen ??= this.adjoint(new Float32Array(this.views.length * this.bins).fill(1))); }
}

const ratioOf = (y, expected) => y.map((n, k) => (expected[k] > 0 ? n / expected[k] : 0));
const sum = (a) => a.reduce((total, v) => total + v, 0);
const of = (y, indices, bins) => Float32Array.from({ length: indices.length * bins }, (_, k) => y[indices[Math.floor(k / bins)] * bins + (k % bins)]);

function em(system, y, passes, nSubsets = 1, start = null) { // photons of this acquisition
  const s = system.sensitivity, level = sum(y) / sum(s);
  let x = Float32Array.from(s, (v, j) => (v > 0 ? (start ? start[j] : level) : 0));
  const parts = system.subsets(nSubsets).map((p) => ({ ...p, y: of(y, p.indices, system.bins) }));
  for (let n = 0; n < passes; n++) {
    for (const part of parts) {
      if (nSubsets > 1 && !part.y.some((v) => v > 0)) continue; // says nothing about its pixels
      const back = part.system.adjoint(ratioOf(part.y, part.system.forward(x))), seen = part.system.sensitivity;
      x = x.map((v, j) => (seen[j] > 0 ? (v * back[j]) / seen[j] : v));
    }
  }
  return x;
}

function anchoredRoot(e, s, anchor, b) { // the positive root of b v² − (b v⁰ − s) v − e = 0
  const pull = b * anchor - s, root = Math.sqrt(pull * pull + 4 * b * e);
  if (pull > 0) return (pull + root) / (2 * b);
  if (b * anchor > 0 || s > 0) return root > pull ? (2 * e) / (root - pull) : 0;
  return anchor;
}

function anchoredEm(system, y, anchor, strength, passes, nSubsets) {
  const parts = system.subsets(nSubsets).map((p) => ({ ...p, y: of(y, p.indices, system.bins) }));
  let v = anchor;
  for (let n = 0; n < passes; n++) {
    for (const { system: part, y: counts } of parts) {
      const back = part.adjoint(ratioOf(counts, part.forward(v))), s = part.sensitivity;
      v = v.map((at, j) => anchoredRoot(nSubsets * at * back[j], nSubsets * s[j], anchor[j], strength));
    }
  }
  return v;
}

// ---- products of matrices: four numbers at a time in WebAssembly, written out here byte by byte ------------------------------

const byte = (n) => [n];
function leb(n) { // unsigned LEB128
  const found = [];
  do { found.push((n & 127) | (n > 127 ? 128 : 0)); n >>>= 7; } while (n);
  return found;
}

function productModule() {
  // product(a, b, table, c, k, n, m): c[i][j] += Σ_p a[i][p] · float at (b + table[p] + 4 j), i < m, j < n, in blocks of
  // 4 × 8; row i of c begins 4 · stride bytes after row i − 1. All arguments are byte addresses or numbers.
  const A = 0, B = 1, T = 2, C = 3, K = 4, N = 5, M = 6, STRIDE = 7, I = 8, J = 9, P = 10, CI = 11, AI = 12, BP = 13, ROW = 14, AP = 15;
  const ACC = 16, B0 = 24, B1 = 25, S = 26;
  const get = (v) => [0x20, v], set = (v) => [0x21, v], num = (n) => [0x41, ...sleb(n)], add = byte(0x6a), mul = byte(0x6c);
  const load = (offset) => [0xfd, 0x00, 0, ...leb(offset)], store = (offset) => [0xfd, 0x0b, 0, ...leb(offset)], splat = [0xfd, 0x09, 2, 0];
  const times = [0xfd, 0xe6, 0x01], plus = [0xfd, 0xe4, 0x01], word = [0x28, 2, 0];
  const loop = (body, variable, step, limit) => [0x03, 0x40, ...body, ...get(variable), ...num(step), ...add, 0x22, variable, ...get(limit), 0x49, 0x0d, 0, 0x0b];
  const advance = (v, by) => [...get(v), ...by, ...add, ...set(v)];
  const rows = [0, 1, 2, 3], bytesOf = (v) => [...get(v), ...num(2), 0x74]; // × 4
  const cRow = (r) => (r ? [...get(C), ...get(I), ...num(r), ...add, ...get(STRIDE), ...mul, ...num(2), 0x74, ...add, ...bytesOf(J), ...add]
    : [...get(C), ...get(I), ...get(STRIDE), ...mul, ...num(2), 0x74, ...add, ...bytesOf(J), ...add]);
  const inner = [
    ...get(B), ...get(T), ...bytesOf(P), ...add, ...word, ...add, ...bytesOf(J), ...add, 0x22, BP, ...load(0), ...set(B0), ...get(BP), ...load(16), ...set(B1),
    ...get(AI), ...bytesOf(P), ...add, ...set(AP),
    ...rows.flatMap((r) => [
      ...get(AP), ...splat, ...set(S),
      ...get(ACC + 2 * r), ...get(S), ...get(B0), ...times, ...plus, ...set(ACC + 2 * r),
      ...get(ACC + 2 * r + 1), ...get(S), ...get(B1), ...times, ...plus, ...set(ACC + 2 * r + 1),
      ...(r < 3 ? advance(AP, get(ROW)) : []),
    ]),
  ];
  const block = [
    ...get(A), ...get(I), ...get(ROW), ...mul, ...add, ...set(AI),
    ...rows.flatMap((r) => [...cRow(r), 0x22, CI, ...load(0), ...set(ACC + 2 * r), ...get(CI), ...load(16), ...set(ACC + 2 * r + 1)]),
    ...num(0), ...set(P), ...loop(inner, P, 1, K),
    ...rows.flatMap((r) => [...cRow(r), 0x22, CI, ...get(ACC + 2 * r), ...store(0), ...get(CI), ...get(ACC + 2 * r + 1), ...store(16)]),
  ];
  const code = [
    ...bytesOf(K), ...set(ROW), ...num(0), ...set(J),
    ...loop([...num(0), ...set(I), ...loop(block, I, 4, M)], J, 8, N), 0x0b,
  ];
  const locals = [2, 8, 0x7f, 11, 0x7b]; // eight integers, eleven vectors
  const body = [...locals, ...code], section = (id, content) => [id, ...leb(content.length), ...content];
  const name = (text) => [text.length, ...[...text].map((c) => c.charCodeAt(0))];
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, 8, ...Array(8).fill(0x7f), 0]),
    ...section(2, [1, ...name("m"), ...name("m"), 2, 0, 1]),
    ...section(3, [1, 0]),
    ...section(7, [1, ...name("product"), 0, 0]),
    ...section(10, [1, ...leb(body.length), ...body]),
  ]);
}

function sleb(n) { // signed LEB128 of a number >= 0
  const found = [];
  for (;;) {
    const low = n & 127;
    n >>= 7;
    if (n === 0 && !(low & 64)) return [...found, low];
    found.push(low | 128);
  }
}

function plainProduct(memory) { // where a browser has no vectors: the same, slower
  return (a, b, table, c, k, n, m, stride) => {
    const f = new Float32Array(memory.buffer), t = new Int32Array(memory.buffer);
    for (let i = 0; i < m; i++) for (let p = 0; p < k; p++) {
      const w = f[a / 4 + i * k + p], from = (b + t[table / 4 + p]) / 4, to = c / 4 + i * stride;
      if (w !== 0) for (let j = 0; j < n; j++) f[to + j] += w * f[from + j];
    }
  };
}

// ---- the network: what diffspect_nb/slice_network.py computes, and its gradient with respect to the image -----------------

class Arena { // images of several channels in one memory; each channel has a border of one pixel, which stays 0
  constructor(megabytes) {
    this.memory = new WebAssembly.Memory({ initial: megabytes * 16 });
    this.f = new Float32Array(this.memory.buffer);
    this.ints = new Int32Array(this.memory.buffer);
    this.top = 64;
    try {
      this.product = new WebAssembly.Instance(new WebAssembly.Module(productModule()), { m: { m: this.memory } }).exports.product;
    } catch { this.product = plainProduct(this.memory); }
  }
  take(n) { const at = this.top; this.top += Math.ceil(n / 4) * 4 + 64; if (this.top > this.f.length) throw new Error("arena is full"); return at; }
  put(values) { const at = this.take(values.length); this.f.set(values, at); return at; }
  table(offsets) { const at = this.take(offsets.length); this.ints.set(offsets, at); return at; }
  image(c, side) { return { c, side, row: side + 2, plane: (side + 2) ** 2, at: this.take(c * (side + 2) ** 2) }; }
}

const inside = (image, visit) => { // first element of each row, of all channels
  for (let c = 0; c < image.c; c++) for (let y = 0; y < image.side; y++) visit(image.at + c * image.plane + (y + 1) * image.row + 1, c, y);
};

class Conv { // 3 × 3 or 1 × 1, stride 1; `back` is the same with the weights turned round
  constructor(arena, weight, bias, [out, cin, edge], side) {
    Object.assign(this, { arena, out, cin, edge, side, k: cin * edge * edge });
    const row = side + 2, plane = row * row, reach = (edge - 1) / 2, taps = [];
    for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) taps.push(y * row + x);
    const tableOf = (channels) => arena.table(Array.from({ length: channels * taps.length }, (_, p) => 4 * (Math.floor(p / taps.length) * plane + taps[p % taps.length])));
    const turned = new Float32Array(weight.length), n = taps.length;
    for (let o = 0; o < out; o++) for (let i = 0; i < cin; i++) for (let p = 0; p < n; p++) turned[(i * out + o) * n + n - 1 - p] = weight[(o * cin + i) * n + p];
    this.weight = arena.put(weight);
    this.turned = arena.put(turned);
    this.table = tableOf(cin);
    this.backTable = tableOf(out);
    this.bias = bias;
  }
  forward(from, to) { this.run(from, to, this.weight, this.table, this.k, this.out, this.bias); }
  back(from, to) { this.run(from, to, this.turned, this.backTable, this.out * this.edge * this.edge, this.cin, null); }
  run(from, to, weight, table, k, out, bias) { // the border of `to` is left with numbers that mean nothing
    const { f, product } = this.arena, { row, plane, side } = to, first = row + 1, n = Math.ceil((side * row - 2) / 8) * 8;
    for (let o = 0; o < out; o++) f.fill(bias ? bias[o] : 0, to.at + o * plane + first, to.at + o * plane + first + n);
    product(4 * weight, 4 * (from.at + first), 4 * table, 4 * (to.at + first), k, n, out, plane);
  }
}

class Norm { // group normalisation, an affine map per channel and, where asked for, SiLU
  constructor(arena, weight, bias, groups) { Object.assign(this, { f: arena.f, weight, bias, groups, mean: [], scale: [] }); }
  forward(from, to, gain = this.weight, shift = this.bias, silu = true) {
    const { f } = this, size = from.c / this.groups, { side } = from, n = size * side * side;
    Object.assign(this, { from, gain: Float64Array.from(gain), shift: Float64Array.from(shift), silu });
    const total = new Float64Array(this.groups), square = new Float64Array(this.groups);
    inside(from, (at, c) => { let s = 0; for (let x = 0; x < side; x++) s += f[at + x]; total[Math.floor(c / size)] += s; });
    this.mean = total.map((t) => t / n);
    inside(from, (at, c) => { const m = this.mean[Math.floor(c / size)]; let s = 0; for (let x = 0; x < side; x++) s += (f[at + x] - m) ** 2; square[Math.floor(c / size)] += s; });
    this.scale = square.map((s) => 1 / Math.sqrt(s / n + 1e-5));
    inside(from, (at, c, y) => {
      const g = Math.floor(c / size), a = this.scale[g] * gain[c], b = shift[c] - this.mean[g] * a, put = to.at + c * to.plane + (y + 1) * to.row + 1;
      for (let x = 0; x < side; x++) { const v = a * f[at + x] + b; f[put + x] = silu ? v / (1 + Math.exp(-v)) : v; }
    });
  }
  back(from, to, add = false) { // gradient of what came out → of what went in
    const { f } = this, size = this.from.c / this.groups, { side } = this.from, n = size * side * side;
    const first = new Float64Array(this.groups), second = new Float64Array(this.groups);
    const shift = this.from.at - to.at, other = from.at - to.at;
    inside(to, (at, c) => { // the gradient before the activation, times the gain: into `from`, in place
      const g = Math.floor(c / size), m = this.mean[g], s = this.scale[g], a = this.gain[c], b = this.shift[c];
      let one = 0, two = 0;
      for (let x = 0; x < side; x++) {
        const z = (f[at + shift + x] - m) * s, v = a * z + b;
        let d = f[at + other + x];
        if (this.silu) { const q = 1 / (1 + Math.exp(-v)); d *= q * (1 + v * (1 - q)); }
        d *= a;
        f[at + other + x] = d;
        one += d; two += d * z;
      }
      first[g] += one; second[g] += two;
    });
    inside(to, (at, c) => {
      const g = Math.floor(c / size), m = this.mean[g], s = this.scale[g], one = first[g] / n, two = second[g] / n;
      for (let x = 0; x < side; x++) {
        const d = s * (f[at + other + x] - one - (f[at + shift + x] - m) * s * two);
        f[at + x] = add ? f[at + x] + d : d;
      }
    });
  }
}

function combine(arena, to, from, how) { // to ← how(to, from), where there is no border
  const { f } = arena, shift = from.at - to.at;
  inside(to, (at) => { for (let x = 0; x < to.side; x++) f[at + x] = how(f[at + x], f[at + shift + x]); });
}
const plus = (a, b) => a + b, second = (_, b) => b;
const part = (image, from, n) => ({ ...image, c: n, at: image.at + from * image.plane });

class Block {
  constructor(arena, w, name, groups, side) {
    const conv = (part) => new Conv(arena, w[`${name}.${part}.weight`], w[`${name}.${part}.bias`], w.shapes[`${name}.${part}.weight`], side);
    const norm = (part) => new Norm(arena, w[`${name}.${part}.weight`], w[`${name}.${part}.bias`], groups);
    this.convIn = conv("conv_in"); this.convOut = conv("conv_out");
    this.normIn = norm("norm_in"); this.normOut = norm("norm_out");
    this.skip = w[`${name}.skip.weight`] && conv("skip");
    this.modulation = [w[`${name}.modulation.weight`], w[`${name}.modulation.bias`]];
    const { cin, out } = this.convIn;
    this.arena = arena;
    this.wide = arena.image(cin, side); this.middle = arena.image(out, side); this.thin = arena.image(out, side); this.output = arena.image(out, side);
    this.gradient = arena.image(cin, side); this.gradientWide = arena.image(cin, side); this.gradientThin = arena.image(out, side); this.gradientMiddle = arena.image(out, side);
  }
  forward(x, embedding) {
    const [weight, bias] = this.modulation, n = this.convIn.out, told = Float64Array.from(bias);
    for (let o = 0; o < 2 * n; o++) for (let e = 0; e < embedding.length; e++) told[o] += weight[o * embedding.length + e] * embedding[e];
    this.normIn.forward(x, this.wide);
    this.convIn.forward(this.wide, this.middle);
    const gain = this.normOut.weight.map((g, c) => g * (1 + told[c])), shift = this.normOut.bias.map((b, c) => b * (1 + told[c]) + told[n + c]);
    this.normOut.forward(this.middle, this.thin, gain, shift);
    this.convOut.forward(this.thin, this.output);
    if (this.skip) { this.skip.forward(x, this.gradientMiddle); combine(this.arena, this.output, this.gradientMiddle, plus); }
    else combine(this.arena, this.output, x, plus);
    return this.output;
  }
  back(d) {
    this.convOut.back(d, this.gradientThin);
    this.normOut.back(this.gradientThin, this.gradientMiddle);
    clearBorder(this.arena, this.gradientMiddle);
    this.convIn.back(this.gradientMiddle, this.gradientWide);
    this.normIn.back(this.gradientWide, this.gradient);
    if (this.skip) { this.skip.back(d, this.gradientWide); combine(this.arena, this.gradient, this.gradientWide, plus); }
    else combine(this.arena, this.gradient, d, plus);
    return this.gradient;
  }
}

function clearBorder({ f }, image) {
  for (let c = 0; c < image.c; c++) {
    const at = image.at + c * image.plane, { row, plane } = image;
    f.fill(0, at, at + row); f.fill(0, at + plane - row, at + plane);
    for (let y = 1; y <= image.side; y++) { f[at + y * row] = 0; f[at + (y + 1) * row - 1] = 0; }
  }
}

class Attention { // over all pixels of the coarsest resolution, one head
  constructor(arena, w, groups, side) {
    const width = w.shapes["attention.norm.weight"][0];
    this.arena = arena; this.width = width; this.n = side * side;
    this.norm = new Norm(arena, w["attention.norm.weight"], w["attention.norm.bias"], groups);
    const conv = (part) => new Conv(arena, w[`attention.${part}.weight`], w[`attention.${part}.bias`], w.shapes[`attention.${part}.weight`], side);
    this.qkv = conv("qkv"); this.project = conv("project");
    this.normed = arena.image(width, side); this.three = arena.image(3 * width, side); this.seen = arena.image(width, side); this.output = arena.image(width, side);
    this.gradient = arena.image(width, side);
    this.share = new Float64Array(this.n * this.n);
  }
  tokens(image, from, width) { // (pixel, channel)
    const found = new Float64Array(this.n * width), { f } = this.arena, { side } = image;
    inside(part(image, from, width), (at, c, y) => { for (let x = 0; x < side; x++) found[(y * side + x) * width + c] = f[at + x]; });
    return found;
  }
  untokens(values, image, from, width) {
    const { f } = this.arena, { side } = image;
    inside(part(image, from, width), (at, c, y) => { for (let x = 0; x < side; x++) f[at + x] = values[(y * side + x) * width + c]; });
  }
  forward(x) {
    const { n, width, share } = this;
    this.norm.forward(x, this.normed, undefined, undefined, false);
    this.qkv.forward(this.normed, this.three);
    [this.q, this.k, this.v] = [0, 1, 2].map((i) => this.tokens(this.three, i * width, width));
    const seen = new Float64Array(n * width);
    for (let i = 0; i < n; i++) {
      let top = -Infinity, total = 0;
      for (let j = 0; j < n; j++) {
        let s = 0;
        for (let c = 0; c < width; c++) s += this.q[i * width + c] * this.k[j * width + c];
        share[i * n + j] = s /= Math.sqrt(width);
        top = Math.max(top, s);
      }
      for (let j = 0; j < n; j++) total += share[i * n + j] = Math.exp(share[i * n + j] - top);
      for (let j = 0; j < n; j++) {
        const p = (share[i * n + j] /= total);
        for (let c = 0; c < width; c++) seen[i * width + c] += p * this.v[j * width + c];
      }
    }
    this.untokens(seen, this.seen, 0, width);
    this.project.forward(this.seen, this.output);
    combine(this.arena, this.output, x, plus);
    return this.output;
  }
  back(d) {
    const { n, width, share } = this;
    this.project.back(d, this.seen);
    const g = this.tokens(this.seen, 0, width), [dq, dk, dv] = [0, 1, 2].map(() => new Float64Array(n * width)), dp = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      let mean = 0;
      for (let j = 0; j < n; j++) {
        let s = 0;
        const p = share[i * n + j];
        for (let c = 0; c < width; c++) { s += g[i * width + c] * this.v[j * width + c]; dv[j * width + c] += p * g[i * width + c]; }
        dp[j] = s;
        mean += s * p;
      }
      for (let j = 0; j < n; j++) {
        const s = (share[i * n + j] * (dp[j] - mean)) / Math.sqrt(width);
        for (let c = 0; c < width; c++) { dq[i * width + c] += s * this.k[j * width + c]; dk[j * width + c] += s * this.q[i * width + c]; }
      }
    }
    [dq, dk, dv].forEach((values, i) => this.untokens(values, this.three, i * width, width));
    clearBorder(this.arena, this.three);
    this.qkv.back(this.three, this.normed);
    this.norm.back(this.normed, this.gradient);
    combine(this.arena, this.gradient, d, plus);
    return this.gradient;
  }
}

class Network {
  constructor(w, side) { // side of the image; two channels come out: noise, and the raw variance
    const { widths, groups, patch } = w.about.network, arena = (this.arena = new Arena(24));
    this.side = side; this.patch = patch; this.embeddings = w.embeddings; this.length = w.shapes.embeddings[1];
    const sides = widths.map((_, i) => side / patch / 2 ** i);
    const conv = (name, at) => new Conv(arena, w[`${name}.weight`], w[`${name}.bias`], w.shapes[`${name}.weight`], at);
    this.input = arena.image(patch * patch, sides[0]);
    this.stem = conv("stem", sides[0]);
    this.stemmed = arena.image(widths[0], sides[0]);
    this.levels = widths.slice(0, -1).map((width, i) => ({
      encoder: new Block(arena, w, `encoder.${i}.0`, groups, sides[i]), decoder: new Block(arena, w, `decoder.${i}.0`, groups, sides[i]),
      down: conv(`down.${i}`, sides[i]), full: arena.image(widths[i + 1], sides[i]), halved: arena.image(widths[i + 1], sides[i + 1]),
      doubled: arena.image(widths[i + 1], sides[i]), up: conv(`up.${i}`, sides[i]), both: arena.image(2 * width, sides[i]),
      clean: arena.image(width, sides[i]), dUp: arena.image(width, sides[i]), dSkip: arena.image(width, sides[i]), dHalved: arena.image(widths[i + 1], sides[i + 1]),
    }));
    const last = widths.length - 1;
    this.bottom = new Block(arena, w, `encoder.${last}.0`, groups, sides[last]);
    this.attention = new Attention(arena, w, groups, sides[last]);
    this.middle = new Block(arena, w, "middle", groups, sides[last]);
    this.norm = new Norm(arena, w["norm.weight"], w["norm.bias"], groups);
    this.normed = arena.image(widths[0], sides[0]);
    this.head = conv("head", sides[0]);
    this.out = arena.image(2 * patch * patch, sides[0]);
    this.dNormed = arena.image(widths[0], sides[0]);
    this.dInput = arena.image(patch * patch, sides[0]);
    this.dTop = arena.image(widths[0], sides[0]);
  }
  fold(image, to, channels) { // pixels → channels
    const { f } = this.arena, { patch, side } = this;
    for (let c = 0; c < channels; c++) for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
      const into = (c * patch + (y % patch)) * patch + (x % patch);
      f[to.at + into * to.plane + (Math.floor(y / patch) + 1) * to.row + Math.floor(x / patch) + 1] = image[c * side * side + y * side + x];
    }
  }
  unfold(from, channels) {
    const { f } = this.arena, { patch, side } = this, found = new Float32Array(channels * side * side);
    for (let c = 0; c < channels; c++) for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
      const out = (c * patch + (y % patch)) * patch + (x % patch);
      found[c * side * side + y * side + x] = f[from.at + out * from.plane + (Math.floor(y / patch) + 1) * from.row + Math.floor(x / patch) + 1];
    }
    return found;
  }
  forward(image, t) { // (2 · side²): noise and raw variance
    const { f } = this.arena, e = this.embeddings.subarray(t * this.length, (t + 1) * this.length);
    this.fold(image, this.input, 1);
    this.stem.forward(this.input, this.stemmed);
    let h = this.stemmed;
    for (const level of this.levels) {
      h = level.kept = level.encoder.forward(h, e);
      combine(this.arena, level.clean, h, second);
      level.down.forward(level.clean, level.full);
      const { full, halved } = level;
      inside(halved, (at, c, y) => { const from = full.at + c * full.plane + (2 * y + 1) * full.row + 1; for (let x = 0; x < halved.side; x++) f[at + x] = f[from + 2 * x]; });
      h = halved;
    }
    h = this.middle.forward(this.attention.forward(this.bottom.forward(h, e)), e);
    for (const level of [...this.levels].reverse()) {
      const { doubled, both } = level, n = both.c / 2, low = h;
      inside(doubled, (at, c, y) => { const from = low.at + c * low.plane + ((y >> 1) + 1) * low.row + 1; for (let x = 0; x < doubled.side; x++) f[at + x] = f[from + (x >> 1)]; });
      level.up.forward(doubled, part(both, 0, n));
      combine(this.arena, part(both, n, n), level.kept, second);
      h = level.decoder.forward(both, e);
    }
    this.norm.forward(h, this.normed);
    this.head.forward(this.normed, this.out);
    return this.unfold(this.out, 2);
  }
  back(gradient) { // of the noise that came out last → of the image that went in
    const { f } = this.arena;
    this.fold(Float32Array.from({ length: 2 * gradient.length }, (_, i) => gradient[i] ?? 0), this.out, 2);
    clearBorder(this.arena, this.out);
    this.head.back(this.out, this.dNormed);
    this.norm.back(this.dNormed, this.dTop);
    clearBorder(this.arena, this.dTop);
    let d = this.dTop;
    for (const level of this.levels) {
      const g = level.decoder.back(d), n = g.c / 2, { doubled, dUp, dSkip, dHalved } = level;
      combine(this.arena, dUp, part(g, 0, n), second);
      combine(this.arena, dSkip, part(g, n, n), second);
      level.up.back(dUp, doubled);
      inside(dHalved, (at, c, y) => {
        const from = doubled.at + c * doubled.plane + (2 * y + 1) * doubled.row + 1, { row } = doubled;
        for (let x = 0; x < dHalved.side; x++) f[at + x] = f[from + 2 * x] + f[from + 2 * x + 1] + f[from + row + 2 * x] + f[from + row + 2 * x + 1];
      });
      clearBorder(this.arena, doubled);
      d = dHalved;
    }
    d = this.bottom.back(this.attention.back(this.middle.back(d)));
    for (const level of [...this.levels].reverse()) {
      const { full, clean, dSkip } = level, low = d;
      for (let c = 0; c < full.c; c++) f.fill(0, full.at + c * full.plane, full.at + (c + 1) * full.plane);
      inside(low, (at, c, y) => { const to = full.at + c * full.plane + (2 * y + 1) * full.row + 1; for (let x = 0; x < low.side; x++) f[to + 2 * x] = f[at + x]; });
      level.down.back(full, clean);
      combine(this.arena, dSkip, clean, plus);
      d = level.encoder.back(dSkip);
      clearBorder(this.arena, level.clean);
    }
    this.stem.back(d, this.dInput);
    return this.unfold(this.dInput, 1);
  }
}

// ---- diffusion -------------------------------------------------------------------------------------------------------

const CEILING = 8, FLOOR = 1e-3;

const levelsOfNoise = (() => { // ᾱ of the cosine schedule, and of the clean image at −1
  const T = 1000, signal = Array.from({ length: T + 1 }, (_, t) => Math.cos(((t / T + 0.008) / 1.008) * (Math.PI / 2)) ** 2), found = [];
  for (let t = 0, kept = 1; t < T; t++) found.push((kept *= 1 - Math.min(1 - signal[t + 1] / signal[t], 0.999)));
  return (t) => (t < 0 ? 1 : found[t]);
})();
const amplitude = (t) => Math.sqrt(levelsOfNoise(t)), sigma = (t) => Math.sqrt(1 - levelsOfNoise(t));

function timesteps(n, start, end = 0) {
  const even = (v) => { const low = Math.floor(v), rest = v - low; return rest === 0.5 ? low + (low % 2) : Math.round(v); };
  return Array.from({ length: n }, (_, i) => even(i === n - 1 && n > 1 ? end : start + i * ((end - start) / Math.max(n - 1, 1))));
}

const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
const addNoise = (x, e, t) => { const a = amplitude(t), s = sigma(t); return x.map((v, j) => a * v + s * e[j]); };

class Denoiser { // x_t → x̂0, v, and the gradient of ‖target − x̂0‖² with respect to x_t
  constructor(network) { this.network = network; }
  estimate(x, t) {
    const n = x.length, out = this.network.forward(x, t), a = amplitude(t), s = sigma(t);
    const raw = Float32Array.from(x, (v, j) => (v - s * out[j]) / a);
    return { t, raw, x0: raw.map((v) => clamp(v, 0, CEILING)), v: Float32Array.from({ length: n }, (_, j) => (out[n + j] + 1) / 2) };
  }
  gradient(found, target) {
    const a = amplitude(found.t), s = sigma(found.t);
    const d = found.x0.map((v, j) => (found.raw[j] >= 0 && found.raw[j] <= CEILING ? -2 * (target[j] - v) : 0));
    const back = this.network.back(d.map((v) => (-s / a) * v));
    return d.map((v, j) => v / a + back[j]);
  }
}

function tvOfLines(image, side, weight, along, rounds = 40) { // argmin ½‖u − image‖² + weight ‖D u‖₁ along rows or columns
  const found = new Float32Array(image.length), step = along === "y" ? side : 1, other = along === "y" ? 1 : side;
  const gain = new Float64Array(side), shrink = (v) => Math.sign(v) * Math.max(Math.abs(v) - weight, 0);
  const diagonal = (i) => (i === 0 || i === side - 1 ? 2 : 3); // of 1 + DᵀD; beside it stands −1
  for (let i = 0, before = 0; i < side; i++) before = gain[i] = -1 / (diagonal(i) + before);
  const u = new Float64Array(side), split = new Float64Array(side), dual = new Float64Array(side), right = new Float64Array(side);
  for (let line = 0; line < side; line++) {
    const at = (i) => line * other + i * step;
    for (let i = 0; i < side - 1; i++) { split[i] = image[at(i + 1)] - image[at(i)]; dual[i] = 0; }
    for (let n = 0; n < rounds; n++) {
      for (let i = 0, before = 0; i < side; i++) {
        const d = image[at(i)] + (i > 0 ? split[i - 1] - dual[i - 1] : 0) - (i < side - 1 ? split[i] - dual[i] : 0);
        before = right[i] = -gain[i] * (d + before);
      }
      for (let i = side - 1, after = 0; i >= 0; i--) after = u[i] = right[i] - (i < side - 1 ? gain[i] * after : 0);
      for (let i = 0; i < side - 1; i++) {
        const rise = u[i + 1] - u[i];
        split[i] = shrink(rise + dual[i]);
        dual[i] += rise - split[i];
      }
    }
    for (let i = 0; i < side; i++) found[at(i)] = u[i];
  }
  return found;
}

const tvInPlane = (image, side, weight) => (weight === 0 ? image : tvOfLines(tvOfLines(image, side, weight, "y"), side, weight, "x"));

// ---- the two walks, each as in diffspect_nb/sampler.py ------------------------------------------------------------------

function* paperWalk({ denoiser, system, y, side, keep }, xIn, scale, w) { // keep: dose; images in photons of this acquisition
  const n = xIn.length, target = xIn.map((v) => clamp(v * scale, 0, CEILING));
  const levels = timesteps(w.steps, w.start);
  const one = (x, i, t, next, z) => {
    const found = denoiser.estimate(x, t); // 3
    let x0 = found.x0;
    const seen = x0, eps = z ? null : x.map((v, j) => (v - amplitude(t) * seen[j]) / sigma(t));
    if (w.lambda_mlem > 0 && (w.steps - i) % w.mlem_interval === 0) { // 4
      const updated = em(system, y, w.mlem_updates, 1, x0.map((v) => Math.max(v, FLOOR) / scale));
      x0 = x0.map((v, j) => (1 - w.lambda_mlem) * v + w.lambda_mlem * scale * updated[j]);
    }
    x0 = tvInPlane(x0.map((v) => Math.min(v, CEILING)), side, w.tv_weight); // 5
    let after = ddim(x, x0, eps, t, next, z, found.v); // 6
    if (w.lambda_dps > 0) { // 7
      if (w.jacobian === "identity") after = after.map((v, j) => v + w.lambda_dps * amplitude(next) * (target[j] - seen[j]));
      else {
        const g = denoiser.gradient(found, target), by = w.lambda_dps * 0.5 * amplitude(t) * amplitude(next);
        after = after.map((v, j) => v - by * g[j]);
      }
    }
    return [after, x0];
  };
  let x = addNoise(target, normalField(w.seed, 0, n), levels[0]), drawn = 0; // 1
  for (let i = 1; i <= levels.length; i++) { // 2
    const t = levels[i - 1], next = levels[i] ?? -1;
    const z = w.ancestral > 0 && i % w.ancestral === 0 ? normalField(w.seed + 1, drawn++, n) : null;
    let [after, x0] = one(x, i, t, next, z);
    if (i === 1) { // 8
      const other = one(addNoise(target, normalField(w.seed, 1, n), t), i, t, next, z);
      [after, x0] = [after.map((v, j) => (v + other[0][j]) / 2), x0.map((v, j) => (v + other[1][j]) / 2)];
    }
    x = after;
    let image = (next < 0 ? x : x0).map((v) => Math.max(v, 0) / scale);
    if (next < 0 && w.lambda_mlem > 0 && w.final_updates > 0) image = em(system, y, w.final_updates, 1, image); // 9
    yield { i, total: levels.length, t, image };
  }
}

function ddim(x, x0, eps, t, next, z, v) { // to the next level: deterministic, or with z drawn from the posterior
  if (next === -1) return x0.slice();
  const now = levelsOfNoise(t), then = levelsOfNoise(next), beta = 1 - now / then, variance = ((1 - then) / (1 - now)) * beta;
  const found = new Float32Array(x.length), a = Math.sqrt(then), s = Math.sqrt(Math.max(1 - then - (z ? variance : 0), 0));
  for (let j = 0; j < x.length; j++) {
    const e = eps ? eps[j] : (x[j] - amplitude(t) * x0[j]) / sigma(t);
    found[j] = a * x0[j] + s * e;
    if (z) found[j] += Math.exp(0.5 * (v[j] * Math.log(beta) + (1 - v[j]) * Math.log(variance))) * z[j];
  }
  return found;
}

function* anchoredWalk({ denoiser, system, y }, xIn, scale, w) {
  const n = xIn.length, levels = timesteps(w.steps, w.start, w.end), s = system.sensitivity;
  const seen = s.reduce((count, v) => count + (v > 0), 0), subsets = Math.min(w.subsets, system.views.length);
  let x = xIn.map((v) => clamp(v * scale, 0, CEILING)), drawn = 0; // 1
  for (let i = 1; i <= levels.length; i++) { // 2
    const t = levels[i - 1], predicted = new Float32Array(n);
    for (let f = 0, e = null; f < w.fields; f++) { // 3
      e = f % 2 ? e.map((v) => -v) : normalField(w.seed, drawn++, n);
      denoiser.estimate(addNoise(x, e, t), t).x0.forEach((v, j) => (predicted[j] += v / w.fields));
    }
    x = predicted;
    if (w.anchor > 0 && w.updates > 0) { // 4
      const photons = x.map((v) => Math.max(v, FLOOR) / scale);
      const strength = (w.anchor * (sum(s) / seen)) / (photons.reduce((total, v, j) => total + (s[j] > 0 ? v : 0), 0) / seen);
      x = anchoredEm(system, y, photons, strength, w.updates, subsets).map((v) => scale * v);
    }
    x = x.map((v) => Math.min(v, CEILING));
    let image = x.map((v) => Math.max(v, 0) / scale);
    if (i === levels.length && w.final_updates > 0) image = em(system, y, w.final_updates, 1, image); // 5
    yield { i, total: levels.length, t, image };
  }
}

// ---- the patient, what is drawn into it, and its acquisition --------------------------------------------------------------

function drawn(activity, wall, field, strokes, { side, voxel_mm: edge, strokes: pens }) { // in units of normal myocardium
  const found = Float32Array.from(activity), middle = (side - 1) / 2;
  for (const [kind, x, y] of strokes) {
    const pen = pens[kind];
    for (let r = 0; r < side; r++) for (let c = 0; c < side; c++) {
      const j = r * side + c, d = Math.hypot((c - middle) * edge - x, (r - middle) * edge - y);
      let share = clamp((pen.radius - d) / edge + 0.5, 0, 1);
      if (pen.ring) share *= clamp((d - pen.ring) / edge + 0.5, 0, 1);
      share *= pen.wall ? wall[j] : field[j] > 0;
      found[j] += share * (pen.value - found[j]);
    }
  }
  return found;
}

const spreadViews = (n, all) => Array.from({ length: n }, (_, i) => Math.floor(((i + 0.5) * all) / n));

function smoothed(image, side, s) { // a Gaussian, cut at 4 s, mirrored at the edges: scipy.ndimage.gaussian_filter
  const reach = Math.floor(4 * s + 0.5), kernel = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-0.5 * ((i - reach) / s) ** 2)), total = sum(kernel);
  const mirror = (i) => { const p = ((i % (2 * side)) + 2 * side) % (2 * side); return p < side ? p : 2 * side - 1 - p; };
  let from = Float64Array.from(image);
  for (const [step, other] of [[side, 1], [1, side]]) {
    const to = new Float64Array(from.length);
    for (let line = 0; line < side; line++) for (let i = 0; i < side; i++) {
      let v = 0;
      for (let p = -reach; p <= reach; p++) v += kernel[p + reach] * from[line * other + mirror(i + p) * step];
      to[line * other + i * step] = v / total;
    }
    from = to;
  }
  return from;
}

function interpolated(x, xs, ys) { // np.interp
  if (x <= xs[0]) return ys[0];
  for (let i = 1; i < xs.length; i++) if (x <= xs[i]) return ys[i - 1] + ((ys[i] - ys[i - 1]) * (x - xs[i - 1])) / (xs[i] - xs[i - 1]);
  return ys[ys.length - 1];
}

function scaleOf(early, nViews, w) { // `intensity_scale`: from full-dose photons to the network's scale
  const found = smoothed(early, w.about.side, 8 / w.about.voxel_mm).filter((_, j) => w.around_heart[j]).sort();
  const at = 0.95 * (found.length - 1), low = Math.floor(at), top = found[low] + (found[Math.min(low + 1, found.length - 1)] - found[low]) * (at - low);
  return interpolated(nViews, w.about.recovery.views, w.about.recovery.share) / top;
}

function noiseDeviance(e) { // what Poisson noise alone makes of a bin's deviance
  if (e <= 0) return 0;
  if (e > 30) return 1 + 1 / (6 * e);
  let found = 0;
  for (let y = 0, p = Math.exp(-e); y < e + 12 * Math.sqrt(e) + 12; p *= e / ++y) found += p * 2 * ((y ? y * Math.log(y / e) : 0) - y + e);
  return found;
}

function judged(image, truth, heart, system, y, dose) { // image in photons of this acquisition
  const expected = system.forward(image);
  let likelihood = 0, deviance = 0, noise = 0, square = 0, top = 0, n = 0;
  expected.forEach((e, k) => {
    if (e > 0) {
      likelihood += (y[k] ? y[k] * Math.log(e) : 0) - e;
      deviance += 2 * ((y[k] ? y[k] * Math.log(y[k] / e) : 0) - y[k] + e);
      noise += noiseDeviance(e);
    } else deviance += y[k];
  });
  truth.forEach((v, j) => { if (heart[j]) { square += (image[j] / dose - v) ** 2; top = Math.max(top, v); n++; } });
  return { log_likelihood: likelihood, deviance: deviance / noise, psnr: 20 * Math.log10(top / Math.sqrt(square / n)) };
}

class Live { // one small world: what was loaded, and the last acquisition
  constructor(buffer) {
    this.w = readTensors(buffer);
    this.side = this.w.about.side;
    this.system = System.of(this.w);
    this.denoiser = new Denoiser(new Network(this.w, this.side));
    this.kept = {};
  }
  slice(name, patient) { const n = this.side * this.side; return this.w[name].subarray(patient * n, (patient + 1) * n); }
  acquire(state) { // counts, input images and scale; kept until something they depend on changes
    const key = JSON.stringify([state.patient, state.dose, state.views, state.noise, state.strokes]);
    if (this.kept.key === key) return this.kept;
    const { w } = this, unit = w.about.unit, plain = Float32Array.from(this.slice("activity", state.patient), (v) => v * unit);
    const wall = Float32Array.from(this.slice("wall", state.patient), (v) => v / 255);
    const activity = drawn(plain, wall, this.system.sensitivity, state.strokes, w.about);
    const photons = w.about.full_counts / sum(this.system.forward(plain)), truth = activity.map((v) => v * photons);
    const indices = spreadViews(state.views, this.system.views.length), all = this.system.forward(truth).map((v) => v * state.dose);
    const system = this.keptSystem(indices), y = of(poissonCounts(state.noise, all), indices, this.system.bins);
    const subsets = Math.min(4, indices.length), late = em(system, y, 48 / subsets, subsets), early = em(system, y, Math.floor(12 / subsets), subsets);
    const scale = scaleOf(early.map((v) => v / state.dose), indices.length, w) / state.dose, heart = this.slice("heart", state.patient);
    this.kept = { key, truth, heart, system, y, scale, late, mlem: em(system, y, 50), dose: state.dose, counts: sum(y), photons };
    return this.kept;
  }
  keptSystem(indices) {
    const name = indices.join();
    return name === this.systemName ? this.someViews : ((this.systemName = name), (this.someViews = this.system.keep(indices)));
  }
  walk(which, state) { // a generator of steps with images in full-dose photons
    const data = this.acquire(state), tools = { denoiser: this.denoiser, system: data.system, y: data.y, side: this.side };
    const steps = which === "paper" ? paperWalk(tools, data.mlem, data.scale, state.paper) : anchoredWalk(tools, data.late, data.scale, state.anchored);
    return (function* () {
      for (const step of steps) {
        const scores = judged(step.image, data.truth, data.heart, data.system, data.y, data.dose);
        yield { which, i: step.i, total: step.total, t: step.t, scores, image: step.image.map((v) => v / data.dose) };
      }
    })();
  }
  input(state) {
    const data = this.acquire(state), { mlem, truth, dose, counts, photons } = data;
    return { truth, photons, counts, mlem: mlem.map((v) => v / dose), scores: judged(mlem, truth, data.heart, data.system, data.y, dose) };
  }
}

// ---- as a thread ------------------------------------------------------------------------------------------------------

let live = null, newest = 0;
const breath = new MessageChannel(), waiting = [];
breath.port1.onmessage = () => waiting.shift()?.();
const pause = () => new Promise((go) => { waiting.push(go); breath.port2.postMessage(0); }); // lets newer orders in

async function perform({ run, state }) { // both walks, a step of each in turn
  newest = run;
  await pause();
  if (run !== newest) return;
  const started = performance.now();
  try {
    postMessage({ kind: "input", run, ...live.input(state) });
    const walks = state.walks.map((which) => live.walk(which, state));
    while (walks.length) {
      for (const walk of [...walks]) {
        await pause();
        if (run !== newest) return;
        const { value, done } = walk.next();
        if (done) walks.splice(walks.indexOf(walk), 1);
        else postMessage({ kind: "step", run, seconds: (performance.now() - started) / 1000, ...value });
      }
    }
    postMessage({ kind: "end", run, seconds: (performance.now() - started) / 1000 });
  } catch (error) { postMessage({ kind: "error", run, text: String(error) }); }
}

globalThis.onmessage = ({ data }) => {
  if (data.kind === "load") { live = new Live(data.buffer); postMessage({ kind: "ready", about: live.w.about }); }
  else if (data.kind === "stop") newest = -1;
  else perform(data);
};

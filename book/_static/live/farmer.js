// FARMER in plain JavaScript: exact likelihood, samples and inverses of a trained model, in the reader's browser.
// A second implementation of farmer_ref/model, in its order and with its names; numbers in brackets are the paper's.
// Matrices are flat, row by row: tokens (N,D) in image order, hidden states (T,W). Images are H x W numbers in [-1, 1].
// The library is one function, so that its own text can start a worker (see the end): pages from files need that.
function farmerLibrary() {
  "use strict";
  const NULL_LABEL = -1, LOG_SCALE_FLOOR = -7, TOLERANCE = 1e-5, CONVERGED = 0.1, TAIL = 1e-7, EPSILON = 2 ** -23;

  const each = (n, f) => { for (let i = 0; i < n; i++) f(i); };
  const sum = numbers => numbers.reduce((a, b) => a + b, 0);
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
  const reversed = list => [...list].reverse();
  const rows = (x, width, from, to = from + 1) => x.subarray(from * width, to * width);
  function add(x, y) {
    for (let i = 0; i < x.length; i++) x[i] += y[i];
    return x;
  }

  // -- weights and linear layers ----------------------------------------------------------------------------------

  function bytesOf(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  // A heap of floats, and the matrix product on it: kernel.wat, or the same in JavaScript where that does not start.
  class Kernel {
    constructor(base64) {
      try {
        Object.assign(this, new WebAssembly.Instance(new WebAssembly.Module(bytesOf(base64))).exports, {fast: true});
      } catch {
        this.memory = {buffer: new ArrayBuffer(0), grow(pages) {
          const old = new Uint8Array(this.buffer);
          this.buffer = new ArrayBuffer(old.length + 65536 * pages);
          new Uint8Array(this.buffer).set(old);
        }};
        this.linear = this.plain;
      }
      this.top = 0; // of the heap: its floats below are taken
    }
    take(count) {
      const place = this.top;
      this.top += Math.ceil(count / 4) * 4;
      const missing = 4 * this.top - this.memory.buffer.byteLength;
      if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
      if (this.floats?.buffer !== this.memory.buffer) this.floats = new Float32Array(this.memory.buffer);
      return place;
    }
    scope(f) { // what f takes is free after it
      const {top} = this, found = f();
      this.top = top;
      return found;
    }
    plain(x, T, w, I, O, y) {
      const m = this.floats;
      for (let o = 0; o < O; o++)
        for (let t = 0; t < T; t++) {
          let at = w / 4 + (o >> 3) * (I + 1) * 8 + (o & 7), total = m[at];
          for (let from = x / 4 + t * I, end = from + I; from < end; from++) total += m[from] * m[(at += 8)];
          m[y / 4 + t * O + o] = total;
        }
    }
  }

  class Linear { // y (T,O) = x (T,I) W^T + b
    constructor(kernel, inputs, outputs) {
      Object.assign(this, {kernel, inputs, outputs, width: Math.ceil(outputs / 8) * 8});
      this.place = kernel.take(this.width * (inputs + 1));
      kernel.floats.fill(0, this.place, this.place + this.width * (inputs + 1));
    }
    set(output, input, value) { // a weight; the bias is that of input -1
      this.kernel.floats[this.place + ((output >> 3) * (this.inputs + 1) + input + 1) * 8 + (output & 7)] = value;
    }
    apply(x) {
      const {kernel, inputs, outputs, width} = this, T = x.length / inputs, padded = Math.ceil(T / 4) * 4;
      return kernel.scope(() => {
        const from = kernel.take(padded * inputs), to = kernel.take(padded * width);
        kernel.floats.set(x, from);
        kernel.linear(4 * from, padded, 4 * this.place, inputs, width, 4 * to);
        const y = kernel.floats.slice(to, to + T * width);
        return width === outputs ? y : y.filter((_, at) => at % width < outputs);
      });
    }
  }

  class Weights { // as book/live.py packs them: float32, bfloat16, or int8 with a bfloat16 scale for each row
    constructor({tensors, data}, kernel) {
      const bytes = bytesOf(data);
      let at = 0;
      const take = (Kind, n) => new Kind(bytes.slice(at, at += n * Kind.BYTES_PER_ELEMENT).buffer);
      const halves = n => new Float32Array(Uint32Array.from(take(Uint16Array, n), half => half << 16).buffer);
      this.kernel = kernel;
      this.tensors = {};
      for (const [name, shape, size] of tensors) {
        const count = shape.reduce((a, b) => a * b, 1), scales = size === 1 && halves(shape[0]);
        const tensor = size === 4 ? take(Float32Array, count) : size === 2 ? halves(count) :
          Float32Array.from(take(Int8Array, count));
        for (let i = 0; scales && i < count; i++) tensor[i] *= scales[Math.floor(i * shape[0] / count)];
        this.tensors[name] = tensor;
      }
    }
    get(name) {
      return this.tensors[name];
    }
    linear(name) {
      const weight = this.get(`${name}.weight`), bias = this.get(`${name}.bias`), I = weight.length / bias.length;
      const layer = new Linear(this.kernel, I, bias.length);
      for (let o = 0, at = 0; o < bias.length; o++) {
        layer.set(o, -1, bias[o]);
        for (let i = 0; i < I; i++) layer.set(o, i, weight[at++]);
      }
      return layer;
    }
    norm(name) {
      return [this.get(`${name}.weight`), this.get(`${name}.bias`)];
    }
  }

  // -- transformer --------------------------------------------------------------------------------------------------

  function layerNorm(x, [gain, bias]) {
    const W = gain.length, y = new Float32Array(x.length);
    for (let t = 0; t < x.length; t += W) {
      let mean = 0, variance = 0;
      for (let i = 0; i < W; i++) mean += x[t + i] / W;
      for (let i = 0; i < W; i++) variance += (x[t + i] - mean) ** 2 / W;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let i = 0; i < W; i++) y[t + i] = (x[t + i] - mean) * scale * gain[i] + bias[i];
    }
    return y;
  }

  function normalDistribution(x) { // Phi(x) = 1/2 + phi(x) (x + x^3/3 + x^5/(3 5) + ...), for |x| < 7
    let term = x, total = x;
    for (let i = 3; Math.abs(term) > 1e-17; i += 2) total += term *= x * x / i;
    return 0.5 + total * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  }
  const PHI = Float64Array.from({length: 12289}, (_, at) => normalDistribution(at / 1024 - 6)); // faster than exp
  function gelu(y) { // x Phi(x), in place
    for (let i = 0; i < y.length; i++) {
      const x = y[i], place = (x + 6) * 1024, at = Math.floor(place);
      if (x <= -6) y[i] = 0;
      else if (x < 6) y[i] = x * (PHI[at] + (place - at) * (PHI[at + 1] - PHI[at]));
    }
    return y;
  }

  class Transformer {
    constructor(weights, name, layers, headDim) {
      this.headDim = headDim;
      this.layers = Array.from({length: layers}, (_, l) => {
        const at = `${name}.layers.${l}.`;
        return {
          norm1: weights.norm(`${at}attention_norm`), qkv: weights.linear(`${at}attention_in`),
          out: weights.linear(`${at}attention_out`), norm2: weights.norm(`${at}mlp_norm`),
          up: weights.linear(`${at}mlp_in`), down: weights.linear(`${at}mlp_out`),
        };
      });
      this.width = this.layers[0].out.outputs;
    }
    // Keys and values of so many sequences side by side, by layer, sequence and head: two matrices to multiply by.
    newCache(capacity, batch = 1) {
      const {kernel} = this.layers[0].out, d = this.headDim, room = Math.ceil(capacity / 8) * 8;
      const head = () => ({keys: new Linear(kernel, d, room), values: new Linear(kernel, room, d)});
      return {length: 0, batch, layers: this.layers.map(() => Array.from({length: batch * this.width / d}, head))};
    }
    // x (B T,W), T positions of each sequence, which follow those in the cache; without the mask each sees all T.
    run(x, cache, causal = true) {
      const W = this.width, d = this.headDim, {length: start, batch} = cache, T = x.length / W / batch;
      x = x.slice();
      this.layers.forEach((layer, l) => {
        const qkv = layer.qkv.apply(layerNorm(x, layer.norm1)), attended = new Float32Array(x.length);
        cache.layers[l].forEach(({keys, values}, head) => {
          const first = Math.floor(head * d / W) * T, h = head * d % W, queries = new Float32Array(T * d);
          for (let t = 0; t < T; t++)
            for (let i = 0, from = (first + t) * 3 * W + h; i < d; i++, from++) {
              queries[t * d + i] = qkv[from] / Math.sqrt(d);
              keys.set(start + t, i, qkv[from + W]);
              values.set(i, start + t, qkv[from + 2 * W]);
            }
          const shares = keys.apply(queries), room = keys.outputs; // scores, then their softmax over what is seen
          for (let t = 0; t < T; t++) {
            const from = t * room, seen = from + start + (causal ? t + 1 : T);
            let largest = -Infinity, total = 0;
            for (let j = from; j < seen; j++) if (shares[j] > largest) largest = shares[j];
            for (let j = from; j < seen; j++) total += shares[j] = Math.exp(shares[j] - largest);
            for (let j = from; j < seen; j++) shares[j] /= total;
            shares.fill(0, seen, from + room);
          }
          const found = values.apply(shares);
          for (let t = 0; t < T; t++) attended.set(rows(found, d, t), (first + t) * W + h);
        });
        add(x, layer.out.apply(attended));
        add(x, layer.down.apply(gelu(layer.up.apply(layerNorm(x, layer.norm2)))));
      });
      cache.length += T;
      return x;
    }
  }

  // -- pixels and tokens --------------------------------------------------------------------------------------------

  class Dequantiser { // grey levels 0 .. L-1 to [-1, 1] and back
    constructor({levels}) {
      this.levels = levels;
    }
    apply(values, noise = () => 0.5) {
      return Float32Array.from(values, v => 2 * (v + noise()) / this.levels - 1);
    }
    bitsPerDim(logProb, dimensions) {
      return -logProb / (dimensions * Math.LN2) + Math.log2(this.levels / 2);
    }
  }

  // Coordinates of the pixels: linear, or z = Phi^-1(F(x)) with F from the histogram of the training pixels (ours).
  class Pixels {
    constructor({counts, quantile} = {}) {
      const total = counts && sum(counts);
      let below = 0;
      this.cells = counts && counts.map(n => ({mass: n / total, below: ((below += n) - n) / total}));
      this.quantile = quantile;
    }
    normalQuantile(p) { // Phi^-1, by algorithm AS 241, whose coefficients come with the weights
      const ratio = (x, parts) => parts.map(part => part.reduceRight((total, c) => total * x + c, 0)).reduce((a,
        b) => a / b);
      const [centre, tails] = this.quantile, q = p - 0.5;
      if (Math.abs(q) <= 0.425) return q * ratio(0.180625 - q * q, centre);
      return Math.sign(q) * ratio(Math.sqrt(-Math.log(Math.min(p, 1 - p))) - 1.6, tails);
    }
    forward(image) { // the coordinates, and the log-slope of every pixel
      const {cells} = this, logSlope = new Float64Array(image.length);
      if (!cells) return [image, logSlope];
      return [image.map((x, i) => {
        const place = (x + 1) / 2 * cells.length, level = clamp(Math.floor(place), 0, cells.length - 1);
        const {mass, below} = cells[level],
          z = this.normalQuantile(clamp(below + mass * (place - level), TAIL, 1 - TAIL));
        logSlope[i] = Math.log(mass * cells.length / 2) + 0.5 * (z * z + Math.log(2 * Math.PI));
        return z;
      }), logSlope];
    }
    inverse(z) {
      const {cells} = this, L = cells?.length;
      return cells ? z.map(v => {
        const p = normalDistribution(clamp(v, -6.5, 6.5));
        let level = L - 1;
        while (level > 0 && p < cells[level].below) level--;
        const share = clamp((p - cells[level].below) / cells[level].mass, 0, 1 - L * EPSILON);
        return 2 * (level + share) / L - 1;
      }) : z;
    }
  }

  class Patchify { // images to tokens, in an orthonormal basis: log-determinant 0
    constructor(weights, {image_size: size, patch_size: p}) {
      this.matrix = weights.get("patchify.matrix");
      this.mean = weights.get("patchify.mean");
      this.D = p * p;
      this.source = Array.from({length: size * size}, (_, at) => { // the pixel of each number of a token
        const n = Math.floor(at / p / p), row = Math.floor(n * p / size) * p + Math.floor(at / p) % p;
        return row * size + n * p % size + at % p;
      });
    }
    forward(image) {
      const {D, matrix, mean, source} = this;
      return Float32Array.from(source, (_, at) => {
        let total = 0;
        for (let e = 0; e < D; e++) total += matrix[at % D * D + e] * (image[source[at - at % D + e]] - mean[e]);
        return total;
      });
    }
    inverse(tokens) {
      const {D, matrix, mean} = this, image = new Float32Array(tokens.length);
      this.source.forEach((pixel, at) => {
        image[pixel] = mean[at % D];
        for (let e = 0; e < D; e++) image[pixel] += matrix[e * D + at % D] * tokens[at - at % D + e];
      });
      return image;
    }
  }

  // -- flow ---------------------------------------------------------------------------------------------------------

  class FlowBlock { // z_i = (x_i - mu(x_<i)) sigma(x_<i), z_1 = x_1   (Eq. 8); "student": the same network, no mask
    constructor(weights, name, config, number) {
      this.transformer = new Transformer(weights, `${name}.transformer`, config.flow_layers, config.head_dim);
      this.projectIn = weights.linear(`${name}.project_in`);
      this.projectOut = weights.linear(`${name}.project_out`);
      this.positions = weights.get(`${name}.positions`);
      this.mixing = ["matrix", "inverse"].map(part => weights.get(`${name}.mixing.${part}`));
      this.mixingLogdet = sum(weights.get(`${name}.mixing.log_magnitude`) || [0]); // of one token
      this.kernel = weights.kernel;
      this.D = this.projectIn.inputs;
      this.W = this.transformer.width;
      this.N = this.positions.length / this.W;
      this.bound = config.max_log_scale;
      this.reverse = number % 2 === 1;
    }
    place(i) { // of token i in reading order, in the image
      return this.reverse ? this.N - 1 - i : i;
    }
    flip(x) { // image order to reading order, or back, in every sequence
      const {D, N} = this;
      return x.map((_, at) => x[(at - at % (N * D)) + this.place(Math.floor(at / D) % N) * D + at % D]);
    }
    mix(x, inverse) { // a learned matrix over the channels (Glow), where the model has one
      const A = this.mixing[inverse], D = this.D;
      return A ? x.map((_, at) => {
        let total = 0;
        for (let e = 0; e < D; e++) total += A[at % D * D + e] * x[at - at % D + e];
        return total;
      }) : x;
    }
    // mu and log sigma, interleaved as (B T,2 D), of the tokens that follow x (B T,D), in reading order.
    shiftAndLogScale(x, cache, causal = true) {
      const {D, W, bound} = this, h = this.projectIn.apply(x), T = x.length / D / cache.batch;
      each(h.length, at => h[at] += this.positions[this.place(cache.length + Math.floor(at / W) % T) * W + at % W]);
      const out = this.projectOut.apply(this.transformer.run(h, cache, causal));
      return bound ? out.map((v, at) => at % (2 * D) < D ? v : bound * Math.tanh(v / bound)) : out;
    }
    forward(x, causal = true) { // z (B N,D) and log|det dz/dx| token by token (B N)   (Eqs. 8 and 10)
      return this.kernel.scope(() => {
        const {D, N} = this, batch = x.length / N / D;
        x = this.flip(this.mix(x, 0));
        const out = this.shiftAndLogScale(x, this.transformer.newCache(N, batch), causal);
        const z = x.slice(), logdet = new Float32Array(batch * N).fill(this.mixingLogdet);
        each(z.length - D, at => { // the outputs before a token are its own, but for each sequence's first
          const t = Math.floor(at / D) + 1, from = (t - 1) * 2 * D + at % D;
          if (t % N === 0) return;
          z[D + at] = (x[D + at] - out[from]) * Math.exp(out[from + D]);
          logdet[t - t % N + this.place(t % N)] += out[from + D];
        });
        return [this.flip(z), logdet];
      });
    }
    step(z, x, out, begin) { // tokens begin + 1, ... of x from those of z: x_i = z_i / sigma + mu   (Eq. 9)
      const D = this.D;
      each(Math.min(out.length / 2, x.length - (begin + 1) * D), at => {
        const from = Math.floor(at / D) * 2 * D + at % D, to = (begin + 1) * D + at;
        x[to] = z[to] * Math.exp(-out[from + D]) + out[from];
      });
    }
    backwards(z, f) { // x = f(z) in reading order
      return this.kernel.scope(() => this.mix(this.flip(f(this.flip(z), this.transformer.newCache(this.N))), 1));
    }
    inverse(z) { // token by token
      return this.backwards(z, (z, cache) => {
        const x = z.slice();
        each(this.N - 1, i => this.step(z, x, this.shiftAndLogScale(rows(x, this.D, i), cache), i));
        return x;
      });
    }
    sweeps(z) { // Jacobi: Eq. 9 for all tokens at once, again and again; x after every sweep, the last one converged
      const {D, N} = this, found = [];
      this.backwards(z, (z, cache) => {
        let x = z.slice(), begin = 0; // x is final up to and including token `begin`
        while (begin < N - 1) {
          cache.length = begin; // keys and values of final tokens stay
          const next = x.slice();
          this.step(z, next, this.shiftAndLogScale(rows(x, D, begin, N - 1), cache), begin);
          const moved = t => rows(next, D, t).some((v, d) => !(Math.abs(v - x[t * D + d]) <= TOLERANCE * CONVERGED));
          let still = begin + 1;
          while (still < N && !moved(still)) still++;
          begin = Math.min(still, N - 1); // the first that moved has converged too: all its inputs are final
          x = next.map((v, at) => at < (begin + 1) * D ? v : Number.isFinite(v) ? clamp(v, -1e6, 1e6) : 0);
          found.push(this.mix(this.flip(x), 1));
        }
        return x;
      });
      return found;
    }
    guess(z, form) { // a student's block: one pass, which sees all of z   (Alg. 2)
      const {D} = this;
      return this.backwards(z, (z, cache) => {
        const x = z.slice(), out = this.shiftAndLogScale(z, cache, false);
        if (form === "inverse") this.step(z, x, out, 0);
        else each(x.length - D, at => {
          const from = Math.floor(at / D) * 2 * D + at % D;
          x[D + at] = (z[D + at] - out[from]) * Math.exp(out[from + D]);
        });
        return x;
      });
    }
  }

  // -- mixtures and guidance ----------------------------------------------------------------------------------------

  class GaussianMixture { // sum_k pi_k N(z; mu_k, diag sigma_k^2)   (Eq. 11)
    constructor(logits, mean, logScale) {
      Object.assign(this, {K: logits.length, D: mean.length / logits.length, mean, logScale});
      this.logWeights = logSoftmax(logits);
    }
    static fromRaw(raw, K) { // K logits, K D means, K D log-scales with a smooth floor
      const end = (raw.length + K) / 2, logScale = raw.slice(end);
      for (let i = 0; i < logScale.length; i++) {
        const v = logScale[i] - LOG_SCALE_FLOOR;
        logScale[i] = LOG_SCALE_FLOOR + Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
      }
      return new GaussianMixture(raw.subarray(0, K), raw.subarray(K, end), logScale);
    }
    logProb(z) { // logsumexp_k [log pi_k + log N(z; mu_k, diag sigma_k^2)]   (Eq. 7)
      const {K, D, mean, logScale} = this;
      this.precision ||= Float64Array.from(logScale, s => Math.exp(-s));
      const terms = Float64Array.from(this.logWeights, w => w - 0.5 * D * Math.log(2 * Math.PI));
      for (let k = 0, at = 0; k < K; k++)
        for (let d = 0; d < D; d++, at++) {
          const e = (z[d] - mean[at]) * this.precision[at];
          terms[k] -= 0.5 * e * e + logScale[at];
        }
      return logSumExp(terms);
    }
    tempered(weight, scale) { // logits times T_pi, sigma times T_sigma   (A.2)
      const shift = Math.log(scale);
      return new GaussianMixture(this.logWeights.map(v => v * weight), this.mean, this.logScale.map(v => v + shift));
    }
    sample(count, uniform) { // components first, then noise, as PyTorch's sample takes its random numbers
      const {D, mean, logScale} = this, chosen = Array.from({length: count}, () => D * pick(this.logWeights, uniform));
      return chosen.map(at =>
        Float32Array.from({length: D}, (_, d) => mean[at + d] + Math.exp(logScale[at + d]) * normal(uniform)));
    }
  }

  function logSumExp(terms) {
    let largest = -Infinity, total = 0;
    for (const v of terms) if (v > largest) largest = v;
    for (const v of terms) total += Math.exp(v - largest);
    return largest + Math.log(total);
  }
  function logSoftmax(logits) {
    const total = logSumExp(logits);
    return logits.map(v => v - total);
  }
  function pick(logWeights, uniform) {
    let left = uniform(), k = 0;
    while (k < logWeights.length - 1 && (left -= Math.exp(logWeights[k])) >= 0) k++;
    return k;
  }
  function normal(uniform) { // Box and Muller
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform());
  }

  const GUIDANCE = {scale: 0, candidates: [5, 5], pool: [192, 64], weightTemperature: 1, scaleTemperature: 1};

  // Candidates of p_c and p_u, weighed by p' over the density that each came from   (Eq. 15, Alg. 1)
  function weighedCandidates(mixtures, {scale, weightTemperature, scaleTemperature}, counts, uniform) {
    const [conditional, unconditional] = mixtures;
    const candidates = mixtures.flatMap((mixture, i) =>
      mixture.tempered(weightTemperature, scaleTemperature).sample(counts[i], uniform));
    const logWeights = candidates.map((z, s) =>
      (scale + (s >= counts[0])) * (conditional.logProb(z) - unconditional.logProb(z)));
    return [candidates, logSoftmax(logWeights)];
  }
  const effectiveSampleSize = logWeights => 1 / sum(logWeights.map(v => Math.exp(2 * v)));

  // `count` draws from a mixture, or from its guided form: one pool of candidates, from which each draw takes one.
  function draw(mixtures, count, guidance, candidates, uniform) {
    if (mixtures.length === 1)
      return mixtures[0].tempered(guidance.weightTemperature, guidance.scaleTemperature).sample(count, uniform);
    const [pool, weights] = weighedCandidates(mixtures, guidance, candidates, uniform);
    return Array.from({length: count}, () => pool[pick(weights, uniform)]);
  }

  // -- prior --------------------------------------------------------------------------------------------------------

  class Prior { // p(Z | c) = prod_i p(z_i^I | z_<i^I, c) prod_i G(z_i^R; Z_I, c)   (Eqs. 5, 11, 14)
    constructor(weights, config, {order, reversed}) {
      this.transformer = new Transformer(weights, "prior.transformer", config.prior_layers, config.head_dim);
      this.projectIn = weights.linear("prior.project_in");
      this.tokenHead = weights.linear("prior.token_head");
      this.redundantHead = weights.get("prior.redundant_head.weight") && weights.linear("prior.redundant_head");
      this.positions = weights.get("prior.positions");
      this.normOut = weights.norm("prior.norm_out");
      this.condition = weights.get("prior.condition_positions");
      this.classes = weights.get("prior.class_embedding.weight");
      this.order = order;
      this.reverse = reversed;
      this.kernel = weights.kernel;
      this.D = order.length;
      this.I = this.projectIn.inputs;
      this.W = this.transformer.width;
      this.N = this.positions.length / this.W;
      this.M = this.condition.length / this.W;
      this.K = config.components;
      this.KR = config.redundant_components;
      this.nullRow = config.num_classes;
    }
    place(i) { // of token i in reading order, in the image
      return this.reverse ? this.N - 1 - i : i;
    }
    split(z, begin, end) { // some channels, in the order "informative first", of all tokens in reading order
      return Array.from({length: this.N}, (_, i) =>
        Float32Array.from(this.order.slice(begin, end), channel => z[this.place(i) * this.D + channel]));
    }
    start(label) { // the M condition tokens (M,W)
      const from = (label === NULL_LABEL ? this.nullRow : label) * this.W;
      return this.condition.map((v, at) => v + this.classes[from + at % this.W]);
    }
    embed(zI, i) {
      return add(this.projectIn.apply(zI), rows(this.positions, this.W, this.place(i)));
    }
    hidden(inputs, cache) {
      return layerNorm(this.transformer.run(inputs, cache), this.normOut);
    }
    newCache(batch) {
      return this.transformer.newCache(this.M + this.N, batch);
    }
    mixtures(head, h, K) { // of each hidden state
      const raw = head.apply(h), width = head.outputs;
      return Array.from({length: raw.length / width}, (_, t) => GaussianMixture.fromRaw(rows(raw, width, t), K));
    }
    redundantMixtures(h) {
      if (this.redundantHead) return this.mixtures(this.redundantHead, h, this.KR);
      const zeros = new Float32Array(this.D - this.I);
      // N(0, I)
      return Array.from({length: h.length / this.W}, () => new GaussianMixture(new Float32Array(1), zeros, zeros));
    }
    // for every label the nats of every token, in image order: informative, redundant  (Eq. 14)
    logProbParts(z, labels) {
      const {N, M, W, I, D} = this, T = M + N, zI = this.split(z, 0, I), zR = this.split(z, I, D);
      const inputs = new Float32Array(labels.length * T * W);
      const embedded = zI.map((one, i) => this.embed(one, i));
      labels.forEach((label, b) => {
        inputs.set(this.start(label), b * T * W);
        embedded.forEach((one, i) => inputs.set(one, (b * T + M + i) * W));
      });
      const h = this.kernel.scope(() => this.hidden(inputs, this.newCache(labels.length)));
      return labels.map((_, b) => {
        const own = rows(h, W, b * T, (b + 1) * T),
          found = {informative: new Float32Array(N), redundant: new Float32Array(N)};
        const tokens = this.mixtures(this.tokenHead, rows(own, W, M - 1, T - 1), this.K);
        const [shared] = I < D ? this.redundantMixtures(rows(own, W, T - 1)) : [];
        each(N, i => {
          found.informative[this.place(i)] = tokens[i].logProb(zI[i]);
          if (shared) found.redundant[this.place(i)] = shared.logProb(zR[i]);
        });
        return found;
      });
    }
    // Latents, and for every step in reading order the mixture and the draw: Z_I token by token, then Z_R   (Alg. 1)
    sample(label, guidance, uniform) {
      const {N, D, I, W, order} = this, labels = guidance.scale ? [label, NULL_LABEL] : [label];
      const z = new Float32Array(N * D), steps = [], repeat = x => labels.flatMap(() => [...x]);
      const put = (x, i, begin) => x.forEach((v, d) => z[i * D + order[begin + d]] = v);
      return this.kernel.scope(() => {
        const cache = this.newCache(labels.length);
        let h = this.hidden(Float32Array.from(labels.flatMap(one => [...this.start(one)])), cache);
        h = h.filter((_, at) => Math.floor(at / W) % this.M === this.M - 1); // the state after the last condition token
        each(N, i => {
          const mixtures = this.mixtures(this.tokenHead, h, this.K), place = this.place(i);
          const [drawn] = draw(mixtures, 1, guidance, guidance.candidates, uniform);
          put(drawn, place, 0);
          const {logWeights, mean, logScale} = mixtures[0];
          steps.push({place, drawn, logWeights, mean, logScale});
          h = this.hidden(Float32Array.from(repeat(this.embed(drawn, i))), cache);
        });
        if (I < D)
          draw(this.redundantMixtures(h), N, guidance, guidance.pool, uniform).forEach((zR, i) => put(zR, i, I));
        return {z, steps};
      });
    }
  }

  // -- the paper on one page ----------------------------------------------------------------------------------------

  class Farmer {
    constructor(script, fast = true) {
      const {config, student} = script, kernel = new Kernel(fast && script.kernel),
        weights = new Weights(script, kernel);
      const blocks = (weights, name) => Array.from({length: config.flow_blocks}, (_, b) =>
        new FlowBlock(weights, name.replace("#", b), config, b));
      this.fast = Boolean(kernel.fast);
      this.classes = Array.from({length: config.num_classes}, (_, c) => c);
      this.dequantiser = new Dequantiser(config);
      this.pixels = new Pixels(script.pixels);
      this.patchify = new Patchify(weights, config);
      this.flow = blocks(weights, "flow.blocks.#");
      this.prior = new Prior(weights, config, script);
      this.form = student?.form;
      this.studentBlocks = student ? blocks(new Weights(student, kernel), "blocks.#.network") : [];
    }
    encode(image) { // z, and log|det dz/dx| token by token
      const [coordinates, logSlope] = this.pixels.forward(image), {D} = this.prior,
        logdet = new Float32Array(this.prior.N);
      this.patchify.source.forEach((pixel, at) => logdet[Math.floor(at / D)] += logSlope[pixel]);
      let x = this.patchify.forward(coordinates), own;
      for (const block of this.flow) {
        [x, own] = block.forward(x);
        add(logdet, own);
      }
      return [x, logdet];
    }
    // log p(x | c) in nats, for every label   (Eq. 6); the flow sees no class: it runs once
    likelihoods(image, labels) {
      const [z, logdet] = this.encode(image);
      return this.prior.logProbParts(z, labels).map(({informative, redundant}) => {
        const terms = {informative: sum(informative), redundant: sum(redundant), logdet: sum(logdet)};
        return {...terms, total: sum(Object.values(terms)), perToken: add(add(informative, redundant), logdet)};
      });
    }
    bayes(image) { // every class's likelihood and, with equal priors, p(c | x)
      const classes = this.likelihoods(image, this.classes);
      const posterior = logSoftmax(classes.map(terms => terms.total)).map(Math.exp);
      const best = posterior.indexOf(Math.max(...posterior));
      return {posterior, best, bits: this.dequantiser.bitsPerDim(classes[best].total, image.length), ...classes[best]};
    }
    inverse(z) { // tokens after each block, last block first   (Eq. 9)
      return reversed(this.flow).map(block => z = block.inverse(z));
    }
    jacobi(z) { // for each block, last one first, the tokens after every sweep
      return reversed(this.flow).map(block => {
        const found = block.sweeps(z);
        z = found[found.length - 1];
        return found;
      });
    }
    student(z) { // tokens after each block, in one pass each   (Alg. 2)
      return reversed(this.studentBlocks).map(block => z = block.guess(z, this.form));
    }
    // An image and the way to it, as pictures of tokens; `random` is a seed or a function that gives uniform numbers.
    sample(label, guidance = {}, random = 0) {
      const {z, steps} = this.prior.sample(label, {...GUIDANCE, ...guidance}, uniforms(random));
      return {label, steps, ...this.race(z)};
    }
    race(z) { // the three inverses of the same latents; `levels` begin with these
      const picture = x => this.patchify.inverse(x);
      return {
        levels: [z, ...this.inverse(z)].map(picture),
        sweeps: this.jacobi(z).map(block => block.map(picture)),
        student: this.student(z).map(picture),
      };
    }
    // The first block, with its causal mask or without: how far each token of z moves when one of x is nudged (N,N),
    // and the round trip's error.
    mask(image, causal) {
      const [block] = this.flow, {N, D} = block, STEP = 1e-2, x = this.patchify.forward(this.pixels.forward(image)[0]);
      const nudged = Array.from({length: N + 1},
        (_, t) => [...x].map((v, at) => v + STEP * (Math.floor(at / D) === t)));
      const [z] = block.forward(Float32Array.from(nudged.flat()), causal), still = rows(z, N * D, N);
      const moves = Array.from({length: N * N}, (_, at) => { // of token i of z, by token j of x
        const i = Math.floor(at / N), moved = rows(rows(z, N * D, at % N), D, i);
        return Math.hypot(...moved.map((v, d) => v - still[i * D + d])) / STEP;
      });
      return {moves, error: Math.max(...block.inverse(still).map((v, i) => Math.abs(v - x[i])))};
    }
  }

  function uniforms(random) { // mulberry32 of a seed
    if (typeof random === "function") return random;
    return () => {
      random = (random + 0x6d2b79f5) | 0;
      let t = Math.imul(random ^ (random >>> 15), 1 | random);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  return {Farmer, Dequantiser, Pixels, GaussianMixture, weighedCandidates, effectiveSampleSize, pick, uniforms};
}

// A worker with the model in it: `ask("bayes", image)` is a promise of what the method gives. Where a browser starts no
// worker, the page's own thread computes.
function farmerWorker(script) {
  const serve = library => {
    let model;
    onmessage = ({data: {id, name, values}}) => {
      if (name === "load") model = new library.Farmer(values[0]);
      else postMessage({id, value: model[name](...values)});
    };
  };
  const waiting = [];
  let worker;
  try {
    worker = new Worker(URL.createObjectURL(new Blob([`(${serve})((${farmerLibrary})())`], {type: "text/javascript"})));
  } catch {
    const model = new (farmerLibrary().Farmer)(script);
    return (name, ...values) => new Promise(done => setTimeout(() => done(model[name](...values))));
  }
  worker.onmessage = ({data: {id, value}}) => waiting[id](value);
  worker.postMessage({name: "load", values: [script]});
  return (name, ...values) => new Promise(done => worker.postMessage({id: waiting.push(done) - 1, name, values}));
}

// FARMER in plain JavaScript: exact likelihood, samples and inverses of a trained model, in the reader's browser.
// A second implementation of farmer_ref/model, in its order and with its names; numbers in brackets are the paper's.
// Matrices are flat, row by row: tokens (N,D) in image order, hidden states (T,W). Images are H x W numbers in [-1, 1].
// The library is one function, so that its own text can start a worker (see the end): pages from files need that.
function farmerLibrary() {
  "use strict";
  const NULL_LABEL = -1, LOG_SCALE_FLOOR = -7, TOLERANCE = 1e-6, TAIL = 1e-7, EPSILON = 2 ** -23;
  const HEAP = 1024; // pages of 64 KiB
  const {exp, floor, log, max} = Math;

  const range = n => Array.from({length: n}, (_, i) => i);
  const sum = numbers => numbers.reduce((a, b) => a + b, 0);
  const clamp = (v, low, high) => max(low, Math.min(high, v));
  const rows = (x, width, from, to = from + 1) => x.subarray(from * width, to * width); // a view
  function add(x, y) {
    for (let i = 0; i < x.length; i++) x[i] += y[i];
  }
  function bytes(base64) {
    const text = atob(base64), found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }

  // -- linear layers and weights --

  // A heap of floats, and the matrix product on it: kernel.wat, or the same in JavaScript where that does not start.
  class Kernel {
    constructor(base64) {
      try {
        Object.assign(this, new WebAssembly.Instance(new WebAssembly.Module(bytes(base64))).exports);
        this.memory.grow(HEAP - 1);
        this.fast = true;
      } catch {
        Object.assign(this, {linear: this.plain, memory: {buffer: new ArrayBuffer(65536 * HEAP)}, fast: false});
      }
      this.floats = new Float32Array(this.memory.buffer);
      this.top = 0; // floats below are taken
    }
    take(count) {
      const place = this.top;
      this.top += Math.ceil(count / 4) * 4;
      if (this.top > this.floats.length) throw new RangeError("the model is too large for a page");
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
      kernel.floats.fill(0, this.place, kernel.top);
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

  class Weights { // by name, as book/live.py packs them: float32, bfloat16, or int8 with a bfloat16 scale for each row
    constructor({tensors, data}, kernel) {
      const packed = bytes(data);
      let at = 0;
      const take = (Kind, n) => new Kind(packed.slice(at, at += n * Kind.BYTES_PER_ELEMENT).buffer);
      const halves = n => new Float32Array(Uint32Array.from(take(Uint16Array, n), half => half << 16).buffer);
      this.kernel = kernel;
      for (const [name, shape, size] of tensors) {
        const count = shape.reduce((a, b) => a * b, 1), scales = size === 1 && halves(shape[0]);
        this[name] = size === 4 ? take(Float32Array, count) : size === 2 ? halves(count) :
          new Float32Array(take(Int8Array, count));
        if (scales) scales.forEach((scale, row) => {
          for (let i = row * shape[1]; i < (row + 1) * shape[1]; i++) this[name][i] *= scale;
        });
      }
    }
    norm(name) {
      return [this[`${name}.weight`], this[`${name}.bias`]];
    }
    linear(name) {
      const [weight, bias] = this.norm(name), inputs = weight.length / bias.length;
      const layer = new Linear(this.kernel, inputs, bias.length);
      for (let o = 0, at = 0; o < bias.length; o++) {
        layer.set(o, -1, bias[o]);
        for (let i = 0; i < inputs; i++) layer.set(o, i, weight[at++]);
      }
      return layer;
    }
  }

  // -- transformer --

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

  const normalDensity = x => exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  function normalDistribution(x) { // Phi(x) = 1/2 + phi(x) (x + x^3/3 + x^5/(3 5) + ...), for |x| < 7
    let term = x, total = x;
    for (let i = 3; Math.abs(term) > 1e-17; i += 2) total += term *= x * x / i;
    return 0.5 + total * normalDensity(x);
  }
  const PHI = Float64Array.from(range(12289), at => normalDistribution(at / 1024 - 6)); // faster than exp
  function gelu(y) { // x Phi(x), in place
    for (let i = 0; i < y.length; i++) {
      const x = y[i], place = (x + 6) * 1024, at = floor(place);
      if (x < 6) y[i] = x <= -6 ? 0 : x * (PHI[at] + (place - at) * (PHI[at + 1] - PHI[at]));
    }
    return y;
  }

  class Transformer {
    constructor(weights, name, layers, headDim) {
      this.headDim = headDim;
      this.layers = range(layers).map(l => {
        const linear = part => weights.linear(`${name}.layers.${l}.${part}`);
        const norm = part => weights.norm(`${name}.layers.${l}.${part}_norm`);
        return {
          norm1: norm("attention"), qkv: linear("attention_in"), out: linear("attention_out"),
          norm2: norm("mlp"), up: linear("mlp_in"), down: linear("mlp_out"),
        };
      });
      this.width = this.layers[0].out.outputs;
    }
    newCache(capacity) { // keys and values of every layer and head: two matrices to multiply by
      const {kernel} = this.layers[0].out, d = this.headDim, room = Math.ceil(capacity / 8) * 8;
      const head = () => ({keys: new Linear(kernel, d, room), values: new Linear(kernel, room, d)});
      return {length: 0, layers: this.layers.map(() => range(this.width / d).map(head))};
    }
    run(x, cache, causal) { // x (T,W) follows what is in the cache; without the mask every position sees all T
      const W = this.width, d = this.headDim, start = cache.length, T = x.length / W;
      x = x.slice();
      this.layers.forEach((layer, l) => {
        const qkv = layer.qkv.apply(layerNorm(x, layer.norm1)), attended = new Float32Array(x.length);
        cache.layers[l].forEach(({keys, values}, head) => {
          const queries = new Float32Array(T * d);
          for (let t = 0; t < T; t++)
            for (let i = 0, from = t * 3 * W + head * d; i < d; i++, from++) {
              queries[t * d + i] = qkv[from] / Math.sqrt(d);
              keys.set(start + t, i, qkv[from + W]);
              values.set(i, start + t, qkv[from + 2 * W]);
            }
          const shares = keys.apply(queries); // scores, then their softmax over what is seen
          for (let t = 0; t < T; t++) {
            const from = t * keys.outputs, seen = from + start + (causal ? t + 1 : T);
            let largest = -Infinity, total = 0;
            for (let j = from; j < seen; j++) if (shares[j] > largest) largest = shares[j];
            for (let j = from; j < seen; j++) total += shares[j] = exp(shares[j] - largest);
            for (let j = from; j < seen; j++) shares[j] /= total;
            shares.fill(0, seen, from + keys.outputs);
          }
          const found = values.apply(shares);
          for (let t = 0; t < T; t++) attended.set(rows(found, d, t), t * W + head * d);
        });
        add(x, layer.out.apply(attended));
        add(x, layer.down.apply(gelu(layer.up.apply(layerNorm(x, layer.norm2)))));
      });
      cache.length += T;
      return x;
    }
  }

  class Network { // a transformer that reads N tokens, in image order or from the last to the first
    constructor(weights, name, layers, headDim, reverse) {
      this.transformer = new Transformer(weights, `${name}.transformer`, layers, headDim);
      this.projectIn = weights.linear(`${name}.project_in`);
      this.positions = weights[`${name}.positions`];
      this.W = this.transformer.width;
      this.N = this.positions.length / this.W;
      Object.assign(this, {kernel: weights.kernel, reverse, M: 0});
    }
    newCache() { // for M condition tokens and N tokens
      return this.transformer.newCache(this.M + this.N);
    }
    place(i) { // of token i in reading order, in the image
      return this.reverse ? this.N - 1 - i : i;
    }
    embed(x, first) { // tokens first, first + 1, ... in reading order
      const h = this.projectIn.apply(x), W = this.W;
      return h.map((v, at) => v + this.positions[this.place(first + floor(at / W)) * W + at % W]);
    }
  }

  // -- pixels and tokens --

  const middles = (values, levels) => values.map(v => 2 * (v + 0.5) / levels - 1); // grey levels to [-1, 1]

  // Coordinates of the pixels: linear, or z = Phi^-1(F(x)) with F from the histogram of the training pixels (ours),
  // from TAIL to 1 - TAIL.
  class Pixels {
    constructor({counts}) {
      let end = TAIL;
      this.cells = counts?.map(n => {
        const mass = n / sum(counts) * (1 - 2 * TAIL);
        return {mass, below: (end += mass) - mass};
      });
    }
    forward(image) { // the coordinates, and the log-slope of every pixel
      const {cells} = this, logSlope = new Float64Array(image.length), L = cells?.length;
      return [cells ? image.map((x, i) => {
        const place = (x + 1) / 2 * L, level = clamp(floor(place), 0, L - 1), {mass, below} = cells[level];
        const p = below + mass * (place - level);
        let z = 0, step = 1; // Newton's method: from the middle it never goes too far
        while (Math.abs(step) > 1e-6) z += step = (p - normalDistribution(z)) / normalDensity(z);
        logSlope[i] = log(mass * L / 2 / normalDensity(z));
        return z;
      }) : image, logSlope];
    }
    inverse(z) {
      const {cells} = this, L = cells?.length;
      return cells ? z.map(v => {
        const p = normalDistribution(clamp(v, -5, 5)), level = cells.findLastIndex(cell => p >= cell.below);
        const share = clamp((p - cells[level].below) / cells[level].mass, 0, 1 - L * EPSILON);
        return 2 * (level + share) / L - 1;
      }) : z;
    }
  }

  function turn(x, D, A, down = D, across = 1) { // y_d = sum_e A_de x_e, in every token
    return x.map((_, at) => {
      const d = at % D;
      let total = 0;
      for (let e = 0; e < D; e++) total += A[d * down + e * across] * x[at - d + e];
      return total;
    });
  }

  class Patchify { // images to tokens, in an orthonormal basis: log-determinant 0
    constructor(weights, {image_size: size, patch_size: p}) {
      this.matrix = weights["patchify.matrix"];
      this.mean = weights["patchify.mean"];
      this.D = p * p;
      this.source = range(size * size).map(at => { // the pixel of each number of a token
        const n = floor(at / p / p), row = floor(n * p / size) * p + floor(at / p) % p;
        return row * size + n * p % size + at % p;
      });
    }
    forward(image) {
      const {D, matrix, mean, source} = this;
      const x = Float32Array.from(source, (pixel, at) => image[pixel] - mean[at % D]);
      return turn(x, D, matrix);
    }
    inverse(tokens) {
      const {D, matrix, mean, source} = this, image = tokens.slice();
      turn(tokens, D, matrix, 1, D).forEach((v, at) => image[source[at]] = v + mean[at % D]);
      return image;
    }
  }

  // -- flow --

  const FORWARD = (x, mu, logScale) => (x - mu) * exp(logScale); // Eq. 8
  const INVERSE = (z, mu, logScale) => z * exp(-logScale) + mu; // Eq. 9

  class FlowBlock extends Network { // z_i = (x_i - mu(x_<i)) sigma(x_<i), z_1 = x_1   (Eq. 8)
    constructor(weights, name, config, number) {
      super(weights, name, config.flow_layers, config.head_dim, number % 2 === 1);
      this.projectOut = weights.linear(`${name}.project_out`);
      this.mixing = ["matrix", "inverse"].map(part => weights[`${name}.mixing.${part}`]);
      this.mixingLogdet = sum(weights[`${name}.mixing.log_magnitude`] || []); // of one token
      this.D = this.projectIn.inputs;
      this.bound = config.max_log_scale;
    }
    flip(x) { // image order to reading order, or back
      return x.map((_, at) => x[this.place(floor(at / this.D)) * this.D + at % this.D]);
    }
    mix(x, inverse) { // a learned matrix over the channels (Glow), where the model has one
      const A = this.mixing[inverse];
      return A ? turn(x, this.D, A) : x;
    }
    shiftAndLogScale(x, cache, causal = true) { // mu and log sigma, interleaved, of the tokens that follow x
      const {D, bound} = this;
      const out = this.projectOut.apply(this.transformer.run(this.embed(x, cache.length), cache, causal));
      return bound ? out.map((v, at) => at % (2 * D) < D ? v : bound * Math.tanh(v / bound)) : out;
    }
    fill(y, x, out, begin, f) { // token begin + 1 of y and those after it, as far as `out` has their mu and log sigma
      const {D} = this, first = (begin + 1) * D;
      for (let at = 0; at < Math.min(out.length / 2, x.length - first); at++) {
        const from = at + floor(at / D) * D;
        y[first + at] = f(x[first + at], out[from], out[from + D]);
      }
    }
    forward(x, causal = true) { // z (N,D), and log|det dz/dx| token by token   (Eqs. 8 and 10)
      return this.kernel.scope(() => {
        x = this.flip(this.mix(x, 0));
        const {D, N} = this, z = x.slice(), logdet = new Float32Array(N).fill(this.mixingLogdet);
        const out = this.shiftAndLogScale(x, this.newCache(), causal);
        this.fill(z, x, out, 0, FORWARD);
        for (let t = 1; t < N; t++) logdet[this.place(t)] += sum(rows(out, D, 2 * t - 1));
        return [this.flip(z), logdet];
      });
    }
    backwards(z, f) { // x = f(z) in reading order
      return this.kernel.scope(() => this.mix(this.flip(f(this.flip(z), this.newCache())), 1));
    }
    inverse(z) { // token by token   (Eq. 9)
      return this.backwards(z, (z, cache) => {
        const x = z.slice();
        for (let i = 0; i < this.N - 1; i++)
          this.fill(x, z, this.shiftAndLogScale(rows(x, this.D, i), cache), i, INVERSE);
        return x;
      });
    }
    sweeps(z) { // Jacobi: Eq. 9 for all tokens at once, again and again; x after every sweep, the last one converged
      const {D, N} = this, found = [];
      this.backwards(z, (z, cache) => {
        let x = z, begin = 0; // x is final up to and including token `begin`
        while (begin < N - 1) {
          cache.length = begin; // keys and values of final tokens stay
          const next = x.slice(), final = begin + 1;
          this.fill(next, z, this.shiftAndLogScale(rows(x, D, begin, N - 1), cache), begin, INVERSE);
          const moved = next.findIndex((v, at) => at >= final * D && !(Math.abs(v - x[at]) <= TOLERANCE));
          begin = moved < 0 ? N - 1 : max(final, floor(moved / D)); // the first that moved has final inputs
          x = next.map((v, at) => at < (begin + 1) * D ? v : clamp(v || 0, -1e6, 1e6)); // a guess may overflow
          found.push(this.mix(this.flip(x), 1));
        }
        return x;
      });
      return found;
    }
    guess(z, form) { // a student's block: the same network without the mask, in one pass   (Alg. 2)
      return this.backwards(z, (z, cache) => {
        const x = z.slice();
        this.fill(x, z, this.shiftAndLogScale(z, cache, false), 0, form === "inverse" ? INVERSE : FORWARD);
        return x;
      });
    }
  }

  // -- mixtures and guidance --

  class GaussianMixture { // sum_k pi_k N(z; mu_k, diag sigma_k^2)   (Eq. 11)
    constructor(logits, mean, logScale) {
      Object.assign(this, {D: mean.length / logits.length, logWeights: logSoftmax(logits), mean, logScale});
    }
    static fromRaw(raw, K) { // K logits, K D means, K D log-scales with a smooth floor
      const end = (raw.length + K) / 2, softplus = v => max(v, 0) + Math.log1p(exp(-Math.abs(v)));
      const logScale = raw.slice(end).map(v => LOG_SCALE_FLOOR + softplus(v - LOG_SCALE_FLOOR));
      return new GaussianMixture(raw.subarray(0, K), raw.subarray(K, end), logScale);
    }
    logProb(z) { // logsumexp_k [log pi_k + log N(z; mu_k, diag sigma_k^2)]   (Eq. 7)
      const {D, mean, logScale} = this, terms = Float64Array.from(this.logWeights);
      for (let k = 0, at = 0; at < mean.length; k++)
        for (let d = 0; d < D; d++, at++) {
          const e = (z[d] - mean[at]) * exp(-logScale[at]);
          terms[k] -= 0.5 * (e * e + log(2 * Math.PI)) + logScale[at];
        }
      return logSumExp(terms);
    }
    tempered(weight, scale) { // logits times T_pi, sigma times T_sigma   (A.2)
      const shift = log(scale);
      return new GaussianMixture(this.logWeights.map(v => v * weight), this.mean, this.logScale.map(v => v + shift));
    }
    sample(count, uniform) { // components first, then noise, as PyTorch's sample takes its random numbers
      const {D, mean, logScale} = this, chosen = range(count).map(() => D * pick(this.logWeights, uniform));
      return chosen.map(at =>
        Float32Array.from(range(D), d => mean[at + d] + exp(logScale[at + d]) * normal(uniform)));
    }
  }

  function logSumExp(terms) {
    const largest = max(...terms);
    return largest + log(terms.reduce((total, v) => total + exp(v - largest), 0));
  }
  function logSoftmax(logits) {
    const total = logSumExp(logits);
    return logits.map(v => v - total);
  }
  function pick(logWeights, uniform) {
    let left = uniform(), k = 0;
    while (k < logWeights.length - 1 && (left -= exp(logWeights[k])) >= 0) k++;
    return k;
  }
  function normal(uniform) { // Box and Muller
    const radius = Math.sqrt(-2 * log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform());
  }
  function uniforms(random) { // mulberry32
    return () => {
      random = (random + 0x6d2b79f5) | 0;
      let t = Math.imul(random ^ (random >>> 15), 1 | random);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
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
  const effectiveSampleSize = logWeights => 1 / sum(logWeights.map(v => exp(2 * v)));

  // `count` draws from a mixture, or from its guided form: one pool of candidates, from which each draw takes one.
  function draw(mixtures, count, guidance, candidates, uniform) {
    if (mixtures.length === 1)
      return mixtures[0].tempered(guidance.weightTemperature, guidance.scaleTemperature).sample(count, uniform);
    const [pool, weights] = weighedCandidates(mixtures, guidance, candidates, uniform);
    return range(count).map(() => pool[pick(weights, uniform)]);
  }

  // -- prior --

  class Prior extends Network { // p(Z | c) = prod_i p(z_i^I | z_<i^I, c) prod_i G(z_i^R; Z_I, c)   (Eqs. 5, 11, 14)
    constructor(weights, config, {order, reversed}) {
      super(weights, "prior", config.prior_layers, config.head_dim, reversed);
      this.tokenHead = weights.linear("prior.token_head");
      this.redundantHead = weights["prior.redundant_head.weight"] && weights.linear("prior.redundant_head");
      this.normOut = weights.norm("prior.norm_out");
      this.condition = weights["prior.condition_positions"]; // (M,W)
      this.classes = weights["prior.class_embedding.weight"]; // the last row is that of no class
      this.M = this.condition.length / this.W;
      this.D = order.length;
      this.I = this.projectIn.inputs;
      Object.assign(this, {order, config});
    }
    split(z, begin, end) { // some channels, in the order "informative first", of all tokens in reading order
      const width = end - begin;
      return Float32Array.from(range(this.N * width), at =>
        z[this.place(floor(at / width)) * this.D + this.order[begin + at % width]]);
    }
    start(label) { // the M condition tokens
      const from = (label === NULL_LABEL ? this.config.num_classes : label) * this.W;
      return this.condition.map((v, at) => v + this.classes[from + at % this.W]);
    }
    hidden(inputs, cache) {
      return layerNorm(this.transformer.run(inputs, cache, true), this.normOut);
    }
    mixtures(head, h, K) { // of each hidden state
      const raw = head.apply(h), width = head.outputs;
      return range(raw.length / width).map(t => GaussianMixture.fromRaw(rows(raw, width, t), K));
    }
    tokenMixtures(h) {
      return this.mixtures(this.tokenHead, h, this.config.components);
    }
    redundantMixture(h) { // of all tokens; without a head N(0, I)
      if (this.redundantHead) return this.mixtures(this.redundantHead, h, this.config.redundant_components)[0];
      const zeros = new Float32Array(this.D - this.I);
      return new GaussianMixture(new Float32Array(1), zeros, zeros);
    }
    logProbParts(z, label) { // nats of every token, in image order: informative, redundant   (Eq. 14)
      const {N, M, W, I, D} = this, zI = this.split(z, 0, I), zR = this.split(z, I, D);
      const inputs = Float32Array.of(...this.start(label), ...this.embed(zI, 0));
      const h = this.kernel.scope(() => this.hidden(inputs, this.newCache()));
      const shared = I < D && this.redundantMixture(rows(h, W, M + N - 1));
      const informative = new Float32Array(N), redundant = new Float32Array(N);
      this.tokenMixtures(rows(h, W, M - 1, M + N - 1)).forEach((mixture, i) => {
        informative[this.place(i)] = mixture.logProb(rows(zI, I, i));
        if (shared) redundant[this.place(i)] = shared.logProb(rows(zR, D - I, i));
      });
      return {informative, redundant};
    }
    // Latents, and for every step in reading order the mixture and the draw: Z_I token by token, then Z_R   (Alg. 1)
    sample(label, guidance, uniform) {
      const {N, D, I, W, M, order} = this, z = new Float32Array(N * D);
      const put = (x, place, begin) => x.forEach((v, d) => z[place * D + order[begin + d]] = v);
      return this.kernel.scope(() => {
        const runs = (guidance.scale ? [label, NULL_LABEL] : [label]).map(one => {
          const cache = this.newCache();
          return {cache, h: rows(this.hidden(this.start(one), cache), W, M - 1)};
        });
        const steps = range(N).map(i => {
          const mixtures = runs.flatMap(run => this.tokenMixtures(run.h)), place = this.place(i);
          const [drawn] = draw(mixtures, 1, guidance, guidance.candidates, uniform), next = this.embed(drawn, i);
          put(drawn, place, 0);
          runs.forEach(run => run.h = this.hidden(next, run.cache));
          return {place, drawn, ...mixtures[0]};
        });
        if (I < D)
          draw(runs.map(run => this.redundantMixture(run.h)), N, guidance, guidance.pool, uniform)
            .forEach((zR, i) => put(zR, i, I));
        return {z, steps};
      });
    }
  }

  // -- the paper on one page --

  class Farmer {
    constructor(script, fast = true) {
      const {config, student} = script, kernel = new Kernel(fast && script.kernel);
      const blocks = (weights, name) =>
        range(config.flow_blocks).map(b => new FlowBlock(weights, name.replace("#", b), config, b));
      const weights = new Weights(script, kernel);
      this.fast = kernel.fast;
      this.pixels = new Pixels(script.pixels);
      this.patchify = new Patchify(weights, config);
      this.flow = blocks(weights, "flow.blocks.#");
      this.prior = new Prior(weights, config, script);
      this.form = student?.form;
      this.studentBlocks = student ? blocks(new Weights(student, kernel), "blocks.#.network") : [];
    }
    encode(image) { // z, and log|det dz/dx| token by token
      const [coordinates, logSlope] = this.pixels.forward(image), logdet = new Float32Array(this.prior.N);
      this.patchify.source.forEach((pixel, at) => logdet[floor(at / this.prior.D)] += logSlope[pixel]);
      return [this.flow.reduce((x, block) => {
        const [z, own] = block.forward(x);
        add(logdet, own);
        return z;
      }, this.patchify.forward(coordinates)), logdet];
    }
    // log p(x | c) in nats, for every label   (Eq. 6); the flow sees no class: it runs once
    likelihoods(image, labels) {
      const [z, logdet] = this.encode(image);
      return labels.map(label => {
        const {informative, redundant} = this.prior.logProbParts(z, label);
        const terms = {informative: sum(informative), redundant: sum(redundant), logdet: sum(logdet)};
        const perToken = logdet.map((v, i) => v + informative[i] + redundant[i]);
        return {...terms, total: sum(Object.values(terms)), perToken};
      });
    }
    bayes(image) { // every class's likelihood and, with equal priors, p(c | x)
      const {num_classes: classes, levels} = this.prior.config, found = this.likelihoods(image, range(classes));
      const posterior = logSoftmax(found.map(terms => terms.total)).map(exp);
      const best = posterior.indexOf(max(...posterior));
      const bits = -found[best].total / (image.length * Math.LN2) + Math.log2(levels / 2); // per dimension
      return {posterior, best, bits, ...found[best]};
    }
    backwards(blocks, z, f) { // what f gives after each block, last block first
      return [...blocks].reverse().map(block => z = f(block, z));
    }
    inverse(z) {
      return this.backwards(this.flow, z, (block, z) => block.inverse(z));
    }
    jacobi(z) { // for each block the tokens after every sweep
      return [...this.flow].reverse().map(block => {
        const found = block.sweeps(z);
        z = found.at(-1);
        return found;
      });
    }
    student(z) { // (Alg. 2)
      return this.backwards(this.studentBlocks, z, (block, z) => block.guess(z, this.form));
    }
    // An image and the way to it, as pictures of tokens; `random` is a seed or a function that gives uniform numbers.
    sample(label, guidance, random) {
      const uniform = typeof random === "function" ? random : uniforms(random);
      const {z, steps} = this.prior.sample(label, {...GUIDANCE, ...guidance}, uniform);
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
      const [z] = block.forward(x, causal), columns = range(N).map(t => {
        const [moved] = block.forward(x.map((v, at) => v + STEP * (floor(at / D) === t)), causal);
        return moved.map((v, at) => (v - z[at]) / STEP);
      });
      const moves = range(N * N).map(at => Math.hypot(...rows(columns[at % N], D, floor(at / N))));
      return {moves, error: max(...block.inverse(z).map((v, at) => Math.abs(v - x[at])))};
    }
  }

  return {
    Farmer, Pixels, GaussianMixture, weighedCandidates, effectiveSampleSize, uniforms, middles, range, sum, clamp,
  };
}

// A worker with the model in it: `ask("bayes", image)` is a promise of what the method gives.
function farmerWorker(script) {
  const serve = ({Farmer}) => {
    let model;
    onmessage = ({data: {name, values}}) => {
      if (name === "load") model = new Farmer(...values);
      else postMessage(model[name](...values));
    };
  };
  const waiting = [], text = `(${serve})((${farmerLibrary})())`;
  const worker = new Worker(URL.createObjectURL(new Blob([text], {type: "text/javascript"})));
  worker.onmessage = ({data}) => waiting.shift()(data); // it answers in order
  worker.postMessage({name: "load", values: [script]});
  return (name, ...values) => new Promise(done => {
    waiting.push(done);
    worker.postMessage({name, values});
  });
}

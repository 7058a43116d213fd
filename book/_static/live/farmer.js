// FARMER in plain JavaScript: exact likelihood, samples and inverses of a trained model, in the reader's browser.
// A second implementation of farmer_ref/model, in its order and with its names; numbers in brackets are the paper's.
// Tokens are flat Float32Arrays of N x D numbers in image order; an image is C x H x W numbers in [-1, 1].
// The library is one function, so that its own text can start a worker (see the end): pages from files need that.
function farmerLibrary() {
  "use strict";
  const NULL_LABEL = -1,
    LOG_SCALE_FLOOR = -7,
    TOLERANCE = 1e-5,
    CONVERGED = 0.1;

  // -- weights and linear layers ----------------------------------------------------------------------------------

  function bytesOf(base64) {
    const text = atob(base64),
      bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  // The kernel (kernel.wat) and its memory: weights from the bottom up, then room for one layer's input and output.
  class Kernel {
    constructor(base64) {
      const instance = new WebAssembly.Instance(new WebAssembly.Module(bytesOf(base64)));
      this.memory = instance.exports.mem;
      this.run = instance.exports.linear;
      this.top = 0;
    }
    reserve(floats) {
      // the address of so many numbers above `top`
      const missing = this.top + 4 * floats - this.memory.buffer.byteLength;
      if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
      return this.top;
    }
    view(address, floats) {
      return new Float32Array(this.memory.buffer, address, floats);
    }
  }

  function kernelOrNull(base64) {
    try {
      return new Kernel(base64);
    } catch {
      return null;
    } // no WebAssembly, or none with SIMD
  }

  class Linear {
    // y (T,O) = x (T,I) W^T + b
    constructor(weight, bias, kernel) {
      Object.assign(this, {weight, bias, kernel, outputs: bias.length, inputs: weight.length / bias.length});
      if (!kernel) return;
      this.width = Math.ceil(this.inputs / 4) * 4; // the kernel reads four inputs and writes two outputs at a time
      this.rows = Math.ceil(this.outputs / 2) * 2;
      this.address = kernel.reserve(this.rows * (this.width + 1) + 4);
      kernel.top += Math.ceil((this.rows * (this.width + 1)) / 4) * 16;
      const memory = kernel.view(this.address, this.rows * (this.width + 1));
      for (let o = 0; o < this.outputs; o++)
        memory.set(weight.subarray(o * this.inputs, (o + 1) * this.inputs), o * this.width);
      memory.set(bias, this.rows * this.width);
    }
    apply(x) {
      const {inputs, outputs, kernel, width, rows} = this,
        T = x.length / inputs,
        y = new Float32Array(T * outputs);
      if (!kernel) {
        for (let t = 0; t < T; t++)
          for (let o = 0; o < outputs; o++) {
            let sum = this.bias[o];
            for (let i = 0; i < inputs; i++) sum += x[t * inputs + i] * this.weight[o * inputs + i];
            y[t * outputs + o] = sum;
          }
        return y;
      }
      const from = kernel.reserve(T * (width + rows)),
        to = from + 4 * T * width,
        room = kernel.view(from, T * width);
      if (width === inputs) room.set(x);
      else (room.fill(0), each(T, t => room.set(x.subarray(t * inputs, (t + 1) * inputs), t * width)));
      kernel.run(from, T, this.address, this.address + 4 * rows * width, width, rows, to);
      const out = kernel.view(to, T * rows);
      if (rows === outputs) y.set(out);
      else each(T, t => y.set(out.subarray(t * rows, t * rows + outputs), t * outputs));
      return y;
    }
  }

  const each = (n, f) => {
    for (let i = 0; i < n; i++) f(i);
  };
  const sum = numbers => numbers.reduce((a, b) => a + b, 0);
  const reversed = list => [...list].reverse();
  const rows = (x, width, from, to = from + 1) => x.subarray(from * width, to * width);

  class Weights {
    // what book/live.py wrote: float32, or int8 with one scale for each row of a matrix
    constructor({tensors, format, data}, kernel) {
      this.kernel = kernel;
      this.tensors = {};
      const bytes = bytesOf(data);
      let at = 0;
      const take = n => new Float32Array(bytes.slice(at, (at += 4 * n)).buffer);
      for (const [name, shape, packed] of tensors) {
        const size = shape.reduce((a, b) => a * b, 1);
        if (!packed) {
          this.tensors[name] = take(size);
          continue;
        }
        const scales = take(shape[0]),
          width = size / shape[0];
        const tensor = (this.tensors[name] = new Float32Array(new Int8Array(bytes.buffer, at, size)));
        for (let i = 0; i < size; i++) tensor[i] *= scales[Math.floor(i / width)];
        at += size;
      }
    }
    get(name) {
      return this.tensors[name];
    }
    linear(name) {
      return new Linear(this.get(`${name}.weight`), this.get(`${name}.bias`), this.kernel);
    }
    norm(name) {
      return [this.get(`${name}.weight`), this.get(`${name}.bias`)];
    }
  }

  // -- transformer --------------------------------------------------------------------------------------------------

  function layerNorm(x, [gain, bias]) {
    const W = gain.length,
      y = new Float32Array(x.length);
    for (let t = 0; t < x.length; t += W) {
      let mean = 0,
        variance = 0;
      for (let i = 0; i < W; i++) mean += x[t + i] / W;
      for (let i = 0; i < W; i++) variance += (x[t + i] - mean) ** 2 / W;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let i = 0; i < W; i++) y[t + i] = (x[t + i] - mean) * scale * gain[i] + bias[i];
    }
    return y;
  }

  // Phi(x) for |x| <= 6 in steps of 1/1024, by Abramowitz and Stegun 7.1.26: GELU reads it, which is faster than exp.
  const PHI = Float64Array.from({length: 12289}, (_, at) => {
    const x = at / 1024 - 6,
      a = Math.abs(x) * Math.SQRT1_2,
      t = 1 / (1 + 0.3275911 * a);
    const poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    const tail = 0.5 * poly * Math.exp(-a * a);
    return x < 0 ? tail : 1 - tail;
  });
  function gelu(y) {
    // x Phi(x), in place
    for (let i = 0; i < y.length; i++) {
      const x = y[i],
        place = (x + 6) * 1024,
        at = Math.floor(place);
      if (x <= -6) y[i] = 0;
      else if (x < 6) y[i] = x * (PHI[at] + (place - at) * (PHI[at + 1] - PHI[at]));
    }
    return y;
  }

  class Transformer {
    constructor(weights, name, layers, headDim) {
      this.headDim = headDim;
      this.layers = Array.from({length: layers}, (_, l) => {
        const at = `${name}.layers.${l}`,
          linear = part => weights.linear(`${at}.${part}`);
        return {
          norm1: weights.norm(`${at}.attention_norm`),
          norm2: weights.norm(`${at}.mlp_norm`),
          qkv: linear("attention_in"),
          out: linear("attention_out"),
          up: linear("mlp_in"),
          down: linear("mlp_out"),
        };
      });
      this.width = this.layers[0].out.outputs;
    }
    newCache(capacity) {
      const make = () => this.layers.map(() => new Float32Array(capacity * this.width));
      return {length: 0, keys: make(), values: make()};
    }
    // x (T,W) at the positions that follow those in the cache; without the causal mask every position sees all T.
    run(x, cache, causal = true) {
      const W = this.width,
        d = this.headDim,
        T = x.length / W,
        start = cache.length,
        scale = 1 / Math.sqrt(d);
      x = x.slice();
      this.layers.forEach((layer, l) => {
        const qkv = layer.qkv.apply(layerNorm(x, layer.norm1)),
          keys = cache.keys[l],
          values = cache.values[l];
        each(T, t => {
          keys.set(qkv.subarray((3 * t + 1) * W, (3 * t + 2) * W), (start + t) * W);
          values.set(qkv.subarray((3 * t + 2) * W, (3 * t + 3) * W), (start + t) * W);
        });
        const attended = new Float32Array(T * W),
          score = new Float32Array(start + T);
        for (let t = 0; t < T; t++)
          for (let h = 0; h < W; h += d) {
            const seen = causal ? start + t + 1 : start + T,
              q = 3 * t * W + h;
            let largest = -Infinity,
              total = 0;
            for (let j = 0; j < seen; j++) {
              let dot = 0;
              for (let i = 0; i < d; i++) dot += qkv[q + i] * keys[j * W + h + i];
              score[j] = dot * scale;
              if (score[j] > largest) largest = score[j];
            }
            for (let j = 0; j < seen; j++) total += score[j] = Math.exp(score[j] - largest);
            for (let j = 0; j < seen; j++) {
              const share = score[j] / total;
              for (let i = 0; i < d; i++) attended[t * W + h + i] += share * values[j * W + h + i];
            }
          }
        const add = y => {
          for (let i = 0; i < y.length; i++) x[i] += y[i];
        };
        add(layer.out.apply(attended));
        add(layer.down.apply(gelu(layer.up.apply(layerNorm(x, layer.norm2)))));
      });
      cache.length += T;
      return x;
    }
  }

  // -- tokens -------------------------------------------------------------------------------------------------------

  // Grey levels 0 .. L-1 to [-1, 1] and back. The only place that knows how pixels become real numbers.
  class Dequantiser {
    constructor(config) {
      this.levels = config.levels;
    }
    apply(values, noise = () => 0.5) {
      return Float32Array.from(values, v => (2 * (v + noise())) / this.levels - 1);
    }
    quantise(image) {
      return Array.from(image, x => Math.min(this.levels - 1, Math.max(0, Math.floor(((x + 1) / 2) * this.levels))));
    }
    bitsPerDim(logProb, dimensions) {
      return -logProb / (dimensions * Math.LN2) + Math.log2(this.levels / 2);
    }
  }

  class Patchify {
    // images to tokens, in an orthonormal basis: log-determinant 0
    constructor(weights, {image_size: size, channels, patch_size: p}) {
      this.matrix = weights.get("patchify.matrix");
      this.mean = weights.get("patchify.mean");
      this.source = []; // the pixel of each number of a token: row by row, inside a patch (colour, row, column)
      const side = size / p;
      each(side * side, n =>
        each(channels * p * p, d => {
          const row = Math.floor(n / side) * p + (Math.floor(d / p) % p),
            column = (n % side) * p + (d % p);
          this.source.push((Math.floor(d / p / p) * size + row) * size + column);
        })
      );
    }
    forward(image) {
      const D = this.mean.length;
      return Float32Array.from(this.source, (_, at) => {
        const d = at % D,
          from = at - d;
        let total = 0;
        for (let e = 0; e < D; e++) total += this.matrix[d * D + e] * (image[this.source[from + e]] - this.mean[e]);
        return total;
      });
    }
    inverse(tokens) {
      const D = this.mean.length,
        image = new Float32Array(tokens.length);
      this.source.forEach((pixel, at) => {
        const d = at % D,
          from = at - d;
        let total = this.mean[d];
        for (let e = 0; e < D; e++) total += this.matrix[e * D + d] * tokens[from + e];
        image[pixel] = total;
      });
      return image;
    }
  }

  function flipped(x, width) {
    // tokens back to front
    const y = new Float32Array(x.length),
      N = x.length / width;
    each(N, t => y.set(rows(x, width, N - 1 - t), t * width));
    return y;
  }

  // -- flow ---------------------------------------------------------------------------------------------------------

  class FlowBlock {
    // z_i = (x_i - mu(x_<i)) sigma(x_<i), z_1 = x_1   (Eq. 8); "student": the same network, no mask
    constructor(weights, name, config, number) {
      this.transformer = new Transformer(weights, `${name}.transformer`, config.flow_layers, config.head_dim);
      this.projectIn = weights.linear(`${name}.project_in`);
      this.projectOut = weights.linear(`${name}.project_out`);
      this.positions = weights.get(`${name}.positions`);
      this.classes = weights.get(`${name}.class_embedding`);
      this.mixing = ["matrix", "inverse"].map(part => weights.get(`${name}.mixing.${part}`));
      this.mixingLogdet = sum(weights.get(`${name}.mixing.log_magnitude`) || [0]); // of one token
      this.D = this.projectIn.inputs;
      this.W = this.transformer.width;
      this.N = this.positions.length / this.W;
      this.bound = config.max_log_scale;
      this.reverse = number % 2 === 1;
    }
    flip(x) {
      return this.reverse ? flipped(x, this.D) : x;
    }
    mix(x, inverse) {
      // Glow's learned 1x1 convolution, where the model has one
      const A = this.mixing[inverse],
        D = this.D;
      return A
        ? x.map((_, at) => sum(Array.from({length: D}, (_, e) => A[(at % D) * D + e] * x[at - (at % D) + e])))
        : x;
    }
    label(label) {
      // what the label adds to every position; the mean of all classes stands for none
      const W = this.W,
        classes = this.classes && this.classes.length / W;
      if (!classes) return null;
      if (label >= 0) return rows(this.classes, W, label);
      return Float32Array.from({length: W}, (_, i) => sum(this.classes.filter((_, j) => j % W === i)) / classes);
    }
    // mu and log sigma, interleaved as (T, 2 D), of the tokens that follow x (T,D), in reading order.
    shiftAndLogScale(x, cache, label, causal = true) {
      const {D, W, N, bound} = this,
        start = cache.length,
        h = this.projectIn.apply(x),
        extra = this.label(label);
      for (let at = 0; at < h.length; at++) {
        const t = start + Math.floor(at / W),
          place = this.reverse ? N - 1 - t : t;
        h[at] += this.positions[place * W + (at % W)] + (extra ? extra[at % W] : 0);
      }
      const out = this.projectOut.apply(this.transformer.run(h, cache, causal));
      return bound ? out.map((v, at) => (at % (2 * D) < D ? v : bound * Math.tanh(v / bound))) : out;
    }
    forward(x, label, causal = true) {
      // z, and log|det dz/dx| token by token   (Eqs. 8 and 10)
      const {D, N} = this,
        logdet = new Float32Array(N).fill(this.mixingLogdet);
      x = this.flip(this.mix(x, 0));
      const out = this.shiftAndLogScale(x, this.transformer.newCache(N), label, causal),
        z = x.slice();
      each((N - 1) * D, at => {
        const i = Math.floor(at / D) * 2 * D + (at % D),
          logScale = out[i + D];
        z[D + at] = (x[D + at] - out[i]) * Math.exp(logScale);
        logdet[this.reverse ? N - 2 - Math.floor(at / D) : 1 + Math.floor(at / D)] += logScale;
      });
      return [this.flip(z), logdet];
    }
    step(z, x, out, begin) {
      // tokens begin + 1, ... of x from those of z: x_i = z_i / sigma + mu   (Eq. 9)
      const D = this.D;
      each(out.length / 2, at => {
        const i = Math.floor(at / D) * 2 * D + (at % D),
          to = (begin + 1) * D + at;
        if (to < x.length) x[to] = z[to] * Math.exp(-out[i + D]) + out[i];
      });
    }
    unflip(x) {
      return this.mix(this.flip(x), 1);
    }
    inverse(z, label) {
      // token by token
      z = this.flip(z);
      const x = z.slice(),
        cache = this.transformer.newCache(this.N);
      each(this.N - 1, i => this.step(z, x, this.shiftAndLogScale(rows(x, this.D, i), cache, label), i));
      return this.unflip(x);
    }
    // Jacobi: Eq. 9 for all tokens at once, again and again; returns x after every sweep, the last one converged.
    sweeps(z, label) {
      z = this.flip(z);
      const {D, N} = this,
        cache = this.transformer.newCache(N),
        found = [];
      let x = z.slice(),
        begin = 0; // x is final up to and including token `begin`
      while (begin < N - 1) {
        cache.length = begin; // keys and values of final tokens stay
        const next = x.slice();
        this.step(z, next, this.shiftAndLogScale(rows(x, D, begin, N - 1), cache, label), begin);
        const moved = t => rows(next, D, t).some((v, d) => !(Math.abs(v - x[t * D + d]) <= TOLERANCE * CONVERGED));
        let still = begin + 1;
        while (still < N && !moved(still)) still++;
        begin = Math.min(still, N - 1); // the first that moved has converged too: all its inputs are final
        x = next.map((v, at) => (at < (begin + 1) * D ? v : Number.isFinite(v) ? Math.max(-1e6, Math.min(1e6, v)) : 0));
        found.push(this.unflip(x));
      }
      return found;
    }
    guess(z, label, form) {
      // a student's block: one pass, which sees all of z   (Alg. 2)
      z = this.flip(z);
      const {D, N} = this,
        x = z.slice();
      const out = this.shiftAndLogScale(z, this.transformer.newCache(N), label, false);
      if (form === "inverse") this.step(z, x, out, 0);
      else
        each((N - 1) * D, at => {
          const i = Math.floor(at / D) * 2 * D + (at % D);
          x[D + at] = (z[D + at] - out[i]) * Math.exp(out[i + D]);
        });
      return this.unflip(x);
    }
  }

  // -- mixtures and guidance ----------------------------------------------------------------------------------------

  class GaussianMixture {
    // sum_k pi_k N(z; mu_k, diag sigma_k^2)   (Eq. 11)
    constructor(logWeights, mean, logScale) {
      Object.assign(this, {K: logWeights.length, D: mean.length / logWeights.length, mean, logScale});
      this.logWeights = logSoftmax(logWeights);
    }
    static fromRaw(raw, K) {
      // K logits, K D means, K D log-scales with a smooth floor
      const end = (raw.length + K) / 2,
        above = raw.slice(end).map(v => v - LOG_SCALE_FLOOR);
      const softplus = v => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
      return new GaussianMixture(
        raw.slice(0, K),
        raw.slice(K, end),
        above.map(v => LOG_SCALE_FLOOR + softplus(v))
      );
    }
    logProb(z) {
      // logsumexp_k [log pi_k + log N(z; mu_k, diag sigma_k^2)]   (Eq. 7)
      const terms = Float64Array.from(this.logWeights);
      for (let at = 0; at < this.mean.length; at++) {
        const e = (z[at % this.D] - this.mean[at]) * Math.exp(-this.logScale[at]);
        terms[Math.floor(at / this.D)] -= 0.5 * (e * e + Math.log(2 * Math.PI)) + this.logScale[at];
      }
      return logSumExp(terms);
    }
    tempered(weight, scale) {
      // logits times T_pi, sigma times T_sigma   (A.2)
      const shift = Math.log(scale);
      return new GaussianMixture(
        this.logWeights.map(v => v * weight),
        this.mean,
        this.logScale.map(v => v + shift)
      );
    }
    sample(count, uniform) {
      // components first, then noise, as PyTorch's sample takes its random numbers
      const chosen = Array.from({length: count}, () => pick(this.logWeights, uniform));
      return chosen.map(k =>
        Float32Array.from(
          {length: this.D},
          (_, d) => this.mean[k * this.D + d] + Math.exp(this.logScale[k * this.D + d]) * normal(uniform)
        )
      );
    }
  }

  function logSumExp(terms) {
    const largest = Math.max(...terms);
    return largest + Math.log(sum(terms.map(v => Math.exp(v - largest))));
  }
  function logSoftmax(logits) {
    const total = logSumExp(Float64Array.from(logits));
    return logits.map(v => v - total);
  }
  function pick(logWeights, uniform) {
    let left = uniform(),
      k = 0;
    while (k < logWeights.length - 1 && (left -= Math.exp(logWeights[k])) >= 0) k++;
    return k;
  }
  function normal(uniform) {
    // Box and Muller
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform());
  }

  // Candidates of p_c and p_u, weighed by p' over the density that each came from   (Eq. 15, Alg. 1)
  function weighedCandidates(
    conditional,
    unconditional,
    {scale, weightTemperature, scaleTemperature},
    counts,
    uniform
  ) {
    const candidates = [conditional, unconditional].flatMap((mixture, i) =>
      mixture.tempered(weightTemperature, scaleTemperature).sample(counts[i], uniform)
    );
    const logWeights = candidates.map(
      (z, s) => (scale + (s >= counts[0])) * (conditional.logProb(z) - unconditional.logProb(z))
    );
    return [candidates, logSoftmax(logWeights)];
  }
  const effectiveSampleSize = logWeights => 1 / sum(logWeights.map(v => Math.exp(2 * v)));

  const GUIDANCE = {scale: 0, candidates: [5, 5], pool: [192, 64], weightTemperature: 1, scaleTemperature: 1};

  // `count` draws from a mixture, or from its guided form: one pool of candidates, from which each draw takes one.
  function draw(mixtures, count, guidance, candidates, uniform) {
    const [conditional, unconditional] = mixtures;
    if (!unconditional)
      return conditional.tempered(guidance.weightTemperature, guidance.scaleTemperature).sample(count, uniform);
    const [pool, weights] = weighedCandidates(conditional, unconditional, guidance, candidates, uniform);
    return Array.from({length: count}, () => pool[pick(weights, uniform)]);
  }

  // -- prior --------------------------------------------------------------------------------------------------------

  class Prior {
    // p(Z | c) = prod_i p(z_i^I | z_<i^I, c) prod_i G(z_i^R; Z_I, c)   (Eqs. 5, 11, 14)
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
      this.D = order.length;
      this.I = this.projectIn.inputs;
      this.W = this.transformer.width;
      this.N = this.positions.length / this.W;
      this.M = this.condition.length / this.W;
      this.K = config.components;
      this.KR = config.redundant_components;
      this.nullRow = config.num_classes;
    }
    place(i) {
      return this.reverse ? this.N - 1 - i : i;
    } // token i in reading order, as a place in the image
    split(z, i) {
      // token i of z: informative and redundant channels
      const all = this.order.map(channel => z[i * this.D + channel]);
      return [Float32Array.from(all.slice(0, this.I)), Float32Array.from(all.slice(this.I))];
    }
    start(label) {
      // the M condition tokens (M,W)
      const from = (label === NULL_LABEL ? this.nullRow : label) * this.W;
      return this.condition.map((v, at) => v + this.classes[from + (at % this.W)]);
    }
    embed(zI, i) {
      const from = this.place(i) * this.W;
      return this.projectIn.apply(zI).map((v, at) => v + this.positions[from + at]);
    }
    hidden(inputs, cache) {
      return layerNorm(this.transformer.run(inputs, cache), this.normOut);
    }
    newCache() {
      return this.transformer.newCache(this.M + this.N);
    }
    tokenMixture(h) {
      return GaussianMixture.fromRaw(this.tokenHead.apply(h), this.K);
    }
    redundantMixture(h) {
      const R = this.D - this.I,
        zeros = new Float32Array(R);
      if (!this.redundantHead) return new GaussianMixture(new Float32Array(1), zeros, zeros); // N(0, I)
      return GaussianMixture.fromRaw(this.redundantHead.apply(h), this.KR);
    }
    logProbParts(z, label) {
      // nats of every token, in image order: informative, redundant   (Eq. 14)
      const {N, M, W, D, I} = this,
        inputs = new Float32Array((M + N) * W);
      const parts = Array.from({length: N}, (_, i) => this.split(z, this.place(i)));
      inputs.set(this.start(label));
      parts.forEach(([zI], i) => inputs.set(this.embed(zI, i), (M + i) * W));
      const h = this.hidden(inputs, this.newCache()),
        shared = I < D && this.redundantMixture(rows(h, W, M + N - 1));
      const informative = new Float32Array(N),
        redundant = new Float32Array(N);
      parts.forEach(([zI, zR], i) => {
        informative[this.place(i)] = this.tokenMixture(rows(h, W, M - 1 + i)).logProb(zI);
        if (shared) redundant[this.place(i)] = shared.logProb(zR);
      });
      return {informative, redundant};
    }
    // Latents, and for every step in reading order the mixture and the draw: Z_I token by token, then Z_R   (Alg. 1)
    sample(label, guidance, uniform) {
      const {N, D, I} = this,
        labels = guidance.scale ? [label, NULL_LABEL] : [label],
        z = new Float32Array(N * D);
      const caches = labels.map(() => this.newCache()),
        steps = [];
      const last = h => h.map(all => all.subarray(all.length - this.W));
      let h = last(labels.map((one, i) => this.hidden(this.start(one), caches[i])));
      each(N, i => {
        const mixtures = h.map(one => this.tokenMixture(one));
        const [zI] = draw(mixtures, 1, guidance, guidance.candidates, uniform),
          place = this.place(i);
        zI.forEach((v, d) => {
          z[place * D + this.order[d]] = v;
        });
        const {logWeights, mean, logScale} = mixtures[0];
        steps.push({place, drawn: zI, logWeights, mean, logScale});
        if (i + 1 < N || I < D) h = caches.map(cache => this.hidden(this.embed(zI, i), cache));
      });
      if (I < D)
        draw(
          h.map(one => this.redundantMixture(one)),
          N,
          guidance,
          guidance.pool,
          uniform
        ).forEach((zR, i) =>
          zR.forEach((v, d) => {
            z[i * D + this.order[I + d]] = v;
          })
        );
      return {z, steps};
    }
  }

  // -- the paper on one page ----------------------------------------------------------------------------------------

  class Farmer {
    constructor(script, useKernel = true) {
      const {config, form} = script,
        weights = new Weights(script, useKernel ? kernelOrNull(script.kernel) : null);
      const blocks = name =>
        Array.from({length: config.flow_blocks}, (_, b) => new FlowBlock(weights, name.replace("#", b), config, b));
      this.config = config;
      this.kernel = Boolean(weights.kernel);
      this.dequantiser = new Dequantiser(config);
      this.patchify = new Patchify(weights, config);
      this.flow = blocks("flow.blocks.#");
      this.prior = new Prior(weights, config, script);
      this.form = form;
      this.studentBlocks = form ? blocks("student.blocks.#.network") : [];
    }
    encode(image, label = NULL_LABEL) {
      // z, and log|det dz/dx| token by token
      let x = this.patchify.forward(image);
      const logdet = new Float32Array(this.prior.N);
      for (const block of this.flow) {
        const [z, own] = block.forward(x, label);
        own.forEach((v, i) => {
          logdet[i] += v;
        });
        x = z;
      }
      return [x, logdet];
    }
    likelihood(image, label = NULL_LABEL, encoded = this.encode(image, label)) {
      // log p(x | c) in nats   (Eq. 6)
      const [z, logdet] = encoded,
        {informative, redundant} = this.prior.logProbParts(z, label);
      const perToken = logdet.map((v, i) => v + informative[i] + redundant[i]);
      const terms = {informative: sum(informative), redundant: sum(redundant), logdet: sum(logdet)};
      return {...terms, total: terms.informative + terms.redundant + terms.logdet, perToken};
    }
    bayes(image) {
      // every class's likelihood and, with equal priors, p(c | x); the flow runs once if it sees no class
      const shared = this.config.flow_sees_class ? undefined : this.encode(image);
      const classes = Array.from({length: this.config.num_classes}, (_, c) => this.likelihood(image, c, shared));
      const posterior = logSoftmax(classes.map(terms => terms.total)).map(Math.exp);
      const best = posterior.indexOf(Math.max(...posterior)),
        dimensions = image.length;
      const bits = this.dequantiser.bitsPerDim(classes[best].total, dimensions);
      return {posterior, best, bits, ...classes[best]};
    }
    inverse(z, label = NULL_LABEL) {
      // tokens after each block, last block first   (Eq. 9)
      return reversed(this.flow).map(block => (z = block.inverse(z, label)));
    }
    jacobi(z, label = NULL_LABEL) {
      // for each block, last one first, the tokens after every sweep
      return reversed(this.flow).map(block => {
        const s = block.sweeps(z, label);
        z = s[s.length - 1];
        return s;
      });
    }
    student(z, label = NULL_LABEL) {
      // tokens after each block, in one pass each   (Alg. 2)
      return reversed(this.studentBlocks).map(block => (z = block.guess(z, label, this.form)));
    }
    // An image and the way to it, all as images; `random` is a seed or a function that gives uniform numbers.
    sample(label, guidance = {}, random = 0) {
      const {z, steps} = this.prior.sample(label, {...GUIDANCE, ...guidance}, uniforms(random));
      return {label, steps, ...this.race(z, label)};
    }
    race(z, label) {
      // the three inverses of the same latents, and the milliseconds that each took
      const image = x => Array.from(this.patchify.inverse(x)),
        times = [];
      const timed = f => {
        const began = performance.now(),
          x = f();
        times.push(performance.now() - began);
        return x;
      };
      const levels = timed(() => this.inverse(z, label)).map(image);
      const sweeps = timed(() => this.jacobi(z, label)).map(block => block.map(image));
      const student = timed(() => this.student(z, label)).map(image);
      return {latents: image(z), levels, sweeps, student, times, image: levels[levels.length - 1]};
    }
    // The first block with its causal mask or without: |dz_i / dx_j| by token (N,N), and the round trip's error.
    mask(image, causal) {
      const block = this.flow[0],
        x = this.patchify.forward(image),
        {N, D} = block,
        step = 1e-2;
      const [z] = block.forward(x, NULL_LABEL, causal),
        jacobian = Array.from({length: N}, () => new Array(N).fill(0));
      x.forEach((_, at) => {
        const other = block.forward(
          x.map((v, i) => v + step * (i === at)),
          NULL_LABEL,
          causal
        )[0];
        other.forEach((v, i) => {
          jacobian[Math.floor(i / D)][Math.floor(at / D)] += ((v - z[i]) / step) ** 2;
        });
      });
      const back = block.inverse(z, NULL_LABEL);
      return {
        jacobian: jacobian.map(row => row.map(Math.sqrt)),
        error: Math.max(...back.map((v, i) => Math.abs(v - x[i]))),
      };
    }
  }

  function uniforms(random) {
    // mulberry32 of a seed
    if (typeof random === "function") return random;
    return () => {
      random = (random + 0x6d2b79f5) | 0;
      let t = Math.imul(random ^ (random >>> 15), 1 | random);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  return {Farmer, GaussianMixture, draw, weighedCandidates, effectiveSampleSize, pick, uniforms};
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

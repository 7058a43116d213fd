// The widgets of the live page. Each first shows a recorded state (recorded.js, by PyTorch) and computes once touched.
(() => {
  "use strict";
  const {Pixels, GaussianMixture, weighedCandidates, effectiveSampleSize, pick, uniforms} = farmerLibrary();
  const FOLDER = document.currentScript.src.replace(/[^/]*$/, ""), R = globalThis.FARMER_RECORDED;
  const {image_size: SIZE, patch_size: PATCH, levels: LEVELS, num_classes: CLASSES} = R.config;
  const SIDE = SIZE / PATCH, TOKENS = SIDE * SIDE, pixels = new Pixels(R.pixels);

  // -- the model, in a worker, loaded at the first touch ------------------------------------------------------------

  const script = name => new Promise(done => document.head.append(make("script", {src: FOLDER + name, onload: done})));
  let asking;
  const model = () => asking ||= (async () => {
    if (!globalThis.FARMER_WEIGHTS) {
      await script("weights.js");
      if (R.sample.student.length) await script("student.js");
    }
    return farmerWorker(FARMER_WEIGHTS);
  })();
  const ask = async (...call) => (await model())(...call);

  // Computes and then shows; while it computes, only the latest further request is kept.
  function latest(compute, show) {
    let busy = false, next = null;
    return async (...values) => {
      next = values;
      if (busy) return;
      for (busy = true; next; ) {
        const now = next;
        next = null;
        show(await compute(...now), ...now);
      }
      busy = false;
    };
  }

  // -- elements -----------------------------------------------------------------------------------------------------

  const SHAPES = new Set(["svg", "rect", "path", "circle", "text"]);
  function make(tag, attributes = {}, ...children) {
    const space = SHAPES.has(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const node = set(document.createElementNS(space, tag), attributes);
    node.append(...children);
    return node;
  }
  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes))
      if (typeof value === "function") node[name] = value;
      else node.setAttribute(name, value);
    return node;
  }
  const range = n => Array.from({length: n}, (_, i) => i);
  const total = numbers => numbers.reduce((a, b) => a + b, 0);
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
  const number = (v, digits = 1) => v.toFixed(digits).replace("-", "−");
  const percent = v => `${Math.round(100 * v)}%`;
  const label = text => make("p", {class: "fl-name"}, text);
  const part = (name, ...children) => make("div", {class: "fl-part"}, label(name), ...children);
  const row = (...children) => make("div", {class: "fl-row"}, ...children);
  const tools = (...children) => make("div", {class: "fl-tools"}, ...children);
  const button = (text, onclick) => make("button", {type: "button", onclick}, text);
  const svg = (width, height, text) =>
    make("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": text});
  const centred = (x, y, text) => make("text", {x, y, "text-anchor": "middle"}, text);
  const fill = (table, entries) => table.replaceChildren(
    ...entries.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, value))));

  function slider(text, [low, high, step, value], onvalue) {
    const shown = make("output", {}, value), oninput = ({target}) => onvalue(Number(shown.textContent = target.value));
    return make("label", {}, text, make("input", {type: "range", min: low, max: high, step, value, oninput}), shown);
  }
  const scrubber = (text, onvalue) => make("input", {
    type: "range", class: "fl-scrub", min: 0, step: 1, "aria-label": text,
      oninput: ({target}) => onvalue(Number(target.value)),
  });
  const digits = (text, onvalue) => make("label", {}, text, make("select",
    {onchange: ({target}) => onvalue(Number(target.value))},
    ...range(CLASSES).map(c => make("option", c === R.example ? {selected: ""} : {}, c))));

  function frame(root, title, lead, ...children) { // what all widgets share; returns what sets the live region's text
    const say = make("p", {class: "fl-say", "aria-live": "polite"}), {name, address} = R.sources[root.dataset.farmer];
    const source = make("p", {class: "fl-foot"}, "The same in PyTorch: ", make("a", {href: address}, name));
    set(root, {class: "farmer-live", role: "group", "aria-label": title, onpointerenter: model, onfocus: model});
    root.replaceChildren(make("h3", {}, title), make("p", {class: "fl-lead"}, lead), ...children, say, source);
    return text => say.textContent = text;
  }

  // A picture of `columns` by `rows` squares: `paint(values)` fills them, `style(value)` gives colour and opacity.
  const painted = [];
  function squares(columns, rows, width, text, style) {
    const canvas = make("canvas", {width: columns, height: rows, class: "fl-pixels", role: "img", "aria-label": text});
    const context = canvas.getContext("2d"), colour = name => getComputedStyle(canvas).getPropertyValue(name);
    let shown = [];
    canvas.style.width = `${width}px`;
    canvas.paint = (values = shown) => {
      shown = values;
      context.clearRect(0, 0, columns, rows);
      const colours = {};
      values.forEach((value, i) => {
        if (value === null) return;
        const [name, opacity] = style(value);
        context.fillStyle = colours[name] ||= colour(name);
        context.globalAlpha = opacity;
        context.fillRect(i % columns, Math.floor(i / columns), 1, 1);
      });
    };
    painted.push(canvas);
    return canvas;
  }
  const repaint = () => painted.forEach(canvas => canvas.paint()); // in the colours of the page, when these change
  matchMedia("(prefers-color-scheme: dark)").onchange = repaint;
  new MutationObserver(repaint).observe(document.documentElement, {attributeFilter: ["data-theme"]});

  const ink = v => ["--ink", clamp((v + 1) / 2, 0, 1)]; // an image in [-1, 1]
  const signed = most => v => [v < 0 ? "--warm" : "--accent", clamp(Math.abs(v) / most, 0, 1)];
  const curve = (values, width, height, most) => // an SVG path
    "M" + values.map((v, i) => `${number(i * width / (values.length - 1))} ${height * (1 - v / most)}`).join("L");

  const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  // Calls move(x, y), in shares of the element, while a pointer that was pressed on `node` moves.
  function drag(node, element, move, begin = () => {}) {
    const to = event => {
      const box = element.getBoundingClientRect();
      move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    node.onpointerdown = event => {
      node.setPointerCapture(event.pointerId);
      begin();
      to(event);
    };
    node.onpointermove = event => node.hasPointerCapture(event.pointerId) && to(event);
  }
  // A handle that a pointer or the arrow keys move: move(x, y) in the picture's own units.
  function handle(picture, text, stroke, where, move) {
    const dot = make("circle", {class: "fl-handle", stroke, tabindex: 0, role: "slider", "aria-label": text});
    const {width, height} = picture.viewBox.baseVal;
    drag(dot, picture, (x, y) => move(x * width, y * height), () => dot.focus());
    dot.onkeydown = event => {
      const by = STEPS[event.key];
      if (!by) return;
      event.preventDefault();
      move(...where().map((v, a) => v + 6 * by[a]));
    };
    dot.place = value => {
      const [cx, cy] = where(), grown = Math.max(1, width / (picture.clientWidth || width));
      set(dot, {cx, cy, r: 8 * grown, "stroke-width": 3 * grown, "aria-valuetext": value,
        "aria-valuenow": Math.round(cx)});
    };
    picture.append(dot);
    return dot;
  }

  const tokenOf = pixel => Math.floor(Math.floor(pixel / SIZE) / PATCH) * SIDE + Math.floor(pixel % SIZE / PATCH);
  const mixed = (a, b, chosen) => a.map((v, p) => chosen(tokenOf(p)) ? v : b[p]); // a where a token is chosen, else b
  const toImage = levels => levels.map(v => 2 * (v + 0.5) / LEVELS - 1);
  const bytes = text => Array.from(atob(text), c => c.charCodeAt(0));
  const examples = R.examples.map(bytes);
  const unpack = text => bytes(text).map(v => (v << 24 >> 24) / R.sample.scale);
  const recordedWay = {
    ...R.sample, levels: R.sample.levels.map(unpack), sweeps: R.sample.sweeps.map(block => block.map(unpack)),
    student: R.sample.student.map(unpack),
  };

  // -- a. draw ------------------------------------------------------------------------------------------------------

  function draw(root) {
    // the pen paints FINE x FINE dots a pixel; their mean is its level
    const FINE = 4, fine = SIZE * FINE, top = LEVELS - 1;
    const dots = new Float32Array(fine * fine), spot = (p, i) => // of dot i of pixel p
      (Math.floor(p / SIZE) * FINE + Math.floor(i / FINE)) * fine + p % SIZE * FINE + i % FINE;
    let erasing = false, last = null, cursor = [SIZE / 2, SIZE / 2].map(Math.floor), example = R.example, shown;
    const pad = set(squares(SIZE, SIZE, 224, `Drawing area: arrow keys move, space paints, backspace erases`,
      v => ["--ink", v / top]),
      {tabindex: 0, role: "application"});
    const place = (node, [left, top], [right, down]) =>
      Object.entries({left, top, width: right - left, height: down - top})
        .forEach(([name, v]) => node.style[name] = `${100 * v / SIZE}%`);
    const mark = make("div", {class: "fl-mark", hidden: ""}), guide = make("div", {class: "fl-guide"});
    place(guide, R.frame.slice(0, 2), R.frame.slice(2));
    const most = Math.max(...R.draw.perToken.map(Math.abs)),
      heat = squares(SIDE, SIDE, 126, "Nats of every patch", signed(most));
    const given = label(""), figure = make("div", {class: "fl-figure"}), terms = make("table", {class: "fl-terms"});
    const bars = svg(250, 92, "Posterior probability of the ten classes"), among = svg(250, 98, "Test images by log p");
    const {from, step, counts} = R.histogram, tallest = Math.max(...counts), wide = 250 / CLASSES,
      thin = 250 / counts.length;
    const columns = range(CLASSES).map(c => make("rect",
      {x: c * wide + 3, width: wide - 6, fill: "var(--accent)", rx: 2}));
    bars.append(...columns, ...range(CLASSES).map(c => centred((c + 0.5) * wide, 90, c)));
    const needle = make("path", {fill: "var(--warm)"});
    among.append(needle, centred(125, 95, `${number(from, 0)} to ${number(from + step * counts.length, 0)} nats`),
      ...counts.map((n, i) => make("rect",
      {x: i * thin, y: 72 - 66 * n / tallest, width: thin - 0.6, height: 66 * n / tallest, fill: "var(--accent)",
        "fill-opacity": 0.45})));

    const pen = button("Pen", () => choose(false)), eraser = button("Eraser", () => choose(true));
    const say = frame(root, "Draw a digit",
      "While you draw, the model computes log p, the exact log-density of your drawing: the higher, the more probable.",
      row(
        part(`your drawing, ${SIZE}×${SIZE}; real digits fill the frame`,
          make("div", {class: "fl-board"}, pad, guide, mark), tools(pen, eraser)),
        make("div", {class: "fl-part fl-narrow"}, given, figure, terms,
          label("nats of each patch, faint: surprising; they add up to log p"), heat),
        make("div", {class: "fl-part fl-wide"}, label("which digit, by Bayes’ rule"), bars,
          label("▲ your drawing, among real test digits"), among)),
      tools(
        button("A real digit", () => load(examples[example = (example + 1) % CLASSES])),
        button("Shift it", () => load(shown.image.map((_, p, all) => p % SIZE ? all[p - 1] : 0), (found, before) =>
          `The same strokes, one pixel to the right: log p changes by ${number(found.total - before.total)} ` +
          `nats. To the model, where a digit stands matters, too.`)),
        button("A blank page", () => load(range(SIZE * SIZE).map(() => 0), (found, _, below) =>
          `An empty page gets ${number(found.total)} nats, more than ${percent(below)} of the real digits: it holds ` +
          `no surprise. A density rewards what is predictable, not what is meaningful.`)),
        button("Noise", () => load(range(SIZE * SIZE).map(() => Math.floor(Math.random() * LEVELS)), found =>
          `Noise gets ${number(found.total)} nats: it is one of so many pages that none of them can have much.`))));
    function choose(value) {
      erasing = value;
      set(pen, {"aria-pressed": !value});
      set(eraser, {"aria-pressed": value});
    }
    function load(image, note) {
      image.forEach((v, p) => range(FINE * FINE).forEach(i => dots[spot(p, i)] = v / top));
      changed(note);
    }
    function changed(note) {
      const image = range(SIZE * SIZE).map(p => {
        let sum = 0;
        for (let i = 0; i < FINE * FINE; i++) sum += dots[spot(p, i)];
        return Math.round(sum / FINE / FINE * top);
      });
      pad.paint(image);
      request(image, note);
    }
    function stamp([x, y]) { // in dots
      const radius = Math.max(0.55 * FINE, fine / 28);
      for (let i = Math.floor(y - radius); i <= y + radius; i++)
        for (let j = Math.floor(x - radius); j <= x + radius; j++)
          if (Math.min(i, j) >= 0 && Math.max(i, j) < fine && Math.hypot(i + 0.5 - y, j + 0.5 - x) <= radius)
            dots[i * fine + j] = erasing ? 0 : 1;
    }
    drag(pad, pad, (x, y) => {
      const to = [x * fine, y * fine], start = last || to,
        count = Math.ceil(Math.hypot(to[0] - start[0], to[1] - start[1])) + 1;
      range(count + 1).forEach(i => stamp(start.map((v, a) => v + (to[a] - v) * i / count)));
      last = to;
      changed();
    }, () => {
      last = null;
      mark.hidden = true;
    });
    pad.onkeydown = event => {
      const by = STEPS[event.key], paint = {" ": 1, Enter: 1, Backspace: 0, Delete: 0}[event.key];
      if (!by && paint === undefined) return;
      event.preventDefault();
      if (by) cursor = cursor.map((v, a) => clamp(v + by[a], 0, SIZE - 1));
      else {
        range(FINE * FINE).forEach(i => dots[spot(cursor[1] * SIZE + cursor[0], i)] = paint);
        changed();
      }
      place(mark, cursor, cursor.map(v => v + 1));
      mark.hidden = false;
    };
    pad.onblur = () => mark.hidden = true;

    const request = latest(image => ask("bayes", toImage(image)), show);
    function show(found, image, note) {
      given.textContent = `log p(x | ${found.best}), every pixel in the middle of its grey level`;
      figure.replaceChildren(number(found.total), make("small", {}, " nats · "), number(found.bits, 2),
        make("small", {}, " bits/dim"));
      fill(terms, [["informative channels", "informative"], ["redundant channels", "redundant"],
        ["log-determinant", "logdet"]]
        .map(([text, key]) => [text, number(found[key])]));
      heat.paint([...found.perToken]);
      columns.forEach((column, c) => set(column, {
        y: 74 - 68 * found.posterior[c], height: 68 * found.posterior[c] + 1,
          "fill-opacity": c === found.best ? 1 : 0.5}));
      const x = clamp((found.total - from) / step * thin, 0, 250);
      set(needle, {d: `M${x} 73l6 9h-12z`});
      const below = total(counts.filter((_, i) => from + (i + 0.5) * step < found.total)) / total(counts);
      say(note ? note(found, shown, below) :
        `It looks like a ${found.best} (${percent(found.posterior[found.best])}). ` +
        `Its density, ${number(found.total)} nats, is ` + (below === 0 ? "lower than that of every real test digit." :
          `higher than that of ${percent(below)} of the real test digits` +
          (below > 0.9 ? ": little ink, few surprises." : ".")));
      shown = {...found, image};
    }
    choose(false);
    pad.paint(examples[example]);
    examples[example].forEach((v, p) => range(FINE * FINE).forEach(i => dots[spot(p, i)] = v / top));
    show(R.draw, examples[example]);
  }

  // -- b. sample, step by step --------------------------------------------------------------------------------------

  function sample(root) {
    const WIDE = 260, HIGH = 130, REACH = 4, axis = range(161).map(i => i / 20 - REACH),
      COLOURS = ["--accent", "--warm", "--blue"];
    const toX = v => (v + REACH) / (2 * REACH) * WIDE, none = range(SIZE * SIZE).map(() => null);
    const wish = {label: R.sample.label, scale: 0, weightTemperature: 1, scaleTemperature: 1, seed: 0};
    let way = recordedWay, at = 0, timer = null;
    const ends = () => TOKENS + way.levels.length;
    const curves = svg(WIDE, 150, "Mixture of the next token"), name = make("span");
    const latents = squares(SIZE, SIZE, 140, "Latents", signed(2.5)), image = squares(SIZE, SIZE, 140, "Image", ink);
    const student = squares(SIZE, SIZE, 140, "The student’s image", ink);
    const scrub = scrubber("Step", value => stop(go(value))), play = button("Play", () => timer ? stop() : start());
    const request = latest(({label, seed, ...guidance}) => ask("sample", label, guidance, seed), found => {
      way = found;
      go(Math.min(at, ends()));
    });
    const change = key => value => {
      wish[key] = value;
      request({...wish});
    };
    const say = frame(root, "Sample, step by step",
      "The prior draws one latent token after another; then the blocks of the flow are undone, one by one.",
      row(part(name, curves), part("latents so far", latents), part("image, the flow undone", image),
        ...way.student.length ? [part("the student, in one pass each", student)] : []),
      scrub,
      tools(play, button("Step", () => stop(go(at + 1))), digits("class", change("label")),
        slider("guidance w", [0, 3, 0.25, 0], change("scale")),
          slider("weights T_π", [0.5, 2, 0.1, 1], change("weightTemperature")),
        slider("widths T_σ", [0.5, 1.5, 0.1, 1], change("scaleTemperature")),
        button("Another seed", () => change("seed")(wish.seed + 1))));
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }
    function start() {
      if (at >= ends()) go(0);
      timer = setInterval(() => at < ends() ? go(at + 1) : stop(), 7000 / ends());
      play.textContent = "Pause";
    }
    const density = ({logWeights: w, mean, logScale}, channel) => axis.map(x => total([...w].map((weight, k) => {
      const i = k * mean.length / w.length + channel, e = (x - mean[i]) * Math.exp(-logScale[i]);
      return Math.exp(weight - 0.5 * e * e - logScale[i]) / Math.sqrt(2 * Math.PI);
    })));
    function go(to) {
      at = clamp(to, 0, ends());
      set(scrub, {max: ends()}).value = at;
      const drawn = new Set(way.steps.slice(0, at).map(step => step.place)), undone = at - TOKENS - 1,
        blocks = way.levels.length - 1;
      const step = way.steps[clamp(at - 1, 0, TOKENS - 1)],
        lines = range(Math.min(3, step.drawn.length)).map(c => density(step, c));
      const most = Math.min(3, Math.max(...lines.flat())), stroke = c => `var(${COLOURS[c]})`;
      name.textContent = at === 0 ? "mixture of the first token: three channels" :
        `mixture of token ${Math.min(at, TOKENS)}: three channels; dotted: the draw`;
      curves.replaceChildren(make("path", {d: `M0 ${HIGH}h${WIDE}`, stroke: "var(--line)"}),
        ...lines.map((line, c) => make("path", {fill: "none", stroke: stroke(c), "stroke-width": 2,
          d: curve(line.map(v => Math.min(v, most)), WIDE, HIGH, most * 1.05)})),
        ...lines.filter(() => at > 0).map((_, c) => make("path",
          {d: `M${toX(step.drawn[c])} 0V${HIGH}`, stroke: stroke(c), "stroke-dasharray": "3 3"})),
        ...[-4, -2, 0, 2, 4].map(v => centred(toX(v), 146, number(v, 0))));
      latents.paint(mixed([...way.levels[0]], none, token => drawn.has(token)));
      const view = (levels, i) => undone < 0 ? none : [...pixels.inverse(levels[i])];
      image.paint(view(way.levels, undone));
      if (way.student.length) student.paint(view([way.levels[0], ...way.student], undone));
      say(
        at === 0 ? `Nothing is drawn yet. For a ${way.label}, the curves say where the first token may fall: ` +
          `press Step.` :
        at <= TOKENS ? `Token ${at} of ${TOKENS}: a value of each informative channel is drawn from its curve, and ` +
          `becomes an input to the next token.` :
        undone === 0 ? "All latents are drawn, the redundant channels too, at once from one shared mixture. Now they " +
          "are an image that no one can read." :
        undone < blocks ? `Block ${blocks + 1 - undone} of the flow is undone, token by token` +
          (way.student.length ? "; the student needed one pass." : ".") :
        `A ${way.label}, after ${blocks * (TOKENS - 1)} steps of the exact inverse` +
          (way.student.length ? `, or ${blocks} of the student.` : "."));
    }
    go(ends());
  }

  // -- c. guidance in one dimension ---------------------------------------------------------------------------------

  function guidance(root) {
    const WIDTH = 560, HEIGHT = 210, REACH = 6, BINS = 60, points = range(241).map(i => i / 20 - REACH);
    const toX = v => (v + REACH) / (2 * REACH) * WIDTH, ofX = x => x / WIDTH * 2 * REACH - REACH;
    const sides = [ // two humps each: mean, sigma
      {name: "p_c", colour: "var(--accent)", humps: [[-1, 0.6], [1.6, 0.6]]},
      {name: "p_u", colour: "var(--warm)", humps: [[-1.2, 1.4], [2.2, 1.4]]},
    ];
    let w = 1, S = 5;
    const picture = set(svg(WIDTH, HEIGHT + 20, "Densities of the two mixtures, the target and the samples"),
      {class: "fl-plot"});
    const target = make("path", {fill: "var(--blue)", "fill-opacity": 0.22});
    const bars = make("path", {fill: "var(--text)", "fill-opacity": 0.28});
    sides.forEach(side => side.line = make("path", {fill: "none", stroke: side.colour, "stroke-width": 2.5}));
    picture.append(target, bars, ...sides.map(side => side.line),
      make("path", {d: `M0 ${HEIGHT}h${WIDTH}`, stroke: "var(--line)"}),
      ...[-4, -2, 0, 2, 4].map(v => centred(toX(v), HEIGHT + 16, number(v, 0))));
    const gauge = make("progress", {"aria-label": "Effective sample size"}), size = make("span"),
      lampText = make("span");
    const lamp = make("span", {class: "fl-lamp"}),
      key = (colour, text) => make("span", {style: `color:var(${colour})`}, text);
    const say = frame(root, "Guidance in one dimension",
      "Guidance wants p_c (p_c / p_u)^w: more of what the class makes likelier. It draws candidates of both, " +
        "weighs them, and takes one by its weight. Drag the humps.",
      picture,
      make("p", {class: "fl-name fl-key"}, key("--accent", "— p_c, with the class"), key("--warm", "— p_u, without"),
        key("--blue", "■ exact target"), key("--muted", "■ samples")),
      tools(slider("guidance w", [0, 4, 0.25, w], value => update(w = value)),
        slider("candidates of each", [1, 40, 1, S], value => update(S = value)),
          make("label", {}, "effective", gauge, size)),
      make("p", {class: "fl-name"}, lamp, lampText));
    sides.forEach(side => side.handles = side.humps.map((hump, i) => handle(picture,
      `${side.name}, hump ${i + 1}: mean and width`,
      side.colour, () => [toX(hump[0]), side.height(hump[0])], (x, y) => {
        hump[1] = clamp(hump[1] * Math.exp((y - side.height(hump[0])) / 80), 0.35, 2.5); // lower is wider
        hump[0] = clamp(ofX(x), -4.5, 4.5);
        update();
      })));
    function update() {
      const both = sides.map(({humps}) => new GaussianMixture(new Float32Array(humps.length),
        Float32Array.from(humps, h => h[0]), Float32Array.from(humps, h => Math.log(h[1]))));
      const [logP, logU] = both.map(p => points.map(v => p.logProb([v])));
      const [widestP, widestU] = sides.map(({humps}) => Math.max(...humps.map(h => h[1])));
      const proper = (1 + w) / widestP ** 2 > w / widestU ** 2; // the tails decide
      const raw = logP.map((v, i) => Math.exp(v + w * (v - logU[i]))), exact = raw.map(v => 20 * v / total(raw));
      const uniform = uniforms(1), counts = range(BINS).map(() => 0), draws = Math.ceil(12000 / S);
      const options = {scale: w, weightTemperature: 1, scaleTemperature: 1};
      let effective = 0;
      range(draws).forEach(() => {
        const [pool, weights] = weighedCandidates(both, options, [S, S], uniform);
        const bin = Math.floor((pool[pick(weights, uniform)][0] + REACH) / (2 * REACH) * BINS);
        effective += effectiveSampleSize(weights) / draws;
        if (bin in counts) counts[bin] += BINS / (2 * REACH) / draws;
      });
      const most = Math.max(0.5, ...logP.map(Math.exp), ...counts, ...proper ? exact : []) * 1.05;
      set(target, {d: proper ? `${curve(exact, WIDTH, HEIGHT, most)}V${HEIGHT}H0Z` : ""});
      set(bars, {d: counts.map((v, i) =>
        `M${i * WIDTH / BINS + 1} ${HEIGHT}v${-HEIGHT * v / most}h${WIDTH / BINS - 2}V${HEIGHT}z`).join("")});
      set(gauge, {max: 2 * S, value: effective});
      size.textContent = `${number(effective)} of ${2 * S}`;
      lamp.classList.toggle("fl-on", !proper);
      lampText.textContent = proper ? "The target has a finite integral." :
        "No finite integral: the target is not a density.";
      sides.forEach((side, i) => {
        side.height = v => HEIGHT * (1 - Math.exp(both[i].logProb([v])) / most);
        set(side.line, {d: curve([logP, logU][i].map(Math.exp), WIDTH, HEIGHT, most)});
        side.handles.forEach((dot, j) =>
          dot.place(`mean ${number(side.humps[j][0])}, width ${number(side.humps[j][1])}`));
      });
      const gap = total(exact.map((v, i) => Math.abs(v - counts[Math.min(BINS - 1, Math.floor(i / 4))]) / 40));
      say(
        w === 0 ? "w = 0 asks for p_c itself." :
        !proper ? "p_u falls off faster than p_c in the tails, so p_c (p_c / p_u)^w grows without end: what " +
          "resampling draws now depends on how many candidates it has." :
        `Of ${2 * S} candidates, ${number(effective)} effectively count. The samples miss ${percent(gap)} of the ` +
          `target’s mass` + (gap > 0.06 ? ": more candidates would come closer." : "."));
    }
    update();
  }

  // -- d. a race of inverses ----------------------------------------------------------------------------------------

  function race(root) {
    const HIGH = 150, all = ["sequential, exact", "Jacobi sweeps, exact", "student, approximate"];
    const names = all.slice(0, R.sample.student.length ? 3 : 2),
      shade = v => ["--accent", clamp(-Math.log10(v + 0.01) / 2, 0.06, 1)];
    const lanes = names.map(text => ({
      text, image: squares(SIZE, SIZE, 84, `Image, ${text}`, ink), note: label(""),
      line: make("div", {class: "fl-line"}), board: make("div", {class: "fl-board fl-map"}),
    }));
    let seed = 0, digit = R.sample.label;
    const scrub = scrubber("Passes of the network", go);
    const say = frame(root, "A race of inverses",
      "From the same latents to the same image, one pass of the network a step. Faint: still wrong; full colour: right.",
      row(...lanes.map(({text, board, image, note}) => part(text, board, image, note))),
      scrub,
      tools(digits("digit", value => request(digit = value, seed)),
        button("Other latents", () => request(digit, ++seed))));
    const request = latest((label, at) => ask("sample", label, {}, at), show);
    function error(a, b) { // of every token, a pixel
      const found = range(TOKENS).map(() => 0);
      a.forEach((v, p) => found[tokenOf(p)] += (v - b[p]) ** 2 / PATCH ** 2);
      return found.map(Math.sqrt);
    }
    function show({levels, sweeps, student}) {
      const targets = levels.slice(1), blocks = targets.length;
      // from the first token or, in turn, the last
      const sequential = targets.map((level, b) => range(TOKENS - 1).map(i =>
        mixed(level, levels[b], token => ((blocks - b) % 2 ? token : TOKENS - 1 - token) <= i + 1)));
      const longest = blocks * (TOKENS - 1);
      [sequential, sweeps, student.map(x => [x])].slice(0, lanes.length).forEach((passes, i) => {
        const lane = lanes[i], exact = [targets[0], ...passes.flatMap((block, b) => block.map(() => targets[b]))];
        lane.frames = [levels[0], ...passes.flat()];
        lane.errors = lane.frames.map((x, s) => error(x, exact[s]));
        lane.passes = exact.length - 1;
        const map = squares(exact.length, TOKENS, 0, `Error of every token over the passes, ${lane.text}`, shade);
        map.style = `width: ${100 * exact.length / (longest + 1)}%; height: ${HIGH}px`;
        lane.board.replaceChildren(map, lane.line);
        map.paint(range(TOKENS * exact.length).map(at =>
          lane.errors[at % exact.length][Math.floor(at / exact.length)]));
      });
      scrub.max = longest;
      go(lanes[lanes.length - 1].passes);
    }
    function go(at) {
      const [sequential, jacobi, student] = lanes.map(lane => lane.passes);
      scrub.value = at;
      lanes.forEach(({frames, passes, image, note, line}) => {
        const step = Math.min(at, passes);
        image.paint([...pixels.inverse(frames[step])]);
        line.style.left = `${100 * (step + 0.5) / (sequential + 1)}%`;
        note.textContent = at >= passes ? `done after ${passes} passes` : `pass ${step} of ${passes}`;
      });
      const rest = student && Math.sqrt(total(lanes[2].errors[student].map(v => v * v)) / TOKENS);
      say(
        at < (student ?? 1) ? "All start at the latents; rows are tokens, columns are passes." :
        at < jacobi && student ? `The student is through after ${student} passes, with an error of ` +
          `${number(rest, 2)} a pixel that stays; the exact ways are still under way.` :
        at < jacobi ? "A sweep corrects all tokens at once; the sequential inverse does one token a pass." :
        at < sequential ? `Jacobi is exact after ${jacobi} passes, each of all tokens at once.` :
        `The sequential inverse took ${sequential} passes, each of one token: few operations, long to wait.`);
    }
    show(recordedWay);
  }

  // -- e. the mask --------------------------------------------------------------------------------------------------

  function mask(root) {
    const GRID = 48, toy = squares(GRID, GRID, 224, "Density of the toy", v => ["--accent", clamp(v / 0.25, 0, 1)]);
    const moves = squares(TOKENS, TOKENS, 224, "How far every token of z moves when one of x is nudged",
      v => ["--accent", v ? clamp((Math.log10(v) + 2) / 3, 0.08, 1) : 0]);
    const kept = button("Causal mask", () => request(true)), broken = button("Broken mask", () => request(false));
    const figures = make("table", {class: "fl-terms"});
    const say = frame(root, "What the mask is for",
      "Let tokens see later ones, and three promises break at once: triangle, way back, density.",
      tools(kept, broken),
      row(part("Jacobian of a block: nudge a token of x (columns), and these of z (rows) move", moves),
        part("a two-dimensional toy’s “density”", toy), part("in figures", figures)));
    const request = latest(causal => ask("mask", toImage(examples[R.example]), causal), show);
    function density(causal, x, y) { // exp(log N(z; 0, I) + the sum of log-scales), right only if the map is triangular
      const scale = v => 0.7 * Math.tanh(v), shift = v => 0.9 * Math.sin(1.5 * v);
      const s = causal ? 0 : scale(y), t = scale(x), a = (causal ? x : x - shift(y)) * Math.exp(s),
        b = (y - shift(x)) * Math.exp(t);
      return Math.exp(s + t - (a * a + b * b) / 2) / (2 * Math.PI);
    }
    function show(found, causal) {
      const at = i => (i + 0.5) / GRID * 8 - 4, fine = range(320).map(i => (i + 0.5) / 10 - 16),
        exact = found.error < 1e-3;
      const integral = total(fine.map(x => total(fine.map(y => density(causal, x, y) / 100))));
      set(kept, {"aria-pressed": causal});
      set(broken, {"aria-pressed": !causal});
      moves.paint(found.moves);
      toy.paint(range(GRID * GRID).map(i => density(causal, at(i % GRID), -at(Math.floor(i / GRID)))));
      fill(figures, [["error of the round trip", exact ? "below 0.001" : number(found.error, 2)],
        ["integral of the toy", number(integral, 3)]]);
      say(causal ? "Each token depends on itself and earlier ones: the Jacobian is a triangle, its determinant the " +
          "product of the diagonal, and the inverse goes token by token." :
        `Every token sees all others: the product of the diagonal is not the determinant, so the “density” ` +
          `integrates to ${number(integral, 2)}, and the way back ends ${exact ? "nearby" : "elsewhere"}.`);
    }
    show(R.mask[0], true);
  }

  // -- f. change of variables ---------------------------------------------------------------------------------------

  function volume(root) {
    const WIDE = 290, HIGH = 230, UNIT = 85, uniform = uniforms(7),
      grains = range(240).map(() => [uniform(), uniform()]);
    // images of (1, 0) and (0, 1)
    const columns = [[1.4, 0.3], [0.4, 1.2]], at = (x, y) => [60 + x * UNIT, HIGH - 40 - y * UNIT];
    const figures = make("table", {class: "fl-terms"});
    const panels = ["The unit square with grains of probability", "Where the map takes them"].map(text => {
      const picture = svg(WIDE, HIGH, text), net = make("path", {stroke: "var(--line)", fill: "none"});
      const dots = make("path", {stroke: "var(--accent)", "stroke-width": 3.2, "stroke-linecap": "round"});
      const square = make("path", {fill: "var(--accent)", "fill-opacity": 0.14, stroke: "var(--accent)",
        "stroke-width": 2});
      picture.append(net, square, dots);
      return {picture, net, dots, square};
    });
    const say = frame(root, "Change of variables",
      "Drag the corners: the same grains on a larger area are thinner, by exactly the determinant.",
      row(part("x: density 1 on the unit square", panels[0].picture), part("z = A x", panels[1].picture),
        part("in figures", figures)));
    const handles = columns.map((column, i) => handle(panels[1].picture,
      `Where the map takes ${i ? "(0, 1)" : "(1, 0)"}`,
      i ? "var(--blue)" : "var(--warm)", () => at(...column), (x, y) => {
        column[0] = clamp((x - 60) / UNIT, -0.6, 2.6);
        column[1] = clamp((HIGH - 40 - y) / UNIT, -0.4, 2.1);
        update();
      }));
    function paint({net, dots, square}, [[a, c], [b, d]]) {
      const point = ([x, y]) => at(a * x + b * y, c * x + d * y).map(v => v.toFixed(1)).join(" ");
      set(square, {d: `M${[[0, 0], [1, 0], [1, 1], [0, 1]].map(point).join("L")}Z`});
      set(net, {d: range(5).map(i => i / 4).map(at =>
        `M${point([at, 0])}L${point([at, 1])}M${point([0, at])}L${point([1, at])}`).join("")});
      set(dots, {d: grains.map(grain => `M${point(grain)}h0`).join("")});
    }
    function update() {
      const [[a, c], [b, d]] = columns, det = a * d - b * c, area = Math.abs(det), flat = area < 0.02;
      paint(panels[1], columns);
      fill(figures, [["area of the image", number(area, 2)], ["determinant", number(det, 2)],
        ["density there", flat ? "no limit" : number(1 / area, 2)],
          ["log|det|", flat ? "→ −∞" : number(Math.log(area), 2)]]);
      handles.forEach((dot, i) => dot.place(columns[i].map(v => number(v, 2)).join(", ")));
      say(flat ? "The map crushes the square to a line: it has no inverse, and no density is left." :
        `Area ${number(area, 2)} = |det|, so the density is 1 / ${number(area, 2)} = ${number(1 / area, 2)}: ` +
        `log p(x) = log p(z) + log|det|, and nothing is lost.` +
        (det < 0 ? " A negative determinant turns the square over; only its size counts." : ""));
    }
    paint(panels[0], [[1, 0], [0, 1]]);
    update();
  }

  const WIDGETS = {draw, sample, guidance, race, mask, volume};
  const begin = () => document.querySelectorAll("[data-farmer]").forEach(root => WIDGETS[root.dataset.farmer](root));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();

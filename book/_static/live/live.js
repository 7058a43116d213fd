// The widgets of the live page. Each first shows a recorded state (recorded.js, by PyTorch) and computes once touched.
(() => {
  "use strict";
  const {Pixels, GaussianMixture, weighedCandidates, effectiveSampleSize, uniforms, middles, range, sum, clamp} =
    farmerLibrary(), {floor, exp, max, min} = Math;
  const PAGE = document.currentScript.src + "/../../../live.html#weights", R = globalThis.FARMER_RECORDED;
  const {image_size: SIZE, patch_size: PATCH, levels: LEVELS, num_classes: CLASSES} = R.config;
  const SIDE = SIZE / PATCH, TOKENS = SIDE * SIDE, pixels = new Pixels(R.pixels);

  // -- the model, in a worker, loaded at the first touch --

  // Other pages have no weights and ask the live page for them: frames and messages work from files, too.
  const weights = () => new Promise(done => {
    const page = make("iframe", {src: PAGE, hidden: ""});
    addEventListener("message", ({source, data}) => {
      if (source !== page.contentWindow) return;
      done(data);
      page.remove();
    });
    document.body.append(page);
  });
  let asking;
  const model = () => asking ||= (async () => farmerWorker(globalThis.FARMER_WEIGHTS || await weights()))();

  // Has the model compute and then shows; while it computes, only the latest further request is kept, and what
  // `root` shows is marked as old, at once while the model loads, later only if the answer is slow.
  function latest(root, name, show) {
    let busy = false, next = null;
    return async (given, note) => {
      next = [given, note];
      if (busy) return;
      for (busy = true; next; ) {
        const [now, noted] = next;
        next = null;
        const timer = setTimeout(set, asking ? 200 : 0, root, {"aria-busy": true});
        show(await (await model())(name, ...now), noted);
        clearTimeout(timer);
        set(root, {"aria-busy": false});
      }
      busy = false;
    };
  }

  // -- elements --

  function make(kind, attributes = {}, ...children) { // kind: a tag and classes
    const [tag, ...classes] = kind.split(".");
    const space = /svg|rect|path|circle|text/.test(tag) ? "2000/svg" : "1999/xhtml";
    const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
    node.classList.add(...classes);
    node.append(...children.flatMap(typeset));
    return set(node, attributes);
  }
  const typeset = child => child.nodeType ? child : String(child).split(/([_^]\S)(?!\w)/).map((part, i) => // p_c, x^w
    i % 2 ? make(part[0] === "_" ? "sub" : "sup", {}, part[1]) : part);
  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes))
      if (typeof value === "function") node[name] = value;
      else node.setAttribute(name, value);
    return node;
  }
  const number = (v, digits = 1) => v.toFixed(digits).replace("-", "−");
  const percent = v => `${Math.round(100 * v)}%`;
  const label = (...text) => make("p.fl-name", {}, ...text);
  const part = (name, ...children) => make("div.fl-part", {}, label(name), ...children);
  const row = (...children) => make("div.fl-row", {}, ...children);
  const tools = (...children) => make("div.fl-tools", {}, ...children);
  const button = (text, onclick) => make("button", {type: "button", onclick}, text);
  const press = (chosen, ...buttons) => buttons.forEach((one, i) => set(one, {"aria-pressed": i === chosen}));
  const svg = (width, height, text, ...children) => make("svg",
    {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": text}, ...children);
  const shape = (classes, d = "") => make(`path.${classes}`, {d});
  const centred = (x, y, text) => make("text", {x, y, "text-anchor": "middle"}, text);
  const fill = (table, cells) => table.replaceChildren(...Object.entries(cells).map(row =>
    make("tr", {}, ...row.map(cell => make("td", {}, cell)))));

  const chosen = f => ({target}) => f(Number(target.value));
  function slider(text, [min, max, step, value], f) {
    const shown = make("output", {}, value), oninput = chosen(v => f(shown.textContent = v));
    return make("label", {}, make("span", {}, text),
      make("input", {type: "range", min, max, step, value, oninput}), shown);
  }
  const scrubber = (text, f) => make("input.fl-scrub", {type: "range", min: 0, "aria-label": text, oninput: chosen(f)});
  const digits = (text, f) => make("label", {}, text, make("select", {onchange: chosen(f)},
    ...range(CLASSES).map(c => make("option", c === R.example ? {selected: ""} : {}, c))));

  function frame(root, title, lead, ...children) { // what all widgets share; returns what sets the live region's text
    const say = make("p.fl-say", {"aria-live": "polite"}), {name, address} = R.sources[root.dataset.farmer];
    set(root, {class: "farmer-live", role: "group", "aria-label": title, onpointerenter: model});
    root.replaceChildren(make("h3", {}, title), make("p.fl-lead", {}, lead), ...children, say,
      make("p.fl-foot", {}, "The same in PyTorch: ", make("a", {href: address}, name)));
    return text => say.replaceChildren(...typeset(text));
  }

  // A picture of `columns` by `rows` squares: `paint(values)` fills them, `style(value)` gives colour and opacity.
  function squares(columns, rows, width, text, style) {
    const canvas = make("canvas.fl-pixels", {width: columns, height: rows, role: "img", "aria-label": text});
    const context = canvas.getContext("2d");
    let shown = [];
    canvas.style.width = `${width}px`;
    canvas.paint = (values = shown) => {
      const theme = getComputedStyle(canvas), colours = {};
      shown = [...values];
      context.clearRect(0, 0, columns, rows);
      shown.forEach((value, i) => {
        const [name, opacity] = style(value);
        context.fillStyle = colours[name] ||= theme.getPropertyValue(name);
        context.globalAlpha = clamp(opacity, 0, 1);
        context.fillRect(i % columns, floor(i / columns), 1, 1);
      });
    };
    return canvas;
  }
  // In the colours of the page, when these change.
  const repaint = () => document.querySelectorAll(".fl-pixels").forEach(canvas => canvas.paint());
  matchMedia("(prefers-color-scheme: dark)").onchange = repaint;
  new MutationObserver(repaint).observe(document.documentElement, {attributeFilter: ["data-theme"]});

  const ink = v => ["--ink", (v + 1) / 2]; // an image in [-1, 1]
  const signed = most => v => [v < 0 ? "--warm" : "--accent", Math.abs(v) / most];
  const picture = (width, text, style = ink) => squares(SIZE, SIZE, width, text, style);

  // SVG paths of values at equal distances: a curve, or bars.
  const curve = (values, width, height, most) =>
    "M" + values.map((v, i) => `${number(i * width / (values.length - 1))} ${height * (1 - v / most)}`).join("L");
  function bars(values, width, height, most) {
    const step = width / values.length;
    return values.map((v, i) => `M${(i + 0.1) * step} ${height}v${-height * v / most}h${0.8 * step}V${height}z`)
      .join("");
  }
  function axis(reach, width, height) { // from -reach to reach
    const toX = v => (v + reach) / (2 * reach) * width;
    const ticks = [-4, -2, 0, 2, 4].map(v => centred(toX(v), height + 16, number(v, 0)));
    return [toX, shape("fl-rule", `M0 ${height}h${width}`), ...ticks];
  }

  const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  // Calls move(x, y), in shares of the element, while a pointer that was pressed on `node` moves.
  function drag(node, element, move, begin) {
    const to = event => {
      const box = element.getBoundingClientRect();
      move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    node.onpointerdown = event => {
      if (!event.isPrimary || event.button) return;
      node.setPointerCapture(event.pointerId);
      begin();
      to(event);
    };
    node.onpointermove = event => node.hasPointerCapture(event.pointerId) && to(event);
  }
  // A handle that a pointer or the arrow keys move: move(x, y) in the picture's own units.
  function handle(picture, text, colour, where, move) {
    const dot = make(`circle.fl-handle.${colour}`, {tabindex: 0, role: "slider", "aria-label": text});
    const {width, height} = picture.viewBox.baseVal;
    drag(dot, picture, (x, y) => move(x * width, y * height), () => dot.focus());
    dot.onkeydown = event => {
      const by = STEPS[event.key];
      if (!by) return;
      event.preventDefault();
      move(...where().map((v, a) => v + 6 * by[a]));
    };
    dot.place = value => {
      const [cx, cy] = where(), grown = width / (picture.clientWidth || width);
      set(dot, {cx, cy, r: 11 * grown, "stroke-width": 3 * grown, "aria-valuetext": value,
        "aria-valuenow": Math.round(cx)});
    };
    set(picture, {role: "group"}).append(dot);
    return dot;
  }

  const tokenOf = pixel => floor(floor(pixel / SIZE) / PATCH) * SIDE + floor(pixel % SIZE / PATCH);
  const bytes = text => Array.from(atob(text), c => c.charCodeAt(0));
  const examples = R.examples.map(bytes);
  const unpack = way => Array.isArray(way) ? way.map(unpack) : bytes(way).map(v => (v << 24 >> 24) / R.sample.scale);
  const recordedWay = {...R.sample};
  for (const name of ["levels", "sweeps", "student"]) recordedWay[name] = unpack(R.sample[name]);

  // -- a. draw --

  function draw(root) {
    const FINE = 4, top = LEVELS - 1, radius = max(0.55, SIZE / 28); // the pen's, in pixels
    const dots = range(SIZE * SIZE).map(() => new Float32Array(FINE * FINE)); // of every pixel; their mean is its level
    let erasing = 0, last = null, cursor = [SIZE / 2, SIZE / 2].map(floor), example = R.example, shown, image;
    const pad = picture(224, "Drawing area: arrows move, space paints, backspace erases", v => ["--ink", v / top]);
    const place = (node, [left, top, right, bottom]) =>
      node.style.inset = [top, SIZE - right, SIZE - bottom, left].map(v => `${100 * v / SIZE}%`).join(" ");
    const mark = make("div.fl-mark", {hidden: ""}), guide = make("div.fl-guide");
    place(guide, R.frame);
    set(pad, {tabindex: 0, role: "application"});
    const heat = squares(SIDE, SIDE, 126, "Nats of every patch", signed(max(...R.draw.perToken.map(Math.abs))));
    const given = label(""), figure = make("div.fl-figure"), terms = make("table.fl-terms");
    const {from, step, counts} = R.histogram, wide = 250 / CLASSES, to = from + step * counts.length;
    const columns = range(CLASSES).map(c => make("rect.fl-bar", {x: c * wide + 3, width: wide - 6, rx: 2}));
    const needle = shape("fl-needle");

    const pens = [button("Pen", () => choose(0)), button("Eraser", () => choose(1))];
    const say = frame(root, "Draw a digit",
      "While you draw, the model computes log p, the log-density (a density may exceed 1): higher is more probable.",
      row(
        part(`your drawing, ${SIZE}×${SIZE}; real digits fill the frame`,
          make("div.fl-board", {}, pad, guide, mark), figure, tools(...pens)),
        make("div.fl-part", {}, given, terms,
          label("nats of each patch, adding up to log p; faint or orange: surprising"), heat),
        make("div.fl-part.fl-wide", {}, label("which digit, by Bayes’ rule"),
          svg(250, 92, "Posterior probability of the ten classes",
            ...columns, ...range(CLASSES).map(c => centred((c + 0.5) * wide, 90, c))),
          label("▲ its log p in nats, among test digits"),
          svg(250, 98, "Test images by log p", needle, centred(14, 95, number(from, 0)), centred(236, 95, number(to, 0)),
            shape("fl-bar.fl-faint", bars(counts, 250, 72, max(...counts) * 72 / 66))))),
      tools(
        button("A real digit", () => load(examples[example = (example + 1) % CLASSES])),
        button("Shift it", () => load(image.map((_, p, all) => p % SIZE ? all[p - 1] : 0),
          shown[0] === image && (found =>
            `The same strokes, one pixel to the right: log p changes by ${number(found.total - shown[1])} nats.`))),
        button("A blank page", () => load(dots.map(() => 0), (found, below) =>
          `An empty page gets ${number(found.total)} nats, more than ${percent(below)} of the real digits: it holds ` +
          `no surprise. A density rewards what is predictable, not what is meaningful.`)),
        button("Noise", () => load(dots.map(() => floor(Math.random() * LEVELS)), found =>
          `Noise gets ${number(found.total)} nats. The bars still sum to 1.`))));
    const choose = value => press(erasing = value, ...pens);
    const put = image => image.forEach((v, p) => dots[p].fill(v / top));
    function load(image, note) {
      put(image);
      changed(note);
    }
    function changed(note) {
      image = dots.map(own => Math.round(sum(own) / own.length * top));
      pad.paint(image);
      request([middles(image, LEVELS)], [image, note]);
    }
    drag(pad, pad, (...point) => {
      const to = point.map(v => v * SIZE), [a, b] = last || to, [x, y] = [to[0] - a, to[1] - b];
      dots.forEach((own, p) => own.forEach((_, i) => { // near the line from the last point?
        const u = p % SIZE + (i % FINE + 0.5) / FINE - a;
        const v = floor(p / SIZE) + (floor(i / FINE) + 0.5) / FINE - b;
        const share = clamp((u * x + v * y) / (x * x + y * y || 1), 0, 1);
        if (Math.hypot(u - share * x, v - share * y) <= radius) own[i] = 1 - erasing;
      }));
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
        dots[cursor[1] * SIZE + cursor[0]].fill(paint);
        changed();
      }
      place(mark, [...cursor, ...cursor.map(v => v + 1)]);
      mark.hidden = false;
    };
    pad.onblur = () => mark.hidden = true;

    const request = latest(root, "bayes", show);
    function show(found, [own, note] = [image]) {
      const {best, posterior, total} = found;
      given.textContent = `log p(x | ${best}) in parts; pixels at mid-level`;
      figure.replaceChildren(number(total), make("small", {}, ` nats · ${number(found.bits, 2)} bits/dim`));
      fill(terms, {"prior, informative": number(found.informative), "prior, redundant": number(found.redundant),
        "flow, log-determinant": number(found.logdet)});
      heat.paint(found.perToken);
      columns.forEach((column, c) => set(column,
        {y: 74 - 68 * posterior[c], height: 68 * posterior[c] + 1, "fill-opacity": c === best ? 1 : 0.5}));
      set(needle, {d: `M${clamp((total - from) / (to - from), 0, 1) * 250} 73l6 9h-12z`});
      const below = min(0.99, sum(counts.filter((_, i) => from + (i + 0.5) * step < total)) / sum(counts));
      say(note ? note(found, below) :
        `Of ten digits, ${best} is likeliest (${percent(posterior[best])}). Its log p, ${number(total)} nats, is ` +
        (below < 0.005 ? "lower than that of nearly all real test digits." :
          `higher than that of ${percent(below)} of the real test digits` +
          (below > 0.9 ? ": little ink, few surprises." : ".")));
      shown = [own, total];
    }
    choose(0);
    put(image = examples[example]);
    pad.paint(image);
    show(R.draw);
  }

  // -- b. sample, step by step --

  function sample(root) {
    const WIDE = 250, HIGH = 130, REACH = 4, COLOURS = ["fl-accent", "fl-warm", "fl-blue"];
    const [toX, ...scale] = axis(REACH, WIDE, HIGH), points = range(161).map(i => i / 20 - REACH);
    const wish = {label: R.sample.label, seed: 0, weightTemperature: 1, scaleTemperature: 1};
    let way = recordedWay, at = 0, timer = null;
    const ends = () => TOKENS + way.levels.length;
    const curves = svg(WIDE, 150, "Mixture of the next token"), name = make("span");
    const latents = picture(140, "Latents", signed(2.5)), image = picture(140, "Image");
    const student = picture(140, "The student’s image"), learned = R.sample.student.length > 0;
    const scrub = scrubber("Step", value => stop(go(value))), play = button("Play", () => timer ? stop() : start());
    const request = latest(root, "sample", found => {
      way = found;
      go(min(at, ends()));
    });
    const change = key => value => {
      wish[key] = value;
      const {label, seed, ...guidance} = wish;
      request([label, guidance, seed]);
    };
    const say = frame(root, "Sample, step by step",
      "The prior predicts and draws one latent token after another; then the flow’s blocks are undone, one by one.",
      row(part(name, curves), part("latents so far", latents), part("image, the flow undone", image),
        ...learned ? [part("one-step student", student)] : []),
      scrub,
      tools(play, button("Step", () => stop(go(at < ends() ? at + 1 : 0))), digits("class", change("label")),
        slider("guidance w", [0, 3, 0.25, 0], change("scale")),
        slider("weights ^ T_π", [0.5, 2, 0.1, 1], change("weightTemperature")),
        slider("widths × T_σ", [0.5, 1.5, 0.1, 1], change("scaleTemperature")),
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
    function density({logWeights, mean, logScale}, channel) {
      const own = values => [...logWeights].map((_, k) => values[k * mean.length / logWeights.length + channel]);
      const mixture = new GaussianMixture([...logWeights], own(mean), own(logScale))
        .tempered(wish.weightTemperature, wish.scaleTemperature);
      return points.map(x => exp(mixture.logProb([x])));
    }
    function go(to) {
      at = clamp(to, 0, ends());
      set(scrub, {max: ends()}).value = at;
      const drawn = new Set(way.steps.slice(0, at).map(step => step.place));
      const step = way.steps[clamp(at - 1, 0, TOKENS - 1)];
      const undone = at - TOKENS - 1, blocks = way.levels.length - 1;
      const lines = range(min(3, step.drawn.length)).map(c => density(step, c));
      const most = min(3, max(...lines.flat()));
      name.textContent = at === 0 ? "first token, 3 channels" :
        `token ${min(at, TOKENS)}, 3 channels; dotted: the draws`;
      curves.replaceChildren(...scale,
        ...lines.map((line, c) => shape(`fl-curve.${COLOURS[c]}`,
          curve(line.map(v => min(v, most)), WIDE, HIGH, most * 1.05))),
        ...lines.map((_, c) => shape(`fl-dots.${COLOURS[c]}`, at > 0 ? `M${toX(step.drawn[c])} 0V${HIGH}` : "")));
      latents.paint(way.levels[0].map((v, p) => drawn.has(tokenOf(p)) ? v : 0));
      image.paint(undone < 0 ? [] : pixels.inverse(way.levels[undone]));
      student.paint(undone < 0 || !learned ? [] : pixels.inverse([way.levels[0], ...way.student][undone]));
      say(
        at === 0 ? `Nothing is drawn yet. For digit ${way.label}, the curves say where the first token may fall: ` +
          `press Step.` :
        at <= TOKENS ? `Token ${at} of ${TOKENS}: the values at the dotted lines are drawn, and all later tokens ` +
          `depend on them.` :
        undone === 0 ? "All latents are drawn; the redundant ones at once, from one shared mixture. As pixels they " +
          "are noise until the last block is undone." :
        undone < blocks ? `Block ${blocks + 1 - undone} of the flow is undone, token by token` +
          (learned ? "; the student needed one pass." : ".") :
        `Digit ${way.label}: the exact inverse took ${blocks} × ${TOKENS - 1} passes` +
          (learned ? `, the student ${blocks}.` : "."));
    }
    go(ends());
  }

  // -- c. guidance in one dimension --

  function guidance(root) {
    const WIDTH = 560, HEIGHT = 210, REACH = 6, BINS = 60, points = range(241).map(i => i / 20 - REACH);
    const [toX, ...scale] = axis(REACH, WIDTH, HEIGHT);
    const sides = [ // two humps each: mean, sigma
      {name: "p_c", colour: "fl-accent", humps: [[-1, 0.6], [1.6, 0.6]]},
      {name: "p_u", colour: "fl-warm", humps: [[-1.2, 1.4], [2.2, 1.4]]},
    ];
    let w = 1, S = 5;
    const target = shape("fl-area.fl-blue"), samples = shape("fl-area");
    sides.forEach(side => side.line = shape(`fl-curve.${side.colour}`));
    const plot = svg(WIDTH, HEIGHT + 20, "Densities of the two mixtures, the target and the samples",
      target, samples, ...sides.map(side => side.line), ...scale);
    const gauge = make("progress", {"aria-label": "Effective sample size"}), size = make("span");
    const lamp = make("span.fl-lamp"), lampText = make("span");
    const key = (colour, text) => make(`span.${colour}`, {}, text);
    plot.classList.add("fl-plot");
    const say = frame(root, "Guidance in one dimension",
      "Guidance samples p_c (p_c / p_u)^w: more of what the class makes likelier. It draws candidates from both, " +
        "weighs them, and picks one by weight. Drag a hump: sideways moves it, down widens it.",
      plot,
      make("p.fl-name.fl-key", {}, key("fl-accent", "— p_c, with the class"), key("fl-warm", "— p_u, without it"),
        key("fl-blue", "■ exact target"), "■ samples"),
      tools(slider("guidance w", [0, 4, 0.25, w], value => update(w = value)),
        slider("candidates from each", [1, 40, 1, S], value => update(S = value)),
        make("label", {}, "effective size", gauge, size)),
      label(lamp, lampText));
    sides.forEach(side => side.handles = side.humps.map((hump, i) => {
      const where = () => [toX(hump[0]), side.height(hump[0])];
      return handle(plot, `${side.name}, hump ${i + 1}: mean and width`, side.colour, where, (x, y) => {
        hump[1] = clamp(hump[1] * exp((y - where()[1]) / 80), 0.35, 2.5); // lower is wider
        hump[0] = clamp((2 * x / WIDTH - 1) * REACH, -4.5, 4.5);
        update();
      });
    }));
    function update() {
      const both = sides.map(({humps}) =>
        new GaussianMixture(humps.map(() => 0), humps.map(h => h[0]), humps.map(h => Math.log(h[1]))));
      const [logP, logU] = both.map(p => points.map(v => p.logProb([v])));
      const [widestP, widestU] = sides.map(({humps}) => max(...humps.map(h => h[1])));
      const proper = (1 + w) / widestP ** 2 > w / widestU ** 2; // the tails decide
      const raw = logP.map((v, i) => exp(v + w * (v - logU[i]))), mass = sum(raw) / 20;
      const exact = raw.map(v => v / mass);
      const uniform = uniforms(1), counts = range(BINS).map(() => 0), draws = Math.ceil(12000 / S);
      const options = {scale: w, weightTemperature: 1, scaleTemperature: 1};
      let effective = 0;
      range(draws).forEach(() => {
        const [pool, weights] = weighedCandidates(both, options, [S, S], uniform);
        effective += effectiveSampleSize(weights) / draws;
        pool.forEach(([v], s) => { // no need to pick one: every candidate counts by its weight
          const bin = floor((v + REACH) / (2 * REACH) * BINS);
          if (bin in counts) counts[bin] += exp(weights[s]) * BINS / (2 * REACH) / draws;
        });
      });
      const most = max(0.5, ...logP.map(exp), ...counts, ...proper ? exact : []) * 1.05;
      set(target, {d: proper ? `${curve(exact, WIDTH, HEIGHT, most)}V${HEIGHT}H0Z` : ""});
      set(samples, {d: bars(counts, WIDTH, HEIGHT, most)});
      set(gauge, {max: 2 * S, value: effective});
      size.textContent = `${number(effective)} of ${2 * S}`;
      lamp.classList.toggle("fl-on", !proper);
      lampText.replaceChildren(...typeset(proper ? "Finite integral: p_u’s tails are wide enough." :
        "No finite integral: the target is not a density."));
      sides.forEach((side, i) => {
        side.height = v => HEIGHT * (1 - exp(both[i].logProb([v])) / most);
        set(side.line, {d: curve([logP, logU][i].map(exp), WIDTH, HEIGHT, most)});
        side.humps.forEach(([mean, width], j) => side.handles[j].place(`mean ${number(mean)}, width ${number(width)}`));
      });
      const gap = sum(counts.map((v, i) => Math.abs(v - sum(exact.slice(4 * i, 4 * i + 5)) / 5))) * REACH / BINS;
      say(
        w === 0 ? "w = 0 asks for p_c itself." :
        !proper ? "p_u falls off faster than p_c in the tails, so p_c (p_c / p_u)^w grows without end: what " +
          "resampling draws now depends on how many candidates it has." :
        `Of ${2 * S} candidates, ${number(effective)} effectively count. The samples miss ${percent(gap)} of the ` +
          `target’s mass` + (gap > 0.02 ? ": more candidates would come closer." : "."));
    }
    update();
  }

  // -- d. a race of inverses --

  function race(root) {
    const shade = v => ["--accent", max(0.06, -Math.log10(v + 0.01) / 2)];
    const names = ["sequential, exact", "Jacobi sweeps, exact", "student, approximate"];
    const lanes = names.slice(0, R.sample.student.length ? 3 : 2).map(text => ({
      text, image: picture(84, `Image, ${text}`), note: label(""),
      line: make("div.fl-line"), board: make("div.fl-board.fl-map"),
    }));
    let seed = 0, digit = R.sample.label;
    const scrub = scrubber("Passes of the network", go);
    const say = frame(root, "A race of inverses",
      "From the same latents to the same image. Columns: passes of the network; rows: tokens. " +
        "Faint: still wrong; full colour: right.",
      row(...lanes.map(({text, board, image, note}) => part(text, board, image, note))),
      scrub,
      tools(digits("digit", value => request([digit = value, {}, seed])),
        button("Other latents", () => request([digit, {}, ++seed]))));
    const request = latest(root, "sample", show);
    function error(a, b) { // of every token, a pixel
      const found = range(TOKENS).map(() => 0);
      a.forEach((v, p) => found[tokenOf(p)] += (v - b[p]) ** 2 / PATCH ** 2);
      return found.map(Math.sqrt);
    }
    function show({levels, sweeps, student}) {
      const targets = levels.slice(1), blocks = targets.length, longest = blocks * (TOKENS - 1);
      // from the first token or, in turn, the last
      const sequential = targets.map((level, b) => range(TOKENS - 1).map(i => [...level].map((v, p) =>
        ((blocks - b) % 2 ? tokenOf(p) : TOKENS - 1 - tokenOf(p)) <= i + 1 ? v : levels[b][p])));
      [sequential, sweeps, student.map(x => [x])].slice(0, lanes.length).forEach((passes, i) => {
        const lane = lanes[i], exact = [targets[0], ...passes.flatMap((block, b) => block.map(() => targets[b]))];
        lane.frames = [levels[0], ...passes.flat()];
        lane.errors = lane.frames.map((x, s) => error(x, exact[s]));
        lane.passes = exact.length - 1;
        const map = squares(exact.length, TOKENS, 0, `Error of every token over the passes, ${lane.text}`, shade);
        map.style = `width: ${100 * exact.length / (longest + 1)}%; height: 150px`;
        lane.board.replaceChildren(map, lane.line);
        map.paint(range(TOKENS).flatMap(token => lane.errors.map(errors => errors[token])));
      });
      scrub.max = longest;
      go(lanes.at(-1).passes);
    }
    function go(at) {
      const [sequential, jacobi, student] = lanes.map(lane => lane.passes);
      scrub.value = at;
      lanes.forEach(({frames, passes, image, note, line}) => {
        const step = min(at, passes);
        image.paint(pixels.inverse(frames[step]));
        line.style.left = `${100 * (step + 0.5) / (sequential + 1)}%`;
        note.textContent = at >= passes ? `done after ${passes} passes` : `pass ${step} of ${passes}`;
      });
      const rest = student && Math.sqrt(sum(lanes[2].errors[student].map(v => v * v)) / TOKENS);
      say(
        at < (student ?? 1) ? "All start at the latents. Drag the slider to let them run." :
        at < jacobi && student ? `The student is done after ${student} passes and keeps an error of ` +
          `${number(rest, 2)} per coordinate; the exact ones still run.` :
        at < jacobi ? "A sweep corrects all tokens at once; the sequential inverse does one token a pass." :
        at < sequential ? `Jacobi is exact after ${jacobi} passes, each of all tokens at once.` :
        `The sequential inverse took ${sequential} passes, each of one token: few operations, long to wait.`);
    }
    show(recordedWay);
  }

  // -- e. the mask --

  function mask(root) {
    const GRID = 48, toy = squares(GRID, GRID, 224, "Density of the toy", v => ["--accent", v / 0.25]);
    const moves = squares(TOKENS, TOKENS, 224, "How far every token of z moves when one of x is nudged",
      v => ["--accent", v && max(0.08, (Math.log10(v) + 2) / 3)]);
    const ask = causal => () => request([middles(examples[R.example], LEVELS), causal], causal);
    const masks = [button("Causal mask", ask(true)), button("Broken mask", ask(false))];
    const figures = make("table.fl-terms");
    const say = frame(root, "What the mask is for",
      "It hides later tokens from each one. Without it, three promises break: the triangle, the inverse, the density.",
      tools(...masks),
      row(part("Jacobian of a block: nudge a token of x (columns), and these of z (rows) move", moves),
        part("a two-dimensional toy’s “density”", toy), part("in figures", figures)));
    const request = latest(root, "mask", show);
    function density(causal, x, y) { // exp(log N(z; 0, I) + the sum of log-scales), right only if the map is triangular
      const scale = v => 0.7 * Math.tanh(v), shift = v => 0.9 * Math.sin(1.5 * v);
      const s = causal ? 0 : scale(y), t = scale(x);
      const a = (causal ? x : x - shift(y)) * exp(s), b = (y - shift(x)) * exp(t);
      return exp(s + t - (a * a + b * b) / 2) / (2 * Math.PI);
    }
    function show(found, causal) {
      const at = i => (i + 0.5) / GRID * 8 - 4, fine = range(320).map(i => (i + 0.5) / 10 - 16);
      const integral = sum(fine.map(x => sum(fine.map(y => density(causal, x, y) / 100))));
      press(causal ? 0 : 1, ...masks);
      moves.paint(found.moves);
      toy.paint(range(GRID * GRID).map(i => density(causal, at(i % GRID), -at(floor(i / GRID)))));
      fill(figures, {"round-trip error": found.error < 1e-3 ? "below 0.001" : number(found.error, 2),
        "integral of the toy": number(integral, 3)});
      say(causal ? "Each token depends on itself and earlier ones: the Jacobian is a triangle, its determinant the " +
          "product of the diagonal, and the inverse goes token by token." :
        `Every token sees all others: the product of the diagonal is not the determinant, so the “density” ` +
          `integrates to ${number(integral, 2)}, and the inverse misses.`);
    }
    show(R.mask[0], true);
  }

  // -- f. change of variables --

  function volume(root) {
    const WIDE = 290, HIGH = 230, UNIT = 85, LEFT = 60, BASE = 190, uniform = uniforms(7);
    const grains = range(240).map(() => [uniform(), uniform()]), at = (x, y) => [LEFT + x * UNIT, BASE - y * UNIT];
    const columns = [[1.4, 0.3], [0.4, 1.2]]; // images of (1, 0) and (0, 1)
    const figures = make("table.fl-terms");
    const panels = ["The unit square with grains of probability", "Where the map takes them"].map(text => {
      const shapes = ["fl-rule", "fl-square", "fl-grains"].map(kind => shape(kind));
      return {shapes, plot: svg(WIDE, HIGH, text, ...shapes)};
    });
    const say = frame(root, "Change of variables",
      "Drag the corners: over a larger area the same grains are sparser, by exactly the determinant.",
      row(part("x: density 1 on the unit square", panels[0].plot), part("z = A x", panels[1].plot),
        part("in figures", figures)));
    const handles = columns.map((column, i) => handle(panels[1].plot, `Where the map takes ${i ? "(0, 1)" : "(1, 0)"}`,
      i ? "fl-blue" : "fl-warm", () => at(...column), (x, y) => {
        column[0] = clamp((x - LEFT) / UNIT, -0.6, 2.6);
        column[1] = clamp((BASE - y) / UNIT, -0.4, 2.1);
        update();
      }));
    function paint({shapes}, [[a, c], [b, d]]) {
      const line = (...points) => "M" + points.map(([x, y]) =>
        at(a * x + b * y, c * x + d * y).map(v => v.toFixed(1)).join(" ")).join("L");
      const net = range(5).map(i => i / 4).map(v => line([v, 0], [v, 1]) + line([0, v], [1, v])).join("");
      const square = `${line([0, 0], [1, 0], [1, 1], [0, 1])}Z`;
      const dots = grains.map(grain => `${line(grain)}h0`).join("");
      [net, square, dots].forEach((d, i) => set(shapes[i], {d}));
    }
    function update() {
      const [[a, c], [b, d]] = columns, det = a * d - b * c, area = Math.abs(det), flat = area < 0.02;
      paint(panels[1], columns);
      fill(figures, {"area covered": number(area, 2), "determinant": number(det, 2),
        "density there": flat ? "no limit" : number(1 / area, 2),
        "log|det|": flat ? "→ −∞" : number(Math.log(area), 2)});
      handles.forEach((dot, i) => dot.place(columns[i].map(v => number(v, 2)).join(", ")));
      say(flat ? "The map crushes the square to a line: it has no inverse, and no density is left." :
        `Area ${number(area, 2)} = |det|, so the density is 1 / ${number(area, 2)} = ${number(1 / area, 2)}: ` +
        `log p(x) = log p(z) + log|det|, and nothing is lost.` +
        (det < 0 ? " A negative determinant flips the square; only its size counts." : ""));
    }
    paint(panels[0], [[1, 0], [0, 1]]);
    update();
  }

  const WIDGETS = {draw, sample, guidance, race, mask, volume};
  // The scripts of a page are below its widgets, or deferred.
  if (location.hash === "#weights") parent.postMessage(FARMER_WEIGHTS, "*");
  else document.querySelectorAll("[data-farmer]").forEach(root => WIDGETS[root.dataset.farmer](root));
})();

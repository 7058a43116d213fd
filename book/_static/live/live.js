// The widgets of the live page. Each first shows a recorded state (recorded.js, by PyTorch) and computes once touched.
(() => {
  "use strict";
  const BASE = document.currentScript && document.currentScript.src.replace(/[^/]*$/, "");
  const SOURCE = "https://github.com/farmer-ref/farmer_ref/blob/main/";
  const {GaussianMixture, weighedCandidates, effectiveSampleSize, pick, uniforms} = farmerLibrary();

  // -- the model, in a worker, loaded at the first touch ------------------------------------------------------------

  let asking;
  function model() {
    asking ||= new Promise(done => {
      if (globalThis.FARMER_WEIGHTS) return done();
      document.head.append(make("script", {src: `${BASE}weights.js`, onload: done}));
    }).then(() => farmerWorker(FARMER_WEIGHTS));
    return asking;
  }
  const ask = async (...call) => (await model())(...call);

  // Calls `compute` and then `show`; while it computes, only the latest further request is kept.
  function latest(compute, show) {
    let busy = false,
      next = null;
    return async function request(...values) {
      next = values;
      if (busy) return;
      busy = true;
      while (next) {
        const now = next;
        next = null;
        show(await compute(...now), ...now);
      }
      busy = false;
    };
  }

  // -- elements -----------------------------------------------------------------------------------------------------

  const SHAPES = new Set(["svg", "g", "rect", "path", "circle", "line", "text", "polygon"]);
  function make(tag, attributes = {}, ...children) {
    const node = SHAPES.has(tag)
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    set(node, attributes).append(...children);
    return node;
  }
  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes))
      if (name.startsWith("on")) node[name] = value;
      else node.setAttribute(name, value);
    return node;
  }
  const range = n => Array.from({length: n}, (_, i) => i);
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
  const number = (v, digits = 1) => v.toFixed(digits).replace("-", "−");
  const label = text => make("p", {class: "fl-name"}, text);
  const part = (name, ...children) => make("div", {class: "fl-part"}, label(name), ...children);
  const row = (...children) => make("div", {class: "fl-row"}, ...children);
  const tools = (...children) => make("div", {class: "fl-tools"}, ...children);
  const button = (text, onclick, more = {}) => make("button", {type: "button", onclick, ...more}, text);
  const svg = (width, height, text, more = {}) =>
    make("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": text, ...more});
  function slider(text, [low, high, step, value], oninput) {
    const shown = make("output", {}, value);
    const input = make("input", {
      type: "range",
      min: low,
      max: high,
      step,
      value,
      oninput() {
        shown.textContent = this.value;
        oninput(Number(this.value));
      },
    });
    return make("label", {}, text, input, shown);
  }
  function frame(root, title, lead, source, ...children) {
    // what all widgets share; returns the live region's setter
    const say = make("p", {class: "fl-say", "aria-live": "polite"});
    const where = make("p", {class: "fl-foot"}, make("a", {href: SOURCE + source}, "The same in PyTorch"));
    root.className = "farmer-live";
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", title);
    root.replaceChildren(make("h3", {}, title), make("p", {class: "fl-lead"}, lead), ...children, say, where);
    root.onpointerenter = root.onfocus = model;
    return text => {
      say.textContent = text;
    };
  }

  // A grid of squares: `paint(values)` fills them, `style(value)` gives colour and opacity.
  function squares(columns, rows, width, text, style, more) {
    const size = width / columns,
      picture = svg(width, size * rows, text, {class: "fl-pixels", ...more});
    const cells = range(columns * rows).map(i =>
      make("rect", {x: (i % columns) * size, y: Math.floor(i / columns) * size, width: size + 0.3, height: size + 0.3})
    );
    picture.append(...cells);
    picture.paint = values =>
      cells.forEach((cell, i) => {
        const [colour, opacity] = values[i] === null ? ["none", 0] : style(values[i]);
        set(cell, {fill: colour, "fill-opacity": opacity.toFixed(3)});
      });
    return picture;
  }
  const ink = v => ["var(--ink)", clamp((v + 1) / 2, 0, 1)]; // an image in [-1, 1]
  const signed = v => [v < 0 ? "var(--warm)" : "var(--accent)", clamp(Math.abs(v) / 2.5, 0, 1)];
  const amount = most => v => ["var(--accent)", clamp(v / most, 0, 1)];

  function curve(values, width, height, most) {
    // an SVG path
    return (
      "M" +
      values
        .map((v, i) => `${((i / (values.length - 1)) * width).toFixed(1)} ${(height * (1 - v / most)).toFixed(1)}`)
        .join("L")
    );
  }

  // A handle that a pointer or the arrow keys move: move(x, y) in the picture's own units.
  function handle(picture, text, colour, where, move, step) {
    const dot = make("circle", {
      r: 8,
      class: "fl-handle",
      stroke: colour,
      tabindex: 0,
      role: "slider",
      "aria-label": text,
    });
    const to = event => {
      const box = picture.getBoundingClientRect(),
        view = picture.viewBox.baseVal;
      move(
        ((event.clientX - box.left) / box.width) * view.width,
        ((event.clientY - box.top) / box.height) * view.height
      );
    };
    dot.onpointerdown = event => {
      dot.setPointerCapture(event.pointerId);
      event.preventDefault();
      dot.focus();
    };
    dot.onpointermove = event => {
      if (dot.hasPointerCapture(event.pointerId)) to(event);
    };
    dot.onkeydown = event => {
      const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (!by) return;
      event.preventDefault();
      const [x, y] = where();
      move(x + by[0] * step, y + by[1] * step);
    };
    dot.place = value => {
      const [x, y] = where(),
        shrunk = picture.viewBox.baseVal.width / (picture.clientWidth || Infinity);
      set(dot, {
        r: 8 * Math.max(1, shrunk),
        cx: x,
        cy: y,
        "stroke-width": 3 * Math.max(1, shrunk),
        "aria-valuetext": value,
        "aria-valuenow": x.toFixed(0),
      });
    };
    picture.append(dot);
    return dot;
  }

  const R = globalThis.FARMER_RECORDED,
    SIZE = R.config.image_size,
    PATCH = R.config.patch_size;
  const SIDE = SIZE / PATCH,
    TOKENS = SIDE * SIDE;
  const tokenOf = pixel => Math.floor(Math.floor(pixel / SIZE) / PATCH) * SIDE + Math.floor((pixel % SIZE) / PATCH);
  // One image where a token is chosen, another elsewhere.
  const mixed = (a, b, chosen) => a.map((v, pixel) => (chosen(tokenOf(pixel)) ? v : b[pixel]));
  const toImage = levels => levels.map(v => (2 * (v + 0.5)) / R.config.levels - 1);
  const classes = (text, onchange) =>
    make(
      "label",
      {},
      text,
      make(
        "select",
        {onchange},
        ...range(R.config.num_classes).map(c =>
          make("option", c === R.example ? {value: c, selected: ""} : {value: c}, c)
        )
      )
    );

  // -- a. draw ------------------------------------------------------------------------------------------------------

  // The pen paints FINE x FINE dots in every pixel, whose mean is its grey level: how the digits were made.
  const FINE = 4;
  function draw(root) {
    const fine = SIZE * FINE,
      top = R.config.levels - 1,
      dots = new Float32Array(fine * fine);
    let erasing = false,
      last = null,
      cursor = [SIZE / 2, SIZE / 2];
    const pad = squares(
      SIZE,
      SIZE,
      216,
      `Drawing area, ${SIZE} by ${SIZE}: arrow keys move, space paints, backspace erases`,
      v => ["var(--ink)", v / top],
      {class: "fl-pixels fl-pad", tabindex: 0, role: "application"}
    );
    const mark = make("rect", {
      width: 216 / SIZE,
      height: 216 / SIZE,
      fill: "none",
      stroke: "var(--warm)",
      "stroke-width": 2,
    });
    const heat = squares(SIDE, SIDE, 120, "Nats of every patch", v =>
      v < 0 ? ["var(--warm)", clamp(-v / 12, 0, 1)] : ["var(--accent)", clamp(v / 12, 0, 1)]
    );
    const given = label(""),
      total = make("div", {class: "fl-figure"}),
      terms = make("table", {class: "fl-terms"});
    const bars = svg(250, 92, "Posterior probability of the ten classes"),
      place = svg(250, 92, "Test images by log p");
    const {from, step, counts} = R.histogram,
      most = Math.max(...counts),
      images = counts.reduce((a, b) => a + b);
    const across = 250 / counts.length,
      barWidth = 250 / R.config.num_classes;
    const columns = range(R.config.num_classes).map(c =>
      make("rect", {x: c * barWidth + 3, width: barWidth - 6, fill: "var(--accent)", rx: 2})
    );
    bars.append(
      ...columns,
      ...range(R.config.num_classes).map(c =>
        make("text", {x: (c + 0.5) * barWidth, y: 90, "text-anchor": "middle"}, c)
      )
    );
    const needle = make("path", {fill: "var(--warm)"}),
      scale = make("text", {y: 90, "text-anchor": "middle"});
    place.append(
      ...counts.map((n, i) =>
        make("rect", {
          x: i * across,
          y: 72 - (66 * n) / most,
          width: across - 0.6,
          height: (66 * n) / most,
          fill: "var(--accent)",
          "fill-opacity": 0.45,
        })
      ),
      needle,
      scale
    );

    const levels = () =>
      range(SIZE * SIZE).map(p => {
        let sum = 0;
        for (let i = 0; i < FINE * FINE; i++)
          sum += dots[(Math.floor(p / SIZE) * FINE + Math.floor(i / FINE)) * fine + (p % SIZE) * FINE + (i % FINE)];
        return Math.round((sum / FINE / FINE) * top);
      });
    const say = frame(
      root,
      "Draw a digit",
      "The model gives your drawing an exact log-probability density, while you draw.",
      "farmer_ref/model/farmer.py",
      row(
        part(
          `Your drawing, ${SIZE}×${SIZE}`,
          pad,
          tools(
            button("Pen", () => choose(false)),
            button("Eraser", () => choose(true))
          )
        ),
        make(
          "div",
          {class: "fl-part fl-narrow"},
          given,
          total,
          terms,
          label("nats of each patch: they add up to log p"),
          heat
        ),
        make(
          "div",
          {class: "fl-part fl-wide"},
          label("which digit, by Bayes’ rule"),
          bars,
          label("▲ your drawing, among real test digits"),
          place
        )
      ),
      tools(
        ...[
          [`A real ${R.example}`, () => R.examples[R.example]],
          ["The same, shifted", () => R.examples[R.example].map((_, p, all) => (p % SIZE ? all[p - 1] : 0))],
          ["A blank page", () => new Array(SIZE * SIZE).fill(0)],
          ["Noise", () => range(SIZE * SIZE).map(() => Math.floor(Math.random() * (top + 1)))],
        ].map(([text, image]) =>
          button(text, () => {
            load(image());
            changed();
          })
        )
      )
    );
    const [pen, eraser] = root.querySelectorAll("button");
    function choose(value) {
      erasing = value;
      set(pen, {"aria-pressed": !value});
      set(eraser, {"aria-pressed": value});
    }

    function load(image) {
      for (let i = 0; i < dots.length; i++)
        dots[i] = image[Math.floor(i / fine / FINE) * SIZE + Math.floor((i % fine) / FINE)] / top;
    }
    function stamp(x, y) {
      // in dots
      const radius = Math.max(0.55 * FINE, fine / 28);
      for (let i = Math.floor(y - radius); i <= y + radius; i++)
        for (let j = Math.floor(x - radius); j <= x + radius; j++)
          if (i >= 0 && j >= 0 && i < fine && j < fine && Math.hypot(i + 0.5 - y, j + 0.5 - x) <= radius)
            dots[i * fine + j] = erasing ? 0 : 1;
    }
    function stroke(event) {
      const box = pad.getBoundingClientRect();
      const to = [((event.clientX - box.left) / box.width) * fine, ((event.clientY - box.top) / box.height) * fine];
      const start = last || to,
        count = Math.ceil(Math.hypot(to[0] - start[0], to[1] - start[1])) + 1;
      range(count + 1).forEach(i => stamp(...[0, 1].map(a => start[a] + ((to[a] - start[a]) * i) / count)));
      last = to;
      changed();
    }
    pad.onpointerdown = event => {
      pad.setPointerCapture(event.pointerId);
      last = null;
      mark.remove();
      stroke(event);
    };
    pad.onpointermove = event => {
      if (pad.hasPointerCapture(event.pointerId)) stroke(event);
    };
    pad.onkeydown = event => {
      const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      const paint = {" ": 1, Enter: 1, Backspace: 0, Delete: 0}[event.key];
      if (!by && paint === undefined) return;
      event.preventDefault();
      if (by) cursor = cursor.map((v, a) => clamp(v + by[a], 0, SIZE - 1));
      else {
        range(FINE * FINE).forEach(i => {
          dots[(cursor[1] * FINE + Math.floor(i / FINE)) * fine + cursor[0] * FINE + (i % FINE)] = paint;
        });
        changed();
      }
      pad.append(set(mark, {x: (cursor[0] * 216) / SIZE, y: (cursor[1] * 216) / SIZE}));
    };
    pad.onblur = () => mark.remove();

    const request = latest(image => ask("bayes", toImage(image)), show);
    function changed() {
      const image = levels();
      pad.paint(image);
      request(image);
    }
    function show(found, image) {
      given.textContent = `log p(x | ${found.best}), every pixel in the middle of its grey level`;
      total.replaceChildren(
        number(found.total),
        make("small", {}, " nats · "),
        number(found.bits, 2),
        make("small", {}, " bits/dim")
      );
      terms.replaceChildren(
        ...[
          ["informative channels", "informative"],
          ["redundant channels", "redundant"],
          ["log-determinant", "logdet"],
        ].map(([text, key]) => make("tr", {}, make("td", {}, text), make("td", {}, number(found[key]))))
      );
      heat.paint([...found.perToken]);
      columns.forEach((column, c) =>
        set(column, {
          y: 74 - 68 * found.posterior[c],
          height: 68 * found.posterior[c] + 1,
          "fill-opacity": c === found.best ? 1 : 0.5,
        })
      );
      const x = clamp(((found.total - from) / step) * across, 0, 250);
      set(needle, {d: `M${x} 73l6 9h-12z`});
      scale.textContent = `${number(from, 0)} to ${number(from + step * counts.length, 0)} nats`;
      set(scale, {x: 125, y: 95});
      const below = counts.filter((_, i) => from + (i + 0.5) * step < found.total).reduce((a, b) => a + b, 0) / images;
      const blank = image.every(v => v === 0);
      say(
        blank
          ? `An empty page gets ${number(found.total)} nats, more than ${Math.round(100 * below)}% of the real ` +
              `digits: it holds no surprise. A density rewards what is predictable, not what is meaningful.`
          : `Read as a ${found.best} (${Math.round(100 * found.posterior[found.best])}%), with ` +
              `${number(found.total)} nats: ` +
              (below === 0
                ? "less probable than every real test digit."
                : `more probable than ${Math.round(100 * below)}% of the real test digits.`)
      );
    }
    choose(false);
    load(R.examples[R.example]);
    pad.paint(levels());
    show(R.draw, R.examples[R.example]);
  }

  // -- b. sample, step by step --------------------------------------------------------------------------------------

  function sample(root) {
    let way = R.sample,
      at = 0,
      timer = null;
    const wish = {label: way.label, scale: 0, weightTemperature: 1, scaleTemperature: 1, seed: 0};
    const curves = svg(260, 150, "Mixture of the next token"),
      axis = range(161).map(i => i / 20 - 4);
    const latents = squares(SIZE, SIZE, 140, "Latents", signed),
      image = squares(SIZE, SIZE, 140, "Image", ink);
    const student = squares(SIZE, SIZE, 140, "The student’s image", ink),
      play = button("Play", () => (timer ? stop() : start()));
    const name = make("span"),
      COLOURS = ["var(--accent)", "var(--warm)", "var(--blue)"];
    const ends = () => TOKENS + 1 + way.levels.length;
    const scrub = make("input", {
      type: "range",
      class: "fl-scrub",
      min: 0,
      step: 1,
      "aria-label": "Step",
      oninput() {
        stop();
        go(Number(this.value));
      },
    });
    const request = latest(
      ({label, seed, ...guidance}) => ask("sample", label, guidance, seed),
      found => {
        way = found;
        go(Math.min(at, ends()));
      }
    );
    const change = key => value => {
      wish[key] = value;
      request({...wish});
    };
    const say = frame(
      root,
      "Sample, step by step",
      "The prior draws one latent token after another; then the flow is undone, block by block.",
      "farmer_ref/model/prior.py",
      row(
        part(name, curves),
        part("latents so far", latents),
        part("the flow undone", image),
        part("the student, in one step each", student)
      ),
      scrub,
      tools(
        play,
        button("Step", () => {
          stop();
          go(at + 1);
        }),
        classes("class", event => change("label")(Number(event.target.value))),
        slider("guidance w", [0, 3, 0.25, 0], change("scale")),
        slider("T_π", [0.5, 2, 0.1, 1], change("weightTemperature")),
        slider("T_σ", [0.5, 1.5, 0.1, 1], change("scaleTemperature")),
        button("Another seed", () => change("seed")(wish.seed + 1))
      )
    );
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }
    function start() {
      if (at >= ends()) go(0);
      timer = setInterval(() => (at < ends() ? go(at + 1) : stop()), 350);
      play.textContent = "Pause";
    }
    function density(step, channel) {
      const {logWeights: w, mean, logScale} = step,
        I = mean.length / w.length;
      return axis.map(x =>
        w.reduce((sum, weight, k) => {
          const i = k * I + channel,
            e = (x - mean[i]) * Math.exp(-logScale[i]);
          return sum + Math.exp(weight - 0.5 * e * e - logScale[i]) / Math.sqrt(2 * Math.PI);
        }, 0)
      );
    }
    function go(to) {
      at = clamp(to, 0, ends());
      set(scrub, {max: ends()});
      scrub.value = at;
      const drawn = new Set(way.steps.slice(0, at).map(step => step.place)),
        done = at - TOKENS - 1;
      const step = way.steps[Math.min(at, TOKENS) - (at > 0)] || way.steps[0],
        shown = range(Math.min(3, step.drawn.length));
      name.textContent =
        at === 0 ? "mixture of the first token" : `mixture of token ${Math.min(at, TOKENS)}; dotted: the draw`;
      const lines = shown.map(c => density(step, c)),
        most = Math.min(3, Math.max(...lines.flat()));
      curves.replaceChildren(
        make("line", {x1: 0, x2: 260, y1: 130, y2: 130, stroke: "var(--line)"}),
        ...lines.map((line, c) =>
          make("path", {
            d: curve(
              line.map(v => Math.min(v, most)),
              260,
              130,
              most * 1.05
            ),
            fill: "none",
            stroke: COLOURS[c],
            "stroke-width": 2,
          })
        ),
        ...shown
          .filter(() => at > 0)
          .map(c =>
            make("line", {
              x1: ((step.drawn[c] + 4) / 8) * 260,
              x2: ((step.drawn[c] + 4) / 8) * 260,
              y1: 0,
              y2: 130,
              stroke: COLOURS[c],
              "stroke-dasharray": "3 3",
            })
          ),
        ...[-4, -2, 0, 2, 4].map(v =>
          make("text", {x: ((v + 4) / 8) * 260, y: 146, "text-anchor": "middle"}, number(v, 0))
        )
      );
      latents.paint(
        mixed(
          way.latents,
          way.latents.map(() => null),
          token => drawn.has(token)
        )
      );
      const state = levels =>
        done < 0 ? way.latents.map(() => null) : done === 0 ? way.latents : levels[done - 1] || way.latents;
      image.paint(state(way.levels));
      student.paint(state(way.student));
      say(
        at === 0
          ? `Nothing is drawn yet. For a ${way.label}, the curves say where the first token may fall: press Step.`
          : at <= TOKENS
            ? `Token ${at} of ${TOKENS}: a value of each informative channel is drawn from its curve, and ` +
              `becomes an input to the next token.`
            : done === 0
              ? "All latents are drawn, the redundant channels too, at once from one shared mixture. Now they " +
                "are an image that no one can read."
              : done < way.levels.length
                ? `Block ${way.levels.length + 1 - done} of the flow is undone, token by token; the student ` +
                  `needed one pass.`
                : `A ${way.label}, after ${way.levels.length * (TOKENS - 1)} steps of the exact inverse, or ` +
                  `${way.levels.length} of the student.`
      );
    }
    go(ends());
  }

  // -- c. guidance in one dimension ---------------------------------------------------------------------------------

  function guidance(root) {
    const WIDTH = 560,
      HEIGHT = 210,
      REACH = 6,
      points = range(241).map(i => i / 20 - REACH);
    const toX = v => ((v + REACH) / (2 * REACH)) * WIDTH,
      ofX = x => (x / WIDTH) * 2 * REACH - REACH;
    const mixtures = {
      // two humps each: mean, sigma
      p_c: {
        colour: "var(--accent)",
        humps: [
          [-1, 0.6],
          [1.6, 0.6],
        ],
      },
      p_u: {
        colour: "var(--warm)",
        humps: [
          [-1.2, 1.4],
          [2.2, 1.4],
        ],
      },
    };
    let w = 1,
      S = 5,
      height = () => 0; // of a mixture at a point, in the picture
    const picture = svg(WIDTH, HEIGHT + 20, "Densities of the two mixtures, the target and the samples", {
      class: "fl-plot",
    });
    const target = make("path", {fill: "var(--blue)", "fill-opacity": 0.22}),
      bars = make("path", {fill: "var(--text)", "fill-opacity": 0.28});
    const lines = Object.values(mixtures).map(({colour}) =>
      make("path", {fill: "none", stroke: colour, "stroke-width": 2.5})
    );
    picture.append(
      target,
      bars,
      ...lines,
      make("line", {x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, stroke: "var(--line)"}),
      ...[-4, -2, 0, 2, 4].map(v => make("text", {x: toX(v), y: HEIGHT + 16, "text-anchor": "middle"}, number(v, 0)))
    );
    const gauge = make("progress", {"aria-label": "Effective sample size"}),
      size = make("span"),
      lamp = make("span", {class: "fl-lamp"});
    const lampText = make("span"),
      key = (colour, text) => make("span", {style: `color:${colour}`}, `${text}   `);
    const say = frame(
      root,
      "Guidance in one dimension",
      "Drag the humps: candidates of p_c and p_u are weighed, and the chosen ones follow the guided target.",
      "farmer_ref/model/guidance.py",
      picture,
      make(
        "p",
        {class: "fl-name"},
        key("var(--accent)", "— p_c, with the class"),
        key("var(--warm)", "— p_u, without"),
        key("var(--blue)", "■ exact target"),
        key("var(--muted)", "■ samples")
      ),
      tools(
        slider("guidance w", [0, 4, 0.25, w], value => {
          w = value;
          update();
        }),
        slider("candidates of each", [1, 40, 1, S], value => {
          S = value;
          update();
        }),
        make("label", {}, "effective", gauge, size)
      ),
      make("p", {class: "fl-name", style: "margin:.6rem 0 0"}, lamp, lampText)
    );
    const handles = Object.entries(mixtures).flatMap(([text, {colour, humps}]) =>
      humps.map((hump, i) =>
        handle(
          picture,
          `${text}, hump ${i + 1}: mean and width`,
          colour,
          () => [toX(hump[0]), height(text, hump[0])],
          (x, y) => {
            hump[1] = clamp(hump[1] * Math.exp((y - height(text, hump[0])) / 80), 0.35, 2.5); // lower is wider
            hump[0] = clamp(ofX(x), -4.5, 4.5);
            update();
          },
          6
        )
      )
    );
    function update() {
      const [p, u] = Object.values(mixtures).map(
        ({humps}) =>
          new GaussianMixture(
            Float32Array.of(0, 0),
            Float32Array.from(humps, h => h[0]),
            Float32Array.from(humps, h => Math.log(h[1]))
          )
      );
      const logP = points.map(v => p.logProb([v])),
        logU = points.map(v => u.logProb([v]));
      const wide = humps => Math.max(...humps.map(h => h[1]));
      const proper = (1 + w) / wide(mixtures.p_c.humps) ** 2 > w / wide(mixtures.p_u.humps) ** 2; // the tails decide
      const raw = logP.map((v, i) => Math.exp(v + w * (v - logU[i]))),
        whole = raw.reduce((a, b) => a + b) / 20;
      const exact = raw.map(v => v / whole),
        uniform = uniforms(1),
        counts = new Array(60).fill(0),
        draws = Math.ceil(24000 / S / 2);
      let effective = 0;
      range(draws).forEach(() => {
        const options = {scale: w, weightTemperature: 1, scaleTemperature: 1};
        const [pool, weights] = weighedCandidates(p, u, options, [S, S], uniform);
        effective += effectiveSampleSize(weights) / draws;
        const bin = Math.floor(((pool[pick(weights, uniform)][0] + REACH) / (2 * REACH)) * 60);
        if (bin in counts) counts[bin] += 60 / (2 * REACH) / draws;
      });
      const most = Math.max(0.5, ...logP.map(Math.exp), ...counts, ...(proper ? exact : [])) * 1.05;
      [logP, logU].forEach((log, i) => set(lines[i], {d: curve(log.map(Math.exp), WIDTH, HEIGHT, most)}));
      set(target, {d: proper ? `${curve(exact, WIDTH, HEIGHT, most)}V${HEIGHT}H0Z` : ""});
      set(bars, {
        d: counts
          .map((v, i) => `M${(i * WIDTH) / 60 + 1} ${HEIGHT}v${(-HEIGHT * v) / most}h${WIDTH / 60 - 2}V${HEIGHT}z`)
          .join(""),
      });
      set(gauge, {max: 2 * S, value: effective});
      size.textContent = `${number(effective)} of ${2 * S}`;
      lamp.classList.toggle("fl-on", !proper);
      lampText.textContent = proper
        ? "The target has a finite integral."
        : "No finite integral: the target is not a density.";
      height = (text, v) => HEIGHT * (1 - Math.exp((text === "p_c" ? p : u).logProb([v])) / most);
      const humps = Object.values(mixtures).flatMap(mixture => mixture.humps);
      handles.forEach((dot, i) => dot.place(`mean ${number(humps[i][0])}, width ${number(humps[i][1])}`));
      const gap = exact.reduce((sum, v, i) => sum + Math.abs(v - counts[Math.min(59, Math.floor(i / 4))]) / 40, 0);
      say(
        w === 0
          ? "w = 0 asks for p_c itself."
          : !proper
            ? "p_u falls off faster than p_c in the tails, so p_c (p_c / p_u)^w grows without end: what " +
              "resampling draws now depends on how many candidates it has."
            : `${number(effective)} of ${2 * S} candidates count. The samples miss ${Math.round(100 * gap)}% of ` +
              `the target’s mass${gap > 0.06 ? ": more candidates would come closer." : "."}`
      );
    }
    update();
  }

  // -- d. a race of inverses ----------------------------------------------------------------------------------------

  function race(root) {
    let seed = 0,
      digit = R.sample.label;
    const WIDE = 260,
      HIGH = 150,
      names = ["sequential, exact", "Jacobi sweeps, exact", "student, approximate"];
    const maps = names.map(text =>
      svg(WIDE, HIGH, `Error of every token over the steps, ${text}`, {class: "fl-pixels"})
    );
    const images = names.map(text => squares(SIZE, SIZE, 84, `Image, ${text}`, ink)),
      notes = names.map(() => make("p", {class: "fl-name"}));
    const scrub = make("input", {
      type: "range",
      class: "fl-scrub",
      min: 0,
      step: 1,
      "aria-label": "Passes of the network",
      oninput() {
        go(Number(this.value));
      },
    });
    const say = frame(
      root,
      "A race of inverses",
      "Three ways from the same latents to the image, one network pass a step: pale tokens are still wrong.",
      "farmer_ref/model/jacobi.py",
      row(...names.map((text, i) => part(text, maps[i], make("div", {style: "height:.5rem"}), images[i], notes[i]))),
      scrub,
      tools(
        classes("digit", event => {
          digit = Number(event.target.value);
          run();
        }),
        button("Other latents", () => {
          seed++;
          run();
        })
      )
    );
    const request = latest((label, at) => ask("sample", label, {}, at), show),
      run = () => request(digit, seed);
    let frames, lengths;
    const error = (a, b) =>
      range(TOKENS).map(token =>
        Math.sqrt(a.reduce((sum, v, p) => sum + (tokenOf(p) === token ? (v - b[p]) ** 2 : 0), 0) / PATCH ** 2)
      );
    function show(way) {
      const sequential = [],
        blocks = way.levels.length;
      way.levels.forEach((level, b) => {
        // blocks run in turns from the first token or from the last
        const before = b ? way.levels[b - 1] : way.latents,
          backwards = (blocks - 1 - b) % 2 === 1;
        range(TOKENS - 1).forEach(i =>
          sequential.push([mixed(level, before, token => (backwards ? TOKENS - 1 - token : token) <= i + 1), level])
        );
      });
      const jacobi = way.sweeps.flatMap((sweeps, b) => sweeps.map(x => [x, way.levels[b]]));
      frames = [sequential, jacobi, way.student.map((x, b) => [x, way.levels[b]])].map(list =>
        [[way.latents, way.levels[0]], ...list].map(([x, exact]) => ({x, error: error(x, exact)}))
      );
      lengths = frames.map(list => list.length - 1);
      frames.forEach((list, i) => {
        const wide = WIDE / (lengths[0] + 1),
          high = HIGH / TOKENS;
        maps[i].replaceChildren(
          ...list.flatMap(({error: e}, s) =>
            e.map((v, token) =>
              make("rect", {
                x: s * wide,
                y: token * high,
                width: wide + 0.2,
                height: high + 0.2,
                fill: "var(--accent)",
                "fill-opacity": clamp(-Math.log10(v + 1e-6) / 5, 0.06, 1).toFixed(2),
              })
            )
          ),
          make("line", {y1: 0, y2: HIGH, stroke: "var(--warm)", "stroke-width": 2})
        );
      });
      scrub.max = lengths[0];
      go(lengths[2]);
    }
    function go(at) {
      scrub.value = at;
      frames.forEach((list, i) => {
        const step = Math.min(at, lengths[i]),
          x = ((step + 0.5) * WIDE) / (lengths[0] + 1);
        images[i].paint(list[step].x);
        set(maps[i].lastChild, {x1: x, x2: x});
        notes[i].textContent = at >= lengths[i] ? `done after ${lengths[i]} passes` : `pass ${step} of ${lengths[i]}`;
      });
      const last = frames[2][lengths[2]].error,
        rest = Math.sqrt(last.reduce((sum, v) => sum + v * v, 0) / TOKENS);
      say(
        at < lengths[2]
          ? "All three start at the latents; rows are tokens, columns are passes."
          : at < lengths[1]
            ? `The student is through after ${lengths[2]} passes, with an error of ${number(rest, 2)} a pixel ` +
              `that stays; the exact ways are still under way.`
            : at < lengths[0]
              ? `Jacobi is exact after ${lengths[1]} passes, each of all tokens at once.`
              : `The sequential inverse took ${lengths[0]} passes, each of one token: few operations, long to wait.`
      );
    }
    show(R.sample);
  }

  // -- e. the mask --------------------------------------------------------------------------------------------------

  function mask(root) {
    const jacobian = squares(
      TOKENS,
      TOKENS,
      224,
      "Size of the derivative of every output token by every input token",
      v => ["var(--accent)", v ? clamp((Math.log10(v) + 3.5) / 3.5, 0, 1) : 0]
    );
    const GRID = 48,
      toy = squares(GRID, GRID, 224, "Density of the toy", v => ["var(--accent)", clamp(v / 0.25, 0, 1)]);
    const figures = make("table", {class: "fl-terms"}),
      kept = button("Causal mask", () => choose(true)),
      broken = button("Broken mask", () => choose(false));
    const say = frame(
      root,
      "What the mask is for",
      "Let tokens see later ones, and three promises break at once: triangle, way back, density.",
      "farmer_ref/model/flow.py",
      tools(kept, broken),
      make("div", {style: "height:1rem"}),
      row(
        part("Jacobian of a block: rows z, columns x", jacobian),
        part("a two-dimensional toy’s “density”", toy),
        part("in figures", figures)
      )
    );
    const request = latest(
      causal => ask("mask", toImage(R.examples[R.example]), causal),
      (found, causal) => show(found, causal)
    );
    function choose(causal) {
      request(causal);
    }
    function density(causal, x, y) {
      // exp(log N(z; 0, I) + the sum of log-scales), right only if the map is triangular
      const scale = v => 0.7 * Math.tanh(v),
        shift = v => 0.9 * Math.sin(1.5 * v);
      const [a, s] = causal ? [x, 0] : [(x - shift(y)) * Math.exp(scale(y)), scale(y)],
        t = scale(x),
        b = (y - shift(x)) * Math.exp(t);
      return Math.exp(-(a * a + b * b) / 2 + s + t) / (2 * Math.PI);
    }
    function show({jacobian: rows, error}, causal) {
      set(kept, {"aria-pressed": causal});
      set(broken, {"aria-pressed": !causal});
      jacobian.paint(rows.flat());
      const at = i => ((i + 0.5) / GRID) * 8 - 4,
        fine = range(320).map(i => (i + 0.5) / 10 - 16);
      toy.paint(range(GRID * GRID).map(i => density(causal, at(i % GRID), -at(Math.floor(i / GRID)))));
      const integral = fine.reduce(
        (sum, x) => sum + fine.reduce((part, y) => part + density(causal, x, y) / 100, 0),
        0
      );
      const exact = error < 1e-3;
      figures.replaceChildren(
        ...[
          ["error of the round trip", exact ? "below 0.001" : number(error, 2)],
          ["integral of the toy", number(integral, 3)],
        ].map(([text, value]) => make("tr", {}, make("td", {}, text), make("td", {}, value)))
      );
      say(
        causal
          ? "Each token depends on itself and earlier ones: the Jacobian is a triangle, its determinant the " +
              "product of the diagonal, and the inverse goes token by token."
          : `Every token sees all others: the product of the diagonal is not the determinant, so the “density” ` +
              `integrates to ${number(integral, 2)}, and the way back ends ${exact ? "nearby" : "elsewhere"}.`
      );
    }
    show(R.mask[0], true);
  }

  // -- f. change of variables ---------------------------------------------------------------------------------------

  function volume(root) {
    const WIDE = 290,
      HIGH = 230,
      UNIT = 85,
      uniform = uniforms(7),
      grains = range(240).map(() => [uniform(), uniform()]);
    const columns = [
      [1.4, 0.3],
      [0.4, 1.2],
    ]; // where the map takes (1, 0) and (0, 1)
    const before = svg(WIDE, HIGH, "The unit square with grains of probability"),
      after = svg(WIDE, HIGH, "Where the map takes them");
    const at = (x, y) => [60 + x * UNIT, HIGH - 40 - y * UNIT];
    const grid = () => make("path", {stroke: "var(--line)", fill: "none"}),
      nets = [grid(), grid()],
      dots = [0, 1].map(() => make("path", {fill: "var(--accent)"}));
    const square = [0, 1].map(() =>
      make("polygon", {fill: "var(--accent)", "fill-opacity": 0.14, stroke: "var(--accent)", "stroke-width": 2})
    );
    before.append(nets[0], square[0], dots[0]);
    after.append(nets[1], square[1], dots[1]);
    const figures = make("table", {class: "fl-terms"});
    const say = frame(
      root,
      "Change of variables",
      "Drag the corners: the same grains on a larger area are thinner, by exactly the determinant.",
      "farmer_ref/model/farmer.py",
      row(part("x: density 1 on the unit square", before), part("z = A x", after), part("in figures", figures))
    );
    const handles = columns.map((column, i) =>
      handle(
        after,
        `Where the map takes ${i ? "(0, 1)" : "(1, 0)"}`,
        i ? "var(--blue)" : "var(--warm)",
        () => at(...column),
        (x, y) => {
          column[0] = clamp((x - 60) / UNIT, -0.6, 2.6);
          column[1] = clamp((HIGH - 40 - y) / UNIT, -0.4, 2.1);
          update();
        },
        6
      )
    );
    function paint(panel, [[a, c], [b, d]]) {
      const to = ([x, y]) => at(a * x + b * y, c * x + d * y),
        point = p =>
          to(p)
            .map(v => v.toFixed(1))
            .join(" ");
      set(square[panel], {
        points: [
          [0, 0],
          [1, 0],
          [1, 1],
          [0, 1],
        ]
          .map(point)
          .join(" "),
      });
      set(nets[panel], {
        d: range(5)
          .map(i => `M${point([i / 4, 0])}L${point([i / 4, 1])}M${point([0, i / 4])}L${point([1, i / 4])}`)
          .join(""),
      });
      set(dots[panel], {d: grains.map(g => `M${point(g)}m-1.6 0a1.6 1.6 0 1 0 3.2 0a1.6 1.6 0 1 0-3.2 0`).join("")});
    }
    function update() {
      const [[a, c], [b, d]] = columns,
        det = a * d - b * c,
        area = Math.abs(det),
        flat = area < 0.02;
      paint(1, columns);
      figures.replaceChildren(
        ...[
          ["area of the image", number(area, 2)],
          ["determinant", number(det, 2)],
          ["density there", flat ? "no limit" : number(1 / area, 2)],
          ["log|det|", flat ? "→ −∞" : number(Math.log(area), 2)],
        ].map(([text, value]) => make("tr", {}, make("td", {}, text), make("td", {}, value)))
      );
      handles.forEach((dot, i) => dot.place(columns[i].map(v => number(v, 2)).join(", ")));
      say(
        flat
          ? "The map crushes the square to a line: it has no inverse, and no density is left."
          : `Area ${number(area, 2)} = |det|, so the density is 1 / ${number(area, 2)} = ` +
              `${number(1 / area, 2)}: log p(x) = log p(z) + log|det|, and nothing is lost.` +
              (det < 0 ? " A negative determinant turns the square over; only its size counts." : "")
      );
    }
    paint(0, [
      [1, 0],
      [0, 1],
    ]);
    update();
  }

  const WIDGETS = {draw, sample, guidance, race, mask, volume};
  const begin = () => document.querySelectorAll("[data-farmer]").forEach(root => WIDGETS[root.dataset.farmer](root));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();

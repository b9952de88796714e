const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];
const DARK = ["#56b4e9", "#ff9d5c", "#3ecf9b", "#e39ac4", "#f0c040", "#9ad1f5", "#b9a3e3", "#b0b0b0"];
const LINES = 12, ROWS = 12, DOTS = 6;
const ORDER = ["curve", "importance", "heat", "bars", "parallel"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = {
  metric: fragment().get("metric") ?? facts.metric, part: fragment().get("part") ?? "mean", interval: "over_both",
  rows: "settings", shown: ROWS, filter: fragment().get("filter") ?? "",
};
const sorting = {settings: {by: -1, down: false}, runs: {by: -1, down: false}};
const color = i => (dark.matches ? DARK : COLORS)[i % COLORS.length];
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** For Plotly, which takes some HTML in its texts. */
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const score = (setting, metric = chosen.metric, part = chosen.part) => setting.scores[metric]?.[part] ?? null;
const best = () => Math.max(...facts.settings.map(s => score(s)?.mean ?? -Infinity));
/** The interval that is asked for, or the nearest there is: one seed alone has none over seeds. */
const interval = s => s && (s[chosen.interval] ?? s.over_both ?? s.over_photographs ?? s.over_seeds);
const partName = part => part === "mean" ? "all degradations" : part;
const hours = value => value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value > 0 ? value.toPrecision(2) : "";

// --- charts ---

const drawn = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting && drawn.has(entry.target)) {
    watcher.unobserve(entry.target);
    drawn.get(entry.target).now();
  }
}, {rootMargin: "300px"});

/** Draws when the chart comes into sight; what() gives traces and layout. */
function chart(target, what) {
  const entry = {now: () => { entry.is = true; draw(target, ...what()); }, is: false};
  if (drawn.get(target)?.is) entry.now();
  else watcher.observe(target);
  drawn.set(target, entry);
}
function draw(target, traces, layout) {
  const axis = {gridcolor: style("--grid"), zerolinecolor: style("--grid"), linecolor: style("--line"), automargin: true};
  const given = {...layout};
  for (const name of ["xaxis", "yaxis"]) given[name] = {...axis, ...layout[name]};
  Plotly.react(target, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: style("--ink"), size: 12, family: "inherit"},
    margin: {l: 56, r: 16, t: 12, b: 44}, hovermode: "closest", showlegend: false, hoverlabel: {namelength: -1},
    legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0}, ...given,
  }, {responsive: true, displaylogo: false, displayModeBar: false});
}

const whiskers = scores => ({
  type: "data", symmetric: false, thickness: 1.4, width: 4,
  array: scores.map(s => interval(s) ? interval(s)[1] - s.mean : 0),
  arrayminus: scores.map(s => interval(s) ? s.mean - interval(s)[0] : 0),
});
const keyAt = key => facts.keys.findIndex(each => each.key === key);
const mean = values => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
/** Pixels above a chart that the names of its lines take, about. */
function legendRoom(traces, width = 560) {
  const names = traces.filter(t => t.showlegend !== false).map(t => t.name.length);
  const inRow = Math.max(1, Math.floor(Math.min(width, innerWidth - 120) / (56 + 6.6 * Math.max(...names))));
  return 20 + 20 * Math.ceil(names.length / inRow);
}
const title = () => `${upper(chosen.metric)}, ${partName(chosen.part)}`;

const panels = {
  curve(panel) {
    const k = keyAt(panel.x), key = facts.keys[k], groups = new Map();
    for (const setting of facts.settings) {
      if (!score(setting)) continue;
      const rest = setting.at.map((v, i) => i === k ? "" : `${facts.keys[i].short}=${facts.keys[i].labels[v]}`).filter(Boolean).join(", ");
      if (!groups.has(rest)) groups.set(rest, []);
      groups.get(rest).push(setting);
    }
    const x = setting => key.numbers[setting.at[k]];
    let traces = [...groups].map(([name, settings], i) => {
      const own = settings.filter(s => x(s) !== null).sort((a, b) => x(a) - x(b));
      return {name: plain(name || key.short), x: own.map(x), y: own.map(s => score(s).mean), error_y: {...whiskers(own.map(s => score(s))), color: color(i)},
        mode: "lines+markers", line: {color: color(i)}, marker: {size: 7},
        hovertemplate: `${plain(key.short)} %{x}<br>%{y:.${digits(chosen.metric)}f}<extra>${plain(name)}</extra>`};
    });
    const many = traces.length > LINES;
    if (many) { // single lines would hide each other: their mean stands out
      for (const trace of traces) Object.assign(trace, {mode: "lines", line: {color: style("--line"), width: 1}, error_y: undefined, hoverinfo: "skip"});
      const values = key.numbers.filter(v => v !== null);
      const means = values.map(v => mean(facts.settings.filter(s => x(s) === v && score(s)).map(s => score(s).mean)));
      traces.push({name: "mean", x: values, y: means, mode: "lines+markers", line: {color: color(0), width: 3}});
    }
    const numbers = key.numbers.filter(v => v > 0);
    const wide = numbers.length === key.numbers.length && Math.max(...numbers) / Math.min(...numbers) > 30;
    return [traces, {xaxis: {title: {text: plain(key.key)}, type: wide ? "log" : "linear"}, yaxis: {title: {text: upper(chosen.metric)}},
      showlegend: !many && traces.length > 1, margin: {l: 56, r: 16, t: many || traces.length < 2 ? 12 : legendRoom(traces), b: 48}}];
  },
  bars(panel) {
    const ranked = facts.settings.filter(s => score(s, chosen.metric, "mean")).sort((a, b) => score(b, chosen.metric, "mean").mean - score(a, chosen.metric, "mean").mean).slice(0, DOTS);
    const parts = facts.parts.length > 1 ? facts.parts : ["mean"];
    const traces = ranked.map((setting, i) => {
      const own = parts.map(part => score(setting, chosen.metric, part)), shift = ranked.length > 1 ? .5 * (i / (ranked.length - 1) - .5) : 0;
      return {name: plain(setting.name), x: parts.map((_, j) => j + shift), y: own.map(s => s?.mean ?? null), error_y: {...whiskers(own.map(s => s ?? {mean: 0})), color: color(i)},
        mode: "markers", marker: {size: 8, color: color(i)}, hovertemplate: `%{y:.${digits(chosen.metric)}f}<extra>${plain(setting.name)}</extra>`};
    });
    return [traces, {xaxis: {tickvals: parts.map((_, j) => j), ticktext: parts.map(p => plain(p === "mean" ? "all" : p)), range: [-.5, parts.length - .5], showgrid: false},
      yaxis: {title: {text: upper(chosen.metric)}}, showlegend: true, margin: {l: 56, r: 16, t: legendRoom(traces), b: 40}}];
  },
  parallel(panel) {
    const settings = facts.settings.filter(s => score(s) && passes(s)).sort((a, b) => score(a).mean - score(b).mean).slice(-300);
    const means = settings.map(s => score(s).mean), low = Math.min(...means), high = Math.max(...means);
    const height = value => high > low ? (value - low) / (high - low) : .5;
    const place = (key, v) => key.labels.length > 1 ? v / (key.labels.length - 1) : .5;
    const axes = [...facts.keys.map(key => plain(key.short)), upper(chosen.metric)];
    const traces = settings.map((s, i) => ({
      x: axes.map((_, j) => j), mode: "lines", line: {color: scale(height(means[i])), width: i === settings.length - 1 ? 4 : 1.8, shape: "spline", smoothing: .6},
      y: [...facts.keys.map((key, j) => place(key, s.at[j])), height(means[i])], opacity: .85, hoverinfo: "text", hoveron: "points+fills",
      text: `${plain(s.name)}: ${fixed(means[i], chosen.metric)}`,
    }));
    const ticks = facts.keys.flatMap((key, j) => key.labels.length > 15 ? [] : key.labels.map((text, v) => ({x: j, y: place(key, v), text: plain(text)})));
    for (const v of means.length ? [low, high] : []) ticks.push({x: axes.length - 1, y: height(v), text: fixed(v, chosen.metric)});
    return [traces, {
      xaxis: {tickvals: axes.map((_, j) => j), ticktext: axes, range: [-.2, axes.length - .55], showgrid: true, gridcolor: style("--quiet"), zeroline: false},
      yaxis: {visible: false, range: [-.08, 1.08]}, margin: {l: 16, r: 16, t: 12, b: 40},
      annotations: ticks.map(t => ({...t, showarrow: false, xanchor: "left", xshift: 5, font: {size: 11}, bgcolor: style("--card"), opacity: .9})),
    }];
  },
  importance() {
    const shares = facts.importance[chosen.metric]?.[chosen.part] ?? {}, keys = Object.keys(shares).reverse();
    const short = key => facts.keys.find(each => each.key === key)?.short ?? key;
    return [[{type: "bar", orientation: "h", y: keys.map(k => plain(short(k))), x: keys.map(k => 100 * shares[k]), marker: {color: color(0)}, text: keys.map(k => `${(100 * shares[k]).toFixed(0)} %`),
      textposition: "outside", cliponaxis: false, hovertemplate: "%{y}: %{x:.1f} %<extra></extra>"}],
    {xaxis: {title: {text: "share of the variance of runs, %"}, range: [0, 100]}, yaxis: {showgrid: false, type: "category"}, margin: {l: 90, r: 16, t: 12, b: 44}}];
  },
};

const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
/** Viridis, by five of its colours. */
function scale(value) {
  const v = Math.min(Math.max(value, 0), 1) * 4, i = Math.min(Math.floor(v), 3);
  return `rgb(${STOPS[i].map((c, j) => Math.round(c + (STOPS[i + 1][j] - c) * (v - i))).join(",")})`;
}

function heatMap(panel, part) {
  const [i, j] = [keyAt(panel.x), keyAt(panel.y)], [a, b] = [facts.keys[i], facts.keys[j]];
  const z = a.labels.map((_, v) => b.labels.map((_, w) =>
    mean(facts.settings.filter(s => s.at[i] === v && s.at[j] === w && score(s, chosen.metric, part)).map(s => score(s, chosen.metric, part).mean))));
  const small = a.labels.length * b.labels.length <= 40;
  return [[{type: "heatmap", z, x: b.labels.map(plain), y: a.labels.map(plain), colorscale: "Viridis", showscale: false, xgap: 2, ygap: 2,
    texttemplate: small ? `%{z:.${digits(chosen.metric)}f}` : undefined, hovertemplate: `${plain(b.short)} %{x}<br>${plain(a.short)} %{y}<br>%{z:.${digits(chosen.metric)}f}<extra></extra>`}],
  {xaxis: {type: "category", title: {text: plain(b.short), standoff: 4}}, yaxis: {type: "category", title: {text: plain(a.short), standoff: 4}}, margin: {l: 60, r: 6, t: 26, b: 44},
    title: {text: plain(partName(part)), font: {size: 13}, x: .5, y: .985, yanchor: "top"}}];
}

const inOrder = facts.panels.filter(panel => ORDER.includes(panel.kind)).sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind));
const places = inOrder.map(panel => {
  const section = make("section", {"data-kind": panel.kind, class: panel.kind === "heat" ? "wide" : null}), head = make("h2");
  section.append(head);
  at("charts").append(section);
  if (panel.kind === "heat") {
    const small = make("div", {class: "small"});
    section.append(small);
    return {panel, head, charts: facts.parts.map(part => { const one = make("div", {class: "chart"}); small.append(one); return [one, () => heatMap(panel, part)]; })};
  }
  const one = make("div", {class: "chart"});
  section.append(one);
  return {panel, head, charts: [[one, () => panels[panel.kind](panel)]]};
});
for (const kinds of [["curve", "importance"], ["bars", "parallel"]]) { // an odd one out takes the whole row
  const row = places.filter(({panel}) => kinds.includes(panel.kind));
  if (row.length % 2) row[0].head.parentElement.classList.add("wide");
}

function panelTitle(panel) {
  const short = key => facts.keys[keyAt(key)]?.short ?? key;
  switch (panel.kind) {
    case "curve": return `${title()}, over ${short(panel.x)}`;
    case "heat": return `${upper(chosen.metric)} over ${short(panel.x)} and ${short(panel.y)}, mean over the other keys`;
    case "bars": return `${upper(chosen.metric)} by degradation` + (facts.settings.length > DOTS ? `, the best ${DOTS} settings` : "");
    case "parallel": return `Keys and ${title()}`;
    default: return `${panel.title} for ${title()}`;
  }
}

// --- table ---

function passes(row) {
  const words = chosen.filter.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const setting = row.at ? row : facts.settings[row.setting];
  const keys = facts.keys.map((key, i) => `${key.short}=${key.labels[setting.at[i]]}`);
  const text = [setting.name, ...keys, row.cell, row.identity, row.seed === undefined ? "" : `seed=${row.seed}`, row.state, ...Object.keys(row.states ?? {})].join(" ").toLowerCase();
  return words.every(word => text.includes(word));
}

function columns() {
  const keys = facts.keys.map((key, i) => {
    const of = row => (row.at ?? facts.settings[row.setting].at)[i];
    return {title: key.short, value: row => key.numbers[of(row)] ?? of(row), text: row => key.labels[of(row)]};
  });
  const name = {title: "setting", value: row => row.name, text: row => row.name};
  const metrics = facts.metrics.map(metric => {
    const value = row => row.at ? score(row, metric)?.mean : row.scores[metric]?.[chosen.part];
    return {title: upper(metric), number: true, value, text: row => fixed(value(row), metric)};
  });
  const time = {title: "hours", number: true, value: row => row.hours, text: row => hours(row.hours)};
  if (chosen.rows === "runs") return [
    ...(keys.length ? keys : [{title: "cell", value: row => row.cell, text: row => row.cell}]),
    {title: "seed", value: row => row.seed, text: row => row.seed},
    {title: "run", value: row => row.identity, text: row => row.identity},
    {title: "state", value: row => row.state, text: row => make("span", {class: row.state, title: row.reason}, row.state)},
    {title: "step", number: true, value: row => row.step, text: row => row.step === null ? "" : `${row.step}/${row.max_steps}`},
    ...metrics, time,
  ];
  return [
    ...(keys.length && facts.settings.every(s => s.name.includes("=")) ? keys : [name]), {title: "seeds", number: true, value: row => seeds(row), text: row => `${seeds(row)}`},
    metrics.find(m => m.title === upper(chosen.metric)),
    {title: "95 % photographs ▬, seeds ─".replace("95", `${100 * facts.level}`), value: row => score(row)?.mean, text: row => whisker(row), fixed: true},
    {title: "interval", value: row => interval(score(row))?.[0], text: row => interval(score(row))?.map(v => fixed(v, chosen.metric)).join(" to ") ?? ""},
    ...metrics.filter(m => m.title !== upper(chosen.metric)),
    {title: "state", value: row => states(row), text: row => make("span", {class: Object.keys(row.states).length === 1 ? states(row) : null}, states(row))}, time,
  ];
}
const seeds = row => Object.keys(score(row)?.by_seed ?? {}).length;
const states = row => Object.entries(row.states).map(([word, n]) => Object.keys(row.states).length > 1 ? `${n} ${word}` : word).join(", ");

let range = [0, 1];
function whisker(row) {
  const own = score(row);
  if (!own) return "";
  const x = value => 4 + 182 * (value - range[0]) / (range[1] - range[0]);
  const svg = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const made = svg("svg", {class: "whisker", viewBox: "0 0 190 18", role: "img", "aria-label": `${fixed(own.mean, chosen.metric)}`});
  for (const [name, pair] of [["photographs", own.over_photographs], ["seeds", own.over_seeds]])
    if (pair) made.append(svg("line", {class: name, x1: Math.max(0, x(pair[0])), x2: Math.min(190, x(pair[1])), y1: 9, y2: 9}));
  for (const value of Object.values(own.by_seed)) made.append(svg("circle", {class: "other", cx: x(value), cy: 9, r: 2}));
  made.append(svg("circle", {cx: x(own.mean), cy: 9, r: 3.5}));
  return made;
}

function table() {
  const all = facts[chosen.rows], kept = all.filter(passes), own = columns(), state = sorting[chosen.rows];
  if (state.by < 0) { state.by = own.findIndex(c => c.title === upper(chosen.metric)); state.down = true; }
  const ends = facts.settings.filter(passes).map(s => score(s)).filter(Boolean).flatMap(s => [s.mean, ...(s.over_photographs ?? []), ...Object.values(s.by_seed)]);
  range = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
  if (range[1] - range[0] < 1e-9) range = [range[0] - .5, range[1] + .5];
  sortable(at("table").tHead, own, state, table);
  at("table").tBodies[0].replaceChildren(...sorted(kept, own, state).slice(0, chosen.shown).map(row =>
    make("tr", {}, ...own.map(column => make("td", {class: column.number ? "number" : null}, column.text(row) ?? "")))));
  const shown = Math.min(kept.length, chosen.shown);
  at("count").textContent = `${shown < kept.length ? `${shown} of ` : ""}${kept.length}${kept.length < all.length ? ` of ${all.length}` : ""} ${chosen.rows === "runs" ? "runs" : "settings"}`;
  at("more").hidden = shown >= kept.length;
}

// --- curves, lineage, cost ---

function lines() {
  const {names, runs} = facts.curves, name = names.indexOf(at("curve").value), weight = +at("smooth").value;
  at("smoothed").textContent = weight.toFixed(2);
  const own = runs.filter(run => name in run.series && (at("stage").value === "" || run.stage === at("stage").value));
  const titles = [...new Set(own.map(run => run.title))];
  const traces = own.flatMap(run => {
    const [x, y] = run.series[name], i = titles.indexOf(run.title), smooth = [];
    let average = 0, total = 0;
    for (const value of y) { // exponential, without the pull to zero at the beginning
      average = weight * average + (1 - weight) * value;
      total = weight * total + (1 - weight);
      smooth.push(average / total);
    }
    const title = plain(run.title), few = y.length < 3;
    const faint = {x, y, mode: "lines", line: {color: color(i), width: 1}, opacity: .22, hoverinfo: "skip", showlegend: false};
    const strong = {x, y: smooth, name: title, mode: few ? "lines+markers" : "lines", line: {color: color(i), width: 1.8}, hovertemplate: `step %{x}: %{y:.4g}<extra>${title}</extra>`};
    return weight && !few && own.length <= 30 ? [faint, strong] : [strong];
  });
  return [traces, {xaxis: {title: {text: "step"}}, yaxis: {title: {text: plain(names[name] ?? "")}, type: at("log").checked ? "log" : "linear"}, showlegend: own.length <= LINES, margin: {l: 64, r: 16, t: own.length > 1 && own.length <= LINES ? legendRoom(traces, 1200) : 12, b: 44}}];
}

function graph() {
  const nodes = facts.tasks, count = facts.stages.map(stage => nodes.filter(n => n.stage === stage).length);
  const seen = facts.stages.map(() => 0), x = n => facts.stages.indexOf(n.stage);
  const y = nodes.map(n => -(seen[x(n)]++ + .5) / count[x(n)]);
  const edges = {x: [], y: [], mode: "lines", line: {color: style("--quiet"), width: 1, shape: "spline"}, opacity: .6, hoverinfo: "skip"};
  nodes.forEach((n, i) => { if (n.parent !== null && n.parent < nodes.length) { edges.x.push(x(nodes[n.parent]), x(n), null); edges.y.push(y[n.parent], y[i], null); } });
  const tone = {done: style("--good"), failed: style("--bad"), stopped: style("--bad"), running: style("--accent"), preempted: style("--accent")};
  const few = Math.max(...count) <= 24;
  const points = {x: nodes.map(x), y, mode: few ? "markers+text" : "markers", textposition: "middle right", text: nodes.map(n => few ? ` ${plain(n.cell)}` : ""), cliponaxis: false,
    marker: {size: few ? 11 : 7, color: nodes.map(n => tone[n.state] ?? style("--quiet"))}, textfont: {size: 11},
    hovertext: nodes.map(n => `${plain(n.stage)} ${n.identity}<br>${plain(n.cell)}<br>${n.state}${n.hours ? `, ${hours(n.hours)} h` : ""}`), hoverinfo: "text"};
  return [[edges, points], {xaxis: {tickvals: facts.stages.map((_, i) => i), ticktext: facts.stages.map(plain), side: "top", range: [-.15, facts.stages.length - .3], showgrid: false, zeroline: false},
    yaxis: {visible: false}, margin: {l: 40, r: 10, t: 34, b: 10}}];
}

function simpleTable(target, head, rows) {
  target.replaceChildren(make("thead", {}, make("tr", {}, ...head.map(([text, number]) => make("th", {class: number ? "number" : null}, text)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map((text, i) => make("td", {class: head[i][1] ? "number" : null}, `${text}`))))));
}

function fixedParts() {
  document.title = `${facts.title}: ${facts.question}`;
  at("name").textContent = facts.title;
  at("progress").textContent = `· ${Object.entries(facts.progress).map(([word, n]) => `${n} ${word}`).join(", ")} of ${facts.sweep.runs} runs for ${facts.sweep.cells} cells`;
  at("question").textContent = facts.question;
  at("answer").textContent = facts.answer;
  at("source").textContent = facts.source;
  at("notes").replaceChildren(...facts.notes.map(note => make("li", {}, note)));
  at("made").textContent = `made ${facts.made} by bdg ${facts.version}`;
  at("metric").append(...facts.metrics.map(m => make("option", {value: m, selected: m === chosen.metric}, upper(m))));
  at("part").append(...facts.parts.map(p => make("option", {value: p, selected: p === chosen.part}, partName(p))));
  const runs = sum("runs"), asked = sum("asked"), spent = sum("hours"), saved = sum("saved");
  function sum(name) { return facts.cost.reduce((total, row) => total + row[name], 0); }
  at("saved").textContent = `${hours(spent) || "0"} hours of a process or GPU so far. Cells ask for ${asked} stages, which are ${runs} runs: sharing saved ${hours(saved) || "0"} hours` + (spent + saved ? `, ${Math.round(100 * saved / (spent + saved))} %.` : ".");
  simpleTable(at("hours"), [["stage"], ["asked", 1], ["runs", 1], ["hours", 1], ["saved", 1]], facts.cost.map(r => [r.stage, r.asked, r.runs, hours(r.hours), hours(r.saved)]));
  at("methods").replaceChildren(make("dt", {}, "numbers"), make("dd", {}, facts.source), ...Object.entries(facts.methods).flatMap(([name, how]) => [make("dt", {}, name), make("dd", {}, how)]));
  simpleTable(at("environment"), [["runs", 1], ["commit"], ["versions"], ["data"], ["hosts"]], facts.environment.map(e => [e.runs, e.commit, `Python ${e.python}, ${e.versions}`, e.data, e.hosts]));
  const {columns: names, rows} = facts.pictures;
  at("pictures").hidden = !rows.length;
  const [head, body] = [at("pictures").querySelector("thead"), at("pictures").querySelector("tbody")];
  head.replaceChildren(make("tr", {}, ...names.map(name => make("th", {scope: "col"}, name))));
  body.replaceChildren(...rows.map(row => make("tr", {}, ...names.map((name, i) => make("td", {},
    images[row.first + i] ? make("img", {src: images[row.first + i], alt: `${row.title}, ${name}`, loading: "lazy"}) : "no image",
    make("p", {}, [i ? "" : row.title, fixed(row.values[i], facts.metric)].filter(Boolean).join(": ")))))));
  const own = facts.curves.names, wished = ["loss/total", "val/mean/psnr"].find(name => own.includes(name)) ?? own[0];
  at("curve").append(...[...own].sort().map(name => make("option", {value: name, selected: name === wished}, name)));
  at("stage").append(make("option", {value: ""}, "all"), ...facts.stages.map((s, i) => make("option", {value: s, selected: i === facts.stages.length - 1}, s)));
  at("curves").hidden = !own.length;
}

function show() {
  table();
  for (const {panel, head, charts} of places) {
    head.textContent = panelTitle(panel);
    for (const [target, what] of charts) chart(target, what);
  }
}

fixedParts();
show();
if (facts.curves.names.length) chart(at("lines"), lines);
chart(at("graph"), graph);
at("filter").value = chosen.filter;
for (const name of ["metric", "part", "interval"])
  at(name).addEventListener("change", event => { chosen[name] = event.target.value; remember({[name]: event.target.value}); show(); });
at("filter").addEventListener("input", event => {
  chosen.filter = event.target.value;
  chosen.shown = ROWS;
  remember({filter: chosen.filter});
  table();
  for (const {panel, charts} of places) if (panel.kind === "parallel") chart(...charts[0]);
});
at("more").addEventListener("click", () => { chosen.shown *= 5; table(); });
for (const button of document.querySelectorAll("[data-rows]")) button.addEventListener("click", () => {
  chosen.rows = button.dataset.rows;
  for (const other of document.querySelectorAll("[data-rows]")) other.setAttribute("aria-pressed", other === button);
  table();
});
for (const name of ["curve", "stage", "smooth", "log"]) at(name).addEventListener("input", () => chart(at("lines"), lines));
dark.addEventListener("change", () => { show(); chart(at("lines"), lines); chart(at("graph"), graph); });
if (facts.reload_s) {
  at("follow-label").hidden = false;
  setInterval(() => { if (at("follow").checked && !document.hidden) location.reload(); }, 1000 * facts.reload_s);
}

const ROWS = 50, LARGEST = 32, FLICKER_MS = 600;
const runs = facts.runs.map(run => run.name);
const columns = [{name: "degraded", at: 0}, ...runs.map((name, i) => ({name, at: 2 + 2 * i, run: i})), {name: "clean", at: 1}];
const sorting = {by: -1, down: false};
const chosen = {
  metric: fragment().get("metric") ?? facts.metric, degradation: fragment().get("degradation") ?? "", severity: fragment().get("level") ?? "",
  mode: fragment().get("mode") ?? "side", shown: ROWS, left: 1, right: Math.min(2, columns.length - 1),
};
const view = {scale: 1, x: 0, y: 0, cut: 50};
const nameOf = row => `${row.degradation}/${row.key}` + (row.severity === null ? "" : `/${row.severity}`);
let selected = null, timer = null, held = false, second = false;

const value = (row, i) => row.values[i][chosen.metric];
const change = row => Math.min(...runs.slice(1).map((_, i) => value(row, i + 1) - value(row, 0)));
const kept = () => facts.rows.filter(row => (!chosen.degradation || row.degradation === chosen.degradation) && (!chosen.severity || `${row.severity}` === chosen.severity));

// --- the table ---

function tableColumns() {
  return [
    {title: "image", value: row => row.key, text: row => row.pictures ? row.key : `${row.key} (not shown)`},
    {title: "degradation", value: row => row.degradation, text: row => row.degradation},
    {title: "level", number: true, value: row => row.severity, text: row => row.severity === null ? "" : `${row.severity}`},
    {title: "degraded", number: true, value: row => row.input[chosen.metric], text: row => fixed(row.input[chosen.metric], chosen.metric)},
    ...runs.map((name, i) => ({title: name, number: true, value: row => value(row, i), text: row => fixed(value(row, i), chosen.metric)})),
    ...(runs.length === 2 ? [["difference"]] : [["largest regression"]]).map(([title]) => ({title, number: true, value: change, text: row => difference(change(row))})),
  ];
}
const difference = d => make("span", {class: d > 0 ? "better" : d < 0 ? "worse" : null}, signed(d, chosen.metric));
const inOrder = () => {
  const own = tableColumns();
  if (sorting.by < 0) sorting.by = own.length - 1;
  return sorted(kept(), own, sorting);
};

function table() {
  const own = tableColumns(), rows = inOrder();
  sortable(at("table").tHead, own, sorting, table);
  at("table").tBodies[0].replaceChildren(...rows.slice(0, chosen.shown).map(row => make("tr",
    {"aria-selected": row === selected ? "true" : "false", onclick: () => { select(row); at("viewer").scrollIntoView({block: "nearest"}); }},
    ...own.map((column, i) => make("td", {class: column.number ? "number" : null}, i ? column.text(row) : make("button", {type: "button", class: "link"}, column.text(row)))))));
  at("count").textContent = `${rows.length} of ${facts.rows.length} images, ${rows.filter(row => row.pictures).length} shown`;
  at("more").hidden = rows.length <= chosen.shown;
}

// --- the viewer ---

function select(row) {
  selected = row;
  if (row) remember({image: nameOf(row)});
  for (const line of at("table").tBodies[0].rows) line.setAttribute("aria-selected", "false");
  const line = at("table").tBodies[0].rows[inOrder().indexOf(row)];
  line?.setAttribute("aria-selected", "true");
  show();
}

function step(by) {
  const rows = inOrder().filter(row => row.pictures), now = rows.indexOf(selected);
  if (rows.length) select(rows[(now + by + rows.length) % rows.length]);
}

function picture(column, error = false) {
  const shown = error && column.run !== undefined, source = images[selected.pictures.first + column.at + shown];
  return source ? make("img", {src: source, alt: column.name + (shown ? ", error" : ""), draggable: "false"}) : make("span", {class: "missing"}, "no image");
}
function caption(column) {
  const values = make("span", {class: "values"});
  if (column.at === 0) values.append(fixed(selected.input[chosen.metric], chosen.metric));
  if (column.run !== undefined) {
    values.append(`${fixed(value(selected, column.run), chosen.metric)} `);
    if (column.run) values.append(difference(value(selected, column.run) - value(selected, 0)));
  }
  return make("p", {title: column.name}, make("b", {}, column.name), values);
}

function show() {
  clearInterval(timer);
  const panes = at("panes");
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === chosen.mode);
  for (const label of document.querySelectorAll(".pair")) label.hidden = !["slider", "flicker"].includes(chosen.mode);
  at("legend").textContent = chosen.mode === "error" ? "mean absolute error over channels: black 0, red to white 64 of 255 levels and more" : selected?.pictures?.cut ? "the window of a larger image in which the runs differ most" : "";
  at("image").textContent = selected ? `${selected.degradation}${selected.severity === null ? "" : ` ${selected.severity}`} · ${selected.key}` : "no image";
  if (!selected?.pictures) {
    panes.replaceChildren(make("p", {class: "quiet"}, selected ? "The pictures of this image are not in the page." : "No image fits."));
    return;
  }
  const [left, right] = [columns[chosen.left], columns[chosen.right]], size = selected.pictures.size;
  let shown;
  if (chosen.mode === "slider") {
    shown = [make("div", {class: "pane"}, caption(left), caption(right), slider(size, picture(left), picture(right), cut))];
  } else if (chosen.mode === "flicker") {
    const over = picture(right), text = make("div");
    const turn = () => { over.hidden = !second; text.replaceChildren(caption(second ? right : left)); };
    shown = [make("div", {class: "pane"}, text, frame(size, picture(left), over))];
    timer = setInterval(() => { if (!held) { second = !second; turn(); } }, FLICKER_MS);
    turn();
  } else
    shown = columns.map(column => make("div", {class: "pane"}, caption(column), frame(size, picture(column, chosen.mode === "error"))));
  const [width, height] = size, many = shown.length;
  panes.style.setProperty("--columns", many > 6 ? Math.ceil(many / 2) : many);
  panes.style.setProperty("--narrow", many > 1 ? 2 : 1);
  for (const pane of shown) if (many === 1) pane.style.maxWidth = `${(74 * width / height).toFixed(1)}vh`;
  panes.replaceChildren(...shown);
  place();
}

/** Every frame shows the same part: x, y are shares of the frame's width and height. */
function place() {
  view.scale = Math.min(Math.max(view.scale, 1), LARGEST);
  view.x = Math.min(Math.max(view.x, 1 - view.scale), 0);
  view.y = Math.min(Math.max(view.y, 1 - view.scale), 0);
  at("panes").classList.toggle("sharp", view.scale > 2);
  for (const one of at("panes").querySelectorAll(".frame")) {
    for (const img of one.querySelectorAll("img")) {
      img.style.transform = `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.scale})`;
      // what is cut is cut in the frame, not in the picture that moves below it
      if (img.classList.contains("right")) img.style.setProperty("--cut", `${Math.max(0, (view.cut / 100 - view.x) / view.scale * 100)}%`);
    }
    const handle = one.querySelector(".handle");
    if (handle) put(handle, view.cut);
  }
  at("scale").textContent = `${Math.round(100 * view.scale)} %`;
}
function zoom(factor, x = .5, y = .5) {
  const before = view.scale;
  view.scale = Math.min(Math.max(before * factor, 1), LARGEST);
  const real = view.scale / before;
  view.x = x - (x - view.x) * real;
  view.y = y - (y - view.y) * real;
  place();
}
function move(x, y) { view.x += x; view.y += y; place(); }
function fit() { Object.assign(view, {scale: 1, x: 0, y: 0}); place(); }
function cut(to) { view.cut = Math.min(Math.max(to, 0), 100); place(); }

const fingers = new Map();
at("panes").addEventListener("pointerdown", event => {
  const one = event.target.closest(".frame");
  if (!one || event.target.closest(".handle")) return;
  at("panes").setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, {x: event.clientX, y: event.clientY, box: one.getBoundingClientRect()});
});
at("panes").addEventListener("pointermove", event => {
  const finger = fingers.get(event.pointerId);
  if (!finger) return;
  const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) { // two fingers: what is between them stays there
    const gap = p => Math.hypot(p.x - other.x, p.y - other.y), now = {x: event.clientX, y: event.clientY};
    const middle = {clientX: (now.x + other.x) / 2, clientY: (now.y + other.y) / 2};
    zoom(gap(now) / Math.max(gap(finger), 1), ...inFrame(middle, finger.box));
  } else move((event.clientX - finger.x) / finger.box.width, (event.clientY - finger.y) / finger.box.height);
  Object.assign(finger, {x: event.clientX, y: event.clientY});
});
for (const name of ["pointerup", "pointercancel"]) at("panes").addEventListener(name, event => fingers.delete(event.pointerId));
at("panes").addEventListener("wheel", event => {
  const one = event.target.closest(".frame");
  if (!one) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 300), ...inFrame(event, one.getBoundingClientRect()));
}, {passive: false});

const MODES = ["side", "slider", "flicker", "error"];
function mode(name) { chosen.mode = MODES.includes(name) ? name : "side"; remember({mode: chosen.mode}); show(); }
const keys = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  1: () => mode("side"), 2: () => mode("slider"), 3: () => mode("flicker"), 4: () => mode("error"), ",": () => cut(view.cut - 2), ".": () => cut(view.cut + 2),
};
const pans = {ArrowLeft: [.1, 0], ArrowRight: [-.1, 0], ArrowUp: [0, .1], ArrowDown: [0, -.1]};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
  if (event.key === " " && chosen.mode === "flicker" && !event.target.closest("button")) held = !held;
  else if (event.shiftKey && pans[event.key]) move(...pans[event.key]);
  else if (keys[event.key] && !(event.shiftKey && event.key.startsWith("Arrow"))) keys[event.key]();
  else return;
  event.preventDefault();
});

function options(target, values, now, text = v => v || "all") {
  target.replaceChildren(...values.map(v => make("option", {value: v, selected: `${v}` === `${now}`}, text(v))));
}
at("title").textContent = document.title = facts.title;
at("source").textContent = facts.source;
at("sentences").replaceChildren(...facts.sentences.map(text => make("li", {}, text)));
at("notes").replaceChildren(...facts.notes.map(text => make("li", {}, text)));
at("methods").textContent = `Differences: ${facts.methods}. Runs: ${facts.runs.map(run => `${run.name}: ${run.weights}`).join("; ")}.`;
at("made").textContent = `made ${facts.made} by bdg ${facts.version}`;
options(at("degradation"), ["", ...new Set(facts.rows.map(row => row.degradation))], chosen.degradation);
options(at("severity"), ["", ...[...new Set(facts.rows.map(row => row.severity))].filter(v => v !== null).sort((a, b) => a - b)], chosen.severity);
options(at("metric"), facts.metrics, chosen.metric, upper);
for (const side of ["left", "right"]) {
  options(at(side), columns.map((_, i) => i), chosen[side], i => columns[i].name);
  at(side).addEventListener("change", event => { chosen[side] = +event.target.value; show(); });
}
for (const [id, name] of [["degradation", "degradation"], ["severity", "level"], ["metric", "metric"]]) at(id).addEventListener("change", event => {
  chosen[id] = event.target.value;
  remember({[name]: event.target.value});
  table();
  if (!kept().includes(selected)) select(inOrder().find(row => row.pictures) ?? inOrder()[0] ?? null);
  else show();
});
for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => mode(button.dataset.mode));
for (const [id, act] of [["in", () => zoom(1.5)], ["out", () => zoom(1 / 1.5)], ["fit", fit], ["before", () => step(-1)], ["after", () => step(1)]]) at(id).addEventListener("click", act);
at("more").addEventListener("click", () => { chosen.shown *= 4; table(); });
function begin() {
  const named = facts.rows.find(row => nameOf(row) === fragment().get("image"));
  mode(fragment().get("mode") ?? chosen.mode);
  table();
  select(named ?? inOrder().find(row => row.pictures) ?? inOrder()[0] ?? null);
}
addEventListener("hashchange", begin);
begin();

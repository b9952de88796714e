const picture = (i, alt) => make("img", {src: images[i], alt, draggable: "false"});

function pane(size, left, right, inside, kind) {
  // a frame is at most 74 % of the window high: narrower than its column, it keeps its shape
  const width = `max-width: ${(74 * size[0] / size[1]).toFixed(1)}vh`;
  return make("div", {class: `pane ${kind}`, style: width}, make("p", {}, make("span", {}, left), make("span", {}, right)), inside);
}
function pair(size, first, kind, where = "") {
  const made = slider(size, picture(first, "degraded"), picture(first + 1, "restored"), cut);
  function cut(percent) {
    put(made.querySelector(".handle"), percent);
    made.style.setProperty("--cut", `${percent}%`);
  }
  return pane(size, `degraded${where}`, "restored", made, kind);
}
function row({name, first, size, crop, notes}) {
  return make("section", {}, make("h2", {}, name), ...notes.map(text => make("p", {class: "quiet"}, text)), make("div", {class: "panes"},
    pair(size, first, ""), pair(crop.size, first + 2, "sharp", `, ${crop.where}`),
    pane(size, "difference", "", frame(size, picture(first + 4, "difference")), "")));
}

at("title").textContent = document.title = facts.title;
at("source").textContent = facts.source;
at("notes").replaceChildren(...facts.notes.map(text => make("li", {}, text)));
at("rows").replaceChildren(...facts.rows.map(row));
at("made").textContent = `made ${facts.made} by bdg ${facts.version}`;

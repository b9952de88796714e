let chosen = null, asked = 0;

for (const [id, value] of [["steps", facts.steps], ["strength", facts.strength]]) {
  if (id === "steps") at(id).max = facts.max_steps;
  at(id).value = value;
  const show = () => { at(`${id}_shown`).textContent = at(id).value; };
  at(id).addEventListener("input", show);
  show();
}
at("title").textContent = facts.title;
at("source").textContent = facts.weights;
at("limits").textContent = `Up to ${facts.max_mb} MB and ${facts.max_megapixels} megapixels, ${facts.per_minute} pictures a minute. Pictures are not kept.`;
at("made").textContent = `bdg ${facts.version}`;
at("examples").append(...facts.examples.map(name => make("button", {type: "button", onclick: () => example(name)}, name.replaceAll("_", " "))));

async function example(name) {
  const answer = await fetch(`examples/${name}`);
  if (answer.ok) take(await answer.blob(), `a photograph with ${name.replaceAll("_", " ")}`);
}

function take(file, name) {
  chosen = {file, name};
  at("again").disabled = false;
  restore();
}

async function restore() {
  const own = ++asked, {file, name} = chosen;
  at("error").textContent = "";
  at("status").textContent = `restoring ${name} …`;
  let said;
  try {
    const answer = await fetch(`restore?steps=${at("steps").value}&strength=${at("strength").value}`, {method: "POST", body: file, headers: {"Content-Type": "application/octet-stream"}});
    said = await answer.json();
  } catch {
    said = {error: "the server does not answer: is it still running?"};
  }
  if (own !== asked) return; // another picture was chosen meanwhile
  at("status").textContent = "";
  if (said.error) at("error").textContent = said.error;
  else show(said, name);
}

function show(said, name) {
  const picture = (src, alt) => make("img", {src, alt, draggable: "false"});
  const made = slider(said.size, picture(said.degraded, "degraded"), picture(said.restored, "restored"), cut);
  function cut(percent) {
    put(made.querySelector(".handle"), percent);
    made.style.setProperty("--cut", `${percent}%`);
  }
  // a frame is at most 74 % of the window high: narrower than the page, it keeps its shape
  for (const one of [made, document.querySelector(".ends")]) one.style.maxWidth = `${(74 * said.size[0] / said.size[1]).toFixed(1)}vh`;
  at("pane").replaceChildren(made);
  at("name").textContent = name;
  at("save").href = said.restored;
  at("how").textContent = `${said.size.join(" × ")} pixels, ${said.seconds} s; ` + Object.entries(said.settings).map(([key, value]) => `${key.replaceAll("_", " ")} ${value}`).join(", ");
  at("shown").hidden = false;
  think(said.explanation);
  at("status").textContent = `${name} is restored`;
  at("shown").scrollIntoView({block: "nearest"});
}

function think(explanation) {
  at("thoughts").hidden = !explanation;
  if (!explanation) return;
  at("unusual").textContent = explanation.unusual ? "Unlike all pictures that the explainer knows: the percentages may mean nothing." : "";
  at("mix").tBodies[0].replaceChildren(...Object.entries(explanation.probabilities).map(([name, share]) => {
    const bar = make("div");
    bar.style.width = `${100 * share}%`;
    return make("tr", {}, make("td", {}, name.replaceAll("_", " ")), make("td", {class: "share"}, bar), make("td", {class: "number"}, `${(100 * share).toFixed(0)} %`));
  }));
  at("nearest").tBodies[0].replaceChildren(...explanation.nearest.map(one => make("tr", {}, make("td", {}, one.name),
    make("td", {}, one.degradation.replaceAll("_", " ")), make("td", {class: "number"}, one.severity === null ? "" : `${one.severity}`), make("td", {class: "number"}, one.distance.toFixed(2)))));
  at("seen_by").textContent = `Seen by ${explanation.seen_by}; usual up to a distance of ${explanation.limit.toFixed(2)}.`;
}

at("file").addEventListener("change", event => { const [file] = event.target.files; if (file) take(file, file.name); });
at("again").addEventListener("click", restore);
for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, event => {
  event.preventDefault();
  at("drop").classList.toggle("over", name === "dragover");
});
document.addEventListener("drop", event => { const [file] = event.dataTransfer.files; if (file) take(file, file.name); });
document.addEventListener("paste", event => { const [file] = event.clipboardData.files; if (file) take(file, file.name || "the pasted picture"); });

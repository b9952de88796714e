/** A frame of the shape of its pictures, which lie over one another. */
function frame([width, height], ...inside) {
  return make("div", {class: "frame", style: `aspect-ratio: ${width} / ${height}`}, ...inside);
}

/** Two pictures in one frame: the right one is seen right of a handle, which calls `moved` with its place in percent. */
function slider(size, left, right, moved) {
  const to = percent => moved(Math.min(Math.max(percent, 0), 100));
  const handle = make("div", {class: "handle", role: "slider", tabindex: "0", "aria-label": "border between the images",
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "50", onpointerdown: slide, onkeydown: step});
  function slide(event) {
    event.preventDefault();
    event.stopPropagation();
    const box = handle.parentElement.getBoundingClientRect();
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    handle.onpointermove = drag => to(100 * inFrame(drag, box)[0]);
    handle.onpointerup = handle.onpointercancel = () => { handle.onpointermove = null; };
  }
  function step(event) {
    const by = event.shiftKey || event.ctrlKey || event.metaKey || event.altKey ? 0 : {ArrowLeft: -2, ArrowRight: 2}[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    to(parseFloat(handle.style.getPropertyValue("--cut") || 50) + by);
  }
  right.classList.add("right");
  return frame(size, left, right, handle);
}

/** Where a handle is told to be: it shows it, and says it to who cannot see. */
function put(handle, percent) {
  handle.style.setProperty("--cut", `${percent}%`);
  handle.setAttribute("aria-valuenow", Math.round(percent));
}

/** The place of a pointer as shares of a frame's width and height. */
const inFrame = (event, box) => [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];

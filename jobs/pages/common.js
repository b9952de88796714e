"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const images = JSON.parse(document.getElementById("images").textContent);
const at = id => document.getElementById(id);

/** An element with attributes and children; texts stay texts, whatever is in them. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...children);
  return made;
}

const digits = metric => metric.startsWith("psnr") || metric.startsWith("gain") ? 2 : 4;
const fixed = (value, metric) => value === null || value === undefined ? "" : value.toFixed(digits(metric));
const signed = (value, metric) => (value > 0 ? "+" : value < 0 ? "−" : "") + fixed(Math.abs(value), metric);
const upper = metric => metric.toUpperCase();

/** Values of different kinds in one order: numbers before texts, nothing last. */
function order(a, b) {
  const none = value => value === null || value === undefined || value === "";
  if (none(a) || none(b)) return none(a) - none(b);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, {numeric: true});
}

/** The part of the address after #, as a map; what a page shows can be linked to. */
const fragment = () => new URLSearchParams(location.hash.slice(1));
function remember(values) {
  const kept = fragment();
  for (const [name, value] of Object.entries(values)) value === null || value === "" ? kept.delete(name) : kept.set(name, value);
  try { history.replaceState(null, "", "#" + kept); } catch { /* a page inside of another may not */ }
}

/** A head that sorts: columns are {title, value, number}; state is {by, down}. */
function sortable(head, columns, state, changed) {
  head.replaceChildren(make("tr", {}, ...columns.map((column, i) => make("th",
    {scope: "col", class: column.number ? "number" : null, "aria-sort": state.by !== i ? null : state.down ? "descending" : "ascending"},
    make("button", {type: "button", onclick: () => {
      state.down = state.by === i ? !state.down : !!column.number;
      state.by = i;
      changed();
      head.querySelectorAll("button")[i].focus();
    }}, column.title)))));
}
function sorted(rows, columns, state) {
  const column = columns[state.by];
  if (!column) return rows;
  const compare = (a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    const missing = v => v === null || v === undefined || v === "";
    return missing(x) || missing(y) ? order(x, y) : state.down ? order(y, x) : order(x, y);
  };
  return [...rows].sort(compare);
}

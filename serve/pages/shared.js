"use strict";
const $ = (id) => document.getElementById(id);
let apiKey = "";

/** An element with text children only ever set as text, so that no name can become markup. */
function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "width") made.style.width = value;
    else if (name === "grow") made.style.flexGrow = value;
    else if (name === "class") made.className = value;
    else if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return number(value / 1e6, 1) + "M";
  if (size >= 1e4) return number(value / 1e3, 1) + "k";
  return number(value, size === 0 || size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2);
}

const percent = (value, digits = 0) =>
  value === null || value === undefined ? "–" : number(value * 100, digits) + " %";

function ms(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1000 ? number(value / 1000, 2) + " s" : short(value) + " ms";
}

function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  for (const [name, size] of units) if (seconds >= size) return Math.floor(seconds / size) + " " + name;
  return Math.floor(seconds) + " s";
}

/** Asks the server with the key; throws an Error with the server's own words. */
async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (apiKey) headers["X-API-Key"] = apiKey;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer.json();
  let message = "status " + answer.status;
  try {
    message = (await answer.json()).error || message;
  } catch { /* not JSON: the status says enough */ }
  throw Object.assign(new Error(message), { status: answer.status });
}

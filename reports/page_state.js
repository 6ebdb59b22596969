"use strict";
// What the reader has chosen. It stands in the URL's hash behind the section, so that a link shows the same: "#pair-2&q=tfd".
document.documentElement.classList.add("js");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (id) => document.getElementById(id);
const data = JSON.parse(one("data").textContent);
const PRICES = ["own", "whole", "shared"];
const MOST_STUDENTS = 1000;
const START = {
  q: "", // names of methods, or parts of them
  hide: "", // kinds of methods
  pair: "1",
  x: Object.keys(data.quantities)[0] || "",
  price: "whole",
  share: String(data.shared_by),
  sort: "", // "table:2d;other:0a": by which columns, and in which direction
};
const state = { ...START };
let section = "";

const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
};

// A hash that somebody edited may hold anything: what is not allowed becomes the start.
const ALLOWED = {
  pair: (value) => /^\d+$/.test(value) && value >= 1 && value <= data.pairs.length,
  x: (value) => Object.hasOwn(data.quantities, value),
  price: (value) => PRICES.includes(value),
  share: (value) => /^\d+$/.test(value) && value >= 1 && value <= MOST_STUDENTS,
};

function readHash() {
  section = "";
  Object.assign(state, START);
  for (const part of location.hash.slice(1).split("&")) {
    const [key, ...rest] = part.split("=");
    const value = decoded(rest.join("="));
    if (!rest.length) section = decoded(key) || section;
    else if (Object.hasOwn(START, key) && (ALLOWED[key]?.(value) ?? true)) state[key] = value;
  }
}

function hash() {
  const chosen = Object.keys(START).filter((key) => state[key] !== START[key]);
  const parts = chosen.map((key) => `${key}=${encodeURIComponent(state[key])}`);
  return "#" + [...(section ? [encodeURIComponent(section)] : []), ...parts].join("&");
}

let writing = 0;
function writeHash() {
  clearTimeout(writing); // a browser refuses a hundred a second
  writing = setTimeout(() => history.replaceState(null, "", hash()), 150);
}

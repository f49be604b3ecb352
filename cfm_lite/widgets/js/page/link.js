// A link that holds the state of an explorer. It is built on the site's public address, and never on the page's own,
// which in a notebook may carry a token. It holds numbers and the controls' own words, nothing else.

import { EVERY, MOST, Mixture } from "../engine/mixture.js";
import { Problem } from "../engine/problem.js";

/** @typedef {import("./explorer.js").Face} Face */
/** @typedef {import("./explorer.js").Values} Values */

export const ADDRESS = typeof SITE === "undefined" ? "" : SITE;
const LONGEST = 2000; // characters
const MARK = "#explorer=";
const NUMBER = /^-?\d{1,7}(\.\d{1,6})?$/;

/** @param {number} value @param {number} [digits] */
const short = (value, digits = 4) => String(Number(value.toFixed(digits)));

/** @param {string} name @param {string} text @param {number} low @param {number} high */
function bounded(name, text, low, high) {
  if (!NUMBER.test(text)) throw new Problem(`${name} is no number.`);
  const value = Number(text);
  if (value < low || value > high) throw new Problem(`${name} is ${value}. It must lie between ${low} and ${high}.`);
  return value;
}

/** Components one after the other: weight, mean, std or covariance, label. @param {import("../engine/mixture.js").Described} mixture */
function mixtureText({ weights, means, stds, covariances, labels }) {
  const top = Math.max(...weights);
  return means.map(([a, b], k) => {
    const spread = stds ? [stds[k]] : [covariances?.[k][0][0] ?? 1, covariances?.[k][0][1] ?? 0, covariances?.[k][1][1] ?? 1];
    return [weights[k] / top, a, b, ...spread, labels?.[k] ?? k].map((value) => short(value, 2)).join(",");
  }).join("_");
}

/** @param {string} text @returns {import("../engine/mixture.js").Described} */
function mixtureOf(text) {
  const rows = text.split("_").map((part) => part.split(",").map((one) => bounded("a number of the mixture", one, -1000, 1000)));
  const wide = rows[0].length;
  if (rows.length > MOST || (wide !== 5 && wide !== 7) || rows.some((row) => row.length !== wide)) throw new Problem("the mixture is not whole.");
  const of = (/** @type {number} */ place) => rows.map((row) => row[place]);
  const labels = of(wide - 1);
  if (labels.some((label) => label < 0 || !Number.isInteger(label))) throw new Problem("a class is no whole number.");
  const means = rows.map((row) => [row[1], row[2]]);
  const spread = wide === 5 ? { stds: of(3) } : { covariances: rows.map((row) => [[row[3], row[4]], [row[4], row[5]]]) };
  const mixture = { weights: of(0), means, labels, ...spread };
  new Mixture(mixture).at(0.5, EVERY); // says what is wrong with it
  return mixture;
}

/** @type {Record<import("./controls.js").Control["kind"], {text: (value: any, control: import("./controls.js").Control) => string, value: (text: string, control: import("./controls.js").Control) => any}>} */
const KINDS = {
  slider: {
    text: (value, { low = 0, high = 1 }) => short(Math.min(Math.max(value, low), high)), // what the slider shows
    value: (text, { label, low = 0, high = 1, step }) => {
      const found = bounded(label, text, low, high);
      if (step === 1 && !Number.isInteger(found)) throw new Problem(`${label} is ${found}. It must be a whole number.`);
      return found;
    },
  },
  interval: {
    text: (value) => value.map((/** @type {number} */ end) => short(end)).join(","),
    value(text, { label, low = 0, high = 1 }) {
      const ends = text.split(",").map((one) => bounded(label, one, low, high));
      if (ends.length !== 2 || ends[0] > ends[1]) throw new Problem(`${label} is no interval.`);
      return ends;
    },
  },
  check: { text: (value) => (value ? "1" : "0"), value: (text, { label }) => Boolean(bounded(label, text, 0, 1)) },
  choice: {
    text: String,
    value(text, { label, options = [] }) {
      const found = options.find(([, value]) => String(value) === text);
      if (!found) throw new Problem(`${label} has no such choice.`);
      return found[1];
    },
  },
};

/** The link of a state; without a public address only what stands behind one. @param {Face} face @param {any} data @param {Values} values */
export function linkTo(face, data, values) {
  const mixture = values.mixture ?? data.mixture;
  const parts = face.controls(data).map((control) => `${control.name}=${KINDS[control.kind].text(values[control.name], control)}`);
  if (mixture) parts.push(`mixture=${mixtureText(mixture)}`);
  const link = `${ADDRESS && `${ADDRESS}/explorers.html`}${MARK}${[face.name, ...parts].join("&")}`;
  if (link.length > LONGEST) throw new Problem("This state is too long for a link. Remove some components.");
  return link;
}

/** The explorer that a page's hash asks for, or "". @param {string} hash */
export const asked = (hash) => (hash.startsWith(MARK) ? hash.slice(MARK.length).split("&")[0].slice(0, 40) : "");

/** The data and the values that a link holds; a Problem says what is broken. @param {Face} face @param {any} data @param {string} hash @returns {{data: any, values: Values}} */
export function read(face, data, hash) {
  try {
    if (hash.length > LONGEST) throw new Problem("it is too long.");
    /** @type {Record<string, string>} */
    const parts = Object.fromEntries(hash.slice(MARK.length).split("&").slice(1).map((part) => part.split("=", 2)));
    const mixture = parts.mixture === undefined ? data.mixture : mixtureOf(parts.mixture);
    const own = mixture ? { ...data, mixture } : data;
    const values = face.values(own);
    for (const control of face.controls(own)) {
      const text = parts[control.name];
      if (text !== undefined) values[control.name] = KINDS[control.kind].value(text, control);
    }
    return { data: own, values };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    throw new Problem(`The link is broken: ${error.message} The explorer is at its start.`);
  }
}

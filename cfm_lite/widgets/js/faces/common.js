// What the faces of the plane share: their mixture, its classes, densities, and noise that is the same everywhere.

import { contour, gridPoints, massLevels, squareLimits } from "../drawing/plane.js";
import { EVERY, Mixture } from "../engine/mixture.js";
import { LINEAR, PATHS } from "../engine/paths.js";
import { Random } from "../engine/random.js";

/** @typedef {import("../drawing/plane.js").Limits} Limits */
/** @typedef {import("../drawing/plane.js").Plane} Plane */
/** @typedef {import("../page/controls.js").Control} Control */

/** The two-class toy: each class sits on both sides, so where to go depends on where one is. @type {import("../engine/mixture.js").Described} */
export const TWO_CLASSES = {
  weights: [0.25, 0.25, 0.25, 0.25],
  means: [[-1.5, 1.8], [2.3, 0.9], [2.3, -0.9], [-1.5, -1.8]],
  stds: [0.35, 0.35, 0.35, 0.35].map(Math.fround),
  labels: [0, 0, 1, 1],
};
export const CELLS = 64; // of a density map

/** @param {any} data */
export const mixtureOf = (data) => new Mixture(data.mixture ?? TWO_CLASSES);

/** @param {Mixture} mixture @returns {Limits} */
export function limitsOf(mixture) {
  return squareLimits(mixture.sample(2000, new Random(0)).x);
}

/** @param {Mixture} mixture @param {boolean} [every] @returns {Control} */
export function classChoice(mixture, every = true) {
  /** @type {[string, number][]} */
  const options = mixture.classes.map((label) => [`class ${label}`, label]);
  if (every) options.unshift(["all classes", EVERY]);
  return { name: "label", kind: "choice", label: "class y", options };
}

/** @type {Control} */
export const TIME = { name: "t", kind: "slider", label: "time t", low: 0, high: 1, hint: "0 is noise, 1 is data" };
/** @type {Control} */
export const PATH = {
  name: "path", kind: "choice", label: "path", hint: "how data and noise are mixed",
  options: [["linear", "linear"], ["cosine", "cosine"], ["variance preserving", "vp"]],
};
/** @param {number} [high] @returns {Control} */
export const weightSlider = (high = 0.6) => ({
  name: "weight", kind: "slider", label: "weight λ", low: 0, high, hint: "how strongly the field repels; 0 is FM, and at λK = 1 the optimum is lost",
});

/** The latest time that is shown: VP's velocity is infinite at 1, and so is the score of a point. @param {string} path */
export const latest = (path) => (path === "vp" ? 1 - 1e-5 : 1);
/** @param {string} name */
export const pathOf = (name) => PATHS[name] ?? LINEAR;

/** `n` draws of noise, the same at every call. @param {number} n */
export const noise = (n) => new Random(7).normals(2 * n);

/**
 * The density of x_t on a grid: relative to its highest, and from where on 99.5 % lie.
 * @param {Mixture} mixture @param {Float64Array} cells @param {number} t @param {number} label @param {import("../engine/paths.js").Path} path
 */
export function densityMap(mixture, cells, t, label, path) {
  const log = mixture.logProb(cells, t, label, path);
  const top = log.reduce((most, value) => Math.max(most, value), -Infinity);
  return { shade: log.map((value) => Math.exp(value - top)), level: massLevels(log, [0.995])[0] };
}

/** Contours that hold 50 % and 95 % of the data of a class, kept by class. @param {Mixture} mixture @param {Limits} limits @param {number} [n] */
export function rings(mixture, limits, n = 121) {
  const cells = gridPoints(limits, n);
  /** @type {Map<number, Float64Array[]>} */
  const kept = new Map();
  return (/** @type {number} */ label) => {
    let found = kept.get(label);
    if (!found) {
      const log = mixture.logProb(cells, 0.999, label);
      kept.set(label, (found = massLevels(log, [0.5, 0.95]).map((level) => contour(log, n, limits, level))));
    }
    return found;
  };
}

/** A value that is computed again only where what it depends on has changed. @template T @param {(...on: any[]) => T} compute @returns {(...on: any[]) => T} */
export function remembered(compute) {
  /** @type {any[]} */
  let last = [];
  /** @type {T} */
  let value;
  return (...on) => {
    if (on.length !== last.length || on.some((one, i) => one !== last[i])) {
      value = compute(...on);
      last = on;
    }
    return value;
  };
}

/** @param {number} share */
export const percent = (share) => `${Math.round(100 * share)} %`;

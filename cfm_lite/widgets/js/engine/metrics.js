// How particles went: straightness of their paths, and drift off the data.

import { EVERY } from "./mixture.js";
import { LINEAR } from "./paths.js";
import { Random } from "./random.js";

/** @typedef {import("./mixture.js").Mixture} Mixture */
/** @typedef {import("./paths.js").Path} Path */

/** Chord over length, averaged over the particles: 1 where every path is straight. @param {Float64Array[]} states */
export function straightness(states) {
  const [first, last, n] = [states[0], states[states.length - 1], states[0].length / 2];
  let total = 0;
  for (let i = 0; i < n; i++) {
    let length = 0;
    for (let s = 1; s < states.length; s++) {
      length += Math.hypot(states[s][2 * i] - states[s - 1][2 * i], states[s][2 * i + 1] - states[s - 1][2 * i + 1]);
    }
    const chord = Math.hypot(last[2 * i] - first[2 * i], last[2 * i + 1] - first[2 * i + 1]);
    total += length > 0 ? Math.min(chord / length, 1) : 1;
  }
  return total / n;
}

/** The mean of -log p_t over points. @param {Mixture} mixture @param {Float64Array} x @param {number} t @param {number} [label] @param {Path} [path] */
export function surprise(mixture, x, t, label = EVERY, path = LINEAR) {
  const log = mixture.logProb(x, t, label, path);
  return -log.reduce((sum, value) => sum + value, 0) / log.length;
}

/**
 * How improbable states at times `ts` are, in nats above draws of the exact p_t: (S,). `reference` holds the pairs (x0, x1) of the draws.
 * @param {Float64Array[]} states
 * @param {Mixture} mixture
 * @param {Float64Array} ts
 * @param {{x0: Float64Array, x1: Float64Array}} reference
 * @param {Path} [path]
 */
export function driftByTime(states, mixture, ts, { x0, x1 }, path = LINEAR) {
  return states.map((x, s) => {
    const [alpha, sigma] = [path.alpha(ts[s]), path.sigma(ts[s])];
    const exact = x1.map((data, i) => alpha * data + sigma * x0[i]);
    return surprise(mixture, x, ts[s], EVERY, path) - surprise(mixture, exact, ts[s], EVERY, path);
  });
}

/**
 * What an unsurprising state scores: E[-log p_t(x | y)] at even times, and its interpolation between them.
 * @param {Mixture} mixture
 * @param {Path} [path]
 * @param {number} [points]
 * @param {number} [n]
 * @returns {(t: number) => number}
 */
export function typical(mixture, path = LINEAR, points = 33, n = 400) {
  const random = new Random(1);
  const { x: x1, y } = mixture.sample(n, random);
  const x0 = random.normals(2 * n);
  const rows = mixture.classes.map((label) => ({ label, rows: [...y.keys()].filter((i) => y[i] === label) }));
  const table = Array.from({ length: points }, (_, p) => {
    const t = p / (points - 1);
    const [alpha, sigma] = [path.alpha(t), path.sigma(t)];
    let total = 0;
    for (const { label, rows: own } of rows) {
      const x = new Float64Array(2 * own.length);
      own.forEach((i, j) => {
        x[2 * j] = alpha * x1[2 * i] + sigma * x0[2 * i];
        x[2 * j + 1] = alpha * x1[2 * i + 1] + sigma * x0[2 * i + 1];
      });
      if (own.length) total += own.length * surprise(mixture, x, t, label, path);
    }
    return total / n;
  });
  return (t) => {
    const place = Math.min(Math.max(t, 0), 1) * (points - 1);
    const i = Math.min(Math.floor(place), points - 2);
    return table[i] + (place - i) * (table[i + 1] - table[i]);
  };
}

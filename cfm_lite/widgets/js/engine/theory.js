// The field that each objective has as its optimum on a mixture:
//   v* = (v - λK E[u_neg]) / (1 - λK),   v = E[u_t | x_t, y] of FM.

import { EVERY } from "./mixture.js";
import { LINEAR } from "./paths.js";
import { Problem, repulsion } from "./problem.js";

/** @typedef {import("./mixture.js").Mixture} Mixture */
/** @typedef {import("./paths.js").Path} Path */
/** @typedef {(x: Float64Array, t: number, out: Float64Array) => Float64Array} Field writes the velocity at points x (n, 2) into out */
/** @typedef {{weight?: number, k?: number, label?: number, path?: Path}} Settings */

export const EXACT = ["fm", "delta_fm", "vecor"];

/**
 * E[u_neg] of ΔFM: (alpha(1) - alpha(0)) E[x1], whatever the position and the class are.
 * @param {Mixture} mixture
 * @param {Path} [path]
 * @returns {[number, number]}
 */
export function inBatchMean(mixture, path = LINEAR) {
  const [gain, [a, b]] = [path.alpha(1) - path.alpha(0), mixture.mean()];
  return [gain * a, gain * b];
}

/**
 * The optimum of `method` as a field. In the plane VeCoR's only shuffle swaps the coordinates of v.
 * @param {Mixture} mixture
 * @param {string} method
 * @param {Settings} [settings]
 * @returns {Field}
 */
export function optimum(mixture, method, { weight = 0.05, k = 1, label = EVERY, path = LINEAR } = {}) {
  if (!EXACT.includes(method)) throw new Problem(`${method} has no known optimum. Choose ${EXACT.join(", ")}.`);
  const total = method === "fm" ? 0 : repulsion(weight, k);
  const [ma, mb] = inBatchMean(mixture, path);
  return (x, t, out) => {
    mixture.velocity(x, t, label, path, out);
    if (!total) return out;
    for (let i = 0; i < x.length; i += 2) {
      const [va, vb] = [out[i], out[i + 1]];
      const [na, nb] = method === "vecor" ? [vb, va] : [ma, mb];
      out[i] = (va - total * na) / (1 - total);
      out[i + 1] = (vb - total * nb) / (1 - total);
    }
    return out;
  };
}

/**
 * div of the optimum of `method`, (n,): where it is negative, particles gather.
 * @param {Mixture} mixture
 * @param {string} method
 * @param {Float64Array} x
 * @param {number} t
 * @param {Settings} [settings]
 */
export function divergence(mixture, method, x, t, { weight = 0.05, k = 1, label = EVERY, path = LINEAR } = {}) {
  const total = method === "fm" ? 0 : repulsion(weight, k);
  const jacobian = mixture.at(t, label, path).jacobian(x);
  const out = new Float64Array(x.length / 2);
  for (let i = 0; i < out.length; i++) {
    const [aa, ab, ba, bb] = jacobian.subarray(4 * i, 4 * i + 4);
    const swapped = method === "vecor" ? ab + ba : 0; // div of (v_b, v_a)
    out[i] = (aa + bb - total * swapped) / (1 - total);
  }
  return out;
}

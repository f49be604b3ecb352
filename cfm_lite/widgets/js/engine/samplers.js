// Samplers carry noise to data:  dx = v dt,  or  dx = (v + c s) dt + sqrt(2 c) dW  with noise of any strength c(t).

import { EVERYWHERE, acts } from "./guidance.js";
import { LINEAR, dataFromVelocity, scoreFromVelocity } from "./paths.js";
import { Problem } from "./problem.js";

/** @typedef {import("./theory.js").Field} Field */
/** @typedef {import("./paths.js").Path} Path */

/** @param {Float64Array} x @param {Float64Array} v @param {number} dt */
function moved(x, v, dt) {
  const out = new Float64Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = x[i] + dt * v[i];
  return out;
}
/** @param {Field} field @param {Float64Array} x @param {number} t */
const at = (field, x, t) => field(x, t, new Float64Array(x.length));

/** @typedef {(field: Field, x: Float64Array, t: number, dt: number) => Float64Array} Step */
/** Kutta's 3/8 rule is what torchdiffeq, and so the official SiT, calls rk4. @type {Record<string, Step>} */
export const STEPS = {
  euler: (field, x, t, dt) => moved(x, at(field, x, t), dt),
  midpoint: (field, x, t, dt) => moved(x, at(field, moved(x, at(field, x, t), dt / 2), t + dt / 2), dt),
  heun: (field, x, t, dt) => {
    const v = at(field, x, t);
    const w = at(field, moved(x, v, dt), t + dt);
    return moved(moved(x, v, dt / 2), w, dt / 2);
  },
  rk4: (field, x, t, dt) => {
    const k1 = at(field, x, t);
    const k2 = at(field, moved(x, k1, dt / 3), t + dt / 3);
    const k3 = at(field, moved(x, k2.map((v, i) => v - k1[i] / 3), dt), t + (2 * dt) / 3);
    const k4 = at(field, moved(x, k3.map((v, i) => k1[i] - k2[i] + v), dt), t + dt);
    return moved(x, k4.map((v, i) => k1[i] + 3 * (k2[i] + k3[i]) + v), dt / 8);
  },
};

/** @type {Record<string, number[]>} */
const STAGES = { euler: [0], midpoint: [0, 1 / 2], heun: [0, 1], rk4: [0, 1 / 3, 2 / 3, 1] };

/** `n + 1` even times from 0 to `end`. @param {number} n @param {number} [end] */
export const grid = (n, end = 1) => Float64Array.from({ length: n + 1 }, (_, i) => (i === n ? end : (end * i) / n));

/**
 * The state at every time of `ts`, the first included.
 * @param {Field} field
 * @param {Float64Array} x
 * @param {Float64Array} ts
 * @param {string} [solver]
 * @returns {Float64Array[]}
 */
export function trajectory(field, x, ts, solver = "heun") {
  const step = STEPS[solver];
  if (!step) throw new Problem(`${solver} is no solver. Choose ${Object.keys(STEPS).join(", ")}.`);
  const states = [x];
  for (let i = 0; i + 1 < ts.length; i++) states.push(step(field, states[i], ts[i], ts[i + 1] - ts[i]));
  return states;
}

/**
 * Evaluations of the velocity for one sample, and rows of the network: a guided evaluation counts once, as two rows.
 * @param {string} solver
 * @param {number} steps
 * @param {number} [scale]
 * @param {import("./guidance.js").Interval} [interval]
 */
export function evaluations(solver, steps, scale = 1, interval = EVERYWHERE) {
  const ts = grid(steps);
  const times = STAGES[solver].flatMap((share) => Array.from({ length: steps }, (_, i) => ts[i] + share * (ts[i + 1] - ts[i])));
  return { nfe: times.length, rows: times.length + (scale === 1 ? 0 : times.filter((t) => acts(t, interval)).length) };
}

/** c(t) of the SDE. @type {Record<string, (path: Path, t: number, norm: number) => number>} */
export const DIFFUSIONS = {
  constant: (_, __, norm) => norm,
  sbdm: (path, t, norm) => norm * ((path.dAlpha(t) / path.alpha(t)) * path.sigma(t) ** 2 - path.sigmaDSigma(t)),
  sigma: (path, t, norm) => norm * path.sigma(t),
  linear: (_, t, norm) => norm * (1 - t),
  decreasing: (_, t, norm) => 0.25 * (norm * Math.cos(Math.PI * t) + 1) ** 2,
  "increasing-decreasing": (_, t, norm) => norm * Math.sin(Math.PI * t) ** 2,
};

/**
 * The states of Euler-Maruyama steps over `ts`, then one step without noise to t = 1: "mean", "tweedie", "euler", or none.
 * `noise` gives the standard normals of step i.
 * @param {Field} field
 * @param {Float64Array} x
 * @param {Float64Array} ts
 * @param {(i: number) => ArrayLike<number>} noise
 * @param {{path?: Path, diffusion?: string, norm?: number, lastStep?: string | null}} [settings]
 */
export function sde(field, x, ts, noise, { path = LINEAR, diffusion = "sigma", norm = 1, lastStep = "mean" } = {}) {
  const states = [x];
  const score = new Float64Array(x.length);
  for (let i = 0; i + 1 < ts.length; i++) {
    const [t, dt, z, from] = [ts[i], ts[i + 1] - ts[i], noise(i), states[i]];
    const c = DIFFUSIONS[diffusion](path, t, norm);
    const v = at(field, from, t);
    scoreFromVelocity(path, from, v, t, score);
    const spread = Math.sqrt(2 * c * dt);
    states.push(from.map((place, j) => place + dt * (v[j] + c * score[j]) + spread * z[j]));
  }
  if (lastStep) {
    const [t, from] = [ts[ts.length - 1], states[states.length - 1]];
    const v = at(field, from, t);
    if (lastStep === "tweedie") states.push(dataFromVelocity(path, from, v, t, new Float64Array(x.length)));
    else {
      scoreFromVelocity(path, from, v, t, score);
      const c = lastStep === "mean" ? DIFFUSIONS[diffusion](path, t, norm) : 0;
      states.push(from.map((place, j) => place + (1 - t) * (v[j] + c * score[j])));
    }
  }
  return states;
}

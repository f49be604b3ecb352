// Long work with networks: each job is a generator that rests between two steps. A worker runs it to its end; where
// there is none, the page runs it in slices.

import { debias, debiasShuffle, guide } from "./guidance.js";
import { EVERY, Mixture } from "./mixture.js";
import { MLP } from "./mlp.js";
import { Problem } from "./problem.js";
import { Random } from "./random.js";
import { grid, STEPS } from "./samplers.js";
import { Training } from "./train.js";

/**
 * @typedef {object} Walk particles of one label through a network
 * @property {import("./mlp.js").Packed} network
 * @property {number} label
 * @property {Float64Array} x (n, 2) the noise
 * @property {string} solver
 * @property {number} steps
 * @property {{scale: number, interval: [number, number]}} [guided]
 * @property {{weight: number, mean: [number, number], swaps: boolean}} [corrected] back to FM's field, inside the same interval
 */

/** @type {Map<string, MLP>} */
const networks = new Map();
/** @param {import("./mlp.js").Packed} packed */
function unpacked(packed) {
  const found = networks.get(packed.weights) ?? MLP.unpack(packed);
  networks.set(packed.weights, found);
  return found;
}

/** The states (steps + 1 of them) of every walk. @param {Walk[]} walks @returns {Generator<void, Float64Array[][]>} */
export function* walk(walks) {
  const all = [];
  for (const { network: packed, label, x, solver, steps, guided, corrected } of walks) {
    const network = unpacked(packed);
    let field = network.field(label);
    if (guided) field = guide(field, network.field(EVERY), guided.scale, guided.interval);
    if (guided && corrected) {
      const { weight, mean, swaps } = corrected;
      field = swaps ? debiasShuffle(field, weight, 1, true, guided.interval) : debias(field, weight, mean, guided.interval);
    }
    const [ts, states] = [grid(steps), [x]];
    for (let s = 0; s < steps; s++) {
      states.push(STEPS[solver](field, states[s], ts[s], ts[s + 1] - ts[s]));
      yield;
    }
    all.push(states);
  }
  return all;
}

/**
 * @typedef {object} Lesson some steps of a training, which goes on where it stopped
 * @property {string} key a new one begins anew
 * @property {import("./mixture.js").Described} mixture
 * @property {{hidden: number, depth: number, classes: number}} sizes
 * @property {number} seed
 * @property {number} lambda
 * @property {number} total the steps of the whole training
 * @property {number} steps of this lesson
 */

/** @type {Map<string, Training>} */
const trainings = new Map();

/** The weights after some more steps, and how many there were. @param {Lesson} lesson @returns {Generator<void, {weights: Float64Array, count: number}>} */
export function* learn({ key, mixture, sizes, seed, lambda, total, steps }) {
  let work = trainings.get(key);
  if (!work) {
    work = new Training(new Mixture(mixture), sizes, new Random(seed), { lambda, steps: total });
    if (trainings.size >= 8) trainings.delete(/** @type {string} */ (trainings.keys().next().value));
    trainings.set(key, work);
  }
  for (let i = 0; i < steps && work.count < total; i++) {
    work.step();
    yield;
  }
  return { weights: work.weights.slice(), count: work.count };
}

/** @type {Record<string, (input: any) => Generator<void, any>>} */
export const JOBS = { walk, learn };

/** What went wrong, as a message between a worker and its page. @param {unknown} error */
export const told = (error) => (error instanceof Problem ? { problem: error.message } : { error: String(error) });

// A small network is trained on flow matching, or on ΔFM:  |v - u|^2 - λ |v - u_other|^2,  by Adam.

import { EVERY } from "./mixture.js";
import { MLP, shapes } from "./mlp.js";

/** @typedef {import("./random.js").Random} Random */
/** @typedef {{hidden: number, depth: number, classes: number}} Sizes */
/** @typedef {{x: Float64Array, t: Float64Array, y: Int32Array, u: Float64Array, other: Float64Array}} Batch positions, times, labels (EVERY for none), targets, and velocities of other rows */

/** @param {Sizes} sizes */
export const parameters = (sizes) => shapes(sizes).reduce((sum, [, rows, columns]) => sum + rows * columns, 0);

/** Weights as torch draws them; the output layer is 0, so the first velocity is. @param {Sizes} sizes @param {Random} random */
export function initial(sizes, random) {
  const weights = new Float64Array(parameters(sizes));
  let start = 0;
  for (const [name, rows, columns] of shapes(sizes)) {
    const bound = 1 / Math.sqrt(name.startsWith("input") ? 3 : sizes.hidden);
    for (let i = start; i < start + rows * columns; i++) {
      if (name === "labels") weights[i] = 0.02 * random.normal();
      else if (!name.startsWith("output")) weights[i] = bound * (2 * random.uniform() - 1);
    }
    start += rows * columns;
  }
  return weights;
}

/**
 * The loss of a batch, a mean over rows and coordinates, and its gradient by the weights, added into `slope`.
 * @param {MLP} network
 * @param {MLP} slope a network whose weights are the gradient's
 * @param {Batch} batch
 * @param {number} lambda
 */
export function gradient(network, slope, { x, t, y, u, other }, lambda) {
  const { hidden: size, classes, parts, layers } = network;
  const rows = t.length;
  const depth = layers.length + 1;
  const sums = Array.from({ length: depth }, () => new Float64Array(size));
  const values = Array.from({ length: depth }, () => new Float64Array(size));
  let back = new Float64Array(size);
  let next = new Float64Array(size);
  const [wi, bi, wo, bo] = [parts["input.weight"], parts["input.bias"], parts["output.weight"], parts["output.bias"]];
  const [gi, gib, go, gob] = [slope.parts["input.weight"], slope.parts["input.bias"], slope.parts["output.weight"], slope.parts["output.bias"]];
  let loss = 0;
  for (let row = 0; row < rows; row++) {
    const [a, b, time] = [x[2 * row], x[2 * row + 1], t[row]];
    const label = classes ? size * (y[row] === EVERY ? classes : y[row]) : -1;
    for (let j = 0; j < size; j++) {
      const z = wi[3 * j] * a + wi[3 * j + 1] * b + wi[3 * j + 2] * time + bi[j] + (label < 0 ? 0 : parts.labels[label + j]);
      sums[0][j] = z;
      values[0][j] = z / (1 + Math.exp(-z));
    }
    for (let l = 1; l < depth; l++) {
      const [w, c] = layers[l - 1];
      const [from, z, h] = [values[l - 1], sums[l], values[l]];
      for (let j = 0, r = 0; j < size; j++, r += size) {
        let sum = c[j];
        for (let i = 0; i < size; i++) sum += w[r + i] * from[i];
        z[j] = sum;
        h[j] = sum / (1 + Math.exp(-sum));
      }
    }
    const last = values[depth - 1];
    back.fill(0);
    for (let k = 0; k < 2; k++) {
      let v = bo[k];
      for (let i = 0; i < size; i++) v += wo[k * size + i] * last[i];
      const [near, far] = [v - u[2 * row + k], v - other[2 * row + k]];
      loss += (near * near - lambda * far * far) / (2 * rows);
      const g = (near - lambda * far) / rows;
      gob[k] += g;
      for (let i = 0; i < size; i++) {
        go[k * size + i] += g * last[i];
        back[i] += g * wo[k * size + i];
      }
    }
    for (let l = depth - 1; l >= 0; l--) {
      const z = sums[l];
      for (let j = 0; j < size; j++) {
        const s = 1 / (1 + Math.exp(-z[j]));
        back[j] *= s + z[j] * s * (1 - s);
      }
      if (!l) break;
      const [w] = layers[l - 1];
      const [gw, gc] = slope.layers[l - 1];
      const from = values[l - 1];
      next.fill(0);
      for (let j = 0, r = 0; j < size; j++, r += size) {
        const g = back[j];
        gc[j] += g;
        for (let i = 0; i < size; i++) {
          gw[r + i] += g * from[i];
          next[i] += g * w[r + i];
        }
      }
      [back, next] = [next, back];
    }
    for (let j = 0; j < size; j++) {
      gi[3 * j] += back[j] * a;
      gi[3 * j + 1] += back[j] * b;
      gi[3 * j + 2] += back[j] * time;
      gib[j] += back[j];
      if (label >= 0) slope.parts.labels[label + j] += back[j];
    }
  }
  return loss;
}

/** Training from a mixture, step by step, on the linear path. */
export class Training {
  /**
   * @param {import("./mixture.js").Mixture} mixture whose labels are 0, 1, ...
   * @param {Sizes} sizes
   * @param {Random} random
   * @param {{lambda?: number, rate?: number, batch?: number, dropout?: number, steps?: number}} [settings]
   */
  constructor(mixture, sizes, random, { lambda = 0, rate = 4e-3, batch = 128, dropout = 0.1, steps = 2000 } = {}) {
    this.mixture = mixture;
    this.random = random;
    this.settings = { lambda, rate, batch, dropout, steps };
    this.weights = initial(sizes, random);
    this.slope = new Float64Array(this.weights.length);
    this.network = new MLP(sizes, this.weights);
    this.slopes = new MLP(sizes, this.slope);
    this.first = new Float64Array(this.weights.length); // Adam's means of the gradient and of its square
    this.second = new Float64Array(this.weights.length);
    this.count = 0;
  }

  /** @returns {Batch} */
  draw() {
    const { batch, dropout } = this.settings;
    const { x: x1, y } = this.mixture.sample(batch, this.random);
    const x0 = this.random.normals(2 * batch);
    const t = Float64Array.from({ length: batch }, () => this.random.uniform());
    const u = x1.map((v, i) => v - x0[i]);
    const shift = 1 + Math.floor(this.random.uniform() * (batch - 1));
    return {
      x: x1.map((v, i) => t[i >> 1] * v + (1 - t[i >> 1]) * x0[i]),
      t,
      y: y.map((label) => (this.random.uniform() < dropout ? EVERY : label)),
      u,
      other: u.map((_, i) => u[(i + 2 * shift) % u.length]),
    };
  }

  /** One step of Adam; the rate falls to 0 over the last fifth. */
  step() {
    const { lambda, rate, steps } = this.settings;
    this.slope.fill(0);
    const loss = gradient(this.network, this.slopes, this.draw(), lambda);
    this.count += 1;
    const [b1, b2] = [0.9, 0.99];
    const fall = Math.min(1, Math.max((5 * (steps - this.count)) / steps, 0));
    const size = (rate * fall * Math.sqrt(1 - b2 ** this.count)) / (1 - b1 ** this.count);
    const { weights, slope, first, second } = this;
    for (let i = 0; i < weights.length; i++) {
      first[i] += (1 - b1) * (slope[i] - first[i]);
      second[i] += (1 - b2) * (slope[i] * slope[i] - second[i]);
      weights[i] -= (size * first[i]) / (Math.sqrt(second[i]) + 1e-8);
    }
    return loss;
  }
}

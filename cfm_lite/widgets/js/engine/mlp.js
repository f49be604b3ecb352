// A small network, plain:  h = silu(A [x, t] + label(y)),  h <- silu(W h) for each further layer,  v = output(h).

import { EVERY } from "./mixture.js";
import { Problem } from "./problem.js";

/**
 * @typedef {object} Packed a network as it ships
 * @property {number} hidden
 * @property {number} depth
 * @property {number} classes the label `classes` is the null label
 * @property {string} weights base64 of half-precision numbers, in the order of `shapes`
 */

/** The tensors of a network of the plane in their order: name, rows, columns. @param {{hidden: number, depth: number, classes: number}} sizes @returns {[string, number, number][]} */
export function shapes({ hidden, depth, classes }) {
  return [
    ["input.weight", hidden, 3],
    ["input.bias", hidden, 1],
    ["labels", classes ? classes + 1 : 0, hidden],
    ...Array.from({ length: depth - 1 }, (_, i) => /** @type {[string, number, number][]} */ ([
      [`${i}.weight`, hidden, hidden],
      [`${i}.bias`, hidden, 1],
    ])).flat(),
    ["output.weight", 2, hidden],
    ["output.bias", 2, 1],
  ];
}

/** Half-precision numbers, two bytes each, as numbers. @param {Uint8Array} bytes */
export function halves(bytes) {
  const out = new Float32Array(bytes.length >> 1);
  for (let i = 0; i < out.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    out[i] = bits >> 15 ? -size : size;
  }
  return out;
}

/** @param {string} text base64 */
export function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** @param {number} h */
const silu = (h) => h / (1 + Math.exp(-h));

export class MLP {
  /** @param {{hidden: number, depth: number, classes: number}} sizes @param {Float32Array | Float64Array} numbers all weights, in the order of `shapes` */
  constructor(sizes, numbers) {
    Object.assign(this, sizes);
    this.hidden = sizes.hidden;
    this.classes = sizes.classes;
    /** @type {Record<string, Float32Array | Float64Array>} */
    this.parts = {};
    let start = 0;
    for (const [name, rows, columns] of shapes(sizes)) {
      this.parts[name] = numbers.subarray(start, start + rows * columns);
      start += rows * columns;
    }
    if (start !== numbers.length) throw new Problem("The file of the network does not have the size that it says.");
    this.here = new Float64Array(sizes.hidden); // what a layer reads, and what it writes
    this.there = new Float64Array(sizes.hidden);
    this.layers = Array.from({ length: sizes.depth - 1 }, (_, i) => [this.parts[`${i}.weight`], this.parts[`${i}.bias`]]);
  }

  /** @param {Packed} packed */
  static unpack(packed) {
    return new MLP(packed, halves(bytesOf(packed.weights)));
  }

  /** The velocity for one label of all points, EVERY for the null label, as a field. @param {number} [label] @returns {import("./theory.js").Field} */
  field(label = EVERY) {
    return (x, t, out) => {
      for (let i = 0; i < x.length; i += 2) this.at(x[i], x[i + 1], t, label, out, i);
      return out;
    };
  }

  /** @param {number} a @param {number} b @param {number} t @param {number} label @param {Float64Array} out @param {number} place */
  at(a, b, t, label, out, place) {
    const { hidden: size, parts } = this;
    const [weight, bias] = [parts["input.weight"], parts["input.bias"]];
    const row = this.classes ? size * (label === EVERY ? this.classes : label) : -1;
    let [h, next] = [this.here, this.there];
    for (let j = 0; j < size; j++) {
      const sum = weight[3 * j] * a + weight[3 * j + 1] * b + weight[3 * j + 2] * t + bias[j];
      h[j] = silu(row < 0 ? sum : sum + parts.labels[row + j]);
    }
    for (const [w, c] of this.layers) {
      for (let j = 0, r = 0; j < size; j++, r += size) {
        let sum = c[j];
        for (let i = 0; i < size; i++) sum += w[r + i] * h[i];
        next[j] = silu(sum);
      }
      [h, next] = [next, h];
    }
    const [w, c] = [parts["output.weight"], parts["output.bias"]];
    let [va, vb] = [c[0], c[1]];
    for (let i = 0; i < size; i++) {
      va += w[i] * h[i];
      vb += w[size + i] * h[i];
    }
    out[place] = va;
    out[place + 1] = vb;
  }
}

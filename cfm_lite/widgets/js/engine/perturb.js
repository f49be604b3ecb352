// Perturbations of small square images, as VeCoR draws its wrong velocities: strength in (0, 1], 0 leaves nearly all.

import { Problem } from "./problem.js";

/** @typedef {import("./random.js").Random} Random */
/** @typedef {Float64Array} Image rows from the top */
/** @typedef {(image: Image, strength: number, random: Random, other: Image) => Image} Perturbation */

/** @param {Image} image */
const sideOf = (image) => Math.round(Math.sqrt(image.length));

/** A value between two cells, bilinear, the border going on. @param {Image} image @param {number} size @param {number} row @param {number} column */
function between(image, size, row, column) {
  const clamp = (/** @type {number} */ v) => Math.min(Math.max(v, 0), size - 1);
  const [r, c] = [clamp(row), clamp(column)];
  const [r0, c0] = [Math.floor(r), Math.floor(c)];
  const [r1, c1] = [clamp(r0 + 1), clamp(c0 + 1)];
  const [fr, fc] = [r - r0, c - c0];
  const upper = (1 - fc) * image[r0 * size + c0] + fc * image[r0 * size + c1];
  const lower = (1 - fc) * image[r1 * size + c0] + fc * image[r1 * size + c1];
  return (1 - fr) * upper + fr * lower;
}

/** Weights (size, size) of a Gaussian blur that sum to 1 in every row. @param {number} size @param {number} width */
function blurMatrix(size, width) {
  return Array.from({ length: size }, (_, i) => {
    const row = Array.from({ length: size }, (__, j) => Math.exp(-((i - j) ** 2) / (2 * width * width)));
    const sum = row.reduce((a, b) => a + b, 0);
    return row.map((w) => w / sum);
  });
}

/** @param {Random} random @param {number} size */
const signed = (random, size) => (random.uniform() < 0.5 ? -1 : 1) * size * (0.5 + 0.5 * random.uniform());

/** @type {Record<string, Perturbation>} */
export const PERTURBATIONS = {
  crop_resize(image, strength, random) {
    const size = sideOf(image);
    const scale = 1 - 0.7 * strength;
    const [down, right] = [(1 - scale) * random.uniform() * size, (1 - scale) * random.uniform() * size];
    return image.map((_, i) => {
      const [row, column] = [Math.floor(i / size), i % size];
      return between(image, size, down + scale * (row + 0.5) - 0.5, right + scale * (column + 0.5) - 0.5);
    });
  },
  cutmix(image, strength, random, other) {
    const size = sideOf(image);
    const box = Math.max(1, Math.round(Math.sqrt(0.75 * strength) * size));
    const [top, left] = [Math.floor(random.uniform() * (size - box + 1)), Math.floor(random.uniform() * (size - box + 1))];
    return image.map((value, i) => {
      const [row, column] = [Math.floor(i / size) - top, (i % size) - left];
      return row >= 0 && row < box && column >= 0 && column < box ? other[i] : value;
    });
  },
  gaussian_blur(image, strength) {
    const size = sideOf(image);
    const weights = blurMatrix(size, 2.5 * strength);
    return image.map((_, i) => {
      let sum = 0;
      const [down, across] = [weights[Math.floor(i / size)], weights[i % size]];
      for (let r = 0; r < size; r++) for (let c = 0; c < size; c++) sum += down[r] * across[c] * image[r * size + c];
      return sum;
    });
  },
  color_jitter(image, strength, random) {
    const [scale, shift] = [1 + signed(random, 0.9 * strength), signed(random, 0.9 * strength)];
    return image.map((value) => scale * value + shift);
  },
  additive_noise: (image, strength, random) => image.map((value) => value + 1.5 * strength * random.normal()),
  channel_shuffle() {
    throw new Problem("These digits are grey: one channel has nothing to shuffle. Choose another perturbation.");
  },
};

/** Mean squared distance. @param {Float64Array} a @param {Float64Array} b */
export const squaredError = (a, b) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / a.length;

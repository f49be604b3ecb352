// Gaussian mixtures of the plane, in closed form:  x_t is a mixture too, with means alpha mu_k and
// covariances S_k = alpha^2 Sigma_k + sigma^2 I.  Points are flat arrays [a, b, a, b, ...].

import { LINEAR } from "./paths.js";
import { number, Problem } from "./problem.js";

/** @typedef {import("./paths.js").Path} Path */
/**
 * @typedef {object} Described what a page and Python exchange
 * @property {number[]} weights (K,)
 * @property {number[][]} means (K, 2)
 * @property {number[] | null} [stds] (K,)
 * @property {number[][][] | null} [covariances] (K, 2, 2); either this or stds
 * @property {number[] | null} [labels] (K,)
 */

export const MOST = 64; // components; more would not move at sixty pictures a second
export const EVERY = -1; // the class "all": no condition
const FAR = 1e6;

export class Mixture {
  /** @param {Described} described */
  constructor({ weights, means, stds, covariances, labels }) {
    const size = means?.length ?? 0;
    if (!size) throw new Problem("There is no component. Add one.");
    if (size > MOST) throw new Problem(`There are ${size} components. At most ${MOST} can be shown.`);
    if (weights?.length !== size || (stds ?? covariances)?.length !== size) {
      throw new Problem(`There are ${size} means. Each needs one weight, and one std or covariance.`);
    }
    const total = weights.reduce((sum, w) => sum + number("a weight", w, 0), 0);
    if (!(total > 0)) throw new Problem("All weights are 0. At least one must be positive.");
    this.size = size;
    this.weights = Float64Array.from(weights, (w) => w / total);
    this.means = Float64Array.from(
      means.flatMap((mean) => [number("a mean", mean[0], -FAR, FAR), number("a mean", mean[1], -FAR, FAR)]),
    );
    /** Entries aa, ab, bb of each covariance. */
    this.covariances = new Float64Array(3 * size);
    for (let k = 0; k < size; k++) this.covariances.set(entries(stds, covariances, k), 3 * k);
    this.round = this.covariances.every((c, i) => (i % 3 === 1 ? c === 0 : i % 3 === 0 || c === this.covariances[i - 2]));
    this.labels = Int32Array.from(labels ?? means.map((_, k) => k));
    if (this.labels.length !== size) throw new Problem("Each component needs one label.");
    /** @type {{t: number, label: number, path: Path, moment: Moment} | undefined} */
    this.last = undefined;
  }

  /** The labels that have a component of positive weight, sorted. */
  get classes() {
    const found = new Set([...this.labels].filter((_, k) => this.weights[k] > 0));
    return [...found].sort((a, b) => a - b);
  }

  /** Weights (K,) inside the class `label`, 0 outside. @param {number} [label] */
  weightsOf(label = EVERY) {
    if (label === EVERY) return this.weights;
    const inside = this.weights.map((w, k) => (this.labels[k] === label ? w : 0));
    const total = inside.reduce((sum, w) => sum + w, 0);
    if (!(total > 0)) throw new Problem(`Class ${label} has no component.`);
    return inside.map((w) => w / total);
  }

  /** E[x1], or E[x1 | label]. @param {number} [label] @returns {[number, number]} */
  mean(label = EVERY) {
    const weights = this.weightsOf(label);
    let [a, b] = [0, 0];
    for (let k = 0; k < this.size; k++) {
      a += weights[k] * this.means[2 * k];
      b += weights[k] * this.means[2 * k + 1];
    }
    return [a, b];
  }

  /**
   * What holds for every position at one time.
   * @param {number} t
   * @param {number} [label]
   * @param {Path} [path]
   */
  at(t, label = EVERY, path = LINEAR) {
    const { last } = this; // a density and a velocity are often asked for at the same time
    if (last?.t === t && last.label === label && last.path === path) return last.moment;
    const moment = new Moment(this, t, label, path);
    this.last = { t, label, path, moment };
    return moment;
  }

  /** log p_t(x | label) into `out` (n,). @param {Float64Array} x @param {number} t @param {number} [label] @param {Path} [path] @param {Float64Array} [out] */
  logProb(x, t, label = EVERY, path = LINEAR, out = new Float64Array(x.length / 2)) {
    return this.at(t, label, path).logProb(x, out);
  }

  /** E[u_t | x_t = x, label] into `out` (n, 2). @param {Float64Array} x @param {number} t @param {number} [label] @param {Path} [path] @param {Float64Array} [out] */
  velocity(x, t, label = EVERY, path = LINEAR, out = new Float64Array(x.length)) {
    return this.at(t, label, path).velocity(x, out);
  }

  /** The gradient of log p_t(x | label) into `out` (n, 2). @param {Float64Array} x @param {number} t @param {number} [label] @param {Path} [path] @param {Float64Array} [out] */
  score(x, t, label = EVERY, path = LINEAR, out = new Float64Array(x.length)) {
    return this.at(t, label, path).score(x, out);
  }

  /**
   * `n` data points and their labels.
   * @param {number} n
   * @param {import("./random.js").Random} random
   * @param {number} [label]
   */
  sample(n, random, label = EVERY) {
    const weights = this.weightsOf(label);
    const [x, y] = [new Float64Array(2 * n), new Int32Array(n)];
    for (let i = 0; i < n; i++) {
      const k = random.pick(weights);
      const [aa, ab, bb] = this.covariances.subarray(3 * k, 3 * k + 3);
      const [first, second] = [random.normal(), random.normal()];
      const along = Math.sqrt(aa); // the Cholesky factor, which a std of 0 allows
      const across = along > 0 ? ab / along : 0;
      x[2 * i] = this.means[2 * k] + along * first;
      x[2 * i + 1] = this.means[2 * k + 1] + across * first + Math.sqrt(Math.max(bb - across * across, 0)) * second;
      y[i] = this.labels[k];
    }
    return { x, y };
  }

  /** @returns {Described} */
  described() {
    const of = Array.from({ length: this.size }, (_, k) => k);
    const [c, m] = [this.covariances, this.means];
    return {
      weights: [...this.weights],
      means: of.map((k) => [m[2 * k], m[2 * k + 1]]),
      ...(this.round
        ? { stds: of.map((k) => Math.sqrt(c[3 * k])) }
        : { covariances: of.map((k) => [[c[3 * k], c[3 * k + 1]], [c[3 * k + 1], c[3 * k + 2]]]) }),
      labels: [...this.labels],
    };
  }
}

/** @param {number[] | null | undefined} stds @param {number[][][] | null | undefined} covariances @param {number} k */
function entries(stds, covariances, k) {
  if (stds) {
    const variance = number("a std", stds[k], 0, FAR) ** 2;
    return [variance, 0, variance];
  }
  const [[aa, ab], [ba, bb]] = /** @type {number[][][]} */ (covariances)[k];
  for (const entry of [aa, ab, ba, bb]) number("an entry of a covariance", entry);
  const size = Math.max(Math.abs(aa), Math.abs(bb), Math.abs(ab));
  if (Math.abs(ab - ba) > 1e-6 * size || aa < 0 || bb < 0 || aa * bb - ab * ab < -1e-6 * size * size) {
    throw new Problem("A covariance must be symmetric and positive.");
  }
  return [aa, (ab + ba) / 2, bb];
}

/** A mixture at one time: the parts of its formulas that do not depend on the position. */
export class Moment {
  /** @param {Mixture} mixture @param {number} t @param {number} label @param {Path} path */
  constructor(mixture, t, label, path) {
    const weights = mixture.weightsOf(label);
    const kept = Array.from(weights.keys()).filter((k) => weights[k] > 0);
    const [alpha, sigma, dAlpha, half] = [path.alpha(t), path.sigma(t), path.dAlpha(t), path.sigmaDSigma(t)];
    this.size = kept.length;
    // a row for each component: mean (2), inverse of S (3), log weight less the norm's logarithm, slope A (4), lead (2)
    this.rows = new Float64Array(12 * kept.length);
    this.shares = new Float64Array(kept.length);
    kept.forEach((k, i) => {
      const [aa, ab, bb] = mixture.covariances.subarray(3 * k, 3 * k + 3);
      const [saa, sab, sbb] = [alpha * alpha * aa + sigma * sigma, alpha * alpha * ab, alpha * alpha * bb + sigma * sigma];
      const det = saa * sbb - sab * sab;
      if (!(det > 0)) throw new Problem("A component of std 0 has no density at t = 1. Choose an earlier time.");
      const [iaa, iab, ibb] = [sbb / det, -sab / det, saa / det];
      const [raa, rab, rbb] = [dAlpha * alpha * aa + half, dAlpha * alpha * ab, dAlpha * alpha * bb + half];
      const [ma, mb] = [mixture.means[2 * k], mixture.means[2 * k + 1]];
      const norm = Math.log(weights[k]) - 0.5 * Math.log(det) - Math.log(2 * Math.PI);
      const slope = [raa * iaa + rab * iab, raa * iab + rab * ibb, rab * iaa + rbb * iab, rab * iab + rbb * ibb];
      this.rows.set([alpha * ma, alpha * mb, iaa, iab, ibb, norm, ...slope, dAlpha * ma, dAlpha * mb], 12 * i);
    });
  }

  /** Responsibilities at (a, b) into `shares`, not normalised; returns [largest exponent, their sum]. @param {number} a @param {number} b */
  weigh(a, b) {
    const { rows, shares, size } = this;
    let top = -Infinity;
    for (let k = 0, r = 0; k < size; k++, r += 12) {
      const da = a - rows[r];
      const db = b - rows[r + 1];
      const log = rows[r + 5] - 0.5 * (rows[r + 2] * da * da + 2 * rows[r + 3] * da * db + rows[r + 4] * db * db);
      shares[k] = log;
      if (log > top) top = log;
    }
    let sum = 0;
    for (let k = 0; k < size; k++) sum += shares[k] = Math.exp(shares[k] - top);
    this.top = top;
    return sum;
  }

  /** @param {Float64Array} x @param {Float64Array} out */
  logProb(x, out) {
    for (let i = 0; i < out.length; i++) {
      const sum = this.weigh(x[2 * i], x[2 * i + 1]);
      out[i] = /** @type {number} */ (this.top) + Math.log(sum);
    }
    return out;
  }

  /** @param {Float64Array} x @param {Float64Array} out */
  velocity(x, out) {
    const { rows, shares, size } = this;
    for (let i = 0; i < x.length; i += 2) {
      const a = x[i];
      const b = x[i + 1];
      const sum = this.weigh(a, b);
      let va = 0;
      let vb = 0;
      for (let k = 0, r = 0; k < size; k++, r += 12) {
        const da = a - rows[r];
        const db = b - rows[r + 1];
        va += shares[k] * (rows[r + 10] + rows[r + 6] * da + rows[r + 7] * db);
        vb += shares[k] * (rows[r + 11] + rows[r + 8] * da + rows[r + 9] * db);
      }
      out[i] = va / sum;
      out[i + 1] = vb / sum;
    }
    return out;
  }

  /** @param {Float64Array} x @param {Float64Array} out */
  score(x, out) {
    const { rows, shares, size } = this;
    for (let i = 0; i < x.length; i += 2) {
      const a = x[i];
      const b = x[i + 1];
      const sum = this.weigh(a, b);
      let sa = 0;
      let sb = 0;
      for (let k = 0, r = 0; k < size; k++, r += 12) {
        const da = a - rows[r];
        const db = b - rows[r + 1];
        sa -= shares[k] * (rows[r + 2] * da + rows[r + 3] * db);
        sb -= shares[k] * (rows[r + 3] * da + rows[r + 4] * db);
      }
      out[i] = sa / sum;
      out[i + 1] = sb / sum;
    }
    return out;
  }

  /**
   * The derivative of the velocity by the position, into `out` (n, 2, 2): sum r_k [A_k + f_k (s_k - s)^T],
   * f_k the velocity of component k alone and s_k its score.
   * @param {Float64Array} x
   * @param {Float64Array} [out]
   */
  jacobian(x, out = new Float64Array(2 * x.length)) {
    const { rows, shares, size } = this;
    const [s, v] = [this.score(x, new Float64Array(x.length)), this.velocity(x, new Float64Array(x.length))];
    for (let i = 0; i < x.length; i += 2) {
      const [a, b] = [x[i], x[i + 1]];
      const sum = this.weigh(a, b);
      let [aa, ab, ba, bb] = [0, 0, 0, 0];
      for (let k = 0, r = 0; k < size; k++, r += 12) {
        const da = a - rows[r];
        const db = b - rows[r + 1];
        const share = shares[k] / sum;
        const fa = rows[r + 10] + rows[r + 6] * da + rows[r + 7] * db - v[i]; // less v, which changes nothing and rounds better
        const fb = rows[r + 11] + rows[r + 8] * da + rows[r + 9] * db - v[i + 1];
        const sa = -(rows[r + 2] * da + rows[r + 3] * db) - s[i];
        const sb = -(rows[r + 3] * da + rows[r + 4] * db) - s[i + 1];
        aa += share * (rows[r + 6] + fa * sa);
        ab += share * (rows[r + 7] + fa * sb);
        ba += share * (rows[r + 8] + fb * sa);
        bb += share * (rows[r + 9] + fb * sb);
      }
      out.set([aa, ab, ba, bb], 2 * i);
    }
    return out;
  }

  /** div v into `out` (n,). @param {Float64Array} x @param {Float64Array} [out] */
  divergence(x, out = new Float64Array(x.length / 2)) {
    const jacobian = this.jacobian(x);
    for (let i = 0; i < out.length; i++) out[i] = jacobian[4 * i] + jacobian[4 * i + 3];
    return out;
  }
}

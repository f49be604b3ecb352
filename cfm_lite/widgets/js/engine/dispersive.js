// Dispersive losses of a batch of features h (B, d), row after row, and their gradient by h: Wang and He 2025, table 1.

/** @typedef {{loss: number, slope: Float64Array}} Sloped */

export const VARIANTS = ["infonce_l2", "infonce_cosine", "hinge", "covariance"];

/** Inner products (B, B). @param {Float64Array} h @param {number} rows */
export function gram(h, rows) {
  const size = h.length / rows;
  const out = new Float64Array(rows * rows);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let k = 0; k < size; k++) sum += h[i * size + k] * h[j * size + k];
      out[i * rows + j] = out[j * rows + i] = sum;
    }
  }
  return out;
}

/** h less its mean over the batch. @param {Float64Array} h @param {number} rows */
export function centred(h, rows) {
  const size = h.length / rows;
  const mean = new Float64Array(size);
  for (let i = 0; i < h.length; i++) mean[i % size] += h[i] / rows;
  return h.map((value, i) => value - mean[i % size]);
}

/** weights (B, B) times h (B, d). @param {Float64Array} weights @param {Float64Array} h @param {number} rows */
function mixed(weights, h, rows) {
  const size = h.length / rows;
  const out = new Float64Array(h.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < rows; j++) {
      const w = weights[i * rows + j];
      for (let k = 0; k < size; k++) out[i * size + k] += w * h[j * size + k];
    }
  }
  return out;
}

/** log-sum-exp of `values`, and its gradient. @param {Float64Array} values */
function softmax(values) {
  const top = values.reduce((most, v) => Math.max(most, v), -Infinity);
  const weights = values.map((v) => Math.exp(v - top));
  const sum = weights.reduce((a, b) => a + b, 0);
  return { log: top + Math.log(sum), shares: weights.map((w) => w / sum) };
}

/**
 * @param {Float64Array} h
 * @param {number} rows B
 * @param {string} variant
 * @param {number} tau of InfoNCE
 * @param {number} [margin] of the hinge
 * @returns {Sloped}
 */
export function dispersive(h, rows, variant, tau, margin = 1) {
  const size = h.length / rows;
  if (variant === "covariance") return covariance(h, rows);
  if (variant === "infonce_cosine") {
    const products = gram(h, rows);
    const inverse = Float64Array.from({ length: rows }, (_, i) => (products[i * rows + i] > 0 ? 1 / Math.sqrt(products[i * rows + i]) : 0));
    const unit = h.map((value, i) => value * inverse[Math.floor(i / size)]);
    const { log, shares } = softmax(products.map((p, i) => (p * inverse[Math.floor(i / rows)] * inverse[i % rows]) / tau));
    const pulled = mixed(shares, unit, rows).map((value) => (2 * value) / tau);
    const slope = new Float64Array(h.length);
    for (let i = 0; i < rows; i++) {
      let along = 0;
      for (let k = i * size; k < (i + 1) * size; k++) along += pulled[k] * unit[k];
      for (let k = i * size; k < (i + 1) * size; k++) slope[k] = inverse[i] * (pulled[k] - along * unit[k]);
    }
    return { loss: log - Math.log(rows * rows), slope };
  }
  const z = centred(h, rows);
  const products = gram(z, rows);
  const gap = products.map((p, i) => Math.max(products[Math.floor(i / rows) * (rows + 1)] + products[(i % rows) * (rows + 1)] - 2 * p, 0) / size);
  if (variant === "hinge") {
    const short = gap.map((d) => Math.max(margin - d, 0));
    const loss = short.reduce((sum, s) => sum + s * s, 0) / rows ** 2;
    return { loss, slope: apart(short.map((s) => (-2 * s) / rows ** 2), z, rows) };
  }
  const { log, shares } = softmax(gap.map((d) => -d / tau));
  return { loss: log - Math.log(rows * rows), slope: apart(shares.map((p) => -p / tau), z, rows) };
}

/** The gradient of a function of the distances D_ij = |h_i - h_j|^2 / d, from its derivatives by them (symmetric). @param {Float64Array} by @param {Float64Array} z @param {number} rows */
function apart(by, z, rows) {
  const size = z.length / rows;
  const other = mixed(by, z, rows);
  const sums = Float64Array.from({ length: rows }, (_, i) => by.subarray(i * rows, (i + 1) * rows).reduce((a, b) => a + b, 0));
  return z.map((value, i) => (4 / size) * (sums[Math.floor(i / size)] * value - other[i]));
}

/** The sum over m != n of squared correlations of features. @param {Float64Array} h @param {number} rows @returns {Sloped} */
function covariance(h, rows) {
  const size = h.length / rows;
  const z = centred(h, rows);
  const inverse = new Float64Array(size);
  for (let k = 0; k < size; k++) {
    let sum = 0;
    for (let i = 0; i < rows; i++) sum += z[i * size + k] ** 2;
    inverse[k] = sum > 0 ? Math.sqrt(rows / sum) : 0;
  }
  for (let i = 0; i < z.length; i++) z[i] *= inverse[i % size];
  const products = gram(z, rows).map((p) => p / rows);
  const loss = products.reduce((sum, p) => sum + p * p, 0) - inverse.filter((v) => v > 0).length;
  const slope = mixed(products, z, rows).map((g) => (4 * g) / rows);
  for (let k = 0; k < size; k++) {
    let [mean, along] = [0, 0];
    for (let i = k; i < z.length; i += size) {
      mean += slope[i] / rows;
      along += (slope[i] * z[i]) / rows;
    }
    for (let i = k; i < z.length; i += size) slope[i] = inverse[k] * (slope[i] - mean - z[i] * along);
  }
  return { loss, slope };
}

/**
 * Eigenvalues, largest first, and eigenvectors of a symmetric matrix (n, n), by Jacobi's rotations.
 * @param {Float64Array} matrix
 * @param {number} n
 */
export function eigen(matrix, n) {
  const a = Float64Array.from(matrix);
  const v = Float64Array.from({ length: n * n }, (_, i) => Number(i % (n + 1) === 0));
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        const [apq, app, aqq] = [a[p * n + q], a[p * n + p], a[q * n + q]];
        off += apq * apq;
        if (Math.abs(apq) < 1e-300) continue;
        const theta = (aqq - app) / (2 * apq);
        const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1);
        const s = t * c;
        for (let k = 0; k < n; k++) {
          const [kp, kq] = [a[k * n + p], a[k * n + q]];
          a[k * n + p] = c * kp - s * kq;
          a[k * n + q] = s * kp + c * kq;
        }
        for (let k = 0; k < n; k++) {
          const [pk, qk] = [a[p * n + k], a[q * n + k]];
          a[p * n + k] = c * pk - s * qk;
          a[q * n + k] = s * pk + c * qk;
          const [vp, vq] = [v[k * n + p], v[k * n + q]];
          v[k * n + p] = c * vp - s * vq;
          v[k * n + q] = s * vp + c * vq;
        }
      }
    }
    if (off < 1e-22 * a.reduce((sum, x, i) => sum + (i % (n + 1) ? 0 : x * x), 0)) break;
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => a[j * (n + 1)] - a[i * (n + 1)]);
  return {
    values: order.map((i) => a[i * (n + 1)]),
    vectors: order.map((i) => Float64Array.from({ length: n }, (_, k) => v[k * n + i])),
  };
}

/** exp of the entropy of the normalised singular values of centred features: how many directions they use. @param {Float64Array} h @param {number} rows */
export function effectiveRank(h, rows) {
  const { values } = eigen(gram(centred(h, rows), rows), rows);
  const sizes = values.map((value) => (value > 1e-13 * values[0] ? Math.sqrt(value) : 0)); // less than that is rounding
  const total = sizes.reduce((a, b) => a + b, 0);
  if (!(total > 0)) return 1;
  return Math.exp(-sizes.reduce((sum, s) => (s > 0 ? sum + (s / total) * Math.log(s / total) : sum), 0));
}

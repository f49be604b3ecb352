// A path joins noise to data:  x_t = alpha(t) x1 + sigma(t) x0.  t = 0 is noise, t = 1 is data.

/**
 * @typedef {object} Path
 * @property {string} name
 * @property {(t: number) => number} alpha
 * @property {(t: number) => number} sigma
 * @property {(t: number) => number} dAlpha
 * @property {(t: number) => number} dSigma
 * @property {(t: number) => number} sigmaDSigma half the derivative of sigma^2; finite where dSigma is not
 */

/** @type {Path} */
export const LINEAR = {
  name: "linear",
  alpha: (t) => t,
  sigma: (t) => 1 - t,
  dAlpha: () => 1,
  dSigma: () => -1,
  sigmaDSigma: (t) => t - 1,
};

const Q = Math.PI / 2;

/** SiT's GVP. The cosine is written as a sine, which is 0 itself at t = 1. @type {Path} */
export const COSINE = {
  name: "cosine",
  alpha: (t) => Math.sin(Q * t),
  sigma: (t) => Math.sin(Q * (1 - t)),
  dAlpha: (t) => Q * Math.sin(Q * (1 - t)),
  dSigma: (t) => -Q * Math.sin(Q * t),
  sigmaDSigma: (t) => -Q * Math.sin(Q * t) * Math.sin(Q * (1 - t)),
};

// SiT's VPCPlan: the noise rate falls linearly from 20 at t = 0 to 0.1 at t = 1
const LOW = 0.1;
const HIGH = 20;
/** @param {number} t */
const logAlpha = (t) => -0.25 * (1 - t) ** 2 * (HIGH - LOW) - 0.5 * (1 - t) * LOW;
/** @param {number} t */
const rate = (t) => 0.5 * (1 - t) * (HIGH - LOW) + 0.5 * LOW;
/** @param {number} t */
const vpSigma = (t) => Math.sqrt(-Math.expm1(2 * logAlpha(t)));
/** @param {number} t */
const vpSigmaDSigma = (t) => -rate(t) * Math.exp(2 * logAlpha(t));

/** @type {Path} */
export const VP = {
  name: "vp",
  alpha: (t) => Math.exp(logAlpha(t)),
  sigma: vpSigma,
  dAlpha: (t) => Math.exp(logAlpha(t)) * rate(t),
  dSigma: (t) => vpSigmaDSigma(t) / vpSigma(t),
  sigmaDSigma: vpSigmaDSigma,
};

/** @type {Record<string, Path>} */
export const PATHS = { linear: LINEAR, cosine: COSINE, vp: VP };

/**
 * The score that velocity `v` implies at `x`, into `out`: s = (alpha v - d_alpha x) / (d_alpha sigma^2 - alpha sigma d_sigma).
 * @param {Path} path
 * @param {Float64Array} x
 * @param {Float64Array} v
 * @param {number} t
 * @param {Float64Array} out
 */
export function scoreFromVelocity(path, x, v, t, out) {
  const [alpha, sigma, dAlpha] = [path.alpha(t), path.sigma(t), path.dAlpha(t)];
  const below = dAlpha * sigma * sigma - alpha * path.sigmaDSigma(t);
  for (let i = 0; i < x.length; i++) out[i] = (alpha * v[i] - dAlpha * x[i]) / below;
  return out;
}

/**
 * The data that velocity `v` implies at `x`, into `out`: Tweedie's mean, (d_sigma x - sigma v) / det.
 * @param {Path} path
 * @param {Float64Array} x
 * @param {Float64Array} v
 * @param {number} t
 * @param {Float64Array} out
 */
export function dataFromVelocity(path, x, v, t, out) {
  const [alpha, sigma, dAlpha, dSigma] = [path.alpha(t), path.sigma(t), path.dAlpha(t), path.dSigma(t)];
  const det = alpha * dSigma - dAlpha * sigma;
  for (let i = 0; i < x.length; i++) out[i] = (dSigma * x[i] - sigma * v[i]) / det;
  return out;
}

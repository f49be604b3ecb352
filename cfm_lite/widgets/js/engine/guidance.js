// Fields into fields: guidance, and the maps between FM's velocity and the optima of ΔFM and VeCoR.
// Each acts inside an interval of t, ends included, and leaves its first field alone outside.

import { number, Problem, repulsion } from "./problem.js";

/** @typedef {import("./theory.js").Field} Field */
/** @typedef {[number, number]} Interval */

/** @type {Interval} */
export const EVERYWHERE = [0, 1];
const SLACK = 1e-6; // a time that equals a bound lies inside, whatever its last bit

/** @param {number} t @param {Interval} interval */
export const acts = (t, [low, high]) => t >= low - SLACK && t <= high + SLACK;

/** @param {Interval} interval @returns {Interval} */
function checked([low, high]) {
  number("the interval's low end", low, 0, 1);
  number("the interval's high end", high, 0, 1);
  if (low > high) throw new Problem(`The interval begins at ${low} and ends at ${high}. t runs from 0 (noise) to 1 (data).`);
  return [low, high];
}

/**
 * bad + scale (good - bad) inside the interval, `good` outside; a scale of 1 is `good` itself.
 * @param {Field} good
 * @param {Field} bad
 * @param {number} scale
 * @param {Interval} [interval]
 * @returns {Field}
 */
export function guide(good, bad, scale, interval = EVERYWHERE) {
  number("the scale", scale);
  const within = checked(interval);
  if (scale === 1) return good;
  let other = new Float64Array(0);
  return (x, t, out) => {
    good(x, t, out);
    if (!acts(t, within)) return out;
    if (other.length !== x.length) other = new Float64Array(x.length);
    bad(x, t, other);
    for (let i = 0; i < x.length; i++) out[i] = other[i] + scale * (out[i] - other[i]);
    return out;
  };
}

/**
 * `change(v_a, v_b, t)` of a field's vectors inside the interval.
 * @param {Field} field
 * @param {(a: number, b: number, t: number) => [number, number]} change
 * @param {Interval} [interval]
 * @returns {Field}
 */
function changed(field, change, interval = EVERYWHERE) {
  const within = checked(interval);
  return (x, t, out) => {
    field(x, t, out);
    if (!acts(t, within)) return out;
    for (let i = 0; i < x.length; i += 2) [out[i], out[i + 1]] = change(out[i], out[i + 1], t);
    return out;
  };
}

/** `factor` times the field, a number or a function of t: the control "scaled FM". @param {Field} field @param {number | ((t: number) => number)} factor */
export function rescale(field, factor) {
  const of = typeof factor === "number" ? () => factor : factor;
  return changed(field, (a, b, t) => [of(t) * a, of(t) * b]);
}

/** (1 + strength (1 - t)^power) v: time-scaled FM, faster where there is most noise. @param {Field} field @param {number} strength @param {number} power */
export function timeScaled(field, strength, power) {
  number("the strength α", strength);
  number("the power β", power, 0);
  return rescale(field, (t) => 1 + strength * (1 - t) ** power);
}

/** (v - λ mean) / (1 - λ): FM's velocity mapped to ΔFM's optimum. @param {Field} field @param {number} weight @param {[number, number]} mean */
export function retarget(field, weight, [ma, mb]) {
  const total = repulsion(weight, 1);
  return changed(field, (a, b) => [(a - total * ma) / (1 - total), (b - total * mb) / (1 - total)]);
}

/** Its inverse inside the interval: (1 - λ) v + λ mean. @param {Field} field @param {number} weight @param {[number, number]} mean @param {Interval} [interval] */
export function debias(field, weight, [ma, mb], interval = EVERYWHERE) {
  const total = repulsion(weight, 1);
  return changed(field, (a, b) => [(1 - total) * a + total * ma, (1 - total) * b + total * mb], interval);
}

/** What VeCoR's optimum does to the deviation from the mean of the two coordinates. @param {number} weight @param {number} k @param {boolean} others without the identity */
function gain(weight, k, others) {
  const total = repulsion(weight, k);
  return (1 + (others ? total : 0)) / (1 - total);
}

/** @param {number} by @returns {(a: number, b: number) => [number, number]} */
const stretch = (by) => (a, b) => [(a + b) / 2 + (by * (a - b)) / 2, (a + b) / 2 + (by * (b - a)) / 2];

/** FM's velocity mapped to VeCoR's optimum for `k` channel shuffles. @param {Field} field @param {number} weight @param {number} [k] @param {boolean} [others] */
export function retargetShuffle(field, weight, k = 1, others = true) {
  return changed(field, stretch(gain(weight, k, others)));
}

/** Its inverse inside the interval. @param {Field} field @param {number} weight @param {number} [k] @param {boolean} [others] @param {Interval} [interval] */
export function debiasShuffle(field, weight, k = 1, others = true, interval = EVERYWHERE) {
  return changed(field, stretch(1 / gain(weight, k, others)), interval);
}

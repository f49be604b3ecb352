// Who has which colour, on a light and on a dark page. The colours are written by Python (tools/explorers.py).

import COLOURS from "../colours.json" with { type: "json" };

/**
 * @typedef {object} Theme
 * @property {boolean} dark
 * @property {string} noise
 * @property {string} data
 * @property {string} other data of the classes that are not in question
 * @property {string} attract
 * @property {string} repel
 * @property {string} model
 * @property {string} truth
 * @property {string} paper
 * @property {string} ink
 * @property {string} faint
 * @property {string} line
 * @property {string} grid
 * @property {(name: string) => string} method the colour of a method
 */

/** @typedef {Record<string, {label: string, light: string, dark: string}>} Methods */
const METHODS = /** @type {Methods} */ (COLOURS.methods);

/** @param {boolean} dark @returns {Theme} */
export function theme(dark) {
  const side = dark ? "dark" : "light";
  return { ...COLOURS[side], dark, method: (name) => METHODS[name]?.[side] ?? COLOURS[side].model };
}

/** The name of a method that a reader sees. @param {string} name */
export const labelOf = (name) => METHODS[name]?.label ?? name;

export const TIME = COLOURS.time;
export const DRIFT = COLOURS.drift;
export const DIVERGING = COLOURS.diverging;
export const CLASSES = COLOURS.classes;

/** The colour of `value` on a ramp that begins at `low` and ends at `high`. @param {string[]} ramp @param {number} value @param {number} low @param {number} high */
export function onRamp(ramp, value, low, high) {
  return ramp[step(ramp.length, value, low, high)];
}

/** Which of `n` steps between `low` and `high` holds `value`. @param {number} n @param {number} value @param {number} low @param {number} high */
export function step(n, value, low, high) {
  const place = Math.floor(((value - low) / (high - low)) * n);
  return place > 0 ? Math.min(place, n - 1) : 0; // 0 for NaN too
}

/** Whether the page behind `element` is dark: the first background that is not clear decides. @param {Element} element */
export function isDark(element) {
  for (let at = /** @type {Element | null} */ (element); at; at = at.parentElement) {
    const parts = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
    if (parts.length >= 3 && (parts[3] ?? 1) > 0.5) return 0.3 * parts[0] + 0.6 * parts[1] + 0.1 * parts[2] < 110;
  }
  return false;
}

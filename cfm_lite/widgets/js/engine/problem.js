// What is wrong with a value, said to the reader: one thought a sentence.

/** An input that cannot be used. The message is shown as it is. */
export class Problem extends Error {}

/**
 * `value` itself; a Problem unless it is a finite number in [low, high].
 * @param {string} name
 * @param {any} value
 * @param {number} [low]
 * @param {number} [high]
 * @returns {number}
 */
export function number(name, value, low = -Infinity, high = Infinity) {
  if (typeof value !== "number" || !Number.isFinite(value)) {
    throw new Problem(`${name} is ${JSON.stringify(value) ?? "missing"}. It must be a number.`);
  }
  if (value < low || value > high) {
    throw new Problem(`${name} is ${value}. It must lie between ${low} and ${high}.`);
  }
  return value;
}

/**
 * λK, below 1; a Problem where the loss has no minimum.
 * @param {number} weight
 * @param {number} k
 * @returns {number}
 */
export function repulsion(weight, k) {
  const total = number("the weight λ", weight, 0) * number("K", k, 1);
  if (total >= 1) {
    throw new Problem(`λK is ${total.toFixed(2)}. It must stay below 1: from there on the loss has no minimum.`);
  }
  return total;
}

// A square piece of the plane with its axes a and b, and what one draws on it.

import { CLASSES, DRIFT, step } from "./theme.js";
import { FONT, Panel } from "./stage.js";

/** @typedef {[number, number, number, number]} Limits left, right, bottom, top */

/** Places of an n x n grid inside `limits`, rows from the bottom. @param {Limits} limits @param {number} n @returns {Float64Array} */
export function gridPoints([left, right, bottom, top], n) {
  const x = new Float64Array(2 * n * n);
  for (let j = 0, i = 0; j < n; j++) {
    for (let k = 0; k < n; k++) {
      x[i++] = left + ((right - left) * (k + 0.5)) / n;
      x[i++] = bottom + ((top - bottom) * (j + 0.5)) / n;
    }
  }
  return x;
}

/** The smallest square around points, widened and rounded out to half units; it always holds noise. @param {Float64Array} x @returns {Limits} */
export function squareLimits(x) {
  let [low, high, floor, roof] = [-2, 2, -2, 2];
  for (let i = 0; i < x.length; i += 2) {
    [low, high] = [Math.min(low, x[i]), Math.max(high, x[i])];
    [floor, roof] = [Math.min(floor, x[i + 1]), Math.max(roof, x[i + 1])];
  }
  const half = Math.ceil(Math.max(high - low, roof - floor) * 1.06) / 2;
  const round = (/** @type {number} */ v) => Math.round(2 * v) / 2;
  const [left, bottom] = [round((low + high) / 2 - half), round((floor + roof) / 2 - half)];
  return [left, left + 2 * half, bottom, bottom + 2 * half];
}

/** Log densities whose super-level sets hold `masses` of the total on a grid. @param {Float64Array} log @param {number[]} masses */
export function massLevels(log, masses) {
  const ordered = Float64Array.from(log).sort().reverse();
  const held = new Float64Array(ordered.length);
  let sum = 0;
  for (let i = 0; i < ordered.length; i++) held[i] = sum += Math.exp(ordered[i] - ordered[0]);
  return masses.map((mass) => ordered[held.findIndex((h) => h >= mass * sum)]);
}

/** Lines of equal value on an n x n grid over `limits`, as segments [a, b, a, b, ...]. @param {Float64Array} values @param {number} n @param {Limits} limits @param {number} level */
export function contour(values, n, [left, right, bottom, top], level) {
  /** @type {number[]} */
  const found = [];
  const a = (/** @type {number} */ k) => left + ((right - left) * (k + 0.5)) / n;
  const b = (/** @type {number} */ j) => bottom + ((top - bottom) * (j + 0.5)) / n;
  for (let j = 0; j + 1 < n; j++) {
    for (let k = 0; k + 1 < n; k++) {
      const corner = [values[j * n + k], values[j * n + k + 1], values[(j + 1) * n + k + 1], values[(j + 1) * n + k]];
      /** @type {number[]} */
      const cut = [];
      for (let e = 0; e < 4; e++) {
        const [p, q] = [corner[e], corner[(e + 1) % 4]];
        if (p >= level === q >= level) continue;
        const s = (level - p) / (q - p);
        cut.push(...[[a(k + s), b(j)], [a(k + 1), b(j + s)], [a(k + 1 - s), b(j + 1)], [a(k), b(j + 1 - s)]][e]);
      }
      if (cut.length >= 4) found.push(...cut.slice(0, 4));
      if (cut.length === 8) found.push(...cut.slice(4));
    }
  }
  return Float64Array.from(found);
}

/** The last shade: planes side by side often have the same. @type {{values?: Float64Array, colour?: string, depth?: number, image?: HTMLCanvasElement}} */
const shaded = {};

/** `values` (n x n, rows from the bottom, in [0, 1]) as an image. @param {Float64Array} values @param {number} n @param {string} colour @param {number} depth */
function shadeImage(values, n, colour, depth) {
  const image = (shaded.image ??= document.createElement("canvas"));
  if (shaded.values === values && shaded.colour === colour && shaded.depth === depth) return image;
  if (image.width !== n || image.height !== n) [image.width, image.height] = [n, n];
  const context = /** @type {CanvasRenderingContext2D} */ (image.getContext("2d"));
  const pixels = context.createImageData(n, n);
  const [red, green, blue] = [1, 3, 5].map((i) => Number.parseInt(colour.slice(i, i + 2), 16));
  for (let j = 0; j < n; j++) {
    for (let k = 0, at = 4 * (n - 1 - j) * n; k < n; k++, at += 4) {
      pixels.data[at] = red;
      pixels.data[at + 1] = green;
      pixels.data[at + 2] = blue;
      pixels.data[at + 3] = 255 * depth * values[j * n + k];
    }
  }
  context.putImageData(pixels, 0, 0);
  Object.assign(shaded, { values, colour, depth });
  return image;
}

export class Plane extends Panel {
  /** @param {Limits} limits @param {ConstructorParameters<typeof Panel>[0]} [look] */
  constructor(limits, look) {
    super(look);
    this.limits = limits;
  }

  /** @param {number} a */
  across(a) {
    return this.box.x + ((a - this.limits[0]) / (this.limits[1] - this.limits[0])) * this.box.w;
  }

  /** @param {number} b */
  up(b) {
    return this.box.y + this.box.h - ((b - this.limits[2]) / (this.limits[3] - this.limits[2])) * this.box.h;
  }

  /** The point under a place of the canvas, or null outside. @param {number} px @param {number} py @returns {[number, number] | null} */
  under(px, py) {
    const [{ x, y, w, h }, [left, right, bottom, top]] = [this.box, this.limits];
    if (px < x || px > x + w || py < y || py > y + h) return null;
    return [left + ((px - x) / w) * (right - left), top - ((py - y) / h) * (top - bottom)];
  }

  frame() {
    const [c, { x, y, w, h }, [left, right, bottom, top]] = [this.context, this.box, this.limits];
    c.strokeStyle = this.colours.line;
    c.lineWidth = 1;
    c.strokeRect(x, y, w, h);
    c.fillStyle = this.colours.faint;
    c.font = `11px ${FONT}`;
    c.textBaseline = "top";
    c.textAlign = "center";
    const gap = ticks(left, right, w < 200 ? 3 : 5);
    c.beginPath();
    for (let a = Math.ceil(left / gap) * gap; a <= right + 1e-9; a += gap) {
      c.moveTo(this.across(a), y + h);
      c.lineTo(this.across(a), y + h + 4);
      c.fillText(plain(a), this.across(a), y + h + 6);
    }
    if (this.first) {
      c.textAlign = "right";
      c.textBaseline = "middle";
      for (let b = Math.ceil(bottom / gap) * gap; b <= top + 1e-9; b += gap) {
        c.moveTo(x, this.up(b));
        c.lineTo(x - 4, this.up(b));
        c.fillText(plain(b), x - 7, this.up(b));
      }
    }
    c.stroke();
    c.fillStyle = this.colours.ink;
    c.font = `italic 13px ${FONT}`;
    c.textAlign = "center";
    c.textBaseline = "top";
    c.fillText("a", x + w / 2, y + h + 18);
    if (this.first) c.fillText("b", x - 30, y + h / 2 - 16);
  }

  /** A shade as deep as `values` (n x n, rows from the bottom, in [0, 1]). @param {Float64Array} values @param {number} n @param {string} colour @param {number} [depth] */
  shade(values, n, colour, depth = 0.6) {
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(shadeImage(values, n, colour, depth), this.box.x, this.box.y, this.box.w, this.box.h);
  }

  /** Small squares at points, for data. @param {Float64Array} x @param {string} colour @param {number} [size] @param {(i: number) => boolean} [which] */
  specks(x, colour, size = 2, which = () => true) {
    const c = this.context;
    c.fillStyle = colour;
    for (let i = 0; 2 * i < x.length; i++) {
      if (which(i)) c.fillRect(this.across(x[2 * i]) - size / 2, this.up(x[2 * i + 1]) - size / 2, size, size);
    }
  }

  /** Round dots with a rim, for particles. One path a dot: a browser fills many small ones faster than a large one. @param {Float64Array} x @param {string} colour @param {number} [radius] */
  dots(x, colour, radius = 3) {
    if (radius > 2.2) this.discs(x, this.colours.paper, radius + 0.3);
    this.discs(x, colour, radius > 2.2 ? radius - 0.3 : radius);
  }

  /** @param {Float64Array} x @param {string} colour @param {number} radius */
  discs(x, colour, radius) {
    const c = this.context;
    c.fillStyle = colour;
    for (let i = 0; i < x.length; i += 2) this.disc(c, x[i], x[i + 1], radius);
  }

  /** @param {CanvasRenderingContext2D} c @param {number} a @param {number} b @param {number} radius */
  disc(c, a, b, radius) {
    c.beginPath();
    c.arc(this.across(a), this.up(b), radius, 0, 7);
    c.fill();
  }

  /**
   * Arrows v at x, |v| / scale long in units of the plane; those that `which` leaves out are not drawn.
   * @param {Float64Array} x
   * @param {Float64Array} v
   * @param {string} colour
   * @param {number} scale
   * @param {Uint8Array} [which]
   */
  arrows(x, v, colour, scale, which) {
    const [c, unit] = [this.context, this.box.w / (this.limits[1] - this.limits[0]) / scale];
    const width = Math.max(1.3, this.box.w * 0.0055);
    const head = Math.max(4.6 * width, 5);
    c.fillStyle = colour;
    for (let i = 0; i < x.length; i += 2) {
      if (which && !which[i >> 1]) continue;
      const dx = v[i] * unit;
      const dy = -v[i + 1] * unit;
      const length = Math.hypot(dx, dy);
      const px = this.across(x[i]);
      const py = this.up(x[i + 1]);
      if (!(length > 0.8)) {
        c.fillRect(px - 0.8, py - 0.8, 1.6, 1.6);
        continue;
      }
      const tip = Math.min(head, length);
      const ux = dx / length;
      const uy = dy / length;
      const bx = px + dx - tip * ux; // where the head begins
      const by = py + dy - tip * uy;
      const thin = width / 2;
      const wide = 0.42 * tip;
      c.beginPath();
      c.moveTo(px - thin * uy, py + thin * ux);
      c.lineTo(bx - thin * uy, by + thin * ux);
      c.lineTo(bx - wide * uy, by + wide * ux);
      c.lineTo(px + dx, py + dy);
      c.lineTo(bx + wide * uy, by - wide * ux);
      c.lineTo(bx + thin * uy, by - thin * ux);
      c.lineTo(px + thin * uy, py - thin * ux);
      c.fill();
    }
  }

  /** Separate lines, such as those of `contour`. @param {Float64Array} segments @param {string} colour @param {number} [width] */
  segments(segments, colour, width = 1.2) {
    const c = this.context;
    c.beginPath();
    for (let i = 0; i < segments.length; i += 4) {
      c.moveTo(this.across(segments[i]), this.up(segments[i + 1]));
      c.lineTo(this.across(segments[i + 2]), this.up(segments[i + 3]));
    }
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.stroke();
  }

  /** The way that particles came, each of `states` (n, 2) a corner. @param {Float64Array[]} states @param {string} colour @param {number} [alpha] @param {number} [width] @param {number} [every] of how many particles one has its way drawn */
  trails(states, colour, alpha = 0.35, width = 1, every = 1) {
    if (states.length < 2) return;
    const c = this.context;
    c.beginPath();
    for (let i = 0; i < states[0].length; i += 2 * every) {
      c.moveTo(this.across(states[0][i]), this.up(states[0][i + 1]));
      for (let s = 1; s < states.length; s++) c.lineTo(this.across(states[s][i]), this.up(states[s][i + 1]));
    }
    c.globalAlpha = alpha;
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.stroke();
    c.globalAlpha = 1;
  }

  /** Dots whose colour says a value between 0 and `worst`. @param {Float64Array} x @param {Float64Array} values @param {number} worst @param {number} [radius] */
  valued(x, values, worst, radius = 3) {
    const c = this.context;
    const of = Uint8Array.from(values, (value) => step(DRIFT.length, value, 0, worst));
    for (let k = 0; k < DRIFT.length; k++) {
      c.fillStyle = DRIFT[this.colours.dark ? DRIFT.length - 1 - k : k];
      for (let i = 0; i < of.length; i++) if (of[i] === k) this.disc(c, x[2 * i], x[2 * i + 1], radius);
    }
  }

  /** A saltire: where a mean stands. @param {number} a @param {number} b @param {string} colour @param {number} [size] */
  cross(a, b, colour, size = 6) {
    const [c, x, y] = [this.context, this.across(a), this.up(b)];
    for (const [width, ink] of /** @type {[number, string][]} */ ([[6, this.colours.paper], [3.4, colour]])) {
      c.beginPath();
      c.moveTo(x - size, y - size);
      c.lineTo(x + size, y + size);
      c.moveTo(x + size, y - size);
      c.lineTo(x - size, y + size);
      c.strokeStyle = ink;
      c.lineWidth = width;
      c.stroke();
    }
  }

  /** The line a = b. @param {string} colour */
  diagonal(colour) {
    const [c, low, high] = [this.context, Math.max(this.limits[0], this.limits[2]), Math.min(this.limits[1], this.limits[3])];
    c.beginPath();
    c.setLineDash([6, 4]);
    c.moveTo(this.across(low), this.up(low));
    c.lineTo(this.across(high), this.up(high));
    c.strokeStyle = colour;
    c.lineWidth = 1.2;
    c.stroke();
    c.setLineDash([]);
  }

  /** A ring that a hand can take: a component of its class. @param {number} a @param {number} b @param {number} spread @param {number} label @param {boolean} chosen */
  handle(a, b, spread, label, chosen) {
    const [c, x, y] = [this.context, this.across(a), this.up(b)];
    const radius = Math.max((spread / (this.limits[1] - this.limits[0])) * this.box.w, 7);
    c.beginPath();
    c.arc(x, y, radius, 0, 7);
    c.strokeStyle = CLASSES[label % CLASSES.length];
    c.lineWidth = chosen ? 3 : 1.6;
    c.stroke();
    c.fillStyle = CLASSES[label % CLASSES.length];
    c.beginPath();
    c.arc(x, y, chosen ? 6 : 4.5, 0, 7);
    c.fill();
    c.font = `600 11px ${FONT}`;
    c.textAlign = "center";
    c.textBaseline = "bottom";
    c.fillStyle = this.colours.ink;
    c.fillText(String(label), x, y - 7);
  }
}

/** A step that gives about `n` ticks. @param {number} low @param {number} high @param {number} n */
export function ticks(low, high, n) {
  const rough = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5, 10].find((m) => m * power >= rough) ?? 10);
}

/** A number as a tick says it. @param {number} value */
export function plain(value) {
  return (Math.abs(value) < 1e-9 ? "0" : String(Number(value.toPrecision(4)))).replace("-", "−");
}

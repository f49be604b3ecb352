// A curve's panel: two axes with their own scales.

import { plain, ticks } from "./plane.js";
import { FONT, Panel } from "./stage.js";

/** @typedef {(value: number) => number} Scale */
/** @type {Record<string, Scale>} */
const SCALES = {
  linear: (v) => v,
  log: (v) => Math.log10(Math.max(v, 1e-300)),
  symlog: (v) => (Math.abs(v) <= 1 ? v : Math.sign(v) * (1 + Math.log10(Math.abs(v)))),
};

/**
 * @typedef {object} Axis
 * @property {number} low
 * @property {number} high
 * @property {string} [scale]
 * @property {string} label
 * @property {number[]} [ticks]
 */

export class Chart extends Panel {
  /** @param {Axis} horizontal @param {Axis} vertical @param {ConstructorParameters<typeof Panel>[0]} [look] */
  constructor(horizontal, vertical, look) {
    super({ wide: true, ...look });
    this.ownAxis = true;
    this.axes = { x: horizontal, y: vertical };
  }

  /** @param {number} v @param {"x" | "y"} which */
  share(v, which) {
    const axis = this.axes[which];
    const scale = SCALES[axis.scale ?? "linear"];
    return (scale(v) - scale(axis.low)) / (scale(axis.high) - scale(axis.low));
  }

  /** @param {number} v */
  across(v) {
    return this.box.x + this.share(v, "x") * this.box.w;
  }

  /** @param {number} v */
  up(v) {
    return this.box.y + (1 - this.share(v, "y")) * this.box.h;
  }

  frame() {
    const [c, { x, y, w, h }, { x: across, y: up }] = [this.context, this.box, this.axes];
    c.font = `11px ${FONT}`;
    c.lineWidth = 0.7;
    c.strokeStyle = this.colours.grid;
    c.fillStyle = this.colours.faint;
    c.beginPath();
    c.textAlign = "center";
    c.textBaseline = "top";
    for (const v of places(across, 5)) {
      c.moveTo(this.across(v), y);
      c.lineTo(this.across(v), y + h);
      c.fillText(plain(v), this.across(v), y + h + 6);
    }
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const v of places(up, 5)) {
      c.moveTo(x, this.up(v));
      c.lineTo(x + w, this.up(v));
      c.fillText(plain(v), x - 6, this.up(v));
    }
    c.stroke();
    c.beginPath();
    c.moveTo(x, y);
    c.lineTo(x, y + h);
    c.lineTo(x + w, y + h);
    c.strokeStyle = this.colours.line;
    c.lineWidth = 1;
    c.stroke();
    c.fillStyle = this.colours.ink;
    c.font = `12px ${FONT}`;
    c.textAlign = "center";
    c.textBaseline = "top";
    c.fillText(across.label, x + w / 2, y + h + 19, w);
    c.textAlign = "left";
    c.textBaseline = "alphabetic";
  }

  /** @param {ArrayLike<number>} xs @param {ArrayLike<number>} ys @param {string} colour @param {{dash?: number[], width?: number, marks?: boolean}} [look] */
  line(xs, ys, colour, { dash = [], width = 2, marks = false } = {}) {
    const c = this.context;
    c.beginPath();
    for (let i = 0; i < xs.length; i++) {
      if (Number.isFinite(ys[i])) c.lineTo(this.across(xs[i]), this.up(ys[i]));
    }
    c.setLineDash(dash);
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.lineJoin = "round";
    c.stroke();
    c.setLineDash([]);
    if (marks) for (let i = 0; i < xs.length; i++) this.mark(xs[i], ys[i], colour, 2.6);
  }

  /** @param {number} x @param {number} y @param {string} colour @param {number} [radius] */
  mark(x, y, colour, radius = 5) {
    const c = this.context;
    c.beginPath();
    c.arc(this.across(x), this.up(y), radius, 0, 7);
    c.fillStyle = colour;
    c.fill();
  }

  /** @param {number} y @param {string} colour @param {number[]} [dash] */
  level(y, colour, dash = []) {
    this.line([this.axes.x.low, this.axes.x.high], [y, y], colour, { dash, width: 1.2 });
  }

  /** @param {number} x @param {string} colour */
  now(x, colour) {
    this.line([x, x], [this.axes.y.low, this.axes.y.high], colour, { dash: [4, 4], width: 1 });
  }
}

/** @param {Axis} axis @param {number} n */
function places({ low, high, ticks: given }, n) {
  if (given) return given;
  const gap = ticks(low, high, n);
  const first = Math.ceil(low / gap - 1e-9);
  return Array.from({ length: Math.floor(high / gap + 1e-9) - first + 1 }, (_, i) => (first + i) * gap);
}

// A small image, or a matrix, cell by cell.

import { DIVERGING, onRamp } from "./theme.js";
import { Panel } from "./stage.js";

export class Picture extends Panel {
  /** Cells (rows x columns, from the top); `signed` values run through the diverging colours. @param {ArrayLike<number>} values @param {number} columns @param {number} reach @param {boolean} [signed] @param {string} [rim] */
  cells(values, columns, reach, signed = false, rim = this.colours.line) {
    const [c, { x, y, w, h }] = [this.context, this.box];
    const rows = values.length / columns;
    for (let i = 0; i < values.length; i++) {
      const [left, upper] = [Math.floor(((i % columns) * w) / columns), Math.floor((Math.floor(i / columns) * h) / rows)];
      const [right, lower] = [Math.floor((((i % columns) + 1) * w) / columns), Math.floor(((Math.floor(i / columns) + 1) * h) / rows)];
      if (signed) c.fillStyle = onRamp(DIVERGING, values[i], -reach, reach);
      else {
        const grey = Math.round(255 * Math.min(Math.max((values[i] + reach) / (2 * reach), 0), 1));
        c.fillStyle = `rgb(${grey},${grey},${grey})`;
      }
      c.fillRect(x + left, y + upper, right - left, lower - upper);
    }
    c.strokeStyle = rim;
    c.lineWidth = rim === this.colours.line ? 1 : 2.6;
    c.strokeRect(x, y, w, h);
  }
}

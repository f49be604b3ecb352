// A canvas with panels side by side: where each panel stands, sharp on every screen.

/** @typedef {import("./theme.js").Theme} Theme */

export const FONT = "system-ui, sans-serif";
const [TOP, BOTTOM, LEFT, GAP] = [24, 34, 38, 16];
const LARGEST = 330;

/**
 * @typedef {object} Box
 * @property {number} x
 * @property {number} y
 * @property {number} w
 * @property {number} h
 */

export class Panel {
  /** @param {{wide?: boolean, bare?: boolean, gap?: number}} [look] `wide`: has a row of its own on a narrow page; `bare`: no room for axes */
  constructor({ wide = false, bare = false, gap = GAP } = {}) {
    this.wide = wide;
    this.bare = bare;
    this.gap = gap;
    /** @type {Box} */
    this.box = { x: 0, y: 0, w: 1, h: 1 };
    this.first = true; // of its row: only there stand the numbers of a shared axis
    this.ownAxis = false;
    this.keptKey = "";
    /** @type {HTMLCanvasElement | undefined} */
    this.pixelsKept = undefined;
  }

  /** @param {CanvasRenderingContext2D} context @param {Theme} theme */
  begin(context, theme) {
    this.c = context;
    this.theme = theme;
  }

  /** @returns {CanvasRenderingContext2D} */
  get context() {
    return /** @type {CanvasRenderingContext2D} */ (this.c);
  }

  /** @returns {Theme} */
  get colours() {
    return /** @type {Theme} */ (this.theme);
  }

  /** Words above the panel. @param {string} text @param {string} [colour] */
  title(text, colour = this.colours.ink) {
    const [c, { x, y, w }] = [this.context, this.box];
    c.fillStyle = colour;
    c.textAlign = "left";
    c.textBaseline = "alphabetic";
    const size = [13, 12, 11].find((one) => {
      c.font = `600 ${one}px ${FONT}`;
      return c.measureText(text).width <= w + this.gap / 2;
    });
    let shown = text;
    while (!size && shown.length > 4 && c.measureText(`${shown}…`).width > w + this.gap / 2) shown = shown.slice(0, -1).trimEnd();
    c.fillText(size ? text : `${shown}…`, x, y - 8);
  }

  /** Words inside the panel, at a share of its width and height. @param {string} text @param {number} across @param {number} up @param {string} colour @param {CanvasTextAlign} [align] @param {number} [size] */
  note(text, across, up, colour, align = "center", size = 12) {
    const [c, { x, y, w, h }] = [this.context, this.box];
    c.font = `${size}px ${FONT}`;
    c.textAlign = align;
    c.textBaseline = "middle";
    c.lineWidth = 3;
    c.strokeStyle = this.colours.paper;
    c.lineJoin = "round";
    c.strokeText(text, x + across * w, y + (1 - up) * h, w);
    c.fillStyle = colour;
    c.fillText(text, x + across * w, y + (1 - up) * h, w);
  }

  /** What changes seldom: drawn once for each `key`, then kept as pixels. @param {string | number} key @param {() => void} draw */
  kept(key, draw) {
    const [c, { x, y, w, h }] = [this.context, this.box];
    const ratio = c.getTransform().a;
    const whole = [key, x, y, w, h, ratio, this.colours.dark].join();
    if (this.keptKey !== whole) {
      this.keptKey = whole;
      this.pixelsKept = document.createElement("canvas");
      [this.pixelsKept.width, this.pixelsKept.height] = [Math.ceil(w * ratio), Math.ceil(h * ratio)];
      this.c = /** @type {CanvasRenderingContext2D} */ (this.pixelsKept.getContext("2d"));
      this.c.setTransform(ratio, 0, 0, ratio, -x * ratio, -y * ratio);
      draw();
      this.c = c;
    }
    const image = /** @type {HTMLCanvasElement} */ (this.pixelsKept);
    c.drawImage(image, x, y, image.width / ratio, image.height / ratio);
  }

  /** Draw inside the panel and nowhere else. @param {() => void} draw */
  inside(draw) {
    const [c, { x, y, w, h }] = [this.context, this.box];
    c.save();
    c.beginPath();
    c.rect(x, y, w, h);
    c.clip();
    draw();
    c.restore();
  }
}

export class Stage {
  /** @param {HTMLCanvasElement} canvas @param {Panel[]} panels */
  constructor(canvas, panels) {
    this.canvas = canvas;
    this.panels = panels;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.width = 0;
    this.height = 0;
  }

  /** Place the panels for a page of this width; true if anything moved. @param {number} width @param {number} ratio pixels of the screen per pixel of the page */
  resize(width, ratio) {
    if (width < 40 || (width === this.width && ratio === this.ratio)) return false;
    this.width = width;
    this.ratio = ratio;
    this.settle();
    return true;
  }

  /** Panels in their places, and a canvas of their size. */
  settle() {
    const [width, ratio] = [this.width, this.ratio ?? 1];
    this.placed = [...this.panels];
    this.height = this.place(width);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.height = `${this.height}px`;
  }

  /** @param {number} width @returns {number} the height */
  place(width) {
    let y = 0;
    for (const row of rows(this.panels, width < 520 ? 2 : 4)) {
      const room = row.reduce((sum, panel, i) => sum + (i ? panel.gap + (panel.ownAxis ? LEFT - GAP / 2 : 0) : panel.bare ? 2 : LEFT), 14);
      const parts = row.reduce((sum, panel) => sum + (panel.wide ? 1.25 : 1), 0);
      const most = Math.min(...row.map((panel) => (panel.bare ? 150 : LARGEST)));
      const side = Math.min((width - room) / parts, row.length === 1 && row[0].wide ? 520 : most);
      const height = Math.min(side, LARGEST);
      const bare = row.every((panel) => panel.bare);
      let x = row[0].bare ? 2 : LEFT;
      row.forEach((panel, i) => {
        if (i) x += panel.gap + (panel.ownAxis ? LEFT - GAP / 2 : 0);
        const w = side * (panel.wide && row.length > 1 ? 1.25 : 1);
        const h = row.length === 1 && panel.wide ? Math.min(height, 230) : height;
        panel.box = { x: Math.round(x), y: Math.round(y + TOP), w: Math.floor(w), h: Math.floor(h) };
        panel.first = i === 0 || panel.ownAxis;
        x += w;
      });
      y += TOP + Math.max(...row.map((panel) => panel.box.h)) + (bare ? 8 : BOTTOM);
    }
    return y;
  }

  /** An empty canvas, and panels that draw on it. @param {Theme} theme */
  begin(theme) {
    const ratio = this.ratio ?? 1;
    // a face may show other panels than before
    if (this.panels.length !== this.placed?.length || this.panels.some((panel, i) => panel !== this.placed?.[i])) this.settle();
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    for (const panel of this.panels) panel.begin(this.context, theme);
  }
}

/** Panels in rows of at most `most`; on a narrow page a wide one has its own. @param {Panel[]} panels @param {number} most @returns {Panel[][]} */
function rows(panels, most) {
  /** @type {Panel[][]} */
  const found = [];
  for (const panel of panels) {
    const last = found.at(-1);
    const room = panel.bare ? Math.max(most, 3) : most;
    const alone = most <= 2 && (panel.wide || last?.some((other) => other.wide));
    if (!last || last.length >= room || alone) found.push([panel]);
    else last.push(panel);
  }
  return found;
}

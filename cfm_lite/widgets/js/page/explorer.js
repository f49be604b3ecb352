// An explorer: controls beside one canvas, which is drawn where something changed, at most once a frame.

import { isDark, theme } from "../drawing/theme.js";
import { Stage } from "../drawing/stage.js";
import { Problem } from "../engine/problem.js";
import { build, element } from "./controls.js";
import { ADDRESS, linkTo } from "./link.js";
import CSS from "./style.css";
import { run } from "./work.js";

/**
 * @typedef {Record<string, any>} Values by name of control
 * @typedef {object} Swatch
 * @property {string} text
 * @property {(colours: import("../drawing/theme.js").Theme) => string} colour
 * @property {"dot" | "cross" | "dash"} [shape]
 */
/**
 * @typedef {object} Scene a face at work: it computes and paints
 * @property {import("../drawing/stage.js").Panel[]} panels
 * @property {(values: Values, wait: Wait) => any} compute what is to be seen; a Problem leaves the last picture standing
 * @property {(seen: any, values: Values, colours: import("../drawing/theme.js").Theme) => void} paint
 * @property {(seen: any, values: Values) => string} say one line of plain words
 * @property {Swatch[]} [legend]
 * @property {(hand: Hand) => void} [handle] lets a hand work on the canvas
 */
/**
 * @typedef {object} Face
 * @property {string} name
 * @property {string} title
 * @property {string} [play] the slider that the play button moves
 * @property {number} [seconds] that it takes from end to end
 * @property {boolean} [endless] it begins again at its end
 * @property {(data: any) => import("./controls.js").Control[]} controls
 * @property {(data: any) => Values} values at the start
 * @property {(data: any) => Scene} make
 */
/** @typedef {{job: string, input: any, done: (result: any) => void}} Task long work: a job of engine/jobs.js, and who gets its result */
/** @typedef {(task: Task) => void} Wait while one task is at work another one is not taken: its end draws anew, which asks again */
/** @typedef {{canvas: HTMLCanvasElement, values: () => Values, set: (change: Values) => void, say: (text: string) => void, paint: () => void, controls: HTMLElement}} Hand */

const WORDS = 100; // ms between two texts: a new one is laid out by the whole page, and nobody reads faster
const QUIET = 700; // ms after the last change at which a screen reader is told

export class Explorer {
  /**
   * @param {HTMLElement} root
   * @param {Face} face
   * @param {{data?: any, values?: Values, changed?: (change: Values) => void, hint?: string}} [given]
   */
  constructor(root, face, { data = {}, values = {}, changed = () => {}, hint = "" } = {}) {
    this.root = root;
    this.face = face;
    this.changed = changed;
    this.values = { ...face.values(data), ...values };
    this.pictures = 0; // drawn so far
    this.dirty = true;
    this.hint = hint;
    /** @type {string | undefined} */
    this.playing = undefined;
    this.place = 0;
    this.frame = 0;
    this.said = -WORDS;
    this.words = "";
    /** @type {import("../drawing/theme.js").Theme | undefined} */
    this.colours = undefined;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.build(data);
    this.wake();
    this.sight = new ResizeObserver(() => this.fit());
    this.sight.observe(this.root);
    this.look = new MutationObserver(() => this.recolour());
    for (const element of [document.documentElement, document.body]) {
      this.look.observe(element, { attributes: true, attributeFilter: ["class", "style", "data-theme", "data-jp-theme-light", "data-jp-theme-name", "data-md-color-scheme"] });
    }
    this.night = matchMedia("(prefers-color-scheme: dark)");
    this.seenNight = () => this.recolour();
    this.night.addEventListener("change", this.seenNight);
  }

  /** @param {any} data */
  build(data) {
    const { face } = this;
    addStyle(this.root);
    this.data = data;
    this.colours = undefined;
    this.scene = face.make(data);
    this.seen = undefined;
    this.problem = "";
    this.canvas = element("canvas", { role: "img" });
    this.canvas.setAttribute("aria-label", face.title);
    this.stage = new Stage(this.canvas, this.scene.panels);
    /** @type {Record<string, import("./controls.js").Shown>} */
    this.shown = {};
    const row = element("div", { className: "cfm-controls" });
    if (face.play) row.append((this.button = this.playButton(face.play)));
    for (const control of face.controls(data)) {
      const shown = (this.shown[control.name] = build(control, (value) => this.set({ [control.name]: value }, true)));
      shown.show(this.values[control.name]);
      row.append(shown.element);
    }
    this.line = element("div", { className: "cfm-line" });
    this.told = element("div", { className: "cfm-unseen", role: "status" });
    this.legend = element("div", { className: "cfm-legend", "aria-hidden": "true" });
    for (const { text, shape } of this.scene.legend ?? []) {
      this.legend.append(element("span", { textContent: text, className: `cfm-${shape ?? "dot"}` }));
    }
    this.root.classList.add("cfm-lite");
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", face.title);
    this.root.replaceChildren(element("div", { className: "cfm-title", textContent: face.title }), row, this.canvas, this.legend, this.line, this.told);
    this.scene.handle?.({
      canvas: this.canvas,
      controls: row,
      values: () => this.values,
      set: (change) => this.set(change, true),
      say: (text) => this.say(text),
      paint: () => this.repaint(),
    });
    row.append(...this.share());
    // JupyterLab would take the arrow keys for itself
    for (const one of this.root.querySelectorAll("input, select, button, canvas")) one.setAttribute("data-lm-suppress-shortcuts", "true");
    this.fit();
  }

  /** Take values by name; `own` if they come from this page and must be told to others. @param {Values} change @param {boolean} [own] */
  set(change, own = false) {
    for (const [name, value] of Object.entries(change)) {
      if (!(name in this.values)) continue;
      this.values[name] = value;
      this.shown?.[name]?.show(value);
    }
    this.hint = "";
    this.dirty = true;
    this.wake();
    if (own) this.changed(change);
  }

  /** Other data, with the values as they are. @param {any} data */
  setData(data) {
    this.build(data);
    this.dirty = true;
    this.wake();
  }

  fit() {
    if (this.stage?.resize(this.root.clientWidth, window.devicePixelRatio || 1)) this.draw();
  }

  /** The page may have become light or dark. */
  recolour() {
    this.colours = undefined;
    this.repaint();
  }

  /** The same picture once more, as what it is painted with has changed. */
  repaint() {
    this.paintOnly = true;
    this.wake();
  }

  /** A hint behind the line, until the next change. @param {string} text */
  say(text) {
    this.hint = text;
    this.repaint();
  }

  /** A frame is asked for only where there is something to do. */
  wake() {
    this.frame ||= requestAnimationFrame((now) => this.tick(now));
  }

  /** @param {number} now */
  tick(now) {
    this.frame = 0;
    if (this.stopped) return;
    if (this.playing) this.advance(now);
    if (this.dirty) {
      this.dirty = false;
      this.draw();
    } else if (this.paintOnly) this.paint();
    this.write(now);
    if (this.playing || this.dirty || this.unsaid) this.wake();
  }

  draw() {
    if (!this.scene) return;
    const { scene } = this;
    try {
      this.seen = scene.compute(this.values, (task) => this.wait(scene, task));
      this.problem = "";
    } catch (error) {
      return this.fail(error);
    }
    this.paint();
  }

  /** Say what is wrong; the last good picture stays. @param {unknown} error */
  fail(error) {
    this.problem = error instanceof Problem ? error.message : `Something is wrong here: ${error}`;
    this.paint();
  }

  paint() {
    this.paintOnly = false;
    if (!this.scene || !this.stage?.width || !this.line) return;
    const colours = (this.colours ??= this.coloured(this.scene));
    if (this.seen !== undefined) {
      this.stage.begin(colours);
      this.scene.paint(this.seen, this.values, colours);
      this.pictures += 1;
    }
    const words = this.problem || (this.seen === undefined ? "" : this.scene.say(this.seen, this.values));
    this.words = [words, this.problem ? "The picture is the last good one." : "", this.hint].filter(Boolean).join(" ");
    this.unsaid = this.line.textContent !== this.words;
    if (this.unsaid) this.wake();
  }

  /** The line under the picture, if the last one stood long enough. @param {number} now */
  write(now) {
    if (!this.unsaid || !this.line || now - this.said < WORDS) return;
    const text = (this.line.textContent = this.words);
    this.line.classList.toggle("cfm-wrong", Boolean(this.problem));
    this.unsaid = false;
    this.said = now;
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => {
      if (this.told) this.told.textContent = text;
    }, QUIET);
  }

  /** The colours of the page as it is, for the picture and for its legend. @param {Scene} scene */
  coloured(scene) {
    const colours = theme(isDark(this.root));
    this.root.classList.toggle("cfm-dark", colours.dark);
    for (const [i, swatch] of /** @type {HTMLElement[]} */ ([...(this.legend?.children ?? [])]).entries()) {
      swatch.style.setProperty("--cfm-swatch", scene.legend?.[i].colour(colours) ?? "");
    }
    return colours;
  }

  /** @param {Scene} scene @param {Task} task */
  async wait(scene, { job, input, done }) {
    if (this.busy) {
      this.missed = true;
      return;
    }
    this.busy = true;
    this.missed = false;
    try {
      const result = await run(job, input);
      if (this.scene === scene) done(result);
      this.dirty = true;
    } catch (error) {
      if (!this.stopped) this.fail(error);
      this.dirty = this.missed;
    }
    this.busy = false;
    this.wake();
  }

  /** A button that gives a link to this state, and the place of the link. */
  share() {
    const field = element("input", { type: "text", readOnly: true, hidden: true, className: "cfm-link", "aria-label": "a link that holds this state" });
    const button = element("button", { type: "button", textContent: "share", title: "a link that holds this state" });
    button.addEventListener("click", async () => {
      try {
        field.value = linkTo(this.face, this.data, this.values);
      } catch (error) {
        return this.say(error instanceof Problem ? error.message : String(error));
      }
      field.hidden = false;
      field.select();
      const copied = await navigator.clipboard?.writeText(field.value).then(() => true, () => false);
      this.say(`${copied ? "The link is copied." : "Copy the link."}${ADDRESS ? "" : " The site has no public address yet: put this behind the address of a page with this explorer."}`);
    });
    return [button, field];
  }

  /** @param {string} name */
  playButton(name) {
    const button = element("button", { type: "button", textContent: "▶ play" });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.play(!this.playing, name));
    return button;
  }

  /** @param {boolean} on @param {string} [name] */
  play(on, name = this.face.play) {
    this.playing = on ? name : undefined;
    this.last = undefined;
    this.wake();
    this.place = 0; // of what plays, from 0 to 1
    this.put = Number.NaN; // the value that the last step gave it
    if (!this.button) return;
    this.button.textContent = on ? "❚❚ pause" : "▶ play";
    this.button.setAttribute("aria-pressed", String(on));
  }

  /** Move what plays on, by the time that has passed; with reduced motion in ten steps. @param {number} now */
  advance(now) {
    const name = /** @type {string} */ (this.playing);
    const input = this.shown?.[name]?.element.querySelector("input");
    if (!input) return;
    const [low, high, step] = [Number(input.min), Number(input.max), Number(input.step)];
    this.last ??= now;
    const passed = (now - this.last) / 1000;
    if (this.still.matches && passed < 0.8) return;
    this.last = now;
    if (this.values[name] !== this.put) {
      // a hand moved it meanwhile, or it has just begun
      this.place = (this.values[name] - low) / (high - low);
      if (Number.isNaN(this.put) && this.place >= 1) this.place = 0;
    }
    this.place += this.still.matches ? 0.1 : passed / (this.face.seconds ?? 5);
    const over = this.place >= 1;
    if (over) this.place = this.face.endless && this.values[name] >= high ? 0 : 1;
    const value = low + this.place * (high - low);
    this.put = step ? Math.round(value / step) * step : value;
    this.set({ [name]: this.put }, true);
    if (over && !this.face.endless) this.play(false);
  }

  destroy() {
    this.stopped = true;
    cancelAnimationFrame(this.frame);
    clearTimeout(this.quiet);
    this.sight.disconnect();
    this.look.disconnect();
    this.night.removeEventListener("change", this.seenNight);
    this.root.replaceChildren();
  }
}

/** The style, once in each document or shadow tree. @param {HTMLElement} root */
function addStyle(root) {
  const place = root.getRootNode();
  const owner = place instanceof ShadowRoot ? place : document.head;
  if (owner.querySelector("style[data-cfm-lite]")) return;
  const style = element("style", { textContent: CSS });
  style.dataset.cfmLite = "";
  owner.append(style);
}

// Pictures from words: what the shipped network draws for a caption, and what the reader reads in it. Python draws;
// pictures of a shelf come with the page. The last four stand side by side.

import { Panel } from "../drawing/stage.js";
import { Problem } from "../engine/problem.js";

const SHOWN = 4;
const SIDE = 32;
const NAMES = {
  size: "size", colour: "colour", kind: "thing", relation: "where", size2: "second size", colour2: "second colour", kind2: "second thing",
  guidance: "guidance", seed: "noise", negative: "away from the colour", weight: "λ",
};
/** @type {Record<string, Record<string, string>>} choices that are not called by their value */
const CALLED = { size: { "": "any" }, relation: { "": "alone", left: "left of", right: "right of" }, size2: { "": "any" }, negative: { "": "none" }, weight: { 0: "0 (FM)" } };

/** @typedef {{caption: string, read: string[], right: boolean}} Told */
/** @typedef {Told & {key: string, sheet: HTMLImageElement | undefined, index: number}} Drawn */

/** The name of a picture, as Python makes it. @param {import("../page/explorer.js").Values} v */
function keyOf(v) {
  const things = [v.size, v.colour, v.kind, ...(v.relation ? [v.size2, v.colour2, v.kind2] : [])];
  return [v.relation, ...things, String(v.guidance), v.seed, v.negative, String(v.weight)].join();
}

/** Its guidance, noise, negative and λ, as a line tells them. @param {string} key */
function settings(key) {
  const [guidance, seed, negative, weight] = key.split(",").slice(-4);
  return `guidance ${guidance}, noise ${seed}${negative ? `, away from ${negative}` : ""}${weight === "0" ? "" : `, λ = ${weight}`}`;
}

/** @type {import("../page/explorer.js").Face} */
export const words = {
  name: "words",
  title: "Pictures from words",
  controls: (data) =>
    Object.entries(NAMES).map(([name, label]) => ({
      name, label, kind: "choice",
      options: (data.choices?.[name] ?? [""]).map((/** @type {any} */ one) => [CALLED[name]?.[one] ?? String(one), one]),
    })),
  values: (data) => ({ ...(data.start ?? Object.fromEntries(Object.keys(NAMES).map((name) => [name, ""]))), picture: {} }),

  make(data) {
    const shelf = Object.entries(data.shelf ?? {});
    const panels = Array.from({ length: SHOWN }, () => new Panel());
    /** @type {Map<string, HTMLImageElement>} */
    const sheets = new Map();
    let repaint = () => {};
    /** Pictures in a row, once a page has unpacked them. @param {string} png */
    const sheet = (png) => {
      let image = sheets.get(png);
      if (!image && typeof Image !== "undefined") {
        image = new Image();
        image.onload = () => repaint();
        image.src = `data:image/png;base64,${png}`;
        sheets.set(png, image);
      }
      return image;
    };
    /** @param {string} key @param {any} picture @returns {Drawn | undefined} */
    const find = (key, picture) => {
      if (picture.key === key) return { ...picture, sheet: sheet(picture.png), index: 0 };
      const index = shelf.findIndex(([name]) => name === key);
      return index < 0 ? undefined : { key, ...shelf[index][1], sheet: sheet(data.png), index };
    };
    /** @type {Drawn[]} the newest first; at the start the four relations */
    let film = (data.film ?? []).map((/** @type {string} */ key) => find(key, {}));

    return {
      panels,
      legend: [{ text: "read as asked", colour: (c) => c.attract }, { text: "read otherwise", colour: (c) => c.repel, shape: "cross" }],
      handle(hand) {
        repaint = hand.paint;
      },
      compute(values) {
        const key = keyOf(values);
        const found = find(key, values.picture);
        if (!found && values.picture.problem) throw new Problem(values.picture.problem);
        if (found) film = [found, ...film.filter((one) => one.key !== key)].slice(0, SHOWN);
        return { film, waiting: !found };
      },
      paint({ film }, _, colours) {
        for (const [i, panel] of panels.entries()) {
          const [c, { x, y, w, h }] = [panel.context, panel.box];
          const drawn = film[i];
          c.strokeStyle = i ? colours.line : colours.model;
          c.lineWidth = i ? 1 : 2.6;
          if (drawn?.sheet?.complete) {
            c.imageSmoothingEnabled = false;
            const columns = drawn.sheet.naturalWidth / SIDE;
            c.drawImage(drawn.sheet, (drawn.index % columns) * SIDE, Math.floor(drawn.index / columns) * SIDE, SIDE, SIDE, x, y, w, h);
            c.imageSmoothingEnabled = true;
          }
          c.strokeRect(x, y, w, h);
          if (!drawn) continue;
          panel.title(drawn.caption, i ? colours.ink : colours.model);
          const lines = [`${drawn.right ? "✓" : "✕"} ${drawn.read[0]}`, ...drawn.read.slice(1)];
          for (const [row, text] of lines.entries()) panel.note(text, 0, -(10 + 16 * row) / h, drawn.right ? colours.attract : colours.repel, "left", 13);
        }
      },
      say({ film, waiting }) {
        if (waiting) return "Python is asked for this picture. Without a kernel there is one thing alone, with size any, guidance 1 or 2, and noise 0 (with λ above 0 a star).";
        const { caption, read, right, key } = film[0];
        return `Asked: ${caption} (${settings(key)}). Read: ${read.join(" ")}. ${right ? "All of it is right." : "That is not what was asked."}`;
      },
    };
  },
};

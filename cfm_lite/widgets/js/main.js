// The explorers: on a plain page `cfmLite.mount(element, name, settings)`, in a notebook the widget's `render`.

import { Explorer } from "./page/explorer.js";
import { asked, read } from "./page/link.js";
import { Problem } from "./engine/problem.js";
import { divergence } from "./faces/divergence.js";
import { exactField } from "./faces/exact_field.js";
import { features } from "./faces/features.js";
import { guidance } from "./faces/guidance.js";
import { ownData } from "./faces/own_data.js";
import { training } from "./faces/training.js";
import { trajectories } from "./faces/trajectories.js";
import { words } from "./faces/words.js";
import { wrongVelocities } from "./faces/wrong_velocities.js";

/** @type {Record<string, import("./page/explorer.js").Face>} */
export const FACES = Object.fromEntries([exactField, trajectories, ownData, divergence, wrongVelocities, features, guidance, training, words].map((face) => [face.name, face]));

let linked = false; // the first explorer that the page's link asks for has taken its state

/** What the link of the page says of an explorer. @param {import("./page/explorer.js").Face} face @param {any} [settings] */
function withLink(face, settings = {}) {
  const { hash } = globalThis.location;
  if (linked || asked(hash) !== face.name) return settings;
  linked = true;
  try {
    return { ...settings, ...read(face, settings.data ?? {}, hash) };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return { ...settings, hint: error.message };
  }
}

/**
 * Show the explorer `name` in `element`; returns it, with `set(values)` and `destroy()`.
 * @param {HTMLElement} element
 * @param {string} name
 * @param {{data?: any, values?: Record<string, any>, changed?: (change: Record<string, any>) => void}} [settings]
 */
export function mount(element, name, settings) {
  try {
    if (!FACES[name]) throw new Problem(`There is no explorer called ${name}.`);
    const before = linked;
    const explorer = new Explorer(element, FACES[name], withLink(FACES[name], settings));
    if (linked !== before) element.scrollIntoView();
    return explorer;
  } catch (error) {
    element.textContent = error instanceof Problem ? error.message : String(error);
    return undefined;
  }
}

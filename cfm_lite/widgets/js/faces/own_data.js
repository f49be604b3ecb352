// Draw your own data: a click adds a component, a drag moves it, and the three fields follow on the same noise.

import { gridPoints, Plane } from "../drawing/plane.js";
import { labelOf } from "../drawing/theme.js";
import { EVERY, MOST, Mixture } from "../engine/mixture.js";
import { Random } from "../engine/random.js";
import { grid, trajectory } from "../engine/samplers.js";
import { EXACT, optimum } from "../engine/theory.js";
import { element } from "../page/controls.js";
import { CELLS, densityMap, noise, remembered, TIME, TWO_CLASSES, weightSlider } from "./common.js";
import { LINEAR } from "../engine/paths.js";

const [PARTICLES, STEPS, KINDS] = [200, 16, 4];
/** @type {import("../drawing/plane.js").Limits} */
const LIMITS = [-4, 4, -4, 4];

/** @type {import("../page/explorer.js").Face} */
export const ownData = {
  name: "own_data",
  title: "Draw your own data",
  play: "t",
  seconds: 3,
  endless: true,
  controls: () => [
    TIME,
    weightSlider(),
    { name: "label", kind: "choice", label: "class of the next component", options: Array.from({ length: KINDS }, (_, k) => [`class ${k}`, k]) },
    { name: "spread", kind: "slider", label: "its spread", low: 0.1, high: 1.2 },
  ],
  values: (data) => ({ t: 1, weight: 0.35, label: 0, spread: 0.35, mixture: data.mixture ?? TWO_CLASSES, chosen: -1 }),

  make() {
    const editor = new Plane(LIMITS);
    const planes = EXACT.map(() => new Plane(LIMITS));
    const cells = gridPoints(LIMITS, CELLS);
    const x0 = noise(PARTICLES);
    const ts = grid(STEPS);

    const data = remembered((/** @type {import("../engine/mixture.js").Described} */ described) => {
      const mixture = new Mixture(described);
      return { mixture, points: mixture.sample(300, new Random(0)).x };
    });
    const runs = remembered((/** @type {Mixture} */ mixture, /** @type {number} */ weight) =>
      EXACT.map((method) => {
        const states = Array.from(ts, () => new Float64Array(2 * PARTICLES));
        let start = 0;
        for (const [c, label] of mixture.classes.entries()) {
          const own = x0.filter((_, i) => (i >> 1) % mixture.classes.length === c);
          const walk = trajectory(optimum(mixture, method, { weight, label }), own, ts, "midpoint");
          for (const [s, state] of walk.entries()) states[s].set(state, start);
          start += own.length;
        }
        return states;
      }),
    );

    return {
      panels: [editor, ...planes],
      legend: [{ text: "particles wear the colour of their method", colour: (c) => c.model }, { text: "data of the mixture, t = 1", colour: (c) => c.data }],
      compute({ mixture: described, weight, t }) {
        const { mixture, points } = data(described);
        const { shade } = densityMap(mixture, cells, Math.min(t, 0.999), EVERY, LINEAR);
        return { points, shade, runs: runs(mixture, weight) };
      },
      paint({ points, shade, runs }, { mixture: { means, stds, labels }, chosen, t, weight }, colours) {
        const s = Math.min(Math.floor(t * STEPS), STEPS - 1);
        const share = t * STEPS - s;
        editor.inside(() => {
          editor.shade(shade, CELLS, "#5aa5d2");
          for (const [k, mean] of means.entries()) editor.handle(mean[0], mean[1], stds?.[k] ?? 0.35, labels?.[k] ?? k, k === chosen);
        });
        editor.frame();
        editor.title("Your data: click, drag");
        planes.forEach((plane, i) => {
          const ink = colours.method(EXACT[i]);
          const states = runs[i];
          const now = states[s].map((/** @type {number} */ v, /** @type {number} */ j) => v + share * (states[s + 1][j] - v));
          plane.inside(() => {
            plane.specks(points, colours.data, 2);
            plane.trails([...states.slice(0, s + 1), now], ink, 0.35);
            plane.dots(now, ink, 2.4);
          });
          plane.frame();
          plane.title(i ? `${labelOf(EXACT[i])}, λ = ${weight.toFixed(2)}` : "FM", ink);
        });
      },
      say(_, { mixture: { means, labels }, chosen }) {
        const classes = new Set(labels ?? means.map((/** @type {any} */ __, /** @type {number} */ k) => k)).size;
        const said = `${means.length} component${means.length > 1 ? "s" : ""} in ${classes} class${classes > 1 ? "es" : ""}.`;
        return chosen >= 0 && means[chosen]
          ? `${said} Component ${chosen + 1} is at a = ${means[chosen][0].toFixed(2)}, b = ${means[chosen][1].toFixed(2)}.`
          : `${said} With the keyboard: focus the picture, then Enter adds, N chooses, arrows move, C changes the class, Delete removes.`;
      },

      handle(hand) {
        const { canvas, controls } = hand;
        canvas.classList.add("cfm-hand");
        canvas.tabIndex = 0;
        canvas.setAttribute("role", "application");
        canvas.setAttribute("aria-label", "Your data. Enter adds a component, N chooses the next, arrows move it, C changes its class, Delete removes it.");
        /** @returns {import("../engine/mixture.js").Described} */
        const now = () => structuredClone(hand.values().mixture);
        const change = (/** @type {import("../engine/mixture.js").Described} */ mixture, /** @type {number} */ chosen) => hand.set({ mixture, chosen });

        const add = (/** @type {number} */ a, /** @type {number} */ b) => {
          const mixture = now();
          if (mixture.means.length >= MOST) return hand.say(`At most ${MOST} components can be shown.`);
          const { label, spread } = hand.values();
          mixture.labels ??= mixture.means.map((_, k) => k);
          mixture.stds ??= mixture.means.map(() => spread);
          mixture.covariances = undefined;
          mixture.means.push([a, b]);
          mixture.stds.push(spread);
          mixture.labels.push(label);
          mixture.weights.push(mixture.weights.length ? mixture.weights.reduce((sum, w) => sum + w, 0) / mixture.weights.length : 1);
          change(mixture, mixture.means.length - 1);
        };
        const remove = (/** @type {number} */ k, /** @type {string} */ why) => {
          const mixture = now();
          if (!mixture.means[k]) return;
          if (mixture.means.length === 1) return hand.say("The last component stays: there must be some data.");
          for (const list of [mixture.means, mixture.stds, mixture.labels, mixture.weights]) list?.splice(k, 1);
          change(mixture, -1);
          hand.say(why);
        };
        const move = (/** @type {number} */ k, /** @type {number} */ a, /** @type {number} */ b) => {
          const mixture = now();
          mixture.means[k] = [a, b];
          change(mixture, k);
        };
        const relabel = (/** @type {number} */ k) => {
          const mixture = now();
          if (!mixture.means[k]) return hand.say("Choose a component first.");
          mixture.labels ??= mixture.means.map((_, i) => i);
          mixture.labels[k] = (mixture.labels[k] + 1) % KINDS;
          change(mixture, k);
        };
        const place = (/** @type {{clientX: number, clientY: number}} */ event) => {
          const box = canvas.getBoundingClientRect();
          return editor.under(event.clientX - box.left, event.clientY - box.top);
        };
        // a finger on the editor draws, elsewhere it scrolls the page
        canvas.addEventListener("touchstart", (event) => place(event.touches[0]) && event.preventDefault(), { passive: false });
        let held = -1;
        canvas.addEventListener("pointerdown", (event) => {
          const at = place(event);
          if (!at) return;
          const near = 14 * ((LIMITS[1] - LIMITS[0]) / editor.box.w); // a finger is broad
          const { means } = hand.values().mixture;
          held = means.findIndex((/** @type {number[]} */ mean) => Math.hypot(mean[0] - at[0], mean[1] - at[1]) < near);
          if (held < 0) {
            add(at[0], at[1]);
            held = hand.values().mixture.means.length - 1;
          } else hand.set({ chosen: held });
          canvas.setPointerCapture(event.pointerId);
        });
        canvas.addEventListener("pointermove", (event) => {
          if (held < 0) return;
          const at = place(event);
          if (at) move(held, at[0], at[1]);
        });
        canvas.addEventListener("pointerup", (event) => {
          if (held >= 0 && !place(event)) remove(held, "A component was dragged out, and is gone.");
          held = -1;
        });
        canvas.addEventListener("pointercancel", () => {
          held = -1;
        });
        canvas.addEventListener("keydown", (event) => {
          const { chosen, mixture } = hand.values();
          const step = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] })[event.key];
          const clamp = (/** @type {number} */ v) => Math.min(Math.max(v, -4), 4);
          if (step && mixture.means[chosen]) move(chosen, clamp(mixture.means[chosen][0] + step[0]), clamp(mixture.means[chosen][1] + step[1]));
          else if (event.key === "Enter") add(0, 0);
          else if (event.key === "n" || event.key === "N") hand.set({ chosen: (chosen + 1) % mixture.means.length });
          else if (event.key === "c" || event.key === "C") relabel(chosen);
          else if (event.key === "Delete" || event.key === "Backspace") remove(chosen, "A component was removed.");
          else return;
          event.preventDefault();
          event.stopPropagation(); // a notebook has keys of its own
        });
        const buttons = /** @type {[string, () => void][]} */ ([
          ["add", () => add(0, 0)],
          ["change class", () => relabel(hand.values().chosen)],
          ["remove", () => (hand.values().chosen < 0 ? hand.say("Choose a component first: touch it.") : remove(hand.values().chosen, "A component was removed."))],
          ["start again", () => change(structuredClone(TWO_CLASSES), -1)],
        ]);
        for (const [text, act] of buttons) {
          const button = element("button", { type: "button", textContent: text });
          button.addEventListener("click", act);
          controls.append(button);
        }
      },
    };
  },
};

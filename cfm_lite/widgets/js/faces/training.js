// A network learns in the page: its field beside the exact optimum. What is left between them is the lesson.

import { Chart } from "../drawing/chart.js";
import { gridPoints, Plane } from "../drawing/plane.js";
import { Mixture } from "../engine/mixture.js";
import { MLP } from "../engine/mlp.js";
import { LINEAR } from "../engine/paths.js";
import { repulsion } from "../engine/problem.js";
import { Random } from "../engine/random.js";
import { optimum } from "../engine/theory.js";
import { initial } from "../engine/train.js";
import { element } from "../page/controls.js";
import { CELLS, classChoice, densityMap, limitsOf, mixtureOf, percent, remembered, TIME, weightSlider } from "./common.js";

const STEPS = 1500;
const EVERY_STEPS = 10; // between two looks at the error
const SIZES = { hidden: 48, depth: 3 };
let made = 0;

/** @type {import("../page/explorer.js").Face} */
export const training = {
  name: "training",
  title: "A network learns, beside the exact optimum",
  controls: (data) => [
    { ...TIME, high: 0.95 },
    weightSlider(),
    classChoice(mixtureOf(data)),
    { name: "run", kind: "check", label: "train", hint: "λ = 0 is FM, above it ΔFM; a new λ starts anew" },
  ],
  values: (data) => ({ t: 0.5, weight: 0, label: mixtureOf(data).classes[0], run: false }),

  make(data) {
    const shown = mixtureOf(data);
    const limits = limitsOf(shown);
    // the network counts its labels from 0
    const mixture = new Mixture({ ...shown.described(), labels: [...shown.labels].map((label) => shown.classes.indexOf(label)) });
    const inside = (/** @type {number} */ label) => (label < 0 ? label : shown.classes.indexOf(label));
    const x = gridPoints(limits, 15);
    const cells = gridPoints(limits, CELLS);
    const { x: points, y } = shown.sample(400, new Random(0));
    const planes = [new Plane(limits), new Plane(limits)];
    const chart = new Chart({ low: 0, high: STEPS, label: "step of Adam" }, { low: 0.003, high: 1, scale: "log", label: "", ticks: [0.01, 0.1, 1] });
    const top = optimum(mixture, "fm")(x, 0.5, new Float64Array(x.length)).reduce((most, v) => Math.max(most, Math.abs(v)), 1e-12);
    const scale = (top * 15) / (1.4 * (limits[1] - limits[0]));
    const trial = [0.1, 0.3, 0.5, 0.7, 0.9].map((t) => {
      const [data1, noise] = [mixture.sample(60, new Random(3)).x, new Random(4).normals(120)];
      return { t, x: data1.map((v, i) => t * v + (1 - t) * noise[i]) };
    });
    const density = remembered((/** @type {number} */ t, /** @type {number} */ label) => densityMap(mixture, cells, t, label, LINEAR));
    let round = 0;
    const sizes = { ...SIZES, classes: mixture.classes.length };
    const started = remembered((/** @type {number} */ weight, /** @type {number} */ seed) => ({
      key: `${seed} ${++made}`, // every training of the page has its own
      lambda: repulsion(weight, 1),
      network: new MLP(sizes, initial(sizes, new Random(11 + seed))),
      count: 0,
      at: /** @type {number[]} */ ([]),
      error: /** @type {number[]} */ ([]),
    }));
    /** The error of the network's field, as a share of the optimum's mean square, over times. @param {MLP} network @param {number} weight */
    const gap = (network, weight) => {
      let [off, all] = [0, 0];
      for (const { t, x: places } of trial) {
        const exact = optimum(mixture, "delta_fm", { weight })(places, t, new Float64Array(places.length));
        const found = network.field()(places, t, new Float64Array(places.length));
        for (let i = 0; i < places.length; i++) {
          off += (found[i] - exact[i]) ** 2;
          all += exact[i] ** 2;
        }
      }
      return off / all;
    };

    return {
      panels: [...planes, chart],
      legend: [
        { text: "the exact optimum", colour: (c) => c.truth },
        { text: "the network", colour: (c) => c.model },
        { text: "data, t = 1", colour: (c) => c.data },
      ],
      compute({ t, weight, label, run }, wait) {
        const state = started(weight, round);
        const noted = () => {
          state.at.push(state.count);
          state.error.push(gap(state.network, weight));
        };
        if (!state.at.length) noted();
        if (run && state.count < STEPS) {
          wait({
            job: "learn",
            input: { key: state.key, mixture: mixture.described(), sizes, seed: 11 + round, lambda: state.lambda, total: STEPS, steps: EVERY_STEPS },
            done(/** @type {{weights: Float64Array, count: number}} */ { weights, count }) {
              state.network = new MLP(sizes, weights);
              state.count = count;
              noted();
            },
          });
        }
        const of = inside(label);
        const { shade, level } = density(t, of);
        const which = Uint8Array.from(mixture.logProb(x, t, of), (value) => Number(value >= level));
        const exact = optimum(mixture, "delta_fm", { weight, label: of })(x, t, new Float64Array(x.length));
        const found = state.network.field(of)(x, t, new Float64Array(x.length));
        return { shade, which, fields: [exact, found], state, count: state.count };
      },
      paint({ shade, which, fields, state, count }, { t, weight, label }, colours) {
        const name = weight ? `ΔFM, λ = ${weight.toFixed(2)}` : "FM";
        const inks = [colours.truth, colours.model];
        planes.forEach((plane, i) => {
          plane.inside(() => {
            plane.specks(points, colours.data, 2, (row) => label === -1 || y[row] === label);
            plane.shade(shade, CELLS, "#5aa5d2");
            plane.arrows(x, fields[i], inks[i], scale, which);
          });
          plane.frame();
          plane.title(i ? `The network, step ${count}` : `${name}, exact, t = ${t.toFixed(2)}`, inks[i]);
        });
        chart.frame();
        chart.title("Error of the field, share of its square");
        chart.inside(() => chart.line(state.at, state.error, colours.model));
      },
      say({ state, count }, { run }) {
        const error = state.error.at(-1);
        if (!count) return "The network is new: its first velocity is 0. Tick train.";
        return `After ${count} steps the field is off by ${percent(Math.sqrt(error))} of its size${run && count < STEPS ? "; training goes on." : "."}`;
      },
      handle(hand) {
        const button = element("button", { type: "button", textContent: "start again" });
        button.addEventListener("click", () => {
          round += 1;
          hand.set({ run: true });
        });
        hand.controls.append(button);
      },
    };
  },
};

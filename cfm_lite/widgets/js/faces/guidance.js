// Guidance on repelled fields: how classifier-free guidance and ΔFM or VeCoR add up, and what the correction undoes.

import { Plane } from "../drawing/plane.js";
import { labelOf, onRamp, TIME as RAMP } from "../drawing/theme.js";
import { debias, debiasShuffle, guide } from "../engine/guidance.js";
import { typical } from "../engine/metrics.js";
import { EVERY } from "../engine/mixture.js";
import { Problem } from "../engine/problem.js";
import { Random } from "../engine/random.js";
import { grid, trajectory } from "../engine/samplers.js";
import { EXACT, inBatchMean, optimum } from "../engine/theory.js";
import { classChoice, limitsOf, mixtureOf, noise, percent, remembered, rings, weightSlider } from "./common.js";

const [MANY, FEW, COUNT] = [160, 72, 20]; // particles of an exact field, of a network; Euler steps
const TRAINED = 0.35; // λ of the shipped networks

/** @type {import("../page/explorer.js").Face} */
export const guidance = {
  name: "guidance",
  title: "Guidance and repulsion",
  play: "scale",
  controls(data) {
    const trained = EXACT.slice(1).filter((name) => data.networks?.[`toy_${name}`]);
    return [
      { name: "scale", kind: "slider", label: "scale (1 is none)", low: 0, high: 6, hint: "0 is no class at all, 1 is no guidance" },
      weightSlider(),
      { name: "interval", kind: "interval", label: "acts for t in", low: 0, high: 1, hint: "guidance and correction act inside this interval of t" },
      {
        name: "method", kind: "choice", label: "field (right)",
        options: [
          ...EXACT.slice(1).map((name) => /** @type {[string, string]} */ ([`${labelOf(name)}, exact`, name])),
          ...trained.map((name) => /** @type {[string, string]} */ ([`${labelOf(name)}, trained (λ = 0.35)`, `toy_${name}`])),
        ],
      },
      classChoice(mixtureOf(data), false),
      { name: "correct", kind: "check", label: "correct the interference (debias)", hint: "maps the field back to FM's inside the interval" },
    ];
  },
  values: (data) => ({ scale: 2, weight: 0.35, interval: [0, 1], method: "delta_fm", label: mixtureOf(data).classes[0], correct: false }),

  make(data) {
    const mixture = mixtureOf(data);
    const limits = data.limits ?? limitsOf(mixture);
    const { x: points, y } = mixture.sample(500, new Random(0));
    const planes = [new Plane(limits), new Plane(limits, { gap: 26 })];
    const ringsOf = rings(mixture, limits);
    const usual = typical(mixture);
    const inside = remembered((/** @type {number} */ label) => {
      const log = mixture.logProb(mixture.sample(2000, new Random(2), label).x, 1, label);
      return Float64Array.from(log, (value) => -value - usual(1)).sort()[Math.floor(0.95 * log.length)];
    });
    const ts = grid(COUNT);
    const [many, few] = [noise(MANY), noise(FEW)];

    /** The exact field of a method, guided. @param {string} name @param {any} values */
    function velocity(name, { weight, scale, interval, label, correct }) {
      const of = (/** @type {number} */ one) => optimum(mixture, name, { weight, label: one });
      const guided = guide(of(label), of(EVERY), scale, interval);
      if (!correct || name === "fm") return guided;
      return name === "vecor" ? debiasShuffle(guided, weight, 1, true, interval) : debias(guided, weight, inBatchMean(mixture), interval);
    }
    /** @param {string} name @param {any} values */
    const exact = (name, values) => trajectory(velocity(name, values), values.method.startsWith("toy_") ? few : many, ts, "euler");
    /** @param {string} name @param {Float64Array[]} states @param {number} label @returns {Run} */
    function ended(name, states, label) {
      const log = mixture.logProb(states[COUNT], 1, label);
      const bound = inside(label);
      return { name, states, on: log.filter((value) => -value - usual(1) < bound).length / log.length };
    }
    /** @typedef {{name: string, states: Float64Array[], on: number}} Run */
    /** @type {{key: string, runs: Run[]}} */
    let last = { key: "", runs: [] };

    return {
      panels: planes,
      legend: [
        { text: "data of the class", colour: (c) => c.data },
        { text: "contours hold 50 % and 95 % of the class", colour: (c) => c.truth },
        { text: "paths run from noise (dark) to data (light)", colour: () => RAMP[12] },
      ],
      compute(values, wait) {
        if (values.interval[0] > values.interval[1]) throw new Problem("The interval ends before it begins.");
        const { method, label, scale, interval, correct } = values;
        const key = JSON.stringify(values);
        if (key === last.key) return { ...last, waiting: false };
        const fm = ended("fm", exact("fm", values), label);
        if (!method.startsWith("toy_")) {
          last = { key, runs: [fm, ended(method, exact(method, values), label)] };
          return { ...last, waiting: false };
        }
        if (!data.networks?.[method]) throw new Problem("The trained networks are not on this page.");
        const corrected = correct ? { weight: TRAINED, mean: inBatchMean(mixture), swaps: method.endsWith("vecor") } : undefined;
        wait({
          job: "walk",
          input: [{ network: data.networks[method], label, x: few, solver: "euler", steps: COUNT, guided: { scale, interval }, corrected }],
          done(/** @type {Float64Array[][]} */ [states]) {
            last = { key, runs: [fm, ended(method, states, label)] };
          },
        });
        return last.runs.length ? { ...last, waiting: true } : undefined;
      },
      paint({ runs }, { scale, label, method, correct }, colours) {
        planes.forEach((plane, i) => {
          const run = /** @type {Run} */ (runs[i]);
          const name = (i ? method : "fm").replace("toy_", "");
          const ink = colours.method(name);
          plane.inside(() => {
            plane.kept(label, () => {
              plane.specks(points, colours.other, 2, (row) => y[row] !== label);
              plane.specks(points, colours.data, 2, (row) => y[row] === label);
            });
            for (let s = 0; s < COUNT; s += 2) {
              plane.trails(run.states.slice(s, s + 3), onRamp(RAMP, s + 1, 0, COUNT), 0.75, 1);
            }
            for (const ring of ringsOf(label)) plane.segments(ring, colours.truth, 1.2);
            plane.dots(run.states[COUNT], ink, 3.2);
          });
          plane.frame();
          const how = i ? (method.startsWith("toy_") ? "trained" : "exact") : "exact";
          plane.title(`${labelOf(name)}, ${how}, guidance ${scale.toFixed(2)}${i && correct ? ", corrected" : ""}`, ink);
        });
      },
      say({ runs, waiting }, { scale, method, label, correct }) {
        if (waiting) return "The network is being asked. The last picture stays meanwhile.";
        const name = labelOf(method.replace("toy_", ""));
        const said = `On the data of class ${label}: FM ${percent(runs[0].on)}, ${name}${correct ? " corrected" : ""} ${percent(runs[1].on)}.`;
        return scale === 1 ? `${said} A scale of 1 is no guidance.` : said;
      },
    };
  },
};

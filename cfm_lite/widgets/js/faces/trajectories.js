// Particles through an exact or a trained field: they flow while a hand changes λ, and drift off the data.
// Drift of a state, in nats: -log p_t(x | y), less what it is on average for exact draws at the same time.

import { Chart } from "../drawing/chart.js";
import { Plane } from "../drawing/plane.js";
import { DRIFT, labelOf } from "../drawing/theme.js";
import { typical } from "../engine/metrics.js";
import { EVERY } from "../engine/mixture.js";
import { Problem } from "../engine/problem.js";
import { Random } from "../engine/random.js";
import { evaluations, grid, STEPS, trajectory } from "../engine/samplers.js";
import { EXACT, optimum } from "../engine/theory.js";
import { classChoice, limitsOf, mixtureOf, noise, percent, remembered, rings, TIME, weightSlider } from "./common.js";

const [MANY, SOME, FEW] = [500, 240, 72]; // particles: in one plane, in three, through a network
const WORST = 10; // nats at which the colours end
const CORNERS = 16; // of the way of a particle: it is a smooth curve, and each costs time to draw

/** @param {any} data @returns {[string, string][]} */
function fields(data) {
  const trained = EXACT.filter((name) => data.networks?.[`toy_${name}`]);
  return [
    ...EXACT.map((name) => /** @type {[string, string]} */ ([`${labelOf(name)}, exact`, name])),
    ...trained.map((name) => /** @type {[string, string]} */ ([`${labelOf(name)}, trained (λ = 0.35)`, `toy_${name}`])),
  ];
}

/** @type {import("../page/explorer.js").Face} */
export const trajectories = {
  name: "trajectories",
  title: "Trajectories and their drift",
  play: "t",
  seconds: 3,
  endless: true,
  controls: (data) => [
    TIME,
    weightSlider(),
    { name: "field", kind: "choice", label: "field", options: fields(data) },
    { name: "beside", kind: "check", label: "FM, ΔFM and VeCoR on the same noise" },
    classChoice(mixtureOf(data)),
    { name: "solver", kind: "choice", label: "solver", options: Object.keys(STEPS).map((name) => [name, name]) },
    { name: "steps", kind: "slider", label: "steps", low: 1, high: 32, step: 1, digits: 0, hint: "steps of the solver from t = 0 to t = 1" },
  ],
  values: (data) => ({ t: 1, weight: 0.35, field: "fm", beside: false, label: mixtureOf(data).classes[0], solver: "euler", steps: 8 }),

  make(data) {
    const mixture = mixtureOf(data);
    const limits = data.limits ?? limitsOf(mixture);
    const { x: points, y } = mixture.sample(500, new Random(0));
    const ringsOf = rings(mixture, limits);
    const usual = typical(mixture);
    const one = new Plane(limits);
    const three = EXACT.map(() => new Plane(limits));
    const chart = new Chart(
      { low: 0, high: 1, label: "time t", ticks: [0, 0.25, 0.5, 0.75, 1] },
      { low: -2, high: 200, scale: "symlog", label: "", ticks: [-1, 0, 1, 10, 100] },
    );
    /** @type {import("../drawing/stage.js").Panel[]} */
    const panels = [one, chart];
    const inside = remembered((/** @type {number} */ label) => {
      // the excess below which 95 % of exact data lie
      const own = mixture.sample(2000, new Random(2), label);
      const log = mixture.logProb(own.x, 1, label);
      return Float64Array.from(log, (value) => -value - usual(1)).sort()[Math.floor(0.95 * log.length)];
    });
    const network = (/** @type {string} */ name) => {
      if (!data.networks?.[name]) throw new Problem("The trained networks are not on this page.");
      return data.networks[name];
    };
    /** Labels of particles: in turn for all classes. @param {number} n @param {number} label */
    const labels = (n, label) => Int32Array.from({ length: n }, (_, i) => (label === EVERY ? mixture.classes[i % mixture.classes.length] : label));

    /** The noise of each class, and the rows that it has among all. @param {number} label @param {number} n */
    const groups = remembered((/** @type {number} */ label, /** @type {number} */ n) => {
      const [x0, own] = [noise(n), labels(n, label)];
      return [...new Set(own)].map((of) => {
        const rows = Int32Array.from([...own.keys()].filter((i) => own[i] === of));
        return { of, rows, x: Float64Array.from({ length: 2 * rows.length }, (_, i) => x0[2 * rows[i >> 1] + (i & 1)]) };
      });
    });

    /** What is known of particles once each class has its states. @param {string} name @param {number} label @param {Float64Array[][]} walks @param {number} n @returns {Run} */
    function joined(name, label, walks, n) {
      const steps = walks[0].length - 1;
      const ts = grid(steps);
      const states = Array.from(ts, () => new Float64Array(2 * n));
      const drift = Array.from(ts, () => new Float64Array(n));
      const mean = new Float64Array(steps + 1);
      for (const [g, { of, rows }] of groups(label, n).entries()) {
        for (let s = 0; s <= steps; s++) {
          const [x, place, off, level] = [walks[g][s], states[s], drift[s], usual(ts[s])];
          const log = mixture.logProb(x, ts[s], of);
          for (let i = 0; i < rows.length; i++) {
            const row = rows[i];
            place[2 * row] = x[2 * i];
            place[2 * row + 1] = x[2 * i + 1];
            off[row] = -log[i] - level;
            mean[s] += off[row] / n;
          }
        }
      }
      return { name, ts, states, drift, mean };
    }
    /** @typedef {{name: string, ts: Float64Array, states: Float64Array[], drift: Float64Array[], mean: Float64Array}} Run */
    /** @type {Map<string, Run>} */
    const kept = new Map();
    /** @type {Run[]} */
    let last = [];

    return {
      panels,
      legend: [
        { text: "data", colour: (c) => c.data },
        { text: "noise, t = 0", colour: (c) => c.noise },
        { text: "contours hold 50 % and 95 % of the class", colour: (c) => c.truth },
        { text: "particles darken with their drift, up to 10 nats", colour: () => DRIFT[16] },
        { text: "0 nats: as probable as exact draws", colour: (c) => c.faint, shape: "dash" },
      ],
      compute({ weight, field, beside, label, solver, steps, t }, wait) {
        const trained = field.startsWith("toy_");
        const names = beside ? EXACT.map((name) => (trained ? `toy_${name}` : name)) : [field];
        const n = trained ? FEW : beside ? SOME : MANY;
        const keys = names.map((name) => [name, trained || name === "fm" ? 0 : weight, solver, steps, label, n].join());
        const lacking = names.filter((_, i) => !kept.has(keys[i]));
        const waiting = trained && lacking.length > 0;
        if (waiting) {
          const parts = groups(label, n);
          const input = lacking.flatMap((name) => parts.map(({ of, x }) => ({ network: network(name), label: of, x, solver, steps })));
          wait({
            job: "walk",
            input,
            done(/** @type {Float64Array[][]} */ walks) {
              for (const [i, name] of names.entries()) {
                const at = lacking.indexOf(name) * parts.length;
                if (at >= 0) keep(keys[i], joined(name, label, walks.slice(at, at + parts.length), n));
              }
              last = keys.map((key) => /** @type {Run} */ (kept.get(key))); // shown meanwhile, if the hand is elsewhere by now
            },
          });
        } else {
          for (const [i, name] of names.entries()) {
            if (kept.has(keys[i])) continue;
            const walks = groups(label, n).map(({ of, x }) => trajectory(optimum(mixture, name, { weight, label: of }), x, grid(steps), solver));
            keep(keys[i], joined(name, label, walks, n));
          }
          last = keys.map((key) => /** @type {Run} */ (kept.get(key)));
        }
        if (!last.length) return undefined; // the first answer of a network is on its way
        panels.splice(0, panels.length, ...(last.length > 1 ? [...three, chart] : [one, chart]));
        return { runs: last, waiting, now: last.map((run) => until(run, t)), inside: inside(label) };
      },
      paint({ runs, now }, { label, solver, steps, t }, colours) {
        const planes = runs.length > 1 ? three : [one];
        planes.forEach((plane, i) => {
          const ink = colours.method(runs[i].name.replace("toy_", ""));
          plane.inside(() => {
            plane.kept(`${label} ${runs[i].drift[0].length}`, () => {
              plane.specks(points, colours.other, 2, (row) => label !== -1 && y[row] !== label);
              plane.specks(points, colours.data, 2, (row) => label === -1 || y[row] === label);
              for (const ring of ringsOf(label)) plane.segments(ring, colours.truth, 1);
              plane.specks(runs[i].states[0], colours.noise, 2);
            });
            plane.trails(now[i].trail, ink, 0.3, 1, runs.length > 1 || runs[i].drift[0].length < 200 ? 1 : 3);
            plane.valued(now[i].x, now[i].drift, WORST, runs.length > 1 ? 2.2 : 3);
          });
          plane.frame();
          const name = labelOf(runs[i].name.replace("toy_", ""));
          const how = runs[i].name.startsWith("toy_") ? "trained" : "exact";
          plane.title(runs.length > 1 ? `${name}, ${how}` : `${name}, ${how}, ${solver}, ${steps} step${steps > 1 ? "s" : ""}, t = ${t.toFixed(2)}`, ink);
        });
        chart.frame();
        chart.title("Mean drift, nats above typical");
        chart.level(0, colours.truth, [6, 4]);
        for (const run of runs) {
          chart.line(run.ts, run.mean, colours.method(run.name.replace("toy_", "")), { marks: steps <= 12 });
        }
        chart.now(t, colours.noise);
      },
      say({ runs, waiting, inside: bound }, { solver, steps }) {
        if (waiting) return "The network is being asked. The last picture stays meanwhile.";
        const ends = runs.map((/** @type {Run} */ run) => {
          const at = /** @type {Float64Array} */ (run.drift.at(-1));
          const on = at.filter((value) => value < bound).length / at.length;
          return `${labelOf(run.name.replace("toy_", ""))} ${percent(on)} on the data, drift ${run.mean.at(-1)?.toFixed(2)} nats`;
        });
        return `At t = 1: ${ends.join("; ")}. Each particle took ${evaluations(solver, steps).nfe} evaluations of the field.`;
      },
    };

    /** @param {string} key @param {Run} run */
    function keep(key, run) {
      if (kept.size > 60) kept.delete(/** @type {string} */ (kept.keys().next().value));
      kept.set(key, run);
    }
  },
};

/** Where particles are at time `t`, interpolated along the step, and the way that they came. @param {{ts: Float64Array, states: Float64Array[], drift: Float64Array[]}} run @param {number} t */
function until({ ts, states, drift }, t) {
  const s = Math.min(Math.max(ts.findLastIndex((time) => time <= t), 0), ts.length - 2);
  const share = Math.min(Math.max((t - ts[s]) / (ts[s + 1] - ts[s]), 0), 1);
  const mix = (/** @type {Float64Array} */ from, /** @type {Float64Array} */ to) => {
    const out = new Float64Array(from.length);
    for (let i = 0; i < out.length; i++) out[i] = from[i] + share * (to[i] - from[i]);
    return out;
  };
  const x = mix(states[s], states[s + 1]);
  const every = Math.ceil((ts.length - 1) / CORNERS);
  return { x, drift: mix(drift[s], drift[s + 1]), trail: [...states.slice(0, s + 1).filter((_, i) => i % every === 0 || i === s), x] };
}

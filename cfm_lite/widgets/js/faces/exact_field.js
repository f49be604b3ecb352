// The exact field of a mixture: what attracts, what repels and their sum, or the optima of three methods side by side.

import { gridPoints, Plane } from "../drawing/plane.js";
import { labelOf } from "../drawing/theme.js";
import { Problem } from "../engine/problem.js";
import { Random } from "../engine/random.js";
import { EXACT, optimum } from "../engine/theory.js";
import { CELLS, classChoice, densityMap, latest, limitsOf, mixtureOf, PATH, pathOf, remembered, TIME, weightSlider } from "./common.js";

const SAYS = { delta_fm: "repelled from the mean of all data", vecor: "repelled from swapped coordinates" };

/** @type {import("../page/explorer.js").Face} */
export const exactField = {
  name: "exact_field",
  title: "Exact field: attraction, repulsion and their sum",
  play: "t",
  controls: (data) => [
    { ...TIME, high: 0.99 },
    weightSlider(),
    classChoice(mixtureOf(data)),
    { name: "method", kind: "choice", label: "method", options: Object.entries(SAYS).map(([name, says]) => [`${labelOf(name)}: ${says}`, name]) },
    PATH,
    { name: "view", kind: "choice", label: "show", options: [["attraction + repulsion", "parts"], ["FM, ΔFM and VeCoR", "methods"]] },
  ],
  values: (data) => ({ t: 0.5, weight: 0.35, label: mixtureOf(data).classes[0], method: "delta_fm", path: "linear", view: "parts" }),

  make(data) {
    const mixture = mixtureOf(data);
    const limits = data.limits ?? limitsOf(mixture);
    const n = data.n ?? 17;
    const { x: points, y } = mixture.sample(500, new Random(0));
    const [cells, wide] = [gridPoints(limits, CELLS), gridPoints(limits, n)];
    const narrow = gridPoints(limits, Math.min(n, 11)); // arrows on a phone are still arrows
    const planes = [new Plane(limits), new Plane(limits, { gap: 30 }), new Plane(limits, { gap: 30 })];
    const size = (/** @type {Float64Array} */ v) => Array.from({ length: v.length / 2 }, (_, i) => Math.hypot(v[2 * i], v[2 * i + 1]));
    // one scale for every position of every slider, so that lengths compare
    const scaleOf = (/** @type {Float64Array} */ x) => {
      const top = Math.max(...size(optimum(mixture, "fm")(x, 0.5, new Float64Array(x.length))), 1e-12);
      return (top * Math.sqrt(x.length / 2)) / (1.4 * (limits[1] - limits[0]));
    };
    const scales = new Map([wide, narrow].map((x) => [x, scaleOf(x)]));
    const mean = mixture.mean();
    const density = remembered((/** @type {number} */ t, /** @type {number} */ label, /** @type {string} */ name) => densityMap(mixture, cells, t, label, pathOf(name)));

    return {
      panels: planes,
      legend: [
        { text: "data, t = 1", colour: (c) => c.data },
        { text: "mean of all data (ΔFM's negative)", colour: (c) => c.repel, shape: "cross" },
        { text: "a = b (VeCoR swaps the coordinates)", colour: (c) => c.repel, shape: "dash" },
        { text: "the arrows have one scale in every plane", colour: (c) => c.model },
      ],
      compute({ t, weight, label, method, path: name, view }) {
        if (weight >= 1) throw new Problem(`λ is ${weight}. It must stay below 1: from there on the loss has no minimum.`);
        const path = pathOf(name);
        const x = planes[0].box.w > 190 ? wide : narrow;
        const at = Math.min(t, latest(name));
        const { shade, level } = density(at, label, name);
        const log = mixture.logProb(x, at, label, path);
        const which = Uint8Array.from(log, (value) => Number(value >= level));
        const run = (/** @type {string} */ one) => optimum(mixture, one, { weight, label, path })(x, at, new Float64Array(x.length));
        const fields = EXACT.map((one) => (view === "methods" || one === "fm" || one === method ? run(one) : new Float64Array(0)));
        const result = fields[EXACT.indexOf(method)];
        const shown = view === "methods" ? fields : [fields[0], result.map((v, i) => v - fields[0][i]), result];
        const speed = (/** @type {Float64Array} */ v) => {
          const kept = size(v).filter((_, i) => which[i]);
          return kept.reduce((sum, s) => sum + s, 0) / Math.max(kept.length, 1);
        };
        return { x, shade, which, shown, speeds: [speed(fields[0]), speed(result)] };
      },
      paint({ x, shade, which, shown }, { label, method, weight, t, view }, colours) {
        const titles = view === "methods"
          ? EXACT.map((one) => (one === "fm" ? "FM" : `${labelOf(one)}, λ = ${weight.toFixed(2)}`))
          : ["Where to go: v", "Where not to go: the push", `${labelOf(method)}, λ = ${weight.toFixed(2)}, t = ${t.toFixed(2)}: both`];
        const inks = view === "methods" ? EXACT.map(colours.method) : [colours.attract, colours.repel, colours.model];
        planes.forEach((plane, i) => {
          plane.inside(() => {
            plane.kept(label, () => {
              plane.specks(points, colours.other, 2, (row) => label !== -1 && y[row] !== label);
              plane.specks(points, colours.data, 2, (row) => label === -1 || y[row] === label);
            });
            plane.shade(shade, CELLS, "#5aa5d2");
            const of = view === "methods" ? EXACT[i] : i ? method : "fm";
            if (of === "vecor") plane.diagonal(colours.repel);
            plane.arrows(x, shown[i], inks[i], scales.get(x) ?? 1, which);
            if (of === "delta_fm") plane.cross(mean[0], mean[1], colours.repel);
          });
          plane.frame();
          plane.title(titles[i], inks[i]);
          if (i && view === "parts" && plane.box.x > 100) plane.note(i === 1 ? "+" : "=", -15 / plane.box.w, 0.5, colours.ink, "center", 20);
        });
      },
      say({ speeds }, { method }) {
        return `Mean speed where the class is: FM ${speeds[0].toFixed(2)}, ${labelOf(method)} ${speeds[1].toFixed(2)} units of x per unit of t.`;
      },
    };
  },
};

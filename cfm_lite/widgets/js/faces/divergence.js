// What λ does to the loss, to training and to samples as λK goes to 1, and what is lost from there on.
// Along the line from the mean negative (s = 0) through FM's velocity (s = 1) the loss is  (s - 1)^2 - λK s^2.

import { Chart } from "../drawing/chart.js";
import { Plane } from "../drawing/plane.js";
import { labelOf } from "../drawing/theme.js";
import { EVERY } from "../engine/mixture.js";
import { Random } from "../engine/random.js";
import { grid, trajectory } from "../engine/samplers.js";
import { optimum } from "../engine/theory.js";
import { limitsOf, mixtureOf, noise, weightSlider } from "./common.js";

const [DESCENT, RATE, TOP] = [200, 0.05, 100]; // steps of gradient descent, their length, where the panel ends
const PARTICLES = 200;

/** @type {import("../page/explorer.js").Face} */
export const divergence = {
  name: "divergence",
  title: "λ and divergence",
  play: "weight",
  controls: () => [
    weightSlider(1.2),
    { name: "k", kind: "choice", label: "negatives K per row", options: [["1", 1], ["2", 2], ["4", 4]] },
    { name: "method", kind: "choice", label: "method (right)", options: ["delta_fm", "vecor"].map((name) => [labelOf(name), name]) },
  ],
  values: () => ({ weight: 0.05, k: 1, method: "delta_fm" }),

  make(data) {
    const mixture = mixtureOf(data);
    const [left, right, bottom, top] = limitsOf(mixture);
    /** @type {import("../drawing/plane.js").Limits} */
    const limits = [2 * left, 2 * right, 2 * bottom, 2 * top];
    const { x: points } = mixture.sample(500, new Random(0));
    const loss = new Chart({ low: -1, high: 9, label: "position s of the velocity", ticks: [0, 1, 3, 5, 7, 9] }, { low: -12, high: 12, label: "" });
    const descent = new Chart(
      { low: 0, high: DESCENT, label: "step of gradient descent", ticks: [0, 100, 200] },
      { low: 0.01, high: TOP, scale: "log", label: "", ticks: [0.01, 0.1, 1, 10, 100] },
    );
    const plane = new Plane(limits);
    plane.ownAxis = true;
    const s = Float64Array.from({ length: 201 }, (_, i) => -1 + i / 20);
    const x0 = noise(PARTICLES);
    const per = mixture.classes.map((label) => ({ label, x: x0.filter((_, i) => (i >> 1) % mixture.classes.length === mixture.classes.indexOf(label)) }));

    return {
      panels: [loss, descent, plane],
      legend: [
        { text: "v, FM's velocity (s = 1)", colour: (c) => c.attract },
        { text: "the mean negative (s = 0)", colour: (c) => c.repel },
        { text: "the model", colour: (c) => c.model },
        { text: "the optimum s = 1 / (1 − λK)", colour: (c) => c.truth, shape: "dash" },
      ],
      compute({ weight, k, method }) {
        const total = weight * k;
        const ends = total < 1
          ? per.map(({ label, x }) => trajectory(optimum(mixture, method, { weight, k, label: mixture.classes.length > 1 ? label : EVERY }), x, grid(32), "euler")[32])
          : [];
        return { total, ends, steps: descend(total) };
      },
      paint({ total, ends, steps }, _, colours) {
        loss.frame();
        loss.title(`The loss at λK = ${total.toFixed(2)}`);
        loss.inside(() => {
          loss.line(s, s.map((v) => (v - 1) ** 2), colours.attract, { dash: [5, 4], width: 1.4 });
          loss.line(s, s.map((v) => (v - 1) ** 2 - total * v * v), colours.model);
        });
        const best = 1 / (1 - total);
        loss.mark(0, -11.4, colours.repel);
        loss.mark(1, -11.4, colours.attract);
        if (total < 1 && best <= 9) loss.mark(best, -total / (1 - total), colours.model);
        descent.frame();
        descent.title("Descent: s, step by step");
        descent.inside(() => {
          if (total < 1) descent.level(best, colours.truth, [6, 4]);
          descent.line(steps.map((/** @type {number} */ __, /** @type {number} */ i) => i), steps, colours.model);
        });
        plane.inside(() => {
          plane.kept(0, () => plane.specks(points, colours.data, 2));
          for (const x of ends) plane.dots(x, colours.model, 2.6);
        });
        plane.frame();
        plane.title("Where exact paths end");
        if (total >= 1) plane.note("λK ≥ 1: no optimum", 0.5, 0.92, colours.repel, "center", 14);
      },
      say({ total, ends }) {
        if (total >= 1) return `λK = ${total.toFixed(2)}: moving away from the negative always pays, and the loss falls without end. The library refuses this weight.`;
        let outside = 0;
        for (const x of ends) {
          for (let i = 0; i < x.length; i += 2) outside += Number(x[i] < limits[0] || x[i] > limits[1] || x[i + 1] < limits[2] || x[i + 1] > limits[3]);
        }
        const tail = outside ? ` ${outside} of ${PARTICLES} particles end outside this picture.` : "";
        return `λK = ${total.toFixed(2)}: the optimum is stretched ${(1 / (1 - total)).toFixed(2)}-fold away from the negative.${tail}`;
      },
    };
  },
};

/** s during gradient descent on (s - 1)^2 - total s^2 from 0; it stops where the picture ends. @param {number} total */
export function descend(total) {
  const found = [0];
  for (let i = 0, s = 0; i < DESCENT && s <= TOP; i++) {
    s -= RATE * 2 * (s - 1 - total * s);
    found.push(s);
  }
  return found;
}

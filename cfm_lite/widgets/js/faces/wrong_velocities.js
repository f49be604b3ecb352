// What VeCoR pushes away from: a real digit, a perturbation of it or of its velocity, and how far the wrong
// velocity is from the right one.   velocity space: A(u)     latent space: A(x1) - x0, with the same noise

import { Chart } from "../drawing/chart.js";
import { Picture } from "../drawing/picture.js";
import { bytesOf } from "../engine/mlp.js";
import { PERTURBATIONS, squaredError } from "../engine/perturb.js";
import { Problem } from "../engine/problem.js";
import { Random } from "../engine/random.js";
import { remembered, TIME } from "./common.js";

const REACH = 3; // velocities beyond this have the end colours
const SIDE = 8;

/** The digits of a page: 64 numbers from 0 to 16 each. @param {any} data @returns {Float64Array[]} */
function digits(data) {
  if (!data.digits) return [];
  const all = bytesOf(data.digits);
  const count = Math.floor(all.length / SIDE ** 2);
  return Array.from({ length: count }, (_, i) => Float64Array.from(all.subarray(i * SIDE ** 2, (i + 1) * SIDE ** 2), (v) => v / 8 - 1));
}

/** @type {import("../page/explorer.js").Face} */
export const wrongVelocities = {
  name: "wrong_velocities",
  title: "Wrong velocities",
  play: "strength",
  controls: (data) => [
    { name: "strength", kind: "slider", label: "strength", low: 0.05, high: 1, hint: "0 leaves nearly everything as it is" },
    { ...TIME, hint: "changes the state x_t, not the velocity: the path is linear" },
    { name: "index", kind: "slider", label: "digit, by its row", low: 0, high: Math.max(digits(data).length - 1, 1), step: 1, digits: 0 },
    { name: "perturb", kind: "choice", label: "perturbation A", options: Object.keys(PERTURBATIONS).map((name) => [name, name]) },
    { name: "space", kind: "choice", label: "space", options: [["velocity: A(u)", "velocity"], ["latent (here: pixels): A(x₁) − x₀", "latent"]] },
  ],
  values: () => ({ strength: 0.4, t: 0.5, index: 0, perturb: "crop_resize", space: "latent" }),

  make(data) {
    const x1 = digits(data);
    const x0 = x1.map((_, i) => new Random(500 + i).normals(SIDE ** 2));
    const right = x1.map((image, i) => image.map((v, j) => v - x0[i][j]));
    const pictures = Array.from({ length: 6 }, () => new Picture({ bare: true, gap: 18 }));
    const chart = new Chart({ low: 0, high: 4, label: "mean squared distance to u" }, { low: 0, high: 3, label: "", ticks: [] });
    const drawn = remembered((/** @type {string} */ perturb, /** @type {string} */ space, /** @type {number} */ strength) =>
      x1.map((image, i) => {
        const [random, other] = [new Random(900 + i), (i + 7) % x1.length];
        if (space === "latent") {
          const moved = PERTURBATIONS[perturb](image, strength, random, x1[other]);
          return { moved, wrong: moved.map((v, j) => v - x0[i][j]) };
        }
        const wrong = PERTURBATIONS[perturb](right[i], strength, random, right[other]);
        return { moved: wrong.map((v, j) => v + x0[i][j]), wrong };
      }),
    );

    return {
      panels: [pictures[0], pictures[1], pictures[2], chart, pictures[3], pictures[4], pictures[5]],
      legend: [
        { text: "the right velocity u", colour: (c) => c.attract },
        { text: "the wrong velocity u₋", colour: (c) => c.repel },
        { text: "velocities run from −3 (blue) over 0 (pale) to 3 (red) per unit of t", colour: (c) => c.faint },
      ],
      compute({ strength, index, perturb, space }) {
        if (!x1.length) throw new Problem("There are no digits on this page.");
        const all = drawn(perturb, space, strength);
        const at = Math.min(Math.max(Math.round(index), 0), x1.length - 1);
        const other = (at + 1) % x1.length;
        return {
          at,
          ...all[at],
          mine: squaredError(all[at].wrong, right[at]),
          others: squaredError(right[other], right[at]),
          mean: all.reduce((sum, { wrong }, i) => sum + squaredError(wrong, right[i]), 0) / all.length,
        };
      },
      paint({ at, moved, wrong, mine, others }, { t, space }, colours) {
        const state = x1[at].map((v, j) => t * v + (1 - t) * x0[at][j]);
        const rows = /** @type {[Float64Array, string, string, boolean][]} */ ([
          [x1[at], "digit x₁", colours.line, false],
          [moved, space === "latent" ? "perturbed A(x₁)" : "implied A(u) + x₀", colours.line, false],
          [state, `state x_t, t = ${t.toFixed(2)}`, colours.line, false],
          [right[at], "right: u = x₁ − x₀", colours.attract, true],
          [wrong, "wrong: u₋", colours.repel, true],
          [wrong.map((/** @type {number} */ v, /** @type {number} */ j) => v - right[at][j]), "u₋ − u", colours.line, true],
        ]);
        rows.forEach(([values, title, rim, velocity], i) => {
          pictures[i].cells(values, SIDE, velocity ? REACH : 1, velocity, rim);
          pictures[i].title(title, rim === colours.line ? colours.ink : rim);
        });
        chart.frame();
        chart.title("How wrong?");
        const bars = /** @type {[number, number, string, string][]} */ ([[2, mine, colours.repel, "this negative"], [1, others, colours.noise, "another digit"]]);
        for (const [row, value, ink, name] of bars) {
          chart.inside(() => chart.line([0, Math.min(value, 4)], [row, row], ink, { width: 18 }));
          chart.note(`${name}: ${value.toFixed(2)}`, 0.03, (row + 0.42) / 3, colours.ink, "left");
        }
      },
      say: ({ mine, mean, others }) =>
        `Squared distance to u: ${mine.toFixed(2)} for this digit, ${mean.toFixed(2)} on average over ${x1.length}; another digit's velocity: ${others.toFixed(2)}.`,
    };
  },
};

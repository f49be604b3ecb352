// What a dispersive loss sees in a batch of features, and where it pushes them: real digits, shipped networks.
// The gradient of the loss by the features alone is followed; the network stays as it is.

import { Chart } from "../drawing/chart.js";
import { Picture } from "../drawing/picture.js";
import { Plane } from "../drawing/plane.js";
import { CLASSES } from "../drawing/theme.js";
import { centred, dispersive, effectiveRank, eigen, gram } from "../engine/dispersive.js";
import { bytesOf, halves } from "../engine/mlp.js";
import { Problem } from "../engine/problem.js";
import { remembered } from "./common.js";

const STEPS = 40;
const WORDS = { infonce_l2: "InfoNCE, ℓ2", infonce_cosine: "InfoNCE, cosine", hinge: "hinge", covariance: "covariance" };

/** @type {import("../page/explorer.js").Face} */
export const features = {
  name: "features",
  title: "Features and what a dispersive loss does to them",
  play: "step",
  seconds: 4,
  controls: (data) => [
    { name: "step", kind: "slider", label: "steps along the gradient", low: 0, high: STEPS, step: 1, digits: 0 },
    { name: "network", kind: "choice", label: "network", options: Object.entries(data.features ?? {}).map(([name, { label }]) => [label, name]) },
    { name: "block", kind: "choice", label: "block", options: [1, 2, 3].map((block) => [String(block), block]) },
    { name: "variant", kind: "choice", label: "variant", options: Object.entries(WORDS).map(([name, words]) => [words, name]) },
    { name: "tau", kind: "choice", label: "temperature τ", hint: "InfoNCE only", options: [0.1, 0.25, 0.5, 1, 2].map((tau) => [String(tau), tau]) },
  ],
  values: (data) => ({ step: 0, network: Object.keys(data.features ?? {})[0] ?? "", block: 1, variant: "infonce_l2", tau: 0.5 }),

  make(data) {
    /** @type {number[]} */
    const labels = data.labels ?? [];
    const rows = labels.length;
    const heat = new Picture();
    const plane = new Plane([-3, 3, -3, 3]);
    plane.ownAxis = true;
    const curve = new Chart({ low: 0, high: STEPS, label: "step along the gradient" }, { low: -0.05, high: 1.08, label: "", ticks: [0, 0.5, 1] });

    const descend = remembered((/** @type {string} */ network, /** @type {number} */ block, /** @type {string} */ variant, /** @type {number} */ tau) => {
      const packed = data.features?.[network]?.blocks?.[block - 1];
      if (!packed) throw new Problem("The features of this network are not on this page.");
      const start = Float64Array.from(halves(bytesOf(packed)));
      const size = start.length / rows;
      const lengths = (/** @type {Float64Array} */ h) => {
        let sum = 0;
        for (let i = 0; i < rows; i++) sum += Math.hypot(...h.subarray(i * size, (i + 1) * size)) / rows;
        return sum;
      };
      const middle = centred(start, rows);
      const scale = lengths(middle);
      const { values, vectors } = eigen(gram(middle, rows), rows);
      // the two principal directions, as weights of the rows
      const axes = [0, 1].map((k) => {
        const axis = new Float64Array(size);
        for (let i = 0; i < middle.length; i++) axis[i % size] += (vectors[k][Math.floor(i / size)] * middle[i]) / Math.sqrt(Math.max(values[k], 1e-12));
        return axis;
      });
      const mean = start.map((v, i) => v - middle[i]);
      /** @type {Float64Array[]} */
      const states = [start];
      const loss = [];
      for (let s = 0; s <= STEPS; s++) {
        const now = dispersive(states[s], rows, variant, tau);
        loss.push(now.loss);
        const by = lengths(now.slope);
        // every variant moves equally far: directions compare
        if (s < STEPS) states.push(states[s].map((v, i) => (by > 1e-12 ? v - ((0.04 * scale) / by) * now.slope[i] : v)));
      }
      const shown = states.map((h) => {
        const out = new Float64Array(2 * rows);
        for (let i = 0; i < h.length; i++) {
          const row = Math.floor(i / size);
          for (const k of [0, 1]) out[2 * row + k] += (h[i] - mean[i]) * axes[k][i % size];
        }
        return out;
      });
      const unit = Math.max(...shown[0].map(Math.abs)) / 1.5;
      const [low, high] = [Math.min(...loss), Math.max(...loss)];
      return { states, loss, shown: shown.map((x) => x.map((v) => v / unit)), relative: loss.map((v) => (v - low) / (high - low || 1)), lengths };
    });

    return {
      panels: [heat, plane, curve],
      legend: CLASSES.map((ink, label) => ({ text: String(label), colour: () => ink })),
      compute({ network, block, variant, tau, step }) {
        const run = descend(network, block, variant, tau);
        const h = run.states[step];
        const products = gram(centred(h, rows), rows);
        const similar = products.map((p, i) => p / Math.sqrt(Math.max(products[Math.floor(i / rows) * (rows + 1)] * products[(i % rows) * (rows + 1)], 1e-300)));
        return { run, similar, rank: effectiveRank(h, rows), norm: run.lengths(h) };
      },
      paint({ run, similar }, { step, block, network }, colours) {
        heat.cells(similar, rows, 1, true);
        heat.title(`Similarity, block ${block}, ${data.features[network].label}`);
        plane.inside(() => {
          plane.trails(run.shown.slice(0, step + 1), colours.noise, 0.8);
          const x = run.shown[step];
          for (const label of new Set(labels)) {
            plane.dots(Float64Array.from(x.filter((/** @type {number} */ _, /** @type {number} */ i) => labels[i >> 1] === label)), CLASSES[label], 4.5);
          }
        });
        plane.frame();
        plane.title(`Two principal directions, step ${step}`);
        curve.frame();
        curve.title("Loss, relative to its start");
        curve.line(run.relative.map((/** @type {number} */ _, /** @type {number} */ i) => i), run.relative, colours.repel);
        curve.mark(step, run.relative[step], colours.repel);
      },
      say({ run, rank, norm }, { variant, step }) {
        const floor = variant === "infonce_l2" ? ` Its floor is −log B = ${(-Math.log(rows)).toFixed(2)}.` : "";
        return `Loss ${run.loss[step].toFixed(3)}.${floor} Effective rank ${rank.toFixed(1)} of at most ${rows - 1}; mean feature norm ${norm.toFixed(1)}.`;
      },
    };
  },
};

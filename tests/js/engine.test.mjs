// The engine says what the Python library says. Its fixtures lie in the folder that CFM_LITE_FIXTURES names.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { dispersive, effectiveRank } from "../../cfm_lite/widgets/js/engine/dispersive.js";
import * as guidance from "../../cfm_lite/widgets/js/engine/guidance.js";
import * as metrics from "../../cfm_lite/widgets/js/engine/metrics.js";
import { Mixture } from "../../cfm_lite/widgets/js/engine/mixture.js";
import { MLP } from "../../cfm_lite/widgets/js/engine/mlp.js";
import { PATHS } from "../../cfm_lite/widgets/js/engine/paths.js";
import { Problem } from "../../cfm_lite/widgets/js/engine/problem.js";
import { Random } from "../../cfm_lite/widgets/js/engine/random.js";
import * as samplers from "../../cfm_lite/widgets/js/engine/samplers.js";
import { gradient, Training } from "../../cfm_lite/widgets/js/engine/train.js";
import * as theory from "../../cfm_lite/widgets/js/engine/theory.js";

const read = (name) => JSON.parse(readFileSync(join(process.env.CFM_LITE_FIXTURES, name), "utf8"));
const cases = read("fixtures.json");
const networks = read("networks.json");

/** Each number within `tolerance` of the expected one, in units of the largest. */
function near(found, expected, tolerance = 1e-10, said = "") {
  assert.equal(found.length, expected.length, said);
  const unit = Math.max(1, ...expected.map(Math.abs));
  for (let i = 0; i < expected.length; i++) {
    const gap = Math.abs(found[i] - expected[i]);
    assert.ok(gap <= tolerance * unit, `${said} [${i}]: ${found[i]}, not ${expected[i]}`);
  }
}

test("densities, velocities, scores and derivatives of mixtures are Python's", () => {
  for (const c of cases.mixtures) {
    const [m, x, path] = [new Mixture(c.mixture), Float64Array.from(c.x), PATHS[c.path]];
    const said = `${c.path}, t = ${c.t}, label ${c.label}`;
    near(m.logProb(x, c.t, c.label, path), c.log_prob, 1e-10, said);
    near(m.velocity(x, c.t, c.label, path), c.velocity, 1e-10, said);
    near(m.score(x, c.t, c.label, path), c.score, 1e-10, said);
    near(m.at(c.t, c.label, path).jacobian(x), c.jacobian, 1e-10, said);
    near(m.mean(c.label), c.mean, 1e-10, said);
    for (const o of c.optima) {
      const settings = { weight: o.weight, k: o.k, label: c.label, path };
      near(theory.optimum(m, o.method, settings)(x, c.t, new Float64Array(x.length)), o.velocity, 1e-10, `${o.method}, ${said}`);
    }
  }
});

test("the divergence is that of small differences of the optimum", () => {
  const c = cases.mixtures.find((one) => one.t === 0.5 && one.mixture.covariances);
  const [m, x, h] = [new Mixture(c.mixture), Float64Array.from(c.x), 1e-5];
  for (const method of theory.EXACT) {
    const field = theory.optimum(m, method, { weight: 0.3, path: PATHS[c.path] });
    const at = (dim, step) => field(x.map((v, i) => v + (i % 2 === dim ? step : 0)), 0.5, new Float64Array(x.length));
    const found = theory.divergence(m, method, x, 0.5, { weight: 0.3, path: PATHS[c.path] });
    const [right, left, up, down] = [at(0, h), at(0, -h), at(1, h), at(1, -h)];
    const expected = [...found].map((_, i) => (right[2 * i] - left[2 * i] + up[2 * i + 1] - down[2 * i + 1]) / (2 * h));
    near(found, expected, 1e-7, method);
  }
});

test("guidance and its maps are Python's", () => {
  for (const c of cases.guided) {
    const m = new Mixture(c.mixture);
    const good = (x, t, out) => m.velocity(x, t, 0, undefined, out);
    const bad = (x, t, out) => m.velocity(x, t, -1, undefined, out);
    const field = {
      guide: () => guidance.guide(good, bad, 2.5, [0.25, 0.75]),
      none: () => guidance.guide(good, bad, 1),
      rescale: () => guidance.rescale(good, 1.4),
      time_scaled: () => guidance.timeScaled(good, 0.5, 2),
      retarget: () => guidance.retarget(good, 0.35, c.mean),
      debias: () => guidance.debias(good, 0.35, c.mean, [0, 0.5]),
      retarget_shuffle: () => guidance.retargetShuffle(good, 0.2, 2),
      retarget_all_shuffles: () => guidance.retargetShuffle(good, 0.2, 2, false),
      debias_shuffle: () => guidance.debiasShuffle(good, 0.35, 1, true, [0.5, 1]),
    }[c.field]();
    near(field(Float64Array.from(c.x), c.t, new Float64Array(c.x.length)), c.velocity, 1e-10, `${c.field}, t = ${c.t}`);
  }
});

test("solvers, straightness, drift and costs are Python's", () => {
  for (const c of cases.walks) {
    const m = new Mixture(c.mixture);
    const field = theory.optimum(m, "delta_fm", { weight: 0.35 });
    const ts = samplers.grid(c.steps);
    const states = samplers.trajectory(field, Float64Array.from(c.x), ts, c.solver);
    const said = `${c.solver}, ${c.steps} steps`;
    for (const [i, state] of states.entries()) near(state, c.states[i], 1e-10, said);
    near([metrics.straightness(states)], [c.straightness], 1e-10, said);
    const reference = { x0: Float64Array.from(c.x0), x1: Float64Array.from(c.x1) };
    near(metrics.driftByTime(states, m, ts, reference), c.drift, 1e-10, said);
    const { nfe, rows } = samplers.evaluations(c.solver, c.steps, 2, [0.25, 0.75]);
    assert.deepEqual([nfe, rows], c.evaluations, said);
  }
});

test("the SDE is Python's on the same noise", () => {
  for (const c of cases.noisy) {
    const [m, path] = [new Mixture(c.mixture), PATHS[c.path]];
    const field = (x, t, out) => m.velocity(x, t, -1, path, out);
    const settings = { path, diffusion: c.diffusion, norm: c.norm, lastStep: c.last };
    const states = samplers.sde(field, Float64Array.from(c.x), samplers.grid(6, 0.96), (i) => c.noise[i], settings);
    near(states.at(-1), c.end, 1e-10, `${c.path}, ${c.diffusion}, ${c.last}`);
  }
});

test("networks say what torch says, to 1e-5", () => {
  for (const c of cases.networks) {
    const field = MLP.unpack(networks[c.name]).field(c.label);
    near(field(Float64Array.from(c.x), c.t, new Float64Array(c.x.length)), c.velocity, 1e-5, `${c.name}, t = ${c.t}`);
  }
});

test("dispersive losses, their gradients and the effective rank are Python's", () => {
  for (const c of cases.dispersive) {
    const { loss, slope } = dispersive(Float64Array.from(c.h), c.rows, c.variant, c.tau);
    near([loss], [c.loss], 1e-10, c.variant);
    near(slope, c.slope, 1e-10, c.variant);
    near([effectiveRank(Float64Array.from(c.h), c.rows)], [c.rank], 1e-10, "rank");
  }
});

test("the gradient of a network's loss is torch's, and training brings it to the optimum", () => {
  for (const c of cases.gradients) {
    const slope = new Float64Array(c.weights.length);
    const [network, slopes] = [new MLP(c.sizes, Float64Array.from(c.weights)), new MLP(c.sizes, slope)];
    const batch = Object.fromEntries(["x", "t", "u", "other"].map((name) => [name, Float64Array.from(c[name])]));
    near([gradient(network, slopes, { ...batch, y: Int32Array.from(c.y) }, c.weight)], [c.loss]);
    near(slope, c.slope);
  }
  const m = new Mixture({ weights: [1], means: [[2, -1]], stds: [0.5] });
  const work = new Training(m, { hidden: 16, depth: 2, classes: 0 }, new Random(1), { lambda: 0.3, steps: 200, rate: 0.02 });
  for (let i = 0; i < 200; i++) work.step();
  const x = new Random(2).normals(60).map((v, i) => 0.5 * v + (i % 2 ? -0.5 : 1)); // where x_t is at t = 0.5
  const exact = theory.optimum(m, "delta_fm", { weight: 0.3 })(x, 0.5, new Float64Array(60));
  const found = work.network.field()(x, 0.5, new Float64Array(60));
  const share = found.reduce((sum, v, i) => sum + (v - exact[i]) ** 2, 0) / exact.reduce((sum, v) => sum + v * v, 0);
  assert.ok(share < 0.15, `${share}`);
});

test("drawn data have the mean, the spread and the shares of the mixture", () => {
  const m = new Mixture(cases.mixtures.find((one) => one.mixture.covariances).mixture);
  const { x, y } = m.sample(20000, new Random(1));
  const share = [...y].filter((label) => label === 0).length / y.length;
  assert.ok(Math.abs(share - 0.5) < 0.015, `${share}`);
  const own = [...y.keys()].filter((i) => y[i] === 0);
  const mean = [0, 1].map((dim) => own.reduce((sum, i) => sum + x[2 * i + dim], 0) / own.length);
  near(mean, [1, -1.5], 0.03);
  const spread = [0, 1].map((dim) => own.reduce((sum, i) => sum + (x[2 * i + dim] - mean[dim]) ** 2, 0) / own.length);
  near(spread, [0.1, 0.9], 0.05);
  assert.deepEqual(m.sample(5, new Random(2)), m.sample(5, new Random(2)));
});

test("what cannot be used is said in plain words", () => {
  const one = { weights: [1], means: [[0, 0]], stds: [1] };
  for (const [change, words] of [
    [{ means: [] }, /no component/],
    [{ weights: [0] }, /All weights are 0/],
    [{ means: [[Number.NaN, 0]] }, /must be a number/],
    [{ stds: [-1] }, /between 0/],
    [{ stds: undefined, covariances: [[[1, 2], [2, 1]]] }, /symmetric and positive/],
    [{ weights: Array(500).fill(1), means: Array(500).fill([0, 0]), stds: Array(500).fill(1) }, /At most 64/],
  ]) {
    assert.throws(() => new Mixture({ ...one, ...change }), (error) => error instanceof Problem && words.test(error.message));
  }
  const m = new Mixture(one);
  assert.throws(() => theory.optimum(m, "delta_fm", { weight: 0.5, k: 2 }), /no minimum/);
  assert.throws(() => m.velocity(new Float64Array(2), 0.5, 4), /no component/);
  assert.throws(() => new Mixture({ ...one, stds: [0] }).velocity(new Float64Array(2), 1), /earlier time/);
  assert.throws(() => guidance.guide(() => {}, () => {}, 2, [0.8, 0.2]), /begins at 0.8/);
});

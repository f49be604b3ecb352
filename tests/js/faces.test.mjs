// Every explorer computes what it shows at both ends of each of its controls, without a page.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { JOBS } from "../../cfm_lite/widgets/js/engine/jobs.js";
import { Mixture } from "../../cfm_lite/widgets/js/engine/mixture.js";
import { Problem } from "../../cfm_lite/widgets/js/engine/problem.js";
import { optimum } from "../../cfm_lite/widgets/js/engine/theory.js";
import { TWO_CLASSES } from "../../cfm_lite/widgets/js/faces/common.js";
import { divergence } from "../../cfm_lite/widgets/js/faces/divergence.js";
import { exactField } from "../../cfm_lite/widgets/js/faces/exact_field.js";
import { features } from "../../cfm_lite/widgets/js/faces/features.js";
import { guidance } from "../../cfm_lite/widgets/js/faces/guidance.js";
import { ownData } from "../../cfm_lite/widgets/js/faces/own_data.js";
import { training } from "../../cfm_lite/widgets/js/faces/training.js";
import { trajectories } from "../../cfm_lite/widgets/js/faces/trajectories.js";
import { words } from "../../cfm_lite/widgets/js/faces/words.js";
import { wrongVelocities } from "../../cfm_lite/widgets/js/faces/wrong_velocities.js";
import { asked, linkTo, read as readLink } from "../../cfm_lite/widgets/js/page/link.js";

const read = (name) => JSON.parse(readFileSync(join(process.env.CFM_LITE_FIXTURES, name), "utf8"));
const networks = read("networks.json");
const given = read("given.json");
const FACES = [divergence, exactField, features, guidance, ownData, training, trajectories, words, wrongVelocities];

/** What a face shows once all long work is done, and the line that it says. */
function shown(scene, values) {
  for (let round = 0; round < 4; round++) {
    let task;
    const seen = scene.compute(values, (one) => {
      task = one;
    });
    if (!task) return { seen, line: scene.say(seen, values) };
    const work = JOBS[task.job](task.input);
    let step = work.next();
    while (!step.done) step = work.next();
    task.done(step.value);
    if (values.run) return { seen, line: scene.say(seen, values) }; // a training goes on and on
  }
  throw new Error("the work never ends");
}

const ends = (control) => {
  if (control.kind === "slider") return [control.low, control.high];
  if (control.kind === "interval") return [[0, 0], [0.3, 0.7], [1, 1]];
  if (control.kind === "check") return [true, false];
  return [control.options[0][1], control.options.at(-1)[1]];
};

for (const face of FACES) {
  test(`${face.name}: every end of every control gives a line without NaN`, () => {
    const data = { ...given[face.name], networks };
    const [scene, start] = [face.make(data), face.values(data)];
    for (const control of face.controls(data)) {
      assert.ok(control.name in start, control.name);
      for (const value of ends(control)) {
        try {
          const { line } = shown(scene, { ...start, [control.name]: value });
          assert.ok(line && !/NaN|Infinity|undefined/.test(line), `${control.name} = ${value}: ${line}`);
        } catch (error) {
          if (!(error instanceof Problem && value === "channel_shuffle")) throw error;
        }
      }
    }
  });
}

test("the arrows are those of the theory, and the parts add up", () => {
  const [scene, values] = [exactField.make({}), { ...exactField.values({}), t: 0.4, weight: 0.25, label: 1, method: "vecor" }];
  const { x, shown: fields } = scene.compute(values, () => {});
  const expected = optimum(new Mixture(TWO_CLASSES), "vecor", { weight: 0.25, label: 1 })(x, 0.4, new Float64Array(x.length));
  for (let i = 0; i < x.length; i++) {
    assert.ok(Math.abs(fields[2][i] - expected[i]) < 1e-12);
    assert.ok(Math.abs(fields[0][i] + fields[1][i] - expected[i]) < 1e-12);
  }
});

test("the correction gives FM back exactly, and without it the paths differ", () => {
  const scene = guidance.make({});
  for (const method of ["delta_fm", "vecor"]) {
    const gap = (correct) => {
      const { runs } = scene.compute({ ...guidance.values({}), method, scale: 3, correct }, () => {});
      return Math.max(...runs[0].states.at(-1).map((v, i) => Math.abs(v - runs[1].states.at(-1)[i])));
    };
    assert.ok(gap(true) < 1e-8, method);
    assert.ok(gap(false) > 0.2, method);
  }
});

test("beyond the bound the explorer of λ says that there is no optimum", () => {
  const scene = divergence.make({});
  const said = (weight, k) => shown(scene, { weight, k, method: "delta_fm" }).line;
  assert.match(said(1, 1), /refuses/);
  assert.match(said(0.3, 4), /refuses/);
  assert.match(said(0.2, 4), /5.00-fold/);
});

test("what a hand cannot show is said in plain words", () => {
  assert.throws(() => exactField.make({}).compute({ ...exactField.values({}), weight: 1 }, () => {}), /no minimum/);
  assert.throws(() => ownData.make({}).compute({ ...ownData.values({}), mixture: { ...TWO_CLASSES, weights: [], means: [], stds: [], labels: [] } }, () => {}), /no component/);
  assert.throws(() => trajectories.make({}).compute({ ...trajectories.values({}), field: "toy_fm" }, () => {}), /not on this page/);
});

test("a picture from words is the shelf's, or Python's under the name that both give it; the newest stands first", () => {
  const data = given.words;
  const [scene, start] = [words.make(data), words.values(data)];
  const at = (values) => scene.compute({ ...start, ...values }, () => {});
  assert.equal(at({}).film.length, 4);
  const [{ values: alone }, { values: two, key }] = read("fixtures.json").keys;
  const shelved = at(alone);
  assert.ok(!shelved.waiting && shelved.film[0].index > 0);
  assert.match(scene.say(shelved, {}), /^Asked: a cyan two \(guidance 1, noise 0\)/);
  const asked = at(two);
  assert.ok(asked.waiting && asked.film[0].caption === "a cyan two");
  assert.match(scene.say(asked, {}), /Without a kernel/);
  const picture = { key, png: "", caption: "what was asked", read: ["this", "beside that"], right: false };
  const drawn = at({ ...two, picture });
  assert.deepEqual(drawn.film.map((one) => one.caption).slice(0, 2), ["what was asked", "a cyan two"]);
  assert.equal(drawn.film.length, 4);
  assert.match(scene.say(drawn, {}), /away from red, λ = 0.35\)\. Read: this beside that\. That is not what was asked\.$/);
  assert.ok(at({ ...alone, picture }).film[0].caption === "a cyan two" && at({}).film.length === 4); // each stands there once
  assert.throws(() => at({ ...two, picture: { problem: "no network" } }), /no network/);
});

for (const face of FACES) {
  test(`${face.name}: a link holds the state, in plain characters`, () => {
    const data = { ...given[face.name], networks };
    const start = face.values(data);
    for (const control of face.controls(data)) {
      for (const value of ends(control)) {
        const values = { ...start, [control.name]: value };
        const link = linkTo(face, data, values);
        assert.match(link, /^#explorer=[\w=&,.-]+$/);
        assert.equal(asked(link), face.name);
        const found = readLink(face, data, link).values;
        for (const { name } of face.controls(data)) assert.deepEqual(found[name], values[name], name);
      }
    }
  });
}

test("a link holds a mixture of 64 components in 2 kB, and covariances", () => {
  const rows = Array.from({ length: 64 }, (_, i) => i);
  const many = { weights: rows.map(() => 1 / 64), means: rows.map((i) => [i / 17 - 2, -i / 19]), stds: rows.map((i) => 0.1 + i / 80), labels: rows.map((i) => i % 4) };
  const link = linkTo(ownData, {}, { ...ownData.values({}), mixture: many });
  assert.ok(link.length <= 2000, `${link.length}`);
  const { mixture } = readLink(ownData, {}, link).values;
  for (const i of rows) {
    assert.ok(Math.abs(mixture.means[i][0] - many.means[i][0]) < 1e-2);
    assert.equal(mixture.labels[i], many.labels[i]);
  }
  const tilted = { weights: [1], means: [[1, -2]], covariances: [[[1, 0.5], [0.5, 2]]], labels: [0] };
  const { data } = readLink(exactField, {}, linkTo(exactField, { mixture: tilted }, exactField.values({ mixture: tilted })));
  assert.deepEqual(data.mixture.covariances, tilted.covariances);
});

test("a broken link is a Problem in plain words, whatever stands in it", () => {
  const broken = ["t=7", "t=1e3", "t=NaN", "t=<b>", "label=9", "label=__proto__", "method=fm%3Cscript%3E", "mixture=1,2", "mixture=1,0,0,-1,0", "mixture=0,0,0,1,0", `t=${"1".repeat(3000)}`];
  for (const part of broken) assert.throws(() => readLink(exactField, {}, `#explorer=exact_field&${part}`), { message: /^The link is broken: / }, part);
  assert.throws(() => readLink(guidance, {}, "#explorer=guidance&interval=0.7,0.3"), /no interval/);
  assert.throws(() => readLink(trajectories, {}, "#explorer=trajectories&steps=2.5"), /whole number/);
  assert.throws(() => readLink(ownData, {}, `#explorer=own_data&mixture=${Array(65).fill("1,0,0,1,0").join("_")}`), /broken/);
  assert.deepEqual(readLink(exactField, {}, "#explorer=exact_field&evil=1").values, exactField.values({}));
  assert.equal(asked("#token=secret"), "");
});

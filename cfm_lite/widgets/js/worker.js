// What runs in the worker: one job after the other, each to its end.

import { JOBS, told } from "./engine/jobs.js";

/** @type {any} */
const scope = globalThis;

scope.onmessage = (/** @type {{data: {id: number, job: string, input: any}}} */ { data: { id, job, input } }) => {
  try {
    const work = JOBS[job](input);
    let step = work.next();
    while (!step.done) step = work.next();
    scope.postMessage({ id, result: step.value });
  } catch (error) {
    scope.postMessage({ id, ...told(error) });
  }
};

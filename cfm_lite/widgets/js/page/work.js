// Long work beside the page: in a worker that all its explorers share, or in slices between two frames where a page
// may have none. The worker's code stands in the built file as text, so that a page from a disk has one too.

import { JOBS, told } from "../engine/jobs.js";
import { Problem } from "../engine/problem.js";

const SLICE = 12; // ms of work between two frames

/** @typedef {{job: string, input: any, resolve: (result: any) => void, reject: (error: Error) => void}} Asked */
/** @type {Map<number, Asked>} */
const waiting = new Map();
/** @type {Worker | null | undefined} null where there can be none */
let worker;
let count = 0;

/** The result of a job of engine/jobs.js. @param {string} job @param {any} input @returns {Promise<any>} */
export function run(job, input) {
  if (worker === undefined) worker = begin();
  if (!worker) return sliced(job, input);
  const id = ++count;
  return new Promise((resolve, reject) => {
    waiting.set(id, { job, input, resolve, reject });
    worker?.postMessage({ id, job, input });
  });
}

/** @returns {Worker | null} */
function begin() {
  if (typeof WORKER === "undefined" || typeof Worker === "undefined") return null;
  const address = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
  try {
    const made = new Worker(address);
    made.onmessage = ({ data: { id, result, problem, error } }) => {
      const asked = waiting.get(id);
      waiting.delete(id);
      if (problem || error) asked?.reject(problem ? new Problem(problem) : new Error(error));
      else asked?.resolve(result);
    };
    made.onerror = () => {
      // the page may not have a worker: what it was asked is done here
      made.terminate();
      worker = null;
      for (const { job, input, resolve, reject } of waiting.values()) sliced(job, input).then(resolve, reject);
      waiting.clear();
    };
    return made;
  } catch {
    return null;
  }
}

/** @param {string} job @param {any} input */
async function sliced(job, input) {
  try {
    const work = JOBS[job](input);
    for (;;) {
      const end = performance.now() + SLICE;
      let step = work.next();
      while (!step.done && performance.now() < end) step = work.next();
      if (step.done) return step.value;
      await new Promise((next) => setTimeout(next, 4));
    }
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Error(told(error).error);
  }
}

// Seeded random numbers: the same seed gives the same picture on every machine.

export class Random {
  /** @param {number} seed */
  constructor(seed) {
    this.state = (Math.imul(seed, 0x85ebca6b) ^ 0x5bd1e995) >>> 0;
    /** @type {number | null} */
    this.spare = null;
  }

  /** Uniform on (0, 1), 32 bits. */
  uniform() {
    // a counter whose bits are mixed: Steele, Lea & Flood 2014, in 32 bits
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let z = this.state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 4294967296 + 1.1641532182693481e-10;
  }

  /** Standard normal, by Box and Muller. */
  normal() {
    if (this.spare !== null) {
      const kept = this.spare;
      this.spare = null;
      return kept;
    }
    const radius = Math.sqrt(-2 * Math.log(this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** `n` standard normals. @param {number} n */
  normals(n) {
    return Float64Array.from({ length: n }, () => this.normal());
  }

  /** An index, drawn by its weight; the weights sum to 1. @param {ArrayLike<number>} weights */
  pick(weights) {
    let rest = this.uniform();
    let last = 0;
    for (let k = 0; k < weights.length; k++) {
      if (!(weights[k] > 0)) continue;
      last = k;
      rest -= weights[k];
      if (rest < 0) break;
    }
    return last;
  }
}

// The threshold to try: what it would have done with the last parts, by their scores. It changes nothing on the line.

import { domainOf, drawChart } from "/chart.js";
import * as format from "/format.js";

const STEPS = 400;
const HANDLE_REM = 1.9; // as --handle in page.css
const NOTICE_MS = 3000;
const get = (id) => document.getElementById(id);
const slider = get("threshold");

export class WhatIf {
  #scores = [];
  #threshold = null;
  #tried = null;
  #domain = [0, 1];
  #isHeld = false;
  #isFrames = false;
  #noticeEndsMs = 0; // of performance.now(): what #copy said stands until then

  constructor() {
    slider.addEventListener("input", () => this.#try(slider.valueAsNumber));
    slider.addEventListener("pointerdown", () => (this.#isHeld = true));
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => (this.#isHeld = false));
    get("less").addEventListener("click", () => this.#step(-1));
    get("more").addEventListener("click", () => this.#step(1));
    get("reset").addEventListener("click", () => this.#try(null));
    get("copy").addEventListener("click", () => this.#copy());
    new ResizeObserver(() => this.#draw()).observe(get("chart"));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  get tried() {
    return this.#tried;
  }

  set tried(value) {
    this.#tried = value;
    this.#noticeEndsMs = 0;
  }

  show(scores, threshold, isFrames) {
    this.#isFrames = isFrames; // K of N judges a part by several, which is not tried here
    this.#scores = scores;
    this.#threshold = threshold;
    slider.disabled = threshold === null;
    if (threshold !== null && !this.#isHeld) this.#setDomain(); // the scale must not move under a finger
    this.#render();
  }

  #setDomain() {
    const [low, high] = domainOf(this.#scores, this.#threshold);
    const [oldLow, oldHigh] = this.#domain;
    const isWithin = oldLow <= low && high <= oldHigh && high - low > 0.6 * (oldHigh - oldLow);
    if (!isWithin) this.#domain = [low, high];
    [slider.min, slider.max] = this.#domain;
    slider.step = "any";
  }

  #step(direction) {
    const [low, high] = this.#domain;
    const value = (this.#tried ?? this.#threshold) + (direction * (high - low)) / STEPS;
    this.#try(Math.min(Math.max(value, low), high));
  }

  #try(value) {
    if (this.#threshold === null) return;
    this.tried = value === null ? null : Number(value.toPrecision(4)); // what is shown and copied is what was tried
    this.#render();
  }

  #render() {
    if (this.#threshold === null) {
      for (const id of ["limit-now", "rejects-now", "limit-then", "rejects-then"]) get(id).textContent = "–";
      this.#draw();
      return;
    }
    const scores = this.#scores;
    const limit = this.#tried ?? this.#threshold;
    slider.value = limit;
    const now = scores.filter(([, isAnomalous]) => isAnomalous).length;
    const then = scores.filter(([score]) => score > limit).length;
    const more = scores.filter(([score, isAnomalous]) => score > limit && !isAnomalous).length;
    get("counted").textContent = `Last ${format.count(scores.length)} ${this.#isFrames ? "frames" : "parts"}`;
    get("limit-now").textContent = format.score(this.#threshold);
    get("rejects-now").textContent = `${format.count(now)} · ${format.percent(now, scores.length)}`;
    get("limit-then").textContent = format.score(limit);
    get("rejects-then").textContent = `${format.count(then)} · ${format.percent(then, scores.length)}`;
    if (performance.now() >= this.#noticeEndsMs) {
      get("difference").textContent =
        this.#tried === null
          ? "Try a threshold; the line keeps its own."
          : `${format.count(more)} more rejected, ${format.count(now - (then - more))} fewer, by score alone.`;
    }
    this.#draw();
  }

  #draw() {
    const rem_px = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const inset_px = (HANDLE_REM * rem_px) / 2; // the handle's middle never reaches the slider's ends
    drawChart(get("chart"), this.#scores, this.#domain, this.#threshold ?? NaN, this.#tried, inset_px);
  }

  async #copy() {
    if (this.#threshold === null) return;
    const line = `threshold = ${(this.#tried ?? this.#threshold).toPrecision(4)}`;
    try {
      await navigator.clipboard.writeText(line); // browsers give it to loopback and https only
      get("difference").textContent = `Copied: ${line}`;
      this.#noticeEndsMs = performance.now() + NOTICE_MS;
    } catch {
      get("difference").textContent = line;
      this.#noticeEndsMs = Infinity; // until another is tried: it is to be copied by hand
      getSelection().selectAllChildren(get("difference"));
    }
  }
}

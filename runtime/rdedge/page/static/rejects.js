// The last rejects, newest first: thumbnails that are drawn once and moved, and the enlarged view.

import * as format from "/format.js";
import { decodePart, drawPart, drawThumb, fetchPart, release } from "/pictures.js";

const PLACES = 12;
const THUMB_PX = 192;
const REGIONS_SHOWN = 6;
const get = (id) => document.getElementById(id);

export class Rejects {
  #places = [];
  #list = [];
  #camera = 0;
  #kept = new Map(); // number -> encoded picture
  #loading = new Set();
  #open = null; // the reject in the enlarged view, and its decoded picture

  constructor(opacity) {
    this.opacity = opacity;
    for (let i = 0; i < PLACES; i += 1) this.#places.push(this.#place());
    get("rejects").append(...this.#places.map(({ button }) => button));
    this.show([], 0);
    get("newer").addEventListener("click", () => this.#move(-1));
    get("older").addEventListener("click", () => this.#move(1));
    get("enlarged").addEventListener("close", () => {
      release(this.#open?.part);
      this.#open = null;
    });
  }

  #place() {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    const text = document.createElement("span");
    const place = { button, canvas, text, number: null };
    canvas.width = canvas.height = THUMB_PX;
    button.type = "button";
    button.dataset.picture = "none";
    button.append(canvas, text);
    button.addEventListener("click", () => {
      const reject = this.#list.find(({ number }) => number === place.number);
      if (reject) this.#enlarge(reject);
    });
    return place;
  }

  forget() {
    this.#kept.clear();
    this.#loading.clear();
    for (const place of this.#places) this.#empty(place, null);
  }

  show(list, camera) {
    this.#camera = camera;
    this.#list = list;
    const numbers = new Set(list.map(({ number }) => number));
    for (const number of this.#kept.keys()) if (!numbers.has(number)) this.#kept.delete(number);
    const drawn = new Map(this.#places.map((place) => [place.number, place]));
    const free = this.#places.filter(({ number }) => !numbers.has(number));
    this.#places = [...list.map(({ number }) => drawn.get(number) ?? free.shift()), ...free];
    this.#places.forEach((place, index) => {
      const there = get("rejects").children[index];
      if (there !== place.button) get("rejects").insertBefore(place.button, there);
      this.#fill(place, list[index]);
    });
  }

  #fill(place, reject) {
    place.button.disabled = !reject;
    place.text.textContent = reject ? format.clock(reject.at_ms) : "";
    place.button.setAttribute("aria-label", reject ? `Reject ${reject.label}` : "No reject");
    if (place.number !== (reject?.number ?? null)) {
      this.#empty(place, reject?.number ?? null);
    }
    if (reject && place.button.dataset.picture === "none" && reject.picture === "ready") this.#load(place, reject.number);
  }

  #empty(place, number) {
    place.number = number;
    place.canvas.getContext("2d").clearRect(0, 0, THUMB_PX, THUMB_PX);
    place.button.dataset.picture = "none";
  }

  async #load(place, number) {
    if (this.#loading.has(number)) return;
    this.#loading.add(number);
    try {
      const buffer = this.#kept.get(number) ?? (await fetchPart(this.#camera, number))?.buffer;
      if (!buffer || !this.#loading.has(number)) return;
      this.#kept.set(number, buffer);
      const part = await decodePart(buffer);
      if (place.number === number) {
        drawThumb(place.canvas, part, this.opacity);
        place.button.dataset.picture = `${number}`;
      }
      release(part);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // TypeError: the connection broke; the next state tries again
    } finally {
      this.#loading.delete(number);
    }
  }

  async #enlarge(reject) {
    const buffer = this.#kept.get(reject.number) ?? (await fetchPart(this.#camera, reject.number))?.buffer;
    release(this.#open?.part);
    this.#open = { reject, part: buffer ? await decodePart(buffer) : null };
    get("enlarged-title").textContent = `Reject ${reject.label}`;
    const facts = this.#open.part?.facts;
    get("enlarged-facts").textContent = [
      format.clock(reject.at_ms),
      `score ${format.score(reject.score)}`,
      facts ? `threshold ${format.score(facts.threshold)}` : "the picture is not kept",
      facts?.source ?? "",
    ].join("\n");
    this.#tabulate(facts?.regions ?? []);
    if (!get("enlarged").open) get("enlarged").showModal();
    this.redraw();
  }

  #tabulate(regions) {
    const rows = [["peak", "area px", "at x, y", "size"]];
    for (const { peak, area_px, box_xywh } of regions.slice(0, REGIONS_SHOWN)) {
      const [x, y, w, h] = box_xywh;
      rows.push([format.score(peak), format.count(area_px), `${x}, ${y}`, `${w}×${h}`]);
    }
    get("regions").replaceChildren(
      ...rows.map((cells, index) => {
        const row = document.createElement("tr");
        for (const cell of cells) {
          row.append(document.createElement(index ? "td" : "th"));
          row.lastChild.textContent = cell;
        }
        return row;
      }),
    );
    const rest = regions.length - REGIONS_SHOWN;
    get("more-regions").textContent = rest > 0 ? `and ${rest} smaller` : regions.length ? "" : "no region above the threshold";
  }

  #move(step) {
    const index = this.#list.findIndex(({ number }) => number === this.#open?.reject.number);
    const next = this.#list[index === -1 ? 0 : index + step];
    if (next) this.#enlarge(next);
  }

  redraw() {
    if (this.#open?.part) drawPart(get("large"), this.#open.part, this.opacity);
    else get("large").width = get("large").height = 1;
  }
}

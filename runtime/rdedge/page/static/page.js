// The operator page: takes the line's state as it comes, shows one camera, and says when what it shows is old.

import * as format from "/format.js";
import { follow } from "/link.js";
import { decodePart, drawPart, fetchPart, release } from "/pictures.js";
import { Rejects } from "/rejects.js";
import { WhatIf } from "/what_if.js";

const HISTORY = 1000;
const TICK_MS = 250;
const CHART_MS = 200;
const MARKS = { good: "✓", reject: "✕", old: "◌", none: "◌", fault: "▲", lost: "▲" };
const WORDS = { good: "GOOD", reject: "REJECT", old: "WAITING", none: "WAITING", fault: "NO VERDICT", lost: "NO CONNECTION" };
const get = (id) => document.getElementById(id);

const cameras = new Map(); // name -> { state, scores, tried }; what is tried with the one on show, whatIf has
let state = null;
let receivedMs = 0; // of performance.now()
let lost = { since: new Date(), reason: "connecting" }; // null while connected
let selected = new URLSearchParams(`camera=${location.hash.slice(1).replaceAll("+", "%2B")}`).get("camera"); // never throws
let picture = null; // on show: { camera, number, part }
let isLoading = false;
let isChartOld = true;
let chartMs = -Infinity; // when it was drawn

const opacity = () => get("heat").valueAsNumber / 100;
const rejects = new Rejects(opacity());
const whatIf = new WhatIf();
const elapsedS = () => (performance.now() - receivedMs) / 1000;

function onState(news) {
  if (state !== null && state.page !== news.page) location.reload(); // the line was updated
  const isFirst = state === null || lost !== null; // after a break the line sends everything again
  state = news;
  receivedMs = performance.now();
  lost = null;
  if (isFirst) {
    rejects.forget(); // a restarted line counts from one again
    if (picture) picture.number = null;
  }
  for (const camera of news.cameras) {
    const known = cameras.get(camera.name);
    const scores = isFirst || !known ? [] : known.scores;
    scores.push(...camera.scores);
    if (scores.length > HISTORY) scores.splice(0, scores.length - HISTORY);
    for (const reject of camera.rejects) reject.at_ms = Date.now() - 1000 * reject.age_s;
    cameras.set(camera.name, { state: camera, scores, tried: known?.tried ?? null });
  }
  render();
}

function onLost(reason) {
  lost = { since: lost?.since ?? new Date(), reason };
  renderVerdicts();
}

function current() {
  if (!cameras.has(selected)) selected = state?.cameras[0]?.name ?? "";
  return cameras.get(selected);
}

// What may be claimed of a camera now: a verdict only while it is new.
function standing(camera) {
  if (lost !== null) return "lost";
  const age_s = camera?.age_s === null ? Infinity : (camera?.age_s ?? Infinity);
  const isFaulty = state.alarms.some(
    (alarm) => alarm.camera === camera?.name && alarm.stops_verdicts && alarm.age_s <= age_s,
  );
  if (isFaulty) return "fault";
  if (camera?.shown == null) return "none";
  if (age_s + elapsedS() > camera.stale_after_s) return "old";
  return camera.shown.is_anomalous ? "reject" : "good";
}

function render() {
  renderTabs();
  renderVerdicts();
  renderEvents();
  const camera = current();
  if (!camera) return;
  loadPicture();
  const isOther = get("rejects").dataset.camera !== selected;
  get("rejects").dataset.camera = selected;
  if (isOther) {
    rejects.forget();
    whatIf.tried = camera.tried;
  }
  rejects.show(camera.state.rejects, state.cameras.indexOf(camera.state));
  isChartOld = true;
  if (performance.now() - chartMs > CHART_MS || isOther) renderFigures();
}

// Figures and chart, some times a second: there may be many more parts.
function renderFigures() {
  const camera = current();
  if (!isChartOld || !camera) return;
  isChartOld = false;
  chartMs = performance.now();
  renderNumbers(camera.state, camera.scores);
  whatIf.show(camera.scores, camera.state.threshold, camera.state.is_k_of_n);
}

function renderNumbers({ parts, rejected, cycle_s, running_s }, scores) {
  const recent = scores.filter(([, isAnomalous]) => isAnomalous).length;
  const times = scores.map(([, , ms]) => ms);
  const ms = (share) => quantileText(times, share);
  get("parts").textContent = format.count(parts);
  get("rejected").textContent = format.count(rejected);
  get("rate").textContent = format.percent(rejected, parts);
  get("recent-title").textContent = `Last ${format.count(scores.length)}`;
  get("recent").textContent = format.percent(recent, scores.length);
  get("pace").textContent = cycle_s ? format.short(Math.round(60 / cycle_s)) : "–";
  get("latency").textContent = times.length ? `${ms(0.5)} / ${ms(0.95)}` : "–";
  get("numbers").title = `since ${format.clock(Date.now() - 1000 * running_s)}`;
}

const quantileText = (times, share) => {
  const ms = format.quantile(times, share);
  return ms < 100 ? ms.toFixed(1) : Math.round(ms).toString();
};

function renderVerdicts() {
  const camera = current()?.state;
  const kind = standing(camera);
  const shown = camera?.shown;
  const alarm = state?.alarms.find((one) => one.camera === camera?.name && one.stops_verdicts);
  get("verdict").dataset.state = kind;
  get("word").textContent = WORDS[kind];
  const last = shown ? `last part ${shown.label}: ${shown.is_anomalous ? "reject" : "good"}, ${ageOf(camera)} ago` : "no part yet";
  get("detail").textContent = {
    good: shown && verdictText(shown),
    reject: shown && verdictText(shown),
    old: last,
    none: "no part yet",
    fault: `${alarm?.text ?? ""}\n${last}`,
    lost: `since ${format.clock(lost?.since)}: ${lost?.reason}\n${last}`,
  }[kind];
  document.body.dataset.standing = kind;
  get("link").dataset.link = lost ? "lost" : "live";
  get("link").textContent = lost ? `no connection since ${format.clock(lost.since)}` : "connected";
  const isPictured = picture !== null && picture.camera === selected;
  get("caption").textContent = isPictured && shown ? `Part ${picture.label}` : "";
  for (const tab of get("tabs").children) {
    const mark = standing(cameras.get(tab.dataset.camera)?.state);
    tab.dataset.state = mark;
    tab.firstChild.textContent = MARKS[mark];
  }
}

const ageOf = (camera) => format.age(camera.age_s + elapsedS());
const verdictText = ({ label, score, threshold }) =>
  `part ${label}\nscore ${format.score(score)}, threshold ${format.score(threshold)}`;

function renderTabs() {
  const names = state.cameras.map(({ name }) => name);
  const tabs = get("tabs");
  if (names.join("\n") !== [...tabs.children].map((tab) => tab.dataset.camera).join("\n")) {
    tabs.replaceChildren(
      ...names.map((name) => {
        const tab = document.createElement("button");
        tab.type = "button";
        tab.role = "tab";
        tab.dataset.camera = name;
        tab.append(document.createElement("span"), name);
        tab.addEventListener("click", () => select(name));
        return tab;
      }),
    );
  }
  for (const tab of tabs.children) tab.ariaSelected = `${tab.dataset.camera === selected}`;
}

function select(name) {
  if (cameras.has(selected)) cameras.get(selected).tried = whatIf.tried;
  selected = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  render();
}

function renderEvents() {
  const { alarms, events } = state;
  get("open-events").textContent = alarms.length ? `Events: ${alarms.length} ▲` : "Events";
  get("alarm").hidden = alarms.length === 0;
  if (alarms.length) {
    const [{ severity, camera, text }] = alarms;
    const rest = alarms.length > 1 ? ` (and ${alarms.length - 1} more)` : "";
    get("alarm").dataset.severity = severity;
    get("alarm").textContent = `▲ ${camera ? `${camera}: ` : ""}${text}${rest}`;
  }
  if (get("events").open) listEvents(events);
}

function listEvents(events) {
  const rows = events.map(({ severity, camera, text, age_s }) => {
    const row = document.createElement("li");
    row.dataset.severity = severity;
    row.textContent = `${format.clock(Date.now() - 1000 * age_s)}  ${severity}  ${camera ? `${camera}: ` : ""}${text}`;
    return row;
  });
  get("event-list").replaceChildren(...rows);
  if (!rows.length) get("event-list").textContent = "Nothing has happened yet.";
}

// One picture at a time: the next is asked for when this one is drawn, so a slow screen is not flooded.
async function loadPicture() {
  const camera = current()?.state;
  const shown = camera?.shown;
  if (isLoading || document.hidden || !shown) return;
  if (picture?.camera === camera.name && picture.number === shown.number) return;
  isLoading = true;
  try {
    const found = await fetchPart(state.cameras.indexOf(camera), "live");
    if (found !== null && camera.name === selected) {
      const part = await decodePart(found.buffer);
      release(picture?.part);
      const label = part.facts.part_id ?? `${part.facts.index}`;
      picture = { camera: camera.name, number: found.number, label, part };
      drawPart(get("picture"), part, opacity());
      get("picture").dataset.number = found.number;
      renderVerdicts();
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // TypeError: the connection broke, which is shown anyway
  } finally {
    isLoading = false;
  }
  if (current()?.state.shown?.number > shown.number) loadPicture();
}

get("heat").addEventListener("input", () => {
  rejects.opacity = opacity();
  if (picture) drawPart(get("picture"), picture.part, opacity());
  rejects.redraw();
});
for (const id of ["open-events", "alarm"]) {
  get(id).addEventListener("click", () => {
    listEvents(state?.events ?? []);
    get("events").showModal();
  });
}
for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.addEventListener("visibilitychange", loadPicture);
setInterval(() => {
  renderVerdicts();
  renderFigures();
}, TICK_MS);
follow(onState, onLost);

// The scores of the last parts over the slider: each part a dot (newest on top), below it how many had which score.

const BINS = 48;
const DOTS_SHARE = 0.42; // of the height
const FAR = 2.5; // scores beyond so many times the threshold stand at the right edge

export function domainOf(scores, threshold) {
  let low = threshold;
  let high = threshold;
  for (const [score] of scores) {
    low = Math.min(low, score);
    high = Math.max(high, score);
  }
  if (threshold > 0) high = Math.min(high, FAR * threshold);
  const margin = 0.06 * (high - low || Math.abs(threshold) || 1);
  return [low - margin, high + margin];
}

export function drawChart(canvas, scores, [low, high], threshold, tried, inset_px) {
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name);
  const ratio = window.devicePixelRatio;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const place = (score) => {
    const share = Math.min(Math.max((score - low) / (high - low), 0), 1);
    return inset_px + share * (width - 2 * inset_px); // where the slider's handle stands for that value
  };
  drawDots(context, scores, place, height * DOTS_SHARE, colour);
  drawBars(context, scores, place, [low, high], height * DOTS_SHARE, height, colour);
  drawLimit(context, place(threshold), height, colour("--ink"), []);
  if (tried !== null) drawLimit(context, place(tried), height, colour("--try"), [6, 4]);
}

function drawDots(context, scores, place, height, colour) {
  const step = (height - 4) / Math.max(1, scores.length - 1);
  for (const isAnomalous of [false, true]) {
    context.fillStyle = context.strokeStyle = colour(isAnomalous ? "--reject-mark" : "--good-mark");
    context.beginPath();
    scores.forEach(([score, rejected], index) => {
      if (rejected !== isAnomalous) return;
      const x = place(score);
      const y = 2 + (scores.length - 1 - index) * step;
      if (isAnomalous) {
        context.moveTo(x - 3, y - 3);
        context.lineTo(x + 3, y + 3);
        context.moveTo(x + 3, y - 3);
        context.lineTo(x - 3, y + 3);
      } else {
        context.rect(x - 1, y - 1, 2, 2);
      }
    });
    if (isAnomalous) context.stroke();
    else context.fill();
  }
}

function drawBars(context, scores, place, [low, high], top, bottom, colour) {
  const good = new Array(BINS).fill(0);
  const rejected = new Array(BINS).fill(0);
  for (const [score, isAnomalous] of scores) {
    const bin = Math.floor(((score - low) / (high - low)) * BINS);
    (isAnomalous ? rejected : good)[Math.min(Math.max(bin, 0), BINS - 1)] += 1;
  }
  const most = Math.max(1, ...good.map((count, bin) => count + rejected[bin]));
  const tall = (count) => Math.sqrt(count / most) * (bottom - top - 6); // one reject in a thousand must be seen
  const width = (place(high) - place(low)) / BINS;
  for (let bin = 0; bin < BINS; bin += 1) {
    const x = place(low) + bin * width;
    const all = tall(good[bin] + rejected[bin]);
    context.fillStyle = colour("--reject-mark");
    context.fillRect(x, bottom - all, width - 1, all);
    context.fillStyle = colour("--good-mark");
    const below = good[bin] ? all * (good[bin] / (good[bin] + rejected[bin])) : 0;
    context.fillRect(x, bottom - below, width - 1, below);
  }
}

function drawLimit(context, x, height, colour, dashes) {
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.setLineDash(dashes);
  context.beginPath();
  context.moveTo(x, 0);
  context.lineTo(x, height);
  context.stroke();
  context.setLineDash([]);
}

// Pictures of parts: fetched in one message with their facts (see pictures.py), drawn with heat map and boxes.

const THUMB_CONTEXT = 3; // a thumbnail shows so many times the region's size
const THUMB_LEAST = 0.35; // of the picture's shorter side

// A reject by its number, or "live": the part on show, whichever that is by now.
export async function fetchPart(camera, number) {
  const response = await fetch(`/picture/${camera}/${number}`, { cache: "no-store" });
  if (response.status !== 200) return null;
  return { number: Number(response.headers.get("X-Part")), buffer: await response.arrayBuffer() };
}

export async function decodePart(buffer) {
  const head = new DataView(buffer).getUint32(0);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, head)));
  const jpeg = new Uint8Array(buffer, 4 + head, facts.jpeg_bytes);
  const heat = new Uint8Array(buffer, 4 + head + facts.jpeg_bytes);
  return {
    facts,
    frame: await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })),
    heat: await createImageBitmap(new Blob([heat], { type: "image/png" })),
  };
}

export function release(part) {
  part?.frame.close();
  part?.heat.close();
}

export function drawPart(canvas, part, opacity) {
  canvas.width = part.frame.width;
  canvas.height = part.frame.height;
  paint(canvas.getContext("2d"), part, opacity);
  drawBoxes(canvas.getContext("2d"), part);
}

export function drawThumb(canvas, part, opacity) {
  const [width, height] = part.facts.frame_wh;
  const [x, y, w, h] = part.facts.regions[0]?.box_xywh ?? [0, 0, width, height];
  const shorter = Math.min(width, height);
  const side = Math.min(Math.max(THUMB_CONTEXT * Math.max(w, h), THUMB_LEAST * shorter), shorter);
  const left = Math.min(Math.max(x + w / 2 - side / 2, 0), width - side);
  const top = Math.min(Math.max(y + h / 2 - side / 2, 0), height - side);
  const context = canvas.getContext("2d");
  const scale = (canvas.width / side) * (width / part.frame.width);
  const reduced = part.frame.width / width;
  context.setTransform(scale, 0, 0, scale, -left * reduced * scale, -top * reduced * scale);
  paint(context, part, opacity);
  context.resetTransform();
}

function paint(context, part, opacity) {
  const scale = part.frame.width / part.facts.frame_wh[0];
  context.globalAlpha = 1;
  context.drawImage(part.frame, 0, 0);
  context.globalAlpha = opacity;
  context.drawImage(part.heat, ...part.facts.heat_xywh.map((length) => length * scale));
  context.globalAlpha = 1;
}

function drawBoxes(context, part) {
  const scale = part.frame.width / part.facts.frame_wh[0];
  const line = Math.max(1.5, part.frame.width / 240);
  const margin = 2 * line; // beside the defect, not on it
  for (const { box_xywh } of part.facts.regions) {
    const [x, y, w, h] = box_xywh.map((length) => length * scale);
    for (const [colour, width] of [["#000", 2 * line], ["#fff", line]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(x - margin, y - margin, w + 2 * margin, h + 2 * margin);
    }
  }
}

// The one connection to the line: server-sent events, read until they break, then tried again.

const SILENT_MS = 4000; // the line speaks every second
const AGAIN_MS = 1000;

export async function follow(onState, onLost) {
  for (;;) {
    const ending = new AbortController();
    let reason = "the line does not answer";
    let watch = setTimeout(() => ending.abort(), SILENT_MS);
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => ending.abort(), SILENT_MS);
    };
    try {
      const response = await fetch("/events", { signal: ending.signal, cache: "no-store" });
      if (response.status === 401) location.reload(); // the token has changed: ask for the new one
      if (response.ok) await read(response.body, alive, onState);
      else reason = response.status === 503 ? "too many pages are open" : `the line answers ${response.status}`;
    } catch (error) {
      if (!ending.signal.aborted && !(error instanceof TypeError)) console.error(error); // TypeError: no connection
    }
    clearTimeout(watch);
    ending.abort();
    onLost(reason);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function read(body, alive, onState) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    alive();
    text += value;
    const messages = text.split("\n\n");
    text = messages.pop();
    for (const message of messages) onState(JSON.parse(message.slice("data: ".length)));
  }
}

// Numbers and times as people read them.

const THOUSANDS = new Intl.NumberFormat("en", { useGrouping: true });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const count = (n) => (n < 1e7 ? THOUSANDS : SHORT).format(n);
export const short = (n) => (n < 1e5 ? THOUSANDS : SHORT).format(n);
export const score = (x) => Number(x.toPrecision(4)).toString();
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

export function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  return `${share.toFixed(share >= 10 ? 0 : share >= 1 ? 1 : 2)} %`;
}

export function age(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function quantile(values, share) {
  const ascending = Float64Array.from(values).sort();
  const place = share * (ascending.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, ascending.length - 1);
  return ascending[below] + (place - below) * (ascending[above] - ascending[below]);
}

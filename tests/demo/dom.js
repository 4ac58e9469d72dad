// Small helpers: elements are built, never written as HTML, since records hold whatever somebody typed.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (`data-…`, `aria-…`, `class`) and children. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key in element && !key.includes("-")) element[key] = value;
    else element.setAttribute(key === "class" ? "class" : key, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function fail(error) {
  const place = $("fault");
  place.textContent = words(error);
  place.hidden = false;
}

/** What went wrong, in the words of an OperationOutcome where there is one. */
export function words(error) {
  const issue = (error?.issue ? error : outcome(error?.message))?.issue?.[0];
  return issue?.details?.text || issue?.diagnostics || error?.message || String(error);
}

/** fhirclient puts the body of a refusal at the end of its error's message. */
function outcome(message = "") {
  try {
    return JSON.parse(message.slice(message.indexOf("{")));
  } catch {
    return undefined;
  }
}

export async function config() {
  const answer = await fetch("config.json");
  if (!answer.ok) throw new Error(`config.json: ${answer.status}`);
  return answer.json();
}

const DAY = new Intl.DateTimeFormat("en", { year: "numeric", month: "short", day: "numeric", timeZone: "UTC" });

/** A FHIR date, as exact as it is. */
export function day(text) {
  if (!text) return "";
  if (text.length < 10) return text;
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : DAY.format(date);
}

/** `4:05`, `1:00:00` */
export function clock(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  const pad = (number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

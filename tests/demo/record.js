// The patient's record: what is read, and how it is shown.
import { $, day, el, svg, words } from "./dom.js";

/** All pages of a search, without outcomes among the entries. */
async function all(client, url) {
  const found = await client.request(url, { flat: true, pageLimit: 0 });
  return found.filter((resource) => resource && resource.resourceType !== "OperationOutcome");
}

const text = (concept) => concept?.text || concept?.coding?.find((coding) => coding.display)?.display || "";
const code = (concept) => concept?.coding?.[0]?.code;

function age(birth) {
  const then = new Date(birth);
  const now = new Date();
  const before = now.getMonth() < then.getMonth() || (now.getMonth() === then.getMonth() && now.getDate() < then.getDate());
  return now.getFullYear() - then.getFullYear() - (before ? 1 : 0);
}

function nameOf(resource) {
  const name = resource.name?.find((name) => name.use === "official") ?? resource.name?.[0];
  return name?.text || [...(name?.given ?? []), name?.family].filter(Boolean).join(" ") || "No name";
}

export async function showPatient(client) {
  const patient = await client.patient.read();
  const name = nameOf(patient);
  document.title = `${name} · Hearth`;
  $("patient-name").textContent = name;
  $("avatar").textContent = name.split(/\s+/).map((word) => word[0]).filter((c, at, list) => at === 0 || at === list.length - 1).join("");
  const gone = patient.deceasedDateTime ? `died ${day(patient.deceasedDateTime)}` : `${age(patient.birthDate)} years`;
  const facts = [`born ${day(patient.birthDate)}`, gone, patient.gender];
  $("patient-facts").replaceChildren(...facts.filter(Boolean).map((fact) => el("span", {}, fact)));
}

/** Who signed in: a name where the record of that person may be read. */
export async function showUser(client) {
  const reference = client.user.fhirUser;
  if (!reference) return;
  const [kind, id] = reference.split("/").slice(-2);
  const place = $("opened-by");
  place.textContent = kind === "Patient" ? "opened by the patient" : `opened by ${kind} ${id}`;
  if (kind !== "Practitioner") return;
  try {
    place.textContent = `opened by ${nameOf(await client.request(`Practitioner/${id}`))}`;
  } catch {
    // Not every EHR shows its staff to a patient's app; the reference stays.
  }
}

/** Reads one list into its panel; a refusal is shown there, and the others go on. */
async function list(name, read, row, empty) {
  const place = $(name);
  try {
    const resources = await read();
    $(`${name}-count`).textContent = resources.length || "";
    place.replaceChildren(...(resources.length ? resources.map(row) : [el("li", { class: "none" }, empty)]));
  } catch (error) {
    place.replaceChildren(el("li", { class: "fault" }, words(error)));
  }
}

function entry(title, state, detail) {
  return el("li", {}, el("span", { class: "title" }, title || "No text"), state && el("span", { class: `state ${state}` }, state), el("small", {}, detail));
}

const since = (resource) => resource.onsetDateTime ?? resource.recordedDate ?? resource.authoredOn ?? "";
const newest = (one, other) => since(other).localeCompare(since(one));

export function showProblems(client) {
  const read = async () => {
    const found = await all(client, `Condition?patient=${client.patient.id}`);
    const closed = (problem) => (code(problem.clinicalStatus) === "active" ? 0 : 1);
    return found.sort((one, other) => closed(one) - closed(other) || newest(one, other));
  };
  const row = (problem) => {
    const until = problem.abatementDateTime ? ` to ${day(problem.abatementDateTime)}` : "";
    return entry(text(problem.code), code(problem.clinicalStatus), `${day(since(problem))}${until}`);
  };
  return list("problems", read, row, "No problems are recorded.");
}

export function showMedications(client) {
  const read = async () => {
    const found = await all(client, `MedicationRequest?patient=${client.patient.id}`);
    const stopped = (order) => (order.status === "active" ? 0 : 1);
    return found.sort((one, other) => stopped(one) - stopped(other) || newest(one, other));
  };
  const row = (order) =>
    entry(text(order.medicationCodeableConcept) || order.medicationReference?.display, order.status, day(order.authoredOn));
  return list("medications", read, row, "No medication is recorded.");
}

export function showAllergies(client) {
  const read = () => all(client, `AllergyIntolerance?patient=${client.patient.id}`);
  const row = (allergy) => {
    const reaction = allergy.reaction?.flatMap((one) => one.manifestation ?? []).map(text).filter(Boolean).join(", ");
    return entry(text(allergy.code), allergy.criticality && `${allergy.criticality} risk`, reaction || day(since(allergy)));
  };
  return list("allergies", read, row, "No allergies are recorded.");
}

/** One series a kind: `{ title, unit, points: [{ when, values }] }`. */
function series(observations) {
  const kinds = new Map();
  for (const observation of observations) {
    const parts = observation.component?.length ? observation.component : [observation];
    const values = parts.map((part) => part.valueQuantity).filter(Boolean);
    const when = observation.effectiveDateTime ?? observation.issued;
    if (!values.length || !when) continue;
    const key = code(observation.code) ?? text(observation.code);
    const kind = kinds.get(key) ?? { title: title(observation.code), points: [] };
    kind.points.push({ when, values: ordered(parts).map((value) => value.value), unit: values[0].unit ?? values[0].code ?? "" });
    kinds.set(key, kind);
  }
  for (const kind of kinds.values()) kind.points.sort((one, other) => one.when.localeCompare(other.when));
  return [...kinds.values()].sort((one, other) => rank(one) - rank(other));
}

/** Blood pressure is read as systolic over diastolic, in whichever order it is written. */
function ordered(parts) {
  const quantities = parts.map((part) => part.valueQuantity).filter(Boolean);
  return quantities.length === 2 ? [...quantities].sort((one, other) => other.value - one.value) : quantities;
}

const FIRST = ["Blood pressure", "Body weight", "Body mass index", "Body height", "Temperature", "Pain"];
const rank = (kind) => (FIRST.indexOf(kind.title) + FIRST.length + 1) % (FIRST.length + 1);

function title(concept) {
  const given = text(concept);
  const short = FIRST.find((known) => given.toLowerCase().includes(known.toLowerCase()));
  return short ?? given;
}

const number = (value) => (Math.abs(value) >= 100 ? Math.round(value) : Math.round(value * 10) / 10);

function sparkline(points, label) {
  const [width, height, pad] = [points[0].values.length > 1 ? 330 : 160, 44, 5];
  const every = points.flatMap((point) => point.values);
  const [low, high] = [Math.min(...every), Math.max(...every)];
  const x = (at) => (points.length === 1 ? width / 2 : pad + (at * (width - 2 * pad)) / (points.length - 1));
  const y = (value) => (high === low ? height / 2 : height - pad - ((value - low) * (height - 2 * pad)) / (high - low));
  const lines = points[0].values.map((_, nth) => {
    const places = points.filter((point) => point.values[nth] !== undefined).map((point, at) => [x(at), y(point.values[nth])]);
    const path = places.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
    const [lx, ly] = places[places.length - 1];
    return [svg("polyline", { points: path }), svg("circle", { cx: lx, cy: ly, r: 3 })];
  });
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "spark", preserveAspectRatio: "xMinYMid meet", role: "img", "aria-label": label });
  drawing.append(...lines.flat());
  return drawing;
}

function vital({ title, points }) {
  const last = points[points.length - 1];
  const value = last.values.map(number).join("/");
  const first = points[0].values.map(number).join("/");
  const label = `${title}: from ${first} in ${day(points[0].when)} to ${value} ${last.unit}, ${points.length} values`;
  return el(
    "article",
    { class: last.values.length > 1 ? "vital wide" : "vital" },
    el("h3", {}, title),
    el("p", { class: "value" }, el("b", {}, value), ` ${unit(last.unit)}`),
    sparkline(points, label),
    el("small", {}, day(last.when)),
  );
}

const unit = (given) => ({ "mm[Hg]": "mmHg", "{score}": "of 10", Cel: "°C", "kg/m2": "kg/m²" })[given] ?? given;

export async function showVitals(client) {
  const place = $("vitals");
  try {
    const found = await all(client, `Observation?patient=${client.patient.id}&category=vital-signs&_count=50`);
    const kinds = series(found);
    $("vitals-count").textContent = found.length || "";
    place.replaceChildren(...(kinds.length ? kinds.map(vital) : [el("p", { class: "none" }, "No vital signs are recorded.")]));
  } catch (error) {
    place.replaceChildren(el("p", { class: "fault" }, words(error)));
  }
}

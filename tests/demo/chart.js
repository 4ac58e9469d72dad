import { $, config, el, words } from "./dom.js";
import { showAllergies, showMedications, showPatient, showProblems, showUser, showVitals } from "./record.js";
import { showScopes } from "./scopes.js";
import { note, watchTokens } from "./tokens.js";

const REREAD = 10_000;
/** An endless list of pages would be a fault of somebody's. */
const MOST_PAGES = 50;

function stop(error) {
  $("record").hidden = true;
  $("fault").textContent = words(error);
  $("fault-box").hidden = false;
}

function result(title, ...lines) {
  const place = $("result");
  place.replaceChildren(el("b", {}, title), ...lines.map((line) => el("span", {}, line)));
  place.hidden = false;
}

/** A button that says what came of it. */
function trying(id, act) {
  $(id).addEventListener("click", async () => {
    $(id).disabled = true;
    try {
      result(...(await act()));
    } catch (error) {
      result("That failed", words(error));
    } finally {
      $(id).disabled = false;
    }
  });
}

async function pageThrough(client) {
  const counts = [];
  const hosts = new Set();
  let url = `Observation?patient=${client.patient.id}&_count=10`;
  while (url && counts.length < MOST_PAGES) {
    const bundle = await client.request(url);
    counts.push((bundle.entry ?? []).filter((entry) => entry.resource?.resourceType === "Observation").length);
    url = bundle.link?.find((link) => link.relation === "next")?.url;
    if (url) hosts.add(new URL(url).host);
  }
  const sum = counts.reduce((one, other) => one + other, 0);
  const where = hosts.size
    ? `Each next page was at ${[...hosts].join(", ")}.`
    : "Where an EHR takes one search per category, Mantel asks them all and answers on one page.";
  const title = `${sum} observations on ${counts.length} ${counts.length === 1 ? "page" : "pages"}`;
  return hosts.size ? [title, counts.join(" + "), where] : [title, where];
}

/** Immunization was never asked for. */
async function beyondScopes(client) {
  const answer = await fetch(`${client.state.serverUrl}/Immunization?patient=${client.patient.id}`, {
    headers: { accept: "application/fhir+json", authorization: client.getAuthorizationHeader() },
  });
  const body = await answer.json().catch(() => ({}));
  const issue = body.issue?.[0];
  return [`${answer.status}: ${issue?.code ?? "no issue"}`, words(body), "Refused by Mantel; nothing was sent to the EHR."];
}

async function refresh(client) {
  const before = client.state.tokenResponse.access_token;
  await client.refresh();
  const changed = client.state.tokenResponse.access_token !== before;
  note("The app refreshed its own token.");
  return [changed ? "A new token for the app" : "The same token again", "Whether the EHR’s is renewed is Mantel’s own decision."];
}

async function main() {
  const settings = await config();
  const client = await window.FHIR.oauth2.ready();
  const answer = client.state.tokenResponse;
  const site = answer.__site;
  const hospital = settings.hospitals.find((one) => one.sites.some(({ id }) => id === site));
  $("site-name").textContent = hospital ? `${hospital.name} · ${hospital.product}` : "";
  document.body.dataset.vendor = hospital?.vendor ?? "";

  showScopes(client);
  if (!client.patient.id) {
    stop(new Error("No patient came with the launch. At this EHR a clinician opens the app from a record; patients sign in from here."));
    return;
  }
  watchTokens(client, site);
  trying("pages", () => pageThrough(client));
  trying("outside", () => beyondScopes(client));
  trying("refresh", () => refresh(client));
  setInterval(() => $("live").checked && showVitals(client), REREAD);

  await Promise.all([
    showPatient(client),
    showUser(client),
    showVitals(client),
    showProblems(client),
    showMedications(client),
    showAllergies(client),
  ]);
  $("record").removeAttribute("aria-busy");
}

main().catch(stop);

// What the app asked for, what it was granted, and who refused the rest.
import { $, el } from "./dom.js";

const BY = {
  ehr: "refused by the EHR",
  registration: "not ticked at the vendor’s portal",
  vendor: "unknown to this vendor",
  user: "refused by the user",
};

/** Tokens and what is shown elsewhere. */
const HIDDEN = new Set(["access_token", "refresh_token", "id_token", "scope", "__scopes_refused"]);

export function showScopes(client) {
  const answer = client.state.tokenResponse;
  const granted = new Set((answer.scope ?? "").split(/\s+/).filter(Boolean));
  const refused = new Map((answer.__scopes_refused ?? []).map(({ scope, by }) => [scope, by]));
  const asked = (client.state.scope ?? "").split(/\s+/).filter(Boolean);
  const chips = asked.map((scope) => {
    const ok = granted.has(scope);
    const why = ok ? "granted" : (BY[refused.get(scope)] ?? "not granted");
    const mark = el("span", { class: "mark", "aria-hidden": "true" }, ok ? "✓" : "✕");
    return el("li", { class: ok ? "chip granted" : "chip refused", title: why }, mark, scope, el("span", { class: "why" }, ok ? "" : why));
  });
  const beyond = [...granted].filter((scope) => !asked.includes(scope));
  chips.push(...beyond.map((scope) => el("li", { class: "chip" }, `+ ${scope}`)));
  $("scopes").replaceChildren(...chips);
  const kept = asked.filter((scope) => granted.has(scope)).length;
  $("scopes-note").textContent = `${kept} of ${asked.length} granted. This app asks in SMART v2 everywhere, whatever the EHR speaks.`;

  const facts = Object.entries(answer).filter(([name]) => !HIDDEN.has(name));
  const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const user = client.user.fhirUser;
  if (user) facts.push(["fhirUser (id_token)", user]);
  $("context").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, show(value))]));
}

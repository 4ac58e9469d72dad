// Two tokens: the app's own, and the EHR's underneath, of which the demo server asks the simulated EHR.
import { $, clock, el } from "./dom.js";

const LOG_LENGTH = 8;

export function note(text, kind = "") {
  const time = new Date().toLocaleTimeString("en", { hour12: false });
  $("log").prepend(el("li", { class: kind }, el("time", {}, time), ` ${text}`));
  while ($("log").children.length > LOG_LENGTH) $("log").lastElementChild.remove();
}

function meter(id, share, due) {
  const element = $(id);
  const percent = Math.round(Math.min(1, Math.max(0, share)) * 1000) / 10;
  element.style.setProperty("--share", `${percent}%`);
  element.setAttribute("aria-valuenow", Math.round(percent));
  if (due !== undefined) element.style.setProperty("--due", `${Math.round(due * 1000) / 10}%`);
  element.classList.toggle("is-due", due !== undefined && share >= due);
}

/** Watches both tokens until the page is closed. */
export function watchTokens(client, site) {
  const first = client.state.tokenResponse.access_token;
  let renewals;
  let latest;

  const own = () => {
    const { tokenResponse, expiresAt } = client.state;
    const left = expiresAt - Date.now() / 1000;
    const life = tokenResponse.expires_in || 3600;
    meter("app-meter", 1 - left / life);
    $("app-left").textContent = `${clock(left)} left of ${clock(life)}`;
    $("app-same").textContent = tokenResponse.access_token === first ? "the same since the launch" : "refreshed by the app";
  };

  const ehr = () => {
    if (!latest) return;
    const { custody, heard } = latest;
    const now = custody.now + (Date.now() - heard);
    const life = Math.max(1, custody.expires - custody.issued);
    meter("ehr-meter", (now - custody.issued) / life, (custody.due - custody.issued) / life);
    const left = (custody.expires - now) / 1000;
    const due = now >= custody.due ? "due" : `due in ${clock((custody.due - now) / 1000)}`;
    $("ehr-left").textContent = custody.ended
      ? "ended at the EHR"
      : left > 0 ? `${clock(left)} left of ${clock(life / 1000)}, ${due}` : "expired: renewed with the next request";
    $("ehr-renewals").textContent = ["not renewed yet", "renewed once"][custody.renewals] ?? `renewed ${custody.renewals} times`;
  };

  const ask = async () => {
    const query = new URLSearchParams({ site, patient: client.patient.id ?? "" });
    try {
      const { custody } = await (await fetch(`custody.json?${query}`)).json();
      if (!custody) {
        $("ehr-left").textContent = "the EHR knows of no grant";
        return;
      }
      latest = { custody, heard: Date.now() };
      if (renewals !== undefined && custody.renewals > renewals) {
        const rotated = custody.generation ? ", with a new refresh token" : "";
        note(`The EHR’s token was renewed${rotated}. The app noticed nothing.`, "renewed");
        $("ehr-meter").classList.add("flash");
        setTimeout(() => $("ehr-meter").classList.remove("flash"), 1200);
      }
      renewals = custody.renewals;
    } catch {
      $("ehr-left").textContent = "the sandbox has ended";
    }
  };

  const tick = () => {
    own();
    ehr();
  };
  ask().then(tick);
  setInterval(tick, 250);
  setInterval(ask, 1000);
}

import { $, config, el, fail } from "./dom.js";

const settings = await config();

/** A standalone launch: at the uniform base, where Mantel asks for the hospital, or at a site's. */
function authorize(base) {
  const { clientId, scopes } = settings;
  const redirectUri = new URL("chart.html", location.href).href;
  return window.FHIR.oauth2.authorize({ clientId, scope: `launch/patient ${scopes}`, redirectUri, iss: base, pkceMode: "required", completeInTarget: true });
}

function starter(base) {
  return async (event) => {
    event.currentTarget.disabled = true;
    try {
      await authorize(base);
    } catch (error) {
      event.target.disabled = false;
      fail(error);
    }
  };
}

function card({ name, product, vendor, home, sites }) {
  const site = sites.find((site) => site.standalone);
  const standalone =
    site && el("button", { type: "button", id: `standalone-${site.id}`, onclick: starter(site.base) }, "Sign in");
  const ehr = el("a", { class: "button", href: home, target: "_blank", rel: "noopener", id: `ehr-${vendor}` }, "Open the EHR");
  return el(
    "li",
    { class: "hospital", "data-vendor": vendor },
    el("h3", {}, name),
    el("p", {}, product),
    el("div", { class: "actions" }, standalone, ehr),
  );
}

$("list").replaceChildren(...settings.hospitals.map(card));
$("list").removeAttribute("aria-busy");
$("choose-hospital").addEventListener("click", starter(settings.base));
// Not before there is somebody to hear the click; and again for who comes back by the browser's button.
$("choose-hospital").disabled = false;
window.addEventListener("pageshow", () => {
  $("choose-hospital").disabled = false;
});
$("uniform").href = `${settings.base}/.well-known/smart-configuration`;

// What an EHR opens by way of Mantel, with `iss` and `launch`, which fhirclient reads from the address.
import { config, fail } from "./dom.js";

try {
  const { clientId, scopes } = await config();
  const redirectUri = new URL("chart.html", location.href).href;
  await window.FHIR.oauth2.authorize({ clientId, scope: `launch ${scopes}`, redirectUri, pkceMode: "required", completeInTarget: true });
} catch (error) {
  fail(error);
}

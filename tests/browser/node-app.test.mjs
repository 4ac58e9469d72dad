// The same package on a server: an Express app with sessions.
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import express from "express";
import session from "express-session";
import smart from "fhirclient";
import { bench, openRecord, signIn } from "./browser.mjs";
import { PATIENT, VENDORS } from "./world.mjs";

const NAME = "express-app";
const SCOPE = "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs";

/** Listens before the world starts: its addresses are registered there. */
async function startApp() {
  const app = express();
  app.use(session({ secret: "of the tests", resave: false, saveUninitialized: true }));
  const settings = (request) => ({
    clientId: NAME,
    scope: `${request.query.launch ? "launch" : "launch/patient"} ${SCOPE}`,
    redirectUri: "/callback",
    pkceMode: "required",
  });
  const failed = (response) => (error) => response.status(500).type("text").send(String(error?.message ?? error));
  app.get("/launch", (request, response) => {
    smart(request, response).authorize(settings(request)).catch(failed(response));
  });
  app.get("/callback", (request, response) => {
    smart(request, response)
      .ready()
      .then(async (client) => {
        const { patient, __site } = client.state.tokenResponse;
        response.json({ patient, site: __site, user: client.getIdToken().fhirUser, read: await client.patient.read() });
      })
      .catch(failed(response));
  });
  // A later visit: nothing but the session's cookie.
  app.get("/later", (request, response) => {
    smart(request, response)
      .ready()
      .then(async (client) => {
        const before = client.state.tokenResponse.access_token;
        if (request.query.refresh) await client.refresh();
        const found = await client.request(`Observation?patient=${client.patient.id}&_count=10`, { pageLimit: 3, flat: true });
        const changed = client.state.tokenResponse.access_token !== before;
        response.json({ patient: client.patient.id, observations: found.length, changed });
      })
      .catch(failed(response));
  });
  const server = app.listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  return { server, origin: `http://express.localhost:${server.address().port}` };
}

async function shown(page) {
  const text = await page.locator("body").innerText();
  assert.match(text, /^\{/, text);
  return JSON.parse(text);
}

describe("an Express app with fhirclient", () => {
  let app;
  const shared = bench({
    apps: async () => {
      app = await startApp();
      return [{ name: NAME, redirects: [`${app.origin}/callback`], launch: `${app.origin}/launch` }];
    },
  });
  after(() => {
    app.server.closeAllConnections();
    app.server.close();
  });

  for (const { vendor, ehr, site, staff } of VENDORS) {
    test(`${vendor}: standalone launch, callback, and later calls on the stored session`, async () => {
      const { world, browser } = shared;
      const page = await browser.newPage();
      await page.goto(`${app.origin}/launch?iss=${encodeURIComponent(world.siteBase(site))}`);
      await signIn(page);
      await page.waitForURL((url) => url.href.startsWith(`${app.origin}/callback`));
      const first = await shown(page);
      assert.equal(first.site, site);
      assert.equal(first.read.id, first.patient);
      assert.equal(first.read.name[0].family, PATIENT.family);
      assert.equal(first.user, `${world.siteBase(site)}/Patient/${first.patient}`);
      // The EHR's token ends meanwhile; not where that is no news to renew it for: Oracle allows one refresh a
      // minute, and Practice's refresh token dies with it.
      if (!["oracle", "athena-practice"].includes(vendor)) await world.control(ehr, "expire", {});
      await page.goto(`${app.origin}/later`);
      const later = await shown(page);
      assert.equal(later.patient, first.patient);
      assert.ok(later.observations > 10, `${later.observations} observations`);
      await page.goto(`${app.origin}/later?refresh=1`);
      const refreshed = await shown(page);
      assert.deepEqual(refreshed, { ...later, changed: true });
      await page.close();
    });

    test(`${vendor}: launch from the EHR`, async () => {
      const { world, browser } = shared;
      const page = await browser.newPage();
      const patient = await openRecord(page, world, ehr);
      await page.locator(`[id="launch-${world.clientAt(staff, NAME)}"]`).click();
      const consent = page.locator("#approve");
      const back = page.waitForURL((url) => url.href.startsWith(`${app.origin}/callback`));
      await Promise.race([consent.waitFor().then(() => consent.click()), back]);
      await back;
      const first = await shown(page);
      assert.equal(first.patient, patient);
      assert.equal(first.site, staff);
      await page.close();
    });
  }
});

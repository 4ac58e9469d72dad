// What an app reads, and what it is refused.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WAYS, bench } from "./browser.mjs";
import { PATIENT, VENDORS } from "./world.mjs";

const PAGE = 10;

describe("records", () => {
  const shared = bench();

  const cases = VENDORS.flatMap((vendor) => Object.entries(WAYS).map(([way, open]) => ({ ...vendor, way, open })));
  for (const { way, open, ...where } of cases) {
    const { vendor, ehr } = where;
    test(`${vendor}, ${way}: a patient, a search of several pages, the user, and nothing beyond the scopes`, async (t) => {
      const { world, browser } = shared;
      const page = await browser.newPage();
      const { site, base, user: kind } = await open(page, world, where);

      await t.test("the patient is read", async () => {
        const { patient, id } = await page.evaluate(async () => ({
          patient: await window.client.patient.read(),
          id: window.client.patient.id,
        }));
        assert.equal(patient.resourceType, "Patient");
        assert.equal(patient.id, id);
        if (kind === "Patient") assert.equal(patient.name[0].family, PATIENT.family);
      });

      await t.test("a search is paged through by the library", async () => {
        const { pages, ids, links } = await page.evaluate(async (count) => {
          const { client } = window;
          const bundles = [];
          // One category: what EHRs want to be asked by category comes in one answer, whatever `_count` says.
          const url = `Observation?patient=${client.patient.id}&category=laboratory&_count=${count}`;
          // With `onPage` the library hands out bundles; flat, it returns what they hold.
          await client.request(url, { pageLimit: 0, onPage: (bundle) => void bundles.push(bundle) });
          const found = await client.request(url, { pageLimit: 0, flat: true });
          return {
            pages: bundles.map((bundle) => bundle.entry?.length ?? 0),
            links: bundles.flatMap(({ link, entry }) => [...link.map((one) => one.url), ...(entry ?? []).map((one) => one.fullUrl)]),
            ids: found.filter((one) => one.resourceType === "Observation").map((one) => one.id),
          };
        }, PAGE);
        assert.ok(pages.length > 2, `${pages.length} pages`);
        assert.ok(ids.length > 2 * PAGE, `${ids.length} observations`);
        // Oracle's pages overlap: the same id may come twice.
        if (vendor !== "oracle") assert.equal(new Set(ids).size, ids.length, "each one once");
        // An entry of no address, such as an OperationOutcome, may have a `urn:uuid:`.
        for (const link of links.filter((link) => link && !link.startsWith("urn:"))) assert.ok(link.startsWith(`${base}/`) || link.startsWith(`${base}?`), link);
      });

      await t.test("fhirUser is who signed in, below the site's base", async () => {
        const { claim, fhirUser, user, patient } = await page.evaluate(async () => {
          const { client } = window;
          const { fhirUser } = client.user;
          return { claim: client.getIdToken().fhirUser, fhirUser, user: await client.user.read(), patient: client.patient.id };
        });
        assert.equal(user.resourceType, kind);
        if (kind === "Patient") assert.equal(user.id, patient);
        assert.equal(claim, `${world.siteBase(site)}/${kind}/${user.id}`);
        // The library tells type and id alone.
        assert.equal(fhirUser, `${kind}/${user.id}`);
      });

      await t.test("what was not asked for is refused, and the EHR hears nothing of it", async () => {
        const refusal = await page.evaluate(async () => {
          const { client } = window;
          const thrown = await client.request(`Immunization?patient=${client.patient.id}`).catch((error) => ({
            status: error.statusCode ?? error.status,
            message: error.message,
          }));
          const answer = await fetch(`${client.state.serverUrl}/Immunization?patient=${client.patient.id}`, {
            headers: { authorization: client.getAuthorizationHeader() },
          });
          return { thrown, status: answer.status, kind: answer.headers.get("content-type"), body: await answer.json() };
        });
        assert.equal(refusal.thrown.status, 403, refusal.thrown.message);
        assert.equal(refusal.status, 403);
        assert.match(refusal.kind, /^application\/fhir\+json/);
        assert.equal(refusal.body.resourceType, "OperationOutcome");
        assert.equal(refusal.body.issue[0].severity, "error");
        assert.equal(refusal.body.issue[0].code, "forbidden");
        assert.equal(await world.count(ehr, "fhir:GET Immunization"), 0);
      });

      await t.test("another's record is refused", async () => {
        const own = await page.evaluate(() => window.client.patient.id);
        const other = world.ehrs[ehr].patients.find((id) => id !== own);
        const status = await page.evaluate(
          (id) => window.client.request(`Patient/${id}`).then(() => 200, (error) => error.statusCode ?? error.status),
          other,
        );
        assert.ok([403, 404].includes(status), `${status}`);
      });
      await page.close();
    });
  }
});

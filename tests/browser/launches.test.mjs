// Each vendor's three ways into an app, by the unchanged npm package `fhirclient`.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { bench, chart, consent, openRecord, openStandalone, tokenResponse } from "./browser.mjs";
import { PATIENT, VENDORS } from "./world.mjs";

for (const strict of [false, true]) {
  describe(`launches at ${strict ? "the harshest" : "usual"} EHRs`, () => {
    const shared = bench({ strict });

    for (const { vendor, ehr, site, staff } of VENDORS) {
      for (const organization of [true, false]) {
        test(`${vendor}: standalone ${organization ? "on the uniform base, by the organization page" : "on the site's base"}`, async () => {
          const { world, browser } = shared;
          const page = await browser.newPage();
          await openStandalone(page, world, site, { organization });
          const answer = await tokenResponse(page);
          assert.equal(answer.__site, site);
          assert.equal(answer.__fhir_base, world.siteBase(site));
          assert.ok(world.ehrs[ehr].patients.includes(answer.patient), answer.patient);
          assert.equal(
            await page.evaluate(() => window.client.state.serverUrl),
            organization ? world.uniform : world.siteBase(site),
          );
          const patient = await page.evaluate(() => window.client.patient.read());
          assert.equal(patient.name[0].family, PATIENT.family);
          await page.close();
        });
      }

      test(`${vendor}: from the EHR`, async () => {
        const { world, browser } = shared;
        const page = await browser.newPage();
        const patient = await openRecord(page, world, ehr);
        await page.locator(`[id="launch-${world.clientAt(staff)}"]`).click();
        await consent(page);
        await chart(page, world);
        const answer = await tokenResponse(page);
        assert.equal(answer.__site, staff);
        assert.equal(answer.patient, patient);
        assert.equal(typeof answer.need_patient_banner, "boolean");
        assert.equal(await page.evaluate(() => window.client.state.serverUrl), world.siteBase(staff));
        const style = await fetch(answer.smart_style_url);
        assert.equal(style.status, 200);
        const user = await page.evaluate(() => window.client.user.read());
        assert.equal(user.resourceType, "Practitioner");
        await page.close();
      });
    }
  });
}

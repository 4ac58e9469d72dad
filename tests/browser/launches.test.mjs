// Each vendor's three ways into an app, by the unchanged npm package `fhirclient`.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WAYS, bench, tokenResponse } from "./browser.mjs";
import { PATIENT, VENDORS } from "./world.mjs";

for (const strict of [false, true]) {
  describe(`launches at ${strict ? "the harshest" : "usual"} EHRs`, () => {
    const shared = bench({ strict });

    for (const vendor of VENDORS) {
      for (const [way, open] of Object.entries(WAYS)) {
        test(`${vendor.vendor}: ${way}`, async () => {
          const { world, browser } = shared;
          const page = await browser.newPage();
          const led = await open(page, world, vendor);
          const answer = await tokenResponse(page);
          assert.equal(answer.__site, led.site);
          assert.equal(answer.__fhir_base, world.siteBase(led.site));
          assert.equal(await page.evaluate(() => window.client.state.serverUrl), led.base);
          assert.ok(world.ehrs[vendor.ehr].patients.includes(answer.patient), answer.patient);
          const patient = await page.evaluate(() => window.client.patient.read());
          assert.equal(patient.id, answer.patient);
          if (led.patient) {
            assert.equal(patient.id, led.patient);
            assert.equal(typeof answer.need_patient_banner, "boolean");
            const style = await fetch(answer.smart_style_url);
            assert.equal(style.status, 200);
          } else {
            assert.equal(patient.name[0].family, PATIENT.family);
          }
          await page.close();
        });
      }
    }
  });
}

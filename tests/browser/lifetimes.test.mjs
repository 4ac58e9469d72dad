// An app's session while the EHR's tokens come and go.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WAYS, bench, tokenResponse } from "./browser.mjs";
import { VENDORS } from "./world.mjs";

/** Seconds that the EHRs' access tokens live. */
const LIFETIME = 5;
/**
 * Oracle refuses two refreshes of a grant within a minute, and Mantel asks no sooner than half a token's life after
 * the last: between that half and the time when it falls due, at 60 %, the EHR's clock jumps a minute ahead.
 */
const ORACLE = { lifetime: 20, jumpAfter: 10_500, jump: 61 };

/** Reads the patient, again and again, until the EHR has renewed the token so often, and its first lives are over. */
async function readUntilRenewed(page, world, ehr, times) {
  const before = await world.count(ehr, "token:refresh_token");
  const started = Date.now();
  let renewed = 0;
  let since = started;
  let jumped = true;
  while (renewed < times || (ehr !== "oracle" && Date.now() - started < times * LIFETIME * 1000)) {
    assert.ok(Date.now() - started < 90_000, `${ehr}: renewed ${renewed} times in 90 seconds`);
    const read = await page.evaluate(() => {
      const url = `Patient/${window.client.patient.id}`;
      // Several at once: they wait for one renewal.
      return Promise.all(Array.from({ length: 3 }, () => window.client.request(url, { cache: "no-store" })));
    });
    assert.deepEqual(read.map((patient) => patient.resourceType), ["Patient", "Patient", "Patient"]);
    await page.waitForTimeout(200);
    const now = (await world.count(ehr, "token:refresh_token")) - before;
    if (now > renewed) [since, jumped] = [Date.now(), false];
    renewed = now;
    if (ehr === "oracle" && !jumped && Date.now() - since > ORACLE.jumpAfter) {
      await world.control(ehr, "advance", { seconds: ORACLE.jump });
      jumped = true;
    }
  }
  if (ehr !== "oracle") {
    // A token falls due at 60 % of its life, and not before.
    const most = Math.floor((Date.now() - started) / (LIFETIME * 600)) + 1;
    assert.ok(renewed <= most, `${ehr}: renewed ${renewed} times, expected at most ${most}`);
  }
}

for (const [way, strict] of [
  ["on the uniform base, by the organization page", false],
  ["on the site's base", true],
  ["from the EHR", true],
]) {
  describe(`sessions begun ${way}, at ${strict ? "the harshest" : "usual"} EHRs`, () => {
    const shared = bench({ strict });

    // Side by side: each is mostly waiting.
    test("each vendor", { concurrency: VENDORS.length }, async (t) => {
      const each = VENDORS.map((vendor) => {
        const { ehr } = vendor;
        return t.test(`${vendor.vendor}: outlives two expiries of the EHR's token, then refreshes its own`, async () => {
          const { world, browser } = shared;
          await world.control(ehr, "lifetime", { seconds: ehr === "oracle" ? ORACLE.lifetime : LIFETIME });
          const page = await browser.newPage();
          await WAYS[way](page, world, vendor);
          const first = await tokenResponse(page);
          await readUntilRenewed(page, world, ehr, 2);
          assert.equal((await tokenResponse(page)).access_token, first.access_token, "the app noticed nothing");

          const upstream = await world.count(ehr, "token:refresh_token");
          await world.control(ehr, "lifetime", {});
          await page.evaluate(() => window.client.refresh());
          const second = await tokenResponse(page);
          assert.notEqual(second.access_token, first.access_token);
          assert.notEqual(second.refresh_token, first.refresh_token);
          assert.equal(second.scope, first.scope);
          const patient = await page.evaluate(() => window.client.patient.read());
          assert.equal(patient.id, first.patient);
          const renewals = (await world.count(ehr, "token:refresh_token")) - upstream;
          assert.ok(renewals <= 1, `an app's refresh is no reason for ${renewals} of the EHR's`);
          await page.close();
        });
      });
      await Promise.all(each);
    });
  });
}

// Chromium, and a person in front of it.
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before } from "node:test";
import { chromium } from "playwright-core";
import { PATIENT, startWorld } from "./world.mjs";

// Chromium as it comes: playwright's own arguments would turn off the partitioning of storage, without which no
// app can run in a frame where third-party cookies are blocked.
const ARGUMENTS = [
  "--headless",
  "--remote-debugging-pipe",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/** Milliseconds; a debug build on a busy machine. */
const PATIENCE = 30_000;

/** What the tests of a `describe` share: a world, and a browser in it. The options are those of both. */
export function bench(options = {}) {
  const shared = {};
  before(async () => {
    const apps = await options.apps?.();
    shared.world = await startWorld({ ...options, apps });
    shared.browser = await startBrowser(options);
  });
  after(async () => {
    await shared.browser?.end();
    await shared.world?.stop();
  });
  return shared;
}

/** A new browser with a profile of its own; `end` closes it. */
export async function startBrowser({ blockThirdPartyCookies = false, blockInFrames, javaScript = true } = {}) {
  const profile = await mkdtemp(join(tmpdir(), "mantel-browser-"));
  // As a user's own switch in the settings, under "Third-party cookies".
  const cookies = { block_third_party_cookies: blockThirdPartyCookies, cookie_controls_mode: Number(blockThirdPartyCookies) };
  // As a stricter user's exception: none of one site's cookies, partitioned or not, below another site.
  if (blockInFrames) {
    const { site, below } = blockInFrames;
    cookies.content_settings = { exceptions: { cookies: { [`[*.]${site},[*.]${below}`]: { setting: 2 } } } };
  }
  await mkdir(join(profile, "Default"));
  await writeFile(join(profile, "Default", "Preferences"), JSON.stringify({ profile: cookies }));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    headless: true,
    ignoreDefaultArgs: true,
    args: [...ARGUMENTS, `--user-data-dir=${profile}`, "about:blank"],
    viewport: { width: 1280, height: 800 },
    javaScriptEnabled: javaScript,
  });
  context.setDefaultTimeout(PATIENCE);
  context.end = async () => {
    await context.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return context;
}

/** A user signs in at the EHR's page, wherever the browser was led, and allows what is asked. */
export async function signIn(page, username = PATIENT.username) {
  await page.locator("#username").fill(username);
  await page.locator("#sign-in").click();
  await page.locator("#approve").click();
}

/** A patient opens the demo app at a site, by way of Mantel's organization page if `organization`. */
export async function openStandalone(page, world, site, { organization = false, username } = {}) {
  await page.goto(world.demo);
  if (organization) {
    await page.locator("#choose-hospital").click();
    await page.waitForURL((url) => url.href.startsWith(`${world.gateway}/oauth/continue/`));
    await page.locator(`a[href$="?organization=${site}"]`).click();
  } else {
    await page.locator(`#standalone-${site}`).click();
  }
  await signIn(page, username);
  return chart(page, world);
}

/** A clinician signs in at the EHR and opens a patient's record. */
export async function openRecord(page, world, ehr, patient = world.ehrs[ehr].patients[0]) {
  // Somebody else may have left a session.
  await page.goto(`${world.ehrs[ehr].origin}/sign-out`);
  await page.goto(world.ehrs[ehr].origin);
  await page.locator("#sign-in").click();
  await page.locator("#patient").selectOption(patient);
  await page.locator("#choose").click();
  await page.locator("#open-record").waitFor();
  return patient;
}

/** The three ways into the demo app. Each says where it led: the site, the base that the app uses, who it is. */
export const WAYS = {
  "on the uniform base, by the organization page": async (page, world, { site }) => {
    await openStandalone(page, world, site, { organization: true });
    return { site, base: world.uniform, user: "Patient" };
  },
  "on the site's base": async (page, world, { site }) => {
    await openStandalone(page, world, site);
    return { site, base: world.siteBase(site), user: "Patient" };
  },
  "from the EHR": async (page, world, { ehr, staff }) => {
    const patient = await openRecord(page, world, ehr);
    await page.locator(`[id="launch-${world.clientAt(staff)}"]`).click();
    await consent(page);
    await chart(page, world);
    return { site: staff, base: world.siteBase(staff), user: "Practitioner", patient };
  },
};

/** A clinician who has opened an app from a record is asked for consent at some EHRs. */
export async function consent(place) {
  const approve = place.locator("#approve");
  await approve.or(place.locator("#record")).first().waitFor({ state: "attached" });
  if (await approve.count()) await approve.click();
}

/** The demo app when all that it shows is there; `place` is a page or a frame. */
export async function chart(place, world) {
  const loaded = place.locator("#record:not([aria-busy])");
  const failed = place.locator("#fault-box:not([hidden]), .card.fault, .fault[role=alert]:not([hidden])");
  try {
    await loaded.or(failed).first().waitFor({ state: "attached" });
  } catch (error) {
    throw new Error(`${place.url()}: ${await place.locator("body").innerText()}`, { cause: error });
  }
  if (await failed.count()) assert.fail(`${place.url()}: ${await failed.first().innerText()}`);
  assert.ok(place.url().startsWith(`${world.demo}chart.html`), place.url());
  await place.evaluate(async () => {
    window.client = await window.FHIR.oauth2.ready();
  });
  return place;
}

/** What the app got with its token. */
export const tokenResponse = (place) => place.evaluate(() => window.client.state.tokenResponse);

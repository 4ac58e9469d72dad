// What binds a launch to its browser: in an EHR's frame, in parallel tabs, and against another browser.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { bench, chart, consent, openRecord, openStandalone, signIn, startBrowser, tokenResponse } from "./browser.mjs";
import { PATIENT, VENDORS } from "./world.mjs";

/** A site that sets a plain and a partitioned cookie at `/set`, and shows at `/echo` which of them came back. */
async function cookieSite() {
  const server = createServer((request, response) => {
    response.setHeader("content-type", "text/html");
    if (request.url === "/set") {
      response.setHeader("set-cookie", [
        "plain=1; Path=/; Secure; HttpOnly; SameSite=None",
        "__Host-parted=1; Path=/; Secure; HttpOnly; SameSite=None; Partitioned",
      ]);
      response.writeHead(303, { location: "/echo" }).end();
    } else if (request.url === "/echo") {
      response.end(`<p id="cookies">${request.headers.cookie ?? ""}</p>`);
    } else {
      response.end(`<iframe name="third" src="http://third.localhost:${server.address().port}/set"></iframe>`);
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

describe("in an EHR's frame, third-party cookies blocked", () => {
  const shared = bench({ blockThirdPartyCookies: true });
  let site;
  before(async () => {
    site = await cookieSite();
  });
  after(() => site.close());

  test("the browser does block them, all but partitioned ones", async () => {
    const page = await shared.browser.newPage();
    const { port } = site.address();
    await page.goto(`http://first.localhost:${port}/`);
    const framed = page.frameLocator("iframe").locator("#cookies");
    await framed.waitFor();
    assert.equal(await framed.innerText(), "__Host-parted=1");
    // The same site at the top may keep both: it is the frame that makes the difference …
    await page.goto(`http://third.localhost:${port}/set`);
    assert.match(await page.locator("#cookies").innerText(), /(^|; )plain=1/);
    await page.close();
    // … and the switch: a browser that allows them sends both.
    const lax = await startBrowser();
    try {
      const other = await lax.newPage();
      await other.goto(`http://first.localhost:${port}/`);
      assert.match(await other.frameLocator("iframe").locator("#cookies").innerText(), /(^|; )plain=1/);
    } finally {
      await lax.end();
    }
  });

  for (const { vendor, ehr, staff } of VENDORS) {
    test(`${vendor}: the app opens inside the EHR's page`, async () => {
      const { world, browser } = shared;
      const page = await browser.newPage();
      const bound = [];
      page.on("response", (response) => {
        const url = response.url();
        if (url.startsWith(`${world.gateway}/`) && /\/oauth\/(authorize|continue|callback)/.test(url)) bound.push(response);
      });
      const patient = await openRecord(page, world, ehr);
      await page.locator(`[id="launch-frame-${world.clientAt(staff)}"]`).click();
      const frame = await (await page.waitForSelector("iframe#app")).contentFrame();
      await consent(frame);
      await chart(frame, world);

      // Three sites: the EHR at the top, the app in the frame, and Mantel between them.
      const host = (url) => new URL(url).hostname;
      assert.equal(new Set([host(page.url()), host(frame.url()), host(world.gateway)]).size, 3);
      assert.equal(new URL(page.url()).origin, world.ehrs[ehr].origin);
      const answer = await tokenResponse(frame);
      assert.equal(answer.patient, patient);
      assert.equal(answer.__site, staff);

      const at = (step) => bound.find((response) => response.url().includes(`/oauth/${step}`));
      const authorize = at("authorize");
      assert.equal(authorize.frame(), frame, "all that happened in the frame");
      assert.equal(authorize.status(), 303);
      const cookie = await authorize.headerValue("set-cookie");
      const [pair, ...attributes] = cookie.split(/; */);
      assert.match(pair, /^__Host-launch-[0-9a-f]{32}=/);
      for (const expected of ["Secure", "HttpOnly", "SameSite=None", "Partitioned", "Path=/"]) {
        assert.ok(attributes.includes(expected), `${expected} in ${attributes.join("; ")}`);
      }
      for (const step of ["continue", "callback"]) {
        const sent = await at(step).request().headerValue("cookie");
        assert.ok(sent?.includes(pair), `the launch's cookie came to ${step}`);
      }
      assert.match(await at("callback").headerValue("set-cookie"), /Max-Age=0/);
      await page.close();
    });
  }
});

describe("in an EHR's frame, all of Mantel's cookies blocked", () => {
  const shared = bench({ blockInFrames: { site: "mantel.localhost", below: "epic.localhost" } });

  test("the user is told in the frame, and goes on in a window", async () => {
    const { world, browser } = shared;
    const page = await browser.newPage();
    const patient = await openRecord(page, world, "epic");
    await page.locator(`[id="launch-frame-${world.clientAt("epic")}"]`).click();
    const frame = await (await page.waitForSelector("iframe#app")).contentFrame();
    await frame.locator("h1:text('kept no cookie')").waitFor();
    assert.equal(new URL(frame.url()).origin, world.gateway);
    const opened = browser.waitForEvent("page");
    await frame.getByRole("link", { name: "Continue in a new window" }).click();
    // The app begins anew there: what it keeps of its request is the frame's as well.
    const app = await opened;
    await consent(app);
    await chart(app, world);
    assert.equal((await tokenResponse(app)).patient, patient);
    // There is no way round: the old launch is over.
    assert.equal((await fetch(frame.url())).status, 410);
    await Promise.all([app.close(), page.close()]);
  });
});

describe("a launch and its browser", () => {
  const shared = bench();

  test("two tabs launch at two EHRs, crossing each other", async () => {
    const { world, browser } = shared;
    const [one, two] = [await browser.newPage(), await browser.newPage()];
    for (const [page, site] of [[one, "epic"], [two, "generic"]]) {
      await page.goto(world.demo);
      await page.locator(`#standalone-${site}`).click();
      await page.locator("#sign-in").waitFor();
    }
    await signIn(two);
    await signIn(one);
    await Promise.all([chart(one, world), chart(two, world)]);
    assert.equal((await tokenResponse(one)).__site, "epic");
    assert.equal((await tokenResponse(two)).__site, "generic");
    await Promise.all([one.close(), two.close()]);
  });

  test("two tabs launch at one EHR, and each has its own patient", async () => {
    const { world, browser } = shared;
    const [one, two] = [await browser.newPage(), await browser.newPage()];
    for (const page of [one, two]) {
      await page.goto(world.demo);
      await page.locator("#standalone-athena").click();
      await page.locator("#sign-in").waitFor();
    }
    const other = two.locator(`h3:text("Patients") + .accounts button:not([id="account-${PATIENT.username}"])`).first();
    const name = await other.innerText();
    await other.click();
    await two.locator("#approve").click();
    await signIn(one);
    await Promise.all([chart(one, world), chart(two, world)]);
    const patients = [];
    for (const page of [one, two]) patients.push(await page.evaluate(() => window.client.patient.read()));
    assert.equal(patients[0].name[0].family, PATIENT.family);
    assert.ok(name.includes(patients[1].name[0].family), name);
    assert.notEqual(patients[1].id, patients[0].id);
    await Promise.all([one.close(), two.close()]);
  });

  test("what another browser began is not finished in this one", async () => {
    const { world, browser } = shared;
    // The attacker starts, and stops where the EHR's answer would lead back to Mantel.
    const attacker = await browser.newPage();
    const network = await browser.newCDPSession(attacker);
    await network.send("Fetch.enable", { patterns: [{ urlPattern: "*/consent", requestStage: "Response" }] });
    const led = new Promise((resolve) => {
      network.on("Fetch.requestPaused", ({ requestId, responseHeaders }) => {
        network.send("Fetch.failRequest", { requestId, errorReason: "Aborted" });
        resolve(responseHeaders.find(({ name }) => name.toLowerCase() === "location")?.value);
      });
    });
    const continued = attacker.waitForRequest((request) => request.url().startsWith(`${world.gateway}/oauth/continue/`));
    await attacker.goto(world.demo);
    await attacker.locator("#standalone-generic").click();
    const { pathname } = new URL((await continued).url());
    await signIn(attacker);
    const back = await led;
    assert.ok(back?.startsWith(`${world.gateway}/oauth/callback/`), "the EHR leads back to Mantel");

    const victim = await startBrowser();
    try {
      const page = await victim.newPage();
      const tokens = await world.count("generic", "token:authorization_code");
      const answer = await page.goto(back);
      assert.equal(answer.status(), 400);
      assert.equal(new URL(page.url()).origin, world.gateway, "no redirect to the app");
      assert.match(await page.locator("h1").innerText(), /another browser/);
      assert.equal(await world.count("generic", "token:authorization_code"), tokens, "the code was not used");
      // The step before the EHR's login asks for the cookie as well.
      const early = await page.goto(`${world.gateway}${pathname}`);
      assert.ok([400, 410].includes(early.status()), `${early.status()}`);
    } finally {
      await victim.end();
      await attacker.close();
    }
  });

  test("a browser that keeps no cookie is told why, and goes on in a window of its own", async () => {
    const { world, browser } = shared;
    const page = await browser.newPage();
    const began = page.waitForRequest((request) => request.url().startsWith(`${world.gateway}/oauth/continue/`));
    await page.goto(world.demo);
    await page.locator("#standalone-generic").click();
    const { pathname } = new URL((await began).url());
    await page.locator("#sign-in").waitFor();
    await page.close();

    // A launch that has not gone on yet: its uniform base waits for a choice.
    const chooser = await browser.newPage();
    await chooser.goto(world.demo);
    await chooser.locator("#choose-hospital").click();
    await chooser.waitForURL((url) => url.pathname.startsWith("/oauth/continue/"));
    await browser.clearCookies();
    const refused = await chooser.reload();
    assert.equal(refused.status(), 400);
    assert.match(await chooser.locator("h1").innerText(), /kept no cookie/);
    const [fresh] = await Promise.all([
      browser.waitForEvent("page"),
      chooser.getByRole("link", { name: "Continue in a new window" }).click(),
    ]);
    await fresh.waitForURL((url) => url.pathname.startsWith("/oauth/continue/"));
    assert.notEqual(new URL(fresh.url()).pathname, pathname, "a new launch");
    await fresh.locator('a[href$="?organization=generic"]').click();
    await fresh.locator("#sign-in").waitFor();
    // There is no way round: the old one is over.
    await chooser.reload();
    assert.match(await chooser.locator("h1").innerText(), /over|cookie/);
    await Promise.all([chooser.close(), fresh.close()]);
  });
});

// Mantel's own pages, as people meet them: with eyes, with a keyboard, with a screen reader, on a phone, without scripts.
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import axe from "axe-core";
import { bench, startBrowser } from "./browser.mjs";

const WIDTHS = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 800 } };
/** Where pictures of the pages are left, if anywhere. */
const PICTURES = process.env.SCREENSHOTS;

const PAGES = {
  organizations: async (page, world) => {
    await page.goto(world.demo);
    await page.locator("#choose-hospital").click();
    await page.waitForURL((url) => url.pathname.startsWith("/oauth/continue/"));
  },
  fault: (page, world) => page.goto(`${world.gateway}/oauth/authorize?client_id=nobody`),
  "kept no cookie": async (page, world) => {
    await PAGES.organizations(page, world);
    await page.context().clearCookies();
    await page.reload();
  },
  "unknown sign-in": (page, world) => page.goto(`${world.gateway}/oauth/callback/demo-epic?code=1&state=2`),
};

describe("Mantel's pages", () => {
  const shared = bench();

  for (const [name, open] of Object.entries(PAGES)) {
    for (const [kind, viewport] of Object.entries(WIDTHS)) {
      for (const colorScheme of ["light", "dark"]) {
        test(`${name}, ${kind}, ${colorScheme}: nothing serious for axe, nothing from elsewhere, no sideways scrolling`, async () => {
          const { world, browser } = shared;
          const page = await browser.newPage();
          await page.setViewportSize(viewport);
          await page.emulateMedia({ colorScheme });
          const elsewhere = [];
          const complaints = [];
          page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
          await open(page, world);
          page.on("request", (request) => {
            if (!request.url().startsWith(`${world.gateway}/`)) elsewhere.push(request.url());
          });
          complaints.length = 0;
          await page.reload();
          if (PICTURES) {
            await mkdir(PICTURES, { recursive: true });
            await page.screenshot({ path: join(PICTURES, `${name}-${kind}-${colorScheme}.png`.replaceAll(" ", "-")), fullPage: true });
          }
          assert.deepEqual(elsewhere, []);
          // The status itself is told there too.
          assert.deepEqual(complaints.filter((text) => !/status of 4\d\d/.test(text)), []);
          const sideways = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
          assert.equal(sideways, 0);
          assert.equal(await page.locator("html").getAttribute("lang"), "en");
          assert.equal(await page.locator("h1").count(), 1);
          await page.evaluate(axe.source);
          const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
          const told = violations
            .filter(({ impact }) => ["serious", "critical"].includes(impact))
            .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(", ")}`);
          assert.deepEqual(told, []);
          await page.close();
        });
      }
    }
  }

  test("the organization page works by keyboard alone", async () => {
    const { world, browser } = shared;
    const page = await browser.newPage();
    await PAGES.organizations(page, world);
    const names = await page.locator("ul.choices a").count();
    assert.equal(names, 5);
    let found = false;
    for (let press = 0; press < 20 && !found; press += 1) {
      await page.keyboard.press("Tab");
      found = await page.evaluate(() => /[?&]organization=generic$/.test(document.activeElement?.getAttribute("href") ?? ""));
    }
    assert.ok(found, "Tab reaches the link");
    await page.keyboard.press("Enter");
    await page.locator("#sign-in").waitFor();
    assert.equal(new URL(page.url()).hostname, "generic.localhost");
    await page.close();
  });

  test("who cancels comes back to the app with access_denied", async () => {
    const { world, browser } = shared;
    const page = await browser.newPage();
    await PAGES.organizations(page, world);
    const back = page.waitForRequest((request) => request.url().startsWith(`${world.demo}chart.html?`));
    await page.getByRole("link", { name: /^Cancel/ }).click();
    assert.equal(new URL((await back).url()).searchParams.get("error"), "access_denied");
    await page.close();
  });

  test("the pages work without JavaScript", async () => {
    const { world, browser } = shared;
    const other = await startBrowser({ javaScript: false });
    try {
      // The app needs scripts; Mantel's part begins with a link.
      const app = await browser.newPage();
      const asked = app.waitForRequest((request) => request.url().startsWith(`${world.gateway}/oauth/authorize?`));
      await app.goto(world.demo);
      await app.locator("#choose-hospital").click();
      const url = (await asked).url();
      await app.close();
      const page = await other.newPage();
      await page.goto(url);
      await page.locator('a[href$="?organization=generic"]').click();
      await page.locator("#sign-in").waitFor();
    } finally {
      await other.end();
    }
  });
});

// A native app: it is returned to by a loopback port of the moment, or by a scheme of its own (RFC 8252 §7).
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { describe, test } from "node:test";
import { bench, signIn } from "./browser.mjs";
import { PATIENT } from "./world.mjs";

const NAME = "native-app";
const SCHEME = "com.example.native:/callback";
const SITE = "generic";

const listening = async (host) => {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, host, resolve));
  return server;
};

describe("a native app", () => {
  const shared = bench({
    apps: () => [{ name: NAME, redirects: [SCHEME, "http://127.0.0.1/callback", "http://[::1]/callback"] }],
  });

  function request(redirect) {
    const verifier = randomBytes(32).toString("base64url");
    const state = randomBytes(16).toString("base64url");
    const url = new URL(`${shared.world.siteBase(SITE).replace("/fhir/r4", "")}/oauth/authorize`);
    url.search = new URLSearchParams({
      response_type: "code",
      client_id: NAME,
      redirect_uri: redirect,
      scope: "launch/patient offline_access patient/Patient.rs",
      aud: shared.world.siteBase(SITE),
      code_challenge: createHash("sha256").update(verifier).digest("base64url"),
      code_challenge_method: "S256",
      state,
    });
    return { url: url.href, verifier, state, redirect };
  }

  /** Redeems what came back, and reads the patient. */
  async function finish({ verifier, state, redirect }, back) {
    const { searchParams } = new URL(back);
    assert.equal(searchParams.get("state"), state);
    assert.equal(searchParams.get("iss"), shared.world.gateway);
    const base = shared.world.siteBase(SITE);
    const exchange = (code) =>
      fetch(`${base.replace("/fhir/r4", "")}/oauth/token`, {
        method: "POST",
        body: new URLSearchParams({
          grant_type: "authorization_code",
          client_id: NAME,
          redirect_uri: redirect,
          code_verifier: verifier,
          code,
        }),
      });
    const answer = await exchange(searchParams.get("code"));
    assert.equal(answer.status, 200, await answer.clone().text());
    const { access_token: token, patient } = await answer.json();
    const read = await fetch(`${base}/Patient/${patient}`, { headers: { authorization: `Bearer ${token}` } });
    assert.equal((await read.json()).name[0].family, PATIENT.family);
  }

  for (const [family, host] of [["127.0.0.1", "127.0.0.1"], ["[::1]", "::1"]]) {
    test(`is returned to a free port of ${family}, registered with none`, async (t) => {
      const server = await listening(host).catch((error) => {
        if (error.code === "EADDRNOTAVAIL") return undefined;
        throw error;
      });
      if (!server) return t.skip(`this machine has no ${family}`);
      const arrived = new Promise((resolve) => {
        server.on("request", (incoming, response) => {
          response.setHeader("connection", "close");
          response.end("<p>Go back to the app.</p>");
          if (incoming.url.startsWith("/callback")) resolve(incoming.url);
        });
      });
      const redirect = `http://${family}:${server.address().port}/callback`;
      const asked = request(redirect);
      const page = await shared.browser.newPage();
      await page.goto(asked.url);
      await signIn(page);
      await finish(asked, new URL(await arrived, redirect).href);
      await page.close();
      server.closeAllConnections();
      server.close();
    });
  }

  test("is returned to by its own scheme", async () => {
    const asked = request(SCHEME);
    const page = await shared.browser.newPage();
    // No program of this machine takes the scheme: the redirect is as far as a browser comes.
    const redirected = page.waitForResponse(
      (response) => response.url().startsWith(`${shared.world.gateway}/oauth/callback/`) && response.status() === 303,
    );
    await page.goto(asked.url);
    await signIn(page);
    const location = await (await redirected).headerValue("location");
    assert.ok(location.startsWith(`${SCHEME}?code=`), location.split("?")[0]);
    await finish(asked, location);
    await page.close();
  });

  for (const redirect of [
    "http://127.0.0.1:4711/other",
    "http://localhost:4711/callback",
    "https://127.0.0.1:4711/callback",
    "http://127.0.0.1.example.org/callback",
    "http://127.0.0.1:4711@example.org/callback",
    "com.example.native:/callback2",
    "com.example.other:/callback",
  ]) {
    test(`is not returned to ${redirect}`, async () => {
      const answer = await fetch(request(redirect).url, { redirect: "manual" });
      assert.equal(answer.status, 400);
      assert.equal(answer.headers.get("location"), null);
      assert.match(answer.headers.get("content-type"), /^text\/html/);
    });
  }
});

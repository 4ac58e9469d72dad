// A client library of another author, which knows OAuth and OpenID Connect and nothing of SMART: `oauth4webapi`.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, describe, test } from "node:test";
import * as oauth from "oauth4webapi";
import { bench, signIn } from "./browser.mjs";
import { PATIENT, VENDORS } from "./world.mjs";

const NAME = "oauth4webapi";
const SCOPE = "launch/patient openid fhirUser offline_access patient/Patient.rs";
/** The worlds of tests speak plain HTTP on loopback. */
const PLAIN = { [oauth.allowInsecureRequests]: true };

async function startApp() {
  const server = createServer((_, response) => response.end("<p>signed in</p>"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { server, redirect: `http://other.localhost:${server.address().port}/callback` };
}

describe("oauth4webapi", () => {
  let app;
  const shared = bench({
    apps: async () => {
      app = await startApp();
      return [{ name: NAME, redirects: [app.redirect] }];
    },
  });
  after(() => {
    app.server.closeAllConnections();
    app.server.close();
  });

  for (const { vendor, site } of VENDORS) {
    test(`${vendor}: standalone launch, with all that the library checks`, async () => {
      const { world, browser } = shared;
      const issuer = new URL(world.gateway);
      const server = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, PLAIN));
      const client = { client_id: NAME };
      const verifier = oauth.generateRandomCodeVerifier();
      const [state, nonce] = [oauth.generateRandomState(), oauth.generateRandomNonce()];
      const url = new URL(server.authorization_endpoint);
      url.search = new URLSearchParams({
        response_type: "code",
        client_id: NAME,
        redirect_uri: app.redirect,
        scope: SCOPE,
        aud: world.siteBase(site),
        code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
        code_challenge_method: "S256",
        state,
        nonce,
      });
      const page = await browser.newPage();
      await page.goto(url.href);
      await signIn(page);
      await page.waitForURL((url) => url.href.startsWith(app.redirect));
      // RFC 9207: the library compares `iss`, since the server announces it.
      const parameters = oauth.validateAuthResponse(server, client, new URL(page.url()), state);
      await page.close();

      const none = oauth.None();
      const exchanged = await oauth.authorizationCodeGrantRequest(server, client, none, parameters, app.redirect, verifier, PLAIN);
      const tokens = await oauth.processAuthorizationCodeResponse(server, client, exchanged, {
        expectedNonce: nonce,
        requireIdToken: true,
      });
      await oauth.validateApplicationLevelSignature(server, exchanged, PLAIN);
      const claims = oauth.getValidatedIdTokenClaims(tokens);
      assert.equal(claims.fhirUser, `${world.siteBase(site)}/Patient/${tokens.patient}`);
      assert.equal(tokens.__site, site);

      const read = async ({ access_token: token }) => {
        const address = new URL(`${tokens.__fhir_base}/Patient/${tokens.patient}`);
        const answer = await oauth.protectedResourceRequest(token, "GET", address, undefined, undefined, PLAIN);
        assert.equal(answer.status, 200);
        return answer.json();
      };
      assert.equal((await read(tokens)).name[0].family, PATIENT.family);
      const refreshed = await oauth.refreshTokenGrantRequest(server, client, none, tokens.refresh_token, PLAIN);
      const second = await oauth.processRefreshTokenResponse(server, client, refreshed);
      assert.notEqual(second.access_token, tokens.access_token);
      assert.equal((await read(second)).id, tokens.patient);
    });
  }
});

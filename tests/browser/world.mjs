// Mantel, simulated EHRs and the demo app, as one process that ends with the test that started it.
import { spawn } from "node:child_process";
import dns from "node:dns";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** What each EHR is called, by its site where patients sign in; `staff` is the site that it launches from. */
export const VENDORS = [
  { vendor: "epic", ehr: "epic", site: "epic", staff: "epic" },
  { vendor: "oracle", ehr: "oracle", site: "oracle-patients", staff: "oracle" },
  { vendor: "athena", ehr: "athena", site: "athena", staff: "athena" },
  { vendor: "athena-practice", ehr: "athenapractice", site: "athena-practice", staff: "athena-practice" },
  { vendor: "generic", ehr: "generic", site: "generic", staff: "generic" },
];

/** A patient with an account everywhere. */
export const PATIENT = { username: "addie.tremblay", family: "Tremblay" };

const TARGET = process.env.CARGO_TARGET_DIR ?? fileURLToPath(new URL("../../target", import.meta.url));
const BINARY = `${TARGET}/debug/browser-world`;
/** The first start fetches the demo app's library. */
const START_LIMIT = 120_000;
const STOP_LIMIT = 10_000;

// Node asks the system's resolver for `epic.localhost`, and many know only `localhost` (RFC 6761 §6.3: it is this
// machine). Browsers know it by themselves.
const { lookup } = dns;
dns.lookup = (name, options, done) =>
  name.endsWith(".localhost") ? lookup("127.0.0.1", options, done) : lookup(name, options, done);

export async function startWorld({ apps = [], strict = false } = {}) {
  if (!existsSync(BINARY)) throw new Error(`${BINARY} is missing: run \`cargo build --workspace\` first`);
  const child = spawn(BINARY, ["--apps", JSON.stringify(apps), ...(strict ? ["--strict"] : [])], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const stop = async () => {
    child.stdin.end();
    // A browser's idle connection must not keep it.
    const late = setTimeout(() => child.kill("SIGKILL"), STOP_LIMIT);
    await ended;
    clearTimeout(late);
  };
  const late = setTimeout(() => child.kill("SIGKILL"), START_LIMIT);
  const told = await Promise.race([
    new Promise((resolve) => createInterface({ input: child.stdout }).once("line", resolve)),
    ended.then((code) => Promise.reject(new Error(`browser-world ended at its start with ${code}`))),
  ]).finally(() => clearTimeout(late));
  return new World(JSON.parse(told), stop);
}

class World {
  constructor(told, stop) {
    Object.assign(this, told);
    this.stop = stop;
    this.uniform = `${this.gateway}/fhir/r4`;
  }

  siteBase(site) {
    return `${this.gateway}/sites/${site}/fhir/r4`;
  }

  /** Mantel's client id at an EHR, for an app at a site. */
  clientAt(site, app = "demo") {
    return this.filings.find((filing) => filing.app === app && filing.site === site).client;
  }

  /** `/_control/…` of an EHR: `control("epic", "lifetime", { seconds: 5 })`; without a body it is a GET. */
  async control(ehr, what, body) {
    const answer = await fetch(`${this.ehrs[ehr].origin}/_control/${what}`, {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(`${ehr}: ${what}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  }

  /** How often an EHR was asked something, such as `token:refresh_token`. */
  async count(ehr, name) {
    return (await this.control(ehr, "counts"))[name] ?? 0;
  }
}

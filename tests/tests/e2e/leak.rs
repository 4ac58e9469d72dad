//! Known tokens and a known patient go through every flow; then everything that the gateway leaves behind is searched
//! for them: its logs at their loudest, its metrics, its refusals, its database (`guard.md`).

use std::{collections::BTreeMap, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use mantel_tests::{
    ehr::{
        auth::client::ClientAuth,
        contract::Vendor,
        faults::{Fault, FaultKind},
        server::Running,
        simulator::LaunchOrder,
    },
    harness::{
        APP, APP_SECRET, Answer, EHR_SECRET, Ehr, ORIGIN, SECRET_APP, World,
        app::{App, Tokens, visitor},
        call, get, post_form,
        postgres::Postgres,
        read,
    },
};

const TOKEN: &str = "token:refresh_token";
/// Values that only requests hold.
const QUERY: &str = "canary-query-5b1f7c";
const PATH: &str = "canary-path-9d03aa";
const BODY: &str = "canary-body-41c6e2";
const HEADER: &str = "canary-header-77ab10";

/// What must stand nowhere, by what it is.
#[derive(Default)]
struct Canaries(BTreeMap<String, String>);

impl Canaries {
    fn add(&mut self, what: &str, value: &str) {
        // Anything shorter is found by chance.
        assert!(value.len() >= 6, "{what} is too short to be searched for: {value}");
        self.0.insert(value.to_owned(), what.to_owned());
        let encoded: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
        self.0.entry(encoded).or_insert_with(|| format!("{what}, encoded"));
        self.0.insert(STANDARD.encode(value), format!("{what}, in base64"));
    }

    fn add_app(&mut self, app: &App, tokens: &Tokens) {
        for (what, value) in [
            ("an access token of ours", tokens.access()),
            ("a refresh token of ours", tokens.refresh()),
            ("an id_token of ours", tokens.text("id_token")),
            ("a code_verifier", &app.verifier),
            ("a state of the app's", &app.state),
            ("a nonce of the app's", &app.nonce),
            ("a patient's id", tokens.text("patient")),
        ] {
            self.add(what, value);
        }
    }

    /// All that the EHR has given out so far.
    fn add_ehr(&mut self, ehr: &Running) {
        let state = ehr.auth.state();
        for token in state.access.keys() {
            self.add("an access token of an EHR", token);
        }
        for token in state.refresh.keys() {
            self.add("a refresh token of an EHR", token);
        }
        for code in state.codes.keys() {
            self.add("a code of an EHR", code);
        }
        for launch in state.launches.keys() {
            self.add("a launch of an EHR", launch);
        }
        for code in state.codes.values() {
            self.add("a state of ours", &code.request.state);
            if let Some(nonce) = &code.request.nonce {
                self.add("a nonce of ours", nonce);
            }
        }
        for client in state.clients.values() {
            if let ClientAuth::ClientSecretBasic { secret } = &client.auth {
                self.add("Basic credentials at an EHR", &format!("{}:{secret}", client.client_id));
            }
        }
    }

    fn found_in(&self, text: &[u8]) -> Vec<&str> {
        // One pass over the text for each canary would take minutes: by its first bytes, then whole.
        let mut by_head: BTreeMap<&[u8], Vec<(&[u8], &str)>> = BTreeMap::new();
        for (value, what) in &self.0 {
            let value = value.as_bytes();
            by_head.entry(&value[..6]).or_default().push((value, what));
        }
        let mut found = Vec::new();
        for (at, head) in text.windows(6).enumerate() {
            for (value, what) in by_head.get(head).into_iter().flatten() {
                if text[at..].starts_with(value) {
                    found.push(*what);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Refusals of the gateway, as they came.
#[derive(Default)]
struct Refusals(Vec<(String, Vec<u8>)>);

impl Refusals {
    /// Keeps an answer that must be a refusal.
    #[track_caller]
    fn keep(&mut self, what: &str, answer: &Answer) {
        assert!(answer.status.as_u16() >= 400, "{what} was to be refused: {} {}", answer.status, answer.text());
        let mut all = format!("{:?}\n", answer.headers).into_bytes();
        all.extend_from_slice(&answer.body);
        self.0.push((what.to_owned(), all));
    }
}

#[test]
fn the_search_finds_what_is_planted() {
    let mut canaries = Canaries::default();
    canaries.add("a token", "mtl_at_0123456789");
    canaries.add("a secret", "a b+c/d%e");
    for (text, found) in [
        ("nothing here, mtl_at_012345678 neither", &[][..]),
        ("{\"message\":\"mtl_at_0123456789\"}", &["a token"]),
        ("x?secret=a+b%2Bc%2Fd%25e&", &["a secret, encoded"]),
        ("Basic bXRsX2F0XzAxMjM0NTY3ODk=", &["a token, in base64"]),
        ("a b+c/d%emtl_at_0123456789", &["a secret", "a token"]),
    ] {
        assert_eq!(canaries.found_in(text.as_bytes()), found, "{text}");
    }
}

/// Where the gateway keeps what outlives it.
enum Kept {
    File,
    Postgres(Postgres, String),
}

impl Kept {
    async fn look(&self, world: &World, when: &str) -> Vec<(String, Vec<u8>)> {
        match self {
            Self::File => store_files(world, when),
            Self::Postgres(server, url) => {
                let dump = server.dump(url).await.unwrap();
                // Also the sealed columns: the head of a record, as its bytes are.
                assert!(holds(&dump, b"viewer-") && holds(&dump, b"\x01\x04test"), "the dump holds little");
                vec![(format!("mantel.db, dumped ({when})"), dump)]
            }
        }
    }
}

fn holds(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

async fn nothing_leaks(make: fn(Vendor) -> Ehr, kept: Kept) {
    let loud = "[telemetry]\nlog = \"trace\"\n";
    let make = |vendor| make(vendor).site("tokens.min_refresh_interval = \"0s\"");
    let mut world = World::start_with(Vendor::ALL.map(make), loud).await.unwrap();
    if let Kept::Postgres(_, url) = &kept {
        assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
        world.gateway.set_environment("MANTEL_STORE__URL", url);
        world.gateway.spawn().await.unwrap();
    }
    let (mut canaries, mut refusals) = (Canaries::default(), Refusals::default());
    for (what, value) in [
        ("a query's value", QUERY),
        ("an id in a path", PATH),
        ("a body's text", BODY),
        ("a header's value", HEADER),
        ("our secret at EHRs", EHR_SECRET),
        ("an app's secret", APP_SECRET),
        ("an app's Basic credentials", &format!("{SECRET_APP}:{APP_SECRET}")),
    ] {
        canaries.add(what, value);
    }
    for vendor in Vendor::ALL {
        at(&world, vendor, &mut canaries, &mut refusals).await;
    }
    documents(&world, &mut refusals).await;
    for vendor in Vendor::ALL {
        canaries.add_ehr(world.ehr(vendor));
    }

    let metrics = get(&format!("{}/metrics", world.gateway.admin), &[]).await.unwrap();
    let mut places = vec![("/metrics".to_owned(), metrics.body.to_vec())];
    // Once while it runs, with all that the write-ahead log holds, and once closed.
    places.extend(kept.look(&world, "running").await);
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    places.extend(kept.look(&world, "closed").await);
    for name in ["events.log", "access.log"] {
        let text = world.gateway.log(name).unwrap();
        assert!(text.lines().count() > 50, "{name} holds little");
        places.push((name.to_owned(), text.into_bytes()));
    }
    let events = &places.iter().find(|(what, _)| what == "events.log").unwrap().1;
    let is_loud = events.windows(5).any(|window| window == b"DEBUG" || window == b"TRACE");
    assert!(is_loud, "the log is not at its loudest");
    places.extend(refusals.0);
    let mut leaks = Vec::new();
    for (place, text) in &places {
        for what in canaries.found_in(text) {
            let shown = if place.contains("mantel.db") { String::new() } else { line_with(&canaries, what, text) };
            leaks.push(format!("{place}: {what}\n    {shown}"));
        }
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    // The same search over the same places finds what is put there.
    let planted = format!("{{\"message\":\"{QUERY}\"}}");
    assert_eq!(canaries.found_in(planted.as_bytes()), ["a query's value"]);
}

/// For whoever has to mend it.
fn line_with(canaries: &Canaries, what: &str, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let values: Vec<_> = canaries.0.iter().filter(|(_, known)| *known == what).map(|(value, _)| value).collect();
    let line = text.lines().find(|line| values.iter().any(|value| line.contains(value.as_str())));
    line.unwrap_or_default().chars().take(600).collect()
}

/// What the gateway keeps: the database, its log, and all that lies in directories beside it (the spill).
fn store_files(world: &World, when: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = directory(world.gateway.dir(), when);
    files.retain(|(name, _)| name.starts_with("mantel.db"));
    assert!(files.iter().any(|(_, bytes)| bytes.len() > 4096), "no store was found");
    files
}

/// Each file below a directory, by its path in it.
fn directory(of: &Path, when: &str) -> Vec<(String, Vec<u8>)> {
    let (mut files, mut open) = (Vec::new(), vec![of.to_owned()]);
    while let Some(path) = open.pop() {
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_file() {
            let name = path.strip_prefix(of).unwrap().display();
            files.push((format!("{name} ({when})"), std::fs::read(&path).unwrap()));
        }
    }
    files
}

/// Everything that can happen at one EHR.
async fn at(world: &World, vendor: Vendor, canaries: &mut Canaries, refusals: &mut Refusals) {
    let ehr = world.ehr(vendor);
    let base = world.gateway.site_base(vendor);
    let name = vendor.text();
    let what = |text: &str| format!("{name}: {text}");

    // Launches: standalone by both apps, and from the EHR.
    let app = App::at(&base).await.unwrap();
    let back = app.authorize(&mut visitor(), ehr, &[]).await.unwrap();
    let code = app.code(&back).unwrap();
    canaries.add("a code of ours", &code);
    let wrong = "wrong-wrong-wrong-wrong-wrong-wrong-wrong-wrong";
    refusals
        .keep(&what("a wrong verifier"), &app.exchange(&[("code", &code), ("code_verifier", wrong)]).await.unwrap());
    let tokens = app.redeem(&code).await.unwrap();
    canaries.add_app(&app, &tokens);
    let secret_app = App::with_secret(&base).await.unwrap();
    let secret_tokens = secret_app.launch(ehr).await.unwrap();
    canaries.add_app(&secret_app, &secret_tokens);
    let staff = App::at(&world.gateway.staff_base(vendor))
        .await
        .unwrap()
        .asking("launch openid fhirUser offline_access patient/Patient.read patient/Observation.read");
    let order = LaunchOrder {
        client_id: format!("{APP}-at-{name}"),
        patient: Some(ehr.auth.patients()[0].id.clone()),
        ..LaunchOrder::default()
    };
    let launch = ehr.launch(&order).unwrap();
    let staff_tokens = staff.ehr_launch(ehr, launch.url.as_deref().unwrap()).await.unwrap();
    canaries.add_app(&staff, &staff_tokens);

    // Data, whose patient has a name.
    let patient = secret_tokens.text("patient").to_owned();
    let own = format!("{base}/Patient/{patient}");
    let found = read(&own, secret_tokens.access()).await.unwrap();
    assert_eq!(found.status, 200, "{vendor:?}: {}", found.text());
    let family = found.json().unwrap()["name"][0]["family"].as_str().unwrap().to_owned();
    canaries.add("a family name", &family);
    let search = format!("{base}/Observation?patient={patient}&category=vital-signs");
    assert_eq!(read(&search, secret_tokens.access()).await.unwrap().status, 200);
    let bearer = format!("Bearer {}", secret_tokens.access());
    let form = [("authorization", bearer.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let body = format!("patient={patient}&category=vital-signs&code={QUERY}");
    call(Method::POST, &format!("{base}/Observation/_search"), &form, &body).await.unwrap();

    // Refusals, each with something that must not be told.
    let other = ehr.auth.patients().iter().map(|known| known.id.clone()).find(|id| *id != patient).unwrap();
    canaries.add("another patient's id", &other);
    for path in [
        format!("Patient/{other}"),
        format!("Immunization?patient={patient}&vaccine-code={QUERY}"),
        format!("Observation?patient={other}&code={QUERY}"),
        format!("Immunization/{PATH}"),
        format!("Patient/%2e%2e/{PATH}"),
        format!("Patient/{PATH}"),
        format!("Patient?access_token={}", secret_tokens.access()),
        format!("Patient?_method={QUERY}"),
        format!("Observation?{QUERY}&patient={other}"),
    ] {
        refusals.keep(&what(&path), &read(&format!("{base}/{path}"), secret_tokens.access()).await.unwrap());
    }
    let json = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/fhir+json"),
        ("if-match", HEADER),
        ("x-http-method-override", HEADER),
    ];
    for body in
        [format!("{{\"resourceType\":\"{BODY}\""), format!("{{\"resourceType\":\"Observation\",\"id\":\"{BODY}\"}}")]
    {
        for path in ["Observation", ""] {
            let answer = call(Method::POST, &format!("{base}/{path}"), &json[..3], &body).await.unwrap();
            refusals.keep(&what("a write"), &answer);
        }
    }
    refusals
        .keep(&what("an override"), &call(Method::POST, &format!("{base}/Observation"), &json, "{}").await.unwrap());
    refusals.keep(
        &what("a foreign bearer"),
        &get(&own, &[("authorization", &format!("Bearer {}", tokens.refresh()))]).await.unwrap(),
    );
    refusals.keep(&what("Basic"), &get(&own, &[("authorization", &format!("Basic {HEADER}"))]).await.unwrap());

    // A forced refresh, then an EHR that fails in every way.
    ehr.advance(61_000);
    if vendor != Vendor::AthenaPractice {
        ehr.expire_access_tokens();
        let answer = read(&own, secret_tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{vendor:?}: {}", answer.text());
    }
    for fault in [
        FaultKind::Html { status: 200 },
        FaultKind::Html { status: 502 },
        FaultKind::Status { status: 500 },
        FaultKind::TooMany { retry_after: Some(1) },
        FaultKind::LostAnswer,
    ] {
        ehr.faults.add(Fault::new("fhir", fault.clone()));
        for url in [&own, &format!("{search}&code={QUERY}")] {
            refusals.keep(&what(&format!("{fault:?}")), &read(url, secret_tokens.access()).await.unwrap());
        }
        ehr.faults.clear();
        ehr.faults.add(Fault::new("token:authorization_code", fault));
        // The redirect back carries the app's own state: that is what it is for.
        let failed = App::at(&base).await.unwrap();
        canaries.add("a code_verifier", &failed.verifier);
        canaries.add("a state of the app's", &failed.state);
        failed.authorize(&mut visitor(), ehr, &[]).await.unwrap();
        ehr.faults.clear();
    }

    // Refreshes of ours, and their refusals.
    let renewed = secret_app.refresh(secret_tokens.refresh()).await.unwrap();
    canaries.add_app(&secret_app, &renewed_with(&renewed, &secret_tokens));
    for pairs in [
        vec![("refresh_token", tokens.access())],
        vec![("refresh_token", renewed.refresh()), ("scope", &format!("patient/Encounter.rs?code={QUERY}"))],
        vec![("refresh_token", renewed.refresh()), ("client_secret", BODY), ("client_secret", BODY)],
    ] {
        refusals.keep(&what("a token request"), &secret_app.try_refresh(&pairs).await.unwrap());
    }
    let wrong = format!("Basic {}", STANDARD.encode(format!("{SECRET_APP}:{BODY}")));
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", renewed.refresh())];
    refusals
        .keep(&what("wrong credentials"), &post_form(&app.token, &[("authorization", &wrong)], &pairs).await.unwrap());
    refusals.keep(&what("a code again"), &app.exchange(&[("code", &code)]).await.unwrap());

    // The end of a grant.
    ehr.end_grants(None);
    ehr.expire_access_tokens();
    ehr.faults.add(Fault::new(TOKEN, FaultKind::Burnt));
    let answer = read(&own, secret_tokens.access()).await.unwrap();
    refusals.keep(&what("a dead grant"), &answer);
    ehr.faults.clear();

    // Authorization requests that are refused with a page.
    for change in [("client_id", BODY), ("redirect_uri", "https://evil.example/canary-body-41c6e2")] {
        let page = visitor().get(&app.url(&[change]).unwrap()).await.unwrap();
        assert_eq!(page.status, 400);
        refusals.0.push((what("a page"), page.body.to_vec()));
    }
    // And by a redirect, with what only the request held.
    visitor()
        .get(&app.url(&[("scope", &format!("patient/{QUERY}.read patient/Encounter.rs?code={QUERY}"))]).unwrap())
        .await
        .unwrap();
    visitor().get(&app.url(&[("launch", QUERY)]).unwrap()).await.unwrap();
}

/// The id_token comes with the first answer only.
fn renewed_with(renewed: &Tokens, first: &Tokens) -> Tokens {
    let mut all = first.0.clone();
    all.extend(renewed.0.clone());
    Tokens(all)
}

/// What is not at any one EHR.
async fn documents(world: &World, refusals: &mut Refusals) {
    let public = &world.gateway.public;
    for (what, path) in [
        ("an unknown path", format!("/{PATH}?x={QUERY}")),
        ("an unknown site", format!("/sites/{PATH}/fhir/r4/Patient/{PATH}")),
        ("an unknown app", format!("/launch/{PATH}?iss={QUERY}&launch={QUERY}")),
        ("an unknown iss", format!("/launch/{APP}?iss=https://{QUERY}.example&launch={QUERY}")),
        ("an unknown launch", format!("/oauth/continue/{PATH}")),
        ("an unknown callback", format!("/oauth/callback/{PATH}?code={QUERY}&state={QUERY}")),
        ("a callback of nobody", format!("/oauth/callback/{APP}-generic?code={QUERY}&state={QUERY}")),
        ("an error from nobody", format!("/oauth/callback/{APP}-generic?error={QUERY}&error_description={BODY}")),
    ] {
        let cookie = format!("__Host-mantel={HEADER}");
        let headers =
            [("cookie", cookie.as_str()), ("origin", ORIGIN), ("referer", "https://x.example/canary-header-77ab10")];
        refusals.keep(what, &get(&format!("{public}{path}"), &headers).await.unwrap());
    }
}

#[tokio::test]
async fn nothing_leaks_at_any_vendor() {
    nothing_leaks(Ehr::new, Kept::File).await;
}

#[tokio::test]
async fn nothing_leaks_at_any_strict_vendor() {
    nothing_leaks(Ehr::strict, Kept::File).await;
}

#[tokio::test]
async fn nothing_leaks_into_postgres() {
    let server = Postgres::shared().await.unwrap();
    let database = server.database().await.unwrap();
    nothing_leaks(Ehr::strict, Kept::Postgres(server, database)).await;
}

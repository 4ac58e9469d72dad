//! The sandbox, whole and in this process, as a person meets it without JavaScript.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mantel_tests::{
    ehr::{
        simulator::LaunchOrder,
        visitor::{Page, Visitor},
    },
    sandbox::{App, DEMO, Options, Running, Sandbox, hospitals::HOSPITALS},
};
use serde_json::Value;
use url::Url;

/// Stands in for the npm package, which the sandbox would fetch.
const LIBRARY: &str = "// fhirclient";
/// RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// A sandbox whose npm cache has what it needs.
struct Bench {
    running: Running,
    _cache: tempfile::TempDir,
}

async fn bench(options: Options) -> Bench {
    let cache = tempfile::tempdir().unwrap();
    let build = cache.path().join("fhirclient-2.6.3/package/build");
    std::fs::create_dir_all(&build).unwrap();
    std::fs::write(build.join("fhir-client.js"), LIBRARY).unwrap();
    let running = Sandbox::start(Options { npm: Some(cache.path().to_owned()), ..options }).await.unwrap();
    Bench { running, _cache: cache }
}

async fn get(url: &str) -> Page {
    Visitor::new().get(url).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_answers() {
    let bench = bench(Options::default()).await;
    let running = &bench.running;
    for (path, kind) in [
        ("", "text/html"),
        ("launch.html", "text/html"),
        ("chart.html", "text/html"),
        ("app.css", "text/css"),
        ("start.js", "text/javascript"),
        ("fhir-client.js", "text/javascript"),
    ] {
        let page = get(&format!("{}{path}", running.demo_url)).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        assert!(page.header("content-type").unwrap().starts_with(kind), "{path}");
        let policy = page.header("content-security-policy").unwrap();
        for (_, ehr) in &running.ehrs {
            assert!(policy.split("frame-ancestors").nth(1).unwrap().contains(&ehr.origin), "{path}: {policy}");
        }
    }
    assert_eq!(get(&format!("{}fhir-client.js", running.demo_url)).await.text(), LIBRARY);
    assert_eq!(get(&format!("{}secrets", running.demo_url)).await.status, StatusCode::NOT_FOUND);
    let posted = Visitor::new().post(&running.demo_url, &[]).await.unwrap();
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);

    assert_eq!(running.ehrs.len(), HOSPITALS.len());
    for (name, ehr) in &running.ehrs {
        let home = get(&format!("{}/", ehr.origin)).await;
        assert!(home.has_button("sign-in"), "{name}");
    }
    for site in HOSPITALS.iter().flat_map(|hospital| hospital.sites) {
        let found =
            get(&format!("{}/.well-known/smart-configuration", running.site_base(site.id))).await.json().unwrap();
        let authorize = format!("{}/sites/{}/oauth/authorize", running.gateway_url, site.id);
        assert_eq!(found["authorization_endpoint"], authorize);
    }
    assert_eq!(get(&format!("{}/metrics", running.admin_url)).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_link_to_files_that_are_there() {
    let bench = bench(Options::default()).await;
    for page in ["index.html", "launch.html", "chart.html"] {
        let base = Url::parse(&bench.running.demo_url).unwrap();
        let text = get(base.join(page).unwrap().as_str()).await.text().into_owned();
        let links: Vec<&str> = ["src=\"", "href=\""]
            .iter()
            .flat_map(|start| text.split(start).skip(1).map(|rest| rest.split('"').next().unwrap()))
            .filter(|link| !link.starts_with('#'))
            .collect();
        assert!(links.len() > 3, "{page}: {links:?}");
        for link in links {
            assert_eq!(get(base.join(link).unwrap().as_str()).await.status, StatusCode::OK, "{page}: {link}");
        }
    }
}

/// What an app has after a standalone launch.
struct Launched {
    answer: Value,
}

impl Launched {
    fn text(&self, name: &str) -> &str {
        self.answer[name].as_str().unwrap_or_default()
    }
}

/// The demo app's authorization request at a site's base.
fn authorize(running: &Running, site: &str, scopes: &str, launch: Option<&str>) -> Url {
    let mut url = Url::parse(&format!("{}/sites/{site}/oauth/authorize", running.gateway_url)).unwrap();
    url.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", DEMO)
        .append_pair("redirect_uri", &running.redirect_uri())
        .append_pair("scope", scopes)
        .append_pair("state", "a-state")
        .append_pair("aud", &running.site_base(site))
        .append_pair("code_challenge", CHALLENGE)
        .append_pair("code_challenge_method", "S256")
        .extend_pairs(launch.map(|launch| ("launch", launch)));
    url
}

/// What the app does with the redirect that it gets back.
async fn redeem(running: &Running, visitor: &mut Visitor, site: &str, back: &Page) -> Launched {
    assert_eq!(back.redirect_param("state").as_deref(), Some("a-state"), "{site}: {}", back.text());
    let refused = back.redirect_param("error_description");
    let code = back.redirect_param("code").unwrap_or_else(|| panic!("{site}: {refused:?}"));
    let token = format!("{}/sites/{site}/oauth/token", running.gateway_url);
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", &running.redirect_uri()),
        ("client_id", DEMO),
        ("code_verifier", VERIFIER),
    ];
    let answer = visitor.post(&token, &fields).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{site}: {}", answer.text());
    Launched { answer: answer.json().unwrap() }
}

/// A patient signs in from the demo app at a site's base.
async fn launch(running: &Running, site: &str, scopes: &str) -> Launched {
    let mut visitor = Visitor::new().stop_at(&running.redirect_uri());
    let sign_in = visitor.get(authorize(running, site, scopes, None).as_str()).await.unwrap();
    let consent = visitor.sign_in(&sign_in, "addie.tremblay").await.unwrap();
    let back = visitor.press(&consent, "approve", &[]).await.unwrap();
    redeem(running, &mut visitor, site, &back).await
}

/// A clinician opens the demo app from a record.
async fn ehr_launch(running: &Running, site: &str, scopes: &str) -> Launched {
    let filing = running.filings.iter().find(|filing| filing.app == DEMO && filing.plan.id == site).unwrap();
    let ehr = running.ehr(filing.hospital.host.trim_end_matches(".localhost")).unwrap();
    let patient = ehr.auth.patients().first().unwrap().id.clone();
    let order = LaunchOrder { client_id: filing.client_id.clone(), patient: Some(patient), ..LaunchOrder::default() };
    let url = ehr.launch(&order).unwrap().url.unwrap();
    let launch_page = format!("{}launch.html", running.demo_url);
    let mut visitor = Visitor::new().stop_at(&launch_page).stop_at(&running.redirect_uri());
    let opened = visitor.get(&url).await.unwrap();
    assert_eq!(opened.redirect_param("iss"), Some(running.site_base(site)), "{site}: {}", opened.text());
    let token = opened.redirect_param("launch").unwrap();
    let mut back = visitor.get(authorize(running, site, scopes, Some(&token)).as_str()).await.unwrap();
    if back.has_button("approve") {
        back = visitor.press(&back, "approve", &[]).await.unwrap();
    }
    let launched = redeem(running, &mut visitor, site, &back).await;
    assert_eq!(launched.text("patient"), order.patient.unwrap(), "{site}");
    launched
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patient_signs_in_and_the_demo_sees_the_ehrs_token_age() {
    let bench = bench(Options { fast: true, ..Options::default() }).await;
    let running = &bench.running;
    let launched = launch(
        running,
        "epic",
        "launch/patient openid fhirUser offline_access patient/Patient.rs patient/Procedure.rs",
    )
    .await;
    assert_eq!(launched.text("__site"), "epic");
    let granted: Vec<&str> = launched.text("scope").split(' ').collect();
    assert!(granted.contains(&"patient/Patient.rs") && !granted.contains(&"patient/Procedure.rs"), "{granted:?}");
    assert_eq!(
        launched.answer["__scopes_refused"],
        serde_json::json!([{"scope": "patient/Procedure.rs", "by": "registration"}])
    );

    let patient = launched.text("patient");
    let custody = get(&format!("{}custody.json?site=epic&patient={patient}", running.demo_url)).await;
    let view = &custody.json().unwrap()["custody"];
    assert_eq!(view["renewals"], 0);
    let time = |name: &str| view[name].as_i64().unwrap();
    assert_eq!(time("expires") - time("issued"), 30_000);
    assert_eq!(time("due") - time("issued"), 18_000, "40 % before its end");
    // Another's record has no grant.
    let other = get(&format!("{}custody.json?site=epic&patient=other", running.demo_url)).await;
    assert_eq!(other.json().unwrap()["custody"], Value::Null);

    let read = read(running, &format!("/sites/epic/fhir/r4/Patient/{patient}"), launched.text("access_token")).await;
    assert_eq!(read["name"][0]["family"], "Tremblay", "{read}");
    bench.running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hospital_is_launched_at_and_launches_however_strict() {
    const SCOPES: &str = "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs";
    let sorted = |text: &str| {
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words.sort_unstable();
        words
    };
    for strict in [false, true] {
        let bench = bench(Options { strict, ..Options::default() }).await;
        for site in ["epic", "oracle-patients", "athena", "athena-practice", "generic"] {
            let asked = format!("launch/patient {SCOPES}");
            let launched = launch(&bench.running, site, &asked).await;
            assert_eq!(sorted(launched.text("scope")), sorted(&asked), "{site}, strict: {strict}");
            assert!(!launched.text("patient").is_empty(), "{site}, strict: {strict}");
        }
        for site in ["epic", "oracle", "athena", "athena-practice", "generic"] {
            let asked = format!("launch {SCOPES}");
            let launched = ehr_launch(&bench.running, site, &asked).await;
            assert_eq!(sorted(launched.text("scope")), sorted(&asked), "{site}, strict: {strict}");
        }
    }
}

/// A FHIR read with a bearer, at Mantel.
async fn read(running: &Running, path: &str, bearer: &str) -> Value {
    let host = running.gateway_url.trim_start_matches("http://");
    let port = host.rsplit(':').next().unwrap();
    let request = Request::get(format!("http://127.0.0.1:{port}{path}"))
        .header(header::HOST, host)
        .header(header::AUTHORIZATION, format!("Bearer {bearer}"))
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let answer = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_app_is_filed_everywhere() {
    let app = App::new("my-app", "http://localhost:3000/callback", Some("http://localhost:3000/launch")).unwrap();
    let data = tempfile::tempdir().unwrap();
    let options = Options { apps: vec![app], data: Some(data.path().join("kept")), ..Options::default() };
    let bench = bench(options).await;
    let running = &bench.running;
    for (name, ehr) in &running.ehrs {
        let titles: Vec<String> = ehr
            .auth
            .state()
            .clients
            .values()
            .filter(|client| client.launch_url.is_some())
            .map(|c| c.title().into())
            .collect();
        assert!(titles.contains(&"my-app".to_owned()) && titles.contains(&"Hearth".to_owned()), "{name}: {titles:?}");
    }
    let written = std::fs::read_to_string(running.data_dir.join("mantel.toml")).unwrap();
    assert!(written.contains("[apps.my-app]") && written.contains("\"http://localhost:3000\""), "{written}");
    assert!(running.data_dir.join("sites.d/athenapractice.toml").exists());
    private(&running.data_dir.join("sites.d/epic.toml"));
    private(&running.data_dir.join("seal.key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_without_a_launch_url_is_filed_for_standalone_launches_alone() {
    let app = App::new("native", "com.example.native:/cb", None).unwrap().or_redirect("http://127.0.0.1/cb").unwrap();
    let bench = bench(Options { apps: vec![app], ..Options::default() }).await;
    let filed: Vec<&str> =
        bench.running.filings.iter().filter(|filing| filing.app == "native").map(|filing| filing.plan.id).collect();
    assert_eq!(filed, ["epic", "oracle-patients", "athena", "athena-practice", "generic"]);
}

/// Secrets stand there.
fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
}

#[test]
fn an_app_needs_a_name_and_addresses() {
    for (name, redirect, launch) in [
        ("", "http://localhost:3000/", None),
        ("My App", "http://localhost:3000/", None),
        (DEMO, "http://localhost:3000/", None),
        ("mine", "localhost", None),
        ("mine", "http://localhost:3000/", Some("nowhere")),
    ] {
        assert!(App::new(name, redirect, launch).is_err(), "{name:?} {redirect:?} {launch:?}");
    }
    let app = App::new("mine", "https://app.example.org/cb", None).unwrap();
    assert_eq!(app.origin.as_deref(), Some("https://app.example.org"));
    let native = App::new("native", "com.example.native:/cb", None).unwrap();
    assert_eq!(native.origin, None, "a custom scheme has no origin that a browser would send");
}

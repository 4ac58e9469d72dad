//! A Bundle of 100 MB passes the gateway's process, whose resident memory is read from the system.

use std::{convert::Infallible, net::Ipv4Addr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use mantel_tests::harness::{
    World,
    app::{App, Tokens, visitor},
    read,
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

const PATIENT: &str = "p-1";
/// One entry has some 1.3 kB.
const ENTRIES: usize = 80_000;
const SMALLEST: usize = 100_000_000;
/// Of growth while it passes, in kilobytes.
const MOST: u64 = 32 << 10;

type Body = BoxBody<Bytes, Infallible>;

/// An EHR that approves at once and whose every search finds 100 MB.
struct Endless {
    origin: String,
    // Dropping a set aborts its tasks.
    _tasks: JoinSet<()>,
}

impl Endless {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (mut tasks, ours) = (JoinSet::new(), origin.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let origin = ours.clone();
                let service = service_fn(move |request| {
                    let origin = origin.clone();
                    async move { Ok::<_, Infallible>(answer(&origin, &request)) }
                });
                connections.spawn(async move {
                    // A connection's end is the client's affair.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { origin, _tasks: tasks }
    }
}

fn answer(origin: &str, request: &Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    match request.uri().path() {
        "/fhir/.well-known/smart-configuration" => json_body(&json!({
            "issuer": origin,
            "authorization_endpoint": format!("{origin}/authorize"),
            "token_endpoint": format!("{origin}/token"),
            "capabilities": ["launch-standalone", "client-public", "context-standalone-patient", "permission-patient"],
            "code_challenge_methods_supported": ["S256"],
            "grant_types_supported": ["authorization_code"],
        })),
        "/authorize" => {
            let pairs = url::form_urlencoded::parse(query.as_bytes());
            let param =
                |name: &str| pairs.clone().find(|(known, _)| known == name).map(|(_, value)| value.into_owned());
            let back = url::Url::parse_with_params(
                &param("redirect_uri").unwrap_or_default(),
                [("code", "code-1"), ("state", &param("state").unwrap_or_default())],
            );
            let back = back.map(String::from).unwrap_or_default();
            let response = Response::builder().status(303).header("location", back);
            response.body(Full::new(Bytes::new()).boxed()).unwrap()
        }
        "/token" => json_body(&json!({
            "access_token": "an-access-token", "token_type": "Bearer", "expires_in": 3600, "patient": PATIENT,
            "scope": "launch/patient patient/Patient.read patient/Observation.read",
        })),
        path if path.starts_with("/fhir/Observation") => {
            let head = r#"{"resourceType":"Bundle","type":"searchset","total":80000,"entry":["#.to_owned();
            let entries = (0..ENTRIES).map(|number| entry(number, if number == 0 { "" } else { "," }));
            let chunks = std::iter::once(head).chain(entries).chain(std::iter::once("]}".to_owned()));
            let frames = stream::iter(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from(chunk)))));
            let response = Response::builder().header("content-type", "application/fhir+json");
            response.body(StreamBody::new(frames).boxed()).unwrap()
        }
        _ => Response::builder().status(404).body(Full::new(Bytes::new()).boxed()).unwrap(),
    }
}

fn entry(number: usize, comma: &str) -> String {
    let note = STANDARD.encode([number as u8; 780]);
    format!(
        r#"{comma}{{"fullUrl":"urn:uuid:o-{number}","resource":{{"resourceType":"Observation","id":"o-{number}","status":"final","code":{{"text":"A note"}},"subject":{{"reference":"Patient/{PATIENT}"}},"valueString":"{note}"}},"search":{{"mode":"match"}}}}"#
    )
}

fn json_body(value: &serde_json::Value) -> Response<Body> {
    let response = Response::builder().header("content-type", "application/json").header("cache-control", "no-store");
    response.body(Full::new(Bytes::from(value.to_string())).boxed()).unwrap()
}

/// A value of `/proc/PID/status`, in kilobytes.
fn resident(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

/// Reads as it comes and keeps nothing: length, and entries of the patient.
async fn drain(url: &str, token: &str) -> (u16, usize, usize) {
    let http: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder().uri(url).header("authorization", format!("Bearer {token}"));
    let mut answer = http.request(request.body(Full::default()).unwrap()).await.unwrap();
    let (mut length, mut entries, mut tail) = (0, 0, Vec::new());
    while let Some(frame) = answer.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        length += data.len();
        tail.extend_from_slice(&data);
        let mark = br#""id":"o-"#;
        entries += tail.windows(mark.len()).filter(|window| window == mark).count();
        // What may be the beginning of the next.
        let keep = tail.len().saturating_sub(mark.len() - 1);
        tail.drain(..keep);
    }
    (answer.status().as_u16(), length, entries)
}

async fn passes(inspect: &str) {
    let ehr = Endless::start().await;
    let site = format!(
        r#"
[sites.large]
vendor = "generic"
name = "Large hospital"
fhir_base_url = "{}/fhir"
registrations = ["large"]
allow_private = true
inspect = "{inspect}"

[registrations.large]
vendor = "generic"
apps = ["viewer"]
use = ["standalone"]
client_id = "viewer-at-large"
client_auth = {{ method = "none" }}
scopes = ["launch/patient", "patient/Patient.read", "patient/Observation.read"]
"#,
        ehr.origin
    );
    let world = World::start_with([], &site).await.unwrap();
    let base = format!("{}/sites/large/fhir/r4", world.gateway.public);
    let app = App::at(&base).await.unwrap().asking("launch/patient patient/Patient.read patient/Observation.read");
    let tokens = launch(&app).await;
    // What every process has once it has served.
    assert_eq!(read(&format!("{base}/Patient/other"), tokens.access()).await.unwrap().status, 403);
    let url = format!("{base}/Observation?patient={PATIENT}&_count=1");
    let pid = world.gateway.pid().unwrap();
    let before = resident(pid, "VmRSS");
    let (status, length, entries) = drain(&url, tokens.access()).await;
    assert_eq!((status, entries), (200, ENTRIES), "{inspect}: {}", world.gateway.log("events.log").unwrap());
    assert!(length >= SMALLEST, "{inspect}: {length} bytes");
    // The highest that there ever was, not what is left.
    let peak = resident(pid, "VmHWM");
    assert!(peak.saturating_sub(before) < MOST, "{inspect}: from {before} kB to {peak} kB");
}

async fn launch(app: &App) -> Tokens {
    let page = visitor().get(&app.url(&[]).unwrap()).await.unwrap();
    let back = page.redirect().unwrap_or_else(|| panic!("{} {}", page.status, page.text()));
    app.redeem(&app.code(&back).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_bundle_of_100_mb_streams_in_flat_memory() {
    passes("auto").await;
}

#[tokio::test]
async fn a_bundle_of_100_mb_is_inspected_in_flat_memory() {
    passes("always").await;
}

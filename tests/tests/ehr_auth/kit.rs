//! An app in a few lines.

use std::sync::OnceLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use mantel_tests::ehr::{
    auth::client::{Client, ClientAuth, ClientKeys},
    contract::Vendor,
    jwt::{SigningKey, Unverified, random, s256},
    server::{Options, Running, start},
    simulator::{Launch, LaunchOrder},
    visitor::{Page, Visitor},
};
use serde_json::{Value, json};
use url::Url;

pub const CALLBACK: &str = "http://app.test/callback";
/// With what a form-encoder must change.
pub const SECRET: &str = "s3cr+t: /%";

pub fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::generate("RS384").unwrap().with_kid("one"))
}

pub fn keys_of(key: &SigningKey) -> ClientKeys {
    ClientKeys::Jwks(json!({"keys": [key.public_jwk()]}))
}

/// A client that is opened at a launch URL.
pub fn client(id: &str, auth: ClientAuth) -> Client {
    Client { launch_url: Some("http://app.test/launch".into()), ..Client::new(id, auth, &[CALLBACK]) }
}

pub fn basic() -> ClientAuth {
    ClientAuth::ClientSecretBasic { secret: SECRET.into() }
}

/// An EHR with a public app, one with a secret and (where the vendor has them) one with a key.
pub async fn ehr(vendor: Vendor, strict: bool, change: impl FnOnce(&mut Options)) -> Running {
    let mut options = Options { strict, ..Options::new(vendor) };
    options.clients = vec![client("public", ClientAuth::None), client("secret", basic())];
    if vendor != Vendor::AthenaPractice {
        options.clients.push(client("key", ClientAuth::PrivateKeyJwt { keys: keys_of(key()) }));
    }
    change(&mut options);
    start(options).await.unwrap()
}

/// What came back from an endpoint.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self, member: &str) -> String {
        self.json()[member].as_str().unwrap_or_else(|| panic!("no {member} in {}", self.json())).to_owned()
    }

    pub fn error(&self) -> (u16, String) {
        (self.status.as_u16(), self.text("error"))
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        self
    }

    pub fn scopes(&self) -> Vec<String> {
        let mut scopes: Vec<String> = self.text("scope").split_whitespace().map(str::to_owned).collect();
        scopes.sort();
        scopes
    }
}

pub async fn try_call(method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> anyhow::Result<Answer> {
    let http: HttpClient<HttpConnector, Full<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = http.request(request.body(Full::new(Bytes::from(body.to_owned())))?).await?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

pub async fn call(method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    try_call(method, url, headers, body).await.unwrap()
}

pub async fn get(url: &str, headers: &[(&str, &str)]) -> Answer {
    call(Method::GET, url, headers, "").await
}

pub async fn post_form(url: &str, headers: &[(&str, &str)], pairs: &[(&str, &str)]) -> Answer {
    let mut all = vec![("content-type", "application/x-www-form-urlencoded")];
    all.extend_from_slice(headers);
    call(Method::POST, url, &all, &form(pairs)).await
}

pub fn form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Which endpoints a base names.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub authorize: String,
    pub token: String,
}

pub async fn discover(base: &str) -> Endpoints {
    let found = get(&format!("{base}/.well-known/smart-configuration"), &[]).await;
    if found.status == StatusCode::OK {
        return Endpoints { authorize: found.text("authorization_endpoint"), token: found.text("token_endpoint") };
    }
    let statement = get(&format!("{base}/metadata"), &[("accept", "application/fhir+json")]).await.ok().json();
    let extensions = statement["rest"][0]["security"]["extension"].as_array().unwrap().clone();
    let uris = extensions
        .iter()
        .find(|e| e["url"] == "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris")
        .unwrap();
    let uri = |name: &str| {
        let found = uris["extension"].as_array().unwrap().iter().find(|inner| inner["url"] == name);
        found.unwrap()["valueUri"].as_str().unwrap().to_owned()
    };
    Endpoints { authorize: uri("authorize"), token: uri("token") }
}

/// An app at a base of an EHR.
pub struct App {
    pub client_id: String,
    pub base: String,
    pub aud: String,
    pub at: Endpoints,
    pub verifier: String,
    pub scopes: String,
}

impl App {
    pub async fn new(client_id: &str, base: &str) -> Self {
        let aud = base.strip_suffix("/demoAPIServer/fhir/r4").map(|origin| format!("{origin}/demoAPIServer"));
        Self {
            client_id: client_id.to_owned(),
            base: base.to_owned(),
            aud: aud.unwrap_or_else(|| base.to_owned()),
            at: discover(base).await,
            verifier: random::<48>(),
            scopes: "openid fhirUser launch/patient offline_access patient/Patient.read patient/Observation.read"
                .into(),
        }
    }

    pub fn asking(mut self, scopes: &str) -> Self {
        scopes.clone_into(&mut self.scopes);
        self
    }

    /// The authorization request, with some parameters otherwise; an empty one is left out.
    pub fn request(&self, changes: &[(&str, &str)]) -> Vec<(String, String)> {
        let challenge = s256(&self.verifier);
        let mut pairs: Vec<(String, String)> = [
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", CALLBACK),
            ("scope", &self.scopes),
            ("state", "af0ifjsldkj"),
            ("aud", &self.aud),
            ("nonce", "n-0S6_WzA2Mj"),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        for (name, value) in changes {
            pairs.retain(|(known, _)| known != name);
            pairs.push(((*name).to_owned(), (*value).to_owned()));
        }
        pairs.retain(|(_, value)| !value.is_empty());
        pairs
    }

    pub fn url(&self, changes: &[(&str, &str)]) -> String {
        Url::parse_with_params(&self.at.authorize, self.request(changes)).unwrap().into()
    }

    pub async fn open(&self, changes: &[(&str, &str)]) -> (Visitor, Page) {
        let mut visitor = Visitor::new().stop_at(CALLBACK);
        let page = visitor.get(&self.url(changes)).await.unwrap();
        (visitor, page)
    }

    /// Signs in and approves: the redirect to the app.
    pub async fn approve(&self, username: &str) -> Page {
        let (mut visitor, page) = self.open(&[]).await;
        let consent = visitor.sign_in(&page, username).await.unwrap();
        visitor.press(&consent, "approve", &[]).await.unwrap()
    }

    pub async fn code(&self, username: &str) -> String {
        let back = self.approve(username).await;
        assert_eq!(back.redirect_param("state").as_deref(), Some("af0ifjsldkj"));
        back.redirect_param("code").unwrap()
    }

    /// The redirect that answers an EHR launch.
    pub async fn launched(&self, launch: &Launch) -> Page {
        self.open(&[("launch", &launch.launch)]).await.1
    }

    pub fn basic_header(&self, encode: bool) -> String {
        let part = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let (id, secret) =
            if encode { (part(&self.client_id), part(SECRET)) } else { (self.client_id.clone(), SECRET.into()) };
        format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")))
    }

    /// An assertion, with some claims otherwise (null: left out).
    pub fn assertion(&self, key: &SigningKey, changes: &Value) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({"iss": self.client_id, "sub": self.client_id, "aud": self.at.token, "jti": random::<16>(),
            "iat": now - 1, "exp": now + 200});
        for (name, value) in changes.as_object().into_iter().flatten() {
            claims[name.as_str()] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        key.sign(&claims, &Value::Null).unwrap()
    }

    /// A token request as this app authenticates.
    pub async fn token(&self, pairs: &[(&str, &str)]) -> Answer {
        let header = self.basic_header(true);
        let assertion = self.assertion(key(), &Value::Null);
        let mut pairs = pairs.to_vec();
        match self.client_id.as_str() {
            "secret" => return post_form(&self.at.token, &[("authorization", &header)], &pairs).await,
            "key" => pairs.extend([
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                ("client_assertion", &assertion),
            ]),
            _ => pairs.push(("client_id", &self.client_id)),
        }
        post_form(&self.at.token, &[], &pairs).await
    }

    pub async fn redeem(&self, code: &str) -> Answer {
        self.token(&self.redemption(code)).await
    }

    pub fn redemption<'a>(&'a self, code: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", &self.verifier),
        ]
    }

    /// The whole standalone launch.
    pub async fn launch(&self, username: &str) -> Answer {
        self.redeem(&self.code(username).await).await.ok()
    }

    pub async fn refresh(&self, refresh_token: &str) -> Answer {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", refresh_token)]).await
    }

    /// What the FHIR half says to this bearer.
    pub async fn read(&self, path: &str, bearer: &str) -> Answer {
        let bearer = format!("Bearer {bearer}");
        let headers = [("authorization", bearer.as_str()), ("accept", "application/fhir+json")];
        get(&format!("{}{path}", self.base), &headers).await
    }
}

/// Claims of a JWT whose signature the EHR's published keys confirm.
pub async fn verified(jwt: &str, jwks: &str) -> Value {
    let jwt = Unverified::parse(jwt).unwrap();
    let set = get(jwks, &[]).await.ok().json();
    let kid = jwt.text_header("kid").unwrap().to_owned();
    let key = set["keys"].as_array().unwrap().iter().find(|key| key["kid"] == kid.as_str()).unwrap().clone();
    jwt.verify("RS256", &key).unwrap();
    Value::Object(jwt.claims)
}

/// The FHIR half's first patient, and one who signs in as a patient.
pub fn patient(ehr: &Running) -> (String, String) {
    let first = &ehr.auth.patients()[0];
    let user = ehr.auth.users().into_iter().find(|user| user.fhir_id == first.id).unwrap();
    (first.id.clone(), user.username.clone())
}

pub fn clinician(ehr: &Running) -> String {
    ehr.auth.any_clinician().unwrap().username.clone()
}

pub fn order(client_id: &str, ehr: &Running) -> LaunchOrder {
    LaunchOrder {
        client_id: client_id.into(),
        patient: Some(patient(ehr).0),
        encounter: Some("enc-1".into()),
        ..LaunchOrder::default()
    }
}

/// Why the EHR last refused something; real ones do not say.
pub fn last_refusal(ehr: &Running) -> String {
    ehr.auth.refused().last().map(|refused| refused.why.clone()).unwrap_or_default()
}

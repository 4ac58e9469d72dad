//! A client of one simulated EHR, without a network.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mantel_tests::ehr::{
    contract::{Behaviour, Counters, FhirCall, Switches, TokenFacts, Vendor},
    fhir::{FhirServer, PRACTICE},
};
use serde_json::Value;

pub const NOW: i64 = 1_795_000_000_000;

pub struct Ehr {
    pub server: FhirServer,
    pub vendor: Vendor,
    pub counters: Counters,
    pub base: String,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One request, with what most requests have.
#[derive(Clone)]
pub struct Request {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    body: Bytes,
    token: Option<TokenFacts>,
    now: i64,
}

pub fn ehr(vendor: Vendor) -> Ehr {
    with(vendor, false, Switches::default())
}

pub fn strict(vendor: Vendor) -> Ehr {
    with(vendor, true, Switches::default())
}

pub fn with(vendor: Vendor, strict: bool, switches: Switches) -> Ehr {
    let origin = format!("http://{}.localhost:9100", vendor.text());
    let counters = Counters::default();
    let behaviour = Behaviour { vendor, strict, origin: origin.clone(), switches };
    let server = FhirServer::new(behaviour, counters.clone()).expect("the embedded patients load");
    let base = format!("{origin}{}", server.fhir_base_path());
    Ehr { server, vendor, counters, base }
}

pub fn token(scopes: &str, patient: Option<&str>) -> TokenFacts {
    TokenFacts {
        client_id: "app".to_owned(),
        scopes: scopes.split(' ').map(str::to_owned).collect(),
        patient: patient.map(str::to_owned),
        ..TokenFacts::default()
    }
}

impl Ehr {
    pub fn patient(&self) -> String {
        self.server.patients().first().expect("patients").id.clone()
    }

    pub fn other_patient(&self) -> String {
        self.server.patients().get(1).expect("patients").id.clone()
    }

    /// Asks with a token that opens everything; athenaOne's practice is added.
    pub fn get(&self, path: &str) -> Answer {
        self.send(&self.request("GET", path))
    }

    pub fn request(&self, method: &str, path: &str) -> Request {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (path.to_owned(), None),
        };
        let query = match (self.vendor, query) {
            (Vendor::Athena, Some(query)) => Some(format!("{query}&ah-practice=Organization/a-1.Practice-{PRACTICE}")),
            (Vendor::Athena, None) => Some(format!("ah-practice=Organization/a-1.Practice-{PRACTICE}")),
            (_, query) => query,
        };
        let request = Request {
            method: method.parse().expect("a method"),
            path,
            query,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            token: Some(token("user/*.cruds system/*.cruds", None)),
            now: NOW,
        };
        request.header("accept", "application/fhir+json")
    }

    pub fn send(&self, request: &Request) -> Answer {
        let request = request.clone();
        let answer = self.server.handle(FhirCall {
            method: request.method,
            path: request.path,
            query: request.query,
            headers: request.headers,
            body: request.body,
            token: request.token,
            now: request.now,
        });
        let (parts, body) = answer.into_parts();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// A link of a Bundle as the path of a request.
    pub fn below(&self, url: &str) -> String {
        url.strip_prefix(&self.base).unwrap_or_else(|| panic!("{url} is not below {}", self.base)).to_owned()
    }

    /// All matches of a search, page after page.
    pub fn all(&self, path: &str) -> Vec<Value> {
        let mut found = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let page = self.get(&path);
            assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text());
            found.extend(page.matches());
            next = page.link("next").map(|url| self.below(&url));
        }
        found
    }
}

impl Request {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    pub fn token(mut self, token: TokenFacts) -> Self {
        self.token = Some(token);
        self
    }

    pub fn scopes(self, scopes: &str, patient: &str) -> Self {
        self.token(token(scopes, Some(patient)))
    }

    pub fn no_token(mut self) -> Self {
        self.token = None;
        self
    }

    pub fn raw_query(mut self, query: &str) -> Self {
        self.query = Some(query.to_owned());
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.body("application/fhir+json", body.to_string())
    }

    pub fn body(mut self, media: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", media)
    }

    pub fn later(mut self, millis: i64) -> Self {
        self.now += millis;
        self
    }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a text header"))
    }

    pub fn entries(&self) -> Vec<Value> {
        self.json()["entry"].as_array().cloned().unwrap_or_default()
    }

    pub fn of_mode(&self, mode: &str) -> Vec<Value> {
        self.entries()
            .into_iter()
            .filter(|entry| entry["search"]["mode"] == mode)
            .map(|entry| entry["resource"].clone())
            .collect()
    }

    pub fn matches(&self) -> Vec<Value> {
        self.of_mode("match")
    }

    pub fn link(&self, relation: &str) -> Option<String> {
        let links = self.json()["link"].as_array().cloned().unwrap_or_default();
        links
            .iter()
            .find(|link| link["relation"] == relation)
            .map(|link| link["url"].as_str().expect("a URL").to_owned())
    }

    /// Epic's numbers, of an outcome or of a searchset's outcome entry.
    pub fn codes(&self) -> Vec<String> {
        let body = self.json();
        let outcome = match body["resourceType"].as_str() {
            Some("Bundle") => self.of_mode("outcome").first().cloned().unwrap_or_default(),
            _ => body,
        };
        outcome["issue"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|issue| issue["details"]["coding"][0]["code"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

pub fn ids(resources: &[Value]) -> Vec<String> {
    resources.iter().map(|resource| resource["id"].as_str().expect("an id").to_owned()).collect()
}

/// An observation that every vendor takes.
pub fn observation(patient: &str) -> Value {
    serde_json::json!({
        "resourceType": "Observation",
        "status": "final",
        "category": [{"coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/observation-category",
            "code": "vital-signs",
        }]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": format!("Patient/{patient}")},
        "effectiveDateTime": "2026-11-01T10:00:00Z",
    })
}

//! Under `patient/` at an EHR that does not confine: what is not the patient's does not leave.

use http::Method;
use serde_json::{Value, json};

use super::{
    ehr::{Ehr, Reply},
    gateway::{Gateway, PATIENT, PUBLIC, SITE},
};

fn observation(id: &str, patient: &str) -> Value {
    json!({"resourceType": "Observation", "id": id, "status": "final", "subject": {"reference": format!("Patient/{patient}")}})
}

async fn ehr() -> Ehr {
    Ehr::naming_itself(|base, call| {
        let below = call.below();
        if below.starts_with("/Observation?") {
            let entry = |id: &str, patient: &str| {
                json!({"fullUrl": format!("{base}/Observation/{id}"), "resource": observation(id, patient)})
            };
            let bundle = json!({
                "resourceType": "Bundle", "type": "searchset", "total": 3,
                "entry": [entry("o1", "p1"), entry("o2", "p2"), entry("o3", "p1")],
            });
            return Reply::fhir(200, &bundle);
        }
        match below {
            "/Observation/o1" => Reply::fhir(200, &observation("o1", "p1")).and("etag", "W/\"1\""),
            "/Observation/o2" => Reply::fhir(200, &observation("o2", "p2")).and("etag", "W/\"1\""),
            "/Observation/deleted" => Reply::status(410),
            "/Observation/locked" => Reply::status(403),
            "/Observation/moved" => Reply::status(302).and("location", &format!("{base}/Observation/o1")),
            "/Observation/empty" => Reply::status(200).and("etag", "W/\"1\""),
            "/Observation/xml" => Reply::with(200, &[("content-type", "application/fhir+xml")], "<Observation/>"),
            "/Observation/huge" => {
                let mut huge = observation("huge", "p2");
                huge["note"] = json!([{"text": "x".repeat(5 << 20)}]);
                Reply::fhir(200, &huge)
            }
            _ => Reply::fhir(404, &json!({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "not-found"}]})),
        }
    })
    .await
}

#[tokio::test]
async fn another_patients_entries_are_dropped_and_so_is_the_total() {
    let ehr = ehr().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    let bundle = client.get(&format!("{SITE}/Observation?code=x")).await.json();
    assert_eq!(bundle["entry"][0]["fullUrl"], format!("{PUBLIC}{SITE}/Observation/o1"));
    assert_eq!(bundle["entry"][1]["resource"]["id"], "o3");
    assert_eq!(bundle["entry"].as_array().unwrap().len(), 2);
    assert_eq!(bundle.get("total"), None);
    assert_eq!(ehr.targets(), ["/Observation?code=x&patient=p1"], "the search is confined to the patient");
}

#[tokio::test]
async fn what_is_not_the_patients_looks_like_what_is_not_there() {
    let ehr = ehr().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    assert_eq!(client.get(&format!("{SITE}/Observation/o1")).await.json()["id"], "o1");
    let nothing = client.get(&format!("{SITE}/Observation/nothing")).await;
    nothing.refused(404, "not-found");
    for id in ["o2", "deleted", "locked", "moved", "empty", "xml", "huge"] {
        let answer = client.get(&format!("{SITE}/Observation/{id}")).await;
        assert_eq!((answer.status, &answer.body), (nothing.status, &nothing.body), "{id}");
        let names = |headers: &http::HeaderMap| headers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&answer.headers), names(&nothing.headers), "{id}");
    }
}

#[tokio::test]
async fn conditions_and_head_are_no_oracle() {
    let ehr = ehr().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    let conditions = [("if-none-match", "W/\"1\""), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let head = client.send(Method::HEAD, &format!("{SITE}/Observation/o1"), &conditions, "").await;
    assert_eq!((head.status, head.body.as_deref()), (200, Some(&b""[..])));
    let other = client.send(Method::HEAD, &format!("{SITE}/Observation/o2"), &conditions, "").await;
    assert_eq!(other.status, 404);
    for call in ehr.calls() {
        assert_eq!(call.method, Method::GET, "HEAD is played as GET");
        assert_eq!((call.header("if-none-match"), call.header("if-modified-since")), (None, None));
    }
    let xml =
        client.send(Method::GET, &format!("{SITE}/Observation/o1"), &[("accept", "application/fhir+xml")], "").await;
    xml.refused(406, "not-supported");
}

#[tokio::test]
async fn another_patient_is_refused_before_the_ehr_is_asked() {
    let ehr = ehr().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    for target in ["/Patient/p2", "/Observation?patient=p2", "/Observation?subject=Patient/p2&patient=p1"] {
        client.get(&format!("{SITE}{target}")).await.refused(403, "forbidden");
    }
    assert_eq!(ehr.calls().len(), 0);
}

#[tokio::test]
async fn a_write_that_took_place_is_not_denied_though_its_answer_is_withheld() {
    let ehr =
        Ehr::start(|_| Reply::fhir(201, &observation("new", "p2")).and("location", "Observation/new/_history/1")).await;
    let gateway = Gateway::start(&ehr).await;
    let mut created = observation("x", "p1");
    created.as_object_mut().unwrap().remove("id");
    let answer = gateway.client(&PATIENT).await.post(&format!("{SITE}/Observation"), &created).await;
    assert_eq!((answer.status, answer.body.as_deref()), (201, Some(&b""[..])), "{answer:?}");
    assert_eq!(answer.header("location"), Some("Observation/new/_history/1"));
}

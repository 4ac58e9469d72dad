//! Writes, batches, and searches by POST, at EHRs that take them.

use http::Method;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{
        Answer, Ehr, World,
        app::{App, Tokens},
        call, read,
    },
};
use serde_json::{Value, json};

const JSON: &str = "application/fhir+json";
const WRITES: [&str; 2] = ["patient/Observation.write", "patient/Observation.cruds"];
const ASK: &str = "launch/patient openid fhirUser offline_access patient/Patient.read patient/Observation.read \
                   patient/Condition.read patient/Observation.write";

struct Writer {
    base: String,
    tokens: Tokens,
    patient: String,
    other: String,
}

impl Writer {
    async fn launch(world: &World, vendor: Vendor) -> Self {
        let (base, ehr) = (world.gateway.site_base(vendor), world.ehr(vendor));
        let tokens = App::at(&base).await.unwrap().asking(ASK).launch(ehr).await.unwrap_or_else(|error| {
            panic!(
                "{vendor:?}: {error:#}\nrefused: {:?}\n{}",
                ehr.auth.refused(),
                world.gateway.log("events.log").unwrap()
            )
        });
        let patient = tokens.text("patient").to_owned();
        let other = ehr.auth.patients().iter().map(|known| known.id.clone()).find(|id| *id != patient).unwrap();
        Self { base, tokens, patient, other }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.tokens.access());
        let mut all = vec![("authorization", bearer.as_str())];
        if !headers.iter().any(|(name, _)| *name == "content-type") && !body.is_null() {
            all.push(("content-type", JSON));
        }
        all.extend_from_slice(headers);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        call(method, &format!("{}{path}", self.base), &all, &body).await.unwrap()
    }

    async fn read(&self, path: &str) -> Answer {
        read(&format!("{}{path}", self.base), self.tokens.access()).await.unwrap()
    }

    fn observation(&self, patient: &str) -> Value {
        json!({
            "resourceType": "Observation",
            "status": "final",
            "category": [{"coding": [{
                "system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"
            }]}],
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
            "subject": {"reference": format!("Patient/{patient}")},
            "effectiveDateTime": "2026-10-01T10:00:00Z",
            "valueQuantity": {"value": 72, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
        })
    }

    /// The new Observation's path below the base.
    async fn created(&self, world: &World, vendor: Vendor) -> (String, Answer) {
        let answer = self.send(Method::POST, "/Observation", &[], &self.observation(&self.patient)).await;
        assert_eq!(
            answer.status,
            201,
            "{vendor:?}: {} scope {}\n{}",
            answer.text(),
            self.tokens.text("scope"),
            world.gateway.log("events.log").unwrap()
        );
        let location = answer.header("location").unwrap_or_else(|| panic!("{vendor:?}: no Location"));
        let path = location.strip_prefix(&self.base).unwrap_or_else(|| panic!("{vendor:?}: Location is {location}"));
        let path = path.split("/_history/").next().unwrap().to_owned();
        assert!(path.starts_with("/Observation/"), "{vendor:?}: {path}");
        (path, answer)
    }
}

async fn world(ehrs: impl IntoIterator<Item = Ehr>) -> World {
    World::start_scoped(ehrs, "", &WRITES).await.unwrap()
}

#[tokio::test]
async fn what_is_created_is_read_changed_and_deleted() {
    let world = world([Ehr::new(Vendor::Generic), Ehr::new(Vendor::Oracle)]).await;
    for vendor in [Vendor::Generic, Vendor::Oracle] {
        let writer = Writer::launch(&world, vendor).await;
        let (path, answer) = writer.created(&world, vendor).await;
        assert!(!answer.text().contains(&world.ehr(vendor).origin), "{vendor:?}: the EHR's URL shows");
        let found = writer.read(&path).await;
        assert_eq!(found.status, 200, "{vendor:?}: {}", found.text());
        let etag = found.header("etag").unwrap_or_else(|| panic!("{vendor:?}: no ETag")).to_owned();
        let mut body = found.json().unwrap();
        body["status"] = "amended".into();

        let stale = writer.send(Method::PUT, &path, &[("if-match", "W/\"999\"")], &body).await;
        assert!(matches!(stale.status.as_u16(), 409 | 412), "{vendor:?}: {} {}", stale.status, stale.text());
        let changed = writer.send(Method::PUT, &path, &[("if-match", &etag)], &body).await;
        assert_eq!(changed.status, 200, "{vendor:?}: {}", changed.text());
        let found = writer.read(&path).await;
        assert_eq!(found.json().unwrap()["status"], "amended", "{vendor:?}");
        assert_ne!(found.header("etag"), Some(etag.as_str()), "{vendor:?}");
    }
    // Patch and delete: the plain server has both.
    let writer = Writer::launch(&world, Vendor::Generic).await;
    let (path, _) = writer.created(&world, Vendor::Generic).await;
    let patch = json!([{"op": "replace", "path": "/status", "value": "corrected"}]);
    let kind = ("content-type", "application/json-patch+json");
    let patched = writer.send(Method::PATCH, &path, &[kind], &patch).await;
    assert_eq!(patched.status, 200, "{}", patched.text());
    assert_eq!(writer.read(&path).await.json().unwrap()["status"], "corrected");
    let deleted = writer.send(Method::DELETE, &path, &[], &Value::Null).await;
    assert!(matches!(deleted.status.as_u16(), 200 | 204), "{} {}", deleted.status, deleted.text());
    assert!(matches!(writer.read(&path).await.status.as_u16(), 404 | 410));
}

#[tokio::test]
async fn no_write_touches_another_patient() {
    let world = world([Ehr::new(Vendor::Generic), Ehr::new(Vendor::Oracle)]).await;
    for vendor in [Vendor::Generic, Vendor::Oracle] {
        let ehr = world.ehr(vendor);
        let writer = Writer::launch(&world, vendor).await;
        let (path, _) = writer.created(&world, vendor).await;
        let foreign = writer.observation(&writer.other);
        let mut moved = writer.read(&path).await.json().unwrap();
        moved["subject"]["reference"] = format!("Patient/{}", writer.other).into();
        let mut absolute = writer.observation(&writer.patient);
        absolute["subject"]["reference"] = format!("{}/Patient/{}", writer.base, writer.other).into();
        let mut nobody = writer.observation(&writer.patient);
        nobody.as_object_mut().unwrap().remove("subject");
        let mut wrong_type = writer.observation(&writer.patient);
        wrong_type["resourceType"] = "Condition".into();
        ehr.counters.reset();
        for (method, path, body) in [
            (Method::POST, "/Observation", &foreign),
            (Method::POST, "/Observation", &absolute),
            (Method::POST, "/Observation", &nobody),
            (Method::POST, "/Observation", &wrong_type),
            (Method::PUT, path.as_str(), &moved),
            (Method::PUT, "/Observation?status=final", &foreign),
        ] {
            let answer = writer.send(method.clone(), path, &[], body).await;
            assert!(
                matches!(answer.status.as_u16(), 400 | 403 | 404 | 422),
                "{vendor:?} {method} {path} {body}: {} {}",
                answer.status,
                answer.text()
            );
            assert_eq!(answer.json().unwrap()["resourceType"], "OperationOutcome", "{vendor:?}");
        }
        let steal =
            json!([{"op": "replace", "path": "/subject/reference", "value": format!("Patient/{}", writer.other)}]);
        let kind = ("content-type", "application/json-patch+json");
        let answer = writer.send(Method::PATCH, &path, &[kind], &steal).await;
        assert!((400..500).contains(&answer.status.as_u16()), "{vendor:?}: {} {}", answer.status, answer.text());
        // What was never granted.
        for (method, path) in
            [(Method::POST, "/Condition"), (Method::DELETE, "/Condition/x"), (Method::PUT, "/Patient/x")]
        {
            let answer = writer.send(method.clone(), path, &[], &json!({"resourceType": "Condition", "id": "x"})).await;
            assert!(matches!(answer.status.as_u16(), 400 | 403), "{vendor:?} {method} {path}: {}", answer.text());
        }
        let written: Vec<_> = ehr
            .counters
            .all()
            .into_keys()
            .filter(|name| {
                ["fhir:POST", "fhir:PUT", "fhir:PATCH", "fhir:DELETE"].iter().any(|verb| name.starts_with(verb))
            })
            .collect();
        assert!(written.is_empty(), "{vendor:?}: {written:?}");
        assert_eq!(
            writer.read(&path).await.json().unwrap()["subject"]["reference"],
            format!("Patient/{}", writer.patient),
            "{vendor:?}"
        );
    }
}

/// Oracle takes batches whole, Epic none: there it is played entry by entry. The app sees no difference.
#[tokio::test]
async fn a_batch_is_a_batch_at_each_vendor() {
    let world = World::start(Vendor::ALL.map(Ehr::new)).await.unwrap();
    for vendor in Vendor::ALL {
        let ehr = world.ehr(vendor);
        let base = world.gateway.site_base(vendor);
        let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
        let patient = tokens.text("patient");
        let other = ehr.auth.patients().iter().map(|known| known.id.clone()).find(|id| id != patient).unwrap();
        let get = |url: String| json!({"request": {"method": "GET", "url": url}});
        let bundle = json!({"resourceType": "Bundle", "type": "batch", "entry": [
            get(format!("Patient/{patient}")),
            get(format!("Condition?patient={patient}")),
            get(format!("Patient/{other}")),
            get(format!("Immunization?patient={patient}")),
            get("Observation/never".to_owned()),
        ]});
        ehr.counters.reset();
        let bearer = format!("Bearer {}", tokens.access());
        let headers = [("authorization", bearer.as_str()), ("content-type", JSON)];
        let answer = call(Method::POST, &base, &headers, &bundle.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{vendor:?}: {}", answer.text());
        let found = answer.json().unwrap();
        assert_eq!(
            (&found["resourceType"], &found["type"]),
            (&json!("Bundle"), &json!("batch-response")),
            "{vendor:?}"
        );
        let status =
            |n: usize| found["entry"][n]["response"]["status"].as_str().unwrap_or_default().get(..3).map(str::to_owned);
        assert_eq!(found["entry"].as_array().map(Vec::len), Some(5), "{vendor:?}: {found}");
        assert_eq!(status(0).as_deref(), Some("200"), "{vendor:?}: {found}");
        assert_eq!(found["entry"][0]["resource"]["id"], patient, "{vendor:?}");
        assert_eq!(status(1).as_deref(), Some("200"), "{vendor:?}: {found}");
        assert_eq!(found["entry"][1]["resource"]["type"], "searchset", "{vendor:?}");
        for n in [2, 3] {
            assert!(matches!(status(n).as_deref(), Some("403" | "404")), "{vendor:?} {n}: {found}");
            assert!(found["entry"][n].get("resource").is_none(), "{vendor:?} {n}: {found}");
        }
        assert!(matches!(status(4).as_deref(), Some("400" | "403" | "404")), "{vendor:?}: {found}");
        assert!(!answer.text().contains(&ehr.origin), "{vendor:?}: the EHR's URL shows");
        let posts = ehr.counters.all().keys().filter(|name| name.starts_with("fhir:POST")).count();
        if vendor == Vendor::Epic {
            assert_eq!(posts, 0, "Epic has no batch: {:?}", ehr.counters.all());
        }
        if vendor == Vendor::Oracle {
            assert_eq!(posts, 1, "Oracle takes it whole: {:?}", ehr.counters.all());
        }
    }
}

#[tokio::test]
async fn searches_by_post_and_with_includes() {
    let world = World::start(Vendor::ALL.map(Ehr::new)).await.unwrap();
    for vendor in Vendor::ALL {
        let ehr = world.ehr(vendor);
        let base = world.gateway.site_base(vendor);
        let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
        let patient = tokens.text("patient");
        let bearer = format!("Bearer {}", tokens.access());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        let search = async |body: String| {
            call(Method::POST, &format!("{base}/Observation/_search"), &headers, &body).await.unwrap()
        };
        let by_post = search(format!("patient={patient}&category=vital-signs")).await;
        assert_eq!(by_post.status, 200, "{vendor:?}: {}", by_post.text());
        let by_get =
            read(&format!("{base}/Observation?patient={patient}&category=vital-signs"), tokens.access()).await.unwrap();
        let ids = |answer: &Answer| {
            let mut ids: Vec<String> = answer.json().unwrap()["entry"]
                .as_array()
                .map(|entries| {
                    entries.iter().filter_map(|entry| entry["resource"]["id"].as_str().map(str::to_owned)).collect()
                })
                .unwrap_or_default();
            ids.sort();
            ids
        };
        assert!(!ids(&by_post).is_empty(), "{vendor:?}");
        assert_eq!(ids(&by_post), ids(&by_get), "{vendor:?}");
        let other = ehr.auth.patients().iter().map(|known| known.id.clone()).find(|id| id != patient).unwrap();
        let stolen = search(format!("patient={other}&category=vital-signs")).await;
        assert!(matches!(stolen.status.as_u16(), 403 | 404), "{vendor:?}: {} {}", stolen.status, stolen.text());
        let smuggled = search(format!("patient={patient}&access_token={}", tokens.access())).await;
        assert_eq!(smuggled.status, 400, "{vendor:?}: {}", smuggled.text());
    }
    // What is included is covered by the scopes as well, or it does not come.
    let base = world.gateway.site_base(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Generic)).await.unwrap();
    let patient = tokens.text("patient");
    let answer = read(&format!("{base}/Observation?patient={patient}&_include=Observation:patient"), tokens.access())
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let bundle = answer.json().unwrap();
    let included =
        bundle["entry"].as_array().unwrap().iter().any(|entry| entry["resource"]["resourceType"] == "Patient");
    assert!(included, "{bundle}");
    let answer = read(&format!("{base}/Observation?patient={patient}&_include=Observation:encounter"), tokens.access())
        .await
        .unwrap();
    if answer.status == 200 {
        assert!(!answer.text().contains("\"resourceType\":\"Encounter\""), "Encounter was not granted");
    } else {
        assert!(matches!(answer.status.as_u16(), 400 | 403), "{} {}", answer.status, answer.text());
    }
}

//! The FHIR road, at each vendor.

use mantel_tests::{
    ehr::contract::Vendor,
    harness::{Ehr, World, app::App, get, read},
};
use serde_json::Value;

fn entries(bundle: &Value) -> Vec<&Value> {
    bundle["entry"]
        .as_array()
        .map(|entries| entries.iter().filter(|entry| entry["search"]["mode"] != "outcome").collect())
        .unwrap_or_default()
}

async fn reads(make: fn(Vendor) -> Ehr) {
    let world = World::start(Vendor::ALL.map(make)).await.unwrap();
    for vendor in Vendor::ALL {
        let ehr = world.ehr(vendor);
        let base = world.gateway.site_base(vendor);
        let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
        let (token, patient) = (tokens.access(), tokens.text("patient"));
        for base in [base.clone(), world.gateway.uniform_base()] {
            let who = read(&format!("{base}/Patient/{patient}"), token).await.unwrap();
            assert_eq!(
                who.status,
                200,
                "{vendor:?} {base}: {}\n{}",
                who.text(),
                world.gateway.log("events.log").unwrap()
            );
            assert_eq!(who.json().unwrap()["id"], patient);
            assert!(
                who.header("content-type").unwrap().starts_with("application/fhir+json"),
                "{vendor:?}: {:?}",
                who.headers
            );
            assert_eq!(who.header("cache-control"), Some("no-store"));
            for hidden in ["set-cookie", "server", "x-powered-by"] {
                assert_eq!(who.header(hidden), None, "{vendor:?}");
            }
            assert!(!who.text().contains(&ehr.origin), "{vendor:?}: the EHR's URL shows");

            // Written as an app would write it that knows of no vendor's quirk.
            for query in [
                "Patient?_id={}",
                "Patient?patient={}",
                "Condition?patient={}",
                "Observation?patient={}",
                "Observation?category=vital-signs",
            ] {
                let url = format!("{base}/{}", query.replace("{}", patient));
                let found = read(&url, token).await.unwrap();
                assert_eq!(found.status, 200, "{vendor:?} {query}: {}", found.text());
                let bundle = found.json().unwrap();
                assert_eq!(bundle["type"], "searchset", "{vendor:?} {query}");
                assert!(!entries(&bundle).is_empty(), "{vendor:?} {query}: {bundle}");
                assert!(!found.text().contains(&ehr.origin), "{vendor:?} {query}: the EHR's URL shows");
            }
        }
        // Outside the scopes, and outside the patient.
        let refused = read(&format!("{base}/Immunization?patient={patient}"), token).await.unwrap();
        assert_eq!(refused.status, 403, "{vendor:?}: {}", refused.text());
        assert_eq!(refused.json().unwrap()["resourceType"], "OperationOutcome");
        let other = ehr.auth.patients().iter().map(|known| known.id.clone()).find(|id| id != patient).unwrap();
        for path in [
            format!("Patient/{other}"),
            format!("Observation?patient={other}"),
            format!("Observation?subject=Patient/{other}"),
            format!("Condition?patient={patient}&patient={other}"),
        ] {
            let refused = read(&format!("{base}/{path}"), token).await.unwrap();
            assert!(
                matches!(refused.status.as_u16(), 403 | 404),
                "{vendor:?} {path}: {} {}",
                refused.status,
                refused.text()
            );
        }
    }
}

#[tokio::test]
async fn reads_and_searches_at_each_vendor() {
    reads(Ehr::new).await;
}

#[tokio::test]
async fn reads_and_searches_at_each_strict_vendor() {
    reads(Ehr::strict).await;
}

#[tokio::test]
async fn paging_comes_back_through_the_gateway() {
    let world = World::start(Vendor::ALL.map(|vendor| Ehr::new(vendor).switch("page_size=5"))).await.unwrap();
    for vendor in Vendor::ALL {
        let base = world.gateway.site_base(vendor);
        let tokens = App::at(&base).await.unwrap().launch(world.ehr(vendor)).await.unwrap();
        let thief = App::with_secret(&base).await.unwrap().launch(world.ehr(vendor)).await.unwrap();
        let mut url =
            Some(format!("{base}/Observation?patient={}&category=vital-signs&_count=5", tokens.text("patient")));
        let (mut pages, mut ids) = (0, std::collections::BTreeSet::new());
        while let Some(next) = url {
            assert!(next.starts_with(&base), "{vendor:?}: {next}");
            let page = read(&next, tokens.access()).await.unwrap();
            assert_eq!(page.status, 200, "{vendor:?} page {pages}: {next} {}", page.text());
            let bundle = page.json().unwrap();
            ids.extend(entries(&bundle).iter().map(|entry| entry["resource"]["id"].as_str().unwrap().to_owned()));
            url = bundle["link"]
                .as_array()
                .and_then(|links| links.iter().find(|link| link["relation"] == "next"))
                .map(|link| link["url"].as_str().unwrap().to_owned());
            pages += 1;
            assert!(pages < 100, "{vendor:?}: no last page");
            // Another grant's link, where the link alone does not name our patient.
            if let Some(next) = url.as_deref().filter(|url| url.contains("_mantel=")) {
                let stolen = read(next, thief.access()).await.unwrap();
                assert_eq!(stolen.status, 403, "{vendor:?}: {}", stolen.text());
                let (bare, _) = next.split_once("_mantel=").unwrap();
                // A link that names type and patient is judged like any search.
                if bare.contains("patient=") {
                    continue;
                }
                let bare = read(bare.trim_end_matches(['&', '?']), tokens.access()).await.unwrap();
                assert!(matches!(bare.status.as_u16(), 400 | 403), "{vendor:?}: {}", bare.text());
            }
        }
        assert!(pages >= 3, "{vendor:?}: {pages} pages, {} observations", ids.len());
    }
}

#[tokio::test]
async fn tokens_open_their_own_base_only() {
    let world = World::start([Ehr::new(Vendor::Epic), Ehr::new(Vendor::Generic)]).await.unwrap();
    let epic =
        App::at(&world.gateway.site_base(Vendor::Epic)).await.unwrap().launch(world.ehr(Vendor::Epic)).await.unwrap();
    let elsewhere = format!("{}/Patient/{}", world.gateway.site_base(Vendor::Generic), epic.text("patient"));
    let refused = read(&elsewhere, epic.access()).await.unwrap();
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"));
    let bare = get(&elsewhere, &[]).await.unwrap();
    assert_eq!((bare.status.as_u16(), bare.header("www-authenticate")), (401, Some("Bearer")));
    let garbage = read(&elsewhere, "mtl_at_nonsense").await.unwrap();
    assert_eq!(garbage.status, 401);
}

#[tokio::test]
async fn paths_that_climb_are_refused_before_anything_is_sent() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let ehr = world.ehr(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
    ehr.counters.reset();
    for path in [
        "Patient/../Condition",
        "Patient/%2e%2e/Condition",
        "Patient%2F1",
        "Patient/1%00",
        "Patient/%5C",
        "Patient//1",
        "Patient/%ff",
    ] {
        let answer = read(&format!("{base}/{path}"), tokens.access()).await.unwrap();
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert_eq!(answer.json().unwrap()["resourceType"], "OperationOutcome", "{path}");
    }
    let token = read(&format!("{base}/Patient?access_token={}", tokens.access()), tokens.access()).await.unwrap();
    assert_eq!(token.status, 400);
    assert!(ehr.counters.all().keys().all(|name| !name.starts_with("fhir:")), "{:?}", ehr.counters.all());
}

#[tokio::test]
async fn metadata_is_public_and_ours() {
    let world = World::start(Vendor::ALL.map(Ehr::new)).await.unwrap();
    for base in
        Vendor::ALL.map(|vendor| world.gateway.site_base(vendor)).into_iter().chain([world.gateway.uniform_base()])
    {
        let found = get(&format!("{base}/metadata"), &[("origin", "https://any.example")]).await.unwrap();
        assert_eq!(found.status, 200, "{base}: {}", found.text());
        assert_eq!(found.header("access-control-allow-origin"), Some("*"));
        let statement = found.json().unwrap();
        assert_eq!(statement["resourceType"], "CapabilityStatement");
        assert!(found.text().contains("SMART-on-FHIR"), "{base}");
        // Inferno's STU1 discovery: the two documents agree, absent matching absent (conformance A4).
        let smart = get(&format!("{base}/.well-known/smart-configuration"), &[]).await.unwrap().json().unwrap();
        let security = &statement["rest"][0]["security"]["extension"];
        let uris =
            security.as_array().unwrap().iter().find(|one| one["url"].as_str().unwrap().ends_with("/oauth-uris"));
        let uris = uris.unwrap()["extension"].as_array().unwrap();
        for (uri, member) in [
            ("authorize", "authorization_endpoint"),
            ("token", "token_endpoint"),
            ("introspect", "introspection_endpoint"),
            ("revoke", "revocation_endpoint"),
            ("manage", "management_endpoint"),
            ("register", "registration_endpoint"),
        ] {
            let told = uris.iter().find(|one| one["url"] == uri).map(|one| &one["valueUri"]);
            assert_eq!(told, smart.get(member), "{base}: {uri}");
        }
        for ehr in world.ehrs.values() {
            assert!(!found.text().contains(&ehr.origin), "{base}: the EHR's URL shows");
        }
    }
}

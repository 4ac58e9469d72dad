//! Links to further pages.

use http::Method;
use serde_json::{Value, json};

use super::{
    ehr::{Ehr, Reply},
    gateway::{Gateway, PATIENT, PUBLIC, SITE, Setup, USER},
};

fn bundle(base: &str, patient: &str, next: Option<&str>) -> Value {
    let mut link = vec![json!({"relation": "self", "url": format!("{base}/Observation?patient=p1")})];
    link.extend(next.map(|next| json!({"relation": "next", "url": format!("{base}{next}")})));
    json!({
        "resourceType": "Bundle", "type": "searchset", "link": link,
        "entry": [{"resource": {
            "resourceType": "Observation", "id": "o", "status": "final", "subject": {"reference": format!("Patient/{patient}")},
        }}],
    })
}

/// The opaque URLs of two vendors; the second page holds another patient's data.
const SESSION: &str = "?_getpages=4a%2Bb%3D%3D&_offset=10";
const CURSOR: &str = "/Observation?sessionID=17-AB%7ccd";

async fn ehr(next: &'static str) -> Ehr {
    Ehr::naming_itself(move |base, call| {
        if call.below().contains("_getpages") || call.below().contains("sessionID") {
            return Reply::fhir(200, &bundle(base, "p2", Some(next)));
        }
        Reply::fhir(200, &bundle(base, "p1", Some(next)))
    })
    .await
}

fn next(bundle: &Value) -> String {
    let links = bundle["link"].as_array().unwrap();
    let next = links.iter().find(|link| link["relation"] == "next").unwrap()["url"].as_str().unwrap();
    next.strip_prefix(PUBLIC).unwrap().to_owned()
}

#[tokio::test]
async fn a_link_that_says_too_little_works_as_given_and_reaches_the_ehr_byte_for_byte() {
    for link in [SESSION, CURSOR] {
        let ehr = ehr(link).await;
        let gateway = Gateway::start(&ehr).await;
        let client = gateway.client(&USER).await;
        let first = client.get(&format!("{SITE}/Observation?patient=p1")).await.json();
        let next_page = next(&first);
        assert!(next_page.contains("_mantel="), "{next_page}");
        let second = client.get(&next_page).await;
        assert_eq!(second.status, 200, "{second:?}");
        let third = client.get(&next(&second.json())).await;
        assert_eq!(third.status, 200);
        assert_eq!(ehr.targets(), ["/Observation?patient=p1", link, link]);
    }
}

#[tokio::test]
async fn the_first_searchs_checks_apply_to_each_page() {
    let ehr = ehr(SESSION).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    let first = client.get(&format!("{SITE}/Observation?patient=p1")).await.json();
    assert_eq!(first["entry"].as_array().unwrap().len(), 1);
    let second = client.get(&next(&first)).await.json();
    assert_eq!(second.get("entry"), None, "another patient's");
    next(&second);
}

#[tokio::test]
async fn a_binding_opens_its_own_link_for_its_own_grant_only() {
    let ehr = ehr(SESSION).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let link = next(&client.get(&format!("{SITE}/Observation?patient=p1")).await.json());
    let calls = ehr.calls().len();
    let unbound = link.split("&_mantel=").next().unwrap().to_owned();
    for bad in [
        unbound.clone(),
        format!("{unbound}&_mantel=AAAA"),
        format!("{unbound}&_mantel="),
        link.replace("_offset=10", "_offset=11"),
        link.replace("_getpages=4a", "_getpages=4b"),
        format!("{link}&_count=1"),
        format!("{link}&_mantel=AAAA"),
    ] {
        client.get(&bad).await.refused(403, "forbidden");
    }
    let another = gateway.client(&USER).await;
    another.get(&link).await.refused(403, "forbidden");
    let posted = client.send(Method::DELETE, &link, &[], "").await;
    assert!((400..500).contains(&posted.status), "{posted:?}");
    assert_eq!(ehr.calls().len(), calls);
    assert_eq!(client.get(&link).await.status, 200);
}

#[tokio::test]
async fn a_link_that_says_enough_is_only_moved() {
    let ehr = ehr("/Observation?patient=p1&page=2").await;
    let gateway = Gateway::start(&ehr).await;
    for covers in [USER, PATIENT] {
        let client = gateway.client(&covers).await;
        let first = client.get(&format!("{SITE}/Observation?patient=p1")).await.json();
        assert_eq!(next(&first), format!("{SITE}/Observation?patient=p1&page=2"));
        assert_eq!(client.get(&next(&first)).await.status, 200);
    }
}

#[tokio::test]
async fn pages_of_histories_and_operations_are_bound_too() {
    for first in ["/Observation/o/_history", "/Patient/p1/$everything"] {
        let ehr = ehr(SESSION).await;
        let gateway = Gateway::start(&ehr).await;
        let client = gateway.client(&USER).await;
        let bundle = client.get(&format!("{SITE}{first}")).await.json();
        let page = client.get(&next(&bundle)).await;
        assert_eq!(page.status, 200, "{first}: {page:?}");
        assert_eq!(ehr.targets(), [first, SESSION]);
    }
}

#[tokio::test]
async fn links_of_a_searchset_within_a_batch_are_bound_as_if_it_had_come_by_itself() {
    for batches in [false, true] {
        let ehr = Ehr::naming_itself(|base, call| {
            let found = bundle(base, "p1", Some(SESSION));
            match call.method {
                Method::POST => Reply::fhir(
                    200,
                    &json!({"resourceType": "Bundle", "type": "batch-response", "entry": [
                        {"resource": found, "response": {"status": "200"}},
                    ]}),
                ),
                _ => Reply::fhir(200, &found),
            }
        })
        .await;
        let setup = Setup { site: format!("batch = {batches}"), ..Setup::default() };
        let gateway = Gateway::with(&ehr, setup).await;
        let client = gateway.client(&USER).await;
        let asked = json!({"resourceType": "Bundle", "type": "batch", "entry": [
            {"request": {"method": "GET", "url": "Observation?patient=p1"}},
        ]});
        let answer = client.post(SITE, &asked).await.json();
        let page = client.get(&next(&answer["entry"][0]["resource"])).await;
        assert_eq!(page.status, 200, "batches: {batches}");
        assert_eq!(ehr.targets().pop().as_deref(), Some(SESSION));
        let method = if batches { Method::POST } else { Method::GET };
        assert_eq!((ehr.calls().len(), &ehr.calls()[0].method), (2, &method));
    }
}

#[tokio::test]
async fn a_page_carries_what_the_profile_adds_though_the_vendors_link_drops_it() {
    let ehr = ehr(SESSION).await;
    let site = "tenant = \"t1\"\nquery = { practice = \"{tenant}\" }";
    let gateway = Gateway::with(&ehr, Setup { site: site.into(), ..Setup::default() }).await;
    let client = gateway.client(&USER).await;
    let first = client.get(&format!("{SITE}/Observation?patient=p1")).await.json();
    assert_eq!(client.get(&next(&first)).await.status, 200);
    assert_eq!(ehr.targets(), ["/Observation?patient=p1&practice=t1", &format!("{SESSION}&practice=t1")]);
}

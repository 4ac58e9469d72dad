//! The EHR's own pages: the home page that launches apps, and what a user can end.

use http::StatusCode;
use mantel_tests::ehr::{
    auth::client::Client, auth::client::ClientAuth, contract::Vendor, server::Options, visitor::Visitor,
};
use url::Url;

use crate::kit::*;

#[tokio::test]
async fn a_clinician_opens_an_app_from_the_home_page() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor, false, |_| {}).await;
        let mut visitor = Visitor::new().stop_at("http://app.test/");
        let sign_in = visitor.get(&format!("{}/", ehr.origin)).await.unwrap();
        let username = clinician(&ehr);
        assert!(sign_in.has_button(&format!("account-{username}")), "{}", sign_in.text());
        let home = visitor.press(&sign_in, &format!("account-{username}"), &[]).await.unwrap();
        let id = patient(&ehr).0;
        let record = visitor.press(&home, "choose", &[("patient", &id)]).await.unwrap();
        let opened = visitor.press(&record, "launch-public", &[]).await.unwrap();
        let to = opened.redirect().unwrap();
        let launch = to.query_pairs().find(|(name, _)| name == "launch").unwrap().1.into_owned();
        assert!(to.query_pairs().any(|(name, value)| name == "iss" && value == ehr.fhir_base));
        let scopes = "launch user/Patient.read patient/Patient.read";
        let app = App::new("public", &ehr.fhir_base).await.asking(scopes);
        let code = app.open(&[("launch", &launch)]).await.1.redirect_param("code").unwrap();
        let body = app.redeem(&code).await.ok().json();
        assert_eq!(body["patient"], id.as_str(), "{vendor:?}");
        assert!(body["encounter"].is_string(), "the latest one is preselected");
        // And inside the EHR's page.
        let framed = visitor.press(&record, "launch-frame-public", &[]).await.unwrap();
        assert!(framed.url.as_str().starts_with(&format!("{}/portal?frame=1", ehr.origin)));
        assert!(framed.text().contains(r#"<iframe id="app""#));
        assert!(framed.text().contains(r#"src="http://app.test/launch?iss="#));
        // Signed out.
        visitor.get(&format!("{}/sign-out", ehr.origin)).await.unwrap();
        assert!(visitor.get(&format!("{}/", ehr.origin)).await.unwrap().has_button("sign-in"));
    }
}

#[tokio::test]
async fn names_from_outside_are_text_in_pages() {
    let evil = r#""><script>alert(1)</script>"#;
    let ehr = ehr(Vendor::Generic, false, |options| {
        options.clients.push(Client { name: evil.into(), ..client("evil", ClientAuth::None) });
    })
    .await;
    let app = App::new("evil", &ehr.fhir_base).await;
    let (mut visitor, page) = app.open(&[]).await;
    let consent = visitor.sign_in(&page, &patient(&ehr).1).await.unwrap();
    for page in [page, consent] {
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.text().contains("&lt;script&gt;") && !page.text().contains("<script"));
    }
}

#[tokio::test]
async fn users_end_what_they_allowed() {
    let ehr = ehr(Vendor::Generic, false, |options| {
        options.clients.push(Client {
            post_logout_redirect_uris: vec!["http://app.test/bye".into()],
            ..client("leaver", ClientAuth::None)
        });
    })
    .await;
    let app = App::new("leaver", &ehr.fhir_base).await;
    let (mut visitor, page) = app.open(&[]).await;
    let consent = visitor.sign_in(&page, &patient(&ehr).1).await.unwrap();
    let back = visitor.press(&consent, "approve", &[]).await.unwrap();
    let answer = app.redeem(&back.redirect_param("code").unwrap()).await.ok();
    let manage = visitor.get(&format!("{}/auth/manage", ehr.origin)).await.unwrap();
    assert!(manage.has_button("end-1"), "{}", manage.text());
    visitor.press(&manage, "end-1", &[]).await.unwrap();
    assert_eq!(app.refresh(&answer.text("refresh_token")).await.error(), (400, "invalid_grant".into()));
    // Sign-out leads back only to registered places.
    let mut visitor = Visitor::new().stop_at("http://app.test/").stop_at("http://evil.test/");
    let out = format!("{}/sign-out?state=s&post_logout_redirect_uri=", ehr.origin);
    let good = visitor.get(&format!("{out}http%3A%2F%2Fapp.test%2Fbye")).await.unwrap();
    assert_eq!(good.redirect().unwrap(), Url::parse("http://app.test/bye?state=s").unwrap());
    assert!(visitor.get(&format!("{out}http%3A%2F%2Fevil.test%2F")).await.unwrap().redirect().is_none());
}

#[test]
fn switches_are_read_or_refused() {
    let mut options = Options::new(Vendor::Epic);
    for good in [
        "rotation=rolling",
        "access_lifetime=60",
        "refresh_lifetime=600",
        "odd_scopes=off",
        "page_size=5",
        "fhir_user_fails=true",
    ] {
        options.switch(good).unwrap();
    }
    assert_eq!(options.switches.access_lifetime, Some(60));
    for bad in ["rotation=spinning", "rotation", "odd_scopes=maybe", "nothing=1", "page_size=-1"] {
        assert!(options.switch(bad).is_err(), "{bad}");
    }
}

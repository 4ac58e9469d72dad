//! Launches, at each vendor, strict and not.

use mantel_tests::{
    ehr::{contract::Vendor, simulator::LaunchOrder},
    harness::{
        APP, Ehr, World,
        app::{App, through, visitor},
    },
};

/// Standalone on the site's base and, through the organization page, on the uniform base.
async fn standalone(make: fn(Vendor) -> Ehr) {
    let world = World::start(Vendor::ALL.map(make)).await.unwrap();
    for vendor in Vendor::ALL {
        let ehr = world.ehr(vendor);
        let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
        let tokens = app.launch(ehr).await.unwrap_or_else(|error| {
            panic!(
                "{vendor:?}: {error:#}\nrefused: {:?}\n{}",
                ehr.auth.refused(),
                world.gateway.log("events.log").unwrap()
            )
        });
        assert_eq!(tokens.text("__site"), vendor.text());
        assert_eq!(tokens.text("token_type"), "Bearer");
        assert!(tokens.0["expires_in"].as_u64().unwrap() > 60, "{vendor:?}");
        assert!(!tokens.text("patient").is_empty(), "{vendor:?}: {tokens:?}");
        assert!(
            tokens.text("scope").split(' ').any(|scope| scope == "patient/Patient.read"),
            "{vendor:?}: {}",
            tokens.text("scope")
        );

        let uniform = App::at(&world.gateway.uniform_base()).await.unwrap();
        let mut visitor = visitor();
        let page = visitor.get(&uniform.url(&[]).unwrap()).await.unwrap();
        let choice = format!("{}?organization={}", page.url, vendor.text());
        assert!(page.text().contains(&format!("organization={}", vendor.text())), "{}", page.text());
        let page = visitor.get(&choice).await.unwrap();
        let back = through(&mut visitor, ehr, page).await.unwrap();
        let tokens = uniform.redeem(&uniform.code(&back).unwrap()).await.unwrap();
        assert_eq!(tokens.text("__site"), vendor.text());
        assert_eq!(tokens.text("__fhir_base"), world.gateway.site_base(vendor));
    }
}

#[tokio::test]
async fn standalone_at_each_vendor() {
    standalone(Ehr::new).await;
}

#[tokio::test]
async fn standalone_at_each_strict_vendor() {
    standalone(Ehr::strict).await;
}

#[tokio::test]
async fn ehr_launch_at_each_vendor() {
    let world = World::start(Vendor::ALL.map(Ehr::new)).await.unwrap();
    for vendor in Vendor::ALL {
        let ehr = world.ehr(vendor);
        let base = world.gateway.staff_base(vendor);
        let app = App::at(&base)
            .await
            .unwrap()
            .asking("launch openid fhirUser offline_access patient/Patient.read patient/Observation.read");
        let order = LaunchOrder {
            client_id: format!("{APP}-at-{}", vendor.text()),
            patient: Some(ehr.auth.patients()[0].id.clone()),
            ..LaunchOrder::default()
        };
        let launch = ehr.launch(&order).unwrap();
        let tokens = app.ehr_launch(ehr, launch.url.as_deref().unwrap()).await.unwrap_or_else(|error| {
            panic!(
                "{vendor:?}: {error:#}\nrefused: {:?}\n{}",
                ehr.auth.refused(),
                world.gateway.log("events.log").unwrap()
            )
        });
        assert!(!tokens.text("patient").is_empty(), "{vendor:?}");
        assert!(tokens.0["need_patient_banner"].is_boolean(), "{vendor:?}: {tokens:?}");
        assert!(tokens.text("smart_style_url").starts_with("http"), "{vendor:?}");
    }
}

#[tokio::test]
async fn the_identity_is_ours_and_stable() {
    let world = World::start([Ehr::new(Vendor::Epic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Epic);
    let app = App::at(&base).await.unwrap();
    let first = app.launch(world.ehr(Vendor::Epic)).await.unwrap().claims().unwrap();
    assert_eq!(first["iss"], world.gateway.public);
    assert_eq!(first["aud"], APP);
    assert_eq!(first["nonce"], app.nonce);
    assert!(first["fhirUser"].as_str().unwrap().starts_with(&format!("{base}/Patient/")), "{first}");
    let again = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Epic)).await.unwrap().claims().unwrap();
    assert_eq!(again["sub"], first["sub"]);
}

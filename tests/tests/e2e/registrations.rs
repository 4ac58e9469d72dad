//! How the gateway authenticates at an EHR with keys: the EHR fetches the set that we publish.

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mantel_tests::{
    ehr::{
        auth::client::{Client, ClientAuth, ClientKeys},
        contract::Vendor,
    },
    harness::{APP, Ehr, LAUNCH_URL, SCOPES, World, app::App, get},
};

pub fn pem() -> String {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let text = STANDARD.encode(der.as_ref());
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

#[tokio::test]
async fn a_key_set_of_ours_signs_in_at_the_strictest() {
    let mut world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let public = world.gateway.public.clone();
    // What an operator does: a key set, and the registration names it.
    let dir = world.gateway.dir().to_owned();
    std::fs::write(dir.join("epic.pem"), pem()).unwrap();
    let site = dir.join("sites.d/epic.toml");
    let text = std::fs::read_to_string(&site).unwrap();
    let secret = text.lines().find(|line| line.starts_with("client_auth")).unwrap().to_owned();
    let text = text.replacen(&secret, "client_auth = { method = \"private_key_jwt\", keys = \"epic-test\" }", 1);
    let keys = "\n[keys.epic-test]\nalg = \"RS384\"\nprivate = [{ file = \"../epic.pem\", state = \"sign\" }]\n";
    std::fs::write(&site, text + keys).unwrap();
    let ehr = &world.ehrs[&Vendor::Epic];
    let callback = format!("{public}/oauth/callback/{APP}-epic");
    let auth = ClientAuth::PrivateKeyJwt { keys: ClientKeys::JwksUrl(format!("{public}/keys/epic-test.json")) };
    ehr.auth
        .register(Client {
            launch_url: Some(LAUNCH_URL.into()),
            scopes: SCOPES.map(str::to_owned).to_vec(),
            ..Client::new(&format!("{APP}-at-epic"), auth, &[&callback])
        })
        .unwrap();
    world.gateway.kill().unwrap();
    world.gateway.spawn().await.unwrap();

    let set = get(&format!("{public}/keys/epic-test.json"), &[]).await.unwrap();
    let set = set.json().unwrap();
    let key = &set["keys"][0];
    assert_eq!((key["kty"].as_str(), key["alg"].as_str()), (Some("RSA"), Some("RS384")), "{set}");
    assert!(key.get("d").is_none(), "a private member is published");
    let ehr = world.ehr(Vendor::Epic);
    let app = App::at(&world.gateway.site_base(Vendor::Epic)).await.unwrap();
    let tokens = app.launch(ehr).await.unwrap_or_else(|error| panic!("{error:#}: {:?}", ehr.auth.refused()));
    assert!(!tokens.text("patient").is_empty());
}

#[tokio::test]
async fn a_provider_without_a_patient_is_told_so_and_the_app_is_refused() {
    // Epic names no patient to a provider who signs in outside a chart.
    let world = World::start([Ehr::new(Vendor::Epic).switch("provider_picker=false")]).await.unwrap();
    let ehr = world.ehr(Vendor::Epic);
    let app = App::at(&world.gateway.site_base(Vendor::Epic)).await.unwrap();
    let mut visitor = mantel_tests::harness::app::visitor();
    let clinician = ehr.auth.any_clinician().unwrap().username.clone();
    let mut page = visitor.get(&app.url(&[]).unwrap()).await.unwrap();
    page = visitor.sign_in(&page, &clinician).await.unwrap();
    if page.has_button("approve") {
        page = visitor.press(&page, "approve", &[]).await.unwrap();
    }
    assert_eq!(page.url.path(), format!("/oauth/callback/{APP}-epic"), "{}", page.text());
    assert!(page.text().contains("No patient was chosen"), "{}", page.text());
    assert!(page.text().contains("error=access_denied"), "the way back tells the app: {}", page.text());
    assert!(page.text().contains(&format!("state={}", app.state)), "{}", page.text());
}

//! id_tokens of each vendor: the issuer that its profile pins, and who uses the app.

use std::collections::BTreeMap;

use mantel_adapters::{
    profile::{PatientSource, Profile},
    smart::{
        claims::{ClaimFault, Expected, FhirUser, IdTokenClaims, IssuerRule, issuer_expected, patient},
        discovery::{Endpoints, parse_smart_configuration, resolve},
        token::parse_answer,
    },
};
use serde_json::{Value, json};

use crate::support::{bytes, json as document, profile, url};

const ORACLE: &str = "https://fhir-ehr-code.cerner.com/r4/ec2458f2-1e24-41c8-b71b-0e701af7583d";
const EPIC: &str = "https://fhir.epic.com/interconnect-fhir-oauth/api/FHIR/R4";
const ATHENA: &str = "https://api.platform.athenahealth.com/fhir/r4";

fn endpoints(profile: &Profile, file: &str, base: &str) -> Endpoints {
    let base = url(base);
    let (smart, _) = parse_smart_configuration(&bytes("discovery", file), &base).unwrap();
    resolve(&base, profile, Some(&smart), None).unwrap()
}

fn rule(vendor: &str) -> IssuerRule {
    let (file, base) = match vendor {
        "epic" => ("epic.smart-configuration.json", EPIC),
        "oracle" => ("oracle-provider.smart-configuration.json", ORACLE),
        "athena" => ("athenahealth.smart-configuration.json", ATHENA),
        _ => ("smart-ig-2.2.smart-configuration.json", "https://ehr.example.com/fhir"),
    };
    let profile = profile(vendor);
    issuer_expected(&profile, &endpoints(&profile, file, base), base)
}

fn claims(value: Value) -> IdTokenClaims {
    serde_json::from_value(value).unwrap()
}

#[test]
fn each_vendor_has_its_issuer() {
    const TENANT: &str = "https://authorization.cerner.com/tenants/ec2458f2-1e24-41c8-b71b-0e701af7583d";
    let ok = |vendor: &str, iss: &str| rule(vendor).check(iss);
    let wrong = Err(ClaimFault::Issuer);
    let rows = [
        ("epic", "https://fhir.epic.com/interconnect-fhir-oauth/oauth2".to_owned(), Ok(())),
        ("epic", "https://fhir.epic.com/interconnect-fhir-oauth/oauth2/".to_owned(), wrong),
        ("epic", EPIC.to_owned(), wrong),
        ("oracle", format!("{TENANT}/oidc/idsps/ec2458f2-1e24-41c8-b71b-0e701af7583d/"), Ok(())),
        ("oracle", format!("{TENANT}/oidc/idsps//"), wrong),
        ("oracle", format!("{TENANT}/oidc/idsps/../evil/"), wrong),
        ("oracle", TENANT.to_owned(), wrong),
        ("oracle", "https://authorization.cerner.com/tenants/other/oidc/idsps/1/".to_owned(), wrong),
        ("athena", "https://athena.okta.com/oauth2/aus2hff5eqFb7Wqfh297".to_owned(), Ok(())),
        ("athena", ATHENA.to_owned(), wrong),
        ("generic", "https://ehr.example.com".to_owned(), Ok(())),
    ];
    for (vendor, iss, expected) in rows {
        assert_eq!(ok(vendor, &iss), expected, "{vendor} {iss}");
    }
}

#[test]
fn an_issuer_that_nobody_named_is_unknown() {
    let base = url("https://ehr.example/emr/fhir/r4");
    let mut profile = profile("athena-practice");
    profile.endpoints.authorize = Some("https://ehr.example/emr/authorize".into());
    profile.endpoints.token = Some("https://ehr.example/emr/token".into());
    let endpoints = resolve(&base, &profile, None, None).unwrap();
    let rule = issuer_expected(&profile, &endpoints, base.as_str());
    assert_eq!(rule.check("https://ehr.example/emr"), Err(ClaimFault::UnknownIssuer));
    // A `*` in the place of a host would let anybody be the issuer.
    profile.id_token.issuer = "https://*".into();
    assert_eq!(issuer_expected(&profile, &endpoints, base.as_str()), IssuerRule::Unknown);
    profile.id_token.issuer = "{base}/*".into();
    let rule = issuer_expected(&profile, &endpoints, base.as_str());
    assert_eq!(rule.check("https://ehr.example/emr/fhir/r4/a/b"), Ok(()));
    assert_eq!(rule.check("https://ehr.example/emr/fhir/r4/a?b"), Err(ClaimFault::Issuer));
}

/// The id_tokens that Epic and Oracle document.
#[test]
fn documented_id_tokens_are_accepted() {
    let documented = document("tokens", "launch-and-callback.json");
    let bases = BTreeMap::from([("epic", EPIC), ("oracle", ORACLE)]);
    let mut seen = 0;
    for token in documented["id_token_claims"].as_array().unwrap() {
        let vendor = token["vendor"].as_str().unwrap();
        let claims = claims(token["claims"].clone());
        let client_id = claims.aud.first().unwrap().clone();
        let issuer = rule(vendor);
        let expected =
            Expected { issuer: &issuer, client_id: &client_id, nonce: None, now: claims.exp - 60, leeway: 0 };
        assert_eq!(claims.check(&expected), Ok(()), "{vendor}");
        let user = FhirUser::parse(claims.fhir_user.as_deref().unwrap(), &url(bases[vendor])).unwrap();
        assert_eq!((user.resource_type, user.here), ("Practitioner", true), "{vendor}");
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn claims_are_checked_one_by_one() {
    let issuer = IssuerRule::Exact("https://ehr.example".into());
    let good = json!({"iss": "https://ehr.example", "sub": "1", "aud": ["us", "them"], "azp": "us", "exp": 1000, "iat": 900, "nonce": "n"});
    let expected = Expected { issuer: &issuer, client_id: "us", nonce: Some("n"), now: 950, leeway: 10 };
    let with = |member: &str, value: Value| {
        let mut changed = good.clone();
        changed[member] = value;
        claims(changed).check(&expected)
    };
    assert_eq!(with("sub", json!("2")), Ok(()));
    assert_eq!(with("iss", json!("https://ehr.example/")), Err(ClaimFault::Issuer));
    assert_eq!(with("aud", json!("them")), Err(ClaimFault::Audience));
    assert_eq!(with("azp", json!("them")), Err(ClaimFault::AuthorizedParty));
    assert_eq!(with("exp", json!(940)), Err(ClaimFault::Expired));
    assert_eq!(with("exp", json!(941.5)), Ok(()));
    assert_eq!(with("iat", json!(961)), Err(ClaimFault::IssuedInFuture));
    assert_eq!(with("nonce", json!("m")), Err(ClaimFault::Nonce));
    assert_eq!(with("nonce", json!(null)), Err(ClaimFault::Nonce));
    for (member, value) in [("iss", json!(1)), ("sub", json!("")), ("aud", json!([1])), ("exp", json!("soon"))] {
        let mut broken = good.clone();
        broken[member] = value;
        assert!(serde_json::from_value::<IdTokenClaims>(broken).is_err(), "{member}");
    }
}

#[test]
fn fhir_users_in_every_spelling() {
    let base = url(EPIC);
    let user = |text: &str| FhirUser::parse(text, &base).map(|user| (user.resource_type, user.id, user.here));
    let practitioner = |here| Some(("Practitioner", "ex-1".to_owned(), here));
    assert_eq!(user("Practitioner/ex-1"), practitioner(true));
    assert_eq!(user(&format!("{EPIC}/Practitioner/ex-1")), practitioner(true));
    assert_eq!(
        user("https://FHIR.epic.com/interconnect-fhir-oauth/oauth2/api/FHIR/R4/Practitioner/ex-1"),
        practitioner(true)
    );
    assert_eq!(user("https://other.example/fhir/Practitioner/ex-1"), practitioner(false));
    assert_eq!(user(&format!("{EPIC}/Practitioner/ex-1/_history/2")), practitioner(true));
    for no_user in ["Practitioner", "Observation/1", "Practitioner/a b", "Practitioner/1?x=y", "", "ex-1"] {
        assert_eq!(user(no_user), None, "{no_user}");
    }
}

#[test]
fn the_patient_is_found_where_the_profile_says() {
    let base = url("https://ehr.example/fhir");
    let answer = |extra: &str| parse_answer(200, None, format!(r#"{{"access_token":"a"{extra}}}"#).as_bytes()).unwrap();
    let id_token = |fhir_user: &str| {
        claims(json!({"iss": "i", "sub": "s", "aud": "a", "exp": 1, "fhirUser": fhir_user, "local_patient_id": "7"}))
    };
    let usual = [PatientSource::Patient, PatientSource::FhirUser];
    let claim = [PatientSource::Claim("local_patient_id".into())];
    let found = |extra, id_token: Option<&IdTokenClaims>, from: &[PatientSource]| {
        patient(&answer(extra), id_token, from, &base)
    };

    assert_eq!(found(r#","patient":"1""#, Some(&id_token("Patient/2")), &usual).as_deref(), Some("1"));
    assert_eq!(found("", Some(&id_token("Patient/2")), &usual).as_deref(), Some("2"));
    assert_eq!(found("", Some(&id_token("https://ehr.example/fhir/Patient/2")), &usual).as_deref(), Some("2"));
    // A patient of another server has an id that is somebody else's here; a clinician is no patient.
    assert_eq!(found("", Some(&id_token("https://other.example/fhir/Patient/2")), &usual), None);
    assert_eq!(found("", Some(&id_token("Practitioner/2")), &usual), None);
    assert_eq!(found("", None, &usual), None);
    assert_eq!(found("", Some(&id_token("Practitioner/2")), &claim).as_deref(), Some("7"));
    assert_eq!(found(r#","local_patient_id":"Patient/8""#, None, &claim).as_deref(), Some("8"));
}

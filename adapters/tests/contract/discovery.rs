//! Every discovery document in the fixtures: its named fault, or what is tolerated in it on purpose.

use mantel_adapters::{
    profile::{DiscoverySource, Profile},
    smart::discovery::{
        DiscoveryFault as Fault, EndpointName, Endpoints, Oddity, ResolveFault, held, parse_capability_statement,
        parse_openid_configuration, parse_smart_configuration, resolve,
    },
};

use crate::support::{assert_covered, bytes, json, profile, url};

const EHR: &str = "https://ehr.example/fhir/r4";
const ORACLE: &str = "https://fhir-ehr-code.cerner.com/r4/ec2458f2-1e24-41c8-b71b-0e701af7583d";
const ORACLE_PATIENT: &str = "https://fhir-myrecord.cerner.com/r4/ec2458f2-1e24-41c8-b71b-0e701af7583d";
const EPIC: &str = "https://fhir.epic.com/interconnect-fhir-oauth/api/FHIR/R4";
const ATHENA: &str = "https://api.platform.athenahealth.com/fhir/r4";

enum Expect {
    /// Oddities, and what is held until an operator confirms it.
    Taken(Vec<Oddity>, Vec<EndpointName>),
    Refused(Fault),
}
use EndpointName::{Authorize, Introspect, Jwks, Revoke, Token};
use Expect::{Refused, Taken};

/// File, FHIR base that it was asked below, profile, result.
fn smart_configurations() -> Vec<(&'static str, &'static str, &'static str, Expect)> {
    let clean = || Taken(vec![], vec![]);
    let odd = |oddity| Taken(vec![oddity], vec![]);
    let misnamed =
        || Oddity::Misnamed { given: "token_endpoint_auth_methods", expected: "token_endpoint_auth_methods_supported" };
    vec![
        ("advancedmd", "https://providerapi.advancedmd.com/v1/r4", "generic", clean()),
        ("aidbox", "https://sandbox.aidbox.app/fhir", "generic", clean()),
        ("athenahealth", ATHENA, "athena", Taken(vec![misnamed(), Oddity::IssuerElsewhere], vec![])),
        (
            "aws-healthlake",
            "https://healthlake.us-east-1.amazonaws.com/datastore/1/r4",
            "generic",
            Taken(vec![Oddity::NoPkceList], vec![Authorize, Token]),
        ),
        (
            "eclinicalworks",
            "https://fhir4.eclinicalworks.com/fhir/r4/FEIGCD",
            "generic",
            Taken(vec![Oddity::OldCapabilityNames], vec![Authorize, Token, Jwks]),
        ),
        (
            "eclinicalworks-healow",
            "https://fhir4.healow.com/fhir/r4/AACJCD",
            "generic",
            Taken(vec![Oddity::OldCapabilityNames], vec![Authorize, Token, Jwks]),
        ),
        ("epic", EPIC, "epic", clean()),
        ("epic-jefferson", "https://fhir.jefferson.edu/FHIRProxy/api/FHIR/R4", "epic", clean()),
        ("meditech-greenfield", "https://greenfield-prod-apis.meditech.com/v2/uscore/STU6", "generic", clean()),
        ("medplum", "https://api.medplum.com/fhir/R4", "generic", clean()),
        (
            "microsoft",
            "https://workspace-fhir.fhir.azurehealthcareapis.com",
            "generic",
            Taken(
                vec![Oddity::NullMember("management_endpoint"), Oddity::NullMember("revocation_endpoint")],
                vec![Authorize, Token, Jwks],
            ),
        ),
        ("modmed", "https://fhirmp.mmi.prod.fhir.ema-api.com/fhir/r4", "generic", clean()),
        ("nextgen-enterprise", "https://fhir.nextgen.com/nge/prod/fhir-api-r4/fhir/r4", "generic", clean()),
        (
            "nextgen-office",
            "https://fhir.meditouchehr.com/api/fhir/r4",
            "generic",
            Taken(vec![], vec![Authorize, Token, Introspect, Revoke, Jwks]),
        ),
        ("openemr", "https://emr.example/apis/default/fhir", "generic", odd(Oddity::NestedList("scopes_supported"))),
        ("oracle-lantern-2021", ORACLE, "oracle", odd(Oddity::IssuerIsDocument)),
        ("oracle-patient", ORACLE_PATIENT, "oracle", clean()),
        ("oracle-provider", ORACLE, "oracle", clean()),
        ("smart-ig-2.2", "https://ehr.example.com/fhir", "generic", clean()),
        (
            "smarthealthit-launcher",
            "https://launch.smarthealthit.org/v/r4/sim/eyJoIjoiMSIsImoiOiIxIn0/fhir",
            "generic",
            odd(Oddity::OldCapabilityNames),
        ),
        ("tsys-sandbox", "https://fhirsandbox2.tsysinteropsvcs.net:8100/fhir", "generic", odd(Oddity::NoPkceList)),
        (
            "veradigm",
            "https://fhir.fhirpoint.open.allscripts.com/fhirroute/fhir/CP00101",
            "generic",
            Taken(
                vec![misnamed(), Oddity::OldCapabilityNames, Oddity::IssuerElsewhere, Oddity::ManagementIsBase],
                vec![Jwks],
            ),
        ),
        ("odd-array-root", EHR, "generic", Refused(Fault::NotObject { found: "an array" })),
        ("odd-authorize-with-fragment", EHR, "generic", Refused(Fault::EndpointHasFragment("authorization_endpoint"))),
        ("odd-authorize-with-query", EHR, "generic", odd(Oddity::AuthorizeHasQuery)),
        ("odd-bom", EHR, "generic", odd(Oddity::ByteOrderMark)),
        (
            "odd-capabilities-null",
            EHR,
            "generic",
            Taken(vec![Oddity::NullMember("capabilities"), Oddity::NoCapabilities], vec![]),
        ),
        ("odd-capabilities-string", EHR, "generic", odd(Oddity::ListAsString("capabilities"))),
        ("odd-duplicate-members", EHR, "generic", Refused(Fault::DuplicateMember("token_endpoint".into()))),
        ("odd-empty-strings", EHR, "generic", Refused(Fault::MissingEndpoint("authorization_endpoint"))),
        ("odd-empty", EHR, "generic", Refused(Fault::Empty)),
        ("odd-http-endpoints", EHR, "generic", Refused(Fault::InsecureEndpoint("token_endpoint"))),
        ("odd-issuer-mismatch", EHR, "generic", Taken(vec![Oddity::IssuerElsewhere], vec![Jwks])),
        ("odd-no-pkce-list", EHR, "generic", odd(Oddity::NoPkceList)),
        ("odd-no-token-endpoint", EHR, "generic", Refused(Fault::MissingEndpoint("token_endpoint"))),
        ("odd-null-root", EHR, "generic", Refused(Fault::NotObject { found: "null" })),
        ("odd-other-host-token-endpoint", EHR, "generic", Taken(vec![], vec![Token])),
        (
            "odd-pkce-null",
            EHR,
            "generic",
            Taken(vec![Oddity::NullMember("code_challenge_methods_supported"), Oddity::NoPkceList], vec![]),
        ),
        ("odd-pkce-plain-only", EHR, "generic", odd(Oddity::PkceWithoutS256)),
        ("odd-pkce-string", EHR, "generic", odd(Oddity::ListAsString("code_challenge_methods_supported"))),
        (
            "odd-relative-endpoints",
            EHR,
            "generic",
            Taken(
                vec![Oddity::RelativeEndpoint("authorization_endpoint"), Oddity::RelativeEndpoint("token_endpoint")],
                vec![],
            ),
        ),
        ("odd-scopes-nested-array", EHR, "generic", odd(Oddity::NestedList("scopes_supported"))),
        ("odd-scopes-string", EHR, "generic", odd(Oddity::ListAsString("scopes_supported"))),
        ("odd-soft-200", EHR, "generic", Refused(Fault::Html)),
        ("odd-trailing-comma", EHR, "generic", Refused(Fault::NotJson { line: 1, column: 233 })),
        ("odd-truncated", EHR, "generic", Refused(Fault::NotJson { line: 1, column: 90 })),
        ("odd-utf16", EHR, "generic", Refused(Fault::NotUtf8)),
    ]
}

/// File, base, what is there of authorize and token, number of resource types, oddities; or a fault.
#[expect(clippy::type_complexity, reason = "a table")]
fn capability_statements() -> Vec<(&'static str, &'static str, Result<(bool, usize, Vec<Oddity>), Fault>)> {
    let version = |found: &str| Err(Fault::WrongFhirVersion { found: found.into() });
    vec![
        ("advancedmd", "https://providerapi.advancedmd.com/v1/r4", Ok((true, 25, vec![]))),
        ("aidbox", "https://sandbox.aidbox.app/fhir", Ok((true, 138, vec![]))),
        ("allscripts-dstu2", EHR, version("1.0.2")),
        ("athenahealth", ATHENA, Ok((true, 32, vec![Oddity::MisnamedExtension]))),
        ("eclinicalworks", "https://fhir4.eclinicalworks.com/fhir/r4/FEIGCD", Ok((true, 36, vec![]))),
        ("epic-advantagecare-stu3", EHR, version("3.0.1")),
        ("epic-dstu2", EPIC, version("1.0.2")),
        ("epic-jefferson", "https://fhir.jefferson.edu/FHIRProxy/api/FHIR/R4", Ok((true, 59, vec![]))),
        ("epic-lantern-dstu2", EHR, version("1.0.2")),
        ("epic-lantern-stu3", EHR, version("3.0.1")),
        ("epic-stu3", EPIC, version("3.0.1")),
        ("epic-wellstar-dstu2", EHR, version("1.0.2")),
        ("epic", EPIC, Ok((true, 59, vec![]))),
        ("inferno-example", EHR, Ok((false, 1, vec![]))),
        ("lantern-r4-example", EHR, Ok((false, 2, vec![]))),
        ("meditech-dstu2", EHR, version("1.0.2")),
        ("meditech-greenfield", "https://greenfield-prod-apis.meditech.com/v2/uscore/STU6", Ok((true, 33, vec![]))),
        ("modmed", "https://fhirmp.mmi.prod.fhir.ema-api.com/fhir/r4", Ok((true, 31, vec![]))),
        ("nextgen-enterprise", "https://fhir.nextgen.com/nge/prod/fhir-api-r4/fhir/r4", Ok((true, 28, vec![]))),
        ("nextgen-office", "https://fhir.meditouchehr.com/api/fhir/r4", Ok((true, 26, vec![]))),
        ("odd-no-rest", EHR, Ok((false, 0, vec![]))),
        ("odd-no-security", EHR, Ok((false, 1, vec![]))),
        ("odd-oauth-uris-only", EHR, Ok((true, 1, vec![]))),
        ("odd-r4b", EHR, version("4.3.0")),
        ("odd-xml-only", EHR, Err(Fault::Xml)),
        ("oracle-dstu2", ORACLE, version("1.0.2")),
        (
            "oracle-open",
            "https://fhir-open.cerner.com/r4/ec2458f2-1e24-41c8-b71b-0e701af7583d",
            Ok((false, 42, vec![])),
        ),
        ("oracle-provider", ORACLE, Ok((true, 44, vec![]))),
        (
            "smarthealthit-hapi",
            "https://r4.smarthealthit.org",
            Ok((false, 146, vec![Oddity::FhirVersion("4.0.0".into())])),
        ),
        ("veradigm", "https://fhir.fhirpoint.open.allscripts.com/fhirroute/fhir/CP00101", Ok((true, 31, vec![]))),
    ]
}

/// File, the issuer that was asked, and the fault or whether the issuer answers with its own name.
fn openid_configurations() -> Vec<(&'static str, &'static str, Result<bool, Fault>)> {
    vec![
        ("advancedmd", "https://providerapi.advancedmd.com/v1/r4", Ok(true)),
        ("aidbox", "https://sandbox.aidbox.app", Ok(true)),
        ("epic", "https://fhir.epic.com/interconnect-fhir-oauth/oauth2", Ok(true)),
        ("epic-jefferson", "https://fhir.jefferson.edu/FHIRProxy/oauth2", Ok(true)),
        // Its smart-configuration names another issuer than its openid-configuration.
        ("nextgen-enterprise", "https://fhir.nextgen.com/nge/prod/patient-oauth", Ok(false)),
        ("smilecdr", "https://myserver", Err(Fault::InsecureEndpoint("issuer"))),
    ]
}

fn name_of(document: &str, kind: &str, odd: &[(&str, &str)]) -> String {
    let extension = odd.iter().find(|(name, _)| *name == document).map_or("json", |(_, extension)| extension);
    format!("{document}.{kind}.{extension}")
}

fn smart_file(document: &str) -> String {
    let odd = [
        ("odd-bom", "txt"),
        ("odd-empty", "txt"),
        ("odd-soft-200", "html"),
        ("odd-trailing-comma", "txt"),
        ("odd-truncated", "txt"),
        ("odd-utf16", "txt"),
    ];
    name_of(document, "smart-configuration", &odd)
}

fn metadata_file(document: &str) -> String {
    name_of(document, "metadata", &[("odd-xml-only", "xml")])
}

#[test]
fn every_document_has_its_expected_result() {
    let smart = smart_configurations().into_iter().map(|(name, ..)| smart_file(name));
    let metadata = capability_statements().into_iter().map(|(name, ..)| metadata_file(name));
    let openid = openid_configurations().into_iter().map(|(name, ..)| name_of(name, "openid-configuration", &[]));
    let files = smart.chain(metadata).chain(openid).chain(["where.json".to_owned()]).collect::<Vec<_>>();
    assert_covered("discovery", files.iter().map(String::as_str));
}

#[test]
fn smart_configurations_are_taken_or_refused_by_name() {
    for (name, base, vendor, expected) in smart_configurations() {
        let base = url(base);
        let result = parse_smart_configuration(&bytes("discovery", &smart_file(name)), &base);
        match (result, expected) {
            (Ok((configuration, oddities)), Taken(expected, expected_held)) => {
                assert_eq!(sorted(&oddities), sorted(&expected), "{name}");
                let profile = profile(vendor);
                let endpoints = resolve(&base, &profile, Some(&configuration), None).unwrap();
                let held = held(&endpoints, &base, &profile.auth_hosts).into_iter().map(|held| held.name);
                assert_eq!(held.collect::<Vec<_>>(), expected_held, "{name}");
            }
            (Err(fault), Refused(expected)) => assert_eq!(fault, expected, "{name}"),
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
}

fn sorted(oddities: &[Oddity]) -> Vec<String> {
    let mut texts = oddities.iter().map(|oddity| format!("{oddity:?}")).collect::<Vec<_>>();
    texts.sort();
    texts
}

#[test]
fn capability_statements_are_taken_or_refused_by_name() {
    for (name, base, expected) in capability_statements() {
        let result = parse_capability_statement(&bytes("discovery", &metadata_file(name)), &url(base));
        let result = result.map(|facts| {
            assert_eq!(facts.authorize.is_some(), facts.token.is_some(), "{name}");
            (facts.token.is_some(), facts.resources.len(), facts.oddities)
        });
        assert_eq!(result, expected, "{name}");
    }
}

#[test]
fn openid_configurations_are_taken_or_refused_by_name() {
    for (name, issuer, expected) in openid_configurations() {
        let file = name_of(name, "openid-configuration", &[]);
        let result = parse_openid_configuration(&bytes("discovery", &file), &url(issuer));
        assert_eq!(result.map(|(found, _)| found.issuer == issuer), expected, "{name}");
    }
}

/// `where.json`: the bases at which these documents were found are bases that the suite asks.
#[test]
fn the_places_of_discovery_are_those_of_the_table() {
    let bases = smart_configurations().into_iter().map(|(_, base, ..)| base).collect::<Vec<_>>();
    let places = json("discovery", "where.json");
    let vendors = ["epic", "athenahealth", "meditech"];
    for row in places["rows"].as_array().unwrap() {
        if vendors.contains(&row["vendor"].as_str().unwrap()) {
            let base = row["base"].as_str().or_else(|| row["base"][0].as_str()).unwrap();
            assert!(bases.contains(&base), "{base}");
        }
    }
}

#[test]
fn capabilities_are_read() {
    let facts = parse_capability_statement(&bytes("discovery", "epic.metadata.json"), &url(EPIC)).unwrap();
    let patient = &facts.resources["Patient"];
    assert!(patient.interactions.contains("search-type") && patient.search_params.contains("_id"));
    assert!(facts.resources["Observation"].search_params.contains("category"));
    let oracle =
        parse_capability_statement(&bytes("discovery", "oracle-provider.metadata.json"), &url(ORACLE)).unwrap();
    assert!(oracle.system_interactions.contains("batch") && !oracle.system_interactions.contains("transaction"));
    assert!(oracle.resources["CarePlan"].search_rev_includes.contains("Provenance:target"));
}

fn discovered(vendor: &str, document: &str, base: &str) -> Endpoints {
    let base = url(base);
    let (smart, _) = parse_smart_configuration(&bytes("discovery", &smart_file(document)), &base).unwrap();
    resolve(&base, &profile(vendor), Some(&smart), None).unwrap()
}

#[test]
fn relative_endpoints_are_below_the_base() {
    let endpoints = discovered("generic", "odd-relative-endpoints", EHR);
    assert_eq!(endpoints.authorize.as_str(), "https://ehr.example/oauth2/authorize");
    assert_eq!(endpoints.token.as_str(), "https://ehr.example/fhir/r4/oauth2/token");
}

#[test]
fn oracle_paths_follow_the_dialect() {
    let v2 = discovered("oracle", "oracle-provider", ORACLE);
    assert!(v2.authorize.path().ends_with("/profiles/smart-v2/personas/provider/authorize"), "{}", v2.authorize);
    assert!(v2.token.path().ends_with("/hosts/fhir-ehr-code.cerner.com/protocols/oauth2/profiles/smart-v2/token"));
    assert_eq!(v2.token_audience, v2.token.as_str());

    let base = url(ORACLE);
    let (smart, _) =
        parse_smart_configuration(&bytes("discovery", "oracle-provider.smart-configuration.json"), &base).unwrap();
    let mut profile = profile("oracle");
    profile.scopes.dialect = mantel_adapters::profile::Dialect::V1;
    let v1 = resolve(&base, &profile, Some(&smart), None).unwrap();
    assert_eq!(v1.authorize, smart.authorization_endpoint);
    assert_eq!(v1.token, smart.token_endpoint);

    // What an operator configured is not amended.
    profile.scopes.dialect = mantel_adapters::profile::Dialect::V2;
    profile.endpoints.token = Some(smart.token_endpoint.to_string());
    assert_eq!(resolve(&base, &profile, Some(&smart), None).unwrap().token, smart.token_endpoint);
}

#[test]
fn sources_are_asked_in_the_order_of_the_profile() {
    let base = url(ATHENA);
    let (smart, _) =
        parse_smart_configuration(&bytes("discovery", "athenahealth.smart-configuration.json"), &base).unwrap();
    let facts = parse_capability_statement(&bytes("discovery", "athenahealth.metadata.json"), &base).unwrap();
    let athena = profile("athena");
    let both = resolve(&base, &athena, Some(&smart), Some(&facts)).unwrap();
    assert_eq!(both.from, DiscoverySource::SmartConfiguration);
    let fallback = resolve(&base, &athena, None, Some(&facts)).unwrap();
    assert_eq!(fallback.from, DiscoverySource::CapabilityStatement);
    assert_eq!((fallback.token, fallback.revoke), (both.token, both.revoke));
    assert_eq!((fallback.jwks, fallback.issuer), (None, None), "a CapabilityStatement names no keys");

    // athenaPractice has no smart-configuration; were there one, it would not be asked.
    let practice = resolve(&base, &profile("athena-practice"), Some(&smart), Some(&facts)).unwrap();
    assert_eq!(practice.from, DiscoverySource::CapabilityStatement);
}

#[test]
fn the_pair_never_comes_from_two_sources() {
    let base = url(EHR);
    let mut facts =
        parse_capability_statement(&bytes("discovery", "odd-oauth-uris-only.metadata.json"), &base).unwrap();
    facts.token = None;
    let fault = resolve(&base, &Profile::default(), None, Some(&facts)).unwrap_err();
    assert!(matches!(fault, ResolveFault::Missing { name: EndpointName::Token, .. }), "{fault}");
    let nothing = resolve(&base, &Profile::default(), None, None).unwrap_err();
    assert!(matches!(nothing, ResolveFault::Missing { name: EndpointName::Authorize, .. }), "{nothing}");
}

#[test]
fn what_an_operator_configured_wins_and_is_not_held() {
    let base = url(EHR);
    let mut profile = Profile::default();
    profile.endpoints.authorize = Some("https://login.example/authorize?realm=a".into());
    profile.endpoints.token = Some("../../oauth2/token".into());
    profile.id_token.jwks = "https://keys.example/jwks".into();
    let endpoints = resolve(&base, &profile, None, None).unwrap();
    assert_eq!(endpoints.from, DiscoverySource::Configuration);
    assert_eq!(endpoints.token.as_str(), "https://ehr.example/oauth2/token");
    assert_eq!(endpoints.token_audience, "https://ehr.example/oauth2/token");
    assert_eq!(endpoints.jwks.as_ref().map(url::Url::as_str), Some("https://keys.example/jwks"));
    assert_eq!(held(&endpoints, &base, &[]), []);

    profile.endpoints.token = Some("http://ehr.example/token".into());
    let fault = resolve(&base, &profile, None, None).unwrap_err();
    assert_eq!(fault, ResolveFault::Configured(Fault::InsecureEndpoint("token")));
}

#[test]
fn hosts_are_held_unless_known() {
    let endpoints = discovered("generic", "odd-other-host-token-endpoint", EHR);
    let base = url(EHR);
    let held_with = |hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        held(&endpoints, &base, &hosts).into_iter().map(|held| held.host).collect::<Vec<_>>()
    };
    assert_eq!(held_with(&[]), ["evil.example"]);
    assert_eq!(held_with(&["example"]), ["evil.example"]);
    assert!(held_with(&["EVIL.example"]).is_empty());
    assert!(held_with(&["evil.example:443"]).is_empty());
    assert_eq!(held_with(&["evil.example:8443"]), ["evil.example"]);
}

#[test]
fn endpoints_that_would_give_a_code_away_are_refused() {
    let fault = |token: &str| {
        let body = format!(r#"{{"authorization_endpoint":"/a","token_endpoint":{token:?}}}"#);
        parse_smart_configuration(body.as_bytes(), &url(EHR)).unwrap_err().name()
    };
    for (token, expected) in [
        ("http://ehr.example/token", "insecure_endpoint"),
        ("javascript:alert(1)", "insecure_endpoint"),
        ("https://user:secret@ehr.example/token", "endpoint_has_credentials"),
        ("https://ehr.example/token#a", "endpoint_has_fragment"),
        ("https://ehr.example/to ken", "invalid_endpoint"),
        ("https://", "invalid_endpoint"),
        (" ", "missing_endpoint"),
    ] {
        assert_eq!(fault(token), expected, "{token}");
    }
    // Plain http is the sandbox's: only below a base that is plain http itself.
    let body = br#"{"authorization_endpoint":"/a","token_endpoint":"http://epic.localhost:4001/token"}"#;
    assert!(parse_smart_configuration(body, &url("http://epic.localhost:4001/fhir")).is_ok());
}

#[test]
fn oauth_uris_that_disagree_are_refused() {
    let uri = |name: &str, value: &str| format!(r#"{{"url":"{name}","valueUri":"{value}"}}"#);
    let statement = |uris: &[String]| {
        let oauth = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris";
        format!(
            r#"{{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1","rest":[{{"mode":"server","security":{{"extension":[{{"url":"{oauth}","extension":[{}]}}]}}}}]}}"#,
            uris.join(",")
        )
    };
    let twice = statement(&[uri("token", "https://ehr.example/a"), uri("token", "https://evil.example/b")]);
    let fault = parse_capability_statement(twice.as_bytes(), &url(EHR)).unwrap_err();
    assert_eq!(fault, Fault::AmbiguousEndpoint("token"));
    let equal = statement(&[uri("token", "https://ehr.example/a"), uri("token", "https://ehr.example/a")]);
    assert!(parse_capability_statement(equal.as_bytes(), &url(EHR)).is_ok());
}

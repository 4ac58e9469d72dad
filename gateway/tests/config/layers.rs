//! Which layer wins, and that the place told is the place written.

use std::path::PathBuf;

use mantel::config::{Sources, StoreUrl, load};
use mantel_adapters::{
    profile::{Meaning, Profile},
    site::SiteId,
};

use crate::setup::{ROOT, SITE, Setup, example};

/// The example with a vendor of its own, so that nothing built in shines through.
fn own_vendor() -> Setup {
    let mut setup = example();
    for content in setup.files.values_mut().filter(|content| content.starts_with(b"[")) {
        let text = String::from_utf8_lossy(content);
        *content =
            text.replace("vendors.epic", "vendors.own").replace("vendor = \"epic\"", "vendor = \"own\"").into_bytes();
    }
    setup
}

fn profile(setup: &Setup) -> Profile {
    let loaded = setup.load().unwrap_or_else(|faults| panic!("{faults}"));
    Profile::clone(&loaded.config.sites[&"general-hospital".parse::<SiteId>().unwrap()].profile)
}

/// The description's line of a key of the site, less the blanks.
fn described(setup: &Setup, key: &str) -> String {
    let text = setup.load().unwrap_or_else(|faults| panic!("{faults}")).describe();
    let site = text.split("\nsite general-hospital").nth(1).unwrap().to_owned();
    let line = site.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ").replace("/etc/mantel/", "")
}

#[test]
fn the_environment_wins_over_files() {
    let setup = example()
        .set("MANTEL_SERVER__LISTEN", "127.0.0.1:9")
        .set("MANTEL_SITES__GENERAL_HOSPITAL__TOKENS__ASSUME_LIFETIME", "5m")
        .set("MANTEL_SERVER__WORKERS", "3");
    let config = setup.load().unwrap_or_else(|faults| panic!("{faults}")).config;
    assert_eq!(config.server.listen.port(), 9);
    assert_eq!(config.server.workers, Some(3));
    assert_eq!(profile(&setup).tokens.assume_lifetime.as_secs(), 300);
    assert_eq!(
        described(&setup, "tokens.assume_lifetime"),
        "tokens.assume_lifetime \"5m\" [MANTEL_SITES__GENERAL_HOSPITAL__TOKENS__ASSUME_LIFETIME]"
    );
}

#[test]
fn a_variable_of_digits_is_a_text_where_a_text_is_due() {
    for digits in ["00123", "123", "true"] {
        let setup = example()
            .set("MANTEL_REGISTRATIONS__VIEWER_EPIC_PROD__CLIENT_ID", digits)
            .set("MANTEL_SITES__GENERAL_HOSPITAL__QUERY__PRACTICE", digits);
        let loaded = setup.load().unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(loaded.config.registrations.values().next().unwrap().client_id, digits);
        assert_eq!(profile(&setup).query["practice"], digits);
    }
}

#[test]
fn a_fault_of_a_variable_names_it() {
    assert_eq!(
        example().set("MANTEL_SERVER__LISTEN", "everywhere").faults(),
        [
            "MANTEL_SERVER__LISTEN: server.listen: given \"everywhere\", expected an address and a port, such as 127.0.0.1:8443 or [::]:8443"
        ]
    );
    let unknown = example().set("MANTEL_SERVER__LISTN", "127.0.0.1:1").faults();
    assert_eq!(unknown.len(), 1);
    assert!(unknown[0].starts_with("MANTEL_SERVER__LISTN: server.listn: "), "{unknown:?}");
    assert!(unknown[0].ends_with("did you mean \"listen\"?"), "{unknown:?}");
}

/// Kubernetes sets these for every pod beside a Service of that name.
#[test]
fn variables_of_a_service_named_mantel_do_not_stop_the_start() {
    let setup = example().set("MANTEL_PORT", "tcp://10.0.0.1:80").set("MANTEL_PORT_80_TCP_ADDR", "10.0.0.1");
    assert_eq!(setup.notes().len(), 2);
}

#[test]
fn a_variable_named_as_a_secret_is_no_key() {
    let setup = example()
        .with(
            SITE,
            "{ method = \"private_key_jwt\", keys = \"epic-prod\" }",
            "{ method = \"client_secret_basic\", secret = { env = \"MANTEL_EPIC__SECRET\" } }",
        )
        .set("MANTEL_EPIC__SECRET", "s3cret");
    assert_eq!(setup.faults(), Vec::<String>::new());
}

#[test]
fn a_site_overrides_its_vendor_and_says_so() {
    let setup = own_vendor().with(SITE, "name = ", "tokens.assume_lifetime = \"5m\"\nname = ");
    let profile = profile(&setup);
    assert_eq!(profile.tokens.assume_lifetime.as_secs(), 300);
    assert_eq!(profile.tokens.refresh_before.as_secs(), 300);
    assert_eq!(
        described(&setup, "tokens.assume_lifetime"),
        "tokens.assume_lifetime \"5m\" [sites.d/general-hospital.toml:15]"
    );
    assert_eq!(described(&setup, "tokens.refresh_before"), "tokens.refresh_before \"5m\" [vendors.toml:4]");
    assert_eq!(described(&setup, "jwks_cache"), "jwks_cache \"1day\" [default]");
}

#[test]
fn a_vendor_that_extends_another_copies_it() {
    let setup = example()
        .with(SITE, "vendor = \"epic\"\nname", "vendor = \"my-epic\"\nname")
        .with(SITE, "vendor = \"epic\"\napps", "vendor = \"my-epic\"\napps")
        .file("sites.d/vendor.toml", "[vendors.my-epic]\nextends = \"epic\"\nbatch = true\n");
    let profile = profile(&setup);
    assert_eq!(profile.adapter, "epic");
    assert!(profile.batch);
    assert_eq!(profile.errors["burnt"].means, Meaning::Dead);
    assert_eq!(described(&setup, "adapter"), "adapter \"epic\" [vendors.toml:2]");
    assert_eq!(described(&setup, "batch"), "batch true [sites.d/vendor.toml:3]");
}

#[test]
fn circles_are_faults() {
    let circle = "[vendors.a]\nextends = \"b\"\n[vendors.b]\nextends = \"a\"\n[vendors.c]\nextends = \"c\"\n[vendors.d]\nextends = \"nowhere\"\n";
    let faults = example().file("sites.d/circle.toml", circle).faults();
    assert_eq!(faults.len(), 4, "{faults:?}");
    assert!(faults[0].starts_with("sites.d/circle.toml:2: vendors.a.extends: given \"b\""), "{faults:?}");
    assert!(
        faults[3].starts_with("sites.d/circle.toml:8: vendors.d.extends: given \"nowhere\", expected a vendor"),
        "{faults:?}"
    );
}

#[test]
fn rules_of_errors_are_merged_by_name_and_replaced_whole() {
    let setup = own_vendor().with(
        SITE,
        "name = ",
        "errors.burnt = { means = \"passing\", error = \"invalid_client\" }\nerrors.other = { means = \"misconfigured\" }\nname = ",
    );
    let at_site = profile(&setup);
    assert_eq!(at_site.errors.len(), 2);
    assert_eq!((at_site.errors["burnt"].means, at_site.errors["burnt"].status), (Meaning::Passing, None));

    let later = "[vendors.own.errors.burnt]\nmeans = \"suspended\"\n";
    let by_file = profile(&own_vendor().file("sites.d/later.toml", later));
    assert_eq!((by_file.errors["burnt"].means, by_file.errors["burnt"].status), (Meaning::Suspended, None));

    let by_variable = profile(&own_vendor().set("MANTEL_VENDORS__OWN__ERRORS__BURNT__STATUS", "401"));
    assert_eq!((by_variable.errors["burnt"].means, by_variable.errors["burnt"].status), (Meaning::Dead, Some(401)));
}

#[test]
fn later_paths_win_and_mantel_toml_stands_for_its_directory() {
    let files = example().file("over.toml", "[server]\npublic_url = \"https://other.example.org\"\n").files;
    let paths = vec![PathBuf::from(ROOT).join("mantel.toml"), PathBuf::from(ROOT).join("over.toml")];
    let sources = Sources { paths, environment: Vec::new(), files: std::sync::Arc::new(files) };
    let config = load(&sources).unwrap_or_else(|faults| panic!("{faults}")).config;
    assert_eq!(config.server.public_url, "https://other.example.org");
    assert_eq!(config.sites.len(), 1);
}

#[test]
fn what_is_not_there_is_one_fault_among_the_others() {
    let sources = Sources {
        paths: vec![PathBuf::from("/nowhere/mantel.toml")],
        environment: Vec::new(),
        files: std::sync::Arc::new(Setup::default().files),
    };
    let faults = load(&sources).err().unwrap();
    assert!(
        faults.iter().any(|fault| fault.to_string().starts_with("/nowhere/mantel.toml: given no configuration there")),
        "{faults}"
    );
}

#[test]
fn a_database_url_may_come_from_the_environment() {
    let url = "postgres://mantel:hunter2@db.example.org/mantel?sslmode=verify-full";
    let named = example().with("mantel.toml", "\"sqlite:///var/lib/mantel/mantel.db\"", "{ env = \"DATABASE_URL\" }");
    for setup in [named.set("DATABASE_URL", url), example().set("MANTEL_STORE__URL", url)] {
        let setup = setup.set("MANTEL_STORE__SPILL", "/var/lib/mantel/spill");
        let loaded = setup.load().unwrap_or_else(|faults| panic!("{faults}"));
        assert!(matches!(&loaded.config.store.url, StoreUrl::Postgres(secret) if secret.expose() == url));
        let text = loaded.describe();
        assert!(text.contains("PostgreSQL db.example.org/mantel") && !text.contains("hunter2"), "{text}");
    }
}

//! Refresh with `scope`: rows 34 and 35, and Inferno's habit of sending all of the first answer.

use mantel_adapters::smart::{
    scope::{Context, Coverage, Permissions, ScopeSet},
    translate::{Narrowed, WiderThanGranted, narrow},
};

use super::long;

fn narrowed(granted: &str, asked: &str) -> Result<Narrowed, WiderThanGranted> {
    let granted = long(granted);
    narrow(&granted, &ScopeSet::parse(&granted).unwrap(), &long(asked))
}

#[test]
fn row_34_a_subset_by_meaning_is_granted_as_asked() {
    let token = narrowed("patient/*.rs openid", "patient/O.rs").unwrap();
    assert_eq!(token.reported, long("patient/O.rs"));
    assert_eq!(token.enforced.permits(Context::Patient, "Condition", Permissions::READ), Coverage::No);
    assert_eq!(narrowed("patient/O.*", "patient/O.read").unwrap().reported, long("patient/O.read"));
    assert_eq!(narrowed("patient/O.r patient/O.s", "patient/O.rs").unwrap().reported, long("patient/O.rs"));
    assert_eq!(narrowed("patient/O.rs", "patient/O.r?lab").unwrap().reported, long("patient/O.r?lab"));
}

#[test]
fn row_35_more_than_was_granted_is_refused() {
    for (granted, asked) in [
        ("patient/O.rs", "patient/O.cruds"),
        ("patient/O.rs", "patient/*.rs"),
        ("patient/O.rs", "user/O.rs"),
        ("patient/O.rs?lab", "patient/O.rs"),
        ("patient/O.rs?lab", "patient/O.rs?vitals"),
        ("patient/O.rs", "patient/O.rs openid"),
        ("patient/O.rs", "patient/O.rs patient/O.sr"),
        ("patient/O.rs", "patient/O.rs sandbox"),
    ] {
        assert!(narrowed(granted, asked).is_err(), "{asked} of {granted}");
    }
}

#[test]
fn all_of_the_first_answer_gives_the_same_strings() {
    let first = "launch/patient openid fhirUser offline_access patient/Patient.read patient/O.rs?lab patient/O.r";
    assert_eq!(narrowed(first, first).unwrap().reported, long(first));
    assert_eq!(narrowed(first, "").unwrap().reported, long(first));
    assert_eq!(narrowed(first, " ").unwrap().enforced, ScopeSet::parse(&long(first)).unwrap());
}

use super::*;

fn keys(ids: &[(&str, u8)]) -> Sealer {
    let keys: Vec<_> =
        ids.iter().map(|(id, byte)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) }).collect();
    Sealer::new(&keys).unwrap()
}

fn plain(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

const HERE: Place<'static> = Place { table: "grants", column: "tokens", id: b"1" };

#[test]
fn a_record_opens_at_its_place_only() {
    let sealer = keys(&[("a", 1)]);
    let sealed = sealer.seal(HERE, plain("the text")).unwrap();
    assert_eq!(&sealed[..3], &[1, 1, b'a']);
    assert_eq!(*sealer.open(HERE, &sealed).unwrap(), b"the text");
    for elsewhere in [Place { id: b"2", ..HERE }, Place { column: "facts", ..HERE }, Place { table: "codes", ..HERE }] {
        assert!(matches!(sealer.open(elsewhere, &sealed), Err(StoreError::Corrupt(_))));
    }
}

#[test]
fn each_changed_or_missing_byte_is_noticed() {
    let sealer = keys(&[("a", 1)]);
    let sealed = sealer.seal(HERE, plain("the text")).unwrap();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(sealer.open(HERE, &changed).is_err(), "byte {at}");
        assert!(sealer.open(HERE, &sealed[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn the_first_key_writes_and_all_read() {
    let old = keys(&[("old", 1)]).seal(HERE, plain("x")).unwrap();
    let both = keys(&[("new", 2), ("old", 1)]);
    assert_eq!(*both.open(HERE, &old).unwrap(), b"x");
    let new = both.seal(HERE, plain("y")).unwrap();
    assert!(matches!(keys(&[("old", 1)]).open(HERE, &new), Err(StoreError::UnknownSealKey(id)) if id == "new"));
    assert_eq!(*keys(&[("new", 2)]).open(HERE, &new).unwrap(), b"y");
    assert!(matches!(keys(&[("new", 3)]).open(HERE, &new), Err(StoreError::Corrupt(_))));
}

#[test]
fn keys_that_cannot_serve_are_refused() {
    let key = |id: &str| SealKey { id: id.into(), bytes: Secret::new([1; 32]) };
    for bad in [vec![], vec![key("")], vec![key(&"x".repeat(256))], vec![key("a"), key("a")]] {
        assert!(Sealer::new(&bad).is_err());
    }
}

#[test]
fn a_derived_key_depends_on_key_and_purpose() {
    let sealer = keys(&[("a", 1), ("b", 2)]);
    assert_eq!(sealer.derive("paging"), keys(&[("c", 1)]).derive("paging"));
    assert_ne!(sealer.derive("paging"), sealer.derive("other"));
    assert_eq!(
        sealer.derive_each("paging").collect::<Vec<_>>(),
        [sealer.derive("paging"), keys(&[("b", 2)]).derive("paging")]
    );
    assert_ne!(sealer.names("p", &[b"ab", b"c"]), sealer.names("p", &[b"a", b"bc"]));
}

#[test]
fn a_successor_opens_for_its_predecessor_only() {
    let sealed = seal_successor("mtl_rt_one", "mtl_rt_two");
    assert_eq!(open_successor("mtl_rt_one", &sealed).unwrap().expose(), "mtl_rt_two");
    assert!(open_successor("mtl_rt_other", &sealed).is_none());
    assert!(open_successor("mtl_rt_one", &SealedSuccessor(vec![])).is_none());
}

#[test]
fn a_long_record_survives_the_growing_buffer() {
    let sealer = keys(&[("a", 1)]);
    let long: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let sealed = sealer.seal_json(HERE, &long).unwrap();
    assert_eq!(sealer.open_json::<Vec<String>>(HERE, &sealed).unwrap(), long);
    assert!(matches!(sealer.open_json::<u8>(HERE, &sealed), Err(StoreError::Corrupt(_))));
}

#[test]
fn another_key_writes_from_when_it_is_told_to() {
    let sealer = keys(&[("new", 2), ("old", 1)]);
    assert_eq!((sealer.prefers(), sealer.writes_with()), ("new", "new"));
    assert!(sealer.write_with("old"));
    let before = sealer.fixed();
    let old = sealer.seal(HERE, plain("x")).unwrap();
    assert_eq!(sealed_by(&old).as_deref(), Some("old"));
    assert_eq!(sealer.derive("paging"), keys(&[("old", 1)]).derive("paging"));
    assert_eq!(sealer.names("p", &[b"a"])[0], keys(&[("old", 1)]).names("p", &[b"a"])[0]);
    assert!(!sealer.write_with("other"));
    assert_eq!((sealer.prefers(), sealer.writes_with()), ("new", "old"));
    assert!(sealer.write_with("new"));
    // What was begun under one key ends under it.
    assert_eq!((sealer.writes_with(), before.writes_with()), ("new", "old"));
    let new = sealer.reseal(HERE, HERE, &old).unwrap();
    assert!(new.starts_with(&prefix("new")) && !new.starts_with(&prefix("ne")) && !new.starts_with(&prefix("old")));
    assert_eq!(*keys(&[("new", 2)]).open(HERE, &new).unwrap(), b"x");
}

#[test]
fn other_bytes_of_the_same_id_are_noticed() {
    let (one, other) = (keys(&[("k", 1)]), keys(&[("k", 2), ("l", 1)]));
    assert_ne!(one.held()["k"], other.held()["k"]);
    // The bytes make the fingerprint, not the id.
    assert_eq!(one.held()["k"], other.held()["l"]);
    let proof = one.prove("k").unwrap();
    assert!(one.check("k", &proof).is_ok());
    assert!(matches!(other.check("k", &proof), Err(StoreError::Corrupt(text)) if text.contains("\"k\"")));
    assert!(matches!(one.check("l", &proof), Err(StoreError::UnknownSealKey(id)) if id == "l"));
}

#[test]
fn who_sealed_a_record_is_told_of_anything() {
    for (bytes, expected) in [
        (&[][..], None),
        (&[1], None),
        (&[1, 0, 7], None),
        (&[2, 1, b'a'], None),
        (&[1, 2, b'a'], None),
        (&[1, 1, b'a'], Some("a")),
        (&[1, 2, b'a', b'\n'], Some("a\u{fffd}")),
    ] {
        assert_eq!(sealed_by(bytes).as_deref(), expected, "{bytes:?}");
    }
}

//! The spill's files: whole or named, never a panic, never gone.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use super::*;
use crate::{clock::Timestamp, config::SealKey, secret::Secret, store::RefreshEnd};

fn sealer(id: &str, byte: u8) -> Arc<Sealer> {
    Arc::new(Sealer::new(&[SealKey { id: id.into(), bytes: Secret::new([byte; 32]) }]).unwrap())
}

fn answer(grant: u128, consumed: i64) -> Answer {
    Answer {
        grant: GrantId(Uuid::from_u128(grant)),
        consumed,
        site: "general".parse().unwrap(),
        registration: "viewer-epic".parse().unwrap(),
        tokens: EhrTokens {
            access: "an-access-token".into(),
            refresh: Some("a-refresh-token".into()),
            received: Timestamp(1_800_000_000_000),
            lifetime: Duration::from_secs(300),
            refresh_end: Some(RefreshEnd { after: Duration::from_secs(86400), fixed: true }),
            scope: Some("patient/*.rs".into()),
            id_token: None,
        },
        facts: Some(GrantFacts { upstream: Some("patient/*.rs".into()), ..GrantFacts::default() }),
    }
}

fn put(spill: &Spill, answer: &Answer) -> PathBuf {
    spill.put(answer, Uuid::from_u128(7)).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_answer_comes_back_whole_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let (at, sealer) = (dir.path().join("deep/spill"), sealer("k", 1));
    let spill = Spill::open(&at, sealer.clone()).unwrap();
    let path = put(&spill, &answer(1, 5));
    drop(spill);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&at), mode(&path), mode(&at.join("lock"))), (0o700, 0o600, 0o600));
    let content = fs::read(&path).unwrap();
    for secret in ["an-access-token", "a-refresh-token", "patient/"] {
        assert!(!content.windows(secret.len()).any(|part| part == secret.as_bytes()));
    }
    let spill = Spill::open(&at, sealer).unwrap();
    let [(found_at, found)] = &spill.found[..] else { panic!("one answer") };
    let (mut expected, given) = (answer(1, 5), found.clone());
    assert_eq!((found_at, found.grant, found.consumed), (&path, expected.grant, 5));
    assert_eq!(
        (&found.site, &found.registration, &found.facts),
        (&expected.site, &expected.registration, &expected.facts)
    );
    let (expected, given) = (&mut expected.tokens, given.tokens);
    assert_eq!((&given.access, &given.refresh), (&expected.access, &expected.refresh));
    assert_eq!((given.received, given.lifetime), (expected.received, expected.lifetime));
    assert_eq!(given.refresh_end, expected.refresh_end);
    assert_eq!((&given.scope, given.id_token.is_none()), (&expected.scope, true));
    spill.remove(&path).unwrap();
    spill.remove(&path).unwrap();
    assert_eq!(names(&at), ["lock"]);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = Spill::open(dir.path(), sealer("k", 1)).unwrap();
    let fault = Spill::open(dir.path(), sealer("k", 1)).err().unwrap();
    assert!(matches!(fault, SpillFault::InUse(_)), "{fault}");
    drop(first);
    Spill::open(dir.path(), sealer("k", 1)).unwrap();
}

/// Cut at each byte, changed at each byte, under another's name: named, moved aside, and the good one is read.
#[test]
fn what_is_not_whole_is_named_and_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (answer(1, 5), answer(2, 5));
    let (good, whole) = {
        let spill = Spill::open(dir.path(), sealer("k", 1)).unwrap();
        (put(&spill, &one), fs::read(put(&spill, &two)).unwrap())
    };
    let victim = dir.path().join(format!("{}.5.{}.{ANSWER}", two.grant, Uuid::from_u128(7).simple()));
    let mut contents: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    for place in 0..whole.len() {
        let mut changed = whole.clone();
        changed[place] ^= 1;
        contents.push(changed);
    }
    contents.push(fs::read(&good).unwrap());
    contents.push(vec![0; 5 << 20]);
    for content in contents {
        fs::write(&victim, &content).unwrap();
        let spill = Spill::open(dir.path(), sealer("k", 1)).unwrap();
        let found: Vec<_> = spill.found.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(found, std::slice::from_ref(&good));
        if spill.bad == 1 {
            assert!(spill.refused().is_empty());
            assert!(!victim.exists());
            let aside = dir.path().join(BAD).join(victim.file_name().unwrap());
            assert_eq!(fs::read(aside).unwrap(), content, "nothing is deleted");
        } else {
            // A changed format or key id: it says which one, and stays for who can read it.
            assert!(!spill.refused().is_empty() && victim.exists());
        }
    }
}

#[test]
fn a_cut_write_is_taken_if_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(&Spill::open(dir.path(), sealer("k", 1)).unwrap(), &answer(1, 5));
    // Killed after the write and before the rename.
    let unfinished = PathBuf::from(format!("{}.{UNFINISHED}", path.display()));
    fs::rename(&path, &unfinished).unwrap();
    let spill = Spill::open(dir.path(), sealer("k", 1)).unwrap();
    assert_eq!(spill.found.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&unfinished]);
}

#[test]
fn an_unknown_key_and_a_later_format_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(&Spill::open(dir.path(), sealer("old", 1)).unwrap(), &answer(1, 5));
    let spill = Spill::open(dir.path(), sealer("new", 2)).unwrap();
    assert!(spill.found.is_empty() && spill.bad == 0 && path.exists());
    let refused = spill.refused();
    assert!(refused.contains("\"old\"") && refused.contains("store.seal"), "{refused}");
    drop(spill);
    let mut content = fs::read(&path).unwrap();
    content[MAGIC.len()] = FORMAT + 1;
    fs::write(&path, content).unwrap();
    let refused = Spill::open(dir.path(), sealer("old", 1)).unwrap().refused();
    assert!(refused.contains("format 2"), "{refused}");
}

#[test]
fn what_is_not_ours_is_let_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    let grant = Uuid::from_u128(1);
    for name in ["notes.txt".to_owned(), format!("{grant}.x.y.answer"), format!("{grant}.1.y.answer.tmp.old")] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let before = names(dir.path());
    let spill = Spill::open(dir.path(), sealer("k", 1)).unwrap();
    assert!(spill.found.is_empty() && spill.bad == 0 && spill.refused().is_empty());
    assert_eq!(names(dir.path()).len(), before.len() + 1, "the lock");
}

#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("spill");
    let spill = Spill::open(&at, sealer("k", 1)).unwrap();
    fs::remove_dir_all(&at).unwrap();
    let fault = spill.put(&answer(1, 5), Uuid::nil()).unwrap_err();
    assert!(matches!(fault, SpillFault::Io { .. }), "{fault}");
    assert!(!fault.to_string().contains("token"), "{fault}");
}

proptest::proptest! {
    /// Whatever stands in a file: an answer or a fault.
    #[test]
    fn no_content_panics(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), ours in proptest::bool::ANY) {
        let content = if ours { [MAGIC.as_slice(), &[FORMAT, 1], &content].concat() } else { content };
        let name = (GrantId(Uuid::nil()), 1);
        assert!(decode(&sealer("k", 1), Path::new("x"), name, &content).is_err());
    }
}

#[test]
fn it_tells_which_seal_keys_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Spill::keys_in(&dir.path().join("none")).unwrap(), [""; 0]);
    let spill = Spill::open(dir.path(), sealer("old", 1)).unwrap();
    assert_eq!(spill.keys().ids(), [""; 0]);
    let first = put(&spill, &answer(1, 5));
    assert_eq!(spill.keys().ids(), ["old"]);
    drop(spill);
    let keys = [("new", 2), ("old", 1)].map(|(id, byte)| SealKey { id: id.into(), bytes: Secret::new([byte; 32]) });
    let both = Arc::new(Sealer::new(&keys).unwrap());
    let spill = Spill::open(dir.path(), both.clone()).unwrap();
    let keys = spill.keys();
    assert_eq!(keys.ids(), ["old"]);
    put(&spill, &answer(2, 5));
    assert_eq!(keys.ids(), ["new", "old"]);
    assert_eq!(Spill::keys_in(dir.path()).unwrap(), ["new", "old"]);
    spill.remove(&first).unwrap();
    assert_eq!(keys.ids(), ["new"]);
    drop(spill);
    // What an earlier process left, and what is no answer any more.
    let cut = dir.path().join("00000000-0000-0000-0000-000000000003.5.0.answer");
    fs::write(&cut, b"MTLSPILL").unwrap();
    let spill = Spill::open(dir.path(), both).unwrap();
    assert_eq!((spill.keys().ids(), spill.bad), (vec!["new".to_owned()], 1));
    let [(path, _)] = &spill.found[..] else { panic!("one answer") };
    spill.set_aside(path);
    assert_eq!(spill.keys().ids(), [""; 0]);
}

#[test]
fn its_name_outlives_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let entropy = crate::entropy::SystemEntropy::new();
    let spill = Spill::open(dir.path(), sealer("k", 1)).unwrap();
    let id = spill.id(&entropy).unwrap();
    drop(spill);
    let spill = Spill::open(dir.path(), sealer("k", 1)).unwrap();
    assert_eq!(spill.id(&entropy).unwrap(), id);
    assert_eq!(names(dir.path()), ["id", "lock"]);
    // Cut short by a loss of power: another one.
    fs::write(dir.path().join("id"), "019").unwrap();
    fs::write(dir.path().join("id.tmp"), "").unwrap();
    let other = spill.id(&entropy).unwrap();
    assert!(other != id && spill.id(&entropy).unwrap() == other);
}

//! The simulated EHRs judge the gateway: written from the vendors' documents, they share none of its
//! code, or one misreading would be on both sides and agree with itself.

#[path = "../../adapters/tests/source/mod.rs"]
mod source;

use std::path::Path;

use source::{paths, sources};

/// The gateway, its vocabulary, and its own library for tokens.
const STRANGERS: &[&str] = &["mantel", "mantel_adapters", "jsonwebtoken"];

fn strangers(text: &str) -> Vec<(usize, String)> {
    let named = paths(text);
    let known = |first: &String| STRANGERS.contains(&first.as_str());
    let strange = named.iter().filter(|named| named.segments.first().is_some_and(known));
    strange.map(|named| (named.line, named.text())).collect()
}

#[test]
fn the_simulated_ehrs_share_no_code_with_the_gateway() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut lines = Vec::new();
    for (file, text) in sources(&src.join("ehr")) {
        let below = Path::new("tests/src").join(file.strip_prefix(&src).unwrap());
        lines.extend(strangers(&text).iter().map(|(line, path)| format!("{}:{line}: {path}", below.display())));
    }
    assert!(lines.is_empty(), "the simulated EHRs know what they judge:\n{}", lines.join("\n"));
}

/// A way round it: a module of the same package, outside `ehr/`, that passes the gateway's code on.
#[test]
fn nor_through_another_module_of_their_package() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut lines = Vec::new();
    for (file, text) in sources(&src.join("ehr")) {
        let below = file.strip_prefix(&src).unwrap();
        let module = source::module_of(below);
        for named in paths(&text) {
            let leaves = named.absolute(&module).filter(|path| path.first().is_none_or(|first| first != "ehr"));
            if let Some(path) = leaves.filter(|path| !path.is_empty()) {
                lines.push(format!("tests/src/{}:{}: {}", below.display(), named.line, path.join("::")));
            }
        }
    }
    assert!(lines.is_empty(), "the simulated EHRs use what is outside of ehr/:\n{}", lines.join("\n"));
}

#[test]
fn strangers_are_seen() {
    let bad = "use mantel::config::load;\nfn f() { mantel_adapters::smart::scope::parse(); }\n\
               use jsonwebtoken::{encode, Header};\n// mantel::config\nconst URN: &str = \"urn:mantel::x\";\n";
    assert_eq!(strangers(bad).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3, 3]);
    assert_eq!(strangers("use super::mantelpiece; let mantel_a = 1;"), []);
}

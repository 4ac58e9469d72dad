//! The authorization half of the simulated EHRs over real HTTP: full flows without a browser, and what each
//! vendor refuses, point by point.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod assertion;
mod athena;
mod epic;
mod faults;
mod generic;
mod kit;
mod oracle;
mod portal;
mod practice;

/// A bug that both sides share would hide.
#[test]
fn the_simulated_ehrs_share_no_code_with_the_gateway() {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ehr")];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for foreign in ["mantel::", "mantel_adapters", "jsonwebtoken"] {
                assert!(!text.contains(foreign), "{} uses {foreign}", path.display());
            }
            read += 1;
        }
    }
    assert!(read > 20, "{read} files read");
}

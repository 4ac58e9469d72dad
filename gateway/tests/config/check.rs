//! `mantel check` as a process.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::setup::{ROOT, example};

fn check(directory: &Path, config: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mantel"));
    command.env_clear().current_dir(directory).arg("check");
    if !config.is_empty() {
        command.args(["--config", config]);
    }
    command.output().unwrap()
}

fn written() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in example().files {
        let file = directory.path().join(path.strip_prefix(ROOT).unwrap());
        std::fs::create_dir_all(directory.path().join("sites.d")).unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
    directory
}

#[test]
fn a_valid_configuration_is_described() {
    let directory = written();
    for config in ["", ".", "mantel.toml", directory.path().to_str().unwrap()] {
        let output = check(directory.path(), config);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("ehr-launch by viewer-epic-prod, standalone by viewer-epic-prod"), "{text}");
        assert!(text.contains("https://gateway.example.org/oauth/callback/viewer-epic-prod"), "{text}");
        assert!(!text.contains("PRIVATE KEY"), "{text}");
    }
}

#[test]
fn faults_go_to_stderr_with_code_2() {
    let directory = written();
    let site = directory.path().join("sites.d/general-hospital.toml");
    let text = std::fs::read_to_string(&site).unwrap().replace("vendor = \"epic\"\nname", "vendor = \"epci\"\nname");
    std::fs::write(&site, text).unwrap();
    let output = check(directory.path(), "");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "sites.d/general-hospital.toml:14: sites.general-hospital.vendor: given \"epci\", expected a vendor: did you mean \"epic\"?\n"
    );
}

#[test]
fn a_directory_without_a_configuration_is_a_fault() {
    let empty = tempfile::tempdir().unwrap();
    let output = check(empty.path(), "");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("mantel.toml: given no configuration there"), "{text}");
}

//! The README's commands, run as they stand there.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use mantel_tests::{
    harness::{binary, get},
    ports::free_port,
};

const README: &str = include_str!("../../../README.md");

/// The first code block of a language after a text.
fn block<'a>(after: &str, language: &str) -> &'a str {
    let (_, rest) = README.split_once(after).unwrap_or_else(|| panic!("README lacks {after:?}"));
    let (_, rest) = rest.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("\n```").unwrap().0
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(script: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    let path = format!("{}:{}", binary().unwrap().parent().unwrap().display(), std::env::var("PATH").unwrap());
    command.args(["-ec", script]).current_dir(dir).env("PATH", path).stdin(Stdio::null());
    command
}

async fn answers(url: &str) -> bool {
    for _ in 0..400 {
        if get(url, &[]).await.is_ok_and(|answer| answer.status == 200) {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    false
}

/// `## Run it in production`, with its keys, the configuration of `## Configure`, and addresses that are
/// free here, given as an operator would: by variables.
#[tokio::test]
async fn a_production_set_up_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let commands = block("## Run it in production", "sh");
    let (keys, runs): (Vec<_>, Vec<_>) = commands.lines().partition(|line| !line.contains("--config"));
    assert_eq!(runs.len(), 2, "{runs:?}");
    assert!(keys.iter().any(|line| line.starts_with("mantel keys new-seal ")), "{keys:?}");
    let made = shell(&keys.join("\n"), dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let certified = rcgen::generate_simple_self_signed(["gateway.example.org".to_owned()]).unwrap();
    std::fs::write(dir.path().join("tls.crt"), certified.cert.pem()).unwrap();
    std::fs::write(dir.path().join("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    std::fs::create_dir(dir.path().join("sites.d")).unwrap();
    std::fs::write(dir.path().join("mantel.toml"), block("## Configure", "toml")).unwrap();
    std::fs::write(dir.path().join("sites.d/general-hospital.toml"), block("### Add a hospital", "toml")).unwrap();
    std::fs::write(dir.path().join("vendors.toml"), block("### Add a vendor", "toml")).unwrap();

    let here = |line: &str| line.replace("/etc/mantel", dir.path().to_str().unwrap());
    let checked = shell(&here(runs[0]), dir.path()).output().unwrap();
    let told = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(told.contains("general-hospital") && told.contains("viewer-epic-prod"), "{told}");

    let (port, admin) = (free_port().unwrap(), free_port().unwrap());
    let run = |command: &str| {
        let mut command = shell(&here(command), dir.path());
        command
            .env("MANTEL_SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .env("MANTEL_SERVER__ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .env("MANTEL_STORE__URL", format!("sqlite://{}/mantel.db", dir.path().display()));
        command
    };
    let serve = || {
        let mut serving = run(&format!("exec {}", runs[1]));
        Process(serving.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let ready = format!("http://127.0.0.1:{admin}/health/ready");
    let serving = serve();
    assert!(answers(&ready).await, "mantel serve was not ready");

    // `### Change the seal key`.
    let [make, list, rotate] = block("### Change the seal key", "sh").lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(run(make).output().unwrap().status.success());
    drop(serving);
    let first = "seal = [{ id = \"2027-05\", file = \"keys/seal-2027-05\" }, ";
    let config = block("## Configure", "toml").replace("seal = [", first);
    std::fs::write(dir.path().join("mantel.toml"), config).unwrap();
    let _serving = serve();
    assert!(answers(&ready).await, "mantel serve was not ready with a new seal key");
    for (command, says) in [(list, "2027-05"), (rotate, "\"2026-11\" is not needed any more"), (list, "retired")] {
        let done = run(command).output().unwrap();
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(
            done.status.success() && told.contains(says),
            "{command}: {told}{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

#[tokio::test]
async fn a_simulated_ehr_for_an_apps_own_tests() {
    let command = block("## Simulated EHRs for an app's CI", "sh");
    let port = free_port().unwrap();
    let run = command
        .replace("cargo run --release --bin simulated-ehr --", "exec simulated-ehr")
        .replace("9100", &port.to_string());
    assert!(run.starts_with("exec simulated-ehr --vendor epic --port"), "{run}");
    let dir = tempfile::tempdir().unwrap();
    let _ehr = Process(shell(&run, dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let base = "interconnect-fhir-oauth/api/FHIR/R4";
    assert!(answers(&format!("http://127.0.0.1:{port}/{base}/.well-known/smart-configuration")).await);
}

/// The two programs, each with less to do.
#[test]
fn custody_under_kills_and_at_size() {
    let commands = block("## Custody under kills and at size", "sh");
    for (program, less) in
        [("interrupt", "--kills 1 --interrupted 1 --logins 500 --ahead"), ("custody-bench", "--quick")]
    {
        let command = format!("cargo run --release --bin {program}");
        assert!(commands.lines().any(|line| line == command), "{commands}");
        let dir = tempfile::tempdir().unwrap();
        let ran = shell(&format!("exec {program} {less} --json"), dir.path()).output().unwrap();
        assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<serde_json::Value>(&ran.stdout).unwrap();
    }
}

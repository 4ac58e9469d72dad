//! `mantel keys` and `mantel grants`.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use mantel::{
    admin::commands::{self, Command, GrantEnded, KeysReport},
    config::Config,
    custody::Spill,
    entropy::{Entropy as _, SystemEntropy},
    secret::Secret,
    store::{
        GrantId, SealKeyState, Store as _,
        rotation::{self, Progress},
    },
};
use tokio::sync::watch;

use super::{
    From,
    reach::{Where, answer, configured, find},
};

#[derive(Args)]
pub struct Keys {
    #[command(flatten)]
    from: From,
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Makes a file with a new seal key, that only its owner may read.
    NewSeal {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Shows the seal keys and what each has sealed, who holds them, and the keys that sign id_tokens.
    List,
    /// Seals everything anew by the first key of `store.seal`, and says which keys are not needed any more. It may be
    /// interrupted and begun again.
    RotateSeal,
}

#[derive(Args)]
pub struct Grants {
    #[command(flatten)]
    from: From,
    #[command(subcommand)]
    command: GrantsCommand,
}

#[derive(Subcommand)]
enum GrantsCommand {
    /// Ends a grant: its tokens die, and the EHR's are revoked there.
    End {
        #[arg(value_name = "GRANT")]
        grant: uuid::Uuid,
    },
}

impl Keys {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            KeysCommand::NewSeal { file } => new_seal(&file),
            KeysCommand::List => configured(self.from, |config| Box::pin(async move { list(&config).await })),
            KeysCommand::RotateSeal => {
                configured(self.from, |config| Box::pin(async move { rotate_seal(&config).await }))
            }
        }
    }
}

impl Grants {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let GrantsCommand::End { grant } = self.command;
        configured(self.from, move |config| Box::pin(async move { end_grant(&config, GrantId(grant)).await }))
    }
}

fn new_seal(file: &Path) -> anyhow::Result<ExitCode> {
    let mut key = Secret::new([0_u8; 32]);
    SystemEntropy::new().fill(key.expose_mut());
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut made = made.with_context(|| format!("{}: a new key goes into a file of its own", file.display()))?;
    made.write_all(key.expose()).and_then(|()| made.sync_all()).with_context(|| file.display().to_string())?;
    writeln!(
        io::stdout().lock(),
        "{}: a new seal key. Keep a copy of it apart from the database's: without it every grant is lost.",
        file.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn list(config: &Config) -> anyhow::Result<ExitCode> {
    let report = match find(config).await? {
        Where::Running(client) => answer::<KeysReport>(client, Command::Keys).await?,
        Where::Here(store, rotation) => {
            let report = commands::keys(&rotation, &[]).await;
            store.close().await;
            report?
        }
    };
    io::stdout().lock().write_all(page(&report).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn page(report: &KeysReport) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("seal keys\n");
    for key in &report.seal {
        let records: Vec<String> = key.records.iter().map(|(table, n)| format!("{n} {table}")).collect();
        let does = match (key.state, key.writes, key.configured) {
            _ if key.id.is_empty() => "no key: these records are not ours, or damaged",
            (Some(SealKeyState::Retired), _, true) => "retired: may be taken out of store.seal",
            (Some(SealKeyState::Retired), _, false) => "retired",
            (_, true, _) => "writes",
            (None, _, true) => "configured, not in use yet",
            (_, _, true) => "reads; `mantel keys rotate-seal` makes it needless",
            (_, _, false) => "MISSING: add it to store.seal",
        };
        let records = if records.is_empty() { "nothing".to_owned() } else { records.join(", ") };
        let _ = writeln!(text, "  {:24} {does}\n  {:24} has sealed {records}", key.id, "");
    }
    if !report.processes.is_empty() {
        text.push_str("\ngateway processes\n");
    }
    for process in &report.processes {
        let holds = process.holds.join(", ");
        let _ = writeln!(
            text,
            "  {} (mantel {}) writes with {}, holds {holds}",
            process.boot, process.version, process.writes_with
        );
        if let Some(hindrance) = &process.hindrance {
            let _ = writeln!(text, "    {hindrance}");
        }
    }
    text.push_str("\nkeys that sign id_tokens\n");
    for (kid, created) in &report.signing {
        let made = jiff::Timestamp::from_millisecond(*created).map(|at| at.to_string()).unwrap_or_default();
        let _ = writeln!(text, "  {kid} made {made}");
    }
    text
}

async fn rotate_seal(config: &Config) -> anyhow::Result<ExitCode> {
    let mut needed = None;
    let mut show = |progress: Progress| {
        let mut out = io::stdout().lock();
        for line in lines(&progress) {
            // Whoever does not read any more still wants it done.
            let _ = writeln!(out, "{line}");
        }
        if let Progress::Done { needed: keys, .. } = progress {
            needed = Some(keys);
        }
    };
    match find(config).await? {
        Where::Running(client) => {
            client
                .send(Command::RotateSeal, |line| {
                    show(commands::read(line)?);
                    Ok(())
                })
                .await?;
        }
        Where::Here(store, rotation) => {
            // What a gateway left in its spill goes to the store at its next start, which needs the key.
            let directory = config.store.spill.as_deref();
            let spilled = directory.map(Spill::keys_in).transpose()?.unwrap_or_default();
            if let Some(key) = spilled.iter().find(|key| *key != rotation.sealer().prefers()) {
                let directory = directory.unwrap_or(Path::new("")).display();
                store.close().await;
                bail!(
                    "{directory}: answers of EHRs wait in this spill, sealed by {key:?}: start a gateway, which puts \
                    them into the store, and give the command again"
                );
            }
            // The lock says that there is no other process.
            let (_watcher, live) = watch::channel(Vec::new());
            let rotated = rotation::rotate(&rotation, live, &mut show).await;
            store.close().await;
            rotated?;
        }
    }
    // Records that cannot be read are told, and are for the operator to look at.
    match needed {
        Some(keys) if keys.is_empty() => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => bail!("the gateway ended before all was done: give the command again"),
    }
}

fn lines(progress: &Progress) -> Vec<String> {
    match progress {
        Progress::Waiting { writes_with, to_write_with, hindrances } if hindrances.is_empty() => {
            vec![format!("this process writes with {writes_with:?} still, and with {to_write_with:?} in a moment")]
        }
        Progress::Waiting { hindrances, .. } => {
            hindrances.iter().map(|hindrance| format!("waiting: {hindrance}")).collect()
        }
        Progress::Writing { key, processes: 0 } => vec![format!("new records are sealed by {key:?}")],
        Progress::Writing { key, processes } => {
            vec![format!("all live processes ({processes}) write with {key:?}")]
        }
        Progress::Resealing { table, done, of } => vec![format!("{}: {done} of {of} sealed anew", table.text())],
        Progress::Unreadable { table, record } => {
            vec![format!(
                "{}: {record}\n  it stays as it is (a grant that is lost can be ended: `mantel grants end`)",
                table.text()
            )]
        }
        Progress::Retired { key } => {
            vec![format!("{key:?} is not needed any more: take it out of `store.seal` at the next restart")]
        }
        Progress::Kept { key, records } => vec![format!("{key:?} is still needed: {records} records are sealed by it")],
        Progress::Left { key, replica } => {
            vec![format!(
                "{key:?} may still be needed: process {replica} went without a word, and may have left answers of EHRs in \
                 its spill; start a gateway on that spill and give the command again (a day after it was last seen it is \
                 not waited for)"
            )]
        }
        Progress::Done { writes_with, needed } if needed.is_empty() => {
            vec![format!("done: all records are sealed by {writes_with:?}")]
        }
        Progress::Done { needed, .. } => {
            vec![format!("done, as far as can be: still needed are {}; give the command again", needed.join(", "))]
        }
    }
}

async fn end_grant(config: &Config, grant: GrantId) -> anyhow::Result<ExitCode> {
    let Where::Running(client) = find(config).await? else {
        bail!("grants are ended by a running gateway, which revokes their tokens at the EHR")
    };
    let GrantEnded { ended } = answer(client, Command::EndGrant(grant)).await?;
    if !ended {
        bail!("there is no living grant {grant}");
    }
    writeln!(io::stdout().lock(), "grant {grant} has ended")?;
    Ok(ExitCode::SUCCESS)
}

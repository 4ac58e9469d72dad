//! `mantel registrations`: what a running gateway sees of registrations that EHRs refuse, and what an operator says of
//! them.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::bail;
use clap::{Args, Subcommand};
use mantel::{
    admin::{
        client::Client,
        commands::{Command, DeathsToldOf, RefusalsReport},
    },
    clock::Timestamp,
    config::Config,
    store::RefusedClient,
};
use mantel_adapters::site::{RegistrationId, SiteId};

use super::{
    From,
    reach::{Where, answer, configured, find},
};

#[derive(Args)]
pub struct Registrations {
    #[command(flatten)]
    from: From,
    #[command(subcommand)]
    command: RegistrationsCommand,
}

#[derive(Subcommand)]
enum RegistrationsCommand {
    /// Shows the registrations whose refresh tokens an EHR refuses, at which sites, and what happens next. While one is
    /// suspect none of its grants ends.
    Suspects,
    /// Says that refused refresh tokens are dead, not the EHR's or our mistake: each is tried once more, and whoever is
    /// refused now, or within the hour, must log in again. Told to one gateway process, it reaches all that live.
    ConfirmDeaths {
        /// The registration's name in the configuration.
        #[arg(long, value_name = "NAME")]
        registration: RegistrationId,
        /// Only of grants at this site; without it, at all sites of the registration.
        #[arg(long, value_name = "SITE")]
        site: Option<SiteId>,
    },
}

impl Registrations {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            RegistrationsCommand::Suspects => {
                configured(self.from, |config| Box::pin(async move { suspects(&config).await }))
            }
            RegistrationsCommand::ConfirmDeaths { registration, site } => configured(self.from, move |config| {
                Box::pin(async move { confirm_deaths(&config, registration, site).await })
            }),
        }
    }
}

async fn running(config: &Config) -> anyhow::Result<Client> {
    match find(config).await? {
        Where::Running(client) => Ok(client),
        Where::Here(store, _) => {
            mantel::store::Store::close(&*store).await;
            bail!("no gateway runs here: whom EHRs refuse is known to a running one alone, and a start forgets it")
        }
    }
}

async fn suspects(config: &Config) -> anyhow::Result<ExitCode> {
    let report = answer(running(config).await?, Command::Suspects).await?;
    io::stdout().lock().write_all(page(&report).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn page(report: &RefusalsReport) -> String {
    let mut text = String::new();
    let many = report.processes.len() > 1;
    for process in report.processes.iter().filter(|process| !process.refused.is_empty()) {
        if many {
            let _ = writeln!(text, "gateway process {}", process.boot);
        }
        for client in &process.refused {
            one(&mut text, client);
        }
    }
    if text.is_empty() {
        let processes = report.processes.len();
        let _ = writeln!(text, "no EHR refuses refresh tokens now (gateway processes asked: {processes})");
    }
    text
}

fn one(text: &mut String, client: &RefusedClient) {
    let RefusedClient { registration, site, client_id, refused, waiting, answer, suspect, confirmed_until } = client;
    let _ = writeln!(text, "{registration} at {site} (client id {client_id})");
    let answer = answer.as_deref().unwrap_or("none");
    match suspect {
        Some(suspect) => {
            let _ = writeln!(
                text,
                "  SUSPECT since {}: none of its grants ends, apps get 503\n  refused: {refused} grants, and {waiting} \
                 more wait; the EHR's last answer: {answer}\n  next: one grant tries at {}, and a success frees all; look at \
                 its keys, and at whether the EHR can fetch them\n  if these users must log in again: mantel registrations \
                 confirm-deaths --registration {registration} --site {site}",
                shown(suspect.since),
                shown(suspect.next_try)
            );
        }
        None => {
            let _ = writeln!(
                text,
                "  not suspect: {refused} grants refused; the EHR's last answer: {answer}\n  next: each is tried once more, \
                 as soon as another grant is renewed or ten minutes after its refusal, and ends if it is refused again"
            );
        }
    }
    if let Some(until) = confirmed_until {
        let _ = writeln!(text, "  deaths are confirmed: until {} whoever is refused ends", shown(*until));
    }
}

fn shown(at: Timestamp) -> String {
    let whole = Timestamp(at.seconds().saturating_mul(1000));
    jiff::Timestamp::from_millisecond(whole.0).map(|at| at.to_string()).unwrap_or_default()
}

async fn confirm_deaths(
    config: &Config,
    registration: RegistrationId,
    site: Option<SiteId>,
) -> anyhow::Result<ExitCode> {
    let at = site.as_ref().map_or("all its sites".to_owned(), ToString::to_string);
    let command = Command::ConfirmDeaths { registration: registration.clone(), site };
    let DeathsToldOf { tried, others } = answer(running(config).await?, command).await?;
    writeln!(
        io::stdout().lock(),
        "{registration} at {at}: {tried} refused grants are tried once more; whoever is refused now, or within an hour, \
         ends"
    )?;
    if others > 0 {
        writeln!(io::stdout().lock(), "{others} other gateway processes hear it within two seconds")?;
    }
    Ok(ExitCode::SUCCESS)
}

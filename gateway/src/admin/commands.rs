//! The commands of the admin socket. One more is a variant of [`Command`], its road in [`Command::parse`], and what it
//! does in [`Commands::carry_out`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use mantel_adapters::site::{RegistrationId, SiteId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};

use crate::store::{
    BootId, GrantId, RefusedClient, Replica, StoreResult,
    rotation::{self, SealKeyReport, SealRotation},
};

/// What can be told to a running gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `GET /keys`
    Keys,
    /// `POST /keys/rotate-seal`
    RotateSeal,
    /// `POST /grants/{id}/end`
    EndGrant(GrantId),
    /// `GET /registrations/suspects`
    Suspects,
    /// `POST /registrations/{id}/confirm-deaths`, `POST /registrations/{id}/sites/{site}/confirm-deaths`
    ConfirmDeaths { registration: RegistrationId, site: Option<SiteId> },
}

impl Command {
    pub(super) fn parse(method: &Method, path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (method.as_str(), segments.as_slice()) {
            ("GET", ["keys"]) => Some(Self::Keys),
            ("POST", ["keys", "rotate-seal"]) => Some(Self::RotateSeal),
            ("POST", ["grants", id, "end"]) => Some(Self::EndGrant(GrantId(id.parse().ok()?))),
            ("GET", ["registrations", "suspects"]) => Some(Self::Suspects),
            ("POST", ["registrations", id, "confirm-deaths"]) => {
                Some(Self::ConfirmDeaths { registration: id.parse().ok()?, site: None })
            }
            ("POST", ["registrations", id, "sites", site, "confirm-deaths"]) => {
                Some(Self::ConfirmDeaths { registration: id.parse().ok()?, site: Some(site.parse().ok()?) })
            }
            _ => None,
        }
    }

    /// For who sends it.
    pub fn road(&self) -> (Method, String) {
        match self {
            Self::Keys => (Method::GET, "/keys".into()),
            Self::RotateSeal => (Method::POST, "/keys/rotate-seal".into()),
            Self::EndGrant(id) => (Method::POST, format!("/grants/{id}/end")),
            Self::Suspects => (Method::GET, "/registrations/suspects".into()),
            Self::ConfirmDeaths { registration, site: None } => {
                (Method::POST, format!("/registrations/{registration}/confirm-deaths"))
            }
            Self::ConfirmDeaths { registration, site: Some(site) } => {
                (Method::POST, format!("/registrations/{registration}/sites/{site}/confirm-deaths"))
            }
        }
    }

    const fn changes(&self) -> bool {
        !matches!(self, Self::Keys | Self::Suspects)
    }
}

/// What a gateway does with its grants at an operator's word.
#[async_trait]
pub trait Grants: Send + Sync {
    /// Ends a grant, and revokes its tokens at the EHR where they can be read. False: there is none that lives.
    async fn end(&self, id: GrantId) -> StoreResult<bool>;
}

/// What a gateway knows of its registrations, and is told.
#[async_trait]
pub trait Registrations: Send + Sync {
    /// Whom EHRs refuse: what this process has seen, then what the others say.
    fn refusals(&self) -> Vec<ProcessRefusals>;

    /// An operator's word that a registration's refused refresh tokens are dead, at that site or at all. The error: what
    /// is unknown, and what there is.
    async fn confirm_deaths(
        &self,
        registration: &RegistrationId,
        site: Option<&SiteId>,
    ) -> Result<DeathsToldOf, String>;
}

/// What commands work on.
pub struct Commands {
    pub rotation: Arc<SealRotation>,
    /// The processes that live, renewed every second.
    pub live: watch::Receiver<Vec<Replica>>,
    pub grants: Arc<dyn Grants>,
    pub registrations: Arc<dyn Registrations>,
}

/// The keys, for `mantel keys list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReport {
    pub seal: Vec<SealKeyReport>,
    pub processes: Vec<ProcessReport>,
    /// Ids of the keys that sign id_tokens and when each was made, newest first.
    pub signing: Vec<(String, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub boot: crate::store::BootId,
    pub version: String,
    pub writes_with: String,
    pub holds: Vec<String>,
    /// What keeps this gateway from writing with its first key, if this process does.
    pub hindrance: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantEnded {
    pub ended: bool,
}

/// Whom EHRs refuse, for `mantel registrations suspects`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalsReport {
    /// The first is the one that was asked.
    pub processes: Vec<ProcessRefusals>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRefusals {
    pub boot: BootId,
    pub refused: Vec<RefusedClient>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathsToldOf {
    /// Grants of this process that were refused, and are tried once more now.
    pub tried: usize,
    /// Other gateway processes, which hear it within a second or two.
    pub others: usize,
}

/// A line that says why the command came to nothing.
#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    failed: String,
}

/// Reads a line.
///
/// # Errors
/// What the gateway says has failed, or that the line is no such thing.
pub fn read<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    if let Ok(Failed { failed }) = serde_json::from_str(line) {
        anyhow::bail!("{failed}");
    }
    serde_json::from_str(line).map_err(|_| anyhow::anyhow!("the gateway answered what this command does not know"))
}

/// # Errors
/// If the store does not serve.
pub async fn keys(rotation: &SealRotation, live: &[Replica]) -> StoreResult<KeysReport> {
    let hindrances = rotation.hindrances(live);
    let process = |it: &Replica| ProcessReport {
        boot: it.boot,
        version: it.facts.version.clone(),
        writes_with: it.facts.writes_with.clone(),
        holds: it.facts.seal_keys.keys().cloned().collect(),
        hindrance: hindrances.iter().find(|one| one.replica() == it.boot).map(ToString::to_string),
    };
    let signing = rotation.store().signing_keys().await?;
    Ok(KeysReport {
        seal: rotation::report(rotation).await?,
        processes: live.iter().map(process).collect(),
        signing: signing.into_iter().map(|key| (key.kid, key.created.0)).collect(),
    })
}

impl Commands {
    /// Does what is asked, and says so line by line. It ends with its caller, who may ask again.
    pub(super) async fn run(&self, command: Command, uid: u32, lines: mpsc::Sender<Bytes>) {
        if command.changes() {
            tracing::info!(?command, uid, "an operator's command");
        }
        let (tell, mut told) = mpsc::unbounded_channel::<Bytes>();
        let working = async {
            let tell = tell;
            if let Err(error) = self.carry_out(&command, &tell).await {
                let failed = Failed { failed: error.to_string() };
                let _ = tell.send(line(&failed));
                tracing::warn!(?command, %error, "an operator's command came to nothing");
            } else if command.changes() {
                tracing::info!(?command, "an operator's command is done");
            }
        };
        let telling = async {
            while let Some(line) = told.recv().await {
                if lines.send(line).await.is_err() {
                    return;
                }
            }
        };
        tokio::pin!(working, telling);
        tokio::select! {
            // The caller has gone; what was done is done.
            () = &mut telling => {}
            () = lines.closed() => {}
            () = &mut working => telling.await,
        }
    }

    async fn carry_out(&self, command: &Command, tell: &mpsc::UnboundedSender<Bytes>) -> anyhow::Result<()> {
        match command {
            Command::Keys => {
                let live = self.live.borrow().clone();
                let _ = tell.send(line(&keys(&self.rotation, &live).await?));
            }
            Command::RotateSeal => {
                let mut say = |progress| {
                    let _ = tell.send(line(&progress));
                };
                rotation::rotate(&self.rotation, self.live.clone(), &mut say).await?;
            }
            Command::EndGrant(id) => {
                let ended = GrantEnded { ended: self.grants.end(*id).await? };
                let _ = tell.send(line(&ended));
            }
            Command::Suspects => {
                let _ = tell.send(line(&RefusalsReport { processes: self.registrations.refusals() }));
            }
            Command::ConfirmDeaths { registration, site } => {
                let told = self.registrations.confirm_deaths(registration, site.as_ref()).await;
                let _ = tell.send(line(&told.map_err(anyhow::Error::msg)?));
            }
        }
        Ok(())
    }
}

fn line<T: Serialize>(value: &T) -> Bytes {
    let mut line =
        serde_json::to_vec(value).unwrap_or_else(|_| b"{\"failed\":\"no answer could be written\"}".to_vec());
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_parsed_from_its_road() {
        let grant = GrantId(uuid::Uuid::from_u128(7));
        let registration: RegistrationId = "viewer-epic".parse().unwrap();
        let dead = |site| Command::ConfirmDeaths { registration: registration.clone(), site };
        let (everywhere, at_one) = (dead(None), dead(Some("general".parse().unwrap())));
        let others = [Command::Keys, Command::RotateSeal, Command::EndGrant(grant), Command::Suspects];
        for command in others.into_iter().chain([everywhere, at_one]) {
            let (method, path) = command.road();
            assert_eq!(Command::parse(&method, &path), Some(command));
            assert_eq!(Command::parse(&Method::PUT, &path), None);
        }
        let unknown = ["/registrations/A%20B/confirm-deaths", "/registrations/a/sites//confirm-deaths"];
        for path in ["/", "", "/keys/", "/grants/x/end", "/grants//end", "keys"].into_iter().chain(unknown) {
            assert_eq!(Command::parse(&Method::POST, path), None, "{path}");
        }
    }

    #[test]
    fn a_failure_is_told_from_an_answer() {
        assert_eq!(read::<GrantEnded>("{\"ended\":true}").unwrap(), GrantEnded { ended: true });
        assert_eq!(
            read::<GrantEnded>("{\"failed\":\"the store is away\"}").unwrap_err().to_string(),
            "the store is away"
        );
        assert!(read::<GrantEnded>("{}").is_err());
    }
}

//! Faults on demand: which call fails, how, and how often.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A scripted fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// The name of a call as it is counted (`token:refresh_token`), or the part of it before `:`.
    pub at: String,
    #[serde(flatten)]
    pub kind: FaultKind,
    /// How many calls it strikes; none: all.
    #[serde(default)]
    pub times: Option<u64>,
    /// Strikes only calls whose raw path and query contain this.
    #[serde(default)]
    pub path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultKind {
    /// Waits, then goes on to the next fault or the work.
    Slow { ms: u64 },
    /// Waits until [`Faults::release`].
    Hold,
    /// An empty answer in the place of the work.
    Status { status: u16 },
    /// A proxy's HTML page in the place of the work.
    Html { status: u16 },
    /// Does the work, and aborts the connection in the middle of the answer's body.
    Reset,
    #[serde(alias = "429")]
    TooMany {
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// The vendor's word for a dead refresh token; nothing happens to the token.
    Burnt,
    /// Practice, Flow: 500 with `invalid_client`, which means nothing.
    Inner,
    /// Does the work, rotation and all, and drops the connection without an answer.
    LostAnswer,
}

impl FaultKind {
    const fn only_waits(&self) -> bool {
        matches!(self, Self::Slow { .. } | Self::Hold)
    }
}

impl Fault {
    pub fn new(at: &str, kind: FaultKind) -> Self {
        Self { at: at.to_owned(), kind, times: None, path: None }
    }

    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    fn strikes(&self, name: &str, target: &str) -> bool {
        let at = name == self.at || name.strip_prefix(self.at.as_str()).is_some_and(|rest| rest.starts_with(':'));
        at && self.times != Some(0) && self.path.as_deref().is_none_or(|part| target.contains(part))
    }
}

pub struct Faults {
    script: Mutex<Vec<Fault>>,
    /// Raised at each release.
    released: watch::Sender<u64>,
    /// How many calls are held now.
    held: watch::Sender<usize>,
    /// How many calls were ever held.
    holds: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            script: Mutex::default(),
            released: watch::Sender::new(0),
            held: watch::Sender::new(0),
            holds: watch::Sender::new(0),
        }
    }
}

impl Faults {
    pub fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    pub fn clear(&self) {
        self.lock().clear();
        self.release();
    }

    pub fn left(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    /// What strikes a call: every wait before, and at most one fault in the place of the work.
    pub fn take(&self, name: &str, target: &str) -> Vec<FaultKind> {
        let mut script = self.lock();
        let mut struck = Vec::new();
        for fault in script.iter_mut().filter(|fault| fault.strikes(name, target)) {
            fault.times = fault.times.map(|times| times.saturating_sub(1));
            struck.push(fault.kind.clone());
            if !fault.kind.only_waits() {
                break;
            }
        }
        script.retain(|fault| fault.times != Some(0));
        struck
    }

    /// Lets go of all calls that [`FaultKind::Hold`] holds.
    pub fn release(&self) {
        self.released.send_modify(|count| *count += 1);
    }

    pub async fn hold(&self) {
        let mut released = self.released.subscribe();
        let now = *released.borrow_and_update();
        self.held.send_modify(|held| *held += 1);
        self.holds.send_modify(|holds| *holds += 1);
        // A dropped request is no longer held.
        let _guard = Guard(&self.held);
        // An error means that the EHR is gone, and nobody is held.
        let _ = released.wait_for(|count| *count > now).await;
    }

    /// Waits until that many calls are held, so that tests need no sleep.
    pub async fn wait_held(&self, count: usize) {
        let _ = self.held.subscribe().wait_for(|held| *held >= count).await;
    }

    /// Waits until that many calls were held since the start, released or not.
    pub async fn wait_holds(&self, count: u64) {
        let _ = self.holds.subscribe().wait_for(|holds| *holds >= count).await;
    }

    /// Waits until no call is held: those that were are answered, or their callers are gone.
    pub async fn wait_free(&self) {
        let _ = self.held.subscribe().wait_for(|held| *held == 0).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Guard<'a>(&'a watch::Sender<usize>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_followed_in_order() {
        let faults = Faults::default();
        faults.add(Fault::new("token", FaultKind::Slow { ms: 1 }).times(1));
        faults.add(Fault::new("token:refresh_token", FaultKind::Burnt).times(1));
        faults.add(Fault { path: Some("Patient/1".into()), ..Fault::new("fhir", FaultKind::Reset) });
        assert_eq!(faults.take("token:refresh_token", "/token"), [FaultKind::Slow { ms: 1 }, FaultKind::Burnt]);
        assert_eq!(faults.take("token:refresh_token", "/token"), []);
        assert_eq!(faults.take("tokens", "/token"), []);
        assert_eq!(faults.take("fhir:GET Patient", "/r4/Patient/2"), []);
        for _ in 0..2 {
            assert_eq!(faults.take("fhir:GET Patient", "/r4/Patient/1"), [FaultKind::Reset]);
        }
    }

    #[test]
    fn faults_are_read_from_json() {
        let script = r#"[{"at":"token:refresh_token","kind":"slow","ms":50},{"at":"fhir","kind":"429","retry_after":2,"times":1},
            {"at":"discovery","kind":"html","status":502,"path":"well-known"},{"at":"fhir","kind":"lost_answer","times":null}]"#;
        let faults: Vec<Fault> = serde_json::from_str(script).unwrap();
        assert_eq!(faults[1].kind, FaultKind::TooMany { retry_after: Some(2) });
        assert_eq!(faults[3].times, None);
        assert!(serde_json::from_str::<Fault>(r#"{"at":"fhir","kind":"explode"}"#).is_err());
    }
}

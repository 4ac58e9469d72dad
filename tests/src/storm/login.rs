//! One patient's login in one app: reads all the while, refreshes its own token now and then, and tries again
//! with the same token when it hears nothing, as a good client does.

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use super::journal::now;
use crate::{
    custody::interrupt::Die,
    ehr::fhir::MARK_SYSTEM,
    harness::{
        Answer, Connections,
        app::{App, Tokens, tokens},
        call_over,
    },
};

/// An app hangs up then.
const PATIENCE: Duration = Duration::from_secs(8);

/// For a whole launch, with all its pages.
const LAUNCH: Duration = Duration::from_secs(30);

/// Between two reads of one reader, from half of it to one and a half.
const PAUSE: Duration = Duration::from_millis(1500);

/// Between two refreshes of the app's own token.
const OWN_REFRESH: Duration = Duration::from_secs(20);

/// So long a client may repeat a refresh whose answer it never got (`custody.md`, "Our own tokens").
pub const GRACE: i64 = 30_000;

/// How reads ended.
#[derive(Default)]
pub struct Reads {
    pub served: AtomicU64,
    /// 503, with a time.
    pub later: AtomicU64,
    /// 502, 504: the EHR cannot be reached.
    pub no_ehr: AtomicU64,
    /// 429.
    pub busy: AtomicU64,
    /// 403: the EHR refused a bearer that was the newest.
    pub theirs: AtomicU64,
    /// The connection was refused or cut, or the app hung up.
    pub unheard: AtomicU64,
}

/// A login that is over.
#[derive(Clone, Debug)]
pub struct Logout {
    pub at: i64,
    /// When the login was made, after which the EHR's grant began.
    pub since: i64,
    /// How long the app had been trying to refresh its own token.
    pub tried_for: i64,
    /// Its refreshes whose answer it never got, of the whole login.
    pub unheard: Vec<Attempt>,
}

/// A refresh of the app's own token that was given up.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub until: i64,
    /// To which gateway; none: the front chose.
    pub gateway: Option<usize>,
}

/// How many requests are under way, and were at most.
#[derive(Default)]
pub struct Crowd {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Crowd {
    fn join(&self) -> Joined<'_> {
        self.most.fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
        Joined(self)
    }

    pub fn most(&self) -> usize {
        self.most.load(Relaxed)
    }
}

struct Joined<'a>(&'a Crowd);

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

/// What all logins share.
pub struct Callers {
    pub front: SocketAddr,
    /// Each gateway's own address.
    pub gateways: Vec<SocketAddr>,
    pub http: Connections,
    pub die: Die,
    /// Requests under way.
    pub crowd: Crowd,
    /// Raised when all read at once.
    pub herd: watch::Sender<u64>,
    /// Set at the end.
    pub stop: watch::Sender<bool>,
    /// Answers that no login should ever get.
    pub wrong: RwLock<Vec<String>>,
}

pub struct Login {
    pub site: String,
    pub patient: String,
    pub username: String,
    pub mark: String,
    pub app: App,
    pub reads: Reads,
    pub logouts: RwLock<Vec<Logout>>,
    /// How the newest request that was not served ended.
    pub trouble: RwLock<String>,
    held: RwLock<Held>,
    /// One refresh of the app's own token at a time.
    refreshing: Mutex<()>,
    callers: Arc<Callers>,
}

struct Held {
    tokens: Tokens,
    since: i64,
    refreshed: Instant,
    unheard: Vec<Attempt>,
}

/// How one read ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    Served,
    Refused(u16),
    Unheard,
}

impl Login {
    pub async fn new(
        callers: Arc<Callers>,
        (site, username, patient, mark): (String, String, String, String),
        app: App,
    ) -> Result<Self> {
        let since = now();
        let tokens = app.launch_as(&username).await.with_context(|| format!("{username} at {site}"))?;
        let held = RwLock::new(Held { tokens, since, refreshed: Instant::now(), unheard: Vec::new() });
        Ok(Self {
            site,
            patient,
            username,
            mark,
            app,
            reads: Reads::default(),
            logouts: RwLock::default(),
            trouble: RwLock::default(),
            held,
            refreshing: Mutex::default(),
            callers,
        })
    }

    fn tokens(&self) -> Tokens {
        self.held.read().unwrap_or_else(PoisonError::into_inner).tokens.clone()
    }

    /// Reads until the end.
    pub async fn live(&self) {
        let (mut stop, mut herd) = (self.callers.stop.subscribe(), self.callers.herd.subscribe());
        loop {
            let pause = PAUSE / 2 + self.callers.die.within(PAUSE);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = herd.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            self.read().await;
            let refreshed = self.held.read().unwrap_or_else(PoisonError::into_inner).refreshed;
            if refreshed.elapsed() > OWN_REFRESH + self.callers.die.within(OWN_REFRESH / 4) {
                self.renew(&self.tokens()).await;
            }
        }
    }

    /// One read, by a gateway of chance; a 401 leads to a refresh, and that to a new launch.
    pub async fn read(&self) -> Read {
        let held = self.tokens();
        let url = format!("{}/Patient/{}", self.app.base, self.patient);
        let bearer = format!("Bearer {}", held.access());
        let Some(answer) = self.ask(self.choose(), Method::GET, &url, &[("authorization", &bearer)], "").await else {
            self.reads.unheard.fetch_add(1, Relaxed);
            self.trouble("a read heard nothing".to_owned());
            return Read::Unheard;
        };
        let count = match answer.status.as_u16() {
            200 => {
                self.check(&answer);
                self.reads.served.fetch_add(1, Relaxed);
                return Read::Served;
            }
            401 => {
                self.renew(&held).await;
                return Read::Refused(401);
            }
            503 => &self.reads.later,
            502 | 504 => &self.reads.no_ehr,
            429 => &self.reads.busy,
            403 => &self.reads.theirs,
            _ => {
                self.wrong(&format!("{} {}", answer.status, answer.text()));
                return Read::Refused(answer.status.as_u16());
            }
        };
        count.fetch_add(1, Relaxed);
        self.trouble(format!("a read heard {} {:?} {}", answer.status, answer.header("retry-after"), answer.text()));
        if answer.status == 503 && answer.header("retry-after").is_none() {
            self.wrong("503 without Retry-After");
        }
        Read::Refused(answer.status.as_u16())
    }

    /// Each patient's data carries a mark of its own.
    fn check(&self, answer: &Answer) {
        if let Err(whose) = is_of(&answer.json().unwrap_or_default(), &self.patient, &self.mark) {
            self.wrong(&whose);
        }
    }

    fn trouble(&self, what: String) {
        *self.trouble.write().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn wrong(&self, what: &str) {
        let line = format!("{} {} {}: {what}", self.site, self.app.client_id, self.username);
        self.callers.wrong.write().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Refreshes the app's own token, unless somebody did meanwhile; a refusal is a logout.
    async fn renew(&self, held: &Tokens) {
        let _alone = self.refreshing.lock().await;
        if self.tokens().access() != held.access() {
            return;
        }
        let mut stop = self.callers.stop.subscribe();
        let first = now();
        while !*stop.borrow_and_update() {
            let pairs = [("grant_type", "refresh_token"), ("refresh_token", held.refresh())];
            let answer = self.post(&pairs).await;
            match answer {
                Some(answer) if answer.status == StatusCode::OK => {
                    match tokens(&answer) {
                        Ok(next) => self.hold(next, None),
                        Err(fault) => self.wrong(&format!("{fault:#}")),
                    }
                    return;
                }
                Some(answer) if answer.status == StatusCode::BAD_REQUEST => {
                    let error = answer.json().unwrap_or_default()["error"].clone();
                    if error != "invalid_grant" {
                        self.wrong(&format!("the token endpoint said {error}"));
                    }
                    self.logged_out(now() - first);
                    return self.launch_again().await;
                }
                answer => {
                    let said =
                        answer.map_or("nothing".to_owned(), |answer| format!("{} {}", answer.status, answer.text()));
                    self.trouble(format!("a refresh heard {said}"));
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            }
        }
    }

    /// One login ends once, however often that is told while a new launch fails.
    fn logged_out(&self, tried_for: i64) {
        let (since, unheard) = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            (held.since, held.unheard.clone())
        };
        let logout = Logout { at: now(), since, tried_for, unheard };
        let mut logouts = self.logouts.write().unwrap_or_else(PoisonError::into_inner);
        if logouts.last().is_none_or(|last| last.since != logout.since) {
            logouts.push(logout);
        }
    }

    /// The user comes back, as soon as that is possible.
    async fn launch_again(&self) {
        let stop = self.callers.stop.subscribe();
        while !*stop.borrow() {
            let since = now();
            let launch = tokio::time::timeout(LAUNCH, self.app.launch_as(&self.username)).await;
            match launch {
                Ok(Ok(tokens)) => return self.hold(tokens, Some(since)),
                Ok(Err(fault)) => self.trouble(format!("a launch failed: {fault:#}")),
                Err(_) => self.trouble("a launch took too long".to_owned()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn hold(&self, tokens: Tokens, since: Option<i64>) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.tokens = tokens;
        held.refreshed = Instant::now();
        if let Some(since) = since {
            held.since = since;
            held.unheard.clear();
        }
    }

    async fn post(&self, pairs: &[(&str, &str)]) -> Option<Answer> {
        let (headers, body) = self.app.token_request(pairs);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let gateway = self.choose();
        let answer = self.ask(gateway, Method::POST, &self.app.token, &headers, &body).await;
        if answer.is_none() {
            let attempt = Attempt { until: now(), gateway };
            self.held.write().unwrap_or_else(PoisonError::into_inner).unheard.push(attempt);
        }
        answer
    }

    /// Two of three requests go to the front, the others to a gateway of chance.
    fn choose(&self) -> Option<usize> {
        let count = self.callers.gateways.len();
        let chosen = self.callers.die.roll(u64::try_from(count).unwrap_or(1) * 3);
        usize::try_from(chosen).ok().filter(|chosen| *chosen < count)
    }

    async fn ask(
        &self,
        gateway: Option<usize>,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        let callers = &self.callers;
        let front = callers.front.to_string();
        let url = match gateway.and_then(|gateway| callers.gateways.get(gateway)) {
            Some(gateway) => url.replacen(&front, &gateway.to_string(), 1),
            None => url.to_owned(),
        };
        let _joined = callers.crowd.join();
        let answer = call_over(&callers.http, method, &url, headers, body);
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

/// Whether a record is this patient's and bears the patient's mark, and no other's.
fn is_of(record: &Value, patient: &str, mark: &str) -> Result<(), String> {
    let tags = record["meta"]["tag"].as_array().map(Vec::as_slice).unwrap_or_default();
    let marks: Vec<&Value> = tags.iter().filter(|tag| tag["system"] == MARK_SYSTEM).map(|tag| &tag["code"]).collect();
    if record["id"] == patient && marks == [mark] {
        return Ok(());
    }
    Err(format!("another's data: {} with marks {marks:?}, expected {patient} with {mark}", record["id"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_patients_record_or_mark_is_seen() {
        let record =
            |id: &str, mark: &str| json!({ "id": id, "meta": { "tag": [{ "system": MARK_SYSTEM, "code": mark }] } });
        assert_eq!(is_of(&record("one", "a"), "one", "a"), Ok(()));
        assert!(is_of(&record("one", "b"), "one", "a").is_err(), "another's mark");
        assert!(is_of(&record("two", "a"), "one", "a").is_err(), "another's record");
        assert!(is_of(&json!({ "id": "one" }), "one", "a").is_err(), "no mark");
        assert!(is_of(&Value::Null, "one", "a").is_err(), "no record");
    }

    #[test]
    fn a_crowd_is_counted_at_its_most() {
        let crowd = Crowd::default();
        let (first, second) = (crowd.join(), crowd.join());
        drop((first, second));
        let _third = crowd.join();
        assert_eq!(crowd.most(), 2);
    }
}

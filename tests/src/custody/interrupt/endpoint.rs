//! A strict EHR's token endpoint that keeps a ledger: each use of a refresh token burns it, a burnt one ends the
//! login (RFC 9700, 4.14.2). It speaks HTTP by itself, to know the moment at which an answer has left.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// What an access token is good for: short, so that grants can be refreshed again and again.
pub const LIFETIME: Duration = Duration::from_secs(4);

/// A login at the EHR.
#[derive(Clone, Debug)]
pub struct Login {
    /// The number of the refresh token that is alive: the first is 1, as a grant's first generation.
    pub current: u32,
    /// A burnt token was presented.
    pub ended: bool,
    pub requests: Vec<Request>,
}

/// A token request as it went here.
#[derive(Clone, Debug)]
pub struct Request {
    /// In which life of the process.
    pub life: u32,
    /// The number of the refresh token.
    pub presented: u32,
    /// When the EHR issued new tokens. None: it never did, for that it was refused or its sender had gone.
    pub rotated: Option<Instant>,
    pub refused: bool,
    /// When the answer, all of it, had been handed to the network.
    pub answered: Option<Instant>,
}

/// Moments at which somebody may want to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Arrived,
    Answered,
}

type Told = Box<dyn Fn(Moment) + Send + Sync>;

struct Shared {
    ledger: Mutex<BTreeMap<u32, Login>>,
    life: AtomicU32,
    connections: watch::Sender<usize>,
    pause: Duration,
    die: Die,
    told: Told,
    address: SocketAddr,
    origin: String,
}

pub struct Endpoint {
    shared: Arc<Shared>,
    // Dropping it ends the server.
    _server: JoinSet<()>,
}

/// SplitMix64.
pub struct Die(AtomicU64);

impl Die {
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub fn roll(&self, below: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(below).unwrap_or(0)
    }

    pub fn within(&self, longest: Duration) -> Duration {
        Duration::from_micros(self.roll(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// The refresh token `count` of login `number`.
pub fn refresh_token(number: u32, count: u32) -> String {
    format!("rt.{number}.{count}.{:0>200}", "x")
}

/// As long as an EHR's.
pub fn access_token(number: u32, count: u32) -> String {
    format!("at.{number}.{count}.{:0>800}", "x")
}

fn read_token(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix("rt.")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Endpoint {
    /// `pause`: the longest that a request waits before it is acted upon, and again before it is answered.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start(seed: u64, pause: Duration, told: impl Fn(Moment) + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            ledger: Mutex::default(),
            life: AtomicU32::new(0),
            connections: watch::Sender::new(0),
            pause,
            die: Die::new(seed),
            told: Box::new(told),
            origin: format!("http://{address}"),
            address,
        });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, shared.clone()));
        Ok(Self { shared, _server: server })
    }

    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// Opens logins that have their first tokens.
    pub fn open(&self, numbers: std::ops::Range<u32>) {
        let login = || Login { current: 1, ended: false, requests: Vec::new() };
        self.ledger().extend(numbers.map(|number| (number, login())));
    }

    /// Requests that come over new connections belong to this life.
    pub fn set_life(&self, life: u32) {
        self.shared.life.store(life, Ordering::Relaxed);
    }

    /// Waits until everything that was sent by a process which has gone is read and acted upon.
    ///
    /// # Errors
    /// If that takes longer than 10 s.
    pub async fn quiet(&self) -> Result<()> {
        // What is answered on a connection of our own has found those before it accepted.
        let mut own = TcpStream::connect(self.shared.address).await?;
        own.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        own.read_u8().await?;
        drop(own);
        let mut connections = self.shared.connections.subscribe();
        let none = connections.wait_for(|open| *open == 0);
        tokio::time::timeout(Duration::from_secs(10), none).await.context("connections of a dead process")??;
        Ok(())
    }

    pub fn ledger(&self) -> MutexGuard<'_, BTreeMap<u32, Login>> {
        self.shared.ledger()
    }
}

impl Shared {
    /// Whole after each change.
    fn ledger(&self) -> MutexGuard<'_, BTreeMap<u32, Login>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_request<T>(&self, at: (u32, usize), change: impl FnOnce(&mut Login, usize) -> T) -> Option<T> {
        self.ledger().get_mut(&at.0).map(|login| change(login, at.1))
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Each ends with its process; a task that is dropped here would forget a request.
    let mut open = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        shared.connections.send_modify(|open| *open += 1);
        let shared = shared.clone();
        let life = shared.life.load(Ordering::Relaxed);
        open.spawn(async move {
            // The other side's end is what this is made for.
            let _ = connection(socket, life, &shared).await;
            shared.connections.send_modify(|open| *open -= 1);
        });
        while open.try_join_next().is_some() {}
    }
}

async fn connection(mut socket: TcpStream, life: u32, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some((head, body)) = message(&mut socket, &mut buffer).await? {
        if head.starts_with("POST /token ") {
            token(&mut socket, &body, life, shared).await?;
        } else {
            let document = json!({
                "issuer": shared.origin,
                "authorization_endpoint": format!("{}/authorize", shared.origin),
                "token_endpoint": format!("{}/token", shared.origin),
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "capabilities": ["launch-standalone", "client-confidential-symmetric"],
                "code_challenge_methods_supported": ["S256"],
            });
            socket.write_all(&answer("200 OK", &document)).await?;
        }
    }
    Ok(())
}

/// The next message, whole. None: the other side has closed, perhaps in the middle of one.
async fn message(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            let whole = end + 4 + length.unwrap_or(0_usize);
            if buffer.len() >= whole {
                let rest = buffer.split_off(whole);
                let mut message = std::mem::replace(buffer, rest);
                return Ok(Some((head, message.split_off(end + 4))));
            }
        }
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn token(socket: &mut TcpStream, body: &[u8], life: u32, shared: &Shared) -> io::Result<()> {
    let pairs: BTreeMap<_, _> = form_urlencoded::parse(body).collect();
    let presented = pairs.get("refresh_token").and_then(|token| read_token(token));
    let begun = presented.and_then(|(number, presented)| {
        let request = Request { life, presented, rotated: None, refused: false, answered: None };
        let position = shared.on_request((number, 0), |login, _| {
            login.requests.push(request);
            login.requests.len() - 1
        })?;
        Some((presented, (number, position)))
    });
    let Some((presented, at)) = begun else {
        return socket.write_all(&answer("400 Bad Request", &json!({"error": "invalid_request"}))).await;
    };
    (shared.told)(Moment::Arrived);
    let pause = shared.die.within(shared.pause);
    // Some servers see that their caller has gone and drop the work; others do not.
    if shared.die.roll(2) == 0 {
        tokio::time::sleep(pause).await;
    } else {
        let mut byte = [0; 1];
        tokio::select! {
            biased;
            _ = socket.peek(&mut byte) => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
    let (number, position) = at;
    let next = shared.on_request(at, |login, position| {
        let good = login.current == presented && !login.ended;
        login.ended |= login.current != presented;
        login.current += u32::from(good);
        if let Some(request) = login.requests.get_mut(position) {
            request.rotated = good.then(Instant::now);
            request.refused = !good;
        }
        good.then_some(login.current)
    });
    tokio::time::sleep(shared.die.within(shared.pause)).await;
    let bytes = match next.flatten() {
        Some(next) => answer(
            "200 OK",
            &json!({
                "access_token": access_token(number, next),
                "refresh_token": refresh_token(number, next),
                "token_type": "Bearer",
                "expires_in": LIFETIME.as_secs(),
                "scope": "patient/Patient.rs",
            }),
        ),
        None => answer("400 Bad Request", &json!({"error": "invalid_grant"})),
    };
    socket.write_all(&bytes).await?;
    shared.on_request((number, position), |login, position| {
        if let Some(request) = login.requests.get_mut(position) {
            request.answered = Some(Instant::now());
        }
    });
    (shared.told)(Moment::Answered);
    Ok(())
}

fn answer(status: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Answer, get, post_form};

    async fn refresh(endpoint: &Endpoint, token: &str) -> Answer {
        let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];
        post_form(&format!("{}/token", endpoint.origin()), &[], &pairs).await.unwrap()
    }

    #[tokio::test]
    async fn a_burnt_token_ends_its_login_and_no_other() {
        let endpoint = Endpoint::start(1, Duration::ZERO, |_| ()).await.unwrap();
        endpoint.open(0..2);
        let found = get(&format!("{}/.well-known/smart-configuration", endpoint.origin()), &[]).await.unwrap();
        assert_eq!(found.json().unwrap()["token_endpoint"], format!("{}/token", endpoint.origin()));
        let first = refresh_token(0, 1);
        let answer = refresh(&endpoint, &first).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json().unwrap()["refresh_token"].as_str()),
            (200, Some(&*refresh_token(0, 2)))
        );
        assert_eq!(refresh(&endpoint, &first).await.status, 400);
        assert_eq!(refresh(&endpoint, &refresh_token(0, 2)).await.status, 400, "the reuse has ended the login");
        assert_eq!(refresh(&endpoint, &refresh_token(1, 1)).await.status, 200);
        let ledger = endpoint.ledger().clone();
        let told: Vec<_> =
            ledger[&0].requests.iter().map(|it| (it.presented, it.rotated.is_some(), it.refused)).collect();
        assert_eq!(told, [(1, true, false), (1, false, true), (2, false, true)]);
        assert!(ledger[&0].ended && !ledger[&1].ended);
        endpoint.quiet().await.unwrap();
    }
}

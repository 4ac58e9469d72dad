//! A network that can be cut: a TCP proxy on loopback, between a gateway and an EHR, a store, or its callers.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::ports::free_port;

/// What a wire does with what is sent over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Forwards each piece after so long, either way.
    Carry(Duration),
    /// Connections are accepted and kept, and nothing passes, either way.
    Silent,
    /// There is nobody: connections are reset, and new ones refused.
    Cut,
}

impl Conduct {
    pub const OPEN: Self = Self::Carry(Duration::ZERO);
}

/// A proxy that listens until this is dropped.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    // Dropping a set aborts its tasks.
    _tasks: JoinSet<()>,
}

struct Shared {
    /// Where it leads, by turns.
    ends: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
    conduct: watch::Sender<Conduct>,
    /// Raised at each reset of all connections.
    resets: watch::Sender<u64>,
    losses: Mutex<Option<Losses>>,
    follow: Mutex<Option<Recognise>>,
    exchanges: Mutex<Vec<Exchange>>,
    counts: Counts,
}

/// A name for a request that is to be followed, from its first piece.
type Recognise = fn(&[u8]) -> Option<String>;

/// A request that was followed. Instants are in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub name: String,
    /// When it came to the wire.
    pub sent: i64,
    /// When the far end was given it; none: it never was.
    pub forwarded: Option<i64>,
    /// None: neither has come.
    pub end: Option<(i64, Passage)>,
}

/// How a request ended on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The near end has the first piece of the answer.
    Answered,
    /// The answer came and was not carried.
    Swallowed,
    /// The connection was reset here.
    Cut,
    /// The near end was gone before there was an answer.
    HungUp,
}

/// Answers that are not to arrive.
struct Losses {
    to: Vec<u8>,
    times: u64,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    reset: AtomicU64,
    lost: AtomicU64,
}

/// What a wire has seen so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub connections: u64,
    /// Those that were reset, for whatever reason.
    pub reset: u64,
    /// Answers that were swallowed.
    pub lost: u64,
}

/// A connection that ends with a reset.
struct Reset;

/// One connection, and which of its requests is followed.
struct Course<'a> {
    shared: &'a Shared,
    /// Its answer is not to arrive.
    doomed: AtomicBool,
    followed: Mutex<Option<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Wire {
    /// Leads to these addresses, by turns; one that nobody listens on is passed over. They may be told later,
    /// by [`Wire::lead_to`].
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(ends: impl IntoIterator<Item = SocketAddr>) -> Result<Self> {
        let port = free_port()?;
        let shared = Arc::new(Shared {
            ends: Mutex::new(ends.into_iter().collect()),
            turn: AtomicUsize::new(0),
            conduct: watch::Sender::new(Conduct::OPEN),
            resets: watch::Sender::new(0),
            losses: Mutex::new(None),
            follow: Mutex::new(None),
            exchanges: Mutex::default(),
            counts: Counts::default(),
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(address, listener, shared.clone()));
        // `localhost` resolves to either family.
        let second = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        if let Ok(listener) = TcpListener::bind(second).await {
            tasks.spawn(listen(second, listener, shared.clone()));
        }
        Ok(Self { address, shared, _tasks: tasks })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn lead_to(&self, ends: impl IntoIterator<Item = SocketAddr>) {
        *lock(&self.shared.ends) = ends.into_iter().collect();
    }

    /// What holds from now on, for connections that exist too.
    pub fn conduct(&self, conduct: Conduct) {
        self.shared.conduct.send_replace(conduct);
        if conduct == Conduct::Cut {
            self.reset_all();
        }
    }

    pub fn open(&self) {
        self.conduct(Conduct::OPEN);
    }

    /// Resets the connections that exist; new ones are welcome.
    pub fn reset_all(&self) {
        self.shared.resets.send_modify(|count| *count += 1);
    }

    /// The next `times` requests that hold this text are forwarded, and when the answer comes, it is swallowed
    /// and the connection reset.
    pub fn lose_answers(&self, to: &str, times: u64) {
        *lock(&self.shared.losses) = Some(Losses { to: to.as_bytes().to_vec(), times });
    }

    /// Follows each request that is recognised from here on; [`Wire::exchanges`] tells.
    pub fn follow(&self, recognise: Recognise) {
        *lock(&self.shared.follow) = Some(recognise);
    }

    /// What was followed so far, as it came.
    pub fn exchanges(&self) -> Vec<Exchange> {
        lock(&self.shared.exchanges).clone()
    }

    pub fn seen(&self) -> Seen {
        let counts = &self.shared.counts;
        Seen {
            connections: counts.connections.load(Relaxed),
            reset: counts.reset.load(Relaxed),
            lost: counts.lost.load(Relaxed),
        }
    }
}

async fn listen(address: SocketAddr, listener: TcpListener, shared: Arc<Shared>) {
    let mut conduct = shared.conduct.subscribe();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if *conduct.borrow_and_update() == Conduct::Cut {
            listener = None;
        } else if listener.is_none() {
            // The port stays ours: nobody else is given it in this process, and it is not the kernel's to give.
            listener = TcpListener::bind(address).await.ok();
        }
        tokio::select! {
            accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None if *shared.conduct.borrow() == Conduct::Cut => std::future::pending().await,
                    None => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Err(std::io::ErrorKind::AddrInUse.into())
                    }
                }
            } => match accepted {
                Ok((stream, _)) => {
                    shared.counts.connections.fetch_add(1, Relaxed);
                    // Subscribed here, so that no reset falls between the acceptance and the task's first step.
                    connections.spawn(carry(stream, shared.resets.subscribe(), shared.clone()));
                }
                // Out of file descriptors, or not bound again yet.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            },
            _ = conduct.changed() => {}
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut near: TcpStream, mut resets: watch::Receiver<u64>, shared: Arc<Shared>) {
    let far = tokio::select! {
        far = connect(&shared) => far,
        _ = resets.changed() => None,
    };
    let Some(mut far) = far else {
        shared.counts.reset.fetch_add(1, Relaxed);
        let _ = near.set_zero_linger();
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let course = Course { shared: &shared, doomed: AtomicBool::new(false), followed: Mutex::new(None) };
    let end = {
        let (mut near_read, mut near_write) = near.split();
        let (mut far_read, mut far_write) = far.split();
        let both = async {
            let up = pump(&mut near_read, &mut far_write, &course, Way::Up);
            let down = pump(&mut far_read, &mut near_write, &course, Way::Down);
            tokio::try_join!(up, down)
        };
        tokio::select! {
            end = both => end,
            _ = resets.changed() => {
                course.ended(Passage::Cut);
                Err(Reset)
            }
        }
    };
    if end.is_err() {
        shared.counts.reset.fetch_add(1, Relaxed);
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}

/// The next end that somebody listens on.
async fn connect(shared: &Shared) -> Option<TcpStream> {
    shared.passable().await?;
    let ends = lock(&shared.ends).clone();
    let turn = shared.turn.fetch_add(1, Relaxed);
    for n in 0..ends.len() {
        let end = ends.get(turn.wrapping_add(n) % ends.len())?;
        if let Ok(stream) = TcpStream::connect(end).await {
            return Some(stream);
        }
    }
    None
}

/// Carries one direction to its end.
async fn pump(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    course: &Course<'_>,
    way: Way,
) -> Result<(), Reset> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or_default();
        let piece = buffer.get(..count).unwrap_or_default();
        match (way, piece.is_empty()) {
            (Way::Up, true) => course.ended(Passage::HungUp),
            (Way::Up, false) => course.came(piece),
            (Way::Down, _) => {}
        }
        let Some(delay) = course.shared.passable().await else {
            course.ended(Passage::Cut);
            return Err(Reset);
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if piece.is_empty() {
            // The other direction goes on.
            let _ = to.shutdown().await;
            return Ok(());
        }
        match way {
            Way::Up => course.forwards(piece),
            Way::Down if course.doomed.load(Relaxed) => {
                course.shared.counts.lost.fetch_add(1, Relaxed);
                course.ended(Passage::Swallowed);
                return Err(Reset);
            }
            Way::Down => {}
        }
        let carried = to.write_all(piece).await;
        if way == Way::Down {
            course.ended(if carried.is_ok() { Passage::Answered } else { Passage::HungUp });
        }
        carried.map_err(|_| Reset)?;
    }
}

impl Course<'_> {
    /// A piece has come from the near end.
    fn came(&self, piece: &[u8]) {
        let Some(name) = lock(&self.shared.follow).and_then(|recognise| recognise(piece)) else { return };
        let mut exchanges = lock(&self.shared.exchanges);
        exchanges.push(Exchange { name, sent: now(), forwarded: None, end: None });
        *lock(&self.followed) = Some(exchanges.len() - 1);
    }

    /// A piece goes to the far end.
    fn forwards(&self, piece: &[u8]) {
        if self.shared.strikes(piece) {
            self.doomed.store(true, Relaxed);
        }
        self.note(|exchange| {
            exchange.forwarded.get_or_insert_with(now);
        });
    }

    /// What is followed has ended, if it had not.
    fn ended(&self, how: Passage) {
        self.note(|exchange| exchange.end = Some((now(), how)));
        *lock(&self.followed) = None;
    }

    fn note(&self, change: impl FnOnce(&mut Exchange)) {
        let Some(followed) = *lock(&self.followed) else { return };
        if let Some(exchange) = lock(&self.shared.exchanges).get_mut(followed) {
            change(exchange);
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

impl Shared {
    /// Waits until something passes; after how long it does, or none if the wire is cut.
    async fn passable(&self) -> Option<Duration> {
        let mut conduct = self.conduct.subscribe();
        let now = conduct.wait_for(|conduct| *conduct != Conduct::Silent).await.ok()?;
        match *now {
            Conduct::Carry(delay) => Some(delay),
            _ => None,
        }
    }

    fn strikes(&self, piece: &[u8]) -> bool {
        let mut losses = lock(&self.losses);
        let Some(due) = losses.as_mut().filter(|due| due.times > 0) else { return false };
        let holds = !due.to.is_empty() && piece.windows(due.to.len()).any(|window| window == due.to);
        due.times -= u64::from(holds);
        holds
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

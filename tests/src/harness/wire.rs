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
    lost_at: Mutex<Vec<i64>>,
    counts: Counts,
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
            lost_at: Mutex::default(),
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

    /// When answers were swallowed, in milliseconds since 1970.
    pub fn lost_at(&self) -> Vec<i64> {
        lock(&self.shared.lost_at).clone()
    }

    pub fn seen(&self) -> Seen {
        let counts = &self.shared.counts;
        Seen {
            connections: counts.connections.load(Relaxed),
            reset: counts.reset.load(Relaxed),
            lost: u64::try_from(lock(&self.shared.lost_at).len()).unwrap_or(u64::MAX),
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
    let doomed = AtomicBool::new(false);
    let end = {
        let (mut near_read, mut near_write) = near.split();
        let (mut far_read, mut far_write) = far.split();
        let both = async {
            let up = pump(&mut near_read, &mut far_write, &shared, |piece| {
                if shared.strikes(piece) {
                    doomed.store(true, Relaxed);
                }
                true
            });
            let down = pump(&mut far_read, &mut near_write, &shared, |_| {
                let lost = doomed.load(Relaxed);
                if lost {
                    lock(&shared.lost_at).push(jiff::Timestamp::now().as_millisecond());
                }
                !lost
            });
            tokio::try_join!(up, down)
        };
        tokio::select! {
            end = both => end,
            _ = resets.changed() => Err(Reset),
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

/// Carries one direction to its end. `pass` sees each piece; false resets the connection.
async fn pump(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    shared: &Shared,
    pass: impl Fn(&[u8]) -> bool,
) -> Result<(), Reset> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return Err(Reset) };
        let Some(delay) = shared.passable().await else { return Err(Reset) };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            // The other direction goes on.
            let _ = to.shutdown().await;
            return Ok(());
        }
        if !pass(piece) || to.write_all(piece).await.is_err() {
            return Err(Reset);
        }
    }
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
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    /// Answers each piece with the same.
    async fn echo() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        (address, tasks)
    }

    async fn ask(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
        stream.write_all(text.as_bytes()).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(String::from_utf8(answer).unwrap())
    }

    #[tokio::test]
    async fn a_wire_is_cut_silent_slow_and_open_again() {
        let (end, _echo) = echo().await;
        let wire = Wire::start([end]).await.unwrap();
        let mut stream = TcpStream::connect(wire.address()).await.unwrap();
        assert_eq!(ask(&mut stream, "one").await.unwrap(), "one");

        wire.conduct(Conduct::Silent);
        let mut second = TcpStream::connect(wire.address()).await.unwrap();
        for stream in [&mut stream, &mut second] {
            let asked = tokio::time::timeout(Duration::from_millis(50), ask(stream, "two")).await;
            assert!(asked.is_err(), "something passed");
        }
        wire.open();
        let mut answer = [0; 3];
        for stream in [&mut stream, &mut second] {
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"two", "what was sent meanwhile comes later");
        }

        wire.conduct(Conduct::Carry(Duration::from_millis(40)));
        let started = std::time::Instant::now();
        assert_eq!(ask(&mut stream, "three").await.unwrap(), "three");
        assert!(started.elapsed() >= Duration::from_millis(80));

        wire.conduct(Conduct::Cut);
        ask(&mut stream, "four").await.unwrap_err();
        // The listener goes a moment after the connections.
        while TcpStream::connect(wire.address()).await.is_ok() {
            tokio::task::yield_now().await;
        }
        wire.open();
        let mut again = loop {
            if let Ok(stream) = TcpStream::connect(wire.address()).await {
                break stream;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(ask(&mut again, "five").await.unwrap(), "five");
    }

    #[tokio::test]
    async fn an_answer_is_lost_once_and_an_absent_end_is_passed_over() {
        let (end, _echo) = echo().await;
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let wire = Wire::start([nobody, end]).await.unwrap();
        wire.lose_answers("refresh", 1);
        let connect = || TcpStream::connect(wire.address());
        assert_eq!(ask(&mut connect().await.unwrap(), "a read").await.unwrap(), "a read");
        ask(&mut connect().await.unwrap(), "a refresh").await.unwrap_err();
        assert_eq!(ask(&mut connect().await.unwrap(), "a refresh").await.unwrap(), "a refresh");
        while wire.seen().lost < 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(wire.seen().connections, 3);
    }
}

//! Operations as transactions, each in a task of its own on the runtime that opened the store: a caller who
//! hangs up, on whichever runtime, interrupts nothing halfway.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, TryAcquireError, oneshot},
};
use tokio_util::task::TaskTracker;

use super::{
    connections::{CONNECTIONS, Connections, Limits, Server},
    fault,
};
use crate::{
    clock::Instant,
    store::{StoreError, StoreResult},
};

/// Operations that wait for a connection or work on one. Beyond it the store says that it is away, rather than
/// let memory and waits grow.
const QUEUE: usize = 4096;

/// From the call to the answer. What was committed by then and not answered is an unknown outcome.
const DEADLINE: Duration = Duration::from_secs(5);

/// The server gives up before we do, so that what we gave up does not work on.
const LIMITS: Limits = Limits {
    statement: Duration::from_secs(4),
    // Sooner than who holds it idly is rolled back: of a stopped gateway's connections all that wait for one row would
    // get it one after the other, each to be idle with it.
    lock: Duration::from_secs(1),
    // Between two statements of an operation lie microseconds, unless the process is stopped. Less than the
    // deadline of who waits for its locks.
    idle_in_transaction: Duration::from_secs(2),
};

/// What is left of the deadline for a last try of a transaction that lost to others.
const REST: Duration = Duration::from_millis(500);

/// First wait of a transaction that lost to another again; it doubles.
const BACKOFF: Duration = Duration::from_millis(4);
const LONGEST_BACKOFF: Duration = Duration::from_millis(60);

/// Connections that may break under one operation before anything was committed: one that stood ready when the
/// server restarted, and one made while it still stops.
const BREAKS: u32 = 3;

pub(super) struct Engine {
    shared: Arc<Shared>,
    runtime: Handle,
    tasks: TaskTracker,
}

struct Shared {
    connections: Connections,
    queue: Arc<Semaphore>,
    /// The places of what goes first.
    first: Arc<Semaphore>,
    working: Semaphore,
    /// Only one of the rest waits for [`Self::working`] at a time: what goes first waits behind that one at most.
    next: Semaphore,
    /// One of those who lost to another transaction runs again at a time: together they would lose to each
    /// other (at SERIALIZABLE, on small tables, to whoever wrote the same page).
    losers: Semaphore,
}

#[derive(Clone, Copy)]
enum How {
    /// Statements that hold together.
    Transaction,
    /// One that reads.
    Statement,
}

#[derive(Clone, Copy)]
enum Lane {
    First,
    Rest,
}

/// What became of one try.
enum Tried<T> {
    Done(T),
    /// Nothing stands; the connection is whole.
    Refused(StoreError),
    /// Nothing stands; the connection is gone.
    Broken(StoreError),
    /// The connection went as the commit was under way.
    Unknown(StoreError),
}

impl Engine {
    pub(super) fn start(server: Server) -> Self {
        let shared = Shared {
            connections: Connections::new(server, LIMITS),
            queue: Arc::new(Semaphore::new(QUEUE)),
            first: Arc::new(Semaphore::new(QUEUE)),
            working: Semaphore::new(CONNECTIONS),
            next: Semaphore::new(1),
            losers: Semaphore::new(1),
        };
        Self { shared: Arc::new(shared), runtime: Handle::current(), tasks: TaskTracker::new() }
    }

    pub(super) async fn write<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
    {
        self.submit(Lane::Rest, How::Transaction, work).await
    }

    /// In a lane of its own, which nothing else fills, and before all else: what an EHR has answered is nowhere else.
    pub(super) async fn write_first<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
    {
        self.submit(Lane::First, How::Transaction, work).await
    }

    /// For a single statement.
    pub(super) async fn read<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
    {
        self.submit(Lane::Rest, How::Statement, work).await
    }

    async fn submit<T, F>(&self, lane: Lane, how: How, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Clone + Send + 'static,
    {
        let queue = match lane {
            Lane::First => &self.shared.first,
            Lane::Rest => &self.shared.queue,
        };
        let place = queue.clone().try_acquire_owned().map_err(|error| {
            StoreError::Unavailable(match error {
                TryAcquireError::NoPermits => format!("{QUEUE} operations wait already"),
                TryAcquireError::Closed => "it is closed".into(),
            })
        })?;
        let (reply, answer) = oneshot::channel();
        let shared = self.shared.clone();
        self.tasks.spawn_on(
            async move {
                let outcome = shared.until_deadline(lane, how, work).await;
                drop(place);
                // A caller who has gone asks for nothing.
                let _ = reply.send(outcome);
            },
            &self.runtime,
        );
        answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("it was closed halfway".into())))
    }

    /// Does what is queued, takes no more, and lets the server's connections go.
    pub(super) async fn close(&self) {
        self.shared.queue.close();
        self.shared.first.close();
        self.tasks.close();
        self.tasks.wait().await;
        self.shared.connections.close().await;
    }
}

impl Shared {
    async fn until_deadline<T, F>(&self, lane: Lane, how: How, work: F) -> StoreResult<T>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Clone,
    {
        let deadline = Instant::now() + DEADLINE;
        // What is dropped at the deadline holds its connection, which is closed with it.
        tokio::time::timeout_at(deadline, self.until_settled(lane, how, work, deadline))
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(format!("no answer within {DEADLINE:?}"))))
    }

    async fn until_settled<T, F>(&self, lane: Lane, how: How, work: F, deadline: Instant) -> StoreResult<T>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Clone,
    {
        let closed = |_| StoreError::Unavailable("it is closed".into());
        let _working = match lane {
            Lane::First => self.working.acquire().await,
            Lane::Rest => {
                let _next = self.next.acquire().await.map_err(closed)?;
                self.working.acquire().await
            }
        }
        .map_err(closed)?;
        let (mut broken, mut backoff, mut turn) = (0, BACKOFF, None);
        loop {
            let mut used = self.connections.take().await?;
            let tried = match how {
                How::Transaction => transaction(used.on(), work.clone()).await,
                How::Statement => statement(used.on(), work.clone()).await,
            };
            match tried {
                Tried::Done(value) => {
                    self.connections.give_back(used);
                    return Ok(value);
                }
                Tried::Refused(error @ StoreError::Contended(_)) => {
                    self.connections.give_back(used);
                    if turn.is_none() {
                        turn = match tokio::time::timeout_at(deadline - REST, self.losers.acquire()).await {
                            Ok(turn) => Some(turn.map_err(closed)?),
                            Err(_) => return Err(error),
                        };
                        continue;
                    }
                    // To another process, or to one that has not lost yet.
                    let wait = self.connections.spread(backoff);
                    if Instant::now() + wait >= deadline - REST {
                        return Err(error);
                    }
                    tokio::time::sleep(wait).await;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
                // Not given back: a server that takes no more writes is looked at anew before the next.
                Tried::Refused(error @ StoreError::ReadOnly(_)) => return Err(error),
                Tried::Refused(error) => {
                    self.connections.give_back(used);
                    return Err(error);
                }
                Tried::Broken(error) => {
                    self.connections.distrust();
                    broken += 1;
                    if broken >= BREAKS {
                        return Err(error);
                    }
                }
                Tried::Unknown(error) => {
                    self.connections.distrust();
                    return Err(error);
                }
            }
        }
    }
}

async fn transaction<T, F>(on: &mut PgConnection, work: F) -> Tried<T>
where
    F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>>,
{
    if let Err(error) = on.execute("BEGIN").await {
        return Tried::Broken(fault::of(error));
    }
    match work(on).await {
        Ok(value) => match on.execute("COMMIT").await {
            Ok(_) => Tried::Done(value),
            Err(error) if fault::is_refusal(&error) => Tried::Refused(fault::of(error)),
            Err(error) => Tried::Unknown(fault::of(error)),
        },
        Err(error) => match on.execute("ROLLBACK").await {
            Ok(_) => Tried::Refused(error),
            Err(_) => Tried::Broken(error),
        },
    }
}

async fn statement<T, F>(on: &mut PgConnection, work: F) -> Tried<T>
where
    F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>>,
{
    match work(on).await {
        Ok(value) => Tried::Done(value),
        Err(error @ StoreError::Unavailable(_)) if on.ping().await.is_err() => Tried::Broken(error),
        Err(error) => Tried::Refused(error),
    }
}

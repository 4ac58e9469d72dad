//! How a connection is made and what holds on it; and those that stand ready.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions};

use super::fault;
use crate::{
    clock::Instant,
    store::{StoreError, StoreResult},
};

/// Connections of a process. PostgreSQL takes 100 by default, and there may be several replicas beside its
/// operators; a commit waits for the disk together with its neighbours, so that more bring little.
pub(super) const CONNECTIONS: usize = 16;

/// A connection is replaced after this long: the server's process gives its memory back, and addresses are
/// resolved anew.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// An outage shorter than this, such as a restart, is waited out; in a longer one operations fail at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the server does for us on a connection.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// A statement that takes longer is given up.
    pub statement: Duration,
    /// So is one that waits longer for a lock; zero: as long as it may take.
    pub lock: Duration,
    /// A transaction that its gateway leaves alone for so long (stopped, cut off) is rolled back: its locks
    /// must not hold others up.
    pub idle_in_transaction: Duration,
}

/// A server and the database on it, in a form that may be shown, and how to get in.
pub(super) struct Server {
    options: PgConnectOptions,
    name: String,
}

impl Server {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        let at = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let name = format!("PostgreSQL at {at}, database {:?}", options.get_database().unwrap_or_default());
        let options = options.application_name("mantel").disable_statement_logging();
        Self { options, name }
    }

    pub(super) async fn connect(&self, limits: Limits) -> Result<PgConnection, Refused> {
        let refused = |error: sqlx::Error| Refused {
            waits: !fault::is_final(&error),
            error: fault::of(error).within(&self.name),
        };
        let mut connection = self.options.connect().await.map_err(refused)?;
        let millis = |limit: Duration| limit.as_millis();
        // `remote_apply` is `on` and more. What cannot be written must not be read either: a standby lags.
        let statement = format!(
            "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
             WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false), \
             set_config('statement_timeout', '{}', false), set_config('lock_timeout', '{}', false), \
             set_config('idle_in_transaction_session_timeout', '{}', false), \
             current_setting('transaction_read_only') AS read_only",
            millis(limits.statement),
            millis(limits.lock),
            millis(limits.idle_in_transaction),
        );
        let row = connection.fetch_one(sqlx::AssertSqlSafe(statement)).await.map_err(refused)?;
        let read_only: String = row.try_get("read_only").map_err(refused)?;
        if read_only == "off" {
            return Ok(connection);
        }
        let _ = connection.close().await;
        let why = "it is a standby, or set to be read-only; expected the primary";
        // A failover may still be under way.
        Err(Refused { waits: true, error: StoreError::Unavailable(why.into()).within(&self.name) })
    }

    /// It was called, and said nothing.
    pub(super) fn silent(&self, waited: Duration) -> StoreError {
        StoreError::Unavailable(format!("no answer within {waited:?}")).within(&self.name)
    }
}

/// Why there is no connection.
pub(super) struct Refused {
    /// Whether a later attempt may go better.
    waits: bool,
    pub error: StoreError,
}

struct Ready {
    connection: PgConnection,
    made: Instant,
}

/// The last one used comes first: the others' caches and the server's stay warm, or they age.
pub(super) struct Connections {
    server: Server,
    limits: Limits,
    ready: Mutex<Vec<Ready>>,
    /// Since when no connection could be made.
    away: Mutex<Option<Instant>>,
    spread: Spread,
}

/// A connection in use. Dropped, it is closed: whoever leaves it in the middle of something need not say so.
pub(super) struct Used(Ready);

impl Used {
    pub(super) fn on(&mut self) -> &mut PgConnection {
        &mut self.0.connection
    }
}

impl Connections {
    pub(super) fn new(server: Server, limits: Limits) -> Self {
        Self { server, limits, ready: Mutex::default(), away: Mutex::default(), spread: Spread::default() }
    }

    /// One that stands ready, else a new one.
    pub(super) async fn take(&self) -> StoreResult<Used> {
        loop {
            let Some(ready) = lock(&self.ready).pop() else { return self.connect().await };
            if ready.made.elapsed() < LIFETIME {
                return Ok(Used(ready));
            }
            let _ = ready.connection.close().await;
        }
    }

    pub(super) fn give_back(&self, used: Used) {
        lock(&self.ready).push(used.0);
    }

    /// One was found broken: so may be all that stand beside it.
    pub(super) fn distrust(&self) {
        lock(&self.ready).clear();
    }

    pub(super) async fn close(&self) {
        let all = std::mem::take(&mut *lock(&self.ready));
        for ready in all {
            let _ = ready.connection.close().await;
        }
    }

    async fn connect(&self) -> StoreResult<Used> {
        let mut wait = Duration::from_millis(50);
        loop {
            let refused = match self.server.connect(self.limits).await {
                Ok(connection) => {
                    *lock(&self.away) = None;
                    return Ok(Used(Ready { connection, made: Instant::now() }));
                }
                Err(refused) => refused,
            };
            let since = *lock(&self.away).get_or_insert_with(Instant::now);
            if !refused.waits || since.elapsed() >= PATIENCE {
                return Err(refused.error);
            }
            tokio::time::sleep(self.spread.up_to(wait)).await;
            wait = (wait * 2).min(Duration::from_millis(500));
        }
    }

    /// A time to wait, so that those who met do not meet again.
    pub(super) fn spread(&self, up_to: Duration) -> Duration {
        self.spread.up_to(up_to)
    }
}

fn lock<T>(it: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits between half of a bound and all of it. They need no secret randomness, but differ between processes.
#[derive(Default)]
pub(super) struct Spread {
    seed: RandomState,
    drawn: AtomicU64,
}

impl Spread {
    pub(super) fn up_to(&self, bound: Duration) -> Duration {
        let drawn = self.seed.hash_one(self.drawn.fetch_add(1, Relaxed));
        let half = bound / 2;
        let share = u32::try_from(drawn % 1000).unwrap_or(0);
        half + half * share / 1000
    }
}

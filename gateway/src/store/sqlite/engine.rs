//! One writer that commits in groups, and readers beside it.
//!
//! Operations travel to tasks that own a connection each, so that a caller who hangs up, on whichever
//! runtime, interrupts nothing halfway.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{fault, open::Lock};
use crate::{
    clock::Instant,
    store::{StoreError, StoreResult},
};

/// Operations that wait for the disk. Beyond it the store says that it is away, rather than let memory
/// and waits grow.
const QUEUE: usize = 4096;

/// A group is committed after so many operations, or so long after its first, whichever comes first.
/// Nobody waits for a group to fill: what arrives during a commit is the next group.
const GROUP: usize = 256;
const GROUP_TIME: Duration = Duration::from_millis(5);

const READERS: usize = 4;

/// Something to be done on a connection, and its answer, held back until the commit.
trait Operation: Send {
    fn run<'a>(&'a mut self, on: &'a mut SqliteConnection) -> BoxFuture<'a, StoreResult<()>>;
    fn answer(self: Box<Self>, outcome: StoreResult<()>);
}

struct Work<T, F> {
    work: Option<F>,
    value: Option<T>,
    reply: oneshot::Sender<StoreResult<T>>,
}

impl<T, F> Operation for Work<T, F>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
{
    fn run<'a>(&'a mut self, on: &'a mut SqliteConnection) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            if let Some(work) = self.work.take() {
                self.value = Some(work(on).await?);
            }
            Ok(())
        })
    }

    fn answer(self: Box<Self>, outcome: StoreResult<()>) {
        let Self { value, reply, .. } = *self;
        let answer = outcome.and_then(|()| value.ok_or_else(|| StoreError::Unavailable("nothing was run".into())));
        // A caller who has gone asks for nothing.
        let _ = reply.send(answer);
    }
}

type Sender = mpsc::Sender<Box<dyn Operation>>;
type Receiver = mpsc::Receiver<Box<dyn Operation>>;

pub(super) struct Engine {
    /// What goes before the other writes.
    first: Sender,
    writes: Sender,
    /// The writer's, where there is no file to read beside it.
    reads: Sender,
    /// Groups committed.
    commits: Arc<AtomicU64>,
    stop: CancellationToken,
    readers: TaskTracker,
    /// Ends after the readers: the last connection to go folds the log into the file, and theirs may not write.
    writer: TaskTracker,
    stop_writer: CancellationToken,
}

impl Engine {
    /// `readers`: how to connect beside the writer; none: reads go through it.
    pub(super) async fn start(
        writer: SqliteConnection,
        again: SqliteConnectOptions,
        readers: Option<SqliteConnectOptions>,
        lock: Option<Lock>,
    ) -> StoreResult<Self> {
        let ((first, before), (writes, rest)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
        let (stop, stop_writer) = (CancellationToken::new(), CancellationToken::new());
        let (beside, alone) = (TaskTracker::new(), TaskTracker::new());
        let mut reads = writes.clone();
        if let Some(options) = readers {
            let (sender, queue) = mpsc::channel(QUEUE);
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..READERS {
                let connection = options.connect().await.map_err(fault::of)?;
                let reader = Reader { connection, again: options.clone(), queue: queue.clone(), stop: stop.clone() };
                beside.spawn(reader.run());
            }
            reads = sender;
        }
        let commits = Arc::<AtomicU64>::default();
        let writer = Writer {
            connection: writer,
            again,
            queue: Lanes { first: before, rest },
            commits: commits.clone(),
            stop: stop_writer.clone(),
            _lock: lock,
        };
        alone.spawn(writer.run());
        beside.close();
        alone.close();
        Ok(Self { first, writes, reads, commits, stop, readers: beside, writer: alone, stop_writer })
    }

    pub(super) async fn write<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    {
        submit(&self.writes, work).await
    }

    /// In a lane of its own, which no other write fills, and before them: what an EHR has answered is nowhere else.
    pub(super) async fn write_first<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    {
        submit(&self.first, work).await
    }

    pub(super) async fn read<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    {
        submit(&self.reads, work).await
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Commits what is queued, takes no more, and lets the file go.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.readers.wait().await;
        self.stop_writer.cancel();
        self.writer.wait().await;
    }
}

async fn submit<T, F>(to: &Sender, work: F) -> StoreResult<T>
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    to.try_send(Box::new(Work { work: Some(work), value: None, reply })).map_err(|error| {
        StoreError::Unavailable(match error {
            mpsc::error::TrySendError::Full(_) => format!("{QUEUE} operations wait already"),
            mpsc::error::TrySendError::Closed(_) => "it is closed".into(),
        })
    })?;
    answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("it was closed halfway".into())))
}

/// The next operation; after the stop what is queued, then none.
async fn next(queue: &mut Receiver, stop: &CancellationToken) -> Option<Box<dyn Operation>> {
    tokio::select! {
        biased;
        () = stop.cancelled(), if !queue.is_closed() => {
            queue.close();
            queue.recv().await
        }
        next = queue.recv() => next,
    }
}

// ---- writing -----------------------------------------------------------------------------------------

/// What waits for the writer.
struct Lanes {
    first: Receiver,
    rest: Receiver,
}

impl Lanes {
    /// The next operation; after the stop what is queued, then none.
    async fn next(&mut self, stop: &CancellationToken) -> Option<Box<dyn Operation>> {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !self.rest.is_closed() => {
                self.first.close();
                self.rest.close();
                self.try_next()
            }
            Some(operation) = self.first.recv() => Some(operation),
            operation = self.rest.recv() => operation,
        }
    }

    fn try_next(&mut self) -> Option<Box<dyn Operation>> {
        self.first.try_recv().or_else(|_| self.rest.try_recv()).ok()
    }

    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }
}

struct Writer {
    connection: SqliteConnection,
    again: SqliteConnectOptions,
    queue: Lanes,
    commits: Arc<AtomicU64>,
    stop: CancellationToken,
    /// Let go after the last commit.
    _lock: Option<Lock>,
}

/// What became of one operation.
enum Ran {
    Well,
    /// Undone alone.
    Badly(StoreError),
    /// The transaction is gone, and with it whatever it held.
    Lost(StoreError),
}

impl Writer {
    async fn run(mut self) {
        while let Some(first) = self.queue.next(&self.stop).await {
            if let Err(error) = self.group(first).await {
                tracing::error!(error = %error, "the store failed to commit");
                self.restore().await;
            }
        }
        let _ = self.connection.close().await;
    }

    /// One transaction over `first` and what is queued. An error has reached each caller already.
    async fn group(&mut self, first: Box<dyn Operation>) -> StoreResult<()> {
        let began = Instant::now();
        let waited = self.queue.len();
        if let Err(error) = self.tell("BEGIN IMMEDIATE").await {
            first.answer(Err(error.clone()));
            // Who has waited as long is told as well: each on its own would wait through all the others' tries.
            for _ in 0..waited {
                let Some(operation) = self.queue.try_next() else { break };
                operation.answer(Err(error.clone()));
            }
            return Err(error);
        }
        let mut done: Vec<Box<dyn Operation>> = Vec::new();
        let mut next = Some(first);
        let mut lost = None;
        while let Some(mut operation) = next.take() {
            match self.attempt(operation.as_mut()).await {
                Ran::Well => done.push(operation),
                Ran::Badly(error) => operation.answer(Err(error)),
                Ran::Lost(error) => {
                    operation.answer(Err(error.clone()));
                    lost = Some(error);
                    break;
                }
            }
            if done.len() < GROUP && began.elapsed() < GROUP_TIME {
                next = self.queue.try_next();
            }
        }
        let outcome = match lost {
            Some(error) => Err(error),
            None => self.tell("COMMIT").await,
        };
        if outcome.is_ok() {
            self.commits.fetch_add(1, Ordering::Relaxed);
        }
        for operation in done {
            operation.answer(outcome.clone());
        }
        outcome
    }

    /// Runs one operation in a savepoint of its own, so that its failure does not spoil the others.
    async fn attempt(&mut self, operation: &mut dyn Operation) -> Ran {
        if let Err(error) = self.tell("SAVEPOINT operation").await {
            return Ran::Lost(error);
        }
        let failed = match operation.run(&mut self.connection).await {
            Ok(()) => match self.tell("RELEASE operation").await {
                Ok(()) => return Ran::Well,
                Err(error) => error,
            },
            Err(error) => error,
        };
        // On some errors (disk full, IO) SQLite rolls the whole transaction back by itself: then there
        // is no such savepoint, and going on would commit each further statement alone.
        let undone = match self.tell("ROLLBACK TO operation").await {
            Ok(()) => self.tell("RELEASE operation").await,
            Err(error) => Err(error),
        };
        if undone.is_ok() { Ran::Badly(failed) } else { Ran::Lost(failed) }
    }

    async fn tell(&mut self, statement: &'static str) -> StoreResult<()> {
        sqlx::query(statement).execute(&mut self.connection).await.map(drop).map_err(fault::of)
    }

    /// A usable connection again, if there is one to be had.
    async fn restore(&mut self) {
        // Fails where SQLite has rolled back already.
        let _ = self.tell("ROLLBACK").await;
        if self.connection.ping().await.is_err()
            && let Ok(fresh) = self.again.connect().await
        {
            self.connection = fresh;
        }
    }
}

// ---- reading -----------------------------------------------------------------------------------------

struct Reader {
    connection: SqliteConnection,
    again: SqliteConnectOptions,
    queue: Arc<Mutex<Receiver>>,
    stop: CancellationToken,
}

impl Reader {
    async fn run(mut self) {
        loop {
            let operation = next(&mut *self.queue.lock().await, &self.stop).await;
            let Some(mut operation) = operation else { break };
            let outcome = operation.run(&mut self.connection).await;
            let failed = outcome.is_err();
            operation.answer(outcome);
            if failed
                && self.connection.ping().await.is_err()
                && let Ok(fresh) = self.again.connect().await
            {
                self.connection = fresh;
            }
        }
        let _ = self.connection.close().await;
    }
}

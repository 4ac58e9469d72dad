//! What changes something: HTTP over a Unix socket that only the gateway's own user, and root, may open. Each answer
//! is a line of JSON for each thing that happens, as it happens.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::commands::{Command, Commands};

/// An operator's shells; more at once are mistakes.
const CONNECTIONS: usize = 16;

/// Lines that wait for a client who reads slowly.
const LINES: usize = 64;

/// `sun_path` has 108 bytes, the last of which is zero (unix(7)).
pub const LONGEST_PATH: usize = 107;

type Body = BoxBody<Bytes, Infallible>;

/// The socket, bound: its file goes when this is dropped.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl AdminSocket {
    /// Binds it with mode 0600. A socket that a dead process left is replaced; anything else at its path is not.
    ///
    /// # Errors
    /// If the path is another thing's, or a living process's.
    pub async fn bind(path: &Path) -> anyhow::Result<Self> {
        Self::bind_at(path).await.with_context(|| format!("server.admin_socket: {}", path.display()))
    }

    async fn bind_at(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().context("expected the path of a file")?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => bail!("there is something else at that path"),
            Ok(_) if UnixStream::connect(path).await.is_ok() => bail!("another process listens there"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        // Made where nobody else can reach it, so that there is no moment at which it is open to all.
        let nest = tempdir(parent, name)?;
        let made = (|| {
            let inner = nest.join("s");
            let listener = UnixListener::bind(&inner)?;
            fs::set_permissions(&inner, fs::Permissions::from_mode(0o600))?;
            let owner = fs::symlink_metadata(&inner)?.uid();
            fs::rename(&inner, path)?;
            Ok::<_, io::Error>((listener, owner))
        })();
        let _ = fs::remove_dir_all(&nest);
        let (listener, owner) = made?;
        Ok(Self { listener, path: path.to_owned(), owner })
    }

    /// Serves until `until`.
    pub async fn serve(self, commands: Arc<Commands>, until: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let socket = match until.run_until_cancelled(self.listener.accept()).await {
                None => return,
                Some(Ok((socket, _))) => socket,
                // Out of file descriptors, most likely: what is open must close first, and nothing tells when it does.
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection to the admin socket could not be accepted");
                    until.run_until_cancelled(tokio::time::sleep(Duration::from_millis(50))).await;
                    continue;
                }
            };
            // The file's mode says the same; a moved or copied socket must not say otherwise.
            let Ok(peer) = socket.peer_cred() else { continue };
            if peer.uid() != self.owner && peer.uid() != 0 {
                tracing::warn!(uid = peer.uid(), "the admin socket was opened by another user, and closed");
                continue;
            }
            let Ok(permit) = room.clone().try_acquire_owned() else { continue };
            let (commands, until, uid) = (commands.clone(), until.clone(), peer.uid());
            tokio::spawn(async move {
                let _permit = permit;
                let service = service_fn(|request: Request<Incoming>| {
                    let commands = commands.clone();
                    async move { Ok::<_, Infallible>(answer(&commands, &request, uid)) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(socket), service);
                until.run_until_cancelled(connection).await;
            });
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory that only we may enter; a name that is taken is not ours.
fn tempdir(parent: &Path, name: &std::ffi::OsStr) -> anyhow::Result<PathBuf> {
    for attempt in 0..16_u32 {
        let mut nest = name.to_owned();
        nest.push(format!(".{}-{attempt}", std::process::id()));
        let nest = parent.join(nest);
        ensure!(nest.as_os_str().len() + 2 <= LONGEST_PATH, "expected a path of less than {} bytes", LONGEST_PATH - 16);
        match fs::DirBuilder::new().mode(0o700).create(&nest) {
            Ok(()) => return Ok(nest),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("{}", parent.display())),
        }
    }
    bail!("{}: directories that earlier starts left are in the way", parent.display())
}

fn answer(commands: &Arc<Commands>, request: &Request<Incoming>, uid: u32) -> Response<Body> {
    let Some(command) = Command::parse(request.method(), request.uri().path()) else {
        let mut response =
            Response::new(Full::new(Bytes::from_static(b"{\"failed\":\"there is no such command\"}\n")).boxed());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    let (lines, mut queue) = mpsc::channel::<Bytes>(LINES);
    let commands = commands.clone();
    tokio::spawn(async move { commands.run(command, uid, lines).await });
    let lines = stream::poll_fn(move |cx| queue.poll_recv(cx)).map(|line| Ok::<_, Infallible>(Frame::data(line)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

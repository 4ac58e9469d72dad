//! The other end of the admin socket: how `mantel`'s commands reach a gateway that runs.

use std::{io, path::Path};

use anyhow::Context as _;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::commands::Command;

/// A running gateway's socket.
pub struct Client(UnixStream);

impl Client {
    /// None: no gateway listens there.
    ///
    /// # Errors
    /// If one may listen there that we may not speak to.
    pub async fn connect(path: &Path) -> anyhow::Result<Option<Self>> {
        match UnixStream::connect(path).await {
            Ok(stream) => Ok(Some(Self(stream))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error)
                .with_context(|| format!("{}: only the gateway's own user and root may use it", path.display())),
        }
    }

    /// Sends a command; `on_line` is given each line of the answer as it comes.
    ///
    /// # Errors
    /// If the answer was cut, or `on_line` says so.
    pub async fn send(
        self,
        command: Command,
        mut on_line: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.0)).await?;
        tokio::spawn(connection);
        let (method, path) = command.road();
        let request =
            Request::builder().method(method).uri(path).header("host", "mantel").body(Empty::<Bytes>::new())?;
        let mut body = sender.send_request(request).await.context("the gateway ended before it answered")?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the gateway ended before the command was done: give it again")?;
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                on_line(String::from_utf8_lossy(&line).trim_end())?;
            }
        }
        Ok(())
    }
}

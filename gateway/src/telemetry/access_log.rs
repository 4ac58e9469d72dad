//! The access log: one JSON line a request, encoded on the worker without an allocation of its own
//! and written by one thread. It is no tracing event, since it stands on the fast road. A writer that
//! is behind costs lines (they are counted), never requests.

use std::{
    io::Write,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use crate::{clock::Timestamp, telemetry::Metrics};

/// Buffers in flight between workers and the writer.
const QUEUE: usize = 256;
/// A worker hands its buffer over when it holds this much.
const FLUSH_AT: usize = 16 << 10;

/// What a line says. Paths and queries are not in it: they hold patient ids.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    pub at: Timestamp,
    pub request: &'a str,
    pub app: Option<&'a str>,
    pub site: Option<&'a str>,
    pub grant: Option<uuid::Uuid>,
    pub method: &'a str,
    /// The interaction or the endpoint's name.
    pub action: &'a str,
    pub resource_type: Option<&'a str>,
    pub status: u16,
    pub outcome: &'a str,
    pub took: Duration,
    pub ehr: Duration,
}

impl AccessRecord<'_> {
    fn encode(&self, into: &mut Vec<u8>) {
        fn text(into: &mut Vec<u8>, name: &str, value: &str) {
            into.extend_from_slice(b",\"");
            into.extend_from_slice(name.as_bytes());
            into.extend_from_slice(b"\":");
            // The names here come from closed sets or were checked; serde_json escapes them all the same.
            let _ = serde_json::to_writer(&mut *into, value);
        }
        let _ = write!(into, "{{\"ts\":{},\"kind\":\"access\"", self.at.0);
        text(into, "request", self.request);
        for (name, value) in [("app", self.app), ("site", self.site), ("resource_type", self.resource_type)] {
            if let Some(value) = value {
                text(into, name, value);
            }
        }
        if let Some(grant) = self.grant {
            let _ = write!(into, ",\"grant\":\"{grant}\"");
        }
        text(into, "method", self.method);
        text(into, "action", self.action);
        text(into, "outcome", self.outcome);
        let _ = writeln!(
            into,
            ",\"status\":{},\"took_us\":{},\"ehr_us\":{}}}",
            self.status,
            self.took.as_micros(),
            self.ehr.as_micros()
        );
    }
}

enum Message {
    Lines(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The writer's side; clone a [`Lines`] for each worker.
pub struct AccessLog {
    to: SyncSender<Message>,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(out: Box<dyn Write + Send>, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (to, from) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(out, &from))?;
        Ok(Self { to, metrics })
    }

    /// A worker's buffer.
    pub fn lines(&self) -> Lines {
        Lines { to: self.to.clone(), metrics: self.metrics.clone(), buffer: Vec::with_capacity(FLUSH_AT + 1024) }
    }

    /// Waits until what was handed over before is written.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.to.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(2));
        }
    }
}

fn write_all(mut out: Box<dyn Write + Send>, from: &Receiver<Message>) {
    while let Ok(message) = from.recv() {
        // A log that cannot be written must not stop the gateway; the reader of the log sees the gap.
        match message {
            Message::Lines(lines) => {
                let _ = out.write_all(&lines);
            }
            Message::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

/// One worker's lines.
pub struct Lines {
    to: SyncSender<Message>,
    metrics: Arc<Metrics>,
    buffer: Vec<u8>,
}

impl Lines {
    pub fn write(&mut self, record: &AccessRecord<'_>) {
        record.encode(&mut self.buffer);
        if self.buffer.len() >= FLUSH_AT {
            self.hand_over();
        }
    }

    /// Called by a worker that has nothing else to do.
    pub fn hand_over(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let lines = std::mem::replace(&mut self.buffer, Vec::with_capacity(FLUSH_AT + 1024));
        if self.to.try_send(Message::Lines(lines)).is_err() {
            self.metrics.log_dropped();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object_and_a_flush_brings_it_out() {
        let sink = Sink::default();
        let log = AccessLog::start(Box::new(sink.clone()), Metrics::new().unwrap()).unwrap();
        let mut lines = log.lines();
        lines.write(&AccessRecord {
            at: Timestamp(1_700_000_000_000),
            request: "id\"with quote",
            app: Some("viewer"),
            site: None,
            grant: Some(uuid::Uuid::nil()),
            method: "GET",
            action: "read",
            resource_type: Some("Patient"),
            status: 200,
            outcome: "ok",
            took: Duration::from_micros(1500),
            ehr: Duration::from_micros(1000),
        });
        drop(lines);
        log.flush();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["request"], "id\"with quote");
        assert_eq!(line["took_us"], 1500);
        assert_eq!(line.get("site"), None);
    }
}

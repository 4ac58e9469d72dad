//! The local spill: a directory that takes an EHR's answer at once where the store does not (`custody.md`,
//! "Stored before shared"). Here are the form of its files and their IO; when, is `replay`'s.
//!
//! ```text
//! name     {grant}.{generation that the answer consumed}.{random}.answer
//! content  MTLSPILL | format (1) | sealed JSON
//! ```
//!
//! The name's grant and generation are the seal's associated data: a file under another name does not open.
//! A file is written under a name of its own (`….tmp`), synced, renamed, and the directory synced; from then
//! on it counts as durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use mantel_adapters::site::{RegistrationId, SiteId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    entropy::{Entropy, uuid4},
    store::{
        EhrTokens, GrantFacts, GrantId, StoreError, TokensIn, TokensOut,
        sealing::{Place, Sealer, sealed_by},
    },
};

const MAGIC: &[u8; 8] = b"MTLSPILL";
const FORMAT: u8 = 1;
/// An answer is some kilobytes; what is longer is none.
const LONGEST: u64 = 4 << 20;

const ANSWER: &str = "answer";
const UNFINISHED: &str = "tmp";
const BAD: &str = "bad";
/// The spill's name, which the processes that hold it one after the other tell the others.
const ID: &str = "id";

/// What is wrong with a spill, or with one of its files, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SpillFault {
    #[error("{path}: {error}: expected a directory that only this gateway process writes to (`store.spill`)")]
    Io { path: String, error: io::Error },
    #[error(
        "{0} is in use by another gateway process: each needs a directory of its own in `store.spill`, which it \
         finds again after a restart"
    )]
    InUse(String),
    #[error(
        "{path} is sealed by key {key:?}, which the configuration does not name: add it to `store.seal`, behind the \
         key that writes, and start again; the file holds an EHR's answer that is in no store"
    )]
    UnknownKey { path: String, key: String },
    #[error("{path} has format {format}; this binary reads up to {FORMAT}: run the newer one until the spill is empty")]
    Later { path: String, format: u8 },
    #[error(
        "{path}: {what}: expected a whole answer under the name it was written with; it was moved to \"{BAD}\" beside \
         it: put the file back from a copy and start again, or delete it; its grant goes on as one in doubt"
    )]
    Garbled { path: String, what: String },
    #[error(
        "{path} belongs to grant {grant}, which the store does not know; it was moved to \"{BAD}\" beside it: if this \
         is another database's spill, or the database was restored from a backup, put both right, the file back, and \
         start again; else delete it"
    )]
    UnknownGrant { path: String, grant: GrantId },
}

impl SpillFault {
    /// Whether a gateway that served all the same might lose what the file holds.
    const fn refuses(&self) -> bool {
        matches!(self, Self::UnknownKey { .. } | Self::Later { .. })
    }
}

type SpillResult<T> = Result<T, SpillFault>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> SpillFault {
    let path = path.display().to_string();
    move |error| SpillFault::Io { path, error }
}

/// An EHR's answer to a refresh, with what it takes to store it or, if nobody can use it, to revoke it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub grant: GrantId,
    /// The generation that it consumed.
    pub consumed: i64,
    pub site: SiteId,
    pub registration: RegistrationId,
    pub tokens: EhrTokens,
    /// What it changes in what the grant is about.
    pub facts: Option<GrantFacts>,
}

#[derive(Serialize)]
struct Out<'a> {
    site: &'a SiteId,
    registration: &'a RegistrationId,
    facts: Option<&'a GrantFacts>,
    #[serde(flatten)]
    tokens: TokensOut<'a>,
}

#[derive(Deserialize)]
struct In {
    site: SiteId,
    registration: RegistrationId,
    facts: Option<GrantFacts>,
}

/// The place that an answer's seal is bound to.
fn bound(grant: GrantId, consumed: i64) -> [u8; 24] {
    let mut bytes = [0; 24];
    let (first, last) = bytes.split_at_mut(16);
    first.copy_from_slice(grant.0.as_bytes());
    last.copy_from_slice(&consumed.to_be_bytes());
    bytes
}

const fn place(id: &[u8; 24]) -> Place<'_> {
    Place { table: "spill", column: "answer", id }
}

/// The content of an answer's file.
fn encode(sealer: &Sealer, answer: &Answer) -> Result<Vec<u8>, StoreError> {
    let out = Out {
        site: &answer.site,
        registration: &answer.registration,
        facts: answer.facts.as_ref(),
        tokens: (&answer.tokens).into(),
    };
    let sealed = sealer.seal_json(place(&bound(answer.grant, answer.consumed)), &out)?;
    Ok([MAGIC.as_slice(), &[FORMAT], &sealed].concat())
}

/// Reads what [`encode`] made for the same grant and generation; `path` is for the fault's text.
fn decode(sealer: &Sealer, path: &Path, (grant, consumed): (GrantId, i64), content: &[u8]) -> SpillResult<Answer> {
    let name = || path.display().to_string();
    let garbled = |what: &str| SpillFault::Garbled { path: name(), what: what.into() };
    let (format, sealed) = content
        .strip_prefix(MAGIC.as_slice())
        .and_then(<[u8]>::split_first)
        .ok_or_else(|| garbled("this is no spill file, or it was cut short"))?;
    match *format {
        FORMAT => {}
        0 => return Err(garbled("it was changed")),
        format => return Err(SpillFault::Later { path: name(), format }),
    }
    let unread = |error| match error {
        StoreError::UnknownSealKey(key) => SpillFault::UnknownKey { path: name(), key },
        _ => garbled("it was cut short, changed or renamed"),
    };
    let bound = bound(grant, consumed);
    let body: In = sealer.open_json(place(&bound), sealed).map_err(unread)?;
    let tokens: TokensIn = sealer.open_json(place(&bound), sealed).map_err(unread)?;
    Ok(Answer {
        grant,
        consumed,
        site: body.site,
        registration: body.registration,
        tokens: tokens.into(),
        facts: body.facts,
    })
}

/// Grant and generation of a file's name; none: it is no file of ours.
fn named(path: &Path) -> Option<(GrantId, i64)> {
    let name = path.file_name()?.to_str()?;
    let mut parts = name.split('.');
    let (grant, consumed, _random) = (parts.next()?, parts.next()?, parts.next()?);
    let known = matches!((parts.next(), parts.next(), parts.next()), (Some(ANSWER), None | Some(UNFINISHED), None));
    known.then_some((GrantId(grant.parse().ok()?), consumed.parse().ok()?))
}

/// Which seal keys are needed to read what is in the spill: none of them may go before it is in the store.
#[derive(Default)]
pub struct SpillKeys(Mutex<BTreeMap<PathBuf, String>>);

impl SpillKeys {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, String>> {
        // Each change is whole even if somebody panicked beside it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their ids.
    pub fn ids(&self) -> Vec<String> {
        self.files().values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn note(files: &mut BTreeMap<PathBuf, String>, path: &Path, content: &[u8]) {
        if let Some(key) = content.get(MAGIC.len() + 1..).and_then(sealed_by) {
            files.insert(path.to_owned(), key);
        }
    }
}

/// A spill directory, held by this process alone.
pub struct Spill {
    directory: PathBuf,
    sealer: Arc<Sealer>,
    /// What an earlier process left.
    pub(super) found: Vec<(PathBuf, Answer)>,
    /// Files that could not be read, each reported and left aside.
    pub(super) bad: usize,
    refused: Vec<SpillFault>,
    keys: Arc<SpillKeys>,
    /// Let go with the process.
    _lock: File,
}

impl Spill {
    /// Takes a directory, made if it is missing, and reads what an earlier process left there. A file that
    /// cannot be read is reported and moved to `bad` beside it; see also [`Self::refused`].
    ///
    /// # Errors
    /// [`SpillFault::InUse`], or [`SpillFault::Io`].
    pub fn open(directory: &Path, sealer: Arc<Sealer>) -> SpillResult<Self> {
        make(directory)?;
        let lock = lock(&directory.join("lock"))?;
        let mut spill = Self {
            directory: directory.into(),
            sealer,
            found: Vec::new(),
            bad: 0,
            refused: Vec::new(),
            keys: Arc::default(),
            _lock: lock,
        };
        spill.read()?;
        Ok(spill)
    }

    /// Which seal keys are needed for what is in a directory that no process need hold; none, if there is no such
    /// directory.
    ///
    /// # Errors
    /// [`SpillFault::Io`].
    pub fn keys_in(directory: &Path) -> SpillResult<Vec<String>> {
        let keys = SpillKeys::default();
        if directory.exists() {
            for path in files(directory)?.into_iter().filter(|path| named(path).is_some()) {
                SpillKeys::note(&mut keys.files(), &path, &fs::read(&path).map_err(at(&path))?);
            }
        }
        Ok(keys.ids())
    }

    pub fn keys(&self) -> Arc<SpillKeys> {
        self.keys.clone()
    }

    /// The spill's name: the same for each process that holds it.
    ///
    /// # Errors
    /// [`SpillFault::Io`].
    pub fn id(&self, entropy: &dyn Entropy) -> SpillResult<Uuid> {
        let path = self.directory.join(ID);
        if let Some(id) = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
            return Ok(id);
        }
        // There is none yet, or what was written of it before a power cut.
        let (id, unfinished) = (uuid4(entropy), self.directory.join(format!("{ID}.{UNFINISHED}")));
        fs::remove_file(&unfinished)
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .and_then(|()| write(&unfinished, id.to_string().as_bytes()))
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| sync_directory(&self.directory))
            .map_err(at(&path))?;
        Ok(id)
    }

    /// The faults with which no gateway may serve, since it would treat grants as lost that are not.
    pub fn refused(&self) -> String {
        self.refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn read(&mut self) -> SpillResult<()> {
        for path in files(&self.directory)? {
            // A volume has files of its own, such as `lost+found`.
            let Some(name) = named(&path) else { continue };
            let read = content(&path).and_then(|content| {
                SpillKeys::note(&mut self.keys.files(), &path, &content);
                decode(&self.sealer, &path, name, &content)
            });
            match read {
                Ok(answer) => self.found.push((path, answer)),
                Err(fault) if fault.refuses() => self.refused.push(fault),
                Err(fault) => {
                    tracing::error!(%fault, "an EHR's answer in the spill cannot be read");
                    self.bad += 1;
                    self.set_aside(&path);
                }
            }
        }
        Ok(())
    }

    /// Writes an answer; when this returns it is durable.
    pub(super) fn put(&self, answer: &Answer, random: Uuid) -> SpillResult<PathBuf> {
        let name = format!("{}.{}.{}.{ANSWER}", answer.grant, answer.consumed, random.simple());
        let path = self.directory.join(&name);
        let unfinished = self.directory.join(format!("{name}.{UNFINISHED}"));
        let content = {
            // Who has read with which key this process writes, and then which ones are needed here, has missed none.
            let mut keys = self.keys.files();
            let content = encode(&self.sealer, answer).map_err(|error| at(&path)(io::Error::other(error)))?;
            SpillKeys::note(&mut keys, &path, &content);
            content
        };
        let written = write(&unfinished, &content)
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| sync_directory(&self.directory));
        if let Err(error) = written {
            // Nobody was told of it. What is left of it is no answer, or the same one.
            let _ = fs::remove_file(&unfinished);
            let _ = fs::remove_file(&path);
            self.keys.files().remove(&path);
            return Err(at(&path)(error));
        }
        Ok(path)
    }

    /// Takes an answer off: it is in the store.
    pub(super) fn remove(&self, path: &Path) -> SpillResult<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
            _ => {
                self.keys.files().remove(path);
                sync_directory(&self.directory).map_err(at(path))
            }
        }
    }

    /// Moves a file out of the way, so that no start meets it again; where that fails it stays.
    pub(super) fn set_aside(&self, path: &Path) {
        let bad = self.directory.join(BAD);
        let moved = make(&bad).and_then(|()| {
            let name = path.file_name().unwrap_or_default();
            fs::rename(path, bad.join(name)).and_then(|()| sync_directory(&bad)).map_err(at(path))
        });
        match moved {
            Ok(()) => drop(self.keys.files().remove(path)),
            Err(fault) => tracing::error!(%fault, "it cannot be moved aside, and stays"),
        }
    }
}

fn files(directory: &Path) -> SpillResult<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.map_err(at(directory))?;
    paths.sort();
    Ok(paths)
}

fn make(directory: &Path) -> SpillResult<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(at(directory))?;
    // Its own entry is in the directory above.
    let above = directory.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_directory(above).map_err(at(above))
}

fn lock(path: &Path) -> SpillResult<File> {
    let mut options = private();
    let file = options.create(true).truncate(false).open(path).map_err(at(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpillFault::InUse(path.parent().unwrap_or(path).display().to_string())),
        Err(TryLockError::Error(error)) => Err(at(path)(error)),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = private().create_new(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn content(path: &Path) -> SpillResult<Vec<u8>> {
    let length = fs::metadata(path).map_err(at(path))?.len();
    if length > LONGEST {
        let what = format!("it is {length} bytes long");
        return Err(SpillFault::Garbled { path: path.display().to_string(), what });
    }
    fs::read(path).map_err(at(path))
}

/// A rename is durable when its directory is (fsync(2)).
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[path = "spill_tests.rs"]
mod tests;

//! What a configuration is read from: paths, files, the environment.

use std::{
    collections::BTreeMap,
    io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file of a configuration or a secret is far smaller; a wrong path (a disk, a log) may not be.
const LARGEST_FILE: u64 = 16 << 20;

/// From what a configuration is read.
#[derive(Clone)]
pub struct Sources {
    /// Directories (`vendors.toml`, `sites.d/*.toml`, `mantel.toml`) and single files; later ones win.
    /// A file named `mantel.toml` stands for its directory.
    pub paths: Vec<PathBuf>,
    pub environment: Vec<(String, String)>,
    pub files: Arc<dyn Files>,
}

impl Sources {
    /// The machine's files and this process's environment.
    pub fn of_process(paths: Vec<PathBuf>) -> Self {
        let text = |value: std::ffi::OsString| value.into_string().ok();
        let environment = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
        Self { paths, environment, files: Arc::new(Disk) }
    }
}

/// Where files are read from.
pub trait Files: Send + Sync {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// What a directory holds.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;
    fn is_directory(&self, path: &Path) -> bool;
}

/// The machine's files.
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
        if read as u64 > LARGEST_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 16 MiB"));
        }
        Ok(bytes)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

/// Files held in memory.
impl Files for BTreeMap<PathBuf, Vec<u8>> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.keys().filter(|path| path.parent() == Some(directory)).cloned().collect())
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.keys().any(|file| file != path && file.starts_with(path))
    }
}

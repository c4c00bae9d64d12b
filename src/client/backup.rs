//! `kv_client backup FILE`: fetches a backup, checks every checksum of it on the way, and gives it its name when it is
//! whole and durable.
//!
//! It is written as `FILE.tmp`. After any error, and after `kill -9`, there is no FILE that was not there before; what
//! the latter left under the other name is replaced by the next run.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::progress::Line;
use super::{Client, ClientError, Served, served};
use crate::backup::{BackupError, BackupStream, Summary};
use crate::disk::{Disk, FileId, RealDisk, advice, exists};
use crate::progress::{line, megabytes};
use crate::wire::client::{BackupStep, Request, Status};

/// Why there is no backup.
#[derive(Debug)]
pub enum FetchError {
    /// The node did not send it.
    Client(ClientError),
    /// FILE is there, or cannot be one.
    Place(String),
    /// It cannot be written.
    Write {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What came is no backup.
    Damaged(BackupError),
    /// It ended before it was whole.
    Short {
        /// Bytes that came.
        bytes: u64,
    },
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::Client(error) => error.fmt(f),
            FetchError::Place(why) => f.write_str(why),
            FetchError::Write { action, path, source } => {
                write!(f, "{action} {}: {source}; {}", path.display(), advice(source))
            }
            FetchError::Damaged(error) => write!(
                f,
                "what the node sent is no backup, and nothing was kept: {error}. `kvstore inspect` on its data \
                 directory shows whether its files are damaged; after one more write, a second try makes a new snapshot"
            ),
            FetchError::Short { bytes } => {
                write!(
                    f,
                    "the backup ended after {bytes} bytes, before it was whole; nothing was kept. Try again"
                )
            }
        }
    }
}

impl std::error::Error for FetchError {}

impl From<ClientError> for FetchError {
    fn from(error: ClientError) -> FetchError {
        FetchError::Client(error)
    }
}

/// How a backup is to be fetched.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Where to.
    pub file: PathBuf,
    /// The newest snapshot there is will do.
    pub newest: bool,
    /// FILE is replaced if it is there.
    pub force: bool,
    /// How long the node may take to make the snapshot.
    pub begin_timeout: Duration,
    /// How long it may take for each part.
    pub part_timeout: Duration,
}

impl Client {
    /// Fetches a backup into a file. Returns what it is.
    ///
    /// # Errors
    /// The file is not there then, or is what it was before.
    pub fn backup(&mut self, fetch: &Fetch) -> Result<Served<Value>, FetchError> {
        let mut target = Target::begin(fetch)?;
        match self.fetch(fetch, &mut target) {
            Ok((summary, Served { lsn, term, .. })) => {
                target.finish()?;
                Ok(Served { value: document(&summary, &fetch.file), lsn, term })
            }
            Err(error) => {
                target.abandon();
                Err(error)
            }
        }
    }

    fn fetch(&mut self, fetch: &Fetch, target: &mut Target) -> Result<(Summary, Served<()>), FetchError> {
        self.set_timeout(fetch.begin_timeout);
        let step = if fetch.newest { BackupStep::BeginNewest } else { BackupStep::Begin };
        let reply = self.call_for_snapshot(&Request::Backup(step))?;
        self.expect(&[Status::Ok], &reply)?;
        let plan = self.document("the plan of the backup", &reply)?;
        let mut progress = Progress::new(&plan);
        let mut stream = BackupStream::new(target.temporary_path().display().to_string());
        self.set_timeout(fetch.part_timeout);
        loop {
            let reply = self.call(&Request::Backup(BackupStep::Next))?;
            self.expect(&[Status::Ok], &reply)?;
            if reply.payload.is_empty() {
                let summary = stream.summary().cloned();
                return Ok((summary.ok_or(FetchError::Short { bytes: target.size })?, served((), &reply)));
            }
            stream.push(&reply.payload).map_err(FetchError::Damaged)?;
            target.write(&reply.payload)?;
            progress.show(target.size);
        }
    }
}

fn document(summary: &Summary, file: &Path) -> Value {
    let message = format!(
        "{}: the state at LSN {}, snapshot of LSN {} with {} entries, {} bytes",
        file.display(),
        summary.last,
        summary.id,
        summary.entries,
        summary.bytes
    );
    json!({
        "file": file.display().to_string(),
        "s": summary.id.s.0,
        "e": summary.id.e.0,
        "last": summary.last.0,
        "entries": summary.entries,
        "bytes": summary.bytes,
        "cluster_id": summary.cluster_id.to_string(),
        "message": message,
    })
}

/// The file on its way.
struct Target {
    disk: RealDisk,
    directory: PathBuf,
    name: String,
    temporary: String,
    file: FileId,
    size: u64,
}

impl Target {
    fn begin(fetch: &Fetch) -> Result<Target, FetchError> {
        let shown = fetch.file.display();
        let Some(name) = fetch.file.file_name().and_then(|name| name.to_str()).filter(|name| *name != "-")
        else {
            return Err(FetchError::Place(format!(
                "{shown} is no name for a backup: it is written under another name, and gets its own when it is whole. \
                 Name a file"
            )));
        };
        let is_there = exists(&fetch.file).map_err(failed("looking for", &fetch.file))?;
        if is_there && !fetch.force {
            return Err(FetchError::Place(format!(
                "{shown} is there already and was left alone; name another file, or replace it with --force"
            )));
        }
        let parent = fetch.file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new(".")).to_owned();
        let mut disk = RealDisk::open_any(&directory).map_err(failed("opening", &directory))?;
        let temporary = format!("{name}.tmp");
        let path = directory.join(&temporary);
        match disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &path)(error));
            }
            _ => {}
        }
        let file = disk.create(&temporary, 0).map_err(failed("creating", &path))?;
        Ok(Target { disk, directory, name: name.to_owned(), temporary, file, size: 0 })
    }

    fn temporary_path(&self) -> PathBuf {
        self.directory.join(&self.temporary)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let written = self.disk.write_all_at(self.file, self.size, bytes);
        written.map_err(failed("writing", &self.temporary_path()))?;
        self.disk.start_writeback(self.file, self.size, bytes.len() as u64);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Whole: durable, then its name, durably too.
    fn finish(mut self) -> Result<(), FetchError> {
        let done =
            self.disk.sync_data(self.file).and_then(|()| self.disk.rename(&self.temporary, &self.name));
        if let Err(error) = done {
            let path = self.temporary_path();
            self.abandon();
            return Err(failed("making durable", &path)(error));
        }
        self.disk.sync_dir().map_err(failed("making the name of the backup durable in", &self.directory))
    }

    /// What cannot be removed is replaced by the next run.
    fn abandon(mut self) {
        let _ = self.disk.remove(&self.temporary);
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Write { action, path, source }
}

/// A line on a terminal; nothing elsewhere.
struct Progress {
    line: Line,
    /// The snapshot's bytes, and about those of the log.
    total: u64,
    began: Instant,
}

impl Progress {
    fn new(plan: &Value) -> Progress {
        let bytes = |field: &str| plan[field].as_u64().unwrap_or(0);
        let total = bytes("snapshot_bytes") + bytes("log_bytes");
        Progress { line: Line::new(), total, began: Instant::now() }
    }

    fn show(&mut self, bytes: u64) {
        self.line.show(|| progress_line(bytes, self.total, self.began.elapsed()));
    }
}

fn progress_line(bytes: u64, total: u64, elapsed: Duration) -> String {
    let rate = bytes as f64 / elapsed.as_secs_f64().max(1e-3);
    let eta_s = (total.saturating_sub(bytes) as f64 / rate.max(1.0)).ceil() as u64;
    let what = format!("{}  {:.1} MB/s", megabytes(bytes, total), rate / 1e6);
    line("backup", bytes * 100 / total.max(1), &what, Some(eta_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_share_rate_and_what_is_left() {
        let line = progress_line(50_000_000, 200_000_000, Duration::from_secs(2));
        assert!(line.contains("25 %  50.0 of 200.0 MB  25.0 MB/s  ETA 6 s"), "{line}");
    }

    #[test]
    fn before_its_end_a_backup_is_never_shown_as_done() {
        let line = progress_line(300, 200, Duration::ZERO);
        assert!(line.contains("99 %") && line.contains("ETA 0 s"), "{line}");
        assert!(progress_line(0, 0, Duration::ZERO).contains(" 0 %"));
    }
}

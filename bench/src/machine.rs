//! Where it was measured: what a reader of a number must know before comparing it with one of his own.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

/// Holds a 0 in /dev/cpu_dma_latency open: the processor then does not enter sleep states that it leaves
/// slowly. On a virtual machine an idle processor halts instead, and a ping-pong over loopback goes from 14 to
/// 68 us; a busy neighbour then makes a server look faster. (Spinning at idle priority would prevent the
/// sleep too, and puts the scheduler's 4 ms ticks into p99.9.)
pub struct LatencyHold {
    _file: Option<File>,
    state: String,
}

impl LatencyHold {
    /// Takes it where that is allowed.
    pub fn take() -> LatencyHold {
        let path = "/dev/cpu_dma_latency";
        let taken = OpenOptions::new().write(true).open(path).and_then(|mut file| {
            file.write_all(&0i32.to_ne_bytes())?;
            Ok(file)
        });
        match taken {
            Ok(file) => LatencyHold { _file: Some(file), state: "held at 0".to_owned() },
            Err(error) => LatencyHold { _file: None, state: format!("not held: {path}: {error}") },
        }
    }

    /// For the report.
    pub fn state(&self) -> &str {
        &self.state
    }
}

/// A load average above this share of the processors, before anything is measured, means that something else
/// runs here. Store and floor then wait for a processor more than for the disk, and their ratio says little.
const BUSY_SHARE: f64 = 0.5;

/// What is known of this machine. What cannot be found out is null.
pub fn describe(data_dir: &Path, hold: &LatencyHold) -> Value {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mount = Mount::of(data_dir);
    let cpu_count = std::thread::available_parallelism().map_or(1, |count| count.get());
    let load_average: Option<f64> = first_word("/proc/loadavg").and_then(|word| word.parse().ok());
    json!({
        "kernel": format!("{} {} {}", text(uname.sysname()), text(uname.release()), text(uname.machine())),
        "cpu": cpu_model(),
        "cpu_count": cpu_count,
        "load_average": load_average,
        "busy_before": load_average.map(|load| load > BUSY_SHARE * cpu_count as f64),
        "data_dir": data_dir.display().to_string(),
        "file_system": mount.as_ref().map(|mount| mount.file_system.clone()),
        "mount_options": mount.as_ref().map(|mount| mount.options.clone()),
        "device": mount.as_ref().map(|mount| mount.device.clone()),
        "device_write_cache": mount.as_ref().and_then(Mount::write_cache),
        "cpu_dma_latency": hold.state(),
    })
}

fn cpu_model() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_word(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()?.split_whitespace().next().map(str::to_owned)
}

struct Mount {
    numbers: String,
    options: String,
    file_system: String,
    device: String,
}

impl Mount {
    /// The mount that a path lies on: of those whose mount point begins it, the longest, and the last.
    fn of(path: &Path) -> Option<Mount> {
        let path = path.canonicalize().ok()?;
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let below = |line: &&str| line.split(' ').nth(4).is_some_and(|point| path.starts_with(point));
        let length = |line: &&str| line.split(' ').nth(4).map_or(0, str::len);
        Mount::parse(table.lines().filter(below).max_by_key(length)?)
    }

    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' '), after.split(' '));
        Some(Mount {
            numbers: before.nth(2)?.to_owned(),
            options: before.nth(2)?.to_owned(),
            file_system: after.next()?.to_owned(),
            device: after.next()?.to_owned(),
        })
    }

    fn write_cache(&self) -> Option<String> {
        // A partition has no queue of its own; its disk does.
        let queue = |up: &str| format!("/sys/dev/block/{}{up}/queue/write_cache", self.numbers);
        let read = |path: String| fs::read_to_string(path).ok();
        Some(read(queue("")).or_else(|| read(queue("/..")))?.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.numbers.as_str(), mount.options.as_str()), ("254:0", "rw,relatime"));
        assert_eq!((mount.file_system.as_str(), mount.device.as_str()), ("ext4", "/dev/vda"));
    }
}

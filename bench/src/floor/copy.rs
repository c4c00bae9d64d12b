//! A plain copy of a file through one loopback socket to a disk: what a transfer of a snapshot cannot be faster than.
//!
//! One thread reads the file and writes the socket, the other one reads the socket and writes the new file, 1 MiB at a
//! time, with one `fdatasync` at the end. It loads nothing, checks nothing, and serves nobody meanwhile.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes per call.
const CHUNK_SIZE: usize = 1 << 20;

/// Copies `from` into `directory`, removes the copy, and prints the seconds it took.
pub fn main(from: &Path, directory: &Path) -> Result<(), String> {
    let target = directory.join("kv_bench-copy.tmp");
    let began = Instant::now();
    let copied = copy(from, &target);
    let took_s = began.elapsed().as_secs_f64();
    let _gone = std::fs::remove_file(&target);
    let bytes = copied?;
    println!(
        "copied {bytes} bytes in {took_s:.3} s, {:.0} MiB/s",
        bytes as f64 / took_s / f64::from(1 << 20)
    );
    Ok(())
}

fn copy(from: &Path, target: &Path) -> Result<u64, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("cannot listen: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("cannot listen: {error}"))?;
    let path: PathBuf = from.to_owned();
    let sender = std::thread::spawn(move || -> Result<u64, String> {
        let failed = |error: std::io::Error| format!("cannot send {}: {error}", path.display());
        let mut file = File::open(&path).map_err(failed)?;
        let mut socket = TcpStream::connect(address).map_err(failed)?;
        pump(&mut file, &mut socket).map_err(failed)
    });
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", target.display());
    let (mut socket, _) = listener.accept().map_err(failed)?;
    let mut file = File::create(target).map_err(failed)?;
    let bytes = pump(&mut socket, &mut file).map_err(failed)?;
    file.sync_data().map_err(failed)?;
    sender.join().map_err(|_| "the sender panicked".to_owned())??;
    Ok(bytes)
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; CHUNK_SIZE], 0);
    loop {
        let size = from.read(&mut buffer)?;
        if size == 0 {
            return Ok(bytes);
        }
        to.write_all(&buffer[..size])?;
        bytes += size as u64;
    }
}

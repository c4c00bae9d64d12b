//! Looking at one copy of the record, for a person. A start reads both, takes the newer one and writes it to both;
//! here nothing is chosen and nothing written.

use crate::disk::Disk;

use super::layout::{self, Decoded};
use super::{Meta, NAME_A, NAME_B, read_bytes};

/// The names of the two copies.
pub const COPY_NAMES: [&str; 2] = [NAME_A, NAME_B];

/// The version of the record in this file, and the record.
///
/// # Errors
/// In words, if it cannot be read or is damaged.
pub fn look_at_copy(disk: &mut dyn Disk, name: &str) -> Result<(u64, Meta), String> {
    let file = disk.open(name).map_err(|error| format!("cannot be opened: {error}"))?;
    let bytes = read_bytes(disk, file);
    disk.close(file);
    match bytes.and_then(|bytes| layout::decode(&bytes)) {
        Ok(Decoded::Record { version, meta }) => Ok((version, *meta)),
        Ok(Decoded::NewerFormat { format }) => Err(format!("is of format version {format}, a newer one")),
        Err(problem) => Err(problem.to_string()),
    }
}

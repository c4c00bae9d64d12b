//! What a node may hold: memory for input, output and unapplied writes, connections, descriptors. The limits of
//! `limits.rs` are far above what a short run can reach, so they are applied here to what the run really sent:
//! a buffer may hold what its rule lets in, and no frame more.

use kvstore::conn::ConnId;
use kvstore::limits::{
    CLIENT_OUTPUT_HIGH_WATER, DESCRIPTORS_RESERVED, IN_FLIGHT_SIZE_MAX, INPUT_BUDGET, INPUT_BUFFER_SIZE,
    TERM_HISTORY_ENTRY_SIZE,
};
use kvstore::node::Observed;

use crate::core::Core;
use crate::host::{Host, Process};
use crate::socks::Phase;

/// Bytes of a record in a run, at most: a large value, its key, the fields of the record.
const RECORD_MAX: usize = 120_100;
/// Bytes of a frame of a run besides records and term history: trailer, addresses, words.
const FRAME_REST: usize = 2_000;
/// Requests of one client under way, at most: see `crowd.rs`.
const REQUESTS_MAX: usize = 200;
/// Of [`DESCRIPTORS_RESERVED`]: poll, listener, signals, directory, lock, logs and the reserve.
const DESCRIPTORS_FIXED: usize = 12;

/// After a turn: panics where a bound is passed.
pub fn check(core: &mut Core, host: &Host, seen: &Observed) {
    let process = host.process.as_ref().expect("it had a turn");
    check_in_flight(host, seen);
    check_connections(host, process, seen);
    // A frame carries the records that fit, and one at least; or the term history.
    let history = host.mirror.borrow().terms * TERM_HISTORY_ENTRY_SIZE;
    let frame = core.knobs.feed.frame_bytes.max(RECORD_MAX).max(history) + FRAME_REST;
    let (mut grown, mut waiting) = (0, 0);
    for sock in process.socks.slots.iter().flatten() {
        let (id, extra) = (sock.id, sock.intake.extra_memory());
        assert!(
            extra <= frame.saturating_sub(INPUT_BUFFER_SIZE),
            "host {}: {extra} bytes beyond the first input buffer, for frames of {frame} at most",
            host.site
        );
        grown += extra;
        let most = output_max(core, host, process, id, frame);
        let length = sock.output.len();
        assert!(
            length <= most,
            "host {}: {length} bytes wait on one connection, of {most} allowed",
            host.site
        );
        waiting = waiting.max(length);
    }
    assert!(grown <= INPUT_BUDGET, "host {}: {grown} bytes of grown input buffers", host.site);
    if waiting > core.knobs.feed.high_water {
        core.stats.count("node: output above high water");
    }
}

/// Above the mark nothing more is begun; what was begun below it is a batch, a frame, or what waited behind a
/// client's own write.
fn output_max(core: &Core, host: &Host, process: &Process, id: ConnId, frame: usize) -> usize {
    if process.node.is_fed(id) {
        let batch = host.mirror.borrow().batch_max as usize;
        // The records of a batch travel in several frames, each with a trailer.
        return core.knobs.feed.high_water + 2 * batch + 2 * frame;
    }
    if process.node.is_peer(id) {
        return 2 * frame;
    }
    CLIENT_OUTPUT_HIGH_WATER + REQUESTS_MAX * (RECORD_MAX + FRAME_REST)
}

fn check_in_flight(host: &Host, seen: &Observed) {
    let mirror = host.mirror.borrow();
    // Records leave with all of their batch.
    let most = match seen.applied == seen.last {
        true => 0,
        false => mirror.bytes_behind(seen.applied.0.min(mirror.last())) + mirror.batch_max,
    };
    // What gathers behind a flush is in no file yet.
    let most = most + seen.last.0.saturating_sub(mirror.last()) * RECORD_MAX as u64;
    let held = seen.in_flight_bytes;
    assert!(
        held as u64 <= most && held <= IN_FLIGHT_SIZE_MAX,
        "host {}: {held} bytes of writes in flight, {most} are not applied (one batch had {} at most): {seen:?}",
        host.site,
        mirror.batch_max
    );
}

fn check_connections(host: &Host, process: &Process, seen: &Observed) {
    let open = process.socks.slots.iter().flatten().filter(|sock| sock.phase == Phase::Open).count();
    assert!(
        seen.connections == open,
        "host {}: the node knows {} connections, and {open} are open",
        host.site,
        seen.connections
    );
    let files = host.mem.open_files();
    assert!(
        files + DESCRIPTORS_FIXED <= DESCRIPTORS_RESERVED,
        "host {}: {files} files are open at once",
        host.site
    );
}

/// The connections with other nodes that this one holds and that have no other side.
pub fn relics(core: &Core, host: &Host) -> Vec<usize> {
    let Some(process) = &host.process else { return Vec::new() };
    // A client's machine may vanish without a word, and nothing is ever sent to an idle one.
    let of_peers = process.socks.slots.iter().flatten().filter(|sock| process.node.is_peer(sock.id));
    let alone = |sock: &&crate::socks::Sock| {
        core.net.conns[sock.conn].ends[1 - sock.side].state != crate::net::EndState::Open
    };
    of_peers.filter(alone).map(|sock| sock.conn).collect()
}

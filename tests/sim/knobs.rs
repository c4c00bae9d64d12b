//! Swarm testing: every probability of a run is drawn from its seed, and about half of the faults are off
//! in any one run, so that rare combinations are not drowned by common ones (Groce and others, 2012).

use kvstore::node::{ArchiveConfig, FeedLimits, PinConfig, PinOverflow, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::rng::Rng;

use crate::core::MS;
use crate::mishaps::Mishaps;

/// The probabilities and sizes of one run. Times are nanoseconds, `_ppm` are per million.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Leaders are elected; or roles are fixed.
    pub elected: Option<crate::elected::Elected>,
    /// The run tries one encounter again and again.
    pub aim: Option<crate::aim::Aim>,
    pub hosts: usize,
    /// The first so many of them have a say from the beginning. Where leaders are elected there are others behind them.
    pub members: usize,
    /// So many hosts behind the members wait to be added: there is an operator who changes the members.
    pub joiners: usize,
    /// With each command of that operator a member loses its directory with this probability, and is replaced.
    pub loss_ppm: u64,
    pub clients: usize,
    pub ack: AckPolicy,
    pub min_insync: usize,
    pub insync_timeout_ms: u64,
    pub heartbeat_ms: u64,
    pub segment_bytes: u64,
    pub feed: FeedLimits,
    /// The first phase lasts so long.
    pub chaos_ns: u64,
    /// Mean time between two faults.
    pub fault_every_ns: u64,
    /// Mean time between two commands of the operator; 0: none.
    pub operator_every_ns: u64,
    pub weights: FaultWeights,
    pub net_delay_min_ns: u64,
    pub net_delay_max_ns: u64,
    pub net_slow_ppm: u64,
    /// Writes are split into chunks of up to so many bytes.
    pub chunk_max: u64,
    pub single_bytes_ppm: u64,
    pub socket_buffer: usize,
    pub flip_ppm: u64,
    pub sync_ns: u64,
    pub slow_disk_ppm: u64,
    pub stall_ppm: u64,
    /// A flush beside the loop takes up to half a second longer.
    pub late_flush_ppm: u64,
    pub short_write_ppm: u64,
    pub clock_rate_spread_ppm: u64,
    pub keys_hot: u64,
    pub keys_cold: u64,
    pub hot_ppm: u64,
    pub delete_ppm: u64,
    pub read_ppm: u64,
    pub large_ppm: u64,
    pub pipeline_max: u64,
    pub think_ns: u64,
    pub lazy_reader_ppm: u64,
    pub follower_read_ppm: u64,
    /// Reads that may be stale, where leaders are elected: other reads are refused by all but the leader.
    pub local_read_ppm: u64,
    pub force_ppm: u64,
    pub discard_ppm: u64,
    pub snapshot: SnapshotConfig,
    /// Segments that snapshots cover go, as far as all logs are equal: who falls behind that has no way back here.
    pub removal: bool,
    /// The log goes wherever snapshots let it go: who falls behind gets one.
    pub transfers: bool,
    pub pin: PinConfig,
    /// A machine that went down stays down for up to eight seconds with this probability.
    pub long_down_ppm: u64,
    /// One out of so many acknowledgements is proved on a copy of the disk.
    pub fork_check_every: u64,
    pub mishaps: Mishaps,
    /// Nodes copy their closed segments. Drawn last, and with fixed roles only.
    pub archive: Option<ArchiveConfig>,
}

/// How often each fault is drawn, relative to the others; 0: not in this run.
#[derive(Clone, Debug, Default)]
pub struct FaultWeights {
    pub power_loss: u64,
    pub kill: u64,
    pub crash_point: u64,
    pub pause: u64,
    pub partition: u64,
    pub one_way: u64,
    pub reset: u64,
    pub half_open: u64,
    pub sync_error: u64,
    pub disk_full: u64,
    pub flap: u64,
    pub wipe: u64,
    pub shutdown: u64,
    pub rot: u64,
}

impl Knobs {
    /// The knobs of a seed.
    pub fn draw(rng: &mut Rng) -> Knobs {
        let mut pick = |from: &[u64]| from[rng.below(from.len() as u64) as usize];
        let hosts = pick(&[1, 2, 2, 3, 3, 3, 3, 4, 5]) as usize;
        let ack = match pick(&[0, 0, 0, 1, 2]) {
            0 => AckPolicy::InSync,
            1 => AckPolicy::Quorum,
            _ => AckPolicy::Leader,
        };
        // Every few seconds, or never.
        let mut snapshot_log_bytes = pick(&[u64::MAX, u64::MAX, 4_000, 20_000, 60_000]);
        let with_snapshots = snapshot_log_bytes < u64::MAX;
        let removal = with_snapshots && pick(&[0, 1, 1]) == 1;
        let transfers = removal && pick(&[0, 1, 1]) == 1;
        if transfers {
            // So that the log that is left is short, and who is away for a second needs more than that.
            snapshot_log_bytes = pick(&[1_000, 2_000, 8_000]);
        }
        let pin = PinConfig {
            log_bytes: pick(if transfers {
                &[1_000, 5_000, 30_000, 1 << 30]
            } else {
                &[3_000, 30_000, 1 << 30]
            }),
            overflow: if pick(&[0, 1]) == 1 { PinOverflow::Slow } else { PinOverflow::Drop },
        };
        let snapshot = SnapshotConfig {
            log_bytes: Some(snapshot_log_bytes),
            retain_log_bytes: pick(if transfers { &[0, 0, 2_000, 10_000] } else { &[0, 10_000, 1 << 20] }),
            load_at_once_bytes: pick(&[0, 4_000, 1 << 20]),
            slice_bytes: pick(&[300, 2_000, 20_000]),
            settle_ms: pick(&[0, 5, 50]),
            progress_ms: 1_000,
        };
        let weights = FaultWeights {
            power_loss: pick(&[0, 1, 4]),
            kill: pick(&[0, 1, 4]),
            crash_point: pick(&[0, 2, 8]),
            pause: pick(&[0, 1, 4]),
            partition: pick(&[0, 1, 4]),
            one_way: pick(&[0, 1, 4]),
            reset: pick(&[0, 2, 8]),
            half_open: pick(&[0, 1, 4]),
            sync_error: pick(&[0, 0, 1, 3]),
            disk_full: pick(&[0, 0, 2, 4]),
            flap: pick(&[0, 0, 2]),
            wipe: if removal && !transfers { 0 } else { pick(&[0, 0, 0, 0, 0, 1]) },
            shutdown: pick(&[0, 1, 2]),
            // Whom this costs more than its last segment, needs a leader that can send a snapshot.
            rot: if with_snapshots && !transfers { 0 } else { pick(&[0, 0, 0, 1]) },
        };
        let feed = match pick(&[0, 1, 2]) {
            0 => FeedLimits::default(),
            1 => FeedLimits { frame_bytes: 200, high_water: 1_000, low_water: 400 },
            _ => FeedLimits { frame_bytes: 2_000, high_water: 20_000, low_water: 5_000 },
        };
        let net_delay_max_ns = pick(&[60_000, MS, 5 * MS, 40 * MS]);
        // A window of 512 bytes over 40 ms would be a link of 6 KB/s, on which nothing ends in time.
        let socket_buffer =
            if net_delay_max_ns > MS { pick(&[8 << 10, 64 << 10]) } else { pick(&[512, 4 << 10, 64 << 10]) };
        Knobs {
            elected: None,
            aim: None,
            hosts,
            members: hosts,
            joiners: 0,
            loss_ppm: 0,
            clients: pick(&[1, 2, 3, 4]) as usize,
            ack,
            min_insync: pick(&[1, 1, 1, 2]).min(hosts as u64) as usize,
            insync_timeout_ms: pick(&[100, 200, 500, 2000]),
            heartbeat_ms: pick(&[30, 100]),
            segment_bytes: pick(if transfers {
                &[5 << 10, 6 << 10, 8 << 10]
            } else {
                &[8 << 10, 16 << 10, 64 << 10]
            }),
            feed,
            chaos_ns: pick(&[2_000, 5_000, 10_000, 20_000]) * MS,
            fault_every_ns: pick(&[100, 300, 1_000, 3_000]) * MS,
            operator_every_ns: pick(&[0, 0, 1_000, 3_000]) * MS,
            weights,
            net_delay_min_ns: pick(&[5_000, 50_000, MS]),
            net_delay_max_ns,
            net_slow_ppm: pick(&[0, 0, 1_000, 20_000]),
            chunk_max: pick(&[64, 1_000, 20_000, 1 << 20]),
            single_bytes_ppm: pick(&[0, 1_000, 20_000]),
            socket_buffer: socket_buffer as usize,
            flip_ppm: pick(&[0, 0, 500, 5_000]),
            sync_ns: pick(&[20_000, 100_000, MS, 5 * MS]),
            slow_disk_ppm: pick(&[0, 0, 10_000, 100_000]),
            stall_ppm: pick(&[0, 0, 200, 2_000]),
            late_flush_ppm: pick(&[0, 0, 20_000, 200_000]),
            short_write_ppm: pick(&[0, 0, 10_000]),
            clock_rate_spread_ppm: pick(&[0, 100, 20_000, 200_000]),
            keys_hot: pick(&[1, 2, 4]),
            keys_cold: pick(&[10, 100, 1_000]),
            hot_ppm: pick(&[100_000, 500_000, 900_000]),
            delete_ppm: pick(&[0, 50_000, 300_000]),
            read_ppm: pick(&[100_000, 300_000, 600_000]),
            large_ppm: pick(&[0, 0, 1_000, 20_000]),
            pipeline_max: pick(&[1, 4, 16, 64]),
            think_ns: pick(&[MS / 2, 2 * MS, 20 * MS, 100 * MS]),
            lazy_reader_ppm: pick(&[0, 0, 5_000]),
            follower_read_ppm: pick(&[0, 50_000, 300_000]),
            local_read_ppm: 0,
            // A cut below both snapshots leaves nothing that a log without its beginning could feed.
            force_ppm: if removal && !transfers { 0 } else { pick(&[0, 0, 300_000]) },
            discard_ppm: pick(&[0, 100_000, 500_000]),
            snapshot,
            removal,
            transfers,
            pin,
            long_down_ppm: if transfers { 400_000 } else { 100_000 },
            fork_check_every: 150,
            mishaps: Mishaps::draw(hosts, with_snapshots, transfers, &mut pick),
            archive: None,
        }
    }
}

//! Random lives of a log against a model: after every crash the log is a prefix of what was appended, holds at
//! least all that had a token, and begins no further on than the snapshot that there is allows.

use kvstore::ids::Lsn;
use kvstore::wal::{OpenError, ReserveError, Wal, WalError};
use proptest::prelude::*;

use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};
use crate::wal_kit::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        size: usize,
    },
    Write,
    Flush,
    /// Asks for a flush that ends with the next step that needs it.
    FlushLater,
    Spare,
    CleanMark,
    /// Keeps this share of the log, in 1/256.
    Cut {
        share: u8,
    },
    /// The node's own record of the cut is durable, and the process ends before the log hears of it.
    CutDecidedOnly {
        share: u8,
    },
    /// A snapshot of this share of what is durable.
    Snapshot {
        share: u8,
    },
    /// Removes what that covers, a few segments at a time.
    Remove {
        segments_max: usize,
    },
    /// A snapshot of so many other records comes into the place of the log.
    Install {
        records: u64,
        decided_only: bool,
    },
    PowerLoss {
        seed: u64,
    },
    Kill,
    /// The process is killed so many operations later, and the power fails or not.
    EndSoon {
        ops: u64,
        seed: u64,
        power_loss: bool,
    },
    /// A sync fails, after so many that do not; the process ends, and the power fails or not.
    SyncFailsSoon {
        syncs: u64,
        power_loss: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0usize..1500).prop_map(|size| Step::Append { size }),
        1 => (4000usize..12000).prop_map(|size| Step::Append { size }),
        4 => Just(Step::Write),
        6 => Just(Step::Flush),
        3 => Just(Step::FlushLater),
        1 => Just(Step::Spare),
        1 => Just(Step::CleanMark),
        1 => any::<u8>().prop_map(|share| Step::Cut { share }),
        1 => any::<u8>().prop_map(|share| Step::CutDecidedOnly { share }),
        2 => any::<u8>().prop_map(|share| Step::Snapshot { share }),
        2 => (1usize..4).prop_map(|segments_max| Step::Remove { segments_max }),
        1 => (1u64..40, any::<bool>())
            .prop_map(|(records, decided_only)| Step::Install { records, decided_only }),
        1 => any::<u64>().prop_map(|seed| Step::PowerLoss { seed }),
        1 => Just(Step::Kill),
        2 => (0u64..12, any::<u64>(), any::<bool>())
            .prop_map(|(ops, seed, power_loss)| Step::EndSoon { ops, seed, power_loss }),
        1 => (0u64..5, any::<bool>())
            .prop_map(|(syncs, power_loss)| Step::SyncFailsSoon { syncs, power_loss }),
    ]
}

struct Life {
    disk: MemDisk,
    wal: Wal,
    promises: Promises,
    flavour: u8,
    /// How a power loss treats what is not synced.
    seed: u64,
    /// Whether the power fails when the process ends.
    power_loss: bool,
    flush_pending: bool,
}

impl Life {
    fn new() -> Life {
        let disk = MemDisk::new();
        let wal = opened(&disk).wal;
        Life {
            disk,
            wal,
            promises: Promises::default(),
            flavour: 0,
            seed: 0,
            power_loss: false,
            flush_pending: false,
        }
    }

    fn step(&mut self, step: &Step) {
        if self.try_step(step).is_err() {
            self.end_process();
            self.restart();
        }
        assert_eq!(self.wal.last_lsn().0 as usize, self.promises.appended.len());
    }

    /// After the armed operation was reached, or a sync failed.
    fn end_process(&mut self) {
        if self.power_loss {
            self.disk.crash(Keep::Random(self.seed));
        } else {
            self.disk.kill_process();
        }
    }

    /// Ends the flush under way, as a node does before a cut and before the next flush.
    fn settle(&mut self) -> Result<(), WalError> {
        if std::mem::take(&mut self.flush_pending) {
            self.disk.complete_flush();
            if let Some(token) = self.wal.flush_poll(&mut self.disk.clone()) {
                self.promises.durable = self.promises.durable.max(token?.lsn().0 as usize);
            }
        }
        Ok(())
    }

    fn try_step(&mut self, step: &Step) -> Result<(), WalError> {
        if !matches!(step, Step::Append { .. } | Step::Write | Step::Spare) {
            self.settle()?;
        }
        let Life { disk, wal, promises, .. } = self;
        match *step {
            Step::Append { size } => {
                if !promises.append(wal, disk, self.flavour, size)? {
                    self.settle()?;
                    return self.try_step(step);
                }
            }
            Step::Write => write(wal, disk)?,
            Step::Flush => promises.flush(wal, disk)?,
            Step::FlushLater => {
                write(wal, disk)?;
                disk.hold_flushes(true);
                let token = wal.flush_begin(&mut disk.clone());
                disk.hold_flushes(false);
                self.flush_pending = token?.is_none();
            }
            Step::Spare => failed(wal.prepare_spare(&mut disk.clone()))?,
            Step::CleanMark => failed(wal.write_mark(&mut disk.clone(), Lsn::ZERO))?,
            Step::Cut { share } => {
                self.flavour = self.flavour.wrapping_add(1);
                promises.cut(wal, disk, share_of(share, promises.base.lsn.0, wal.last_lsn().0))?;
            }
            Step::CutDecidedOnly { share } => {
                self.flavour = self.flavour.wrapping_add(1);
                promises.cut_decided(wal, share_of(share, promises.base.lsn.0, wal.last_lsn().0));
                disk.kill_process();
                self.restart();
            }
            Step::Snapshot { share } => {
                promises.snapshot(share_of(share, promises.base.lsn.0, promises.durable as u64));
            }
            Step::Remove { segments_max } => {
                wal.remove_before(&mut disk.clone(), promises.base.lsn, segments_max)?;
            }
            Step::Install { records, decided_only } => {
                self.flavour = self.flavour.wrapping_add(1);
                promises.install_decided((1..=records).map(|lsn| put_bytes(lsn, self.flavour, 5)).collect());
                if decided_only {
                    disk.kill_process();
                    self.restart();
                } else {
                    wal.reset(&mut disk.clone(), &promises.base, promises.meta.0)?;
                }
            }
            Step::PowerLoss { seed } => {
                disk.crash(Keep::Random(seed));
                self.restart();
            }
            Step::Kill => {
                disk.kill_process();
                self.restart();
            }
            Step::EndSoon { ops, seed, power_loss } => {
                disk.crash_before(disk.op_count() + ops);
                (self.seed, self.power_loss) = (seed, power_loss);
            }
            Step::SyncFailsSoon { syncs, power_loss } => {
                disk.fail(OpKind::Sync, syncs, EIO);
                self.power_loss = power_loss;
            }
        }
        Ok(())
    }

    fn restart(&mut self) {
        self.flavour = self.flavour.wrapping_add(1);
        self.flush_pending = false;
        self.wal = match self.promises.open(&self.disk) {
            Ok(opened) => opened.wal,
            Err(OpenError::Io(_)) => {
                self.end_process();
                return self.restart();
            }
            Err(error) => panic!("the log opens: {error}"),
        };
        let found = self.promises.check_log(&mut self.wal, &self.disk, "after a restart");
        self.promises.appended.truncate(found);
        self.promises.durable = found;
        let again = self.disk.fork();
        again.crash(Keep::None);
        assert_eq!(self.promises.check(&again, "power lost right after the restart"), found);
    }
}

fn share_of(share: u8, from: u64, to: u64) -> u64 {
    from + (to - from) * u64::from(share) / 255
}

fn failed(result: Result<(), ReserveError>) -> Result<(), WalError> {
    match result {
        Ok(()) => Ok(()),
        Err(ReserveError::Failed(error)) => Err(error),
        Err(other) => panic!("there is space, and no flush is under way: {other}"),
    }
}

/// 300 lives, or as many as `WAL_MODEL_CASES` says.
fn cases() -> u32 {
    std::env::var("WAL_MODEL_CASES").map_or(300, |cases| cases.parse().expect("WAL_MODEL_CASES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn a_log_is_always_a_prefix_of_what_was_appended_and_holds_what_had_a_token(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let mut life = Life::new();
        for step in &steps {
            life.step(step);
        }
        life.disk.kill_process();
        life.restart();
    }
}

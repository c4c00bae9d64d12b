//! A follower that held more than it holds now fetches it again from its leader instead of serving as if nothing had
//! happened, or ending.
//!
//! Two things bring that about. At its start the log is damaged at or below what was durable (`open_log`); or at a
//! session's opening its leader has heard more from it than is there (`Node::after_open`): the data directory was
//! replaced, restored from an older copy, or lost a part. Both end in the same note of the identity record,
//! [`Repair`]: until the log reaches the LSN it names, and a leader's frame has confirmed the chain there, the node
//!
//! - answers no reads, and says how far it is;
//! - is not in sync, and its leader, which is told in OPEN_REPLY, counts it as a newcomer;
//! - may not be promoted but by force, and objects to the promotion of a node that has less than it once had.
//!
//! Its ACKs are what ACKs always are: up to there it holds what its leader holds. They say nothing of the rest.
//!
//! The order is the promise. The note and the cut in front of the damage are *one* durable record; only then the
//! damaged files are put aside, and zeros written over what is left of them; then the record says that this is done. A
//! crash between begins again where it was. The cut is an ordinary one: a new log generation, in which what stood
//! behind the cut is believed no more.
//!
//! A leader, a deposed one, and a follower that never had a leader refuse to start on a damaged log: nobody is known
//! to hold what they lost. So does a node whose log was written by another version or for another cluster, and one
//! whose disk returns errors: that is not damage that fetching again repairs.

use super::start::log_identity;
use super::{FatalReason, Node, NodeConfig, Role};
use crate::disk::Disk;
use crate::ids::{Lsn, Term};
use crate::meta::{Meta, MetaStore, Repair};
use crate::replication::promotion::Objections;
use crate::wal::{Base, Damage, OpenError, Opened, Wal, highest_seen};
use crate::wire::peer::{Hello, Open};
use crate::{log_info, log_warn};

/// Opens the log; a follower's damaged one as far as it is whole.
pub(super) fn open_log(
    disk: &mut dyn Disk,
    meta: &mut MetaStore,
    follows: bool,
    base: &Base,
    config: &NodeConfig,
    salt: u64,
) -> Result<Opened, FatalReason> {
    let known = meta.get();
    let knows_leader = match known.members.len() {
        0 => !config.leader.is_empty() || !known.leader_address.is_empty(),
        members => members > 1,
    };
    loop {
        let (known, pending) = (meta.get(), meta.get().repair.files_pending);
        let open = if pending { Wal::open_repairing } else { Wal::open };
        match open(disk, log_identity(known), &as_it_is_repaired(base, known), salt, config.wal) {
            Ok(opened) if pending => {
                meta.update(disk, |meta| meta.repair.files_pending = false)?;
                tell_repair(&opened, &meta.get().repair);
                return Ok(opened);
            }
            Ok(opened) => return Ok(opened),
            Err(OpenError::Damaged(damage)) if follows && knows_leader => {
                // Each time less is whole, so this ends.
                match damage.whole_lsn.filter(|whole| !pending || *whole < known.cut_lsn) {
                    Some(whole) => cut_before_damage(disk, meta, base, &damage, whole)?,
                    None => return Err(FatalReason::Open(OpenError::Damaged(damage))),
                }
            }
            Err(error) => return Err(FatalReason::Open(error)),
        }
    }
}

/// That the log reached the end of a snapshot once says nothing of a log that was cut before it and is fetched again.
fn as_it_is_repaired(base: &Base, known: &Meta) -> Base {
    let held = match known.repair.is_due() && known.cut_lsn < base.durable_lsn {
        true => base.lsn.max(known.cut_lsn),
        false => base.durable_lsn,
    };
    Base { durable_lsn: held, ..base.clone() }
}

/// Makes durable what is given up, before anything is.
fn cut_before_damage(
    disk: &mut dyn Disk,
    meta: &mut MetaStore,
    base: &Base,
    damage: &Damage,
    whole: Lsn,
) -> Result<(), FatalReason> {
    let known = meta.get();
    let seen = highest_seen(disk, known.cluster_id, known.log_generation, known.cut_lsn)
        .map_err(|error| FatalReason::Open(error.into()))?;
    meta.update(disk, |meta| {
        let until = seen.lsn.max(damage.durable_lsn).max(whole.next());
        meta.log_generation += 1;
        meta.cut_lsn = whole;
        if whole == base.lsn {
            // No segment is left that says behind which LSN the log begins.
            (meta.base_lsn, meta.base_chain) = (base.lsn, base.chain);
        }
        meta.in_sync = false;
        meta.repair = Repair {
            until: meta.repair.until.max(until),
            term: meta.term,
            commit_lsn: meta.repair.commit_lsn.max(seen.commit_lsn),
            files_pending: true,
        };
    })?;
    let Damage { file, offset, lsn, reason, .. } = damage;
    log_warn!(
        "wal",
        "{file} is DAMAGED at byte {offset}, where LSN {lsn} should be: {reason}. Records 1 to {whole} are whole and \
         stay; the damaged files are put aside, and the rest is fetched again from the leader. Look at this disk: \
         what it damaged once it may damage again"
    );
    Ok(())
}

fn tell_repair(opened: &Opened, repair: &Repair) {
    opened.report.damaged.iter().for_each(|file| log_warn!("wal", "a damaged file is kept as {file}"));
    log_warn!(
        "node",
        "REPAIRING: holds LSN {} of {}. Until the leader has sent the rest, this node answers no reads, is not in \
         sync and is not promoted without --force",
        opened.report.last_lsn,
        repair.until
    );
}

impl Node {
    /// What is to be repaired, if anything is.
    pub(super) fn repair_due(&self) -> Option<&Repair> {
        Some(&self.meta.get().repair).filter(|repair| repair.is_due())
    }

    /// What somebody is told who asks this node for what it may not have.
    pub(super) fn repair_text(&self) -> Option<String> {
        let until = self.repair_due()?.until;
        let leader = self.leader_address_for_clients();
        let last = self.wal.last_lsn();
        Some(format!("repairing, LSN {last} of {until}: it fetches from {leader} what it held once"))
    }

    /// What speaks against this node leading while it repairs.
    pub(super) fn repair_objection(&self, objections: &mut Objections) {
        if let Some(repair) = self.repair_due() {
            objections.0.push(format!(
                "this node repairs: its log was damaged or set back, it held records up to LSN {} and holds them to \
                 {}, and those between may be on other nodes only",
                repair.until,
                self.wal.last_lsn()
            ));
        }
    }

    /// For the answer to a fence: term and LSN up to which it once held everything, and what was committed of it.
    pub(super) fn repair_position(&self) -> ((Term, Lsn), Lsn) {
        let Repair { until, term, commit_lsn, .. } = self.meta.get().repair;
        ((term, until), commit_lsn)
    }

    /// A leader that opens a session in its own term with less than it has sent in that term is not the one that sent
    /// it: its data directory is older. In its life a leader loses nothing, and its next start is another term.
    pub(super) fn leader_rolled_back(&self, open: &Open) -> Option<String> {
        let (last, port) = (self.wal.last_lsn(), self.config.port);
        let ours = self.wal.history().last().filter(|start| start.leader == open.leader)?;
        if ours.term != open.term || last <= open.last_lsn || self.meta.get().discard_allowed {
            return None;
        }
        let way_out = self.way_out(format!(
            "To keep these records stop that leader and run `kv_client --port {port} promote` there; to give them up \
             (they are kept aside in a file) run `kv_client --port {port} follow ADDR --discard` there"
        ));
        Some(format!(
            "this node holds records up to LSN {last} of term {}, which that leader began, and its own log ends at \
             LSN {}: its data directory was restored from an older copy. Nothing was cut. {way_out}",
            open.term, open.last_lsn
        ))
    }

    /// Committed records were lost here by damage, and the leader lacks them too.
    pub(super) fn leader_lacks_what_was_lost(&self, open: &Open) -> Option<String> {
        let repair = self.repair_due().filter(|repair| repair.commit_lsn > open.last_lsn)?;
        if self.meta.get().discard_allowed {
            return None;
        }
        let port = self.config.port;
        let way_out = self.way_out(format!(
            "Promote a node that has them; or, to give them up, run `kv_client --port {port} follow ADDR --discard` \
             there"
        ));
        Some(format!(
            "this node held committed records up to LSN {} before its log was damaged, and the leader's log ends at \
             LSN {}. {way_out}",
            repair.commit_lsn, open.last_lsn
        ))
    }

    /// The note of what is to be repaired, once this leader's session stands.
    pub(super) fn repair_with(&self, open: &Open, match_lsn: Lsn) -> Repair {
        let mut repair = self.meta.get().repair;
        if open.heard_lsn > match_lsn {
            repair.until = repair.until.max(open.heard_lsn);
            repair.term = repair.term.max(open.term);
        }
        // Beyond its end the leader has nothing to send. What was there was never committed, or is given up.
        repair.until = repair.until.min(open.last_lsn);
        repair.commit_lsn = repair.commit_lsn.min(repair.until);
        if repair.is_due() { repair } else { Repair::default() }
    }

    /// Tells the operator what a session's opening has brought to light.
    pub(super) fn tell_set_back(&self, open: &Open, match_lsn: Lsn) {
        if open.heard_lsn > match_lsn {
            log_warn!(
                "node",
                "the leader has heard from the node at this address that it holds LSN {}, and here it has {match_lsn}: \
                 this data directory is new, restored from an older copy, or has lost a part. REPAIRING until LSN {}: \
                 no reads, not in sync, not promoted without --force",
                open.heard_lsn,
                self.meta.get().repair.until
            );
        }
    }

    /// The log holds everything again, up to this durable LSN, and a frame of the session has confirmed its chain.
    pub(super) fn finish_repair(&mut self, durable: Lsn) -> Result<(), FatalReason> {
        let Some(until) = self.repair_due().map(|repair| repair.until) else { return Ok(()) };
        let Role::Follower(follower) = &self.role else { return Ok(()) };
        let confirmed = follower.session.as_ref().is_some_and(|session| session.round() > 0);
        if confirmed && durable >= until {
            self.meta.update(self.disk.as_mut(), |meta| meta.repair = Repair::default())?;
            log_info!("node", "repaired: LSN {durable} of {until} is here again, and reads are answered");
        }
        Ok(())
    }

    /// A follower's hello: another node than before at the same address has another disk.
    pub(super) fn note_identity(&mut self, index: usize, hello: &Hello) {
        let Some(leader) = self.leader_mut() else { return };
        let peer = &mut leader.peers[index];
        if let Some(before) = peer.node_id.replace(hello.node_id).filter(|before| *before != hello.node_id) {
            log_warn!(
                "replication",
                "follower {} is node {} now and was node {before}: its data directory was replaced",
                peer.address,
                hello.node_id
            );
        }
    }

    /// A follower's answer to OPEN: one that repairs, or has less than it acknowledged, is a newcomer.
    pub(super) fn note_repair(&mut self, index: usize, match_lsn: Lsn, repair_until: Lsn) {
        let Some(leader) = self.leader_mut() else { return };
        let peer = &mut leader.peers[index];
        let (address, heard) = (&peer.address, peer.progress.heard_lsn());
        if heard > match_lsn {
            log_warn!(
                "replication",
                "follower {address} acknowledged LSN {heard} and holds {match_lsn} now: its data directory was \
                 replaced, restored from an older copy, or damaged (or, with --durability=os, its machine crashed)"
            );
        }
        let until = heard.max(repair_until);
        if until > match_lsn {
            peer.progress.repair(until);
            log_warn!(
                "replication",
                "follower {address} repairs: not in sync before it holds LSN {until} again"
            );
        }
    }
}

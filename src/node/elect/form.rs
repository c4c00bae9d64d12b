//! Forming: from a list of addresses on each node to one cluster with one list of members. It cannot split.
//!
//! The node with the lowest address of the list is the *founder*; the others wait for it.
//!
//! ```text
//! founder                                       every other node of the list
//!   calls all; each must be there and empty
//!   FORM probe, with the ids it was told  ->    the same list, its own id and address in it? nothing changes
//!                                         <-    FORM_REPLY
//!   all agree: cluster id and members, durably, on itself FIRST
//!   FORM                                  ->    the same record, durably
//!                                         <-    FORM_REPLY
//! ```
//!
//! Invariants, and what each is for:
//! - *One founder.* With equal lists one address is the lowest. With unequal ones no probe is agreed to by all, and
//!   nobody founds anything: each side says which lists differ.
//! - *Founded once.* The founder's record is durable before anybody else's. A founder that ends before that has founded
//!   nothing; one that ends later has the record, and never draws another id. So there is one id for what was agreed.
//! - *Nobody who belongs to a cluster founds or joins another.* One node of the list that holds a cluster id, or is not
//!   there, stops the forming: two wiped nodes of three found nothing, the third one is asked first.
//! - *Who is a member is bound to ids.* A node whose directory was wiped has another id, whatever its address: it is no
//!   member, and nobody's vote (D17).
//! - *It is completed by whoever is left.* A member that meets a node of its list which holds no cluster id yet sends
//!   FORM first, whatever it came for. A majority of them is enough to elect; the founder need not live.

use super::super::handshake::PeerIn;
use super::super::{Conn, FatalReason, Node, Stop};
use super::Elect;
use super::calls::Calls;
use crate::conn::{ConnId, Io};
use crate::ids::{ClusterId, Lsn, NodeId};
use crate::limits::{HANDSHAKE_DEADLINE_MS, REFUSED_RETRY_MS};
use crate::meta::{MetaDurable, StoredRole};
use crate::node::fatal::{fence, malformed};
use crate::node::handshake::PeerOut;
use crate::replication::members::{Member as Listed, Members, Membership};
use crate::time::Time;
use crate::wire::peer::{FEATURE_ELECTED, Form, FormKind, FormReply, Hello, RefuseCode};
use crate::{log_info, log_warn};

/// A node on the way to become a member.
#[derive(Default)]
pub(in super::super) struct Forming {
    /// All nodes of the cluster to be, this one among them, in order. The first is the founder. None: it founds
    /// nothing, and waits to be added to a cluster.
    addresses: Vec<String>,
    /// Of the founder: to all others.
    pub(super) calls: Calls,
    /// What all others are asked to agree to.
    proposed: Option<Form>,
    /// By then they have answered, or one of them is gone without a word.
    answers_by: Time,
    /// What the operator was told last.
    told: String,
}

impl Forming {
    pub(super) fn deadline(&self) -> Option<Time> {
        let answers_by = self.proposed.as_ref().map(|_| self.answers_by);
        [self.calls.deadline(), answers_by].into_iter().flatten().min()
    }

    /// What is waited for, for an operator.
    pub(super) fn text(&self) -> String {
        let Some(founder) = self.addresses.first() else {
            return "no cluster yet: waits for `kv_client member add`, to be run against one that is there"
                .to_owned();
        };
        let nodes = self.addresses.join(", ");
        let missing = if self.told.is_empty() { String::new() } else { format!("; {}", self.told) };
        format!("no cluster yet: {founder} forms it of {nodes}{missing}")
    }
}

impl Node {
    pub(super) fn start_forming(&mut self) -> Result<(), FatalReason> {
        if !self.meta.get().cluster_id.is_none() {
            return Err(FatalReason::Role(
                "the data directory was made for a leader of fixed roles, and the flags say --role=auto: nothing was \
                 changed. Name another --data-dir"
                    .to_owned(),
            ));
        }
        if self.config.election.join {
            return self.wait_to_be_added();
        }
        let own = self.config.own_address.clone();
        let mut addresses = self.config.peers.clone();
        addresses.push(own.clone());
        addresses.sort();
        let is_founder = addresses[0] == own;
        let called = addresses.iter().filter(|address| is_founder && **address != own).cloned();
        let calls = Calls::new(called, self.now);
        let nodes = addresses.join(", ");
        let begin = match (addresses.len(), is_founder) {
            (1, _) => "it is its only member".to_owned(),
            (_, true) => {
                "this node has the lowest address and forms it, once all others are there and empty".into()
            }
            (_, false) => format!("{} has the lowest address and forms it", addresses[0]),
        };
        log_info!("election", "no cluster yet; it is to be formed of {nodes}: {begin}");
        self.elect = Elect::Forming(Box::new(Forming { addresses, calls, ..Forming::default() }));
        if self.config.peers.is_empty() {
            let form = self.proposal(Vec::new()).expect("one node has one id and one address");
            self.join(&form)?;
        }
        Ok(())
    }

    /// It forms nothing: the leader of a cluster that is there calls it, once an operator says so.
    fn wait_to_be_added(&mut self) -> Result<(), FatalReason> {
        log_info!(
            "election",
            "waits to be a member: `kv_client --endpoints MEMBER,... member add {}` brings it into a cluster",
            self.config.own_address
        );
        self.elect = Elect::Forming(Box::default());
        Ok(())
    }

    pub(super) fn forming_timers(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        if let Elect::Forming(forming) = &self.elect
            && forming.proposed.is_some()
            && self.now >= forming.answers_by
            && let Some(index) = forming.calls.0.iter().position(|call| !call.answered)
        {
            let why = format!("no answer for {HANDSHAKE_DEADLINE_MS} ms to what it was asked to agree to");
            self.call_failed(io, index, &why)?;
        }
        self.place_calls(io)
    }

    /// A cluster of this node and these, with an id that nobody has had.
    fn proposal(&mut self, others: Vec<Listed>) -> Option<Form> {
        let own = Listed { node_id: self.node_id(), address: self.config.own_address.clone() };
        let members = Members::new(others.into_iter().chain([own]).collect())?;
        let cluster_id = ClusterId(self.rng.bytes16());
        Some(Form { cluster_id, members, members_lsn: Lsn::ZERO, kind: FormKind::Probe })
    }

    /// One of the others is there. With all of them, and all empty, they are asked.
    pub(super) fn forming_greeted(
        &mut self,
        io: &mut dyn Io,
        index: usize,
        hello: &Hello,
    ) -> Result<(), FatalReason> {
        let address = self.call_address(index);
        if let Some(why) = why_not_to_form(&address, hello) {
            return self.forming_stops(io, index, &why);
        }
        let Elect::Forming(forming) = &self.elect else { return Ok(()) };
        let others: Vec<Listed> = forming
            .calls
            .open()
            .map(|(index, _, node_id)| Listed { node_id, address: forming.calls.0[index].address.clone() })
            .collect();
        if others.len() < forming.calls.0.len() {
            return Ok(());
        }
        let Some(proposal) = self.proposal(others) else {
            return self.forming_stops(
                io,
                index,
                "two addresses of --peers lead to one node; correct --peers",
            );
        };
        let answers_by = self.now.after_ms(HANDSHAKE_DEADLINE_MS);
        let Elect::Forming(forming) = &mut self.elect else { return Ok(()) };
        forming.calls.nothing_answered();
        let conns: Vec<ConnId> = forming.calls.open().map(|(_, conn, _)| conn).collect();
        conns.into_iter().for_each(|conn| proposal.encode(io.output(conn).bytes_mut()));
        forming.proposed = Some(proposal);
        forming.answers_by = answers_by;
        Ok(())
    }

    /// Forming cannot go on with that node as it is: it is told, and so is this operator, once for each reason.
    fn forming_stops(&mut self, io: &mut dyn Io, index: usize, why: &str) -> Result<(), FatalReason> {
        let Elect::Forming(forming) = &mut self.elect else { return Ok(()) };
        let is_news = forming.told != why;
        let conn = forming.calls.open().find(|(open, ..)| *open == index).map(|(_, conn, _)| conn);
        if let (true, Some(conn)) = (is_news, conn) {
            self.refuse(io, conn, RefuseCode::Cluster, why.to_owned());
        }
        self.call_failed(io, index, why)
    }

    /// The founder lost one of the others, or was refused: what was proposed is void, and asked anew with all of them.
    pub(super) fn forming_call_failed(&mut self, io: &mut dyn Io, index: usize, why: &str) {
        let later = self.now.after_ms(REFUSED_RETRY_MS);
        let Elect::Forming(forming) = &mut self.elect else { return };
        let address = forming.calls.0[index].address.clone();
        if forming.told != why {
            log_warn!(
                "election",
                "the cluster is not formed yet, {address}: {why}. All {} nodes must be there and empty",
                forming.addresses.len()
            );
            why.clone_into(&mut forming.told);
        }
        if forming.proposed.take().is_some() {
            let calls = std::mem::take(&mut forming.calls);
            let addresses: Vec<String> = calls.0.iter().map(|call| call.address.clone()).collect();
            self.hang_up(io, &calls);
            if let Elect::Forming(forming) = &mut self.elect {
                forming.calls = Calls::new(addresses, later);
            }
        }
    }

    pub(in super::super) fn on_form_reply(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let reply = FormReply::decode(body).map_err(malformed("FORM_REPLY"))?;
        let Some(Conn::PeerOut(PeerOut { purpose, node_id: Some(node_id) })) = self.conns.get(conn) else {
            return fence("FORM_REPLY before a hello");
        };
        let (purpose, node_id) = (*purpose, *node_id);
        if reply.node_id != node_id {
            return fence(format!("FORM_REPLY of node {} from node {node_id}", reply.node_id));
        }
        match &mut self.elect {
            Elect::Forming(forming) => {
                let founds = forming.proposed.is_some();
                let Some(call) = forming.calls.on(conn).filter(|_| founds) else { return Ok(()) };
                if !reply.accepted {
                    let index = forming.calls.0.iter().position(|call| call.is_on(conn)).expect("just found");
                    return Ok(self.call_failed(io, index, &reply.message)?);
                }
                call.answered = true;
                Ok(self.found_if_agreed(io)?)
            }
            Elect::Member(_) => Ok(self.newcomer_replied(io, conn, purpose, &reply)?),
            Elect::Fixed => fence("FORM_REPLY to a node of fixed roles"),
        }
    }

    /// All agree: this node is the first member, durably, and tells the others.
    fn found_if_agreed(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Elect::Forming(forming) = &mut self.elect else { return Ok(()) };
        if !forming.calls.0.iter().all(|call| call.answered) {
            return Ok(());
        }
        let form =
            Form { kind: FormKind::Found, ..forming.proposed.take().expect("they agreed to something") };
        let calls = std::mem::take(&mut forming.calls);
        let _first: MetaDurable = self.join(&form)?;
        for (_, conn, _) in calls.open() {
            form.encode(io.output(conn).bytes_mut());
        }
        // What is lost on these connections is sent again by whoever calls next. Their answers are awaited there.
        self.hang_up(io, &calls);
        Ok(())
    }

    /// Becomes a member of this cluster, or one that learns, durably.
    fn join(&mut self, form: &Form) -> Result<MetaDurable, FatalReason> {
        let own_address = self.config.own_address.clone();
        let token = self.meta.update(self.disk.as_mut(), |meta| {
            meta.cluster_id = form.cluster_id;
            meta.role = StoredRole::Elected;
            meta.members = Membership::settled(form.members.clone(), form.members_lsn);
            meta.own_address = own_address;
        })?;
        self.wal.set_cluster(form.cluster_id);
        match form.kind {
            FormKind::Learn => log_info!("election", "is to be a member of cluster {}", form.cluster_id),
            _ => log_info!("election", "the cluster is formed: {}", form.cluster_id),
        }
        self.become_member();
        Ok(token)
    }

    /// A founder proposes a cluster, or a member says that it exists.
    pub(in super::super) fn on_form(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let form = Form::decode(body).map_err(malformed("FORM"))?;
        let Some(Conn::PeerIn(peer)) = self.conns.get(conn) else { return Ok(()) };
        let peer = peer.clone();
        self.expect_more_of(conn);
        let message = match self.why_not_to_join(&form, &peer) {
            Some(why) => {
                self.log_refusal(format!("refused to join the cluster of {}: {why}", peer.address));
                why
            }
            None => {
                if form.kind != FormKind::Probe && !self.is_member() {
                    let calls = self.elect.calls_mut().map(std::mem::take).unwrap_or_default();
                    let _told_once_durable: MetaDurable = self.join(&form)?;
                    self.hang_up(io, &calls);
                }
                String::new()
            }
        };
        FormReply {
            accepted: message.is_empty(),
            node_id: self.node_id(),
            cluster_id: self.meta.get().cluster_id,
            message,
        }
        .encode(io.output(conn).bytes_mut());
        Ok(())
    }

    fn why_not_to_join(&self, form: &Form, peer: &PeerIn) -> Option<String> {
        let (own_id, own) = (self.node_id(), &self.config.own_address);
        match &self.elect {
            Elect::Fixed => {
                Some(format!("node {own_id} at {own} runs with a fixed role, not with --role=auto"))
            }
            Elect::Member(_) => {
                let meta = self.meta.get();
                (meta.cluster_id != form.cluster_id).then(|| {
                    format!(
                        "node {own_id} at {own} belongs to cluster {} already, as its directory says",
                        meta.cluster_id
                    )
                })
            }
            // Its address was given to the leader by an operator, and it holds nothing yet.
            Elect::Forming(_) if form.kind == FormKind::Learn => None,
            Elect::Forming(forming) => {
                why_not_this_list(form, (own_id, own), &forming.addresses, peer.node_id)
            }
        }
    }

    /// A member without a cluster id was met: it is told first, on this connection. True if it was.
    pub(super) fn tell_newcomer(&mut self, io: &mut dyn Io, conn: ConnId, hello: &Hello) -> bool {
        if !hello.cluster_id.is_none() {
            return false;
        }
        self.own_form(FormKind::Found).encode(io.output(conn).bytes_mut());
        true
    }

    /// What a node is told of the cluster that is there.
    pub(super) fn own_form(&self, kind: FormKind) -> Form {
        let meta = self.meta.get();
        let (members, members_lsn) = (meta.members.list().clone(), meta.members.lsn());
        Form { cluster_id: meta.cluster_id, members, members_lsn, kind }
    }
}

/// Why no cluster is formed with the node that says this at that address.
fn why_not_to_form(address: &str, hello: &Hello) -> Option<String> {
    if !hello.cluster_id.is_none() {
        return Some(format!(
            "node {} there belongs to cluster {} already. If this node was a member of it, its data directory was \
             wiped or is another one: start it with the one it had. A new node does not form a second cluster beside \
             the first, and does not vote in it: `kv_client replace` or `kv_client member add` brings it in",
            hello.node_id, hello.cluster_id
        ));
    }
    (hello.features & FEATURE_ELECTED == 0)
        .then(|| format!("node {} at {address} does not run with --role=auto: start it so", hello.node_id))
}

/// Why a node of the list `addresses`, with this id and address, does not join what `sender` proposes.
fn why_not_this_list(
    form: &Form,
    (own_id, own): (NodeId, &str),
    addresses: &[String],
    sender: NodeId,
) -> Option<String> {
    let mut theirs: Vec<&str> = form.members.iter().map(|member| member.address.as_str()).collect();
    theirs.sort_unstable();
    // Of a cluster whose members were changed since it was formed the flags know nothing.
    let as_formed = form.members_lsn == Lsn::ZERO;
    if as_formed && theirs != addresses {
        return Some(format!(
            "the lists of nodes differ: {} there, {} here at {own}; --peers (with the node itself) must name the same \
             addresses on every node, letter for letter",
            theirs.join(", "),
            addresses.join(", ")
        ));
    }
    if form.members.get(own_id).is_none_or(|member| member.address != own) {
        return Some(format!(
            "node {own_id} at {own} is not in that list: its data directory was wiped since the cluster was formed, or \
             is another one. It does not vote; start it with the directory it had"
        ));
    }
    let Some(sender) = form.members.get(sender) else {
        return Some(format!("node {sender} forms a cluster that it is no member of"));
    };
    let founder = addresses.first().filter(|founder| **founder != sender.address)?;
    (form.kind == FormKind::Probe)
        .then(|| format!("{} forms a cluster, and {founder} has the lowest address", sender.address))
}

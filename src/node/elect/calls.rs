//! Calls: connections that this node dials to the others while it forms a cluster or campaigns.
//!
//! A call is dialled, greeted, and then open for questions; one that fails is placed again, later each time. All of
//! them end together, with the campaign or the forming that they belong to.

use super::super::handshake::PeerOut;
use super::super::{Conn, DialPurpose, FatalReason, Node};
use super::Elect;
use crate::conn::{Close, ConnId, Io};
use crate::ids::NodeId;
use crate::limits::HANDSHAKE_DEADLINE_MS;
use crate::replication::link::Backoff;
use crate::time::Time;
use crate::wire::peer::{Hello, RefuseCode};

/// One call to each of the others, in the order of their list.
#[derive(Debug, Default)]
pub(super) struct Calls(pub Vec<Call>);

/// A call to one node.
#[derive(Debug)]
pub(super) struct Call {
    pub address: String,
    pub state: CallState,
    backoff: Backoff,
    /// It has failed at least once.
    pub failed: bool,
    /// What was asked last is answered.
    pub answered: bool,
}

#[derive(Debug)]
pub(super) enum CallState {
    /// Placed at this time.
    Due(Time),
    /// Connecting, until then.
    Dialing(Time),
    /// Hello sent, to be answered until then.
    Greeting(ConnId, Time),
    /// It answers questions.
    Open(ConnId, NodeId),
}

impl Calls {
    /// Calls that are placed at once.
    pub fn new(addresses: impl IntoIterator<Item = String>, now: Time) -> Calls {
        let call = |address| Call {
            address,
            state: CallState::Due(now),
            backoff: Backoff::default(),
            failed: false,
            answered: false,
        };
        Calls(addresses.into_iter().map(call).collect())
    }

    /// Where it is open: index, connection, and who is there.
    pub fn open(&self) -> impl Iterator<Item = (usize, ConnId, NodeId)> {
        self.0.iter().enumerate().filter_map(|(index, call)| match call.state {
            CallState::Open(conn, node_id) => Some((index, conn, node_id)),
            _ => None,
        })
    }

    /// The call on this connection.
    pub fn on(&mut self, conn: ConnId) -> Option<&mut Call> {
        self.0.iter_mut().find(|call| call.conn() == Some(conn))
    }

    /// When one is to be placed or given up.
    pub fn deadline(&self) -> Option<Time> {
        let deadline = |call: &Call| match call.state {
            CallState::Due(at) | CallState::Dialing(at) | CallState::Greeting(_, at) => Some(at),
            CallState::Open(..) => None,
        };
        self.0.iter().filter_map(deadline).min()
    }

    /// A new question: nobody has answered it.
    pub fn nothing_answered(&mut self) {
        self.0.iter_mut().for_each(|call| call.answered = false);
    }

    /// Whether everybody has answered whose connection stands.
    pub fn open_ones_answered(&self) -> bool {
        self.0.iter().all(|call| call.answered || !matches!(call.state, CallState::Open(..)))
    }

    /// Whether nobody is left of whom an answer can be expected soon.
    pub fn all_heard(&self) -> bool {
        self.0.iter().all(|call| call.answered || (call.failed && !matches!(call.state, CallState::Open(..))))
    }
}

impl Call {
    /// Whether it is this connection.
    pub fn is_on(&self, conn: ConnId) -> bool {
        self.conn() == Some(conn)
    }

    fn conn(&self) -> Option<ConnId> {
        match self.state {
            CallState::Due(_) | CallState::Dialing(_) => None,
            CallState::Greeting(conn, _) | CallState::Open(conn, _) => Some(conn),
        }
    }
}

impl Elect {
    pub(super) fn calls(&self) -> Option<&Calls> {
        match self {
            Elect::Fixed => None,
            Elect::Forming(forming) => Some(&forming.calls),
            Elect::Member(member) => member.canvass.as_ref().map(|canvass| &canvass.calls),
        }
    }

    pub(super) fn calls_mut(&mut self) -> Option<&mut Calls> {
        match self {
            Elect::Fixed => None,
            Elect::Forming(forming) => Some(&mut forming.calls),
            Elect::Member(member) => member.canvass.as_mut().map(|canvass| &mut canvass.calls),
        }
    }

    fn call_mut(&mut self, index: usize) -> Option<&mut Call> {
        self.calls_mut()?.0.get_mut(index)
    }
}

impl Node {
    /// Dials whoever is due, and gives up on who does not answer.
    pub(super) fn place_calls(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let now = self.now;
        for index in 0..self.elect.calls_mut().map_or(0, |calls| calls.0.len()) {
            let Some(call) = self.elect.call_mut(index) else { return Ok(()) };
            match call.state {
                CallState::Due(at) if now >= at => {
                    call.state = CallState::Dialing(now.after_ms(HANDSHAKE_DEADLINE_MS));
                    let address = call.address.clone();
                    self.dial(io, DialPurpose::Call(index), &address);
                }
                CallState::Dialing(until) if now >= until => {
                    self.dials.retain(|(_, purpose)| *purpose != DialPurpose::Call(index));
                    self.call_failed(io, index, "connecting took too long")?;
                }
                CallState::Greeting(_, until) if now >= until => {
                    self.call_failed(io, index, "no answer to the hello in time")?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A connection stands, and hello is sent on it.
    pub(in super::super) fn call_dialled(&mut self, io: &mut dyn Io, index: usize, conn: ConnId) {
        let deadline = self.now.after_ms(HANDSHAKE_DEADLINE_MS);
        match self.elect.call_mut(index) {
            Some(call) => call.state = CallState::Greeting(conn, deadline),
            None => self.close(io, conn, Close::Now),
        }
    }

    /// The other side has said who it is.
    pub(in super::super) fn call_greeted(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        index: usize,
        hello: &Hello,
    ) -> Result<(), FatalReason> {
        let address = self.call_address(index);
        if self.is_member() && !self.member_greeted(io, conn, &address, hello) {
            return self.call_failed(io, index, "it is not the member that it should be");
        }
        let Some(call) = self.elect.call_mut(index) else { return Ok(()) };
        call.state = CallState::Open(conn, hello.node_id);
        match &self.elect {
            Elect::Fixed => Ok(()),
            Elect::Forming(_) => self.forming_greeted(io, index, hello),
            Elect::Member(_) => {
                if !self.tell_newcomer(io, conn, hello) {
                    self.ask_for_vote(io, conn);
                }
                Ok(())
            }
        }
    }

    /// A call did not come about, broke, or was refused in words.
    pub(in super::super) fn call_failed(
        &mut self,
        io: &mut dyn Io,
        index: usize,
        why: &str,
    ) -> Result<(), FatalReason> {
        let now = self.now;
        let Some(call) = self.elect.call_mut(index) else { return Ok(()) };
        let conn = call.conn();
        call.state = CallState::Due(call.backoff.on_failure(now, &mut self.rng));
        call.failed = true;
        call.answered = false;
        if let Some(conn) = conn {
            self.close(io, conn, Close::Now);
        }
        match &self.elect {
            Elect::Fixed => Ok(()),
            Elect::Forming(_) => {
                self.forming_call_failed(io, index, why);
                Ok(())
            }
            Elect::Member(_) => self.canvass_heard(io),
        }
    }

    /// The address that a call goes to.
    pub(in super::super) fn call_address(&self, index: usize) -> String {
        let call = self.elect.calls().and_then(|calls| calls.0.get(index));
        call.map_or_else(String::new, |call| call.address.clone())
    }

    /// Ends calls. What is under way to be dialled is forgotten, and closed when it connects.
    pub(super) fn hang_up(&mut self, io: &mut dyn Io, calls: &Calls) {
        self.dials.retain(|(_, purpose)| !matches!(purpose, DialPurpose::Call(_)));
        for conn in calls.0.iter().filter_map(Call::conn) {
            self.close(io, conn, Close::AfterOutput);
        }
    }

    /// Refuses whoever was called, in words for both sides.
    pub(super) fn refuse_called(&mut self, io: &mut dyn Io, conn: ConnId, code: RefuseCode, why: String) {
        if matches!(self.conns.get(conn), Some(Conn::PeerOut(PeerOut { .. }))) {
            self.log_refusal(why.clone());
            self.refuse(io, conn, code, why);
        }
    }
}

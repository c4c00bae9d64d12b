//! The clients of a run: when they act, where they connect, and what they make of their replies.

use kvstore::wire::client::Status;

use crate::client::{Ask, Client, Dialogue, Sent};
use crate::core::{Event, MS};
use crate::host::Host;
use crate::numbered::By;
use crate::world::World;

impl World {
    pub fn client_acts(&mut self, index: usize) {
        let mut core = self.core.borrow_mut();
        let delay = Client::think(&mut core, self.healed_at.is_some());
        let gap = if core.chance_of(|knobs| knobs.mishaps.client_gap_ppm) {
            core.stats.count("client: long gap");
            core.between(5_000 * MS, 30_000 * MS)
        } else {
            0
        };
        core.after(delay + gap, Event::Client(index));
        let now = core.now;
        let lazy = core.chance_of(|knobs| knobs.lazy_reader_ppm);
        let wander = core.chance_of(|knobs| knobs.follower_read_ppm);
        let most = if self.healed_at.is_some() { 2 } else { core.knobs.pipeline_max };
        let batch = core.between(1, most);
        let hosts = core.knobs.hosts as u64;
        let elsewhere = core.rng.below(hosts) as usize;
        if lazy {
            core.stats.count("client: stopped reading");
        }
        drop(core);
        let client = &mut self.clients[index];
        if lazy && self.healed_at.is_none() {
            client.lazy_until = now + 3_000 * MS;
        }
        let waits = client.conn.is_some_and(|conn| {
            let dialogue = &self.dialogues[&conn];
            dialogue.sent.get(dialogue.received).is_some_and(|sent| now > sent.at + Client::PATIENCE)
        });
        if waits && now >= client.lazy_until + Client::PATIENCE {
            self.client_lost(index);
            self.clients[index].target = self.next_target(self.clients[index].target);
        } else if wander && self.healed_at.is_none() {
            self.client_lost(index);
            self.clients[index].target = elsewhere;
        }
        self.client_reads(index);
        if self.clients[index].quiet {
            return;
        }
        self.send_numbers_again(index);
        for _ in 0..batch {
            let ask = {
                let mut core = self.core.borrow_mut();
                self.clients[index].draw(&mut core)
            };
            self.ask_with_number(index, ask);
        }
        self.client_writes(index);
    }

    /// Whether faults have stopped, and this host is one of those that are to serve.
    fn serving_now(&self, site: usize) -> bool {
        self.healed_at.is_some() && self.serving().any(|serving| serving == site)
    }

    /// Where a client goes that has waited in vain, or was told nothing: once faults have stopped, to the next one that
    /// is to serve. Most of the second phase could pass with waiting for hosts that stay mute.
    fn next_target(&self, site: usize) -> usize {
        let hosts = self.hosts.len();
        let mut others = (1..=hosts).map(|step| (site + step) % hosts);
        let next = others.next().unwrap_or(site);
        if self.healed_at.is_none() || self.serving_now(next) {
            return next;
        }
        others.find(|other| self.serving_now(*other)).unwrap_or(next)
    }

    /// Sends a request on the client's connection, made now if there is none.
    pub fn ask(&mut self, index: usize, ask: Ask) {
        self.ask_by(index, ask, None);
    }

    /// The same with a number. False: it was not sent.
    pub fn ask_by(&mut self, index: usize, ask: Ask, by: Option<By>) -> bool {
        let mut core = self.core.borrow_mut();
        let client = &mut self.clients[index];
        if client.conn.is_none() {
            let target = client.target;
            let up = core.net.alive[target] > 0 && core.net.works(client.site, target);
            if !up {
                // Any of them: the next one may name this one as its leader again, and so on.
                let elsewhere = core.some_host();
                drop(core);
                if !self.is_bound(index) {
                    self.clients[index].target = elsewhere;
                }
                return false;
            }
            let conn = core.connect(client.site, target);
            client.conn = Some(conn);
            self.dialogues.insert(conn, Dialogue { site: target, ..Dialogue::default() });
            drop(core);
            self.hosts[target].accepts.push((conn, "10.1.0.1".to_owned()));
            self.wake(target);
            core = self.core.borrow_mut();
        }
        let client = &mut self.clients[index];
        let conn = client.conn.expect("it was just made");
        let dialogue = self.dialogues.get_mut(&conn).expect("every connection has one");
        if dialogue.sent.len() - dialogue.received > 200 {
            return false;
        }
        client.push(&ask, by, Host::address);
        dialogue.sent.push(Sent { ask, at: core.now, by_leader: false, unknown: false, by });
        true
    }

    pub fn client_writes(&mut self, index: usize) {
        let result = self.clients[index].write(&mut self.core.borrow_mut());
        if result.is_err() {
            self.client_lost(index);
        }
    }

    pub fn client_lost(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if let Some(conn) = client.conn {
            self.core.borrow_mut().close_end(conn, 0, 0);
        }
        client.reset();
    }

    pub fn client_reads(&mut self, index: usize) {
        let (replies, over) = {
            let mut core = self.core.borrow_mut();
            self.clients[index].read(&mut core)
        };
        let Some(conn) = self.clients[index].conn else { return };
        for got in replies {
            let mut core = self.core.borrow_mut();
            let dialogue = self.dialogues.get_mut(&conn).expect("every connection has one");
            let sent = dialogue.sent[dialogue.received].clone();
            dialogue.received += 1;
            let site = dialogue.site;
            dialogue.sent[dialogue.received - 1].unknown = got.status == Status::OutcomeUnknown;
            self.oracle.on_got(&mut core, site, &sent, &got);
            if let (Ask::Put { .. }, Status::Ok) = (&sent.ask, got.status) {
                self.clients[index].last_lsn = got.lsn;
            }
            self.heal.on_got(&core, site, &sent, got.status, self.healed_at);
            let is_new = self.oracle.numbers.is_new_in_history(&core, site, &sent, &got);
            if is_new {
                self.oracle.histories.on_got(&core, conn, site, &sent, &got);
            } else if !sent.by_leader {
                // Its leader has lost the disk on which that was so: the write may have been seen there all the same.
                let dialogue = self.dialogues.get_mut(&conn).expect("every connection has one");
                dialogue.sent[dialogue.received - 1].unknown = true;
            }
            drop(core);
            self.on_number_got(index, &sent, &got);
            let mut core = self.core.borrow_mut();
            if index == self.clients.len() - 1 {
                core.trace(|| {
                    format!("operator: {:?} at host {site}: {:?} {}", sent.ask, got.status, got.text)
                });
            } else if got.status == Status::NotLeader {
                core.stats.count("client: redirected");
                let named = (0..self.hosts.len()).find(|site| Host::address(*site) == got.text);
                // Two nodes that nobody leads any more may name each other for ever.
                let (doubts, any) = (core.chance(250_000), core.some_host());
                drop(core);
                let named = if doubts && !self.serving_now(site) { Some(any) } else { named };
                let next = named.unwrap_or_else(|| self.next_target(site));
                if !self.is_bound(index) {
                    self.clients[index].target = next;
                }
            }
        }
        let target = self.clients[index].target;
        let moved = self
            .dialogues
            .get(&conn)
            .is_some_and(|dialogue| dialogue.site != target && dialogue.received == dialogue.sent.len());
        if over || moved {
            self.client_lost(index);
            if over && !self.is_bound(index) {
                self.clients[index].target = self.next_target(target);
            }
        }
    }
}

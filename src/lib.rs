//! A durable, replicated, in-memory key-value node on one poll loop.
//!
//! Follow the life of a PUT by module name: [`net`] reads bytes, [`wire`] makes messages, [`node`] runs one
//! turn, [`wal`] makes it durable, [`replication`] decides what may be said to whom, [`keyspace`] applies.

#![warn(clippy::disallowed_methods)]

pub mod address;
pub mod backup;
pub mod client;
pub mod commands;
pub mod config;
pub mod conn;
pub mod disk;
pub mod ids;
pub mod inspect;
pub mod keyspace;
pub mod ledger;
pub mod limits;
mod logging;
pub mod logsink;
pub mod marks;
pub mod meta;
pub mod net;
pub mod node;
pub mod progress;
pub mod replication;
pub mod rng;
pub mod sabotage;
pub mod snapshot;
pub mod time;
pub mod trace;
pub mod wal;
pub mod wire;

//! `kv_client` and the library behind it, against nodes that say what the test told them to.

mod commands;
mod doctor;
mod endpoints;
mod failures;
mod library;
mod receipts;
mod sessions;
mod status;
mod support;

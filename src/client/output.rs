//! What `kv_client` prints: results on stdout, errors in words on stderr, and the exit code.
//!
//! With `-o json` there is one object on stdout whatever happens; `ok` says which kind. An absent key is a
//! result and not an error, so it has no words on stderr there.

use std::io::{self, Write};

use base64::Engine;
use serde_json::{Map, Value, json};

use super::cli::Format;
use super::error::printable;
use super::failure::{
    EXIT_DONE, EXIT_NOT_FOUND, EXIT_SERVER_ERROR, EXIT_USAGE, error_code, error_fields, exit_code,
};
use super::measured_text::Ledger;
use super::once::{Numbering, Wrote};
use super::table::micros;
use super::{ClientError, Explained, LastWrite, Pong, Read, Served, Surveyed};
use super::{cluster_text, measured_text, receipt_text, status_text, watch};

/// Characters of a key shown in a message.
const KEY_SHOWN_MAX: usize = 200;

/// What is to be printed, and the exit code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// For stdout.
    pub stdout: Vec<u8>,
    /// For stderr.
    pub stderr: String,
    /// The exit code.
    pub exit_code: u8,
}

impl Printed {
    pub(super) fn text(text: impl Into<Vec<u8>>) -> Printed {
        let mut stdout: Vec<u8> = text.into();
        stdout.push(b'\n');
        Printed { stdout, ..Printed::default() }
    }

    /// Text that ends with a newline of its own.
    fn lines(text: String) -> Printed {
        Printed { stdout: text.into_bytes(), ..Printed::default() }
    }

    pub(super) fn json(document: &Value) -> Printed {
        Printed::text(document.to_string())
    }
}

/// Prints, and returns the exit code. A reader that has seen enough (`| head`) is no error; a stdout that
/// cannot be written is one, since the result did not get where it was wanted.
pub fn emit(printed: &Printed) -> u8 {
    // Nobody is left to tell when stderr is gone.
    let _ = io::stderr().write_all(printed.stderr.as_bytes());
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&printed.stdout).and_then(|()| stdout.flush()) {
        Ok(()) => printed.exit_code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => printed.exit_code,
        Err(error) => {
            let message =
                format!("kv_client: the command was done, but its result cannot be printed: {error}\n");
            let _ = io::stderr().write_all(message.as_bytes());
            EXIT_SERVER_ERROR
        }
    }
}

/// A put or a delete, and how it was asked for.
pub(super) fn wrote(key: &[u8], wrote: &Wrote, format: Format) -> Printed {
    let how = numbering_fields(&wrote.how);
    let served = match &wrote.result {
        Ok(served) if served.value => served,
        Ok(served) => return not_found(key, served, how, format),
        Err(error) => return not_written(error, &wrote.how, how, format),
    };
    match format {
        Format::Text => Printed::text("OK"),
        Format::Json => {
            let mut document = Map::new();
            document.insert("ok".to_owned(), true.into());
            document.insert("lsn".to_owned(), served.lsn.0.into());
            document.insert("term".to_owned(), served.term.as_u64().into());
            document.extend(how);
            Printed::json(&Value::Object(document))
        }
    }
}

/// A write that failed. That it had no number matters where it is in doubt.
fn not_written(
    error: &ClientError,
    how: &Numbering,
    mut fields: Map<String, Value>,
    format: Format,
) -> Printed {
    fields.extend(error_fields(error));
    let mut message = error.to_string();
    if let (Numbering::Refused(why), true) = (how, error.is_outcome_unknown()) {
        message.push_str(". It was sent without a number, so it cannot be asked for again: ");
        message.push_str(&printable(why));
    }
    failed(error_code(error), &message, exit_code(error), fields, format)
}

/// How a write was asked for, for programs. Nothing for a plain one.
fn numbering_fields(how: &Numbering) -> Map<String, Value> {
    let mut fields = Map::new();
    match how {
        Numbering::Plain | Numbering::Numbered(None) => {}
        Numbering::Numbered(Some(LastWrite { id, tries, in_doubt })) => {
            fields.insert("session".to_owned(), id.session.to_string().into());
            fields.insert("number".to_owned(), id.number.into());
            fields.insert("tries".to_owned(), (*tries).into());
            fields.insert("in_doubt".to_owned(), (*in_doubt).into());
        }
        Numbering::Refused(why) => {
            fields.insert("session".to_owned(), Value::Null);
            fields.insert("not_numbered".to_owned(), why.as_str().into());
        }
    }
    fields
}

/// The value of a key. In text these are its bytes and a newline, nothing escaped.
pub fn got(key: &[u8], served: Served<Option<Vec<u8>>>, format: Format) -> Printed {
    let (lsn, term) = (served.lsn.0, served.term.as_u64());
    match (&served.value, format) {
        (None, _) => not_found(key, &served, Map::new(), format),
        (Some(_), Format::Text) => Printed::text(served.value.unwrap_or_default()),
        (Some(value), Format::Json) => {
            Printed::json(&json!({"ok": true, "value": bytes_as_json(value), "lsn": lsn, "term": term}))
        }
    }
}

/// The same for a read that asked for a way of reading; JSON has the age of a local one, or null.
pub fn read(key: &[u8], served: Served<Read>, format: Format) -> Printed {
    let Served { value: Read { value, age }, lsn, term } = served;
    match (value, format) {
        (Some(value), Format::Json) => {
            let age_ms = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            Printed::json(&json!({
                "ok": true, "value": bytes_as_json(&value), "lsn": lsn.0, "term": term.as_u64(), "age_ms": age_ms,
            }))
        }
        (value, _) => got(key, Served { value, lsn, term }, format),
    }
}

/// The answer to a ping.
pub fn pong(served: &Served<Pong>, format: Format) -> Printed {
    let Pong { round_trip, note } = &served.value;
    let round_trip_us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    match format {
        Format::Text if note.is_empty() => Printed::text(format!("PONG {round_trip_us} us")),
        Format::Text => Printed::text(format!("PONG {round_trip_us} us ({})", printable(note))),
        Format::Json => Printed::json(&json!({
            "ok": true, "round_trip_us": round_trip_us, "note": note,
            "lsn": served.lsn.0, "term": served.term.as_u64(),
        })),
    }
}

/// A node's state: as the node wrote it, or as a table.
pub fn status(document: &Value, format: Format) -> Printed {
    match format {
        Format::Text => Printed::lines(status_text::render(document)),
        Format::Json => Printed::json(document),
    }
}

/// The states of several nodes: as the nodes wrote them, or as one table. Done if one answered.
pub fn cluster(nodes: &[Surveyed], format: Format) -> Printed {
    let exit_code = match nodes.iter().find_map(|node| node.status.as_ref().err()) {
        Some(error) if nodes.iter().all(|node| node.status.is_err()) => exit_code(error),
        _ => EXIT_DONE,
    };
    let printed = match format {
        Format::Text => Printed::lines(cluster_text::render(nodes)),
        Format::Json => Printed::json(&json!({
            "ok": exit_code == EXIT_DONE,
            "leader": cluster_text::leader_of(nodes),
            "nodes": nodes.iter().map(node_as_json).collect::<Vec<_>>(),
        })),
    };
    Printed { exit_code, ..printed }
}

fn node_as_json(node: &Surveyed) -> Value {
    match &node.status {
        Ok(status) => json!({"address": node.address, "ok": true, "status": status}),
        Err(error) => json!({
            "address": node.address, "ok": false, "error": error_code(error), "message": error.to_string(),
        }),
    }
}

/// A node's account of an operator's command: its message, or the object it sent.
pub fn account(served: &Served<Value>, format: Format) -> Printed {
    let message = match &served.value {
        Value::Object(fields) => fields.get("message").and_then(Value::as_str),
        other => other.as_str(),
    };
    match format {
        Format::Text => {
            let message = message.filter(|message| !message.is_empty()).unwrap_or("done");
            let message = printable_lines(message);
            Printed::text(format!("OK: {message}\n(term {}, LSN {})", served.term, served.lsn))
        }
        Format::Json => {
            let mut document = Map::new();
            document.insert("ok".to_owned(), true.into());
            match &served.value {
                Value::Object(fields) => document.extend(fields.clone()),
                other => drop(document.insert("message".to_owned(), other.clone())),
            }
            document.entry("lsn").or_insert_with(|| served.lsn.0.into());
            document.entry("term").or_insert_with(|| served.term.as_u64().into());
            Printed::json(&Value::Object(document))
        }
    }
}

/// A write that is done, and where its time went.
pub fn explained(served: &Served<Explained>, format: Format) -> Printed {
    let Explained { receipt, round_trip, sent_on_to } = &served.value;
    let round_trip_us = round_trip.as_nanos() as f64 / 1_000.0;
    if format == Format::Json {
        return Printed::json(&json!({
            "ok": true, "lsn": served.lsn.0, "term": served.term.as_u64(),
            "round_trip_us": (round_trip_us * 10.0).round() / 10.0, "sent_on_to": sent_on_to, "receipt": receipt,
        }));
    }
    if !receipt.is_object() {
        let round_trip = micros(round_trip_us);
        let mut printed = Printed::text("OK");
        printed.stderr = format!(
            "kv_client: the write took {round_trip} us; the node keeps no receipts, so there is nothing to explain\n"
        );
        return printed;
    }
    let mut text = receipt_text::render(receipt, Some(round_trip_us));
    if let Some(leader) = sent_on_to {
        text.push_str(&format!(
            "That includes being sent on to the leader, {leader}, and connecting to it.\n"
        ));
    }
    Printed::lines(text)
}

/// The receipt of an earlier write.
pub fn receipt(served: &Served<Result<Value, String>>, format: Format) -> Printed {
    match (&served.value, format) {
        (Ok(receipt), Format::Text) => Printed::lines(receipt_text::render(receipt, None)),
        (Ok(receipt), Format::Json) => Printed::json(&json!({"ok": true, "receipt": receipt})),
        (Err(why), _) => failed("not_found", why, EXIT_NOT_FOUND, Map::new(), format),
    }
}

/// The slowest writes.
pub fn slowest(receipts: &Value, format: Format) -> Printed {
    match format {
        Format::Text => {
            Printed::lines(receipt_text::render_slowest(receipts.as_array().map_or(&[], Vec::as_slice)))
        }
        Format::Json => Printed::json(&json!({"ok": true, "slowest": receipts})),
    }
}

/// What the slowest writes have in common.
pub fn tail(document: &Value, format: Format) -> Printed {
    match format {
        Format::Text => Printed::lines(receipt_text::render_tail(document)),
        Format::Json => Printed::json(&done_with(document)),
    }
}

/// Percentiles of every stage.
pub fn latency(stages: &Value, format: Format) -> Printed {
    match format {
        Format::Text => Printed::lines(measured_text::render_latency(stages)),
        Format::Json => Printed::json(&json!({"ok": true, "stages": stages})),
    }
}

/// The system calls since the node's start.
pub fn syscalls(document: &Value, format: Format) -> Printed {
    match format {
        Format::Text => Printed::lines(Ledger::new(document).render()),
        Format::Json => Printed::json(&done_with(document)),
    }
}

/// The system calls between two looks; in JSON all of them, the reader subtracts.
pub fn syscalls_since(before: &Value, document: &Value, format: Format) -> Printed {
    match format {
        Format::Text => Printed::lines(Ledger::new(document).since(&Ledger::new(before)).render_rate()),
        Format::Json => syscalls(document, format),
    }
}

/// Percentiles and slowest writes are forgotten.
pub fn reset(format: Format) -> Printed {
    match format {
        Format::Text => Printed::text("OK"),
        Format::Json => Printed::json(&json!({"ok": true})),
    }
}

/// The end of a `--watch`: a reader that has seen enough is no error.
pub(super) fn watched(ended: watch::Ended) -> Printed {
    match ended {
        watch::Ended::ReaderGone => Printed::default(),
        watch::Ended::Output(error) => Printed {
            stderr: format!("kv_client: the result cannot be printed: {error}\n"),
            exit_code: EXIT_SERVER_ERROR,
            ..Printed::default()
        },
    }
}

fn done_with(document: &Value) -> Value {
    let mut fields = Map::new();
    fields.insert("ok".to_owned(), true.into());
    fields.extend(document.as_object().cloned().unwrap_or_default());
    Value::Object(fields)
}

/// A call that failed.
pub fn error(error: &ClientError, format: Format) -> Printed {
    failed(error_code(error), &error.to_string(), exit_code(error), error_fields(error), format)
}

/// Something wrong with what was given to the client itself.
pub fn usage(message: &str, format: Format) -> Printed {
    failed("usage", message, EXIT_USAGE, Map::new(), format)
}

/// A backup that did not arrive whole, or cannot be written.
pub(super) fn no_backup(message: &str, format: Format) -> Printed {
    failed("no_backup", message, EXIT_SERVER_ERROR, Map::new(), format)
}

/// What kv_bench measured, as it wrote it.
pub(super) fn doctor(measured: Map<String, Value>) -> Printed {
    let mut document = Map::new();
    document.insert("ok".to_owned(), true.into());
    document.extend(measured);
    Printed::json(&Value::Object(document))
}

/// kv_bench is there and did not measure.
pub(super) fn doctor_failed(message: &str, format: Format) -> Printed {
    failed("not_measured", message, EXIT_SERVER_ERROR, Map::new(), format)
}

fn failed(code: &str, message: &str, exit_code: u8, fields: Map<String, Value>, format: Format) -> Printed {
    let mut stdout = Vec::new();
    if format == Format::Json {
        let mut document = Map::new();
        document.insert("ok".to_owned(), false.into());
        document.insert("error".to_owned(), code.into());
        document.insert("message".to_owned(), message.into());
        document.extend(fields);
        stdout = Printed::json(&Value::Object(document)).stdout;
    }
    Printed { stdout, stderr: format!("kv_client: {message}\n"), exit_code }
}

fn not_found<T>(key: &[u8], served: &Served<T>, how: Map<String, Value>, format: Format) -> Printed {
    let mut printed = match format {
        Format::Text => {
            Printed { stderr: format!("not found: \"{}\"\n", printable_key(key)), ..Printed::default() }
        }
        Format::Json => {
            let mut document = Map::new();
            document.insert("ok".to_owned(), false.into());
            document.insert("error".to_owned(), "not_found".into());
            document.insert("lsn".to_owned(), served.lsn.0.into());
            document.extend(how);
            Printed::json(&Value::Object(document))
        }
    };
    printed.exit_code = EXIT_NOT_FOUND;
    printed
}

/// Bytes in JSON: a string where they are UTF-8, else `{"b64": ...}`.
fn bytes_as_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"b64": base64::engine::general_purpose::STANDARD.encode(bytes)}),
    }
}

fn printable_key(key: &[u8]) -> String {
    let escaped = match std::str::from_utf8(key) {
        Ok(text) => text.escape_debug().collect::<String>(),
        Err(_) => key.escape_ascii().to_string(),
    };
    match escaped.char_indices().nth(KEY_SHOWN_MAX) {
        Some((cut, _)) => format!("{}... ({} bytes)", &escaped[..cut], key.len()),
        None => escaped,
    }
}

fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_is_shown_in_part_and_with_its_size() {
        let shown = printable_key(&[b'k'; 65_535]);
        assert!(shown.ends_with("k... (65535 bytes)"), "{shown}");
        assert_eq!(printable_key(b"\xff\"\n"), "\\xff\\\"\\n");
    }
}

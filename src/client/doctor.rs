//! `kv_client doctor`: what this machine allows, whatever store runs on it.
//!
//! It runs `kv_bench --floor`, the program beside this one. What a store is compared with must share no code with
//! the store, so the floor stays in the benchmark and is not linked here.

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::cli::Format;
use super::output::{self, Printed};

/// Seconds under load. Two more go into the parts and the check at one connection: short enough to wait for,
/// long enough for a p99.9.
const SECONDS: &str = "3";

/// Runs `kv_bench` from the directory of this program. It has no deadline: kv_bench ends by itself.
pub(super) fn examine(data_dir: &Path, format: Format) -> Printed {
    let this = match std::env::current_exe() {
        Ok(path) => path,
        Err(error) => {
            return output::usage(&format!("cannot find out where kv_client lies: {error}"), format);
        }
    };
    let kv_bench = this.with_file_name("kv_bench");
    match run(&kv_bench, data_dir, format) {
        Ok(output) => judge(&kv_bench, output, format),
        Err(error) => output::usage(&cannot_run(&kv_bench, &error), format),
    }
}

fn run(kv_bench: &Path, data_dir: &Path, format: Format) -> io::Result<Output> {
    let mut command = Command::new(kv_bench);
    command.args(["--floor", "--duration", SECONDS, "--data-dir"]).arg(data_dir).stdin(Stdio::null());
    match format {
        // Its progress and its words go where a person sees them.
        Format::Text => command.stderr(Stdio::inherit()),
        Format::Json => command.args(["--json", "-"]),
    };
    command.output()
}

fn cannot_run(kv_bench: &Path, error: &io::Error) -> String {
    let path = kv_bench.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "doctor measures with kv_bench, and there is no {path}; build all programs with: \
             cargo build --release --workspace"
        ),
        _ => format!("doctor measures with kv_bench, and {path} cannot be run: {error}"),
    }
}

fn judge(kv_bench: &Path, output: Output, format: Format) -> Printed {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let message = format!("{} did not measure ({}){said}", kv_bench.display(), output.status);
        return output::doctor_failed(&message, format);
    }
    match (format, serde_json::from_slice::<Value>(&output.stdout)) {
        (Format::Text, _) => Printed { stdout: output.stdout, ..Printed::default() },
        (Format::Json, Ok(Value::Object(measured))) => output::doctor(measured),
        (Format::Json, _) => {
            let message = format!("{} printed no JSON object; rebuild it", kv_bench.display());
            output::doctor_failed(&message, format)
        }
    }
}

//! `kv_client`: arguments in, exit code out. See `kvstore::client::cli`.

use std::process::ExitCode;

use kvstore::client::cli::{Arguments, run};

fn main() -> ExitCode {
    run(Arguments::of_process()).into()
}

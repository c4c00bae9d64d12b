//! Which program was measured, and which source it was built from.
//!
//! The checkout that kv_bench is run in proves nothing about a node that was built or started before it last changed.
//! So the binary is asked: that of the node's process, if it runs on this machine. cargo writes beside each binary
//! which files it was made of (`kvstore.d`), and builds it anew when one of them is newer. Where none is, those files
//! are the source, and git tells their revision. Where one is, or where there is no such list or no git, the revision
//! is null: the checksum of the binary still tells two of them apart.
//!
//! This costs no build anything: a build script that reads the revision makes cargo build all again after each commit.

use std::fs;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use kvstore::client::Client;
use serde_json::{Value, json};

/// What is known of the binary that was measured: of the kvstore at this endpoint, or, without one, of kv_bench itself,
/// which is the floor too. What cannot be found out is null.
pub fn describe(node: Option<&str>) -> Value {
    let binary = match node {
        Some(endpoint) => binary_of_node(endpoint),
        None => std::env::current_exe().ok(),
    };
    let revision = binary.as_deref().and_then(built_from);
    json!({
        "git_revision": revision,
        "binary": binary.as_ref().map(|path| path.display().to_string()),
        "binary_sha256": binary.as_deref().and_then(sha256),
    })
}

/// The node tells its process id, which means something on this machine alone.
fn binary_of_node(endpoint: &str) -> Option<PathBuf> {
    if !endpoint.to_socket_addrs().ok()?.all(|address| address.ip().is_loopback()) {
        return None;
    }
    let status = Client::connect(endpoint, Duration::from_secs(2)).ok()?.status().ok()?.value;
    fs::read_link(format!("/proc/{}/exe", status["pid"].as_u64()?)).ok()
}

/// The revision that the files of a binary are of; "+" where some of them differ from it.
fn built_from(binary: &Path) -> Option<String> {
    let built = modified(binary)?;
    let files = files_of(&fs::read_to_string(binary.with_extension("d")).ok()?)?;
    let top = git(files.first()?.parent()?, &["rev-parse", "--show-toplevel"])?;
    let top = Path::new(top.trim());
    let mut files: Vec<&Path> = files.iter().filter_map(|file| file.strip_prefix(top).ok()).collect();
    files.extend(["Cargo.toml", "Cargo.lock"].map(Path::new));
    if files.iter().any(|file| modified(&top.join(file)).is_none_or(|changed| changed > built)) {
        return None;
    }
    let revision = git(top, &["rev-parse", "--short=12", "HEAD"])?;
    let mut differing = vec!["status", "--porcelain", "--"];
    differing.extend(files.iter().filter_map(|file| file.to_str()));
    let plus = if git(top, &differing)?.is_empty() { "" } else { "+" };
    Some(format!("{}{plus}", revision.trim()))
}

/// The files in a line of make: `target: file file file`.
fn files_of(rule: &str) -> Option<Vec<PathBuf>> {
    let (_, files) = rule.lines().next()?.split_once(": ")?;
    // A backslash is a blank in a name: such a list is not worth a parser.
    (!files.contains('\\')).then(|| files.split_whitespace().map(PathBuf::from).collect())
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn sha256(path: &Path) -> Option<String> {
    let output = Command::new("sha256sum").arg(path).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.split_whitespace().next().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_of_the_revision_of_its_files_until_one_of_them_is_newer() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let write = |name: &str, text: &str| fs::write(top.join(name), text).unwrap();
        let run = |arguments: &[&str]| git(&top, arguments).expect("git runs");
        ["Cargo.toml", "Cargo.lock", "main.rs", "other.rs"].into_iter().for_each(|name| write(name, "one"));
        run(&["init", "--quiet"]);
        run(&["add", "."]);
        let who = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"];
        run(&[&who[..], &["commit", "--quiet", "-m", "one"]].concat());
        let binary = top.join("program");
        let build = || {
            fs::write(&binary, "made").unwrap();
            fs::write(binary.with_extension("d"), format!("program: {}/main.rs\n", top.display())).unwrap();
        };
        build();
        let revision = run(&["rev-parse", "--short=12", "HEAD"]).trim().to_owned();
        assert_eq!(built_from(&binary), Some(revision.clone()));
        write("other.rs", "of another program");
        assert_eq!(built_from(&binary), Some(revision.clone()));

        let hour = Duration::from_secs(3600);
        let touch = |at| fs::File::open(top.join("main.rs")).unwrap().set_modified(at).unwrap();
        write("main.rs", "two");
        touch(SystemTime::now() + hour);
        assert_eq!(built_from(&binary), None, "the file is newer than what was built");
        touch(SystemTime::now() - hour);
        assert_eq!(built_from(&binary), Some(format!("{revision}+")), "it was built from a changed file");
    }

    #[test]
    fn a_node_elsewhere_tells_no_process_of_this_machine() {
        assert_eq!(binary_of_node("192.0.2.1:9001"), None);
        let own = describe(None);
        assert_eq!(own["binary_sha256"].as_str().map(str::len), Some(64), "{own}");
    }
}

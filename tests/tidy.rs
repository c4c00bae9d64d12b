//! The layering and the style of this repository, held by a test: who may use whom, how long a file may be, and
//! what is not written here at all. What is refused names the file, the line and the reason.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file, at most.
const SOURCE_LINES_MAX: usize = 450;
/// Lines of a test file, at most.
const TEST_LINES_MAX: usize = 600;
/// Characters of a line, at most.
const LINE_CHARS_MAX: usize = 120;

/// Source files that may be longer, and why.
const LONG_SOURCES: &[(&str, &str)] = &[];

/// Tests that may sleep, and why no event can be awaited instead.
const SLEEPING_TESTS: &[(&str, &str)] = &[
    (
        "tests/e2e/clients.rs",
        "a slow client is what is tested, and the CPU time of a node that has nothing to do",
    ),
    ("tests/e2e/process.rs", "measures the CPU time of a node that has nothing to do"),
    (
        "tests/faults_process.rs",
        "a timer of the node must have come and gone, which nothing tells from outside",
    ),
    ("tests/syscalls_support/mod.rs", "pauses between looks at another process, with a deadline"),
    ("tests/support/cluster.rs", "pauses between looks at another process, each with a deadline"),
    (
        "tests/real/stops.rs",
        "a leader stands still for longer than a timeout, and does nothing that could be awaited",
    ),
    ("tests/support/elected.rs", "pauses between looks at nodes and at another thread, each with a deadline"),
    ("tests/support/proxy.rs", "a slow link is what is tested"),
    ("tests/support/writers.rs", "pauses between looks at other threads and at ports where nobody listens"),
];

/// Files with unsafe code, and what it is for.
const UNSAFE: &[(&str, &str)] = &[
    ("src/main.rs", "mallopt, before there is anything else"),
    ("src/disk/ring.rs", "an entry of io_uring, which names a descriptor and no memory"),
    ("src/keyspace/bulk.rs", "madvise, which changes what backs memory of its own and not what it holds"),
];

/// What each part of the library may use of the others. Parts that stand at the top (`net`, the binaries) are free.
const LAYERS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("limits", &[]),
    ("time", &[]),
    ("rng", &[]),
    ("ledger", &[]),
    ("progress", &[]),
    ("sabotage", &[]),
    ("address", &["limits"]),
    (
        "wire",
        &[
            "ids",
            "limits",
            "wire",
            "replication::election::ballot",
            "replication::election::reads",
            "replication::history",
            "replication::members",
        ],
    ),
    ("replication", &["ids", "limits", "replication", "rng", "time", "wal::Durable"]),
    ("keyspace", &["ids", "limits", "wire", "keyspace"]),
    ("disk", &["disk", "ledger"]),
    ("wal", &["disk", "ids", "limits", "replication::history", "wal", "wire"]),
    (
        "snapshot",
        &["disk", "ids", "limits", "replication::history", "replication::members", "snapshot", "wire"],
    ),
    ("meta", &["disk", "ids", "limits", "meta", "replication::members", "wire"]),
    ("trace", &["ids", "time", "trace", "wire"]),
    ("marks", &["disk", "ids", "wire"]),
    ("conn", &["conn", "limits", "node", "time", "wire"]),
    (
        "node",
        &[
            "address",
            "backup",
            "conn",
            "disk",
            "ids",
            "keyspace",
            "ledger",
            "limits",
            "log_",
            "marks",
            "meta",
            "node",
            "replication",
            "rng",
            "snapshot",
            "time",
            "trace",
            "wal",
            "wire",
        ],
    ),
    (
        "backup",
        &[
            "backup",
            "disk",
            "ids",
            "limits",
            "meta",
            "replication::history",
            "replication::members",
            "rng",
            "snapshot",
            "wal",
            "wire",
        ],
    ),
    (
        "inspect",
        &[
            "backup",
            "disk",
            "ids",
            "inspect",
            "meta",
            "node",
            "replication::history",
            "replication::members",
            "snapshot",
            "wal",
        ],
    ),
    (
        "client",
        &["address", "backup", "client", "disk", "ids", "limits", "progress", "rng", "trace::STAGES", "wire"],
    ),
];

/// Words that only some parts may write.
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("std::fs", &["disk"], "disk/ is the only user of files"),
    ("rustix::fs", &["disk"], "disk/ is the only user of files"),
    ("std::os", &["disk", "net", "client"], "the operating system's types stay at the edges"),
    ("mio::", &["net"], "net/ is the only user of mio"),
    ("slab::Slab", &["net", "keyspace"], "net/ is the only user of slab; keyspace/ has its own"),
    ("std::net::", &["net", "client", "address", "config"], "sockets belong to net/ and the client"),
    ("std::time", &["net", "client"], "time is an argument: see `time::Clock`"),
    ("std::thread", &["client"], "one thread; a blocking client may sleep"),
    ("rustix::", &["disk", "net", "logsink", "ledger", "main", "client"], "system calls belong to the edges"),
    ("rand::", &["main"], "randomness is an argument: see `rng::Rng`"),
    ("println!", &["client", "commands", "bin"], "the node logs, it does not print"),
    ("HashMap", &["keyspace"], "no order that a hash decides may be seen"),
    ("HashSet", &["keyspace"], "no order that a hash decides may be seen"),
];

/// What a commit may have at the top of the tree, besides dotfiles and licences.
const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "bench",
    "scripts",
    "src",
    "tests",
];

/// Files with longer lines, and why.
const LONG_LINES: &[(&str, &str)] = &[
    ("tests/client/status.rs", "holds what a command prints, line by line"),
    ("tests/client/receipts.rs", "holds what a command prints, line by line"),
];

/// The rows that `tests/FAULTS.md` must have, each with a test.
const FAULTS: &[&str] = &[
    "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D11", "D12", "D13", "D14", "D15", "D16",
    "D17", "D18", "D19", "D20", "D21", "P2", "P3", "P6", "P7", "P8", "N2", "N3", "N4", "N5", "N6", "N7",
    "N8", "N9", "N10", "N11", "N12", "N14", "N15", "N16", "N18", "N19", "C1", "C2", "C3", "C4", "C5", "C6",
    "C7", "C8", "C9",
];

/// Programs of one test file, and why it shares none: each is linked with the whole library, cargo runs them one after
/// another, and while the last test of one runs the other processors idle.
const SINGLE_PROGRAMS: &[(&str, &str)] = &[
    ("tests/faults_process.rs", "raises the limit of descriptors of its own process"),
    ("tests/golden.rs", "is run by name to write its scripts anew"),
    ("tests/syscalls.rs", "counts system calls, which rise when nodes have to wait for a processor"),
    ("tests/syscalls_signposts.rs", "runs beside nothing but what strace slows down"),
    ("tests/syscalls_strace.rs", "runs beside nothing but what strace slows down"),
    ("tests/tidy.rs", "uses nothing of the library"),
    ("tests/wire_memory.rs", "looks at the memory of its own process"),
];

/// Tests without the harness, whose functions have no `#[test]`.
const WITHOUT_HARNESS: &[&str] = &["tests/wire_memory.rs"];

struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    /// The part of the library it belongs to: the directory or file below `src`.
    fn part(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
    }

    /// Numbered lines that are code of the product: no comments, no unit tests (they end a file).
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_unit_tests = self.path.ends_with("/tests.rs");
        let lines = self.text.lines().take_while(move |line| !is_unit_tests && *line != "#[cfg(test)]");
        lines
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(at, line)| (at + 1, line))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(directory: &Path, take: &mut dyn FnMut(PathBuf)) {
    for entry in fs::read_dir(directory).expect("a directory of the repository can be listed") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_name().expect("a listed name").to_string_lossy().into_owned();
        let generated = ["target", "corpus", "artifacts", "coverage", "out", ".git"].contains(&name.as_str());
        if path.is_dir() && !generated {
            walk(&path, take);
        } else if path.is_file() {
            take(path);
        }
    }
}

fn files(below: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<File> {
    let mut files = Vec::new();
    walk(&root().join(below), &mut |path| {
        let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
        if is_wanted(&name) {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            files.push(File { path: name, text });
        }
    });
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!files.is_empty(), "nothing was found below {below}");
    files
}

fn rust_files(below: &str) -> Vec<File> {
    files(below, |name| name.ends_with(".rs"))
}

/// All that is wrong, told at once.
#[derive(Default)]
struct Complaints(String);

impl Complaints {
    fn add(&mut self, path: &str, line: usize, why: impl std::fmt::Display) {
        writeln!(self.0, "{path}:{line}: {why}").expect("a string takes all");
    }

    fn check(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

/// Every `crate::…` of a line, with what stands in braces spelled out.
fn uses(line: &str) -> Vec<String> {
    let mut uses = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
        match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((list, _)) => uses.extend(list.split(',').map(|item| item.trim().to_owned())),
            None => uses.push(rest.chars().take_while(|letter| is_path(*letter)).collect()),
        }
    }
    uses
}

#[test]
fn uses_are_found_wherever_they_stand() {
    assert_eq!(uses("    let x = crate::wal::Wal::open(crate::disk::X);"), ["wal::Wal::open", "disk::X"]);
    assert_eq!(uses("use crate::{log_info, log_warn};"), ["log_info", "log_warn"]);
    assert_eq!(uses("use crate::{"), [""], "a list over several lines is allowed to nobody");
}

#[test]
fn every_part_uses_only_what_stands_below_it() {
    let mut complaints = Complaints::default();
    for file in rust_files("src") {
        let Some((part, allowed)) = LAYERS.iter().find(|(part, _)| *part == file.part()) else { continue };
        for (number, line) in file.code() {
            for used in uses(line) {
                let fits = |allowed: &&str| {
                    let is_macro = allowed.ends_with('_') && used.starts_with(*allowed);
                    is_macro || used == **allowed || used.starts_with(&format!("{allowed}::"))
                };
                // Broken variants stand beside whatever line they break.
                if !used.starts_with("sabotage::") && !allowed.iter().any(fits) {
                    complaints.add(&file.path, number, format_args!("{part} may not use {used}"));
                }
            }
        }
    }
    complaints.check();
}

#[test]
fn every_part_is_in_the_table_or_at_the_top() {
    let top = ["net", "bin", "main", "lib", "commands", "config", "logging", "logsink"];
    for file in rust_files("src") {
        let known = LAYERS.iter().any(|(part, _)| *part == file.part()) || top.contains(&file.part());
        assert!(known, "{}: say in tests/tidy.rs what {} may use", file.path, file.part());
    }
    for (part, _) in LAYERS {
        assert!(rust_files("src").iter().any(|file| file.part() == *part), "there is no {part} any more");
    }
}

#[test]
fn sockets_files_clocks_and_system_calls_stay_where_they_belong() {
    let mut complaints = Complaints::default();
    for file in rust_files("src") {
        for (number, line) in file.code() {
            for (word, parts, why) in RESERVED {
                let found = line.match_indices(word).any(|(at, _)| {
                    !line[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_')
                });
                if found && !parts.contains(&file.part()) {
                    complaints.add(&file.path, number, format_args!("{word}: {why}"));
                }
            }
        }
    }
    complaints.check();
}

#[test]
fn the_event_loop_never_reads_a_term_or_an_lsn() {
    let mut complaints = Complaints::default();
    for file in rust_files("src/net") {
        for (number, line) in file.code() {
            let words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            for word in words.filter(|word| ["Lsn", "Term", "lsn", "term"].contains(word)) {
                complaints.add(&file.path, number, format_args!("net moves bytes and knows no {word}"));
            }
        }
    }
    complaints.check();
}

#[test]
fn files_begin_with_prose_and_are_not_too_long() {
    let mut complaints = Complaints::default();
    let parts = [("src", SOURCE_LINES_MAX), ("bench/src", SOURCE_LINES_MAX), ("tests", TEST_LINES_MAX)];
    for (below, lines_max) in parts {
        for file in rust_files(below) {
            let lines = file.text.lines().count();
            let excused = LONG_SOURCES.iter().any(|(path, _)| *path == file.path);
            if lines > lines_max && !excused {
                complaints.add(&file.path, lines, format_args!("{lines} lines; {lines_max} are allowed"));
            }
            if !file.text.starts_with("//!") && lines > 1 {
                complaints.add(&file.path, 1, "the first lines say what this file promises (`//!`)");
            }
        }
    }
    for (path, _) in LONG_SOURCES {
        assert!(root().join(path).exists(), "{path} is excused and not there");
    }
    complaints.check();
}

#[test]
fn lines_fit_a_screen_and_end_where_they_end() {
    let mut complaints = Complaints::default();
    for file in ["src", "tests", "bench"].iter().flat_map(|below| rust_files(below)) {
        let excused = LONG_LINES.iter().any(|(path, _)| *path == file.path);
        for (at, line) in file.text.lines().enumerate() {
            let chars = line.chars().count();
            if chars > LINE_CHARS_MAX && !excused {
                complaints.add(&file.path, at + 1, format_args!("{chars} characters of {LINE_CHARS_MAX}"));
            }
            if line.ends_with(char::is_whitespace) || line.contains('\t') {
                complaints.add(&file.path, at + 1, "a tab, or white space at the end");
            }
        }
    }
    complaints.check();
}

#[test]
fn nothing_is_left_for_later_and_nothing_fails_without_a_reason() {
    let words = [
        ("unwrap()", "say why it cannot fail: expect"),
        ("todo!", "do it"),
        ("unimplemented!", "do it"),
        ("dbg!", "a trace of debugging"),
        ("dyn std::error::Error>", "an error is a type of its own"),
        ("dyn Error>", "an error is a type of its own"),
    ];
    let mut complaints = Complaints::default();
    for file in rust_files("src") {
        for (number, line) in file.code() {
            for (word, why) in words.iter().filter(|(word, _)| line.contains(word)) {
                complaints.add(&file.path, number, format_args!("{word}: {why}"));
            }
        }
        let excused = UNSAFE.iter().any(|(path, _)| *path == file.path);
        for (number, line) in file.code().filter(|_| !excused) {
            if line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl") {
                complaints.add(&file.path, number, "unsafe code");
            }
        }
        for (at, line) in file.text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX"].iter().filter(|word| line.contains(**word)) {
                complaints.add(&file.path, at + 1, format_args!("{word}: do it, or open an issue"));
            }
        }
    }
    complaints.check();
}

#[test]
fn tests_wait_for_events() {
    let mut complaints = Complaints::default();
    for file in rust_files("tests").iter().filter(|file| file.path != "tests/tidy.rs") {
        let excused = SLEEPING_TESTS.iter().any(|(path, _)| *path == file.path);
        for (number, _) in file.code().filter(|(_, line)| line.contains("sleep(")) {
            if !excused {
                complaints.add(
                    &file.path,
                    number,
                    "a sleep; await an event, or say in tests/tidy.rs why not",
                );
            }
        }
    }
    complaints.check();
}

#[test]
fn test_files_share_programs_and_none_is_left_out() {
    let mut complaints = Complaints::default();
    for file in rust_files("tests") {
        let steps: Vec<&str> = file.path.split('/').collect();
        match steps[..] {
            [_, name] if !SINGLE_PROGRAMS.iter().any(|(path, _)| *path == file.path) => {
                let why = "into a directory with a main.rs, or say in tests/tidy.rs why";
                complaints.add(&file.path, 1, format_args!("{name} would be a program of its own: {why}"));
            }
            [_, group, name] if name != "main.rs" => {
                let Ok(main) = fs::read_to_string(root().join(format!("tests/{group}/main.rs"))) else {
                    continue;
                };
                let stem = name.trim_end_matches(".rs");
                if !main.lines().any(|line| line == format!("mod {stem};")) {
                    complaints.add(&file.path, 1, format_args!("tests/{group}/main.rs lacks `mod {stem};`"));
                }
            }
            _ => {}
        }
    }
    for (path, _) in SINGLE_PROGRAMS {
        assert!(root().join(path).exists(), "{path} is excused and not there");
    }
    complaints.check();
}

#[test]
fn the_top_of_the_tree_holds_what_is_expected() {
    // What git does not know is not of the repository: data directories, build output.
    let ignored = fs::read_to_string(root().join(".gitignore")).expect("there is a .gitignore");
    let is_ignored = |name: &str| {
        ignored.lines().filter_map(|line| line.strip_prefix('/')).any(|pattern| {
            let prefix = pattern.split(['[', '*']).next().unwrap_or(pattern);
            if pattern.len() > prefix.len() { name.starts_with(prefix) } else { name == pattern }
        })
    };
    for entry in fs::read_dir(root()).expect("the root can be listed") {
        let name = entry.expect("it can be listed").file_name().to_string_lossy().into_owned();
        let is_known =
            TOP_LEVEL.contains(&name.as_str()) || name.starts_with('.') || name.starts_with("LICENSE");
        assert!(
            is_known || is_ignored(&name),
            "{name} at the top of the tree: put it below, or into tests/tidy.rs"
        );
    }
}

#[test]
fn the_repository_speaks_only_of_itself() {
    let elsewhere = concat!("..", "/shared");
    let also = concat!("/work", "/");
    let is_text = |name: &str| {
        [".rs", ".md", ".toml", ".sh", ".txt", ".yml"].iter().any(|ending| name.ends_with(ending))
            || name.starts_with(".ci/")
    };
    let mut complaints = Complaints::default();
    for file in files("", is_text) {
        for (at, line) in file.text.lines().enumerate() {
            if line.contains(elsewhere) || line.contains(also) {
                complaints.add(&file.path, at + 1, "a path outside of the repository");
            }
        }
    }
    complaints.check();
}

/// The cells of a row of a table; `None` for a line that is no row, or the one under the header.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
    Some(row.split(" | ").collect())
}

/// Why a test that is named `file::function` is not one, if so.
fn problem_with_test(named: &str) -> Option<String> {
    let Some((file, function)) = named.split_once("::") else {
        return Some("is not file::function".to_owned());
    };
    let path = if file.starts_with("src/") { file.to_owned() } else { format!("tests/{file}") };
    let Ok(text) = fs::read_to_string(root().join(&path)) else {
        return Some(format!("{path} is not there"));
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_it =
        |line: &&str| line.strip_prefix("fn ").is_some_and(|rest| rest.split('(').next() == Some(function));
    let Some(at) = lines.iter().position(is_it) else { return Some(format!("{path} has no such function")) };
    let mut attributes = lines[..at].iter().rev().take_while(|line| line.starts_with('#'));
    let is_run = WITHOUT_HARNESS.contains(&path.as_str()) || attributes.any(|line| *line == "#[test]");
    (!is_run).then(|| "is a function and not a test".to_owned())
}

#[test]
fn every_fault_of_the_catalogue_has_a_test_that_is_there() {
    let path = "tests/FAULTS.md";
    let text = fs::read_to_string(root().join(path)).expect("the catalogue is there");
    let mut complaints = Complaints::default();
    let mut seen = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some(row) = cells(line).filter(|row| row[0] != "code") else { continue };
        let [code, what, does, tests] = row[..] else {
            complaints.add(path, number, format_args!("{} cells in place of 4", row.len()));
            continue;
        };
        if what.is_empty() || does.is_empty() {
            complaints.add(path, number, format_args!("{code}: say what happens and what the node does"));
        }
        if seen.contains(&code) || !FAULTS.contains(&code) {
            complaints.add(path, number, format_args!("{code} stands here twice, or not in tests/tidy.rs"));
        }
        let named: Vec<&str> = tests.split('`').map(str::trim).filter(|name| !name.is_empty()).collect();
        if named.is_empty() {
            complaints.add(path, number, format_args!("{code} has no test"));
        }
        for name in named {
            if let Some(why) = problem_with_test(name) {
                complaints.add(path, number, format_args!("{code}: {name} {why}"));
            }
        }
        seen.push(code);
    }
    for code in FAULTS.iter().filter(|code| !seen.contains(code)) {
        complaints.add(path, 1, format_args!("{code} is missing"));
    }
    complaints.check();
}

#[test]
fn a_bug_aborts_in_every_build_and_nothing_catches_it() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest is there");
    for profile in ["[profile.release]", "[profile.dev]"] {
        let (_, section) = manifest.split_once(profile).expect("both profiles are there");
        let settings = section.lines().skip(1).take_while(|line| !line.starts_with('['));
        assert!(settings.clone().any(|line| line == "panic = \"abort\""), "{profile} unwinds");
    }
    let mut complaints = Complaints::default();
    for file in rust_files("src") {
        for (number, line) in file.code().filter(|(_, line)| line.contains("catch_unwind")) {
            complaints.add(
                &file.path,
                number,
                format_args!("{}: state after a bug is not used", line.trim()),
            );
        }
    }
    complaints.check();
}

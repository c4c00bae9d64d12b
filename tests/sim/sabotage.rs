//! The simulator must be able to fail: each known-bad variant of the node has to be caught.
//!
//! ```text
//! cargo test --profile sabotage --features sabotage --test sim -- --sabotage all           the promise, asserted
//! cargo test --profile sabotage --features sabotage --test sim -- --sabotage all --seeds 400     a part of it, in CI
//! ```
//!
//! Each variant is looked for in seeds 1, 2, 3, ... until one fails; the table is in ARCHITECTURE.md. The run fails
//! if a variant escapes [`SEEDS`] seeds, or if fewer than two thirds are caught within the CI set. With fewer seeds
//! it fails if one escapes that is not in [`RARE`], so that a check that is lost is noticed the same day.

use std::process::ExitCode;

#[cfg(feature = "sabotage")]
use kvstore::sabotage::Variant;

/// Within so many seeds each variant is caught.
pub const SEEDS: u64 = 10_000;

/// Variants that a few hundred seeds may miss, because what they need is rare.
#[cfg(feature = "sabotage")]
const RARE: &[&str] = &[];

/// A variant that was caught.
#[cfg(feature = "sabotage")]
struct Catch {
    seed: u64,
    /// The check that failed: file, line, and what it said.
    check: String,
}

/// Looks for the variants of this name (`all`: every one), and prints the table.
#[cfg(feature = "sabotage")]
pub fn run(name: &str, from: u64, seeds: u64) -> ExitCode {
    let driven = || Variant::ALL.iter().copied();
    let chosen: Vec<Variant> = driven().filter(|variant| name == "all" || variant.name() == name).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = driven().map(|variant| variant.name()).collect();
        eprintln!("no variant is called {name}; there are: all {}", names.join(" "));
        return ExitCode::from(2);
    }
    let began = std::time::Instant::now();
    println!("| variant | its line | first seed | what caught it |");
    println!("|---|---|---|---|");
    let (mut escaped, mut in_ci) = (Vec::new(), 0);
    let caught = crate::cores::each(chosen.len(), |at| catch(chosen[at], from, seeds));
    for (variant, caught) in chosen.iter().zip(caught) {
        let place = place_of(*variant);
        match caught {
            Some(Catch { seed, check }) => {
                in_ci += usize::from(seed <= crate::CI_SEEDS);
                println!("| `{}` | {place} | {seed} | {check} |", variant.name());
            }
            None => {
                println!("| `{}` | {place} | none of {seeds} | |", variant.name());
                escaped.push(variant.name());
            }
        }
    }
    println!(
        "{} variants, {} caught, {in_ci} of them within the {} seeds of the CI set, in {:.0} s",
        chosen.len(),
        chosen.len() - escaped.len(),
        crate::CI_SEEDS,
        began.elapsed().as_secs_f64()
    );
    let whole = seeds >= SEEDS;
    let missed = escaped.iter().filter(|name| whole || !RARE.contains(name)).count();
    let too_few = whole && name == "all" && 3 * in_ci < 2 * chosen.len();
    if too_few {
        println!("fewer than two thirds are caught within the CI set");
    }
    println!("{} passed, {missed} failed", chosen.len() - missed);
    if missed == 0 && !too_few { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first seed that fails with this variant.
#[cfg(feature = "sabotage")]
fn catch(variant: Variant, from: u64, seeds: u64) -> Option<Catch> {
    use kvstore::sabotage::set;
    set(Some(variant));
    let found = (from..from + seeds).find_map(|number| {
        let seed = crate::seed::Seed { number, elected: Variant::ELECTION.contains(&variant) };
        crate::run(seed, false, false).err().map(|why| (number, why))
    });
    set(None);
    let (seed, why) = found?;
    let why = why.trim_start_matches("panicked at ").replace('|', "/");
    // What follows a dump of a node's state says no more.
    let short = why.split(": Observed").next().unwrap_or(&why);
    Some(Catch { seed, check: short.chars().take(150).collect() })
}

/// The line that holds the rule: where the source asks for this variant.
#[cfg(feature = "sabotage")]
fn place_of(variant: kvstore::sabotage::Variant) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let word = format!("{variant:?}");
    let mut places = Vec::new();
    find(&root, &word, &mut places);
    places.sort();
    places.join(", ")
}

#[cfg(feature = "sabotage")]
fn find(directory: &std::path::Path, word: &str, places: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            find(&path, word, places);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&path).display().to_string();
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric());
        // Where it is defined or brought in, no rule stands.
        if name == "src/sabotage.rs" {
            continue;
        }
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("use "));
        let lines = code.filter(|(_, line)| line.split(word).skip(1).any(ends));
        places.extend(lines.map(|(number, _)| format!("{name}:{}", number + 1)));
    }
}

/// This build has no variants.
#[cfg(not(feature = "sabotage"))]
pub fn run(_name: &str, _from: u64, _seeds: u64) -> ExitCode {
    eprintln!("run it with --features sabotage");
    ExitCode::from(2)
}

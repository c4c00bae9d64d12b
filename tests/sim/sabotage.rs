//! The simulator must be able to fail: each known-bad variant of the node has to be caught.

use std::process::ExitCode;

/// Reports the first seed that catches each variant of this name (`all`: every one).
#[cfg(feature = "sabotage")]
pub fn run(name: &str, from: u64, seeds: u64) -> ExitCode {
    use kvstore::sabotage::{Variant, set};
    let chosen: Vec<Variant> =
        Variant::ALL.iter().copied().filter(|variant| name == "all" || variant.name() == name).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = Variant::ALL.iter().map(|variant| variant.name()).collect();
        eprintln!("no variant is called {name}; there are: all {}", names.join(" "));
        return ExitCode::from(2);
    }
    let (mut caught, mut escaped, mut within_ci) = (0, 0, 0);
    for variant in chosen {
        set(Some(variant));
        let found =
            (from..from + seeds).find_map(|seed| crate::run(seed, false, false).err().map(|why| (seed, why)));
        set(None);
        match found {
            Some((seed, why)) => {
                caught += 1;
                within_ci += u64::from(seed <= crate::CI_SEEDS);
                println!(
                    "{:28} seed {seed:>6}  {}",
                    variant.name(),
                    why.chars().take(160).collect::<String>()
                );
            }
            None => {
                escaped += 1;
                println!("{:28} NOT CAUGHT in {seeds} seeds", variant.name());
            }
        }
    }
    println!("{within_ci} caught within the CI set");
    println!("{caught} passed, {escaped} failed");
    if escaped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This build has no variants.
#[cfg(not(feature = "sabotage"))]
pub fn run(_name: &str, _from: u64, _seeds: u64) -> ExitCode {
    eprintln!("run it with --features sabotage");
    ExitCode::from(2)
}

//! The command line. What the standard test harness understands is accepted and changes nothing.

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Ci,
    One(u64),
    Hunt(u64),
    /// The known-bad variants of this name, or `all`.
    Sabotage(&'static str),
    /// `--list`, as other test binaries have it.
    List,
}

/// The arguments.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    pub mode: Mode,
    pub verbose: bool,
    /// The first seed.
    pub from: u64,
    /// So many seeds instead of the CI set's number.
    pub count: Option<u64>,
    /// Clusters that elect their leader.
    pub elected: bool,
}

impl Args {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
        let mut args = Args { mode: Mode::Ci, verbose: false, from: 1, count: None, elected: false };
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words.next().ok_or(format!("{word} needs a number"))?;
                value.parse::<u64>().map_err(|error| format!("{word} {value}: {error}"))
            };
            match word.as_str() {
                "--seed" => args.mode = Mode::One(number()?),
                "--seconds" => args.mode = Mode::Hunt(number()?),
                "--from" => args.from = number()?,
                "--seeds" => args.count = Some(number()?),
                "--sabotage" => {
                    let name = words.next().ok_or("--sabotage needs a name, or `all`")?;
                    args.mode = Mode::Sabotage(name.leak());
                }
                "--elected" => args.elected = true,
                "--list" => args.mode = Mode::List,
                "-v" | "--verbose" => args.verbose = true,
                "--test-threads" | "--format" | "--color" | "--skip" => {
                    let _ignored = words.next();
                }
                // Filters and flags of the standard harness.
                _ => {}
            }
        }
        Ok(args)
    }
}

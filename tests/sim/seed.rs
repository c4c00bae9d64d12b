//! What names a run: its number, and how its cluster comes by a leader.

use std::fmt;

use kvstore::rng::Rng;

use crate::knobs::Knobs;

/// A run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    pub number: u64,
    /// Leaders are elected; else roles are fixed, and an operator promotes.
    pub elected: bool,
}

impl Seed {
    /// The generator of the run and the knobs that it has drawn first.
    pub fn begin(self) -> (Rng, Knobs) {
        let mut rng = Rng::new(self.number);
        let mut knobs = Knobs::draw(&mut rng);
        if self.elected {
            knobs.elect(&mut rng);
        } else {
            crate::archives::draw(&mut rng, &mut knobs);
        }
        (rng, knobs)
    }
}

/// As on the command line.
impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.number, if self.elected { " --elected" } else { "" })
    }
}

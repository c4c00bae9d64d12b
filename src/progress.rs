//! One line that shows how far something is, for a terminal, where each one takes the place of the one before.

/// Characters of the bar.
const BAR_WIDTH: u64 = 30;
/// Before a line that replaces the last one.
pub const BEGIN: &str = "\r";
/// Behind it: what a longer one left.
pub const END: &str = "\x1b[K";
/// Takes the last one away.
pub const CLEAR: &str = "\r\x1b[K";

/// `loading [#########                     ] 31 %  133.3 of 430.1 MB  ETA 2 s`. Whoever shows it has not seen the end:
/// 99 % is the most.
pub fn line(name: &str, percent: u64, what: &str, eta_s: Option<u64>) -> String {
    let percent = percent.min(99);
    let filled = (percent * BAR_WIDTH / 100) as usize;
    let eta = eta_s.map_or_else(String::new, |eta_s| format!("  ETA {eta_s} s"));
    let (full, empty) = ("#".repeat(filled), " ".repeat(BAR_WIDTH as usize - filled));
    format!("{name} [{full}{empty}] {percent:>2} %  {what}{eta}")
}

/// `133.3 of 430.1 MB`.
pub fn megabytes(done: u64, total: u64) -> String {
    const MB: f64 = 1e6;
    format!("{:.1} of {:.1} MB", done as f64 / MB, total as f64 / MB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_how_much_is_done_and_what_is_left() {
        let shown = line("backup", 25, &megabytes(50_000_000, 200_000_000), Some(6));
        assert!(shown.ends_with("] 25 %  50.0 of 200.0 MB  ETA 6 s"), "{shown}");
        assert_eq!(shown.matches('#').count(), 7, "a quarter of {BAR_WIDTH}");
    }

    #[test]
    fn before_its_end_nothing_is_shown_as_done() {
        assert!(line("x", 100, "y", None).contains("99 %"));
        assert!(line("x", 0, "y", None).contains("  0 %  y"));
    }
}

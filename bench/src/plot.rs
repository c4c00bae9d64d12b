//! Latency over percentiles as an SVG that stands by itself: no script, no font, nothing from elsewhere.
//!
//! The horizontal axis is logarithmic in 1 / (1 - percentile), so that the tail has as much room as the
//! rest; the vertical one in microseconds. One curve per run: a spread between them is seen at once.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 48.0;
/// Points per decade of 1 / (1 - percentile).
const STEPS_PER_DECADE: u32 = 40;

/// One curve.
pub struct Curve<'a> {
    /// Its group, for colour and legend.
    pub group: &'a str,
    /// Nanoseconds.
    pub histogram: &'a Histogram<u64>,
}

/// Draws them.
pub fn svg(title: &str, subtitle: &str, curves: &[Curve<'_>]) -> String {
    let longest = curves.iter().map(|curve| curve.histogram.len()).max().unwrap_or(1).max(10);
    // A percentile that not ten operations stand behind is an anecdote; the maximum is in the table.
    let decades = ((longest as f64 / 10.0).log10().ceil()).clamp(2.0, 6.0);
    let us = |ns: u64| (ns.max(1)) as f64 / 1_000.0;
    let lowest = curves.iter().map(|curve| us(curve.histogram.value_at_quantile(0.01))).fold(1e9, f64::min);
    let highest = curves
        .iter()
        .map(|curve| us(curve.histogram.value_at_quantile(1.0 - 10f64.powf(-decades))))
        .fold(1e-3, f64::max);
    let axis = Axis {
        decades,
        log_min: lowest.log10().min(highest.log10() - 0.3) - 0.05,
        log_max: highest.log10() + 0.08,
    };
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"40\" fill=\"#666\">{}</text>\n",
        escape(title),
        escape(subtitle)
    );
    axis.draw(&mut out);
    let groups = draw_curves(&mut out, &axis, curves);
    draw_legend(&mut out, &groups);
    out.push_str("</svg>\n");
    out
}

struct Axis {
    decades: f64,
    log_min: f64,
    log_max: f64,
}

impl Axis {
    fn x(&self, nines: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * nines / self.decades
    }

    fn y(&self, us: f64) -> f64 {
        let part = (us.log10() - self.log_min) / (self.log_max - self.log_min);
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part.clamp(0.0, 1.0)
    }

    fn draw(&self, out: &mut String) {
        let line = |out: &mut String, x1: f64, y1: f64, x2: f64, y2: f64, colour: &str| {
            let _ = writeln!(
                out,
                "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
            );
        };
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        // Where the scale spans little, 1-2-5 would leave it with one label.
        let steps: &[f64] = match self.log_max - self.log_min {
            span if span < 0.7 => &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
            span if span < 3.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        for decade in (self.log_min.floor() as i32)..=(self.log_max.ceil() as i32) {
            for step in steps {
                let us = step * 10f64.powi(decade);
                if (self.log_min..=self.log_max).contains(&us.log10()) {
                    let y = self.y(us);
                    line(out, LEFT, y, right, y, "#e6e6e6");
                    let _ = writeln!(
                        out,
                        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                        LEFT - 8.0,
                        y + 4.0,
                        label(us)
                    );
                }
            }
        }
        let names = ["0", "p90", "p99", "p99.9", "p99.99", "p99.999", "p99.9999"];
        let inner = [(0.5, "p50")];
        let nines = names.iter().enumerate().map(|(nines, name)| (nines as f64, *name));
        let halves = inner.iter().map(|(part, name)| (-(1.0f64 - part).log10(), *name));
        for (nines, name) in nines.chain(halves).filter(|(nines, _)| *nines <= self.decades) {
            let x = self.x(nines);
            line(out, x, TOP, x, bottom, "#e6e6e6");
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                bottom + 18.0
            );
        }
        line(out, LEFT, bottom, right, bottom, "#333");
        line(out, LEFT, TOP, LEFT, bottom, "#333");
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">percentile of all requests, \
             response time</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 10.0
        );
    }
}

/// Told apart also by people who do not see red and green apart.
const COLOURS: [&str; 6] = ["#0b61a4", "#c8501e", "#4d9221", "#8e44ad", "#b8860b", "#555555"];

fn draw_curves<'a>(out: &mut String, axis: &Axis, curves: &[Curve<'a>]) -> Vec<&'a str> {
    let mut groups: Vec<&str> = Vec::new();
    for curve in curves {
        let index = groups.iter().position(|group| *group == curve.group).unwrap_or_else(|| {
            groups.push(curve.group);
            groups.len() - 1
        });
        let steps = (axis.decades * f64::from(STEPS_PER_DECADE)) as u32;
        let mut points = String::new();
        for step in 0..=steps {
            let nines = f64::from(step) / f64::from(STEPS_PER_DECADE);
            let quantile = 1.0 - 10f64.powf(-nines);
            let us = curve.histogram.value_at_quantile(quantile).max(1) as f64 / 1_000.0;
            let _ = write!(points, "{:.1},{:.1} ", axis.x(nines), axis.y(us));
        }
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-opacity=\"0.8\" \
             points=\"{}\"/>",
            COLOURS[index % COLOURS.len()],
            points.trim_end()
        );
    }
    groups
}

fn draw_legend(out: &mut String, groups: &[&str]) {
    for (index, group) in groups.iter().enumerate() {
        let y = TOP + 18.0 + 18.0 * index as f64;
        let _ = writeln!(
            out,
            "<line x1=\"{x1}\" y1=\"{y}\" x2=\"{x2}\" y2=\"{y}\" stroke=\"{}\" stroke-width=\"3\"/>\
             <text x=\"{x3}\" y=\"{}\">{}</text>",
            COLOURS[index % COLOURS.len()],
            y + 4.0,
            escape(group),
            x1 = LEFT + 14.0,
            x2 = LEFT + 38.0,
            x3 = LEFT + 46.0,
        );
    }
}

fn label(us: f64) -> String {
    let (number, unit) = match us {
        us if us < 1.0 => (us * 1e3, "ns"),
        us if us < 1e3 => (us, "µs"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    format!("{} {unit}", (number * 100.0).round() / 100.0)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_curve_per_run_and_nothing_from_elsewhere() {
        let mut histogram = crate::measure::histogram();
        (1..100_000u64).for_each(|us| histogram.record(us * 1_000).unwrap());
        let curve = |group| Curve { group, histogram: &histogram };
        let svg = svg("a < b", "", &[curve("store"), curve("store"), curve("floor")]);
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains("a &lt; b") && svg.contains(">floor<") && !svg.contains("<script"));
        assert_eq!(svg.matches("http").count(), 1, "only the name space");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_measured_is_drawn_as_nothing() {
        let histogram = crate::measure::histogram();
        let svg = svg("empty", "", &[Curve { group: "store", histogram: &histogram }]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

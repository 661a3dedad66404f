//! No question: this puts what the other benches measured into `docs/performance.md` and
//! `docs/throughput.svg`.
//!
//! ```text
//! cargo bench --bench report [-- write]      reads target/bench.json
//! ```
//!
//! The table goes between the two lines `<!-- bench: begin -->` and `<!-- bench: end -->`; without
//! `write` it is printed only. The plot has a bar for each of our rates, and a mark at its limit:
//! what `budget.rs` predicts, else what the machine did with the same bytes in the same run, else
//! the target. Our scenarios stand beside the best peer that did the same, too.

mod harness;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use harness::rows::digits;
use harness::{Failure, has_word};
use serde_json::Value;

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";
const BAR_HEIGHT: f64 = 16.0;
const ROW_HEIGHT: f64 = 26.0;
const LABEL_WIDTH: f64 = 290.0;
const PLOT_WIDTH: f64 = 460.0;
const RIGHT_WIDTH: f64 = 130.0;
const HEAD_HEIGHT: f64 = 46.0;

fn main() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let json: Value = serde_json::from_str(&fs::read_to_string(bench_json()?)?)?;
    let rows = json["rows"].as_array().ok_or("no rows in bench.json")?;
    let peers = Peers::of(rows);
    let table = tables(&json, rows, &peers);
    println!("{table}");
    if !has_word("write") {
        return Ok(());
    }
    let document = root.join("docs/performance.md");
    let text = fs::read_to_string(&document)?;
    fs::write(&document, between(&text, &table)?)?;
    fs::write(root.join("docs/throughput.svg"), plot(rows, &peers))?;
    println!("written to {} and docs/throughput.svg", document.display());
    Ok(())
}

fn bench_json() -> Result<PathBuf, Failure> {
    // This program stands in TARGET/release/deps.
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(3).ok_or("no target folder")?.join("bench.json"))
}

/// The document with another text between the marks.
fn between(text: &str, table: &str) -> Result<String, Failure> {
    let missing = || format!("the document has no {BEGIN} before {END}");
    let (head, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, tail) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

/// Rows of peers.
struct Peers<'a>(Vec<&'a Value>);

impl<'a> Peers<'a> {
    fn of(rows: &'a [Value]) -> Self {
        Self(rows.iter().filter(|row| row["bench"] == "peers").collect())
    }

    /// Name and rate of the fastest at a scenario.
    fn fastest(&self, scenario: &str) -> Option<(&'a str, f64)> {
        self.at(scenario, "figure").max_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// Name and bytes of the one that stored least.
    fn smallest(&self, scenario: &str) -> Option<(&'a str, f64)> {
        self.at(scenario, "stored_bytes").min_by(|one, other| one.1.total_cmp(&other.1))
    }

    fn at(&self, scenario: &str, key: &str) -> impl Iterator<Item = (&'a str, f64)> {
        let named = |row: &&'a Value| Some((row["scenario"].as_str()?, row[key].as_f64()?));
        let rows: Vec<_> = self.0.iter().filter_map(named).collect();
        rows.into_iter().filter_map(move |(name, figure)| {
            Some((name.strip_suffix(scenario)?.strip_suffix(' ')?, figure))
        })
    }
}

const HEADS: [&str; 10] = [
    "scenario",
    "figure",
    "lowest to highest",
    "wanted",
    "CPU-s client + server",
    "peak MB client, server",
    "sent",
    "stored",
    "beside, in the same run",
    "best peer",
];

/// A table for each bench, with the columns that have something in them.
fn tables(json: &Value, rows: &[Value], peers: &Peers<'_>) -> String {
    let mut text = format!("{}\n", json["machine"].as_str().unwrap_or_default());
    for rows in rows.chunk_by(|one, next| one["bench"] == next["bench"]) {
        let cells: Vec<_> = rows.iter().map(|row| cells(row, peers)).collect();
        let is_used = |column: &usize| cells.iter().any(|row| !row[*column].is_empty());
        let used: Vec<usize> = (0..HEADS.len()).filter(is_used).collect();
        let heads: Vec<_> = used.iter().map(|column| HEADS[*column]).collect();
        let bench = rows.first().and_then(|row| row["bench"].as_str()).unwrap_or_default();
        let _ = writeln!(text, "\n**{bench}**\n\n| {} |", heads.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(used.len()));
        for row in &cells {
            let row: Vec<_> = used.iter().map(|column| row[*column].as_str()).collect();
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    text
}

fn cells(row: &Value, peers: &Peers<'_>) -> [String; HEADS.len()] {
    [
        name_of(row),
        format!("{} {}", number(row, "figure"), row["unit"].as_str().unwrap_or_default()),
        match row["spread"].as_array().map(Vec::as_slice) {
            Some([low, high]) => format!("{} to {}", of(low), of(high)),
            _ => String::new(),
        },
        wanted(row),
        pair(row, "client_cpu_seconds", "server_cpu_seconds", " + ", 1.0),
        pair(row, "client_peak_bytes", "server_peak_bytes", ", ", 1e6),
        share(row, "sent_bytes"),
        share(row, "stored_bytes"),
        beside(row),
        beside_peers(row, peers),
    ]
}

/// Rows of a short run say so.
fn name_of(row: &Value) -> String {
    let name = row["scenario"].as_str().unwrap_or_default();
    if row["is_quick"] == true { format!("{name} (quick)") } else { name.to_owned() }
}

fn of(figure: &Value) -> String {
    figure.as_f64().map_or(String::new(), digits)
}

fn number(row: &Value, key: &str) -> String {
    of(&row[key])
}

fn wanted(row: &Value) -> String {
    let sign = match row["wanted_is"].as_str() {
        Some("at least") => ">=",
        Some(_) => "<",
        None => return String::new(),
    };
    let verdict = if row["is_reached"] == true { "" } else { ": **not reached**" };
    format!("{sign} {}{verdict}", number(row, "wanted"))
}

fn pair(row: &Value, one: &str, other: &str, between: &str, divisor: f64) -> String {
    let figure = |key: &str| row[key].as_f64().unwrap_or(0.0) / divisor;
    if figure(one) + figure(other) == 0.0 {
        return String::new();
    }
    format!("{}{between}{}", digits(figure(one)), digits(figure(other)))
}

fn share(row: &Value, key: &str) -> String {
    let (Some(bytes), Some(all)) = (row[key].as_f64(), row["plaintext_bytes"].as_f64()) else {
        return String::new();
    };
    format!("{} MB ({} %)", digits(bytes / 1e6), digits(100.0 * bytes / all.max(1.0)))
}

fn beside(row: &Value) -> String {
    let Some(name) = row["reference"].as_str() else { return String::new() };
    format!("{} of {name} ({})", number(row, "ratio"), number(row, "reference_figure"))
}

fn beside_peers(row: &Value, peers: &Peers<'_>) -> String {
    if row["bench"] != "end_to_end" || row["is_reference"] == true {
        return String::new();
    }
    let scenario = row["scenario"].as_str().unwrap_or_default();
    let Some((name, rate)) = peers.fastest(scenario) else { return String::new() };
    let ratio = row["figure"].as_f64().unwrap_or(0.0) / rate;
    let mut text = format!("{} of {name} ({})", digits(ratio), digits(rate));
    let stored = row["stored_bytes"].as_f64().filter(|bytes| *bytes > 0.0);
    if let (Some(bytes), Some((name, theirs))) = (stored, peers.smallest(scenario)) {
        let _ = write!(text, "; stores {} of {name}", digits(bytes / theirs.max(1.0)));
    }
    text
}

// --- The plot -------------------------------------------------------------------------------

/// A bar for each rate, a mark for its limit, a dot for the best peer.
fn plot(rows: &[Value], peers: &Peers<'_>) -> String {
    let is_shown = |row: &&Value| {
        let is_ours = !["scaling", "budget"].iter().any(|bench| row["bench"] == *bench);
        row["unit"] == "MB/s" && row["is_reference"] != true && is_ours
    };
    let shown: Vec<&Value> = rows.iter().filter(is_shown).collect();
    let rates = shown.iter().flat_map(|row| [row["figure"].as_f64(), limit_of(row, rows)]);
    let most = rates.flatten().fold(1.0, f64::max) * 1.05;
    let x = |rate: f64| LABEL_WIDTH + PLOT_WIDTH * (rate / most).min(1.0);
    let (width, mut y) = (LABEL_WIDTH + PLOT_WIDTH + RIGHT_WIDTH, HEAD_HEIGHT);
    let height = HEAD_HEIGHT + ROW_HEIGHT * count(shown.len()) + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"16\" font-size=\"14\">MB/s, medians; figure / limit</text>\n\
         <text x=\"10\" y=\"34\">line: what the budget predicts, else the machine with the same \
         bytes, else the target; ring: the best peer</text>\n"
    );
    for row in shown {
        let figure = row["figure"].as_f64().unwrap_or(0.0);
        let (middle, bottom) = (y + BAR_HEIGHT / 2.0, y + BAR_HEIGHT);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABEL_WIDTH}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" \
             fill=\"#3b75af\"/>",
            LABEL_WIDTH - 8.0,
            middle + 4.0,
            escape(&name_of(row)),
            x(figure) - LABEL_WIDTH,
        );
        let limit = limit_of(row, rows);
        if let Some(limit) = limit {
            let at = x(limit);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#c03028\" \
                 stroke-width=\"2\"/>",
                y - 3.0,
                bottom + 3.0,
            );
        }
        let peer = peers.fastest(row["scenario"].as_str().unwrap_or_default());
        if let Some((_, rate)) = peer.filter(|_| row["bench"] == "end_to_end") {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"5\" fill=\"none\" stroke=\"#202020\" \
                 stroke-width=\"2\"/>",
                x(rate)
            );
        }
        let limit = limit.map_or(String::new(), |limit| format!(" / {}", digits(limit)));
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\">{}{limit}</text>",
            LABEL_WIDTH + PLOT_WIDTH + 8.0,
            middle + 4.0,
            digits(figure),
        );
        y += ROW_HEIGHT;
    }
    svg.push_str("</svg>\n");
    svg
}

fn limit_of(row: &Value, rows: &[Value]) -> Option<f64> {
    let name = format!("predicted: {}", row["scenario"].as_str()?);
    let is_ours = row["bench"] == "end_to_end";
    let predicted = rows.iter().find(|other| is_ours && other["scenario"] == name.as_str());
    let predicted = predicted.and_then(|other| other["figure"].as_f64());
    predicted.or_else(|| row["reference_figure"].as_f64()).or_else(|| row["wanted"].as_f64())
}

fn count(length: usize) -> f64 {
    f64::from(u32::try_from(length).unwrap_or(u32::MAX))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

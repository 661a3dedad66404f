//! Rows: one scenario each, with what was wanted, what it cost, and what the machine or a peer did
//! in the same run. `target/bench.json` holds the rows of all benches; each replaces its own.

use std::fs;

use serde_json::{Value, json};

use super::place::Place;
use super::{Failure, as_f64, mb};

/// What a figure is to be.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// Higher is better.
    AtLeast(f64),
    /// Lower is better.
    Below(f64),
}

/// One line of the table: a scenario, or something to compare it with.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// What was done.
    pub scenario: String,
    /// In `unit`.
    pub figure: f64,
    /// MB/s where nothing else is said.
    pub unit: String,
    /// The target, in the same unit.
    pub wanted: Option<Wanted>,
    /// Bytes of plaintext.
    pub plaintext_bytes: u64,
    /// Of the client process, or of what the row is about.
    pub seconds: f64,
    /// The client's own count of its time, without its start and its end.
    pub own_seconds: Option<f64>,
    /// User and kernel time of the client.
    pub client_cpu_seconds: f64,
    /// User and kernel time of the server meanwhile.
    pub server_cpu_seconds: f64,
    /// `VmHWM` of the client.
    pub client_peak_bytes: u64,
    /// `VmHWM` of the server, reset before.
    pub server_peak_bytes: u64,
    /// Bodies of the client's requests.
    pub sent_bytes: Option<u64>,
    /// Envelopes that were new.
    pub stored_bytes: Option<u64>,
    /// What the server had written to disk.
    pub written_bytes: Option<u64>,
    /// What this is compared with, and its figure in the same run.
    pub reference: Option<(String, f64)>,
    /// Not ours: the machine, or a peer.
    pub is_reference: bool,
    /// Lowest and highest figure of all runs.
    pub spread: Option<[f64; 2]>,
}

impl Row {
    /// A row that has a figure and nothing else.
    pub fn figure(scenario: &str, figure: f64, unit: &str) -> Self {
        Self { scenario: scenario.to_owned(), figure, unit: unit.to_owned(), ..Self::default() }
    }

    /// The rate of so many bytes in the row's seconds.
    pub fn rate_of(self, bytes: u64) -> Self {
        let figure = mb(bytes) / self.seconds.max(1e-9);
        Self { plaintext_bytes: bytes, figure, unit: "MB/s".to_owned(), ..self }
    }

    /// What the client says of a backup.
    pub fn of_summary(self, summary: &Value) -> Result<Self, Failure> {
        let number =
            |key: &str| summary[key].as_u64().ok_or_else(|| format!("no {key} in {summary}"));
        let row = Self {
            sent_bytes: Some(number("sent_bytes")?),
            stored_bytes: Some(number("sent_sealed_bytes")?),
            own_seconds: Some(as_f64(number("elapsed_ms")?) / 1e3),
            ..self
        };
        Ok(row.rate_of(number("plaintext_bytes")?))
    }

    /// The same with a target that is a lower bound.
    pub fn at_least(self, figure: f64) -> Self {
        Self { wanted: Some(Wanted::AtLeast(figure)), ..self }
    }

    /// The same with a target that is an upper bound.
    pub fn below(self, figure: f64) -> Self {
        Self { wanted: Some(Wanted::Below(figure)), ..self }
    }

    /// The same, beside another row of the run.
    pub fn beside(self, other: &Row) -> Self {
        Self { reference: Some((other.scenario.clone(), other.figure)), ..self }
    }

    /// Whether the figure is what was wanted.
    pub fn is_reached(&self) -> Option<bool> {
        self.wanted.map(|wanted| match wanted {
            Wanted::AtLeast(bound) => self.figure >= bound,
            Wanted::Below(bound) => self.figure < bound,
        })
    }

    fn to_json(&self, bench: &str) -> Value {
        let (direction, bound) = match self.wanted {
            Some(Wanted::AtLeast(bound)) => (Some("at least"), Some(bound)),
            Some(Wanted::Below(bound)) => (Some("below"), Some(bound)),
            None => (None, None),
        };
        let is_rate = self.unit == "MB/s";
        json!({
            "bench": bench,
            "scenario": self.scenario,
            "figure": self.figure,
            "unit": self.unit,
            "mb_per_s": is_rate.then_some(self.figure),
            "spread": self.spread,
            "wanted": bound,
            "wanted_is": direction,
            "is_reached": self.is_reached(),
            "seconds": self.seconds,
            "own_seconds": self.own_seconds,
            "plaintext_bytes": self.plaintext_bytes,
            "client_cpu_seconds": self.client_cpu_seconds,
            "server_cpu_seconds": self.server_cpu_seconds,
            "client_peak_bytes": self.client_peak_bytes,
            "server_peak_bytes": self.server_peak_bytes,
            "sent_bytes": self.sent_bytes,
            "stored_bytes": self.stored_bytes,
            "written_bytes": self.written_bytes,
            "reference": self.reference.as_ref().map(|(name, _)| name),
            "reference_figure": self.reference.as_ref().map(|(_, figure)| figure),
            "ratio": self.reference.as_ref().map(|(_, figure)| self.figure / figure.max(1e-9)),
            "is_reference": self.is_reference,
        })
    }
}

/// For each scenario the row with the median figure, and the spread of all.
pub fn medians(runs: &[Vec<Row>]) -> Vec<Row> {
    let count = runs.first().map_or(0, Vec::len);
    (0..count).filter_map(|at| median(runs.iter().filter_map(|rows| rows.get(at)))).collect()
}

fn median<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<Row> {
    let mut rows: Vec<&Row> = rows.collect();
    rows.sort_by(|a, b| a.figure.total_cmp(&b.figure));
    let [lowest, highest] = [rows.first()?.figure, rows.last()?.figure];
    let middle = (*rows.get(rows.len() / 2)?).clone();
    Some(Row { spread: (rows.len() > 1).then_some([lowest, highest]), ..middle })
}

/// One item of a sorted list, `share` of the way up.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (share * as_f64(u64::try_from(last).unwrap_or(0))).round();
    // Between 0 and the last index, so nothing is lost.
    sorted.get(at as usize).copied().unwrap_or(f64::NAN)
}

/// Prints rows, and puts them into `target/bench.json` instead of what this bench left there.
pub fn publish(place: &Place, bench: &str, runs: usize, rows: &[Row]) -> Result<(), Failure> {
    print_table(rows);
    let path = place.target.join("bench.json");
    let kept: Value = fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or(Value::Null);
    let others = kept["rows"].as_array().cloned().unwrap_or_default();
    let is_kept = |row: &Value| row["bench"].is_string() && row["bench"] != bench;
    let mut all: Vec<Value> = others.into_iter().filter(is_kept).collect();
    all.extend(rows.iter().map(|row| {
        let mut json = row.to_json(bench);
        json["runs"] = json!(runs);
        json["is_quick"] = json!(super::has_word("quick"));
        json
    }));
    let json = json!({ "machine": machine(), "rows": all });
    fs::write(&path, format!("{json:#}\n"))?;
    println!("\nrows of {bench} written to {}", path.display());
    Ok(())
}

fn print_table(rows: &[Row]) {
    let heads = "scenario | figure | lowest to highest | wanted | CPU-s client + server | peak MB \
                 client, server | sent | stored | beside, in the same run";
    println!("\n| {heads} |\n|---|---|---|---|---|---|---|---|---|");
    let share = |bytes: Option<u64>, of: u64| {
        bytes.map_or(String::new(), |bytes| {
            format!("{bytes} ({:.2} %)", 100.0 * as_f64(bytes) / as_f64(of.max(1)))
        })
    };
    for row in rows {
        println!(
            "| {} | {} {} | {} | {} | {} | {} | {} | {} | {} |",
            row.scenario,
            digits(row.figure),
            row.unit,
            row.spread.map_or(String::new(), |[low, high]| {
                format!("{} to {}", digits(low), digits(high))
            }),
            match row.wanted {
                Some(Wanted::AtLeast(bound)) => format!(">= {}", digits(bound)),
                Some(Wanted::Below(bound)) => format!("< {}", digits(bound)),
                None => String::new(),
            },
            pair(row.client_cpu_seconds, row.server_cpu_seconds, " + "),
            pair(mb(row.client_peak_bytes), mb(row.server_peak_bytes), ", "),
            share(row.sent_bytes, row.plaintext_bytes),
            share(row.stored_bytes, row.plaintext_bytes),
            row.reference.as_ref().map_or(String::new(), |(name, figure)| {
                format!("{:.2} of {name} ({})", row.figure / figure.max(1e-9), digits(*figure))
            }),
        );
    }
}

/// Two figures, or nothing where nobody measured.
fn pair(one: f64, other: f64, between: &str) -> String {
    if one + other == 0.0 {
        return String::new();
    }
    format!("{}{between}{}", digits(one), digits(other))
}

/// Three digits that count, or all before the point.
pub fn digits(figure: f64) -> String {
    let decimals = match figure.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{figure:.decimals$}")
}

/// What the benches ran on.
pub fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} x {}, {} of memory, Linux {}",
        cores,
        first("/proc/cpuinfo", "model name"),
        first("/proc/meminfo", "MemTotal"),
        kernel.trim()
    )
}

//! What each command of `strongroom audit` does and prints.

use crate::audit::{self, LogRow};
use crate::audit_cli::Audit;
use crate::audit_text::{check_text, ledger_text, log_row_text, prove_text};
use crate::error::ClientError;
use crate::terminal::Output;

/// What stands between two items.
const NEXT: &str = ",\n";

/// Runs a command.
pub async fn run(output: &Output, command: Audit) -> Result<(), ClientError> {
    match command {
        Audit::Log(options) => audit_log(output, options.from).await,
        Audit::Verify => {
            let (mut profile, connect) = (output.profile()?, output.connect()?);
            let summary = Box::pin(audit::verify(&mut profile, &connect)).await?;
            output.emit(&summary, || ledger_text(&summary))
        }
        Audit::Prove(options) => {
            let (mut profile, connect) = (output.profile()?, output.connect()?);
            let (namespace, name) = (&options.namespace, &options.snapshot);
            let run = audit::prove(&mut profile, &connect, namespace, name, &options.to);
            let summary = Box::pin(run).await?;
            output.emit(&summary, || prove_text(&summary))
        }
        Audit::Statement { entry } => {
            let (mut profile, connect) = (output.profile()?, output.connect()?);
            let statement = audit::statement(&mut profile, &connect, entry).await?;
            output.emit(&statement, || format!("{}\n", statement.words))
        }
        Audit::Check(options) => {
            let summary = audit::check(&options.file, options.ledger_key)?;
            output.emit(&summary, || check_text(&summary))
        }
    }
}

/// Entries are printed as they come, because there may be millions of them; with `--json` as the
/// items of one object, which says at its end whether all of them are proven.
async fn audit_log(output: &Output, from: u64) -> Result<(), ClientError> {
    let (mut profile, connect) = (output.profile()?, output.connect()?);
    let is_json = output.global.json;
    let put = |text: &str| {
        if output.global.quiet && !is_json {
            return Ok(());
        }
        output.put(text)
    };
    let mut before = "{\"entries\":[\n";
    let mut each = |row: LogRow| {
        if !is_json {
            return put(&log_row_text(&row));
        }
        let json = serde_json::to_string(&row)
            .map_err(|error| ClientError::Bug(format!("result: {error}")))?;
        put(&format!("{}{json}", std::mem::replace(&mut before, NEXT)))
    };
    let outcome = Box::pin(audit::log(&mut profile, &connect, from, &mut each)).await;
    let size = outcome.as_ref().ok().map(|head| head.size);
    if is_json && (size.is_some() || before == NEXT) {
        let start = if before == NEXT { "" } else { before };
        let end = serde_json::json!({ "is_proven": size.is_some(), "size": size }).to_string();
        let end = end.trim_start_matches('{');
        put(&format!("{start}\n],{end}\n"))?;
    }
    outcome.map(drop)
}

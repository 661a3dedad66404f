//! What the commands of locks, holds, policies, pruning, proposals and the clock do and print.

use serde::Serialize;
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::message::{ClockStatus, ClockWish, LockState, Outcome, ProposalRow};
use strongroom_protocol::policy::Policy;
use strongroom_protocol::proposal::{Operation, Verdict};
use strongroom_protocol::retention::{FOREVER, LockWanted, RetentionRule};

use crate::arguments::{end_of, end_text, local_time, local_time_of_seconds};
use crate::error::ClientError;
use crate::prune::Choice;
use crate::retention::{self, PolicyChange, Pruned};
use crate::retention_cli::{Clock, Decision, Hold, PolicyCommand, PolicySet, Prune, Retain};
use crate::terminal::Output;

const DAY_SECONDS: u64 = 24 * 3600;

/// `retain`
pub async fn retain(output: &Output, options: Retain) -> Result<(), ClientError> {
    let wanted = options.until.wanted();
    if wanted == LockWanted::Default {
        return Err(ClientError::Usage(
            "until when? Give --for DURATION, --until DATE or --forever".into(),
        ));
    }
    let access = output.access(&options.reading, false).await?;
    let mode = options.mode.map(Into::into);
    let state = retention::retain(&access, &options.snapshot, wanted, mode).await?;
    output.emit(&state, || lock_text(&state))
}

/// `hold place` and `hold release`
pub async fn hold(output: &Output, options: Hold) -> Result<(), ClientError> {
    let (is_placed, change) = match options {
        Hold::Place(change) => (true, change),
        Hold::Release(change) => (false, change),
    };
    let access = output.access(&change.reading, false).await?;
    let state = retention::hold(&access, &change.snapshot, is_placed, change.reason).await?;
    output.emit(&state, || lock_text(&state))
}

/// `policy show` and `policy set`
pub async fn policy(output: &Output, options: PolicyCommand) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct PolicyAnswer {
        policy: Policy,
        #[serde(flatten)]
        outcome: Outcome,
    }
    let options = match options {
        PolicyCommand::Show(show) => {
            let access = output.access(&show.reading, false).await?;
            let policy = retention::policy(&access).await?;
            return output.emit(&policy, || policy_text(&policy));
        }
        PolicyCommand::Set(set) => set,
    };
    let access = output.access(&options.reading, false).await?;
    let (policy, outcome) = retention::change_policy(&access, change_of(options)).await?;
    let answer = PolicyAnswer { policy, outcome };
    output.emit(&answer, || match outcome.proposal {
        Some(_) => outcome_text(&outcome),
        None => policy_text(&answer.policy),
    })
}

fn change_of(options: PolicySet) -> PolicyChange {
    PolicyChange {
        mode: options.mode.map(Into::into),
        minimum_seconds: options.minimum,
        default_seconds: options.default,
        maximum_seconds: options.maximum,
        sources: options.source.into_iter().collect(),
        quota_bytes: options.quota_bytes,
        quota_snapshots: options.quota_snapshots,
    }
}

/// `forget --bypass-governance`
pub async fn lift(
    output: &Output,
    access: &crate::trust::ReadAccess,
    name: &str,
) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Lifted {
        record: RecordDigest,
        #[serde(flatten)]
        outcome: Outcome,
    }
    let (record, outcome) = retention::lift(access, name).await?;
    let lifted = Lifted { record, outcome };
    output.emit(&lifted, || match outcome.is_done {
        true => format!("forgot snapshot {record}: nothing kept it\n"),
        false => outcome_text(&outcome),
    })
}

/// `prune`
pub async fn prune(output: &Output, options: Prune) -> Result<(), ClientError> {
    let access = output.access(&options.reading, false).await?;
    let flags = (options.accept_burst, options.dry_run);
    // The table comes before anything is forgotten.
    let show = |choices: &[Choice]| output.say(&choices_text(choices));
    let pruned = retention::prune(&access, &options.source, &options.rules(), flags, show).await?;
    output.emit(&pruned, || pruned_text(&pruned))
}

/// `proposals`
pub async fn proposals(output: &Output) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Proposals {
        proposals: Vec<ProposalRow>,
    }
    let proposals = retention::proposals(&output.client().await?).await?;
    let proposals = Proposals { proposals };
    output.emit(&proposals, || match proposals.proposals.as_slice() {
        [] => "nothing waits for a second principal\n".to_owned(),
        rows => rows.iter().map(proposal_text).collect(),
    })
}

/// `approve` and `reject`
pub async fn decide(
    output: &Output,
    options: Decision,
    verdict: Verdict,
) -> Result<(), ClientError> {
    let (profile, client) = (output.profile()?, output.client().await?);
    let (row, outcome) =
        retention::decide(&profile, &client, options.proposal, verdict, options.meaning).await?;
    output.emit(&outcome, || {
        let word = if outcome.is_done { "approved and carried out" } else { "rejected" };
        format!("{word}: {}", proposal_text(&row))
    })
}

/// `clock`
pub async fn clock(output: &Output, options: Clock) -> Result<(), ClientError> {
    let client = output.client().await?;
    let wish = match options {
        Clock::Status => {
            let status = retention::clock_status(&client).await?;
            return output.emit(&status, || clock_text(&status));
        }
        Clock::Credit { period } => ClockWish::Credit(period),
        Clock::Thaw => ClockWish::Thaw,
    };
    let outcome = retention::tend_clock(&client, wish).await?;
    output.emit(&outcome, || outcome_text(&outcome))
}

fn lock_text(state: &LockState) -> String {
    let lock = &state.lock;
    let hold = if lock.is_held { "; a legal hold stands" } else { "" };
    format!(
        "snapshot {}\nlocked {} ({}){hold}\n",
        state.record,
        end_text(end_of(lock)),
        lock.mode.name()
    )
}

fn outcome_text(outcome: &Outcome) -> String {
    match outcome.proposal {
        Some(number) => format!(
            "proposal {number} waits for another principal:\n  strongroom approve {number} \
             --meaning \"...\"\n"
        ),
        None => "done\n".into(),
    }
}

fn policy_text(policy: &Policy) -> String {
    let mut text = format!("sources without a class: {}\n", rule_text(&policy.rule));
    for (source, class) in &policy.sources {
        let rule = policy.class(class).unwrap_or(policy.rule);
        text.push_str(&format!("{source}: {class}, {}\n", rule_text(&rule)));
    }
    let bound = |number: u64| match number {
        0 => "no bound".to_owned(),
        number => number.to_string(),
    };
    let quota = policy.quota;
    let (bytes, snapshots) = (bound(quota.bytes), bound(quota.snapshots));
    text.push_str(&format!("quota: bytes {bytes}, snapshots {snapshots}\n"));
    text
}

fn rule_text(rule: &RetentionRule) -> String {
    let days = |seconds: u64| match seconds {
        FOREVER => "without end".to_owned(),
        seconds => format!("{} days", seconds / DAY_SECONDS),
    };
    let text = format!(
        "{} mode, at least {}, {} by default, at most {}",
        rule.mode.name(),
        days(rule.minimum_seconds),
        days(rule.default_seconds),
        days(rule.maximum_seconds)
    );
    match rule.after_date_seconds {
        0 => text,
        after => format!("{text}, until {} after the expiry date", days(after)),
    }
}

fn choices_text(choices: &[Choice]) -> String {
    let line = |choice: &Choice| {
        let words: Vec<&str> = choice.reasons.iter().map(|reason| reason.name()).collect();
        let id = choice.snapshot.to_string();
        let verdict = if words.is_empty() { "forget" } else { "keep  " };
        let time = local_time(i64::try_from(choice.committed_ms).unwrap_or(i64::MAX));
        let id = id.get(..12).unwrap_or(&id);
        format!("{verdict}  {id}  {time}  {}\n", words.join(", "))
    };
    choices.iter().map(line).collect()
}

fn pruned_text(pruned: &Pruned) -> String {
    let chosen = pruned.choices.iter().filter(|choice| choice.reasons.is_empty()).count();
    let kept = pruned.choices.len() - chosen;
    if pruned.is_dry_run {
        return format!("would keep {kept} and forget {chosen}; nothing was changed\n");
    }
    let mut text = format!("kept {kept}, forgot {}\n", pruned.forgotten.len());
    for (snapshot, reason) in &pruned.refused {
        text.push_str(&format!("the server keeps {snapshot}: {reason}\n"));
    }
    text
}

fn proposal_text(row: &ProposalRow) -> String {
    let what = match &row.operation {
        Operation::ForgetGovernance { record, .. } => format!("snapshot {record}"),
        Operation::LowerPolicy { policy, .. } => {
            format!("to: {}", policy_text(policy).trim_end().replace('\n', "; "))
        }
        Operation::CreditOffTime { seconds } => format!("{seconds} s"),
        Operation::Thaw => "locks end again".into(),
    };
    format!(
        "{}  {}  {}: {what}\n    proposed by {}, ends {}\n",
        row.proposal,
        local_time(i64::try_from(row.proposed_ms).unwrap_or(i64::MAX)),
        row.operation.name(),
        row.proposer,
        local_time_of_seconds(row.expires_ms / 1000),
    )
}

fn clock_text(status: &ClockStatus) -> String {
    let mut text = format!(
        "retention clock  {}\nwall clock       {}\nskew             {} s of {} s allowed\n\
         off-time         {} s not counted, {} s of this year's allowance left\n",
        local_time_of_seconds(status.retention_seconds),
        local_time_of_seconds(status.wall_seconds),
        status.skew_seconds,
        status.skew_bound_seconds,
        status.lost_seconds,
        status.allowance_seconds,
    );
    match &status.frozen {
        Some(why) => text.push_str(&format!("FROZEN           {why}\n")),
        None => text.push_str("locks end as they should\n"),
    }
    for line in &status.history {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

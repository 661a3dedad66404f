//! Each kind of anomaly by name, and random sequences of all of them.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const HOUR_MS: u64 = 3_600_000;
const START_MS: u64 = 1_767_225_600_000;

/// A machine whose wall clock may lie, and the time that truly passes.
struct World {
    now: Reading,
    passed_ms: u64,
    state: ClockState,
}

impl World {
    fn new() -> Self {
        let now =
            Reading { wall_ms: START_MS, boot_ms: HOUR_MS, boot_id: [1; 16], machine: [1; 32] };
        Self { now, passed_ms: 0, state: ClockState::start(&now) }
    }

    fn pass(&mut self, ms: u64) {
        self.now.wall_ms += ms;
        self.now.boot_ms += ms;
        self.passed_ms += ms;
    }

    fn reboot(&mut self, off_ms: u64) {
        self.now.wall_ms += off_ms;
        self.passed_ms += off_ms;
        self.now.boot_ms = 0;
        self.now.boot_id[0] = self.now.boot_id[0].wrapping_add(1);
    }

    fn shift_wall(&mut self, by_ms: i64) {
        self.now.wall_ms = self.now.wall_ms.saturating_add_signed(by_ms);
    }

    /// C since the start, after a look at the clocks.
    fn counted(&mut self) -> u64 {
        self.state.observe(&self.now);
        self.state.clock_ms() - START_MS
    }

    fn events(&mut self) -> Vec<(ClockEvent, u64)> {
        let seen = self.state.take_unwritten();
        seen.into_iter().map(|seen| (seen.event, seen.amount_ms)).collect()
    }

    fn rewritten(&self) -> ClockState {
        ClockState::decode(&self.state.encode(), &self.state.encode_history()).unwrap()
    }
}

#[test]
fn bounds_are_what_the_documents_say() {
    assert_eq!(YEAR_MS, 31_536_000_000);
    assert_eq!(ALLOWANCE_MS, 1_209_600_000, "14 days");
    assert_eq!(SKEW_BOUND_MS, 3_600_000, "an hour");
    assert_eq!((FORGIVEN_PART, GRANT_STEP_MS), (1440, 1_971_000_000));
    assert_eq!(Suspicion::ALL.map(Suspicion::bit), [1, 2, 4, 8]);
}

#[test]
fn a_moment_says_both_clocks_in_whole_seconds() {
    let mut world = World::new();
    world.pass(HOUR_MS + 1_999);
    world.shift_wall(30_000);
    world.state.observe(&world.now);
    let moment = world.state.moment(&world.now);
    let seconds = START_MS / 1000 + 3_601;
    assert_eq!((moment.retention_seconds, moment.wall_seconds), (seconds, seconds + 30));
    assert!(!moment.is_suspect);
    assert_eq!(world.state.skew_ms(), 30_000);
}

#[test]
fn honest_clocks_are_counted_to_the_millisecond() {
    let mut world = World::new();
    for ms in [1, 999, 59_999, 60_000, 61_001, DAY_MS, 3 * YEAR_MS, 7] {
        world.pass(ms);
        assert_eq!(world.counted(), world.passed_ms);
    }
    assert_eq!(world.events(), [(ClockEvent::Started, 0)]);
    assert_eq!(world.state.skew_ms(), 0);
}

/// Thousands of readings a second, each cut to a millisecond at another phase.
#[test]
fn frequent_readings_lose_nothing() {
    let mut world = World::new();
    for step in 0..1_000_000u64 {
        let us = step * 333;
        world.now.wall_ms = START_MS + us / 1000;
        world.now.boot_ms = HOUR_MS + (us + 500) / 1000;
        world.state.observe(&world.now);
    }
    assert!(world.counted() >= 333_000 - 333 / 60 - 2);
    assert!(world.state.skew_ms() < 10);
}

#[test]
fn a_wall_clock_ten_years_ahead_counts_nothing_and_freezes() {
    let mut world = World::new();
    world.pass(5000);
    world.shift_wall(i64::try_from(10 * YEAR_MS).unwrap());
    assert_eq!(world.counted(), 5000);
    assert!(world.state.is_suspect() && world.state.has(Suspicion::Skew));
    let events = world.events();
    assert_eq!(
        events[1..],
        [(ClockEvent::WallAhead, 10 * YEAR_MS), (ClockEvent::Frozen, 10 * YEAR_MS)]
    );
    // And back again: nothing is counted twice, nothing goes back.
    world.pass(5000);
    world.shift_wall(-i64::try_from(10 * YEAR_MS).unwrap());
    let counted = world.counted();
    assert!((5000..=10_000).contains(&counted), "{counted}");
    world.pass(DAY_MS);
    assert_eq!(world.counted(), counted + DAY_MS);
    assert!(world.state.is_suspect());
}

#[test]
fn a_backward_jump_costs_no_more_than_the_time_since_the_last_kept_reading() {
    let mut world = World::new();
    world.pass(90_000);
    world.counted();
    world.pass(30_000);
    assert_eq!(world.counted(), 120_000);
    world.shift_wall(-600_000);
    assert_eq!(world.counted(), 120_000);
    world.pass(1000);
    assert_eq!(world.counted(), 121_000);
    assert!(!world.state.is_suspect());
    assert_eq!(world.events()[1..], [(ClockEvent::WallBack, 600_000)]);
}

#[test]
fn small_disagreement_is_forgiven_and_large_adds_up() {
    let mut world = World::new();
    for _ in 0..1000 {
        world.pass(DAY_MS);
        world.shift_wall(1000);
        world.counted();
    }
    assert!(!world.state.is_suspect());
    assert_eq!(world.events().len(), 1);
    let mut jumps = 0;
    while !world.state.is_suspect() {
        jumps += 1;
        world.shift_wall(if jumps % 2 == 1 { 599_000 } else { -599_000 });
        world.counted();
    }
    assert_eq!(jumps, 7);
}

#[test]
fn a_day_forgives_a_minute_and_no_more() {
    let mut world = World::new();
    world.shift_wall(2_400_000);
    world.counted();
    assert_eq!(world.state.skew_ms(), 2_400_000);
    world.pass(DAY_MS);
    world.counted();
    assert_eq!(world.state.skew_ms(), 2_340_000);
    world.shift_wall(2_400_000);
    world.counted();
    assert!(world.state.is_suspect(), "40 minutes and again 40 minutes");
}

#[test]
fn exactly_the_bound_is_no_suspicion_and_a_millisecond_more_is() {
    let mut world = World::new();
    world.shift_wall(i64::try_from(SKEW_BOUND_MS).unwrap());
    world.counted();
    assert!(!world.state.is_suspect());
    world.shift_wall(10_000);
    world.counted();
    assert!(world.state.is_suspect());
}

#[test]
fn time_without_power_is_counted_up_to_the_allowance() {
    let mut world = World::new();
    world.reboot(10 * DAY_MS);
    world.pass(HOUR_MS);
    assert_eq!(world.counted(), 10 * DAY_MS + HOUR_MS);
    assert_eq!(world.state.allowance_ms(), 4 * DAY_MS);
    world.reboot(10 * DAY_MS);
    assert_eq!(world.counted(), 14 * DAY_MS + HOUR_MS);
    assert_eq!((world.state.allowance_ms(), world.state.lost_ms()), (0, 6 * DAY_MS));
    assert_eq!(
        world.events()[1..],
        [
            (ClockEvent::Rebooted, 10 * DAY_MS),
            (ClockEvent::OffTimeCounted, 10 * DAY_MS),
            (ClockEvent::Rebooted, 10 * DAY_MS),
            (ClockEvent::OffTimeCounted, 4 * DAY_MS),
            (ClockEvent::OffTimeLost, 6 * DAY_MS),
        ]
    );
    assert!(!world.state.is_suspect());
    // A year of C later the allowance is whole again, and not a moment before.
    world.pass(YEAR_MS - 1);
    world.counted();
    assert_eq!(world.state.allowance_ms(), 0);
    world.pass(1);
    world.counted();
    assert_eq!(world.state.allowance_ms(), ALLOWANCE_MS);
}

#[test]
fn a_wall_clock_that_went_back_over_a_reboot_counts_nothing() {
    let mut world = World::new();
    world.reboot(HOUR_MS);
    world.shift_wall(-i64::try_from(3 * HOUR_MS).unwrap());
    world.pass(60_000);
    assert_eq!(world.counted(), 0);
    assert!(world.state.is_suspect());
    let kinds: Vec<ClockEvent> = world.events().iter().map(|(event, _)| *event).collect();
    let expected = [ClockEvent::Started, ClockEvent::Rebooted, ClockEvent::WallBack];
    assert_eq!(kinds, [&expected[..], &[ClockEvent::Frozen]].concat());
}

#[test]
fn lost_time_is_credited_once_and_never_more() {
    let mut world = World::new();
    world.reboot(20 * DAY_MS);
    world.counted();
    let lost = world.state.lost_ms();
    assert_eq!(lost, 6 * DAY_MS);
    assert_eq!(world.state.credit(lost + 1), Err(TendError::AboveLost { lost_ms: lost }));
    assert!(world.state.credit(0).is_err());
    world.pass(5000);
    world.counted();
    assert_eq!(world.state.credit(lost), Ok(()));
    assert_eq!(world.counted(), 20 * DAY_MS + 5000);
    assert!(world.state.credit(1).is_err());
}

#[test]
fn another_machine_counts_nothing_and_freezes_until_thawed() {
    let mut world = World::new();
    world.now.machine = [2; 32];
    world.now.boot_id = [9; 16];
    world.now.boot_ms = YEAR_MS;
    world.now.wall_ms += YEAR_MS;
    assert_eq!(world.counted(), 0);
    assert!(world.state.has(Suspicion::Machine));
    assert_eq!(world.state.lost_ms(), YEAR_MS);
    // Moved back: seen again, and no less suspect.
    world.now.machine = [1; 32];
    world.counted();
    assert!(world.state.is_suspect());
    let before = world.state.digest();
    assert_eq!(world.state.thaw(), Ok(()));
    assert_ne!(world.state.digest(), before);
    assert!(!world.state.is_suspect());
    assert_eq!(world.state.thaw(), Err(TendError::NotFrozen));
    world.pass(1000);
    assert_eq!(world.counted(), 1000);
}

#[test]
fn a_rollback_is_seen_once() {
    let mut world = World::new();
    world.state.roll_back();
    world.state.roll_back();
    assert!(world.state.is_suspect());
    let kinds: Vec<ClockEvent> = world.events().iter().map(|(event, _)| *event).collect();
    assert_eq!(kinds, [ClockEvent::Started, ClockEvent::RolledBack, ClockEvent::Frozen]);
}

#[test]
fn a_row_that_is_missing_or_older_than_the_ledger_counts_nothing() {
    let mut world = World::new();
    let old = world.rewritten();
    world.pass(DAY_MS);
    let seconds = (START_MS + DAY_MS) / 1000;
    for row in [None, Some(old.clone())] {
        let mut state = ClockState::resume(row, seconds, &world.now);
        state.observe(&world.now);
        assert_eq!(state.clock_ms(), seconds * 1000);
        assert!(state.has(Suspicion::Row));
    }
    let intact = ClockState::resume(Some(old.clone()), START_MS / 1000, &world.now);
    assert_eq!(intact, old);
}

#[test]
fn rows_come_back_as_they_were_and_refuse_what_is_not_theirs() {
    let mut world = World::new();
    for days in 1..40 {
        world.reboot(days * DAY_MS);
        world.shift_wall(20_000);
        world.pass(30 * DAY_MS);
        world.counted();
        world.events();
        assert_eq!(world.rewritten(), world.state);
    }
    assert_eq!(world.state.history().len(), 32);
    let (state, history) = (world.state.encode(), world.state.encode_history());
    for cut in 0..state.len() {
        assert!(ClockState::decode(&state[..cut], &history).is_err());
    }
    assert!(ClockState::decode(&[&state[..], &[0]].concat(), &history).is_err());
    assert!(ClockState::decode(&state, &history[1..]).is_err());
    let mut unknown = state.clone();
    let suspicions_at = 4 + 4 * 8 + 16 + 32 + 2 * 8;
    unknown[suspicions_at] = 16;
    assert!(ClockState::decode(&unknown, &history).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    /// Time passes unseen, in slices.
    Run(u64, u8),
    Wall(i64),
    Reboot {
        off_ms: u64,
        lie_ms: i64,
    },
    Machine {
        up_ms: u64,
    },
    RollBack,
    Restart,
    Thaw,
    Credit(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let span = prop_oneof![0..5000u64, 0..HOUR_MS, 0..40 * DAY_MS];
    let day = i64::try_from(DAY_MS).unwrap();
    let lie = prop_oneof![-5000..5000i64, -day..day, -4000 * day..4000 * day];
    let step = prop_oneof![
        4 => span.clone().prop_map(Step::Pass),
        3 => (span.clone(), 1..20u8).prop_map(|(ms, slices)| Step::Run(ms, slices)),
        2 => lie.clone().prop_map(Step::Wall),
        2 => (span.clone(), prop_oneof![2 => Just(0), 1 => lie])
            .prop_map(|(off_ms, lie_ms)| Step::Reboot { off_ms, lie_ms }),
        1 => span.clone().prop_map(|up_ms| Step::Machine { up_ms }),
        1 => Just(Step::RollBack),
        2 => Just(Step::Restart),
        1 => Just(Step::Thaw),
        1 => span.prop_map(Step::Credit),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What must hold whatever happens.
#[derive(Default)]
struct Auditor {
    last_ms: u64,
    allowed_ms: u64,
    credited_ms: u64,
    grants: VecDeque<(u64, u64)>,
    was_suspect: bool,
}

impl Auditor {
    fn check(&mut self, world: &mut World, thawed: bool) {
        let counted = world.counted();
        assert!(counted >= self.last_ms, "C went back");
        self.last_ms = counted;
        assert!(
            !self.was_suspect || world.state.is_suspect() || thawed,
            "a freeze ended by itself"
        );
        self.was_suspect = world.state.is_suspect();
        for (event, amount) in world.events() {
            match event {
                ClockEvent::OffTimeCounted => {
                    self.allowed_ms += amount;
                    self.grants.push_back((counted, amount));
                }
                ClockEvent::OffTimeCredited => self.credited_ms += amount,
                _ => {}
            }
        }
        let since = counted.saturating_sub(YEAR_MS);
        self.grants.retain(|(at, _)| *at > since || counted < YEAR_MS);
        let year: u64 = self.grants.iter().map(|(_, amount)| amount).sum();
        assert!(year <= ALLOWANCE_MS, "{year} ms without power were counted in one year");
        let most = world.passed_ms + self.allowed_ms + self.credited_ms;
        assert!(counted <= most, "C is {} ms ahead", counted - most);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn c_is_never_ahead_of_what_passed(steps in steps()) {
        let (mut world, mut auditor) = (World::new(), Auditor::default());
        for step in steps {
            let mut thawed = false;
            match step {
                Step::Pass(ms) => world.pass(ms),
                Step::Run(ms, slices) => {
                    for _ in 0..slices {
                        world.pass(ms / u64::from(slices));
                        auditor.check(&mut world, false);
                    }
                }
                Step::Wall(by) => world.shift_wall(by),
                Step::Reboot { off_ms, lie_ms } => {
                    world.reboot(off_ms);
                    world.shift_wall(lie_ms);
                }
                Step::Machine { up_ms } => {
                    world.now.machine[0] = world.now.machine[0].wrapping_add(1);
                    world.now.boot_id[1] = world.now.boot_id[1].wrapping_add(1);
                    world.now.boot_ms = up_ms;
                }
                Step::RollBack => world.state.roll_back(),
                Step::Restart => {
                    auditor.check(&mut world, false);
                    world.state = world.rewritten();
                }
                Step::Thaw => {
                    auditor.check(&mut world, false);
                    thawed = world.state.thaw().is_ok();
                }
                Step::Credit(ms) => {
                    auditor.check(&mut world, false);
                    let _ = world.state.credit(ms);
                }
            }
            auditor.check(&mut world, thawed);
        }
    }

    /// With clocks that tell the truth, nothing is frozen, and what is missing is what is lost.
    #[test]
    fn honest_clocks_lose_only_what_the_allowance_does_not_cover(
        steps in proptest::collection::vec((0..40 * DAY_MS, 0..3 * DAY_MS), 1..40),
    ) {
        let mut world = World::new();
        for (run_ms, off_ms) in steps {
            world.pass(run_ms);
            world.counted();
            world.reboot(off_ms);
            let counted = world.counted();
            prop_assert_eq!(counted + world.state.lost_ms(), world.passed_ms);
            prop_assert!(!world.state.is_suspect());
        }
    }
}

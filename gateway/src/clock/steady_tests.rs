use std::sync::atomic::AtomicUsize;

use tokio::time::advance;

use super::*;
use crate::clock::TestClock;

const START: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Seen {
    forward: AtomicUsize,
    back: AtomicUsize,
}

impl ClockWatch for Seen {
    fn stepped(&self, step: Step) {
        let count = if step == Step::Forward { &self.forward } else { &self.back };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn ahead(&self, _: f64) {}

    fn ehr_ahead(&self, _: f64) {}
}

struct World {
    machine: Arc<TestClock>,
    seen: Arc<Seen>,
    clock: SteadyClock,
    start: Instant,
}

impl World {
    fn new() -> Self {
        let (machine, seen) = (Arc::new(TestClock::new(START)), Arc::new(Seen::default()));
        let clock = SteadyClock::new(machine.clone(), seen.clone());
        Self { machine, seen, clock, start: Instant::now() }
    }

    /// Passes, while somebody reads the clock each second.
    async fn pass(&self, time: Duration) {
        for _ in 0..time.as_secs() {
            advance(Duration::from_secs(1)).await;
            self.clock.now();
        }
    }

    /// How far each of the two is from the time of a clock that nobody stepped, in seconds.
    fn off(&self) -> (i64, i64) {
        let right = START.after(self.start.elapsed()).0;
        ((self.clock.now().0 - right) / 1000, (self.clock.civil().0 - right) / 1000)
    }

    fn steps(&self) -> (usize, usize) {
        (self.seen.forward.load(Ordering::Relaxed), self.seen.back.load(Ordering::Relaxed))
    }

    fn set(&self, hours: i64) {
        let by = HOUR * u32::try_from(hours.unsigned_abs()).unwrap();
        if hours > 0 { self.machine.set_forward(by) } else { self.machine.set_back(by) }
    }

    /// An EHR whose clock is so many seconds off answers.
    fn ehr(&self, off: i64) {
        let Timestamp(right) = START.after(self.start.elapsed());
        self.clock.witness(Timestamp((right / 1000 + off) * 1000));
    }
}

#[tokio::test(start_paused = true)]
async fn slewing_is_followed_both_ways() {
    let world = World::new();
    for _ in 0..20 {
        world.machine.set_forward(Duration::from_millis(1900));
        world.pass(Duration::from_secs(1)).await;
    }
    assert_eq!((world.off(), world.steps()), ((38, 38), (0, 0)));
    for _ in 0..20 {
        world.machine.set_back(Duration::from_millis(1900));
        world.pass(Duration::from_secs(1)).await;
    }
    assert_eq!((world.off(), world.steps(), world.clock.off()), ((0, 0), (0, 0), None));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_taken_back_was_never_followed() {
    for hours in [1, -1] {
        let world = World::new();
        world.pass(Duration::from_secs(10)).await;
        world.set(hours);
        assert_eq!(world.off(), (0, 0), "nobody sees a step before it was looked at");
        world.pass(Duration::from_secs(240)).await;
        assert_eq!((world.off(), world.clock.off()), ((0, 0), Some(hours * 3600)));
        assert!(world.clock.seeks_witness());
        world.set(-hours);
        world.pass(Duration::from_secs(600)).await;
        assert_eq!((world.off(), world.steps(), world.clock.off()), ((0, 0), (1, 1), None));
        assert!(!world.clock.seeks_witness());
    }
}

#[tokio::test(start_paused = true)]
async fn an_ehr_keeps_the_time_that_it_has_itself() {
    for hours in [1, -1] {
        let world = World::new();
        world.set(hours);
        for _ in 0..48 {
            world.pass(Duration::from_secs(290)).await;
            world.ehr(0);
        }
        assert_eq!((world.off(), world.clock.off()), ((0, 0), Some(hours * 3600)));
        // And none has for a while.
        world.pass(PATIENCE + Duration::from_secs(1)).await;
        assert_eq!(world.off().1, hours * 3600);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_wrong_is_set_right_and_an_ehr_confirms_it() {
    for hours in [1, -1] {
        let world = World::new();
        world.set(hours);
        // Before anything has looked at the clock again.
        world.ehr(hours * 3600);
        assert_eq!(world.off(), (0, hours * 3600), "told at once, and no record ends early");
        world.pass(HOUR).await;
        let (records, civil) = world.off();
        assert_eq!((records.signum(), civil), (hours, hours * 3600));
        assert!((355..=365).contains(&records.abs()), "a tenth of the time: {records}");
        world.pass(HOUR * 9).await;
        assert_eq!(
            (world.off(), world.clock.off(), world.steps().0 + world.steps().1),
            ((hours * 3600, hours * 3600), None, 1)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_nobody_denies_is_believed_in_the_end() {
    let world = World::new();
    world.set(1);
    world.pass(PATIENCE - Duration::from_secs(1)).await;
    // One with a clock of its own says nothing of either.
    world.ehr(-7200);
    assert_eq!(world.off(), (0, 0));
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(world.off(), (0, 3600));
}

#[tokio::test(start_paused = true)]
async fn an_ehr_names_no_time_of_its_own() {
    let world = World::new();
    world.ehr(86_400);
    world.pass(PATIENCE * 2).await;
    world.ehr(-86_400);
    assert_eq!((world.off(), world.steps()), ((0, 0), (0, 0)));
}

/// An idle or a stopped process looks but once.
#[tokio::test(start_paused = true)]
async fn time_that_nobody_looked_at_is_no_step() {
    let world = World::new();
    advance(HOUR * 5).await;
    assert_eq!((world.off(), world.steps()), ((0, 0), (0, 0)));
    world.set(1);
    advance(HOUR).await;
    assert_eq!(world.off(), (0, 0), "seen now for the first time");
    world.pass(PATIENCE).await;
    assert_eq!(world.off().1, 3600);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_an_hour_lives_54_to_66_minutes() {
    for (hours, least, most) in [(1, 3240, 3290), (-1, 3980, 4010)] {
        let world = World::new();
        let ends = world.clock.now().after(HOUR);
        world.set(hours);
        world.ehr(hours * 3600);
        while world.clock.now() < ends {
            world.pass(Duration::from_secs(1)).await;
        }
        let lived = world.start.elapsed().as_secs();
        assert!((least..=most).contains(&lived), "{hours} h: {lived} s");
    }
}

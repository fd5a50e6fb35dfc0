use super::*;
use crate::model::cron::Cron;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_800_000_000_000 + seconds * 1000).expect("in range")
}

fn offer(key: &str, revision: &str, schedule: Schedule) -> Offer {
    Offer { key: key.into(), revision: revision.into(), schedule, timezone: Tz::UTC }
}

fn every(seconds: u64) -> Schedule {
    Trigger::ProcessingTime(Duration::from_secs(seconds)).into()
}

fn reload(offers: &[Offer]) -> Event {
    Event::Reloaded { offers: offers.to_vec(), broken: BTreeSet::new() }
}

fn ended(key: &str, ending: Ending) -> Event {
    Event::Ended { key: key.into(), ending }
}

/// `a1` for a start of `a` from revision 1, `-a` for a stop, `x a` for a close.
fn told(actions: Vec<Action>) -> Vec<String> {
    let tell = |action| match action {
        Action::Start { key, revision, .. } => format!("{key}{revision}"),
        Action::Stop { key } => format!("-{key}"),
        Action::Close { key } => format!("x {key}"),
    };
    actions.into_iter().map(tell).collect()
}

#[test]
fn an_interval_runs_at_once_then_at_its_ticks_and_never_beside_itself() {
    let mut supervisor = Supervisor::default();
    assert_eq!(told(supervisor.decide(at(3), reload(&[offer("a", "1", every(10))]))), ["a1"]);
    assert!(supervisor.decide(at(25), Event::Woke).is_empty(), "it runs");
    // Ticks 10 and 20 passed: one run for both, at once, and one is counted as missed.
    assert_eq!(told(supervisor.decide(at(25), ended("a", Ending::Done))), ["a1"]);
    assert_eq!(supervisor.pipelines()["a"].missed, 1);
    assert!(supervisor.decide(at(26), ended("a", Ending::Done)).is_empty());
    assert_eq!(supervisor.wakes_at(), Some(at(30)));
    assert_eq!(told(supervisor.decide(at(30), Event::Woke)), ["a1"]);
}

#[test]
fn a_crontab_waits_for_its_tick_and_one_run_stands_for_many_missed() {
    let quarter = Schedule::Cron(Cron::parse("*/15 * * * *").expect("sound"));
    let mut supervisor = Supervisor::default();
    assert!(supervisor.decide(at(1), reload(&[offer("a", "1", quarter)])).is_empty());
    assert_eq!(supervisor.wakes_at(), Some(at(900)));
    let start = supervisor.decide(at(900), Event::Woke);
    assert!(matches!(&start[..], [Action::Start { trigger: Trigger::AvailableNow, .. }]));
    // An hour and a half in one run: the ticks at 30, 45, 60 … 105 minutes are one run.
    assert_eq!(told(supervisor.decide(at(6_301), ended("a", Ending::Done))), ["a1"]);
    assert_eq!(supervisor.pipelines()["a"].missed, 5);
    assert!(supervisor.decide(at(6_302), ended("a", Ending::Done)).is_empty());
    assert_eq!(supervisor.wakes_at(), Some(at(7_200)));
}

#[test]
fn once_and_available_now_run_once() {
    for trigger in [Trigger::Once, Trigger::AvailableNow] {
        let mut supervisor = Supervisor::default();
        assert_eq!(told(supervisor.decide(at(0), reload(&[offer("a", "1", trigger.into())]))), ["a1"]);
        assert!(supervisor.decide(at(9), ended("a", Ending::Done)).is_empty());
        assert_eq!((supervisor.pipelines()["a"].state, supervisor.wakes_at()), (State::Finished, None));
    }
}

#[test]
fn failures_pause_ever_longer_up_to_five_minutes_and_a_success_forgets_them() {
    let mut supervisor = Supervisor::default();
    let mut now = at(0);
    supervisor.decide(now, reload(&[offer("a", "1", every(1)), offer("b", "1", every(1))]));
    for failure in 0..14 {
        assert!(supervisor.decide(now, ended("a", Ending::Retryable)).is_empty());
        let whole = TimeDelta::seconds((1_i64 << failure).min(300));
        let until = supervisor.pipelines()["a"].due().expect("a pause");
        assert!(until - now >= whole / 2 && until - now <= whole, "pause {failure} is {}", until - now);
        now = until;
        assert_eq!(told(supervisor.decide(now, Event::Woke)), ["a1"]);
    }
    supervisor.decide(now, ended("a", Ending::Done));
    assert_eq!(supervisor.pipelines()["a"].failures, 0);
    assert_eq!(supervisor.pipelines()["b"].state, State::Running, "the other one never noticed");
    let (a, b) = (pause("a", 10), pause("b", 10));
    assert_ne!(a, b, "pipelines that failed together return apart");
}

#[test]
fn what_only_a_person_mends_waits_for_the_file_or_a_reload() {
    let mut supervisor = Supervisor::default();
    supervisor.decide(at(0), reload(&[offer("a", "1", every(1))]));
    assert!(supervisor.decide(at(1), ended("a", Ending::Permanent)).is_empty());
    assert!(supervisor.decide(at(9_999_999), Event::Woke).is_empty());
    assert_eq!(told(supervisor.decide(at(10_000_000), reload(&[offer("a", "1", every(1))]))), ["a1"]);
    supervisor.decide(at(10_000_001), ended("a", Ending::Permanent));
    assert_eq!(told(supervisor.decide(at(10_000_002), Event::Changed(offer("a", "2", every(1))))), ["x a", "a2"]);
}

#[test]
fn a_reload_starts_new_files_stops_removed_ones_after_their_batch_and_leaves_the_rest_alone() {
    let mut supervisor = Supervisor::default();
    let old = ["a", "b", "c", "d"].map(|key| offer(key, "1", every(10)));
    assert_eq!(told(supervisor.decide(at(0), reload(&old))), ["a1", "b1", "c1", "d1"]);
    // b changed, c is gone, d is broken, e is new.
    let offers = vec![offer("a", "1", every(10)), offer("b", "2", every(10)), offer("e", "1", every(10))];
    let event = Event::Reloaded { offers, broken: BTreeSet::from(["d".to_string()]) };
    assert_eq!(told(supervisor.decide(at(1), event)), ["-c", "-b", "e1"]);
    let may_start = ["a1", "b1", "b2", "c1", "d1", "e1", "e2"].map(|word| supervisor.may_start(&word[..1], &word[1..]));
    assert_eq!(may_start, [true, true, true, true, true, true, false]);
    assert_eq!(told(supervisor.decide(at(2), ended("b", Ending::Done))), ["x b", "b2"]);
    assert_eq!(told(supervisor.decide(at(2), ended("c", Ending::Done))), ["x c"]);
    assert_eq!(["b1", "b2", "c1"].map(|word| supervisor.may_start(&word[..1], &word[1..])), [false, true, false]);
    assert!(supervisor.decide(at(2), ended("a", Ending::Done)).is_empty());
    assert!(supervisor.decide(at(2), ended("d", Ending::Done)).is_empty());
    assert_eq!(told(supervisor.decide(at(10), Event::Woke)), ["a1", "d1"]);
}

#[test]
fn a_file_that_comes_back_before_its_run_has_ended_runs_on() {
    let mut supervisor = Supervisor::default();
    let a = offer("a", "1", every(10));
    supervisor.decide(at(0), reload(std::slice::from_ref(&a)));
    assert_eq!(told(supervisor.decide(at(1), reload(&[]))), ["-a"]);
    assert!(supervisor.decide(at(2), reload(&[a])).is_empty());
    assert_eq!(told(supervisor.decide(at(3), ended("a", Ending::Done))), ["x a", "a1"]);
}

#[test]
fn a_stop_lets_what_runs_finish_and_starts_nothing() {
    let mut supervisor = Supervisor::default();
    supervisor.decide(at(0), reload(&[offer("a", "1", every(10)), offer("b", "1", every(10))]));
    supervisor.decide(at(1), ended("b", Ending::Done));
    assert_eq!(told(supervisor.decide(at(2), Event::Stopped)), ["-a"]);
    assert!(!supervisor.has_stopped());
    assert!(supervisor.decide(at(30), Event::Woke).is_empty(), "b is due, and stays where it is");
    assert!(supervisor.decide(at(31), ended("a", Ending::Retryable)).is_empty());
    assert!(supervisor.has_stopped());
}

/// Whatever happens in whatever order, no pipeline is started while a run of it is under way.
#[test]
fn no_order_of_events_makes_a_pipeline_overlap_with_itself() {
    use rand::{Rng as _, SeedableRng as _};
    for seed in 0..300 {
        let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
        let mut supervisor = Supervisor::default();
        let mut running: BTreeSet<String> = BTreeSet::new();
        let mut now = at(0);
        for _ in 0..200 {
            now += TimeDelta::milliseconds(random.random_range(0..20_000));
            let key = ["a", "b", "c"][random.random_range(0..3)].to_string();
            let some_offer = |random: &mut rand::rngs::SmallRng, key: &str| {
                offer(key, &random.random_range(0..2).to_string(), every(random.random_range(1..20)))
            };
            let event = match random.random_range(0..6) {
                0 => Event::Changed(some_offer(&mut random, &key)),
                1 => Event::Reloaded { offers: vec![some_offer(&mut random, &key)], broken: BTreeSet::new() },
                2 | 3 if running.remove(&key) => {
                    let ending = [Ending::Done, Ending::Retryable, Ending::Permanent][random.random_range(0..3)];
                    Event::Ended { key, ending }
                }
                _ => Event::Woke,
            };
            for action in supervisor.decide(now, event) {
                if let Action::Start { key, .. } = action {
                    assert!(running.insert(key.clone()), "seed {seed}: {key} was started beside itself");
                }
            }
        }
    }
}

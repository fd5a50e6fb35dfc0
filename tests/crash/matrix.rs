//! SIGKILL at every fail point, at every hit, and a second one during the recovery.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::Rng as _;
use tidegate::fail;

use super::world::{Case, RUNS, assert_killed, cases, each, random, sample, trace, try_all};

/// A place to die.
#[derive(Clone, PartialEq)]
pub struct Place {
    pub point: &'static str,
    pub hit: u64,
    pub setup: Setup,
}

/// What it takes to get there.
#[derive(Clone, Copy, PartialEq)]
pub enum Setup {
    /// Nothing.
    Plain,
    /// Data files are uploaded in parts.
    Parts,
    /// A commit is refused first, so that its files are cleaned up.
    Refused,
    /// A run before this one has died in the middle of a batch, so that there is a log to read.
    Begun,
}

impl Place {
    pub fn orders(&self, action: &str) -> String {
        let first = if self.setup == Setup::Refused { "log.put@4=error;" } else { "" };
        format!("{first}{}@{}={action}", self.point, self.hit)
    }

    pub fn case(&self, name: &str) -> Case {
        let case = Case::new(name);
        if self.setup == Setup::Begun {
            assert_killed(&case.run("applied@6=kill"));
        }
        if self.setup == Setup::Parts { case.with("TIDEGATE_FAIL_PARTS", "1") } else { case }
    }
}

/// How each point is reached.
fn setup(point: &str) -> Setup {
    match point {
        fail::DATA_BEGIN | fail::DATA_PART | fail::DATA_COMPLETE | fail::DATA_COMPLETE_DONE => Setup::Parts,
        fail::DATA_DELETE | fail::DATA_DELETE_DONE => Setup::Refused,
        fail::PLAN_GET | fail::COMMIT_GET | fail::STATE_GET => Setup::Begun,
        _ => Setup::Plain,
    }
}

/// Every point with the number of its hits in a run that nothing disturbs.
pub fn places() -> Vec<(Place, u64)> {
    let place = |&point: &&'static str| {
        let setup = setup(point);
        let hits = match setup {
            Setup::Refused | Setup::Begun => 1,
            _ => trace(setup == Setup::Parts).get(point).copied().unwrap_or(0),
        };
        (Place { point, hit: 1, setup }, hits)
    };
    fail::ALL.iter().map(place).collect()
}

/// How many of these hits every run has: reads vary by a few from run to run.
fn sure(point: &str, hits: u64) -> u64 {
    let is_read = point.ends_with(".get") || point.ends_with(".list");
    if is_read { (hits * 9 / 10).max(1) } else { hits.max(1) }
}

#[test]
fn every_fail_point_is_known_and_reached() {
    let places = places();
    let unreached: Vec<_> = places.iter().filter(|(_, hits)| *hits == 0).map(|(place, _)| place.point).collect();
    assert!(unreached.is_empty(), "points that no run reaches: {unreached:?}");
    let traced = trace(false).keys().chain(trace(true).keys());
    let unknown: Vec<_> = traced.filter(|point| !fail::ALL.contains(&point.as_str())).collect();
    assert!(unknown.is_empty(), "points that are not in fail::ALL: {unknown:?}");
    for (point, hits) in trace(false) {
        println!("{hits:5} {point}");
    }
}

/// Dies at the place; false = the run survived, because the place is not reached that often.
fn die_at(case: &Case, place: &Place) -> bool {
    let run = case.run(&place.orders("kill"));
    // A commit that was refused on the way may have ended the run before the place was reached.
    let ended = if place.setup == Setup::Refused { &[0, 69][..] } else { &[0] };
    if run.status.code().is_some_and(|code| ended.contains(&code)) {
        return false;
    }
    assert_killed(&run);
    true
}

#[test]
fn killed_at_every_fail_point_no_row_is_lost_doubled_or_changed() {
    let (places, killed) = (places(), AtomicU64::new(0));
    let die_and_recover = |place: &Place| {
        let case = place.case("kill");
        let died = die_at(&case, place);
        killed.fetch_add(u64::from(died), Ordering::Relaxed);
        case.recover();
        died
    };
    let name = |(place, _): &(Place, u64)| place.orders("kill");
    if try_all() {
        each("points, each at every hit", &places, name, |(place, hits)| {
            let mut place = place.clone();
            while die_and_recover(&place) {
                place.hit += 1;
            }
            assert!(place.hit > 1, "never reached");
            println!("{:>5} kills of {hits} expected at {}", place.hit - 1, place.point);
        });
    } else {
        let mut random = random(1);
        let places: Vec<_> = places
            .into_iter()
            .map(|(place, hits)| (Place { hit: random.random_range(1..=sure(place.point, hits)), ..place }, hits))
            .collect();
        each("points, each at one hit", &places, name, |(place, _)| {
            assert!(die_and_recover(place), "never reached");
        });
    }
    let (killed, runs) = (killed.into_inner(), RUNS.load(Ordering::Relaxed));
    println!(
        "crash matrix: {} points, {killed} kills, {runs} runs so far, 0 rows lost, doubled or changed",
        fail::ALL.len()
    );
}

#[test]
fn killed_at_the_nth_hit_of_any_point_and_killed_again_while_recovering() {
    let total: u64 = trace(false).values().sum();
    let count = if try_all() { 600 } else { cases(14) as u64 };
    let mut random = random(2);
    let pairs: Vec<(u64, u64)> =
        (0..count).map(|_| (random.random_range(1..=total), random.random_range(1..=total / 2))).collect();
    let (twice, once) = (AtomicU64::new(0), AtomicU64::new(0));
    let name = |(first, second): &(u64, u64)| format!("*@{first}=kill, then *@{second}=kill");
    each("double crashes", &pairs, name, |(first, second)| {
        let case = Case::new("double");
        let at = |hit: &u64| Place { point: "*", hit: *hit, setup: Setup::Plain };
        // Hits of reads vary by a few from run to run, so that the very last may not come.
        let died = [die_at(&case, &at(first)), die_at(&case, &at(second))];
        let counter = if died == [true, true] { &twice } else { &once };
        counter.fetch_add(1, Ordering::Relaxed);
        case.recover();
    });
    let (twice, once) = (twice.into_inner(), once.into_inner());
    assert!(twice > count / 4, "only {twice} of {count} pairs killed twice");
    println!("double crashes: {twice} killed twice, {once} once; 0 rows lost, doubled or changed");
}

#[test]
fn killed_at_one_point_and_at_another_one_while_recovering() {
    let places: Vec<Place> = places().into_iter().filter(|(p, _)| p.setup == Setup::Plain).map(|(p, _)| p).collect();
    let hits = |place: &Place| trace(false).get(place.point).copied().unwrap_or(1);
    let pairs = places.iter().flat_map(|first| places.iter().map(move |second| (first.clone(), second.clone())));
    let mut random = random(3);
    let mut pairs = sample(pairs.collect(), if try_all() { 600 } else { cases(10) }, &mut random);
    for (first, second) in &mut pairs {
        first.hit = random.random_range(1..=sure(first.point, hits(first)));
        second.hit = random.random_range(1..=hits(second).div_ceil(2));
    }
    let twice = AtomicU64::new(0);
    let name = |(first, second): &(Place, Place)| format!("{}, then {}", first.orders("kill"), second.orders("kill"));
    each("pairs of points", &pairs, name, |(first, second)| {
        let case = Case::new("pair");
        assert!(die_at(&case, first), "never reached");
        twice.fetch_add(u64::from(die_at(&case, second)), Ordering::Relaxed);
        case.recover();
    });
    println!(
        "pairs of points: {} of {} killed twice; 0 rows lost, doubled or changed",
        twice.into_inner(),
        pairs.len()
    );
}

//! Re-deriving an interval of event time: its two durable records, what to do after any crash, and which intervals are
//! missing.
//!
//! Each interval has a log of its own, with runs numbered from 0. A run is planned before anything is written, and done
//! when its record exists; the run's number is the `txn` version of its commits, under an application id of the interval's
//! own. A live pipeline's log and transactions are never touched.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::batch::{BatchId, Owner, Receipt};
use super::interval::Interval;
use super::offset::{Incarnations, OffsetRanges};

/// How much of an interval is derived again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every row.
    Full,
    /// Rows that arrived since the last run of the interval.
    Correction,
}

/// What a run reads from the sources again before it derives anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reread {
    /// How far the time of a record may be from the time of its event.
    pub slack_ms: i64,
    /// The ranges, by source.
    pub sources: BTreeMap<String, OffsetRanges>,
    /// The topics that they belong to, by source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub incarnations: BTreeMap<String, Incarnations>,
}

impl Reread {
    /// The time between record and event that was allowed for.
    pub fn slack(&self) -> TimeDelta {
        TimeDelta::milliseconds(self.slack_ms)
    }
}

/// The intent of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillPlan {
    /// On-disk format.
    pub version: u32,
    /// The run: `txn` version of its commits.
    pub run: BatchId,
    /// Pipeline name.
    pub pipeline: String,
    /// What is derived again.
    pub interval: Interval,
    /// What was asked for.
    pub mode: Mode,
    /// Only rows of later live batches take part, where the table allows it; `None` = all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<BatchId>,
    /// With `since`: rows that other backfills brought back after this take part, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_time: Option<DateTime<Utc>>,
    /// What is read from the sources again; `None` = bronze is taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reread: Option<Reread>,
    /// The tables, in graph order; those that keep the source's rows are among them where these are read again.
    pub tables: Vec<String>,
    /// Earlier runs that were begun and never finished: what they changed is followed up by this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<BatchId>,
    /// The only clock a transform can see.
    pub batch_time: DateTime<Utc>,
    /// Delta versions of lookups, by lookup name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pinned: BTreeMap<String, i64>,
    /// Hash of everything that turns rows into tables.
    pub recipe: String,
    /// Who planned it.
    pub owner: Owner,
}

/// The outcome of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackfillRecord {
    /// On-disk format.
    pub version: u32,
    /// The run.
    pub run: BatchId,
    /// Pipeline name.
    pub pipeline: String,
    /// What was derived again.
    pub interval: Interval,
    /// How.
    pub mode: Mode,
    /// The tables asked for, in graph order.
    pub tables: Vec<String>,
    /// What each table did, dead letters included; empty where the interval has no rows.
    pub receipts: BTreeMap<String, Receipt>,
    /// Rows of live batches up to this one took part; `None` = there was no batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<BatchId>,
    /// What was read from the sources again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reread: Option<Reread>,
    /// Hash of everything that turned rows into tables.
    pub recipe: String,
    /// Rows of the interval that took part.
    pub input_rows: u64,
    /// Rows set aside that were not among the dead letters already.
    pub dead_letters: u64,
    /// Letters of records that are in the tables now were marked as replayed. Runs of older versions did not.
    #[serde(default)]
    pub settles: bool,
    /// How many.
    #[serde(default)]
    pub settled_letters: u64,
    /// Tables and sources whose letters must not be replayed any more: of the tables that such a letter stands for, this run
    /// or an earlier one of the interval brought rows to some only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsettled: Vec<String>,
    /// Rows that broke each rule, as `table.rule`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expectations: BTreeMap<String, u64>,
    /// When the run was planned.
    pub started_at: DateTime<Utc>,
    /// When it was done.
    pub committed_at: DateTime<Utc>,
    /// Who did it.
    pub owner: Owner,
}

/// The newest objects of an interval's log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IntervalHead {
    /// Newest plan.
    pub plan: Option<BackfillPlan>,
    /// Newest record.
    pub record: Option<BackfillRecord>,
}

impl BackfillRecord {
    /// Tables that the run before this one derived by the same rules, and this one left alone, still are: what is written
    /// speaks for them too, as far as that run came. Not where rows were brought back that they have not seen.
    pub fn following(mut self, before: Option<&BackfillRecord>, order: &[String]) -> BackfillRecord {
        let is_like = |before: &&BackfillRecord| before.recipe == self.recipe && self.reread.is_none();
        let Some(before) = before.filter(is_like) else { return self };
        if before.tables.iter().all(|table| self.tables.contains(table)) {
            return self;
        }
        self.through = before.through.min(self.through);
        let is_known = |name: &&String| self.tables.contains(name) || before.tables.contains(name);
        self.tables = order.iter().filter(is_known).cloned().collect();
        self
    }
}

impl IntervalHead {
    /// The run that was begun and is not done.
    pub fn pending(&self) -> Option<&BackfillPlan> {
        let done = self.record.as_ref().map(|record| record.run);
        self.plan.as_ref().filter(|plan| done.is_none_or(|done| done < plan.run))
    }
}

/// What is asked of an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How much.
    pub mode: Mode,
    /// Finished intervals are left alone.
    pub resume: bool,
    /// The sources are read again, and record and event times may be this far apart; `None` = bronze is taken as it is.
    pub slack: Option<TimeDelta>,
    /// The tables, in graph order.
    pub tables: Vec<String>,
    /// Hash of everything that turns rows into tables, of the configuration.
    pub recipe: String,
}

/// What happens to an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is done, by the same rules.
    Skip,
    /// A run was begun and is finished as it was planned.
    Replay(Box<BackfillPlan>),
    /// A new run.
    Begin {
        /// Its number.
        run: BatchId,
        /// Only rows of later live batches.
        since: Option<BatchId>,
        /// Its tables: those asked for, and those of runs that were never finished.
        tables: Vec<String>,
        /// Those runs.
        unfinished: Vec<BatchId>,
    },
}

/// Decides what happens to an interval. `applied` is the newest run that any of its tables carries: it counts for more
/// than a log that may have been lost. `order` are all tables of the pipeline in graph order.
pub fn decide(request: &Request, head: &IntervalHead, applied: Option<BatchId>, order: &[String]) -> Decision {
    let known = [head.plan.as_ref().map(|p| p.run), head.record.as_ref().map(|r| r.run), applied];
    let run = known.into_iter().flatten().max().map_or(0, |newest| newest + 1);
    if let Some(pending) = head.pending() {
        let is_same = pending.recipe == request.recipe
            && pending.mode == request.mode
            && pending.tables == request.tables
            && pending.reread.as_ref().map(Reread::slack) == request.slack
            && applied.is_none_or(|applied| applied <= pending.run);
        if is_same {
            return Decision::Replay(Box::new(pending.clone()));
        }
        // Derived again whole, whatever the other run did: then nobody needs to know how far it came. Only groups that it
        // took rows out of are asked for, so that tables downstream follow.
        let wanted = |name: &&String| request.tables.contains(name) || pending.tables.contains(name);
        let mut unfinished = pending.unfinished.clone();
        unfinished.push(pending.run);
        unfinished.extend(pending.run + 1..run);
        return Decision::Begin {
            run,
            since: None,
            tables: order.iter().filter(wanted).cloned().collect(),
            unfinished,
        };
    }
    let tables = request.tables.clone();
    // Runs that only the tables know: their log is lost, and how far they came with it.
    let lost: Vec<BatchId> = (head.record.as_ref().map_or(0, |record| record.run + 1)..run).collect();
    let is_whole = lost.is_empty();
    let begin = |since| Decision::Begin { run, since, tables, unfinished: lost };
    let Some(record) = head.record.as_ref().filter(|record| is_whole && is_up_to_date(record, request)) else {
        return begin(None);
    };
    match request.mode {
        _ if request.resume && request.mode == Mode::Full => Decision::Skip,
        Mode::Full => begin(None),
        Mode::Correction => begin(record.through),
    }
}

/// The record covers the tables asked for, by the same rules. A correction by other rules than the run before it is
/// planned as a full one, so that the newest record speaks for the whole interval.
fn is_up_to_date(record: &BackfillRecord, request: &Request) -> bool {
    record.recipe == request.recipe && request.tables.iter().all(|table| record.tables.contains(table))
}

/// Why an interval is in the list of gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Never derived again, or not all of it.
    Missing,
    /// Derived by other rules than those of today.
    Outdated,
    /// A run was begun and is not finished.
    Unfinished,
}

/// Which of `intervals` no finished run covers with all of `tables`, alone or together with others, by today's rules.
pub fn gaps(intervals: &[Interval], heads: &[IntervalHead], tables: &[String], recipe: &str) -> Vec<(Interval, Gap)> {
    let done = |fresh: bool| -> Vec<Interval> {
        let has_all = |record: &&BackfillRecord| tables.iter().all(|table| record.tables.contains(table));
        let records = heads.iter().filter_map(|head| head.record.as_ref()).filter(has_all);
        let mut done: Vec<Interval> =
            records.filter(|record| !fresh || record.recipe == recipe).map(|record| record.interval).collect();
        done.sort();
        done
    };
    let (fresh, any) = (done(true), done(false));
    let gap = |interval: &Interval| {
        let why =
            match (begun(interval, heads).next().is_some(), is_covered(interval, &fresh), is_covered(interval, &any)) {
                (true, _, _) => Gap::Unfinished,
                (_, true, _) => return None,
                (_, _, true) => Gap::Outdated,
                _ => Gap::Missing,
            };
        Some((*interval, why))
    };
    intervals.iter().filter_map(gap).collect()
}

/// The runs that were begun and are not done, of this interval or another one that shares a moment with it.
pub fn begun<'a>(interval: &Interval, heads: &'a [IntervalHead]) -> impl Iterator<Item = &'a BackfillPlan> {
    let Interval { start, end } = *interval;
    let pending = heads.iter().filter_map(IntervalHead::pending);
    pending.filter(move |plan| plan.interval.start < end && start < plan.interval.end)
}

/// `done` is sorted by start.
fn is_covered(interval: &Interval, done: &[Interval]) -> bool {
    let mut reached = interval.start;
    for piece in done.iter().filter(|piece| piece.start < interval.end) {
        if piece.start <= reached {
            reached = reached.max(piece.end);
        }
    }
    reached >= interval.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::FORMAT_VERSION;

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(hour * 3600, 0).unwrap()
    }

    fn hours(start: i64, end: i64) -> Interval {
        Interval { start: at(start), end: at(end) }
    }

    fn names(tables: &[&str]) -> Vec<String> {
        tables.iter().map(|name| name.to_string()).collect()
    }

    fn owner() -> Owner {
        Owner { run_id: "r".into(), host: "h".into(), pid: 1 }
    }

    fn plan(run: BatchId, tables: &[&str], recipe: &str) -> BackfillPlan {
        BackfillPlan {
            version: FORMAT_VERSION,
            run,
            pipeline: "orders".into(),
            interval: hours(0, 24),
            mode: Mode::Full,
            since: None,
            since_time: None,
            reread: None,
            tables: names(tables),
            unfinished: Vec::new(),
            batch_time: at(100),
            pinned: BTreeMap::new(),
            recipe: recipe.into(),
            owner: owner(),
        }
    }

    fn record(run: BatchId, tables: &[&str], recipe: &str, through: BatchId) -> BackfillRecord {
        BackfillRecord {
            version: FORMAT_VERSION,
            run,
            pipeline: "orders".into(),
            interval: hours(0, 24),
            mode: Mode::Full,
            tables: names(tables),
            receipts: BTreeMap::new(),
            through: Some(through),
            reread: None,
            recipe: recipe.into(),
            input_rows: 1,
            dead_letters: 0,
            settles: true,
            settled_letters: 0,
            unsettled: Vec::new(),
            expectations: BTreeMap::new(),
            started_at: at(100),
            committed_at: at(101),
            owner: owner(),
        }
    }

    fn head(plan: Option<BackfillPlan>, record: Option<BackfillRecord>) -> IntervalHead {
        IntervalHead { plan, record }
    }

    fn request(mode: Mode, resume: bool, tables: &[&str]) -> Request {
        Request { mode, resume, slack: None, tables: names(tables), recipe: "new".into() }
    }

    fn order() -> Vec<String> {
        names(&["silver", "gold", "other"])
    }

    fn begin(run: BatchId, since: Option<BatchId>, tables: &[&str], unfinished: &[BatchId]) -> Decision {
        Decision::Begin { run, since, tables: names(tables), unfinished: unfinished.to_vec() }
    }

    #[test]
    fn runs_that_only_the_tables_know_are_followed_up() {
        let all = request(Mode::Full, true, &["silver", "gold"]);
        let order = order();
        assert_eq!(decide(&all, &head(None, None), None, &order), begin(0, None, &["silver", "gold"], &[]));
        assert_eq!(decide(&all, &head(None, None), Some(2), &order), begin(3, None, &["silver", "gold"], &[0, 1, 2]));
        let done = || head(Some(plan(1, &["silver", "gold"], "new")), Some(record(1, &["silver", "gold"], "new", 9)));
        assert_eq!(decide(&all, &done(), Some(1), &order), Decision::Skip);
        assert_eq!(decide(&all, &done(), Some(3), &order), begin(4, None, &["silver", "gold"], &[2, 3]));
    }

    #[test]
    fn a_finished_interval_is_done_again_unless_resumed_by_the_same_rules() {
        let finished =
            |recipe| head(Some(plan(0, &["silver", "gold"], recipe)), Some(record(0, &["silver", "gold"], recipe, 7)));
        let ask =
            |mode, resume, head: &IntervalHead| decide(&request(mode, resume, &["silver"]), head, Some(0), &order());
        assert_eq!(ask(Mode::Full, false, &finished("new")), begin(1, None, &["silver"], &[]));
        assert_eq!(ask(Mode::Full, true, &finished("new")), Decision::Skip);
        assert_eq!(ask(Mode::Full, true, &finished("old")), begin(1, None, &["silver"], &[]));
        assert_eq!(ask(Mode::Correction, false, &finished("new")), begin(1, Some(7), &["silver"], &[]));
        assert_eq!(ask(Mode::Correction, true, &finished("old")), begin(1, None, &["silver"], &[]));
        let wider = decide(&request(Mode::Full, true, &["silver", "other"]), &finished("new"), Some(0), &order());
        assert_eq!(wider, begin(1, None, &["silver", "other"], &[]));
    }

    #[test]
    fn a_run_that_was_begun_is_finished_by_the_same_command_and_followed_up_by_any_other() {
        let pending = plan(3, &["silver", "gold"], "new");
        let found = head(Some(pending.clone()), Some(record(2, &["silver", "gold"], "new", 7)));
        let same = decide(&request(Mode::Full, true, &["silver", "gold"]), &found, Some(3), &order());
        assert_eq!(same, Decision::Replay(Box::new(pending)));
        let other = decide(&request(Mode::Correction, false, &["other"]), &found, Some(3), &order());
        assert_eq!(other, begin(4, None, &["silver", "gold", "other"], &[3]));
        let changed = head(Some(BackfillPlan { unfinished: vec![2], ..plan(3, &["gold"], "old") }), None);
        let changed = decide(&request(Mode::Full, false, &["gold"]), &changed, None, &order());
        assert_eq!(changed, begin(4, None, &["gold"], &[2, 3]));
    }

    #[test]
    fn a_table_that_is_ahead_of_a_lost_log_is_never_taken_for_done() {
        let lost = decide(&request(Mode::Full, true, &["silver"]), &IntervalHead::default(), Some(5), &order());
        assert_eq!(lost, begin(6, None, &["silver"], &[0, 1, 2, 3, 4, 5]));
        let old = head(Some(plan(3, &["silver"], "new")), None);
        let old = decide(&request(Mode::Full, true, &["silver"]), &old, Some(5), &order());
        assert_eq!(old, begin(6, None, &["silver"], &[3, 4, 5]));
    }

    #[test]
    fn a_run_of_some_tables_does_not_forget_the_others() {
        let both = record(0, &["silver", "gold"], "new", 7);
        let gold = record(1, &["gold"], "new", 9).following(Some(&both), &order());
        assert_eq!((gold.tables, gold.through), (names(&["silver", "gold"]), Some(7)));
        let changed = record(1, &["gold"], "newer", 9).following(Some(&both), &order());
        assert_eq!((changed.tables, changed.through), (names(&["gold"]), Some(9)));
        let wider = record(1, &["silver", "gold"], "new", 9).following(Some(&both), &order());
        assert_eq!(wider.through, Some(9));
    }

    #[test]
    fn gaps_are_what_no_run_covers_by_todays_rules() {
        let days = [hours(0, 24), hours(24, 48), hours(48, 72), hours(72, 96), hours(96, 120)];
        let of =
            |interval, recipe: &str| head(None, Some(BackfillRecord { interval, ..record(0, &["silver"], recipe, 1) }));
        let mut heads: Vec<IntervalHead> = (24..48).map(|hour| of(hours(hour, hour + 1), "new")).collect();
        heads.push(of(days[0], "new"));
        heads.push(of(days[2], "old"));
        heads.push(of(hours(72, 90), "new"));
        heads.push(head(Some(BackfillPlan { interval: days[4], ..plan(1, &["silver"], "new") }), None));
        let expected = [(days[2], Gap::Outdated), (days[3], Gap::Missing), (days[4], Gap::Unfinished)];
        assert_eq!(gaps(&days, &heads, &names(&["silver"]), "new"), expected);
        let all = gaps(&days, &heads, &names(&["silver", "gold"]), "new");
        assert!(all.iter().take(4).all(|(_, gap)| *gap == Gap::Missing), "{all:?}");
    }
}

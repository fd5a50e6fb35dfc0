//! The model's numbers as the program's own types, and back: decisions and arithmetic are production code.

use std::collections::BTreeMap;

use chrono::DateTime;
use tidegate::model::batch::{BatchPlan, CommitRecord, FORMAT_VERSION, Owner, Receipt};
use tidegate::model::offset::{OffsetRanges, Offsets, Partition, Range};
use tidegate::model::recover::{Decision, Facts, TableFact, recover};

use super::walk::Seen;
use super::world::{Broken, MEMORY, NAMES, PARTITIONS, Plan, Position, Record, SILVER, TABLES};

const SOURCE: &str = "orders";
const PIPELINE: &str = "model";

fn partition(number: usize) -> Partition {
    Partition::new("orders", number as i32)
}

fn offsets(at: Position) -> Offsets {
    Offsets((0..PARTITIONS).map(|p| (partition(p), i64::from(at[p]))).collect())
}

fn position(offsets: &Offsets) -> Position {
    std::array::from_fn(|p| offsets.0.get(&partition(p)).map_or(0, |&offset| offset as u8))
}

fn ranges(plan: Plan) -> OffsetRanges {
    let range = |p: usize| Range { from: plan.from[p].into(), until: plan.until[p].into() };
    OffsetRanges((0..PARTITIONS).map(|p| (partition(p), range(p))).collect())
}

fn meaning() -> BTreeMap<String, String> {
    NAMES[..TABLES].iter().map(|name| (name.to_string(), "as ever".to_string())).collect()
}

fn by_source(ranges: OffsetRanges) -> BTreeMap<String, OffsetRanges> {
    BTreeMap::from([(SOURCE.to_string(), ranges)])
}

/// The attempt goes into the owner's pid: the way back needs it.
fn batch_plan(plan: Plan) -> BatchPlan {
    BatchPlan {
        version: FORMAT_VERSION,
        batch: plan.batch.into(),
        pipeline: PIPELINE.into(),
        batch_time: DateTime::UNIX_EPOCH,
        sources: by_source(ranges(if plan.is_move { Plan { from: plan.until, ..plan } } else { plan })),
        skipped: BTreeMap::new(),
        letters: None,
        rebuild: Vec::new(),
        since: BTreeMap::new(),
        forget: None,
        moved: if plan.is_move { by_source(ranges(plan)) } else { BTreeMap::new() },
        lost: BTreeMap::new(),
        incarnations: BTreeMap::new(),
        watermarks: BTreeMap::new(),
        pinned: BTreeMap::new(),
        meaning: meaning(),
        recipe: String::new(),
        owner: Owner { run_id: plan.run.to_string(), host: String::new(), pid: plan.look.into() },
    }
}

fn plan_of(plan: &BatchPlan) -> Plan {
    let start = |ranges: &OffsetRanges| Offsets(ranges.0.iter().map(|(p, r)| (p.clone(), r.from)).collect());
    Plan {
        batch: plan.batch as u8,
        from: if plan.is_move() { &plan.moved } else { &plan.sources }
            .get(SOURCE)
            .map(|ranges| position(&start(ranges)))
            .unwrap_or_default(),
        until: plan.until().get(SOURCE).map(position).unwrap_or_default(),
        run: plan.owner.run_id.parse().unwrap_or_default(),
        look: plan.owner.pid as u8,
        is_move: plan.is_move(),
    }
}

fn commit_record(record: Record) -> CommitRecord {
    let receipt = |table: usize| Receipt {
        delta_version: record.versions[table].map_or(-1, i64::from),
        memory_version: if table == SILVER { record.memory.map(i64::from) } else { None },
        ..Receipt::default()
    };
    CommitRecord {
        version: FORMAT_VERSION,
        batch: record.batch.into(),
        pipeline: PIPELINE.into(),
        offsets: BTreeMap::from([(SOURCE.to_string(), offsets(record.until))]),
        incarnations: BTreeMap::new(),
        lost: BTreeMap::new(),
        next_watermarks: BTreeMap::new(),
        tables: (0..TABLES).map(|table| (NAMES[table].to_string(), receipt(table))).collect(),
        input_rows: 0,
        input_bytes: 0,
        dead_letters: 0,
        expectations: BTreeMap::new(),
        replayed_from: None,
        finished_by: None,
        duration_ms: BTreeMap::new(),
        committed_at: DateTime::UNIX_EPOCH,
    }
}

/// What a runner does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Next {
    New(u8),
    Again(Plan),
}

/// The production decision.
pub fn decide(plan: Option<Plan>, commit: Option<Record>, seen: &[Seen; TABLES + 1]) -> Result<Next, Broken> {
    let fact = |table: usize| TableFact {
        version: seen[table].version.map(i64::from),
        applied: seen[table].applied.map(i64::from),
        memory: if table == SILVER { seen[MEMORY].version.map(i64::from) } else { None },
        memory_harmed: false,
        made_by: seen[table].version.map(|_| (PIPELINE.to_string(), "id".to_string())),
        restored: false,
        foreign: Vec::new(),
        note: None,
    };
    let facts = Facts {
        pipeline: PIPELINE.into(),
        pipeline_id: "id".into(),
        meaning: meaning(),
        recipe: String::new(),
        plan: plan.map(batch_plan),
        commit: commit.map(commit_record),
        tables: (0..TABLES).map(|table| (NAMES[table].to_string(), fact(table))).collect(),
    };
    match recover(&facts) {
        Decision::Begin => Ok(Next::New(0)),
        Decision::Plan { batch } => Ok(Next::New(batch as u8)),
        Decision::Replay(plan) => Ok(Next::Again(plan_of(&plan))),
        Decision::Halt(why) => Err(Broken(format!("a runner halts without outside damage: {why}"))),
    }
}

/// The position after a plan, by the production rule; a gap or an overlap is a broken law.
pub fn advance(at: Position, plan: Plan) -> Result<Position, Broken> {
    let next = batch_plan(plan).advance(&BTreeMap::from([(SOURCE.to_string(), offsets(at))]));
    next.map(|next| next.get(SOURCE).map(position).unwrap_or_default())
        .map_err(|why| Broken(format!("batch {} does not continue: {why}", plan.batch)))
}

/// The end of the next batch: one row per partition that has any, by the production rule for limits.
pub fn bound(at: Position, end: Position) -> Position {
    let cut = offsets(at).ranges_to(&offsets(end)).prorate(1);
    position(&Offsets(cut.0.into_iter().map(|(partition, range)| (partition, range.until)).collect()))
}

//! A pipeline in this process: the real runner, transforms and Delta tables over a lake in memory, batch by batch, with
//! tables that can be watched and disturbed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidegate::checkpoint::log::ObjectLog;
use tidegate::checkpoint::states::States;
use tidegate::checkpoint::{CheckpointLog, Identity};
use tidegate::config::{self, LoadOptions, spec::PipelineSpec};
use tidegate::error::{Error, Result};
use tidegate::model::batch::{BatchId, CommitRecord, FORMAT_VERSION, Owner, Receipt};
use tidegate::model::offset::{Offsets, Partition};
use tidegate::runner::clock::Clock;
use tidegate::runner::event::Event;
use tidegate::runner::{Parts, Runner, Stepped, app_id};
use tidegate::source::Source;
use tidegate::source::memory::{MemorySource, Record};
use tidegate::storage::{self, Storage};
use tidegate::table::maintain::{Compacted, Compaction, Vacuum, Vacuumed};
use tidegate::table::{
    Change, Held, Images, Maker, Pin, Removal, Span, Table, TableDefinition, TableState, Traces, Trim, Txn, WriteMode,
    delta, glance,
};
use tidegate::transform::Transform as _;
use tidegate::transform::compile::{self, CompiledPipeline};
use tidegate::transform::definitions::table_definitions;

pub const NULL: &str = "∅";
const PIPELINE: &str = "p-1";

/// What tests see of tables, and do to them.
#[derive(Default)]
pub struct Stage {
    /// How often rows were read for a refresh, and how many, by the table that was read.
    reads: BTreeMap<String, (u64, u64)>,
    /// When the last table but a refresh table was committed.
    applied: Option<Instant>,
    /// From then to the commit of a refresh table.
    pub refreshing: Duration,
    /// The next batch's commit to these tables fails before anything is done.
    pub failing: BTreeSet<String>,
    /// Somebody commits to a table just before the runner's next commit there.
    pub intruders: BTreeMap<String, (Change, Txn)>,
}

pub struct World {
    pub lake: Storage,
    log: Storage,
    spec: PipelineSpec,
    compiled: Arc<CompiledPipeline>,
    source: MemorySource,
    /// Locked for the sake of tests that share a world; a runner is not shared.
    runner: Mutex<Option<Runner>>,
    pub stage: Arc<Mutex<Stage>>,
}

struct Standing;

impl Clock for Standing {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }
}

fn owner() -> Owner {
    Owner { run_id: "r-1".into(), host: String::new(), pid: 0 }
}

impl World {
    /// A pipeline whose only source, `source`, has these lines.
    pub async fn new(yaml: &str, lines: &[String]) -> World {
        let lake = storage::in_memory().expect("memory");
        World::over(lake, yaml, lines).await
    }

    /// The same over a lake that there is.
    pub async fn over(lake: Storage, yaml: &str, lines: &[String]) -> World {
        let loaded = config::load_text(Path::new("/world.yaml"), yaml, &LoadOptions::offline(None));
        let spec = loaded.unwrap_or_else(|report| panic!("{}\n{yaml}", report.render())).spec;
        let compiled = compile::compile(&spec, &BTreeMap::new()).unwrap_or_else(|found| panic!("{found:?}\n{yaml}"));
        let record = |(offset, line): (usize, &String)| Record {
            partition: Partition::new("t", 0),
            offset: offset as i64,
            timestamp: None,
            key: None,
            value: Some(line.as_bytes().to_vec()),
            headers: None,
        };
        let source = MemorySource::new(lines.iter().enumerate().map(record));
        let log = storage::in_memory().expect("memory");
        let identity = Identity {
            version: FORMAT_VERSION,
            pipeline_id: PIPELINE.into(),
            pipeline: spec.name.clone(),
            created_by: owner(),
        };
        ObjectLog::new(log.clone()).create(&identity).await.expect("an identity");
        let stage = Arc::new(Mutex::new(Stage::default()));
        World { lake, log, spec, compiled: Arc::new(compiled), source, runner: Mutex::default(), stage }
    }

    /// The same log, lake and source, and another file.
    pub fn with(self, yaml: &str) -> World {
        let loaded = config::load_text(Path::new("/world.yaml"), yaml, &LoadOptions::offline(None));
        let spec = loaded.unwrap_or_else(|report| panic!("{}\n{yaml}", report.render())).spec;
        let compiled = compile::compile(&spec, &BTreeMap::new()).unwrap_or_else(|found| panic!("{found:?}\n{yaml}"));
        World { spec, compiled: Arc::new(compiled), runner: Mutex::default(), ..self }
    }

    /// Lets go of what the run knows.
    pub fn restart(&mut self) {
        *self.runner.get_mut().expect("a runner") = None;
    }

    pub fn upkeep(&self, table: &str) -> String {
        self.compiled.upkeep(table).expect("a refresh table")
    }

    pub fn columns(&self, table: &str) -> Vec<String> {
        self.compiled.schema(table).fields().iter().map(|field| field.name().clone()).collect()
    }

    fn definitions(&self) -> Vec<TableDefinition> {
        let maker = Maker { pipeline: self.spec.name.clone(), pipeline_id: PIPELINE.into() };
        table_definitions(&self.compiled, &maker)
    }

    /// Whether rows for a table say whether they are deletes.
    pub fn deletes(&self, table: &str) -> bool {
        let definition = self.definitions().into_iter().find(|definition| definition.name == table);
        matches!(definition.expect("a table").write, WriteMode::Upsert { delete_flag: Some(_), .. })
    }

    /// A table as somebody else opens it.
    pub fn open(&self, name: &str) -> Box<dyn Table> {
        let definition = self.definitions().into_iter().find(|definition| definition.name == name);
        delta::open(&self.lake, definition.expect("a table of the pipeline")).expect("a table")
    }

    /// What a backfill commits as.
    pub fn beside(table: &str, batch: BatchId) -> Txn {
        let app_id = format!("{}{}x", app_id(PIPELINE, table), tidegate::table::BESIDE);
        Txn { app_id, batch, user_metadata: "{}".into() }
    }

    /// The batch up to line `until`.
    pub async fn batch(&mut self, until: usize) -> Result<Option<CommitRecord>> {
        let ends = Offsets(BTreeMap::from([(Partition::new("t", 0), until as i64)]));
        let mut runner = match self.runner.get_mut().expect("a runner").take() {
            Some(runner) => runner,
            None => self.start(),
        };
        let stepped = runner.step(&BTreeMap::from([("source".to_string(), ends)])).await;
        *self.runner.get_mut().expect("a runner") = Some(runner);
        Ok(match stepped? {
            Stepped::Ran(record) => Some(*record),
            Stepped::Idle => None,
        })
    }

    fn start(&self) -> Runner {
        let watched = |definition: TableDefinition| -> Box<dyn Table> {
            let open = || delta::open(&self.lake, definition.clone()).expect("a table");
            Box::new(Watched { table: open(), other: open(), stage: self.stage.clone() })
        };
        Runner::new(Parts {
            spec: self.spec.clone(),
            pipeline_id: PIPELINE.into(),
            owner: owner(),
            sources: BTreeMap::from([("source".to_string(), Box::new(self.source.clone()) as Box<dyn Source>)]),
            transform: self.compiled.clone(),
            tables: self.definitions().into_iter().map(watched).collect(),
            lookups: BTreeMap::new(),
            log: Box::new(ObjectLog::new(self.log.clone())),
            clock: Arc::new(Standing),
            observer: Box::new(|_: &Event| {}),
            states: States::new(&self.lake).expect("a folder"),
        })
    }

    /// How often a table was read for refreshes since the last time that this was asked, and how many rows.
    pub fn reads(&self, table: &str) -> (u64, u64) {
        self.stage.lock().expect("a stage").reads.remove(table).unwrap_or_default()
    }

    /// The rows of a table as sorted lines of these columns.
    pub async fn lines(&self, table: &str, columns: &[String]) -> Vec<String> {
        match glance::contents(&self.lake, table).await.expect("a table") {
            Some(rows) => lines(&rows, columns),
            None => Vec::new(),
        }
    }
}

fn lines(rows: &RecordBatch, columns: &[String]) -> Vec<String> {
    let options = FormatOptions::default().with_null(NULL);
    let cells = |name: &String| {
        let column = rows.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
        let cells = ArrayFormatter::try_new(column.as_ref(), &options).expect("a column that can be shown");
        (0..rows.num_rows()).map(|row| cells.value(row).to_string()).collect::<Vec<_>>()
    };
    let cells: Vec<Vec<String>> = columns.iter().map(cells).collect();
    let line = |row: usize| cells.iter().map(|column| column[row].as_str()).collect::<Vec<_>>().join("|");
    let mut lines: Vec<String> = (0..rows.num_rows()).map(line).collect();
    lines.sort_unstable();
    lines
}

/// A table that counts what is read of it, and that can be disturbed.
struct Watched {
    table: Box<dyn Table>,
    /// The same table in somebody else's hands.
    other: Box<dyn Table>,
    stage: Arc<Mutex<Stage>>,
}

impl Watched {
    async fn disturb(&mut self) -> Result<()> {
        let name = self.table.definition().name.clone();
        let intruder = {
            let mut stage = self.stage.lock().expect("a stage");
            if stage.failing.remove(&name) {
                return Err(Error::failed("the test says so"));
            }
            stage.intruders.remove(&name)
        };
        if let Some((change, txn)) = intruder {
            self.other.observe(&txn.app_id).await?;
            self.other.apply(change, &txn).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Table for Watched {
    fn definition(&self) -> &TableDefinition {
        self.table.definition()
    }

    async fn observe(&mut self, app_id: &str) -> Result<TableState> {
        self.table.observe(app_id).await
    }

    async fn note(&mut self, app_id: &str, batch: BatchId) -> Result<Option<String>> {
        self.table.note(app_id, batch).await
    }

    async fn apply(&mut self, change: Change, txn: &Txn) -> Result<Receipt> {
        self.disturb().await?;
        let receipt = self.table.apply(change, txn).await;
        self.stage.lock().expect("a stage").applied = Some(Instant::now());
        receipt
    }

    async fn pin(&mut self, app_id: &str) -> Result<Pin> {
        self.table.pin(app_id).await
    }

    async fn apply_at(&mut self, change: Change, txn: &Txn, pin: &Pin) -> Result<Option<Receipt>> {
        self.disturb().await?;
        let receipt = self.table.apply_at(change, txn, pin).await;
        let mut stage = self.stage.lock().expect("a stage");
        stage.refreshing = stage.applied.map_or(Duration::ZERO, |since| since.elapsed());
        receipt
    }

    async fn check(&mut self, change: &Change) -> Result<()> {
        self.table.check(change).await
    }

    async fn added(&mut self, txn: &Txn, marker: &str) -> Result<Vec<RecordBatch>> {
        self.table.added(txn, marker).await
    }

    async fn touched(&mut self, by: &[String], txn: &Txn) -> Result<RecordBatch> {
        self.table.touched(by, txn).await
    }

    fn images(&self, columns: &[String], txn: &Txn) -> Option<Images> {
        self.table.images(columns, txn)
    }

    async fn is_unchanged(&mut self, after: i64, until: Option<i64>) -> Result<bool> {
        self.table.is_unchanged(after, until).await
    }

    async fn count_after(&mut self, trim: &Trim) -> Result<u64> {
        self.table.count_after(trim).await
    }

    async fn stored(&mut self) -> Result<Option<SchemaRef>> {
        self.table.stored().await
    }

    async fn count_held(&mut self, removal: &Removal) -> Result<Held> {
        self.table.count_held(removal).await
    }

    async fn traces(&mut self, columns: &[String]) -> Result<Traces> {
        self.table.traces(columns).await
    }

    async fn groups(&mut self, by: &[String]) -> Result<RecordBatch> {
        self.table.groups(by).await
    }

    async fn read(&mut self, columns: &[String], groups: Option<&RecordBatch>) -> Result<Vec<RecordBatch>> {
        self.table.read(columns, groups).await
    }

    async fn read_newest(&mut self, columns: &[String], groups: Option<&RecordBatch>) -> Result<Vec<RecordBatch>> {
        let rows = self.table.read_newest(columns, groups).await?;
        let mut stage = self.stage.lock().expect("a stage");
        let seen = stage.reads.entry(self.table.definition().name.clone()).or_default();
        *seen = (seen.0 + 1, seen.1 + rows.iter().map(|rows| rows.num_rows() as u64).sum::<u64>());
        Ok(rows)
    }

    async fn read_span(&mut self, columns: &[String], span: &Span) -> Result<Vec<RecordBatch>> {
        self.table.read_span(columns, span).await
    }

    async fn first_time(&mut self, column: &str) -> Result<Option<DateTime<Utc>>> {
        self.table.first_time(column).await
    }

    async fn compact(&mut self, order: &Compaction) -> Result<Compacted> {
        self.table.compact(order).await
    }

    async fn vacuum(&mut self, order: &Vacuum) -> Result<Option<Vacuumed>> {
        self.table.vacuum(order).await
    }

    async fn tidy_log(&mut self, now: DateTime<Utc>) {
        self.table.tidy_log(now).await;
    }
}

//! Maintenance of a table: what is asked for, and what came of it. None of it changes a row.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// Which small files are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only where enough files of one size have gathered: every byte is rewritten a few times in its life, however many
    /// batches there are. For between two batches.
    Tiered,
    /// Every small file that has a neighbour. For `tidegate optimize`.
    Everything,
}

/// Asks for small files to be merged.
#[derive(Debug, Clone)]
pub struct Compaction {
    /// Which files.
    pub depth: Depth,
    /// Size that files grow to.
    pub target_bytes: u64,
    /// Bytes read in one go; at least one group of files is merged however large it is.
    pub max_bytes: u64,
    /// No group of files is begun after this.
    pub until: Option<Instant>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Files that were merged, and their bytes.
    pub files_removed: u64,
    /// Bytes of the files that were merged.
    pub bytes_removed: u64,
    /// Files that came of it.
    pub files_added: u64,
    /// Bytes of the files that came of it.
    pub bytes_added: u64,
    /// Live files when it began.
    pub files_before: u64,
    /// Live files when it ended.
    pub files_after: u64,
    /// The budget ran out, or another writer came first: asking again does more.
    pub more: bool,
    /// Groups of files dropped because another writer changed them first.
    pub lost: u64,
    /// Why the table was left alone.
    pub skipped: Option<String>,
}

impl Compacted {
    /// Adds what another pass did after this one.
    pub fn then(&mut self, next: Compacted) {
        self.files_removed += next.files_removed;
        self.bytes_removed += next.bytes_removed;
        self.files_added += next.files_added;
        self.bytes_added += next.bytes_added;
        self.files_after = next.files_after;
        self.more = next.more;
        self.lost += next.lost;
        self.skipped = next.skipped;
    }
}

/// Asks for files to be deleted that no version within the retention needs.
#[derive(Debug, Clone)]
pub struct Vacuum {
    /// Now, for ages.
    pub now: DateTime<Utc>,
    /// Versions up to this old stay readable. A longer retention of the table itself wins, unless `force`.
    pub retain: Duration,
    /// `retain` counts as it is.
    pub force: bool,
    /// Do nothing if the last vacuum is younger than this.
    pub every: Option<Duration>,
    /// Application id of the pipeline: what its last batch changed stays readable, however old. Empty = it does not: that
    /// batch is done, and what it took out is to go; with `force`, also the empty folders of partitions.
    pub app_id: String,
    /// Versions that stay readable, however old.
    pub keep_versions: Vec<i64>,
    /// Only say what would be deleted.
    pub dry_run: bool,
    /// No file is deleted after this.
    pub until: Option<Instant>,
}

/// What vacuum did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vacuumed {
    /// Files deleted that a commit had taken out of the table.
    pub expired: u64,
    /// Files deleted that no commit ever named: what crashes leave behind.
    pub orphans: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Paths of both, relative to the table.
    pub paths: Vec<String>,
    /// The retention that counted.
    pub retain: Duration,
    /// Time ran out: asking again does more.
    pub more: bool,
    /// Why the table was left alone.
    pub skipped: Option<String>,
}

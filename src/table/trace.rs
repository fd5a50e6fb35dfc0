//! What a table tells about the pipeline that writes it, when there is no checkpoint to ask.

use super::{Maker, delta};
use crate::error::Result;
use crate::model::batch::BatchId;
use crate::storage::Storage;

/// A table's own account of its pipeline.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Delta version.
    pub version: i64,
    /// Who made it; `None` = not tidegate.
    pub maker: Option<Maker>,
    /// Last batch applied by its maker.
    pub applied: Option<BatchId>,
    /// It was restored to a version before that batch.
    pub restored: bool,
    /// Version of its memory of deletes.
    pub memory: Option<i64>,
    /// Others restored or changed it.
    pub memory_harmed: bool,
    /// The newest commits that carry a batch, newest first, two at most.
    pub carriers: Vec<Carrier>,
}

/// A commit that carries a batch.
#[derive(Debug, Clone)]
pub struct Carrier {
    /// Delta version.
    pub version: i64,
    /// The batch.
    pub batch: BatchId,
    /// What it says about itself (`userMetadata`).
    pub note: Option<String>,
}

/// Traces `<lake>/<name>`; `None` = there is no table. `app_id` names the maker's transactions, given its pipeline id.
pub async fn trace(lake: &Storage, name: &str, app_id: impl Fn(&str) -> String) -> Result<Option<Trace>> {
    delta::trace::trace(lake, name, app_id).await
}

/// Who made `<lake>/<name>`, if there is such a table and tidegate made it.
pub async fn maker(lake: &Storage, name: &str) -> Result<Option<Maker>> {
    delta::trace::maker(lake, name).await
}

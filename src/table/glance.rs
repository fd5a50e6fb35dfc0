//! A look at a table from outside: how large it is and what some of its rows look like. For `status` and the demo.

use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::delta::snapshot;
use crate::error::{Context, ErrorKind, Result};
use crate::storage::Storage;

/// Size and sample of a table.
#[derive(Debug, Clone)]
pub struct Glance {
    /// Delta version.
    pub version: i64,
    /// Rows, from the files' statistics.
    pub rows: u64,
    /// Live data files.
    pub files: u64,
    /// Bytes of the live data files.
    pub bytes: u64,
    /// Column names.
    pub columns: Vec<String>,
    /// Some rows as text.
    pub sample: Vec<Vec<String>>,
}

/// Every row of `<lake>/<name>`; `None` = there is no table.
pub async fn contents(lake: &Storage, name: &str) -> Result<Option<RecordBatch>> {
    let Some(snapshot) = snapshot::load(&lake.join(&name.replace('.', "/"))?, None).await? else { return Ok(None) };
    let rows = snapshot.rows().await?;
    let rows = arrow::compute::concat_batches(&snapshot.schema(), &rows);
    rows.map(Some).context(ErrorKind::Failed, format!("the rows of {name} do not fit its schema"))
}

/// Looks at `<lake>/<name>`; `None` = there is no table.
pub async fn glance(lake: &Storage, name: &str, sample_rows: usize) -> Result<Option<Glance>> {
    look(lake, name, None, sample_rows).await
}

/// Looks at one version of it; `None` = the newest.
pub async fn at(lake: &Storage, name: &str, version: Option<i64>) -> Result<Option<Glance>> {
    look(lake, name, version, 0).await
}

async fn look(lake: &Storage, name: &str, version: Option<i64>, sample_rows: usize) -> Result<Option<Glance>> {
    let storage = lake.join(&name.replace('.', "/"))?;
    let Some(snapshot) = snapshot::load(&storage, version).await? else { return Ok(None) };
    let schema = snapshot.schema();
    let options = FormatOptions::default().with_null("");
    let mut sample = Vec::new();
    for batch in snapshot.head(sample_rows).await? {
        let formatters = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let formatters = formatters
            .collect::<std::result::Result<Vec<_>, _>>()
            .context(ErrorKind::Failed, "a column cannot be shown")?;
        for row in 0..batch.num_rows() {
            sample.push(formatters.iter().map(|f| f.value(row).to_string()).collect());
        }
    }
    let (files, bytes, rows) = snapshot.size();
    let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
    Ok(Some(Glance { version: snapshot.version(), rows, files, bytes, columns, sample }))
}

//! Lookups: the static side of joins, from Delta tables (pinned to a version), Parquet and CSV files.

use std::io::{Cursor, Seek};
use std::sync::Arc;

use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Lookup;
use super::delta::snapshot::{self, Snapshot};
use crate::config::spec::LookupSpec;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::storage::{self, Storage};

/// Opens a lookup. Nothing is read yet.
pub fn open(name: &str, spec: &LookupSpec) -> Result<Box<dyn Lookup>> {
    let name = name.to_owned();
    Ok(match spec {
        LookupSpec::Delta(location) => {
            let storage = storage::open(location)?;
            Box::new(DeltaLookup { name, storage, newest: None, cached: None })
        }
        LookupSpec::Parquet(location) => Box::new(FileLookup::new(name, location, Kind::Parquet)?),
        LookupSpec::Csv(location) => Box::new(FileLookup::new(name, location, Kind::Csv)?),
    })
}

/// A lookup of rows that are there already.
pub fn of_rows(schema: SchemaRef, rows: Arc<Vec<RecordBatch>>) -> Box<dyn Lookup> {
    Box::new(MemoryLookup { schema, rows })
}

/// The rows of a CSV text with a header line, types inferred as for a CSV lookup.
pub fn csv_rows(text: String) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    read_csv(Bytes::from(text))
}

struct MemoryLookup {
    schema: SchemaRef,
    rows: Rows,
}

#[async_trait]
impl Lookup for MemoryLookup {
    async fn latest(&mut self) -> Result<Option<i64>> {
        Ok(None)
    }

    async fn schema(&mut self) -> Result<SchemaRef> {
        Ok(self.schema.clone())
    }

    async fn load(&mut self, _: Option<i64>) -> Result<Rows> {
        Ok(self.rows.clone())
    }
}

type Rows = Arc<Vec<RecordBatch>>;

struct DeltaLookup {
    name: String,
    storage: Storage,
    newest: Option<Snapshot>,
    cached: Option<(i64, Rows)>,
}

impl DeltaLookup {
    fn missing(&self) -> Error {
        Error::config(format!("lookup `{}`: there is no Delta table", self.name))
            .with("at", self.storage.display())
            .help("create it, or correct the path under `lookups:`")
    }

    async fn at(&self, version: Option<i64>) -> Result<Snapshot> {
        match snapshot::load(&self.storage, version).await? {
            Some(snapshot) => Ok(snapshot),
            None => Err(self.missing()),
        }
    }
}

#[async_trait]
impl Lookup for DeltaLookup {
    async fn latest(&mut self) -> Result<Option<i64>> {
        let newest = self.at(None).await?;
        let version = newest.version();
        self.newest = Some(newest);
        Ok(Some(version))
    }

    async fn schema(&mut self) -> Result<SchemaRef> {
        if self.newest.is_none() {
            self.newest = Some(self.at(None).await?);
        }
        self.newest.as_ref().map(Snapshot::schema).ok_or_else(|| self.missing())
    }

    async fn load(&mut self, version: Option<i64>) -> Result<Rows> {
        let version = match version {
            Some(version) => version,
            None => self.latest().await?.ok_or_else(|| self.missing())?,
        };
        if let Some((cached, rows)) = &self.cached
            && *cached == version
        {
            return Ok(rows.clone());
        }
        let rows = match &self.newest {
            Some(newest) if newest.version() == version => newest.rows().await?,
            _ => self.at(Some(version)).await?.rows().await?,
        };
        let rows = Arc::new(rows);
        self.cached = Some((version, rows.clone()));
        Ok(rows)
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Parquet,
    Csv,
}

/// One file, read once per process: files have no versions to pin.
struct FileLookup {
    name: String,
    folder: Storage,
    file: Path,
    kind: Kind,
    cached: Option<(SchemaRef, Rows)>,
}

impl FileLookup {
    fn new(name: String, location: &str, kind: Kind) -> Result<FileLookup> {
        let trimmed = location.trim_end_matches('/');
        let Some((folder, file)) = trimmed.rsplit_once('/').filter(|(_, file)| !file.is_empty()) else {
            return Err(Error::config(format!("lookup `{name}`: `{location}` is not a file")));
        };
        let folder = storage::open(if folder.is_empty() { "/" } else { folder })?;
        Ok(FileLookup { name, folder, file: Path::from(file), kind, cached: None })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.folder.display().trim_end_matches('/'), self.file)
    }

    async fn bytes(&self) -> Result<Bytes> {
        let failed = |cause: object_store::Error| match cause {
            object_store::Error::NotFound { .. } => Error::config(format!("lookup `{}`: there is no file", self.name))
                .with("at", self.path())
                .help("create it, or correct the path under `lookups:`"),
            other => storage::explain(&other, &format!("read lookup `{}`", self.name), &self.path()),
        };
        let found = self.folder.store.get(&self.file).await.map_err(failed)?;
        found.bytes().await.map_err(failed)
    }

    async fn read(&mut self) -> Result<(SchemaRef, Rows)> {
        if let Some(cached) = &self.cached {
            return Ok(cached.clone());
        }
        let bytes = self.bytes().await?;
        let parsed = match self.kind {
            Kind::Parquet => read_parquet(bytes),
            Kind::Csv => read_csv(bytes),
        };
        let (schema, rows) = parsed.map_err(|cause| {
            Error::config(format!("lookup `{}` cannot be read", self.name)).with("at", self.path()).caused_by(cause)
        })?;
        let cached = (schema, Arc::new(rows));
        self.cached = Some(cached.clone());
        Ok(cached)
    }
}

#[async_trait]
impl Lookup for FileLookup {
    async fn latest(&mut self) -> Result<Option<i64>> {
        Ok(None)
    }

    async fn schema(&mut self) -> Result<SchemaRef> {
        Ok(self.read().await?.0)
    }

    async fn load(&mut self, _: Option<i64>) -> Result<Rows> {
        Ok(self.read().await?.1)
    }
}

fn read_parquet(bytes: Bytes) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let why = "this is not a Parquet file";
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).context(ErrorKind::Config, why)?;
    let schema = builder.schema().clone();
    let rows = builder.build().context(ErrorKind::Config, why)?;
    let rows = rows.collect::<std::result::Result<Vec<_>, _>>().context(ErrorKind::Config, why)?;
    Ok((schema, rows))
}

/// Types are inferred over the whole file: a column is a number only when every value is one.
fn read_csv(bytes: Bytes) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let why = "this is not a CSV file with a header";
    let mut input = Cursor::new(bytes);
    let format = Format::default().with_header(true);
    let (inferred, _) = format.infer_schema(&mut input, None).context(ErrorKind::Config, why)?;
    let schema: SchemaRef =
        Arc::new(Schema::new(inferred.fields().iter().map(|f| lookup_field(f)).collect::<Vec<_>>()));
    input.rewind().context(ErrorKind::Config, why)?;
    let reader = ReaderBuilder::new(schema.clone()).with_header(true).build(input).context(ErrorKind::Config, why)?;
    let rows = reader.collect::<std::result::Result<Vec<_>, _>>().context(ErrorKind::Config, why)?;
    Ok((schema, rows))
}

fn lookup_field(field: &Field) -> Field {
    let data_type = match field.data_type() {
        DataType::Timestamp(..) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Int64 | DataType::Float64 | DataType::Boolean | DataType::Date32 => field.data_type().clone(),
        _ => DataType::Utf8,
    };
    Field::new(field.name().trim(), data_type, true)
}

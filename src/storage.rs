//! Where bytes live: local folders and object stores behind one interface.

use std::sync::Arc;

use object_store::ObjectStore;
use url::Url;

use crate::error::Result;

/// A folder on local disk or in an object store.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Rooted at the folder. Local writes are durable (file and directory fsynced) when they return.
    pub store: Arc<dyn ObjectStore>,
    /// The folder.
    pub url: Url,
}

/// Opens a folder given as an absolute path or a URL (`file://`, `s3://`, `gs://`, `abfss://`); credentials come from the
/// environment. Creates nothing.
pub fn open(location: &str) -> Result<Storage> {
    let _ = location;
    Err(crate::error::Error::failed("storage is not wired up yet"))
}

/// E: stub
pub fn explain(error: &object_store::Error, what: &str, at: &str) -> crate::error::Error {
    crate::error::Error::failed(format!("{what}: {at}: {error}"))
}

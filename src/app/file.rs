//! Small files that commands write beside the lake: all of the new content, or what was there before.

use std::path::Path;

use object_store::path::Path as Key;
use object_store::{PutMode, PutOptions, PutPayload};

use crate::error::{Error, Result};
use crate::storage;

/// Writes a file, in place of one that is there.
pub(super) async fn write(path: &Path, content: impl Into<Vec<u8>>) -> Result<()> {
    put(path, content.into(), PutMode::Overwrite).await.map(|_| ())
}

/// Writes a file unless there is one; false = there is one, and it stays as it is.
pub(super) async fn create(path: &Path, content: impl Into<Vec<u8>>) -> Result<bool> {
    put(path, content.into(), PutMode::Create).await
}

async fn put(path: &Path, content: Vec<u8>, mode: PutMode) -> Result<bool> {
    let absolute =
        std::path::absolute(path).map_err(|error| Error::failed("the file has no absolute path").caused_by(error))?;
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = storage::open(&absolute.parent().unwrap_or(Path::new("/")).to_string_lossy())?;
    match folder.store.put_opts(&Key::from(name), PutPayload::from(content), PutOptions::from(mode)).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(storage::explain(&error, "write the file", &path.display().to_string())),
    }
}

//! Data files as the log describes them.

use std::collections::HashMap;

use deltalake::kernel::{Add, LogicalFileView, Remove};
use object_store::path::Path;

/// One data file of a table.
#[derive(Clone)]
pub(super) struct DataFile {
    /// Relative to the table, as the log names it (decoded).
    pub(super) path: String,
    pub(super) size: u64,
    /// Partition column → text of its value.
    pub(super) partition: HashMap<String, Option<String>>,
    /// Statistics; files known only from a commit have none.
    view: Option<LogicalFileView>,
}

impl DataFile {
    pub(super) fn from_view(view: LogicalFileView) -> DataFile {
        DataFile {
            path: view.path().into_owned(),
            size: u64::try_from(view.size()).unwrap_or(0),
            partition: view.partition_values_map(),
            view: Some(view),
        }
    }

    pub(super) fn from_add(add: &Add) -> DataFile {
        DataFile {
            path: add.path.clone(),
            size: u64::try_from(add.size).unwrap_or(0),
            partition: add.partition_values.clone(),
            view: None,
        }
    }

    pub(super) fn from_remove(remove: &Remove) -> DataFile {
        DataFile {
            path: remove.path.clone(),
            size: u64::try_from(remove.size.unwrap_or(0)).unwrap_or(0),
            partition: remove.partition_values.clone().unwrap_or_default(),
            view: None,
        }
    }

    pub(super) fn location(&self) -> Path {
        location(&self.path)
    }

    pub(super) fn view(&self) -> Option<&LogicalFileView> {
        self.view.as_ref()
    }

    /// Some of the file's rows are marked as deleted elsewhere.
    pub(super) fn has_deletion_vector(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.deletion_vector_descriptor().is_some())
    }

    /// The action that takes the file out of the table.
    pub(super) fn remove(&self) -> Option<Remove> {
        self.view.as_ref().map(|view| view.remove_action(true))
    }

    /// The action that takes the file out of the table while its rows stay.
    pub(super) fn move_out(&self) -> Option<Remove> {
        self.view.as_ref().map(|view| view.remove_action(false))
    }

    /// When it was written, in milliseconds; files known only from a commit say 0.
    pub(super) fn modified(&self) -> i64 {
        self.view.as_ref().map_or(0, LogicalFileView::modification_time)
    }

    /// Rows, where the log counts them.
    pub(super) fn rows(&self) -> Option<u64> {
        self.view.as_ref().and_then(LogicalFileView::num_records).map(|rows| rows as u64)
    }

    /// Names the file's partition, for grouping.
    pub(super) fn partition_name(&self) -> String {
        let mut parts: Vec<String> = self.partition.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
        parts.sort();
        parts.join("/")
    }
}

/// Where a file named in the log lies.
pub(super) fn location(path: &str) -> Path {
    Path::parse(path).unwrap_or_else(|_| Path::from(path))
}
